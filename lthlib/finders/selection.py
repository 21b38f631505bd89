"""The only room that turns scores into masks: exact top-k, samplers, and how many weights each layer keeps.

Scores, masks and shapes are dictionaries keyed by tensor name; their order is the order of layers and breaks ties.
"""

import math
from collections.abc import Mapping
from operator import index

import numpy as np
import torch
from torch import Tensor

from lthlib.errors import InputError, unknown

Count = int | Mapping[str, int]


# --- exact top-k ---


def keep_top(
    scores: Mapping[str, Tensor],
    count: Count,
    *,
    among: Mapping[str, Tensor] | None = None,
    keep_one: bool = False,
) -> dict[str, Tensor]:
    """Boolean masks, shaped as `scores`, that keep exactly `count` entries with the highest scores.

    `count` is one number over all tensors, or a number for each tensor. `among` (bool, shaped as `scores`) marks the
    entries that may be kept at all. Ties go to the lower flat index, tensors in dictionary order; -inf is kept only
    where nothing else is left. `keep_one` gives every tensor that may keep something its best entry first.
    Selection is exact in the scores' own precision, in linear time.
    Raises InputError for NaN scores, shapes that do not match, and counts that cannot be met.
    """
    groups = _groups(scores, count, among)
    masks: dict[str, Tensor] = {}
    for names, kept in groups:
        values = _flat(scores, among, names)
        if keep_one and len(names) > 1:
            values = _raise_best(values, _sizes(scores, among, names), kept)
        masks |= _unflatten(_select(values, kept), scores, among, names)
    return masks


def check_scores(method: str, scores: Mapping[str, Tensor], *, among: Mapping[str, Tensor] | None = None) -> None:
    """Raises InputError, naming method and layer, where scores hold NaN or +inf, or a layer's scores are all zero.

    `among` limits the check to surviving weights. A net whose layers have collapsed has all-zero scores for a true
    reason, so iterative methods call this on their first scores only.
    """
    for name, score in scores.items():
        live = score if among is None else score[among[name]]
        if live.numel() == 0:
            continue
        if bool(live.isnan().any()):
            raise InputError(f"{method} gave NaN scores in layer {name!r} (try float64 or a smaller input scale)")
        if bool((live == math.inf).any()):
            raise InputError(f"{method} gave infinite scores in layer {name!r} (it overflows: use float64)")
        if not bool(live.any()):
            raise InputError(f"{method} gave only zero scores in layer {name!r} (no signal reaches it)")


def _groups(
    scores: Mapping[str, Tensor], count: Count, among: Mapping[str, Tensor] | None
) -> list[tuple[tuple[str, ...], int]]:
    """Checked pairs of tensor names and the number that they keep together."""
    if not scores:
        raise InputError("no scores were given (one tensor or more is needed)")
    if among is not None:
        for name, score in scores.items():
            if name not in among:
                raise unknown("tensor of survivors", name, among)
            if among[name].dtype != torch.bool or among[name].shape != score.shape:
                raise InputError(
                    f"survivors of {name!r} are {among[name].dtype} of shape {tuple(among[name].shape)}, "
                    f"where torch.bool of shape {tuple(score.shape)} is needed"
                )
    groups: list[tuple[tuple[str, ...], int]]
    if isinstance(count, Mapping):
        if set(count) != set(scores):
            raise InputError(f"counts are for {sorted(count)}, where tensors are {sorted(scores)}")
        groups = [((name,), index(count[name])) for name in scores]
    else:
        groups = [(tuple(scores), index(count))]
    for names, kept in groups:
        available = sum(_sizes(scores, among, names))
        if not 0 <= kept <= available:
            where = f" in {names[0]!r}" if isinstance(count, Mapping) else ""
            raise InputError(f"count {kept}{where} is not between 0 and the {available} entries that may be kept")
    return groups


def _sizes(scores: Mapping[str, Tensor], among: Mapping[str, Tensor] | None, names: tuple[str, ...]) -> list[int]:
    return [scores[n].numel() if among is None else int(torch.count_nonzero(among[n])) for n in names]


