r"""Structured pruning as tickets: units and low rank, and what each ticket costs to store and to run.

Removing unit j zeroes its one coefficient $\|w_j\|$ in the `units` basis of its layer, and a truncated singular value
decomposition is magnitude pruning in the `svd` basis: both are tickets in an orthonormal basis (Alabdulmohsin et al.,
arXiv 2107.06825). What they add is cost: a tensor whose kept coefficients fill whole rows and columns, or have low
rank, needs fewer numbers *and* fewer multiplications; scattered coefficients save storage only, because
$B^\top(m\odot c)$ is dense. So stored numbers and multiply-accumulates are counted apart and never merged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from lthlib.basis import Basis, Kronecker, RowReflection, row_reflection, svd
from lthlib.errors import InputError, unknown
from lthlib.masks.counts import kept_count
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import Architecture, multiply_accumulates, output_layer, prunable, skeleton
from lthlib.models.networks import VGG, Conv, ResNet
from lthlib.ticket import State, Ticket
from lthlib.training.linear_stack import ACTIVATIONS
from lthlib.training.loop import Trained
from lthlib.training.proximal import low_rank_mask, rank_truncation, row_norms

SCOPES = ("layerwise", "global")
_UNITWISE = (
    *(nn.Flatten, nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, *ACTIVATIONS),
)

# -------------------------------------------------------------------------------------------------------------- units


def readers(architecture: Architecture) -> dict[str, str]:
    """For each prunable tensor whose units one other tensor alone reads: that other tensor.

    In a chain (LeNet, Conv, VGG, an `nn.Sequential` of such layers) that is every hidden layer and its successor; in a
    residual block the first convolution and the second. Where paths add up, units cannot go one by one. Raises
    InputError for a model of another structure.
    """
    module = skeleton(architecture)
    names = prunable(architecture)
    if isinstance(module, ResNet):
        return {name: name.replace("conv1", "conv2") for name in names if name.endswith("conv1.weight")}
    plain = type(module) is nn.Sequential and all(
        isinstance(layer, _UNITWISE) and getattr(layer, "groups", 1) == 1 for layer in module
    )
    if plain or isinstance(module, Conv | VGG):
        return dict(pairwise(names))
    raise InputError(
        f"which layer reads which units of model {architecture.name!r} is not known (valid: lenet, conv, vgg, resnet, "
        "or an nn.Sequential of linear, convolution, BatchNorm, pooling and activation layers)"
    )


def unit_norms(trained: Ticket) -> State:
    """The score of unit pruning, float64 (units,) for each tensor of `readers`: the Euclidean norm of a unit's row.

    It is the magnitude of the unit's one coefficient in the `units` basis, and no basis of the input axis changes it.
    """
    weights = trained.weights()
    return {name: row_norms(weights[name].double()) for name in readers(trained.architecture)}


def unit_ticket(ticket: Ticket, trained: Trained, density: float, *, scope: str = "layerwise") -> Ticket:
    """`ticket` without its units of smallest trained norm: a `density` of the units stays, exact, 1 a layer at least.

    `layerwise` keeps round(density n) of n units in each hidden layer, `global` ranks the units of all layers
    together. Only survivors of the ticket's own mask are ranked, so that calls with falling density are nested.

    A pruned unit loses its row, its bias, and the column in which the next layer reads it. Without that column the
    unit is dead whatever it gives out (a bias, BatchNorm's shift, the value of an activation at 0), it gets no
    gradient, and the network equals a smaller dense one; so the achieved `Ticket.density` is below that of the units.
    Raises InputError where a basis mixes units (axis 0 of a pruned tensor, axis 1 of its reader).
    """
    reading = readers(ticket.architecture)
    for name, reader in reading.items():
        _refuse_mixing(name, ticket.bases[name], 0)
        _refuse_mixing(reader, ticket.bases[reader], 1)
    masks, rest = {name: mask.clone() for name, mask in ticket.masks.items()}, dict(ticket.rest)
    live = {name: masks[name].flatten(1).any(1) for name in reading}
    for name, kept in _select(unit_norms(trained.ticket), density, scope, among=live).items():
        masks[name][~kept] = False
        # A linear layer after a flattened convolution reads each channel in a block of columns.
        masks[reading[name]].unflatten(1, (len(kept), -1))[:, ~kept] = False
        bias = name.removesuffix("weight") + "bias"
        if bias in rest:
            rest[bias] = rest[bias] * kept
    return replace(ticket.with_masks(masks), rest=rest)


def _refuse_mixing(name: str, basis: Basis, axis: int) -> None:
    if not _keeps_axis(basis, axis):
        raise InputError(
            f"basis {basis.name!r} mixes the units on axis {axis} of {name!r}, so none can be removed "
            "(valid: canonical, or a basis on the input axis of the first layer)"
        )


def _keeps_axis(basis: Basis, axis: int) -> bool:
    """Whether index i of this axis of the coefficients is index i of the weight."""
    if isinstance(basis, Kronecker):
        return basis.axes[axis] is None
    return basis.is_identity or (isinstance(basis, RowReflection) and axis == 0)


def _select(scores: State, density: float, scope: str, among: State | None = None) -> State:
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    available = {name: len(score) if among is None else int(among[name].sum()) for name, score in scores.items()}
    if scope == "layerwise":
        # max(1, 0) would revive a layer that has nothing left.
        wanted = {name: max(1, kept_count(density, len(score))) for name, score in scores.items()}
        return keep_top(scores, {name: min(wanted[name], available[name]) for name in scores}, among=among)
    total = kept_count(density, sum(len(score) for score in scores.values()))
    layers = sum(count > 0 for count in available.values())
    return keep_top(scores, min(max(total, layers), sum(available.values())), among=among, keep_one=True)


# ----------------------------------------------------------------------------------------------------------- low rank


def singular_values(trained: Ticket) -> State:
    """The score of rank pruning, float64, descending: the singular values of each tensor as (rows, everything else)."""
    return {name: torch.linalg.svdvals(weight.double().flatten(1)) for name, weight in trained.weights().items()}


def low_rank_ticket(
    ticket: Ticket,
    trained: Trained,
    density: float,
    form: str = "row",
    *,
    scope: str = "layerwise",
    output_layer_kept: bool = True,
) -> Ticket:
    r"""`ticket` in the singular basis of its trained weights, of low rank: the directions of largest singular values.

    A `density` of the min(rows, columns) directions of a tensor stays (`layerwise`: round(density min), at least 1;
    `global`: all tensors ranked together). `form` says which coefficients of rank r are trained: `diagonal`,
    $\sum_i c_iu_iv_i^\top$, r numbers; `block`, $U_rCV_r^\top$, r^2; `row`, $U_rC$, r columns. The output layer stays
    dense in its own basis unless `output_layer_kept` is False. `ticket` must be dense; InputError otherwise.
    """
    output = output_layer(ticket.architecture)
    scores = {name: s for name, s in singular_values(trained.ticket).items() if name != output or not output_layer_kept}
    weights, bases, masks = trained.ticket.weights(), dict(ticket.bases), {}
    for name, kept in _select(scores, density, scope).items():
        # U_r C is the same set in either basis; without V there is less to store.
        bases[name] = svd(weights[name], "out" if form == "row" else "all")
        masks[name] = low_rank_mask(tuple(weights[name].shape), int(kept.sum()), form)
    return ticket.in_bases(bases).with_masks({**ticket.masks, **masks})


# --------------------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True)
class _Form:
    """The smallest matrices that give one tensor: live rows x live columns, of rank at most `rank`."""

    rows: int
    columns: int
    rank: int

    @property
    def numbers(self) -> int:
        return min(self.rows * self.columns, self.rank * (self.rows + self.columns))


def _form(ticket: Ticket, name: str) -> _Form:
    mask, basis = ticket.masks[name], ticket.bases[name]
    flat = mask.flatten(1)
    rows, columns = flat.shape
    if ticket.off == "init":
        return _Form(rows, columns, min(rows, columns))
    live_rows, live_columns = int(flat.any(1).sum()), int(flat.any(0).sum())
    # A basis for each row gives rows of one live column different directions.
    rank = live_rows if isinstance(basis, RowReflection) else min(live_rows, live_columns)
    if _keeps_axis(basis, 0):
        rows = live_rows
    if _keeps_axis(basis, 1):
        columns = int(mask.transpose(0, 1).flatten(1).any(1).sum()) * (columns // mask.shape[1])
    return _Form(rows, columns, rank)


def multiply_accumulates_of(ticket: Ticket) -> dict[str, int]:
    """Multiply-accumulates per example of each tensor, of the cheapest dense products that give the ticket's outputs.

    For n' live rows, m' live columns (where the basis leaves that axis alone) and rank at most r, the smaller of
    n' m' and r (n' + m'), times the output positions of a convolution (whose columns are C_in k^2): smaller dense
    layers for pruned units, two factors for low rank, the dense count for scattered coefficients, however few.
    Outputs of dead rows are constants, which fold into the next bias.
    """
    dense = multiply_accumulates(ticket.architecture)
    positions = {name: dense[name] // mask.numel() for name, mask in ticket.masks.items()}
    return {name: _form(ticket, name).numbers * positions[name] for name in ticket.masks}


def stored_numbers_of(ticket: Ticket) -> dict[str, int]:
    """32-bit numbers that describe each tensor in its cheapest form, where `Ticket.stored_numbers` knows one form only.

    The smaller of: the kept coefficients with mask bits and fitted basis (a bit a row and column, where the mask is
    whole rows and columns); the live rows and columns of the weight itself, or its two factors, r (n' + m'), with a
    bit a row and input channel where some are gone. So at rank r both `svd` and its factors count r (n + m).
    """
    return {name: min(_in_coefficients(ticket, name), _in_weights(ticket, name)) for name in ticket.masks}


def _in_coefficients(ticket: Ticket, name: str) -> int:
    mask = ticket.masks[name]
    flat = mask.flatten(1)
    kept, basis = int(mask.sum()), ticket.bases[name].stored_for(mask)
    if kept == mask.numel():
        return kept + basis
    rows, columns = flat.any(1), flat.any(0)
    outer = torch.equal(flat, rows[:, None] & columns)
    return kept + math.ceil((len(rows) + len(columns) if outer else mask.numel()) / 32) + basis


def _in_weights(ticket: Ticket, name: str) -> int:
    form, mask = _form(ticket, name), ticket.masks[name]
    whole = (form.rows, form.columns) == tuple(mask.flatten(1).shape)
    return form.numbers + (0 if whole else math.ceil((mask.shape[0] + mask.shape[1]) / 32))


# --------------------------------------------------------------------------------------------------- exact identities


def unit_identity_error(weight: Tensor, counts: Sequence[int] | None = None) -> float:
    """GB-4: the largest |difference| between removing units and magnitude pruning in the `units` basis of `weight`.

    For each count k the k rows of largest norm against the k largest coefficients, in float64; counts default to
    0, 1, 2, 4, ... and all rows. Zero but for rounding.
    """
    weight = weight.detach().cpu().double()
    basis = row_reflection(weight)
    coefficients = basis.analyse(weight)

    def difference(count: int) -> float:
        removed = weight * _top(row_norms(weight), count).view(-1, *[1] * (weight.ndim - 1))
        pruned = basis.synthesise(coefficients * _top(coefficients.abs(), count))
        return (removed - pruned).abs().max().item()

    return max(difference(count) for count in counts or _doubling(len(weight)))


def low_rank_identity_error(weight: Tensor, ranks: Sequence[int] | None = None) -> float:
    """GB-5: the largest |difference| between truncated SVD and magnitude pruning in the `svd` basis of `weight`.

    For each rank r the nearest matrix of that rank (Eckart and Young 1936) against the r largest of all coefficients,
    in float64; ranks default to 0, 1, 2, 4, ... and min(rows, columns). Zero but for rounding.
    """
    weight = weight.detach().cpu().double()
    basis = svd(weight)
    coefficients = basis.analyse(weight)

    def difference(rank: int) -> float:
        pruned = basis.synthesise(coefficients * _top(coefficients.abs(), rank))
        return (rank_truncation(weight, rank) - pruned).abs().max().item()

    return max(difference(rank) for rank in ranks or _doubling(min(weight.flatten(1).shape)))


def _top(scores: Tensor, count: int) -> Tensor:
    return keep_top({"weight": scores}, count)["weight"]


def _doubling(limit: int) -> list[int]:
    return sorted({0, limit, *(2**k for k in range(limit.bit_length()))})
