"""Paths from input to output: which weights lie on one, which layers have collapsed, and masks made of walks (PHEW)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lthlib.errors import InputError
from lthlib.finders.scores import gradients_of
from lthlib.finders.structured import readers
from lthlib.masks import counts as allocation
from lthlib.masks.draws import sample
from lthlib.models.architecture import prunable
from lthlib.models.networks import ResNet
from lthlib.ticket import State, Ticket, structure

_IDENTITY = (
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "relu", "relu_", "leaky_relu", "elu", "gelu", "silu"),
    *("softplus", "tanh", "sigmoid", "hardtanh", "relu6", "dropout"),
)
_POOLS: dict[str, Callable[..., Tensor]] = {
    "max_pool1d": F.avg_pool1d,
    "max_pool2d": F.avg_pool2d,
    "adaptive_max_pool2d": F.adaptive_avg_pool2d,
}

# ---------------------------------------------------------------------------------------------------- live connections


class _Paths(TorchFunctionMode):
    """Runs a network as a sum over its paths: linear layers alone act, and pooling passes every place on."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name in _IDENTITY:
            return args[0]
        given = kwargs or {}
        if name in _POOLS:
            shared = {key: value for key, value in given.items() if key in ("stride", "padding", "ceil_mode")}
            return _POOLS[name](*args[:4], **shared)
        return func(*args, **given)


def path_gradients(ticket: Ticket, masks: Mapping[str, Tensor] | None = None) -> State:
    """dR/dm >= 0, float64, for R the (scaled) number of input-output paths through `masks` (None: the ticket's).

    Positive exactly where a connection starts at a unit that some input reaches and ends at one that reaches some
    output: on the mask these lie on a path, off it they would. Masks (0 or 1) stand in for weights, an image of ones
    for the input; biases, normalisation and activations drop out and maxima become means, so that nothing is negative.
    For networks of convolution and linear layers, pooling, BatchNorm and ReLU-like activations.
    """
    _need_canonical(ticket)
    masks = ticket.masks if masks is None else masks
    leaves = {name: mask.double().requires_grad_() for name, mask in masks.items()}
    # Powers of the fan-in keep thousands of layers' products within float64, dense or down to one path.
    weights = {name: leaf / leaf[0].numel() ** 0.5 for name, leaf in leaves.items()}
    rest = {}
    for name, tensor in ticket.rest.items():
        fixed = torch.zeros_like(tensor) if name.endswith("bias") else torch.ones_like(tensor)
        rest[name] = fixed.double() if tensor.is_floating_point() else fixed
    device = next(iter(leaves.values())).device
    ones = torch.ones(1, *ticket.architecture.input_shape, dtype=torch.float64, device=device)
    with _Paths():
        paths = functional_call(structure(ticket.architecture), {**weights, **rest}, (ones,)).sum()
    if not paths.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    return gradients_of(paths, leaves)


def _need_canonical(ticket: Ticket) -> None:
    mixed = [name for name, basis in ticket.bases.items() if not basis.is_identity]
    if mixed or ticket.off != "zero":
        why = f"tensor {mixed[0]!r} has basis {ticket.bases[mixed[0]].name!r}" if mixed else "pruned weights are held"
        raise InputError(f"paths run along weights, so a ticket must be canonical with off='zero', and {why}")


def effective_masks(ticket: Ticket) -> State:
    """The kept weights that lie on an unbroken path from input to output, boolean.

    The others can be pruned as well: no output depends on them but through constants. Vysogorets & Kempe
    (arXiv 2107.02306) call 1 - their share effective sparsity. Raises InputError for a ticket in another basis.
    """
    gradients = path_gradients(ticket)
    return {name: mask & (gradients[name] > 0) for name, mask in ticket.masks.items()}


def effective_density(ticket: Ticket) -> float:
    """Weights on live input-output paths / prunable, in [0, `ticket.density`]."""
    return sum(allocation.counts_of(effective_masks(ticket)).values()) / ticket.prunable


@dataclass(frozen=True)
class LayerReport:
    """One prunable tensor: how many weights it has, keeps, and keeps on live paths (None in another basis)."""

    layer: str
    size: int
    kept: int
    effective: int | None

    @property
    def density(self) -> float:
        """Kept / size."""
        return self.kept / self.size

    @property
    def empty(self) -> bool:
        """Whether the layer has collapsed."""
        return self.kept == 0


def layer_report(ticket: Ticket) -> list[LayerReport]:
    """One row a layer, in the network's order; empty layers are those that collapsed."""
    canonical = ticket.off == "zero" and all(basis.is_identity for basis in ticket.bases.values())
    effective = allocation.counts_of(effective_masks(ticket)) if canonical else {}
    kept = allocation.counts_of(ticket.masks)
    return [LayerReport(name, mask.numel(), kept[name], effective.get(name)) for name, mask in ticket.masks.items()]


