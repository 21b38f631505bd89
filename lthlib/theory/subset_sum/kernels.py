"""Subset-sum kernels for the CPU beside the vector ones: small sizes, one candidate set for many targets, d dimensions.

Instances are independent. They run in parts of fixed length, each with its own scratch arrays, on as many threads as
NUMBA_NUM_THREADS says (all cores, if it says nothing), and no result depends on that number. The compiled code releases
Python's lock, so Python's threads can carry it: they hand the next part to whichever core is free, survive a fork, and
compile in half the time of numba's parallel loops. It is cached on disk.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numba.core import config

from lthlib.theory.arrays import Array
from lthlib.theory.subset_sum.lane_kernels import best_masks
from lthlib.theory.subset_sum.lanes import bits_of

PART = 512  # instances that share scratch arrays
TABLE_FROM = 16  # targets a candidate set from which one sorted table pays
TABLE_PART = 1 << 14  # targets that share a table
LARGEST_TABLE = 20  # candidates in a table: 2^20 sums and masks, with scratch 36 MiB a thread


def best(candidates: Array, targets: Array, repeat: int) -> tuple[Array, Array]:
    """Best subset for targets (B,) float64; target i has row i // repeat of candidates (S, n) float64.

    Returns masks (B,) uint32 and the search's errors (B,) float64.
    """
    masks, errors = np.zeros(len(targets), np.uint32), np.empty(len(targets))
    if repeat < TABLE_FROM:
        work, parts = best_masks, _parts(0, len(targets), PART)
    else:
        work = _table_masks
        parts = [
            part for row in range(len(candidates)) for part in _parts(row * repeat, (row + 1) * repeat, TABLE_PART)
        ]
    _in_threads(lambda part: work(candidates, targets, repeat, *part, masks, errors), parts)
    return masks, errors


def smallest(
    candidates: Array, targets: Array, repeat: int, eps: float, sizes: range, first: bool
) -> tuple[Array, Array]:
    """As `best`, over growing `sizes` until a subset is within `eps`: the best of that size, or the first one found.

    An error above eps says that no such subset exists; its mask is then the best of the last size.
    """
    masks, errors = np.zeros(len(targets), np.uint32), np.empty(len(targets))

    def work(part: tuple[int, int]) -> None:
        _smallest_masks(candidates, targets, repeat, *part, eps, sizes.start, sizes.stop, first, masks, errors)

    _in_threads(work, _parts(0, len(targets), PART))
    return masks, errors


def best_vectors(candidates: Array, targets: Array) -> tuple[Array, Array]:
    """Best subset in the largest norm for targets (B, d) from candidates (B, n, d), both float64."""
    masks, errors = np.zeros(len(targets), np.uint32), np.empty(len(targets))
    parts = _parts(0, len(targets), 8)
    _in_threads(lambda part: _vector_masks(candidates, targets, *part, masks, errors), parts)
    return masks, errors


def _parts(start: int, stop: int, length: int) -> list[tuple[int, int]]:
    return [(first, min(first + length, stop)) for first in range(start, stop, length)]


def _in_threads(work: Callable[[tuple[int, int]], None], parts: Sequence[tuple[int, int]]) -> None:
    # A thread takes longer to start than one small instance to solve.
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(config.NUMBA_NUM_THREADS) as threads:  # type: ignore[attr-defined]
        list(threads.map(work, parts))


@njit(cache=True, nogil=True)
def _error(a: Array, target: float, mask: Any) -> float:
    total = 0.0
    for j in range(len(a)):
        if mask >> j & 1:
            total += a[j]
    return abs(total - target)


@njit(cache=True, nogil=True)
def _closest(sums: Array, start: int, target: float, below: float, stop: float) -> int:
    """Where sums[start:] comes closest to the target, if closer than `below`, or first within `stop`; -1 if nowhere."""
    # a minimum of integers is one that compilers vectorise, without promises about NaN
    least = bits_of(below)
    for x in sums[start:]:
        least = min(least, bits_of(abs(target - x)))
    if least >= bits_of(below):
        return -1
    wanted = max(least, bits_of(max(stop, 0.0)))
    i = start
    while bits_of(abs(target - sums[i])) > wanted:
        i += 1
    return i


@njit(cache=True, nogil=True)
def _fill_pairs(a: Array, pairs: Array, starts: Array) -> None:
    """Sums of two candidates in lexicographic order: those of two from j on begin at starts[j]."""
    place = 0
    for i in range(len(a)):
        starts[i] = place
        rest, sums = a[i + 1 :], pairs[place:]
        for j in range(len(rest)):
            sums[j] = a[i] + rest[j]
        place += len(rest)


@njit(cache=True, nogil=True)
def _best_of_size(
    a: Array, target: float, size: int, stop: float, pairs: Array, starts: Array, index: Array, left: Array
) -> Any:
    """The best subset of `size` candidates, or the first one within `stop`, by depth-first enumeration.

    The last two of a subset are one entry of `pairs`, filled before: long loops over what lies together.
    """
    n = len(a)
    if size == 0:
        return np.int64(0), abs(target)
    if size == 1:
        chosen = _closest(a, 0, target, np.inf, stop)
        return np.int64(1) << chosen, abs(a[chosen] - target)
    best_distance, best_error, best_mask = np.inf, np.inf, np.int64(0)
    index[0] = 0
    left[0] = target
    level = 0
    while level >= 0:
        if level == size - 2:
            chosen = _closest(pairs, starts[index[level]], left[level], best_distance, stop)
            if chosen >= 0:
                best_distance = abs(left[level] - pairs[chosen])
                first = n - 2
                while starts[first] > chosen:
                    first -= 1
                best_mask = np.int64(1) << first | np.int64(1) << (first + 1 + chosen - starts[first])
                for i in range(level):
                    best_mask |= np.int64(1) << index[i]
                # summed in index order, as the reported error is
                best_error = _error(a, target, best_mask)
                if best_error <= stop:
                    break
            level -= 1
        elif n - index[level] >= size - level:
            left[level + 1] = left[level] - a[index[level]]
            index[level + 1] = index[level] + 1
            level += 1
            continue
        else:
            level -= 1
        if level >= 0:
            index[level] += 1
    return best_mask, best_error


@njit(cache=True, nogil=True)
def _smallest_masks(
    candidates: Array,
    targets: Array,
    repeat: int,
    start: int,
    stop: int,
    eps: float,
    lowest: int,
    end: int,
    first: bool,
    masks: Array,
    errors: Array,
) -> None:
    n = candidates.shape[1]
    index, left = np.empty(end, np.int64), np.empty(end)
    pairs, starts = np.empty(n * (n - 1) // 2), np.empty(n, np.int64)
    filled = -1
    for i in range(start, stop):
        row = i // repeat
        a = candidates[row]
        for size in range(lowest, end):
            if size >= 2 and filled != row:
                _fill_pairs(a, pairs, starts)
                filled = row
            mask, error = _best_of_size(a, targets[i], size, eps if first else -1.0, pairs, starts, index, left)
            masks[i] = mask
            errors[i] = error
            if error <= eps:
                break


@njit(cache=True, nogil=True)
def _sorted_sums(a: Array) -> Any:
    """All subset sums of `a` in order with their masks, doubled one candidate at a time by merging L and L + a_j.

    From both ends at once: two chains of steps that do not wait for each other, and neither can run off its list.
    """
    sums, spare_sums = np.zeros(1 << len(a)), np.empty(1 << len(a))
    masks, spare_masks = np.zeros(1 << len(a), np.uint32), np.empty(1 << len(a), np.uint32)
    size = 1
    for j in range(len(a)):
        shift, bit = a[j], np.uint32(1 << j)
        plain, moved = 0, 0
        plain_end, moved_end = size - 1, size - 1
        for out in range(size):
            x, y = sums[plain], sums[moved] + shift
            keep = x <= y
            spare_sums[out] = x if keep else y
            spare_masks[out] = masks[plain] if keep else masks[moved] | bit
            plain += keep
            moved += not keep
            x, y = sums[plain_end], sums[moved_end] + shift
            keep = x > y
            spare_sums[2 * size - 1 - out] = x if keep else y
            spare_masks[2 * size - 1 - out] = masks[plain_end] if keep else masks[moved_end] | bit
            plain_end -= keep
            moved_end -= not keep
        size *= 2
        sums, masks, spare_sums, spare_masks = spare_sums, spare_masks, sums, masks
    return sums, masks


@njit(cache=True, nogil=True)
def _bucket(x: float, lowest: float, scale: float, last: int) -> int:
    return int(min(max((x - lowest) * scale, 0.0), float(last)))


@njit(cache=True, nogil=True)
def _fill_directory(sums: Array, size: int, scale: float, directory: Array) -> None:
    """Where each of equally wide buckets begins in sums[:size]; `directory` has one entry more than buckets."""
    directory[:] = 0
    for i in range(size):
        directory[_bucket(sums[i], sums[0], scale, len(directory) - 2) + 1] += 1
    for i in range(1, len(directory)):
        directory[i] += directory[i - 1]


@njit(cache=True, nogil=True)
def _lower_bound(sums: Array, size: int, scale: float, directory: Array, x: float) -> int:
    """The first position of sums[:size] that is not below x, or `size`."""
    # the bucket is a monotone function of the value, so neither end can be missed, whatever is rounded
    bucket = _bucket(x, sums[0], scale, len(directory) - 2)
    low, high = directory[bucket], directory[bucket + 1]
    while high - low > 8:
        middle = (low + high) >> 1
        if sums[middle] < x:
            low = middle + 1
        else:
            high = middle
    while low < high and sums[low] < x:
        low += 1
    return low


@njit(cache=True, nogil=True)
def _table_masks(
    candidates: Array, targets: Array, repeat: int, start: int, stop: int, masks: Array, errors: Array
) -> None:
    a = candidates[start // repeat]
    n = len(a)
    # a sum of the table costs about half of what one of a target's 2^(n - table) searches costs
    table = min(n, LARGEST_TABLE)
    while table > 1 and 1 << table > (stop - start) * (2 << (n - table)):
        table -= 1
    size, offsets = 1 << table, 1 << (n - table)
    sums, bits = _sorted_sums(a[:table])
    directory = np.empty(2 * size + 1, np.int32)
    span = sums[size - 1] - sums[0]
    scale = 2.0 * size / span if span > 1e-280 else 0.0
    _fill_directory(sums, size, scale, directory)
    shifts = np.zeros(offsets)
    for j in range(n - table):
        for i in range(1 << j):
            shifts[(1 << j) + i] = shifts[i] + a[table + j]
    for i in range(start, stop):
        best = np.inf
        mask = np.int64(0)
        for o in range(offsets):
            x = targets[i] - shifts[o]
            at = _lower_bound(sums, size, scale, directory, x)
            above, below = min(at, size - 1), max(at - 1, 0)
            at = above if abs(sums[above] - x) < abs(sums[below] - x) else below
            distance = abs(sums[at] - x)
            if distance < best:
                best = distance
                mask = np.int64(bits[at]) | np.int64(o) << table
        masks[i] = mask
        errors[i] = best


@njit(cache=True, nogil=True)
def _vector_masks(candidates: Array, targets: Array, start: int, stop: int, masks: Array, errors: Array) -> None:
    n, d = candidates.shape[1:]
    half = n // 2
    size_a, size_b = 1 << half, 1 << (n - half)
    for i in range(start, stop):
        a, b = candidates[i, :half], candidates[i, half:]
        first_a, bits_a = _sorted_sums(a[:, 0].copy())
        first_b, bits_b = _sorted_sums(b[:, 0].copy())
        rest_a, rest_b = _other_axes(a, bits_a), _other_axes(b, bits_b)
        best = np.inf
        mask = np.int64(0)
        middle = size_b - 1
        for p in range(size_a):
            # the sums of the other half whose first axis is within `best`, outwards from the nearest one
            x = targets[i, 0] - first_a[p]
            while middle > 0 and first_b[middle] > x:
                middle -= 1
            for direction in (-1, 1):
                q = middle if direction < 0 else middle + 1
                while 0 <= q < size_b:
                    distance = abs(first_b[q] - x)
                    if distance >= best:
                        break
                    for axis in range(1, d):
                        gap = abs(rest_a[axis - 1, p] + rest_b[axis - 1, q] - targets[i, axis])
                        distance = max(distance, gap)
                    if distance < best:
                        best = distance
                        mask = np.int64(bits_a[p]) | np.int64(bits_b[q]) << half
                    q += direction
        masks[i] = mask
        errors[i] = best


@njit(cache=True, nogil=True)
def _other_axes(a: Array, bits: Array) -> Array:
    """Subset sums of the axes after the first, in the order of `bits`: shape (d - 1, 2^len(a))."""
    n, d = a.shape
    sums = np.zeros((d - 1, 1 << n))
    for axis in range(1, d):
        for p in range(1 << n):
            for j in range(n):
                if bits[p] >> j & 1:
                    sums[axis - 1, p] += a[j, axis]
    return sums
