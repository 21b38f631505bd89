"""Best subsets on the CPU: merge-doubling on sorting networks, eight instances to a vector.

Horowitz and Sahni's split (J. ACM 21, 1974) needs every half's sums in order and one pass over both. Merging and the
pass with two pointers are chains of unpredictable steps, one sum at a time. Here both are bitonic merges (Batcher
1968), a fixed sequence of minima and maxima, so that lane l of a vector works on instance l of a group of eight. Two
facts make the network short.

1. With sums written as sum of +-h_j, h_j = |a_j| / 2, each list is its own mirror image: only magnitudes are kept. The
   magnitudes U, sorted, become |U - h| and U + h, and [|U - h|, reversed(U + h)] is bitonic: one merge sorts it.
2. |alpha + beta - t| is smallest for two neighbours, one of each list, in the sorted union of t - A and B. The lowest
   bit of the mantissa tells the list; it moves a sum by one unit in the last place, which is what summing does anyway.

Only values are sorted. A mask is found at the end by enumerating each half again in the same order of additions, where
the winner's value recurs bit for bit.
"""

import numpy as np
from numba import float64, int64, njit, uint32, void

from lthlib.theory.arrays import Array
from lthlib.theory.subset_sum.lanes import (
    LANES,
    Vector,
    absolute,
    add,
    even,
    finish_and_scan,
    first_magnitudes,
    halve2,
    halve4,
    halve8,
    lanes,
    load_lanes,
    lower,
    negative,
    odd,
    scratch,
    splat,
    store_lanes,
    sub,
    upper,
    where_equal,
    where_odd,
)

FLAT = float64[::1]
LARGEST_BLOCK = 512  # vectors that are sorted to the end before the next block: 32 KiB, a first-level cache


@njit(void(FLAT, int64, int64, int64), cache=True, nogil=True)
def _stages(array: Array, start: int, size: int, last: int) -> None:
    """Merge stages of the bitonic block of `size` vectors, down to blocks of `last` = 1 or 8 vectors."""
    stages = 0
    while size >> stages > last:
        stages += 1
    block = size >> stages % 3
    if stages % 3 == 1:
        for i in range(start, start + block):
            halve2(array, i, block)
    elif stages % 3 == 2:
        for i in range(start, start + block):
            halve4(array, i, block)
    while block > max(last, LARGEST_BLOCK):
        for offset in range(start, start + size, block):
            for i in range(offset, offset + (block >> 3)):
                halve8(array, i, block >> 3)
        block >>= 3
    for offset in range(start, start + size, block):
        inner = block
        while inner > last:
            for part in range(offset, offset + block, inner):
                for i in range(part, part + (inner >> 3)):
                    halve8(array, i, inner >> 3)
            inner >>= 3


@njit(FLAT(FLAT, int64, int64, FLAT, FLAT), cache=True, nogil=True)
def _magnitudes(halves: Array, first: int, count: int, array: Array, other: Array) -> Array:
    """Sorted magnitudes of +-h over `count` >= 4 candidates: 2^(count-1) vectors, in `array` or in `other`."""
    first_magnitudes(halves, first, array)
    size = 8
    for j in range(first + 4, first + count):
        h = load_lanes(halves, j)
        for i in range(size):
            near = absolute(sub(load_lanes(array, i), h))
            far = add(load_lanes(array, size - 1 - i), h)
            store_lanes(other, i, lower(near, far))
            store_lanes(other, size + i, upper(near, far))
        _stages(other, 0, size, 1)
        _stages(other, size, size, 1)
        size *= 2
        array, other = other, array
    return array


@njit(void(FLAT, FLAT, int64, lanes, FLAT, FLAT), cache=True, nogil=True)
def _closest(first: Array, second: Array, size: int, t: Vector, union: Array, state: Array) -> None:
    """The closest two of t +- first (tagged even) and +- second (tagged odd); `state` keeps the best over calls."""
    for i in range(size):
        x0 = even(sub(t, load_lanes(first, size - 1 - i)))
        x1 = even(add(t, load_lanes(first, i)))
        x2 = odd(load_lanes(second, size - 1 - i))
        x3 = odd(negative(load_lanes(second, i)))
        y0, y2 = lower(x0, x2), upper(x0, x2)
        y1, y3 = lower(x1, x3), upper(x1, x3)
        store_lanes(union, i, lower(y0, y1))
        store_lanes(union, size + i, upper(y0, y1))
        store_lanes(union, 2 * size + i, lower(y2, y3))
        store_lanes(union, 3 * size + i, upper(y2, y3))
    store_lanes(state, 3, splat(-np.inf))
    for quarter in range(4):
        _stages(union, quarter * size, size, 8)
        for i in range(quarter * size, (quarter + 1) * size, 8):
            finish_and_scan(union, i, state)


