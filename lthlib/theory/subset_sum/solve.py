"""Subset sums: which of n random candidates add up to a target, exactly and in large batches; and the laws they follow.

`solve` picks, for each target, the best subset, the sparsest one within a tolerance, or the best one of a given size.
The search costs 2^(n/2) rather than 2^n (Horowitz & Sahni, J. ACM 21, 1974), in float64, on one of two engines:
compiled CPU kernels ("numba", `lane_kernels` and `kernels`) or torch ("torch", `torch_engine`), for
GPUs and as a second opinion. Both are exact up to the rounding of sums, some 1e-15 of the sum of magnitudes. Every
error that is reported is computed afresh from its mask, in code that shares nothing with the search, and a search that
claimed another one is stopped.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lthlib.errors import InputError, unknown
from lthlib.theory.arrays import Array

LARGEST_N = 32  # a mask is 32 bits, and a half has 2^16 sums
LARGEST_N_VECTORS = 28  # in several dimensions the time can come near 2^n
LARGEST_VALUE = 1e300  # so that no sum overflows
MODES = ("best", "sparsest", "fixed")
CHOICES = ("best_in_size", "first")
ENGINES = ("numba", "torch")
LAWS = ("uniform", "product")


@dataclass(frozen=True)
class Solution:
    """Subsets, one for each target, in the shape of the targets.

    `mask` (uint32) has bit j set where candidate j is kept; `error` (float64) is |sum of kept - target|, in several
    dimensions the largest coordinate; `size` (int64) is the number of kept candidates.
    """

    mask: Array
    error: Array
    size: Array

    def reached(self, eps: float) -> Array:
        """Where the error is at most eps (bool, in the shape of the targets); count the others, they have failed."""
        return self.error <= eps

    def kept(self, n: int) -> Array:
        """The masks unpacked: bool, shape (..., n), n being the number of candidates."""
        return unpack(self.mask, n)


def unpack(mask: Array, n: int) -> Array:
    """Bits 0 to n - 1 of packed masks (uint32, any shape): bool, shape (..., n)."""
    return (np.asarray(mask)[..., None] >> np.arange(n, dtype=np.uint32) & np.uint32(1)).astype(bool)


def solve(
    candidates: npt.ArrayLike,
    targets: npt.ArrayLike,
    mode: str = "best",
    *,
    eps: float | None = None,
    k: int | None = None,
    choice: str = "best_in_size",
    allow_empty: bool = True,
    engine: str = "numba",
    device: str | None = None,
) -> Solution:
    """Subsets of the candidates whose sums approach the targets.

    `candidates` has shape (..., n), 1 <= n <= 32. `targets` has shape (...), one target to a candidate set, or
    (..., T), T targets that share each set, which is faster from about sixteen on. Both become float64.

    Modes: "best" has the smallest error; "sparsest" the fewest candidates with an error of at most `eps`, and of those
    subsets the best (`choice="best_in_size"`) or the first in lexicographic order where sizes are enumerated
    (`choice="first"`; larger sizes give their best), or the best subset of all where none is within `eps`: see
    `Solution.reached`; "fixed" the smallest error among subsets of exactly `k`. `allow_empty=False` bars the empty
    subset. `device` is torch's ("cpu", "cuda").

    Raises InputError for bad shapes, values that are not finite, n, k or eps out of range, and unknown names.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if choice not in CHOICES:
        raise unknown("choice", choice, CHOICES)
    a, z = _finite(candidates, "candidates"), _finite(targets, "targets")
    n = a.shape[-1] if a.ndim else 0
    if not 1 <= n <= LARGEST_N:
        raise InputError(f"{n} candidates do not fit a mask of {LARGEST_N} bits (valid: 1 to {LARGEST_N})")
    if z.shape[: a.ndim - 1] != a.shape[:-1] or z.ndim > a.ndim:
        sets = a.shape[:-1]
        raise InputError(f"targets of shape {z.shape} do not go with candidates of shape {a.shape} (valid: {sets} or "
                         f"{(*sets, 'T')})")  # fmt: skip
    repeat = z.shape[-1] if z.ndim == a.ndim else 1
    problem = _Problem(_plain(a.reshape(-1, n)), _plain(z.reshape(-1)), repeat)
    run = _engine(engine, device)
    if not z.size:
        masks = np.zeros(0, np.uint32)
    elif mode == "best":
        masks = _best(run, problem, allow_empty)
    elif mode == "sparsest":
        if eps is None or not 0 <= eps < math.inf:
            raise InputError(f"eps is {eps}, but the sparsest subset needs a finite tolerance (valid: 0 or more)")
        masks = _sparsest(run, problem, eps, choice == "first", allow_empty)
    else:
        lowest = 0 if allow_empty else 1
        if not isinstance(k, int | np.integer) or not lowest <= k <= n:
            raise InputError(f"k is {k}, which is no size of a subset of {n} candidates (valid: {lowest} to {n})")
        masks = _fixed(run, problem, int(k))
    errors, sizes = problem.account(masks)
    return Solution(masks.reshape(z.shape), errors.reshape(z.shape), sizes.reshape(z.shape))


