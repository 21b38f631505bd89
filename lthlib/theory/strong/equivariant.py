"""Equivariant tickets: prune coefficients of an equivariant source in its basis, and it stays equivariant exactly.

Sources and targets are layers of `strong.sources` that commute with a group: "sets" with permutations of the members
(two basis elements: the identity and the mean), "cyclic" with shifts (one a tap). Pruning such coefficients is Ferbach
et al. (ICLR 2023); pruning entries of the matrices that they stand for is the control, and breaks the symmetry.
"""

from collections.abc import Callable, Sequence
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn

from lthlib.errors import unknown
from lthlib.models.architecture import build
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.theory.strong.construct import construct
from lthlib.theory.strong.search import SubsetSearch
from lthlib.theory.strong.sources import Affine, Function, read, run, source
from lthlib.ticket import Ticket, dense_ticket

GROUPS = ("permutations", "shifts")


def equivariant_target(
    group: str, members: int, channels: int, widths: Sequence[int], classes: int, seed: int
) -> Ticket:
    """A dense random network that commutes with a group up to its mean over positions, then a linear classifier.

    "permutations": inputs (channels, members, 1), layers on sets; "shifts": inputs (channels, 1, members), circular
    convolutions of three taps. Raises InputError for any other group.
    """
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)
    sets = group == "permutations"
    layers = "-".join(f"sets{width}-relu" if sets else f"cyclic{width}k1x3-relu" for width in widths)
    shape = (channels, members, 1) if sets else (channels, 1, members)
    network = source(f"{layers}-mean-linear{classes}", shape, classes)
    return dense_ticket(network, initial_state(network, seed), seed=seed)


@torch.no_grad()
def equivariance_error(ticket: Ticket, inputs: Tensor) -> float:
    """The largest |f(g x) - g f(x)| over all shifts g (or as many random permutations), relative to the largest |f|;
    f is the ticket's network before its mean, float32; inputs (batch, channels, members, 1) or (.., 1, members)."""
    module = build(ticket.architecture).eval()
    module.load_state_dict(ticket.state())
    assert isinstance(module, nn.Sequential)
    end = next(place for place, layer in enumerate(module) if isinstance(layer, Function))
    return _error(module[:end], inputs.float())


def _error(function: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    axis = 3 if inputs.shape[2] == 1 else 2
    plain = function(inputs)
    worst = 0.0
    for number in range(1, inputs.shape[axis]):
        order = torch.arange(inputs.shape[axis]).roll(number)
        if axis == 2:
            order = torch.randperm(inputs.shape[axis], generator=generator(number, "permutation"))
        moved = function(inputs.index_select(axis, order)) - plain.index_select(axis, order)
        worst = max(worst, float(moved.abs().max()))
    return worst / float(plain.abs().max())


@torch.no_grad()
def raw_pruned_error(ticket: Ticket, inputs: Tensor, seed: int) -> float:
    """`equivariance_error` of the ticket's source when, instead of coefficients, entries of the matrices that its
    layers stand for are pruned at random, at each layer's own density."""
    whole = dense_ticket(ticket.architecture, {**ticket.coefficients, **ticket.rest})
    nodes = read(whole)
    body = nodes[: nodes.index("mean")]
    densities = ticket.layer_densities()
    masks: dict[str, Tensor] = {}

    def layer(affine: Affine, x: Tensor) -> Tensor:
        shape = x.shape[1:]
        unit = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *shape)
        images = affine.apply(unit, affine.weight, None)
        matrix = images.flatten(1)
        if affine.name not in masks:
            uniform = torch.rand(matrix.shape, generator=generator(seed, "raw", affine.name))
            masks[affine.name] = uniform < densities[affine.name]
        out = (x.flatten(1) @ (matrix * masks[affine.name])).reshape(-1, *images.shape[1:])
        return out if affine.bias is None else out + affine.bias.view(-1, 1, 1)

    return _error(lambda x: run(body, x, layer), inputs.double())


def equivariance_rows(
    seeds: Sequence[int], search: SubsetSearch, *, members: int = 6, channels: int = 2, widths: Sequence[int] = (4, 4)
) -> pd.DataFrame:
    """One row a group, seed and arm (target, ticket, raw pruning): equivariance error, and the ticket's distance from
    its target, density and unreached weights."""
    rows = []
    for group, seed in product(GROUPS, seeds):
        target = equivariant_target(group, members, channels, widths, 3, seed)
        construction = construct(target, search, seed=seed)
        inputs = torch.randn(20, *target.architecture.input_shape, generator=generator(seed, "inputs"))
        common = {"group": group, "seed": seed, "density": construction.counts["density"]}
        common |= {"sup_error": construction.sup_error(inputs), "unreached": construction.unreached}
        errors = {
            "target": equivariance_error(target, inputs),
            "ticket": equivariance_error(construction.ticket, inputs),
            "raw pruning": raw_pruned_error(construction.ticket, inputs, seed),
        }
        rows += [common | {"arm": arm, "error": error} for arm, error in errors.items()]
    return pd.DataFrame(rows)
