"""How far the outputs move when the weights do: bounds through a network, and tolerances that keep within one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lthlib.errors import InputError
from lthlib.theory.strong.sources import Affine, Node, Residual, affines, read, run
from lthlib.ticket import Ticket


@torch.no_grad()
def error_budget(target: Ticket, eps: float, inputs: Tensor) -> list[float]:
    r"""A tolerance a layer such that weights within it keep every output within `eps` of the target's on `inputs`.

    $\varepsilon_l\propto\frac{\varepsilon}{L}\big[(1+B_{l-1})\prod_{k>l}\lVert W_k\rVert_\infty\big]^{-1}$ with $B_l$
    the largest 1-norm of what a weight row sees, then scaled so that `error_bound` is at most `eps` (derived here,
    after the form in Pensia et al., NeurIPS 2020). For kind "two-layer". Raises InputError unless eps > 0.
    """
    if not 0 < eps < math.inf:
        raise InputError(f"eps is {eps}, which is no tolerance of an output (valid: above 0, finite)")
    nodes = read(target)
    layers = list(affines(nodes))
    seen = _largest_inputs(nodes, inputs)
    norms = [_norm(layer.weight) for layer in layers]
    shares = [
        eps / len(layers) / ((1 + seen[layer.name]) * math.prod(norms[place + 1 :]))
        for place, layer in enumerate(layers)
    ]

    def within(scale: float) -> bool:
        return error_bound(nodes, [scale * share for share in shares], inputs, seen) <= eps

    low, high = 0.0, 1.0
    while within(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return [low * share for share in shares]


@torch.no_grad()
def error_bound(
    nodes: Sequence[Node], eps: Sequence[float], inputs: Tensor, seen: dict[str, float] | None = None
) -> float:
    """The most that any output on `inputs` can move when every weight and bias of layer l moves by at most eps[l].

    Through a layer an error e becomes |W|_inf e + eps (1 + B + m e), with B the largest 1-norm of a row's inputs and m
    their number; activations, pooling and means do not enlarge it; the branches of a residual block add (derived).
    """
    seen = _largest_inputs(nodes, inputs) if seen is None else seen
    tolerance = dict(zip((layer.name for layer in affines(nodes)), eps, strict=True))

    def through(nodes: Sequence[Node], error: float) -> float:
        for node in nodes:
            if isinstance(node, Affine):
                size, fan_in = tolerance[node.name], node.weight[0].numel()
                error = _norm(node.weight) * error + size * (1 + seen[node.name] + fan_in * error)
            elif isinstance(node, Residual):
                error = through(node.body, error) + through(node.shortcut, error)
        return error

    return through(nodes, 0.0)


def _norm(weight: Tensor) -> float:
    return float(weight.abs().flatten(1).sum(1).max())


def _largest_inputs(nodes: Sequence[Node], inputs: Tensor) -> dict[str, float]:
    """The largest 1-norm of what one row of each layer's weights sees, over the inputs."""
    seen: dict[str, float] = {}

    def layer(affine: Affine, x: Tensor) -> Tensor:
        ones = torch.ones_like(affine.weight[:1])
        seen[affine.name] = max(seen.get(affine.name, 0.0), float(affine.apply(x.abs(), ones, None).max()))
        return affine(x)

    for part in inputs.double().split(250):
        run(nodes, part, layer)
    return seen