def _flat(scores: Mapping[str, Tensor], among: Mapping[str, Tensor] | None, names: tuple[str, ...]) -> Tensor:
    """The scores that may be kept, as one vector; checked for NaN. May share memory with a single tensor."""
    parts = []
    for name in names:
        part = scores[name].detach()
        # Half precision has no exact selection kernels on the CPU, and widening it changes no order.
        if part.dtype not in (torch.float32, torch.float64):
            part = part.to(torch.float32 if part.is_floating_point() else torch.float64)
        part = part.reshape(-1) if among is None else part[among[name]]
        # min carries NaN through, at a fraction of the cost of isnan().any()
        if part.numel() and bool(part.min().isnan()):
            raise InputError(f"scores of {name!r} hold NaN (finite scores, or -inf for pruned ones, are needed)")
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _unflatten(
    chosen: Tensor, scores: Mapping[str, Tensor], among: Mapping[str, Tensor] | None, names: tuple[str, ...]
) -> dict[str, Tensor]:
    pieces = chosen.split(_sizes(scores, among, names))
    if among is None:
        return {n: piece.view(scores[n].shape).clone() for n, piece in zip(names, pieces, strict=True)}
    masks = {n: torch.zeros_like(among[n]) for n in names}
    for name, piece in zip(names, pieces, strict=True):
        masks[name][among[name]] = piece
    return masks


def _select(values: Tensor, count: int) -> Tensor:
    """Marks the `count` largest of a vector without NaN, ties by index."""
    size = values.numel()
    if count in (0, size):
        return torch.full((size,), count == size, dtype=torch.bool, device=values.device)
    threshold = _kth_largest(values, count)
    chosen = values > threshold
    missing = count - int(torch.count_nonzero(chosen))
    ties = values == threshold
    if int(torch.count_nonzero(ties)) == missing:
        return chosen | ties
    rank = ties.cumsum(0, dtype=torch.int32 if size < 2**31 else torch.int64)
    return chosen | (ties & (rank <= missing))


def _kth_largest(values: Tensor, count: int) -> Tensor:
    size = values.numel()
    if values.device.type == "cpu":
        # numpy's vectorised introselect takes a third of torch.kthvalue's time.
        return values.new_tensor(np.partition(values.numpy(), size - count)[size - count])
    if count <= size // 2:
        return values.topk(count, sorted=False).values.min()
    return values.topk(size - count + 1, largest=False, sorted=False).values.max()


def _raise_best(values: Tensor, sizes: list[int], count: int) -> Tensor:
    """A copy in which the best entry of each non-empty part stands above everything."""
    live = sum(size > 0 for size in sizes)
    if count < live:
        raise InputError(f"count {count} cannot keep one weight in each of {live} layers")
    raised = values.clamp(max=torch.finfo(values.dtype).max)
    start = 0
    for size in sizes:
        if size:
            raised[start + int(values[start : start + size].argmax())] = math.inf
        start += size
    return raised


# --- how many: densities and counts ---


def kept_count(density: float, total: int) -> int:
    """round(density * total) weights; density in (0, 1], else InputError."""
    if not 0 < density <= 1:
        raise InputError(f"density {density} is not in (0, 1]")
    return round(density * total)


