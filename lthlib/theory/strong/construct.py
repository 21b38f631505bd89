"""Strong lottery tickets by construction: a random network pruned, never trained, into a given target network.

Each weight of the target becomes a sum of a few random products (two source layers a target layer) or of a few random
weights of equal neurons (one layer more than the target). The result is a real `Ticket`: the random source network
with a mask, which runs through the ordinary forward pass. Constructions: Malach et al. (ICML 2020), Orseau et al.
and Pensia et al. (NeurIPS 2020) by the method of `SubsetSearch`; Burkholz (NeurIPS 2022) for "depth-plus-one".
Their released code writes the sums into a network of the target's shape; here nothing is emulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lthlib import basis
from lthlib.errors import InputError, unknown
from lthlib.models.architecture import build, prunable
from lthlib.randomness import generator
from lthlib.theory.arrays import Array
from lthlib.theory.strong.layers import Account, SourceLayer, activated, single, two_layer
from lthlib.theory.strong.search import SubsetSearch, draw_weights
from lthlib.theory.strong.sources import LEAK, Affine, Node, Residual, affines, flattened, read, run, source
from lthlib.ticket import Ticket

KINDS = ("two-layer", "depth-plus-one")


@dataclass(frozen=True)
class Effective:
    """What a target layer became: its weights for positive and for negative inputs, and its bias (float64)."""

    positive: Tensor
    negative: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Construction:
    """A ticket of a random source network, and the account of how it was made.

    - `ticket`: the source with its mask. Biases lie in `rest`, where a ticket has no mask: those that `bias_masks`
      does not keep are zero there, and `source_biases` holds all of them as drawn.
    - `nodes`: the target; `kind`: how it was built.
    - `layers`: one row a target layer: weights, subset sums solved, redrawn, unreached (error above eps), largest and
      mean error, candidates kept a weight.
    """

    ticket: Ticket
    nodes: tuple[Node, ...]
    layers: pd.DataFrame
    source_biases: dict[str, Tensor]
    bias_masks: dict[str, Tensor]
    kind: str = "two-layer"

    @property
    def counts(self) -> dict[str, float]:
        """target: nonzero weights and biases; source: all of the random network's; ticket: those kept; density =
        ticket / source; ratio = ticket / target; kept_per_weight: outer weights kept, over the weights constructed."""
        target = sum(
            int(layer.weight.count_nonzero()) + (0 if layer.bias is None else int(layer.bias.count_nonzero()))
            for layer in affines(self.nodes)
        )
        kept = self.ticket.kept + sum(int(mask.sum()) for mask in self.bias_masks.values())
        total = self.ticket.prunable + sum(mask.numel() for mask in self.bias_masks.values())
        chosen = float(self.layers["kept"].sum() / max(1, self.layers["weights"].sum()))
        return {"target": target, "source": total, "ticket": kept, "density": kept / total, "ratio": kept / target,
                "kept_per_weight": chosen}  # fmt: skip

    @property
    def unreached(self) -> int:
        """Subset sums whose error is above the tolerance: in the ticket they are as near as they came."""
        return int(self.layers["unreached"].sum())

    @property
    def solves(self) -> int:
        """Subset sums solved, redraws included."""
        return int(self.layers["solves"].sum())

    @property
    def effective(self) -> dict[str, Effective]:
        """The weights that the ticket gives each target layer, from its masks alone. InputError for "depth-plus-one",
        where a neuron's copies have weights of their own."""
        if self.kind != "two-layer":
            raise InputError(f"effective weights of a {self.kind!r} ticket: each copy of a neuron has its own")
        state, names = self.ticket.state(), list(self.ticket.masks)
        leak = LEAK if "leaky" in flattened(self.nodes) else 0.0
        layers = {}
        for affine, inner, outer in zip(affines(self.nodes), names[::2], names[1::2], strict=True):
            constants = state[inner.removesuffix("weight") + "bias"].double()
            layers[affine.name] = _effective(affine, state[inner], state[outer], constants, leak)
        return layers

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """The masked source's own outputs, float64, through its module's forward pass; inputs (batch, C, H, W)."""
        module = build(self.ticket.architecture).double().eval()
        module.load_state_dict({name: tensor.double() for name, tensor in self.ticket.state().items()})
        return torch.cat([module(part) for part in inputs.double().split(250)])

    @torch.no_grad()
    def sup_error(self, inputs: Tensor) -> float:
        """The largest difference of any output from the target's over these inputs."""
        target = torch.cat([run(self.nodes, part) for part in inputs.double().split(250)])
        return float((self.outputs(inputs) - target).abs().max())

    @torch.no_grad()
    def effective_outputs(self, inputs: Tensor) -> Tensor:
        """The target's layers with the weights that the ticket gives them: equal to `outputs` up to rounding."""
        effective = self.effective

        def layer(affine: Affine, x: Tensor) -> Tensor:
            weights = effective[affine.name]
            below = affine.apply(x.clamp(max=0), weights.negative, None)
            return affine.apply(x.clamp(min=0), weights.positive, weights.bias) + below

        return run(self.nodes, inputs.double(), layer)