def collapsed_layers(ticket: Ticket) -> tuple[str, ...]:
    """Names of the layers that keep no weight at all. Tanaka et al. (arXiv 2006.05467) call this layer collapse."""
    return tuple(name for name, kept in allocation.counts_of(ticket.masks).items() if kept == 0)


def is_connected(ticket: Ticket) -> bool:
    """Whether any path leads from input to output; in a ResNet it may, past empty layers. Canonical basis only."""
    return any(bool(mask.any()) for mask in effective_masks(ticket).values())


# ---------------------------------------------------------------------------------------------------------------- PHEW


def phew_masks(ticket: Ticket, count: int, source: torch.Generator) -> State:
    """Masks of exactly `count` survivors of the ticket, laid by random walks along large weights.

    Walks start in turn at an input unit and at an output unit, each in round robin, and step to the next unit and
    kernel entry with probability proportional to |w|; every weight met is kept. A 1x1 shortcut is taken half of the
    time, an identity skip only where nothing else leads on (as in the authors' code). Walks go in batches and count in
    order; the last one that would overshoot is left out, and what is missing comes from weights that join two live
    units, drawn by |w|, as it does once 50 weights are met for each that is wanted. So everything kept joins units on a
    path, as long as `count` allows one; on maps of few pixels some kernel entries may still lead off the edge.
    Patil & Dovrolis (arXiv 2010.11354). Raises InputError for other bases and for models whose layers are not known
    to form a chain or the residual blocks of `models.ResNet`.
    """
    _need_canonical(ticket)
    live = effective_masks(ticket)
    magnitudes = {name: w.detach().abs().double().cpu() for name, w in ticket.weights().items()}
    magnitudes = {name: w * live[name].cpu() for name, w in magnitudes.items()}
    masks = {name: torch.zeros(w.shape, dtype=torch.bool) for name, w in magnitudes.items()}
    if any(bool(w.any()) for w in magnitudes.values()):
        _walk(_Walker(ticket, magnitudes), masks, count, source)
    masks = {name: mask.to(ticket.masks[name].device) for name, mask in masks.items()}
    return _filled(ticket, masks, count, source)