def solve_vectors(
    candidates: npt.ArrayLike, targets: npt.ArrayLike, *, engine: str = "numba", device: str | None = None
) -> Solution:
    """The best subset in d dimensions: the smallest |sum of kept - target| in the largest norm.

    `candidates` has shape (..., n, d), 1 <= n <= 28 and d 1 to 3; `targets` has shape (..., d); both become float64.
    One half's sums are sorted along the first axis and only those within the best error so far are looked at, so the
    time grows from 2^(n/2) at d = 1 towards 2^n. Raises InputError as `solve` does.
    """
    a, z = _finite(candidates, "candidates"), _finite(targets, "targets")
    if a.ndim < 2 or a.shape[-1] not in (1, 2, 3) or z.shape != (*a.shape[:-2], a.shape[-1]):
        shapes = f"candidates of shape {a.shape} and targets of shape {z.shape}"
        raise InputError(f"{shapes} are no vector subset sums (valid: (..., n, d) and (..., d), d 1 to 3)")
    n, d = a.shape[-2:]
    if not 1 <= n <= LARGEST_N_VECTORS:
        raise InputError(f"{n} candidate vectors take up to 2^{n} steps a target (valid: 1 to {LARGEST_N_VECTORS})")
    a, z = _plain(a.reshape(-1, n, d)), _plain(z.reshape(-1, d))
    masks, claimed = _engine(engine, device).best_vectors(a, z)
    axes = [_account(a[:, :, axis], z[:, axis], 1, masks) for axis in range(d)]
    errors = np.max([error for error, _ in axes], axis=0) if len(z) else np.zeros(0)
    _agree(claimed, errors, np.abs(a).sum(axis=(1, 2)) + np.abs(z).sum(axis=1))
    shape = np.shape(targets)[:-1]
    return Solution(masks.reshape(shape), errors.reshape(shape), axes[0][1].reshape(shape))


# --- how the modes are made of two searches: the best of all subsets, and the enumeration of small sizes ---