def construct(
    target: Ticket,
    search: SubsetSearch | None = None,
    *,
    kind: str = "two-layer",
    seed: int = 0,
    eps: Sequence[float] | None = None,
    signed_inputs: bool = True,
) -> Construction:
    """A ticket of a random source network that approximates `target`, a ticket of a trained (or any) network.

    kind "two-layer": each layer becomes two, hidden neurons pruned to one input each, outer weights chosen among
    products; inputs of either sign take two subset sums a weight, one for each sign (`signed_inputs=False` where the
    data have none below 0; after a ReLU one is enough). "depth-plus-one": the first layer becomes two, and every
    neuron `search.candidates` equal ones, among whose single weights the next layer chooses (redraws serve the first
    layer only: later ones would need more neurons before them).

    `eps` gives each layer a tolerance of its own (`error_budget`); otherwise all have `search.eps`. Raises InputError
    for layers that no construction covers, values that are not finite, and source layers too large to fit.
    """
    if kind not in KINDS:
        raise unknown("construction", kind, KINDS)
    search = search or SubsetSearch()
    nodes = read(target)
    layers = list(affines(nodes))
    tolerances = list(eps) if eps is not None else [search.eps] * len(layers)
    if len(tolerances) != len(layers):
        raise InputError(f"{len(tolerances)} tolerances for a target of {len(layers)} layers (valid: one a layer)")
    build_up = _two_layers if kind == "two-layer" else _depth_plus_one
    parts, text, accounts = build_up(nodes, search, tolerances, seed, signed_inputs)
    architecture = source(text, target.architecture.input_shape, target.architecture.classes)
    names = prunable(architecture)
    weights = {name: torch.from_numpy(part.weight) for name, part in zip(names, parts, strict=True)}
    biases = {name.removesuffix("weight") + "bias": part for name, part in zip(names, parts, strict=True)}
    drawn = {name: torch.from_numpy(part.bias) for name, part in biases.items()}
    kept = {name: torch.from_numpy(part.bias_mask) for name, part in biases.items()}
    ticket = Ticket(
        architecture=architecture,
        bases=dict(basis.bases("canonical", {name: tuple(w.shape) for name, w in weights.items()}, ())),
        coefficients=weights,
        masks={name: torch.from_numpy(part.mask) for name, part in zip(names, parts, strict=True)},
        rest={name: bias * kept[name] for name, bias in drawn.items()},
        seed=seed,
    )
    return Construction(ticket, nodes, pd.DataFrame(accounts), drawn, kept, kind)


# --- whole networks ---