@njit(void(FLAT, int64, int64, FLAT), cache=True, nogil=True)
def _enumerate(halves: Array, first: int, count: int, out: Array) -> None:
    """Sums of h_0 +- h_1 ... in index order: bit j - 1 of the index is set where h_j is subtracted."""
    store_lanes(out, 0, load_lanes(halves, first))
    size = 1
    for j in range(first + 1, first + count):
        h = load_lanes(halves, j)
        for i in range(size):
            x = load_lanes(out, i)
            store_lanes(out, size + i, sub(x, h))
            store_lanes(out, i, add(x, h))
        size *= 2


@njit(void(FLAT, int64, lanes, FLAT, FLAT, FLAT), cache=True, nogil=True)
def _subtracted(halves: Array, count: int, t: Vector, state: Array, sums: Array, words: Array) -> None:
    """Which h are subtracted in each half's winner: two vectors of `words`, whole numbers with one bit a candidate."""
    low, high = load_lanes(state, 1), load_lanes(state, 2)
    x, y = where_odd(low, high, low), where_odd(low, low, high)
    every, two = splat(2.0**count - 1.0), splat(2.0)
    _enumerate(halves, 0, count, sums)
    word, plain = splat(0.0), splat(0.0)
    for i in range(1 << (count - 1)):
        e = load_lanes(sums, i)
        word = where_equal(x, even(sub(t, e)), plain, word)
        word = where_equal(x, even(add(t, e)), sub(every, plain), word)
        plain = add(plain, two)
    store_lanes(words, 0, word)
    _enumerate(halves, count, count, sums)
    word, plain = splat(0.0), splat(0.0)
    for i in range(1 << (count - 1)):
        e = odd(load_lanes(sums, i))
        word = where_equal(y, e, plain, word)
        word = where_equal(y, negative(e), sub(every, plain), word)
        plain = add(plain, two)
    store_lanes(words, 1, word)


@njit(void(float64[:, ::1], FLAT, int64, int64, int64, uint32[::1], FLAT), cache=True, nogil=True)
def best_masks(
    candidates: Array, targets: Array, repeat: int, start: int, stop: int, masks: Array, errors: Array
) -> None:
    """Best subsets for targets start to stop of (B,) float64; target i has row i // repeat of candidates (S, n).

    Candidates are float64, n at most 32. Fills `masks` (B,) uint32 and `errors` (B,) float64, the search's own.
    """
    n = candidates.shape[1]
    count = max(n // 2, 4)
    single = n > 2 * count  # an odd candidate belongs to no half: both of its signs are tried
    size = 1 << (count - 1)
    first, second, spare = scratch(size), scratch(size), scratch(2 * size)
    union, state, words, centre = scratch(4 * size), scratch(4), scratch(3), scratch(1)
    halves = scratch(2 * count + 1)
    halves[:] = 0.0
    for group in range(start, stop, LANES):
        for lane in range(LANES):
            i = min(group + lane, stop - 1)
            z = targets[i]
            for j in range(n):
                a = candidates[i // repeat, j]
                halves[j * LANES + lane] = 0.5 * abs(a)
                z -= 0.5 * a
            centre[lane] = z
        a_sums = _magnitudes(halves, 0, count, first, spare[: size * LANES])
        b_sums = _magnitudes(halves, count, count, second, spare[size * LANES :])
        store_lanes(state, 0, splat(np.inf))
        t = load_lanes(centre, 0)
        store_lanes(words, 2, splat(0.0))
        if single:
            h = load_lanes(halves, 2 * count)
            _closest(a_sums, b_sums, size, sub(t, h), union, state)
            gap = load_lanes(state, 0)
            _closest(a_sums, b_sums, size, add(t, h), union, state)
            unchanged = load_lanes(state, 0)
            store_lanes(words, 2, where_equal(gap, unchanged, splat(0.0), splat(1.0)))
            t = where_equal(gap, unchanged, sub(t, h), add(t, h))
        else:
            _closest(a_sums, b_sums, size, t, union, state)
        _subtracted(halves, count, t, state, union, words)
        for lane in range(min(LANES, stop - group)):
            i = group + lane
            word = np.int64(words[lane]) | np.int64(words[LANES + lane]) << count
            word |= np.int64(words[2 * LANES + lane]) << 2 * count
            mask = np.int64(0)
            for j in range(n):
                mask |= np.int64((word >> j & 1) == (candidates[i // repeat, j] < 0.0)) << j
            masks[i] = mask
            errors[i] = state[lane]