@dataclass(frozen=True)
class _Problem:
    """Candidates (S, n) and targets (S * repeat,), float64: target i has row i // repeat."""

    candidates: Array
    targets: Array
    repeat: int

    def rows(self, places: Array) -> "_Problem":
        """Some of the targets, each with a candidate row of its own."""
        return _Problem(self.candidates[places // self.repeat], self.targets[places], 1)

    def account(self, masks: Array) -> tuple[Array, Array]:
        return _account(self.candidates, self.targets, self.repeat, masks)

    def magnitude(self) -> Array:
        """The sum of all magnitudes that meet in one instance, which scales its rounding."""
        return np.repeat(np.abs(self.candidates).sum(axis=1), self.repeat) + np.abs(self.targets)


@dataclass(frozen=True)
class _Engine:
    best: Callable[..., tuple[Array, Array]]
    smallest: Callable[..., tuple[Array, Array]]
    best_vectors: Callable[..., tuple[Array, Array]]


def _engine(name: str, device: str | None) -> _Engine:
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if name == "numba":
        if device not in (None, "cpu"):
            raise InputError(f"the numba engine runs on the CPU, not on {device!r} (valid: engine='torch')")
        kernels = importlib.import_module("lthlib.theory.subset_sum.kernels")
        return _Engine(kernels.best, kernels.smallest, kernels.best_vectors)
    import torch  # seconds, which the other engine does not need

    functions = importlib.import_module("lthlib.theory.subset_sum.torch_engine")
    where = torch.device(device or "cpu")
    names = ("best", "smallest", "best_vectors")
    return _Engine(*(partial(getattr(functions, name), device=where) for name in names))


def _search(run: _Engine, problem: _Problem) -> Array:
    masks, claimed = run.best(problem.candidates, problem.targets, problem.repeat)
    _agree(claimed, problem.account(masks)[0], problem.magnitude())
    return masks


def _best(run: _Engine, problem: _Problem, allow_empty: bool) -> Array:
    masks = _search(run, problem)
    if allow_empty:
        return masks
    empty = np.flatnonzero(masks == 0)
    if not len(empty):
        return masks
    # every other subset has a first candidate j, and a best subset of those after j
    left = problem.rows(empty)
    n = left.candidates.shape[1]
    best, error = np.zeros(len(empty), np.uint32), np.full(len(empty), math.inf)
    for j in range(n):
        tried = np.full(len(empty), 1 << j, np.uint32)
        if j + 1 < n:
            rest = _Problem(left.candidates[:, j + 1 :].copy(), left.targets - left.candidates[:, j], 1)
            tried |= _search(run, rest) << np.uint32(j + 1)
        error_tried = left.account(tried)[0]
        best = np.where(error_tried < error, tried, best)
        error = np.minimum(error_tried, error)
    masks[empty] = best
    return masks


def _fixed(run: _Engine, problem: _Problem, k: int) -> Array:
    n = problem.candidates.shape[1]
    if math.comb(n, k) <= _enumerable(n):
        return run.smallest(problem.candidates, problem.targets, problem.repeat, math.inf, range(k, k + 1), False)[0]
    # Shifting every candidate by m and the target by k m leaves sizes other than k at least m away less the error that
    # any subset can have; with m above twice that error the best of all subsets is the best of size k.
    a, z = problem.candidates, problem.targets.reshape(-1, problem.repeat)
    reach = np.stack([a.clip(min=0).sum(axis=1), a.clip(max=0).sum(axis=1)])
    worst = np.abs(reach[:, :, None] - z).max(axis=(0, 2))
    m = np.where(worst > 0, 2.000001 * worst, 1.0)[:, None]
    masks = _search(run, _Problem(a + m, (z + k * m).reshape(-1), problem.repeat))
    if (problem.account(masks)[1] != k).any():
        raise RuntimeError(f"a search for {k} of {n} candidates returned another size")
    return masks


def _sparsest(run: _Engine, problem: _Problem, eps: float, first: bool, allow_empty: bool) -> Array:
    n = problem.candidates.shape[1]
    sizes = range(0 if allow_empty else 1, n + 1)
    few = next((k for k in sizes if math.comb(n, k) > _enumerable(n)), n + 1)
    masks, errors = run.smallest(
        problem.candidates, problem.targets, problem.repeat, eps, range(sizes.start, few), first
    )
    places = np.flatnonzero(errors > eps)
    if not len(places):
        return masks
    # The best subset says whether any is within eps, and bounds the size; only the sizes between are left to try.
    left = problem.rows(places)
    best = _best(run, left, allow_empty)
    masks[places] = best
    error, size = left.account(best)
    for k in range(few, n):
        trying = np.flatnonzero((error <= eps) & (size > k))
        if not len(trying):
            break
        part = left.rows(trying)
        fixed = _fixed(run, part, k)
        hit = part.account(fixed)[0] <= eps
        masks[places[trying[hit]]] = fixed[hit]
        size[trying[hit]] = k
    return masks


def _enumerable(n: int) -> float:
    """Subsets of one size up to which listing them beats the search in halves."""
    return 4 * 2 ** (n / 2)


def _account(candidates: Array, targets: Array, repeat: int, masks: Array) -> tuple[Array, Array]:
    """Errors (float64) and sizes (int64) from the masks alone, candidates added in index order."""
    errors, sizes = np.empty(len(targets)), np.empty(len(targets), np.int64)
    bits = np.arange(candidates.shape[1], dtype=np.uint32)
    for start in range(0, len(targets), 4096):
        part = slice(start, start + 4096)
        rows = candidates[np.arange(start, min(start + 4096, len(targets))) // repeat]
        kept = (masks[part, None] >> bits & np.uint32(1)).astype(bool)
        # Accumulated and not summed, which would add pairs first.
        total = np.where(kept, rows, 0.0).cumsum(1)[:, -1]
        errors[part], sizes[part] = np.abs(total - targets[part]), kept.sum(1)
    return errors, sizes


def _agree(claimed: Array, errors: Array, magnitude: Array) -> None:
    # the search marks sums in their last bit, which of a zero makes the smallest number there is
    wrong = ~(np.abs(claimed - errors) <= 1e-13 * magnitude + 1e-300)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise RuntimeError(f"instance {i}: the search claimed error {claimed[i]}, its mask has {errors[i]}")


def _plain(array: Array) -> Array:
    # compiled code takes one kind of array: another layout, or one that is read-only, would be compiled for anew
    return np.require(array, requirements=["C", "W"])


def _finite(values: npt.ArrayLike, what: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    wrong = int((~(np.abs(array) <= LARGEST_VALUE)).sum())
    if wrong:
        raise InputError(
            f"{what} hold {wrong} values that are NaN or infinite (valid: magnitudes to {LARGEST_VALUE:g})"
        )
    return array


# --- the laws of random subset sums ---


def sum_density(n: int, target: float = 0.0, law: str = "uniform") -> float:
    """Gaussian density at `target` of the sum of a random subset of n candidates, each kept with probability 1/2.

    Candidates are U[-1, 1] ("uniform", variance of the sum n / 6) or products of two such ("product", n / 18).
    """
    if law not in LAWS:
        raise unknown("law", law, LAWS)
    _at_least_one(n, "n")
    variance = n / (6 if law == "uniform" else 18)
    return math.exp(-(target**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def predicted_median_error(n: int, target: float = 0.0, law: str = "uniform") -> float:
    """Median error of the best subset of n candidates, ln 2 / lambda, lambda = 2 * 2^n * `sum_density`.

    The sums near a target are nearly a Poisson process of that rate in the error (derived here). It describes the bulk:
    measured medians over targets U[-1, 1] lie 10 to 20 percent above, and the tail of unreachable targets is heavier.
    """
    return math.log(2) / (2 * 2**n * sum_density(n, target, law))


def predicted_failure(n: int, eps: float, target: float = 0.0, law: str = "uniform") -> float:
    """Probability that no subset of n candidates is within eps of the target, exp(-lambda eps): see
    `predicted_median_error`."""
    return math.exp(-2 * 2**n * sum_density(n, target, law) * eps)


def expected_fixed_size_hits(n: int, k: int, eps: float, target: float = 0.0) -> float:
    """Expected number of subsets of exactly k of n candidates U[-1, 1] whose sum is within eps of the target.

    C(n, k) 2 eps sqrt(3 / (2 pi k)) exp(-3 z^2 / (2 k)): the Gaussian form of the first moment in Natale et al.
    (NeurIPS 2024), Theorem 2. A hit becomes likely where this passes 1.
    """
    if not 1 <= k <= n:
        raise InputError(f"k is {k}, which is no size of a subset of {n} candidates (valid: 1 to {n})")
    density = math.sqrt(3 / (2 * math.pi * k)) * math.exp(-3 * target**2 / (2 * k))
    return math.comb(n, k) * 2 * eps * density


def single_product_median_gap(n: int, target: float) -> float:
    """Median distance from the target (0 < |target| < 1) to the nearest of n products of two U[-1, 1].

    ln 2 / (2 n f(w)), the products' density being f(w) = -ln|w| / 2: one neuron a weight, as Malach et al. (ICML 2020).
    """
    _at_least_one(n, "n")
    if not 0 < abs(target) < 1:
        raise InputError(f"the density of products at {target} is not finite and positive (valid: 0 < |target| < 1)")
    return math.log(2) / (-n * math.log(abs(target)))


def binary_entropy(p: float) -> float:
    """H_2(p) in bits, for p from 0 to 1."""
    if not 0 <= p <= 1:
        raise InputError(f"{p} is no probability (valid: 0 to 1)")
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def empirical_constant(n: int, eps: float, failure: float) -> float:
    """C-hat = n / (-ln min(eps, failure)): the constant of n >= C ln(1 / min(eps, delta)) that an observed failure
    fraction implies; with no failure at all (0), the tolerance decides. As in the code of Burkholz (NeurIPS 2022)."""
    _at_least_one(n, "n")
    smaller = min(eps, failure) if failure > 0 else eps
    if not 0 < smaller < 1:
        raise InputError(f"min(eps, failure) is {smaller}, which gives no constant (valid: above 0 and below 1)")
    return n / -math.log(smaller)


def _at_least_one(value: int, what: str) -> None:
    if value < 1:
        raise InputError(f"{what} is {value} (valid: 1 or more)")