def _two_layers(
    nodes: tuple[Node, ...], search: SubsetSearch, eps: list[float], seed: int, signed_inputs: bool
) -> tuple[list[SourceLayer], str, list[Account]]:
    activation = "leaky" if "leaky" in flattened(nodes) else "relu"
    tolerances = iter(eps)
    parts: list[SourceLayer] = []
    accounts: list[Account] = []

    def words(nodes: Sequence[Node], signed: bool) -> list[str]:
        """The source's text; `signed`: whether what comes in has either sign."""
        out: list[str] = []
        for node in nodes:
            if isinstance(node, Residual):
                out += ["(", *words(node.body, signed), "|", *words(node.shortcut, signed), ")"]
            elif isinstance(node, Affine):
                inner, outer, account = two_layer(
                    node, search, next(tolerances), seed, signed=signed, activation=activation
                )
                parts.extend([inner, outer])
                accounts.append(account)
                out += [node.text(len(inner.bias), taps=(1, 1), stride=1), activation, node.text(len(outer.bias))]
            else:
                out.append(node)
            if node not in ("pool", "mean", "flatten"):
                signed = node not in ("relu", "sigmoid")
        return out

    return parts, "-".join(words(nodes, signed_inputs)), accounts


def _effective(affine: Affine, inner: Tensor, outer: Tensor, constants: Tensor, leak: float) -> Effective:
    """The weights that two masked layers give; `constants` (hidden,) are the inner biases that are kept."""
    shape, taps = affine.weight.shape, affine.weight[0, 0].numel()
    first = inner.double().flatten(2)[:, :, 0] if inner.dim() > 2 else inner.double()
    kept = outer.double().reshape(len(outer), len(inner), taps)
    bias = kept.sum(2) @ torch.where(constants > 0, constants, leak * constants)
    rows = kept.transpose(1, 2).reshape(-1, len(inner))
    sides = [
        (rows @ torch.where(sign * first > 0, first, leak * first)).reshape(len(outer), taps, -1).transpose(1, 2)
        for sign in (1, -1)
    ]
    return Effective(sides[0].reshape(shape), sides[1].reshape(shape), bias)


def _depth_plus_one(
    nodes: tuple[Node, ...], search: SubsetSearch, eps: list[float], seed: int, signed_inputs: bool
) -> tuple[list[SourceLayer], str, list[Account]]:
    layers = list(affines(nodes))
    if any(isinstance(node, Residual) for node in nodes):
        raise InputError("residual blocks are not covered by 'depth-plus-one' (valid: kind 'two-layer')")
    if "sigmoid" in nodes:
        raise InputError("activation 'sigmoid' is not covered by 'depth-plus-one' (valid: relu, leaky, tanh)")
    activation = next((node for node in nodes if isinstance(node, str) and node in ("relu", "leaky", "tanh")), "relu")
    copies, constants = search.candidates, 2 * search.candidates
    parts: list[SourceLayer] = []
    accounts: list[Account] = []
    alive: Array | None = None
    constants_used = np.zeros(constants, bool)
    # From the output back, so that only neurons that the next layer uses are constructed.
    for number in range(len(layers) - 1, 0, -1):
        affine, before = layers[number], layers[number - 1]
        after = 1 if number == len(layers) - 1 else copies
        follow = 0 if number == len(layers) - 1 else constants
        positions = affine.weight.shape[1] // len(before.weight)
        incoming = len(before.weight) * copies + constants
        bias = draw_weights(search.law, (incoming,), generator(seed, "strong", before.name, "outer bias"))
        layer, account, alive_before, held = single(
            affine, search, eps[number], seed, activated(bias, activation), positions, after, alive, follow
        )
        parts.insert(0, layer)
        accounts.insert(0, account)
        if follow:
            layer.bias_mask[len(layer.bias) - constants :] = constants_used
        alive, constants_used = alive_before, held
    last = len(layers) == 1
    inner, outer, account = two_layer(
        layers[0], search, eps[0], seed, signed=signed_inputs, activation=activation, alive=alive,
        copies=1 if last else copies, constants=0 if last else constants,
    )  # fmt: skip
    if not last:
        outer.bias_mask[len(outer.bias) - constants :] = constants_used
    parts = [inner, outer, *parts]
    sizes = iter(parts[1:])
    words: list[str] = []
    for node in nodes:
        if not isinstance(node, Affine):
            words.append(str(node))
            continue
        if node is layers[0]:
            words += [node.text(len(inner.bias), taps=(1, 1), stride=1), activation]
        words.append(node.text(len(next(sizes).bias)))
    return parts, "-".join(words), [account, *accounts]
