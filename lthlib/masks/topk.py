"""Exact top-k: the entries of highest score, over all tensors or for each.

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
    masks: dict[str, Tensor] = {}
    for names, kept in _groups(scores, count, among):
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
        # One pass, which carries NaN through.
        least, most = (float(bound) for bound in live.aminmax())
        if math.isnan(least):
            raise InputError(f"{method} gave NaN scores in layer {name!r} (try float64 or a smaller input scale)")
        if most == math.inf:
            raise InputError(f"{method} gave infinite scores in layer {name!r} (it overflows: use float64)")
        if least == most == 0:
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
    """A copy in which the best entry of each part that has one above -inf stands above everything."""
    raised = values.clamp(max=torch.finfo(values.dtype).max)
    live = 0
    for part, copy in zip(values.split(sizes), raised.split(sizes), strict=True):
        if part.numel() and part[best := int(part.argmax())] > -math.inf:
            copy[best] = math.inf
            live += 1
    if count < live:
        raise InputError(f"count {count} cannot keep one weight in each of {live} layers")
    return raised