def counts_of(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Kept entries of each boolean mask: what to hand on as `count` for an arm with matched layers."""
    return {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()}


def uniform_counts(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, int]:
    """Counts of one density in all layers, that sum to exactly `count` (largest remainders)."""
    sizes = _checked_sizes(shapes, count)
    total = sum(sizes.values())
    return _apportion({name: count * size / total for name, size in sizes.items()}, sizes, count)


def erdos_renyi_counts(shapes: Mapping[str, tuple[int, ...]], count: int, *, kernel: bool = True) -> dict[str, int]:
    """Erdos-Renyi counts: layer density eps * sum(shape) / prod(shape), that sum to exactly `count`.

    Layers that would exceed density 1 are made dense and eps is solved again. `kernel` counts a convolution's kernel
    axes in the sum (ERK); without it only the two channel axes count (ER). Shapes are (out, in, *kernel).
    Source: Mocanu et al. 2018; Evci et al., "Rigging the Lottery" (arXiv 1911.11134), section 3.
    """
    sizes = _checked_sizes(shapes, count)
    # density * size = eps * weight
    weights = {
        name: float(sum(shape)) if kernel else sum(shape[:2]) * math.prod(shape[2:]) for name, shape in shapes.items()
    }
    dense: set[str] = set()
    while True:
        free = count - sum(sizes[name] for name in dense)
        weight = sum(weights[name] for name in sizes if name not in dense)
        eps = free / weight if weight else 0.0
        over = {name for name in sizes if name not in dense and eps * weights[name] > sizes[name]}
        if not over:
            break
        dense |= over
    return _apportion({n: sizes[n] if n in dense else eps * weights[n] for n in sizes}, sizes, count)


def smart_ratio_counts(
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    *,
    output_density: float = 0.3,
    divide_by_position: bool = False,
) -> dict[str, int]:
    """Smart-ratio counts: layer l of L has density proportional to (L-l+1)^2 + (L-l+1); they sum to exactly `count`.

    `shapes` are in forward order; the last one is the output layer and gets `output_density`. `divide_by_position`
    divides layer l by l^2 (the reference's rule for VGG). What a full layer cannot hold goes to the next, and what
    the last hidden layer cannot hold goes round again, then to the output layer.
    Source: Su et al., "Sanity-Checking Pruning Methods" (arXiv 2009.11094), section 4.
    """
    sizes = _checked_sizes(shapes, count)
    *hidden, output = sizes
    kept_count(output_density, sizes[output])
    layers = len(sizes)
    ratios = [((layers - i) ** 2 + (layers - i)) / ((i + 1) ** 2 if divide_by_position else 1) for i in range(layers)]
    targets = {output: min(output_density * sizes[output], count)}
    goal = count - targets[output]
    scale = sum(sizes[n] * r for n, r in zip(hidden, ratios, strict=False))
    overflow = 0.0
    for name, ratio in zip(hidden, ratios, strict=False):
        wanted = goal * sizes[name] * ratio / scale + overflow
        targets[name] = min(wanted, sizes[name])
        overflow = wanted - targets[name]
    for name in [*hidden, output]:
        extra = min(overflow, sizes[name] - targets[name])
        targets[name] += extra
        overflow -= extra
    return _apportion({name: targets[name] for name in sizes}, sizes, count)


def _checked_sizes(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    if not sizes or not 0 <= count <= total:
        raise InputError(f"count {count} is not between 0 and the {total} weights of {len(sizes)} layers")
    return sizes


def _apportion(targets: dict[str, float], sizes: dict[str, int], count: int) -> dict[str, int]:
    """Integers nearest to `targets`, none above its size, that sum to `count`: largest remainders first."""
    counts = {name: min(int(target), sizes[name]) for name, target in targets.items()}
    while missing := count - sum(counts.values()):
        step = 1 if missing > 0 else -1
        open_names = [n for n in counts if (counts[n] < sizes[n] if step > 0 else counts[n] > 0)]
        open_names.sort(key=lambda n: -step * (targets[n] - counts[n]))
        for name in open_names[: abs(missing)]:
            counts[name] += step
    return counts


# --- controls and overlap ---


def layerwise_shuffle(masks: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Masks with each tensor's entries permuted at random: per-tensor counts stay, positions do not.

    Redrawn while nothing at all has moved, as long as something can move.
    """
    movable = any(0 < kept < masks[name].numel() for name, kept in counts_of(masks).items())
    while True:
        shuffled = {name: _permuted(mask, generator) for name, mask in masks.items()}
        if not movable or any(not torch.equal(shuffled[name], mask) for name, mask in masks.items()):
            return shuffled


def _permuted(mask: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(mask.numel(), generator=generator, device=generator.device)
    return mask.reshape(-1)[order.to(mask.device)].view(mask.shape)


def random_masks(
    shapes: Mapping[str, tuple[int, ...]],
    count: Count,
    generator: torch.Generator,
    *,
    among: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks of exactly `count` entries, every such mask equally likely; overall, or per tensor for a dictionary.

    CPU tensors, or on the device of `among`. The global shuffle of a mask is its shapes and its total count.
    """
    # Double precision: with single, 15 million draws hold many ties, which favour low indices.
    noise = {n: torch.rand(tuple(shape), generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    if among is not None:
        noise = {n: value.to(among[n].device) if n in among else value for n, value in noise.items()}
    return keep_top(noise, count, among=among)