def _walk(walker: "_Walker", masks: State, count: int, source: torch.Generator) -> None:
    """Marks whole walks in `masks`, in the order in which they were started, while they fit into `count`."""
    draws = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=source)))
    kept = np.zeros(walker.total, dtype=bool)
    missing, started, budget = count, 0, 50 * count
    while missing > 0 and budget > 0:
        walks = max(64, missing // walker.longest)
        edges = walker.walk(started, walks, draws)
        budget, started = budget - edges.size, started + walks
        ids, first = np.unique(edges, return_index=True)
        new = (ids >= 0) & ~kept[ids]
        ids, first = ids[new], first[new]
        if len(ids) > missing:
            # The walk of the first weight too many is not taken, nor any after it.
            ids = ids[first // edges.shape[1] < np.sort(first)[missing] // edges.shape[1]]
            budget = 0
        kept[ids] = True
        missing -= len(ids)
    for name, start, size in walker.spans:
        masks[name].view(-1).copy_(torch.from_numpy(kept[start : start + size]))


def _filled(ticket: Ticket, masks: State, count: int, source: torch.Generator) -> State:
    """`masks` made up to `count` by weights drawn by |w|: those between live units first, then any survivors."""
    for connected in (True, False):
        missing = count - sum(allocation.counts_of(masks).values())
        open_weights = {name: ticket.masks[name] & ~mask for name, mask in masks.items()}
        if connected:
            gradients = path_gradients(ticket, masks)
            open_weights = {name: mask & (gradients[name] > 0) for name, mask in open_weights.items()}
        drawn = min(missing, sum(allocation.counts_of(open_weights).values()))
        # A weight of exactly 0 may be needed to meet the count.
        scores = {name: w.detach().abs().double().clamp(min=1e-300) for name, w in ticket.weights().items()}
        more = sample(scores, drawn, among=open_weights, generator=source)
        masks = {name: mask | more[name] for name, mask in masks.items()}
    return masks


class _Walker:
    """Tables of where a walk goes from each unit, in both directions, and the walks themselves, many at once.

    A walk crosses segments; a segment has one or more alternatives, each a chain of tensors.
    """

    def __init__(self, ticket: Ticket, magnitudes: State) -> None:
        self.segments = _segments(ticket)
        self.longest = sum(max(map(len, segment)) for segment in self.segments)
        self.spans: list[tuple[str, int, int]] = []
        self.total = 0
        for name, w in magnitudes.items():
            self.spans.append((name, self.total, w.numel()))
            self.total += w.numel()
        starts = {name: start for name, start, _ in self.spans}
        self.steps: dict[tuple[str, bool], _Step] = {}
        width = None
        for segment in self.segments:
            for chain in segment:
                inner = width
                for name in chain:
                    w = magnitudes[name]
                    # A linear layer after a flattened convolution reads each channel in a block of columns.
                    units = w.shape[1] if w.dim() == 4 or inner is None else inner
                    w = w.reshape(len(w), units, -1)
                    for forward in (True, False):
                        self.steps[name, forward] = _Step(w, starts[name], forward)
                    inner = len(w)
            width = inner
        self.ends = {True: self._seeds(self.segments[0], True), False: self._seeds(self.segments[-1], False)}

    def _seeds(self, segment: tuple[tuple[str, ...], ...], forward: bool) -> np.ndarray:
        names = [chain[0 if forward else -1] for chain in segment]
        return np.flatnonzero(sum(self.steps[name, forward].live.astype(int) for name in names))

    def walk(self, started: int, walks: int, draws: np.random.Generator) -> np.ndarray:
        """Weights met, as indices into all weights, (walks, longest), -1 for none; even walks go forward."""
        numbers = np.arange(started, started + walks)
        edges = np.full((walks, self.longest), -1, dtype=np.int64)
        for forward in (True, False):
            rows = np.flatnonzero(numbers % 2 == (0 if forward else 1))
            units = self.ends[forward][numbers[rows] // 2 % len(self.ends[forward])]
            column = 0
            for segment in self.segments if forward else self.segments[::-1]:
                chains = segment if forward else tuple(chain[::-1] for chain in segment)
                choice = self._choice(chains, units, forward, draws)
                for number, chain in enumerate(chains):
                    mine = np.flatnonzero(choice == number)
                    for place, name in enumerate(chain):
                        edge, units[mine] = self.steps[name, forward](units[mine], draws)
                        edges[rows[mine], column + place] = edge
                column += max(map(len, chains))
        return edges

    def _choice(
        self, chains: tuple[tuple[str, ...], ...], units: np.ndarray, forward: bool, draws: np.random.Generator
    ) -> np.ndarray:
        """Which chain each walk takes, uniform among those that lead on from its unit; -1 for an identity skip."""
        priority = draws.random((len(chains), len(units)))
        for row, chain in zip(priority, chains, strict=True):
            row[~self.steps[chain[0], forward].live[units]] = -1
        return np.where(priority.max(axis=0) < 0, -1, priority.argmax(axis=0))


class _Step:
    """One tensor (out, in, entries) crossed forward (from in) or backward (from out): next weight and next unit."""

    def __init__(self, w: Tensor, start: int, forward: bool) -> None:
        self.shape, self.start, self.forward = tuple(w.shape), start, forward
        table = (w.transpose(0, 1) if forward else w).flatten(1).numpy()
        self.live = np.asarray(table.any(axis=1))
        sums = np.cumsum(table, axis=1)
        # Row r's distribution function runs from r to r + 1, so that one search serves all units.
        sums /= np.where(self.live, sums[:, -1], 1)[:, None]
        self.sums = (sums + np.arange(len(sums))[:, None]).ravel()
        self.columns = sums.shape[1]

    def __call__(self, units: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        # Rounding must not take a draw near 1 into the next row.
        draw = units + draws.random(len(units)) * (1 - 1e-9)
        place = np.searchsorted(self.sums, draw, side="right") - units * self.columns
        _, inputs, entries = self.shape
        reached, entry = np.divmod(place, entries)
        out, into = (reached, units) if self.forward else (units, reached)
        return self.start + (out * inputs + into) * entries + entry, reached


def _segments(ticket: Ticket) -> list[tuple[tuple[str, ...], ...]]:
    """The network as a sequence of segments: alternatives of chains of tensors that share both ends."""
    names = prunable(ticket.architecture)
    if not isinstance(structure(ticket.architecture), ResNet):
        readers(ticket.architecture)
        return [((name,),) for name in names]
    segments: list[tuple[tuple[str, ...], ...]] = []
    for name in names:
        if name.endswith("conv2.weight"):
            segments.append(((name.replace("conv2", "conv1"), name),))
        elif ".shortcut." in name:
            segments[-1] = (*segments[-1], (name,))
        elif not name.endswith("conv1.weight"):
            segments.append(((name,),))
    return segments
