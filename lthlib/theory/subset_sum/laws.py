"""Experiments on random subset sums: how error and success depend on n, on the size and on the law of the candidates.

Each returns tidy rows, one a setting and replicate (`seed`); a replicate is a batch of `draws` independent instances
with targets U[-1, 1].
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from lthlib.errors import InputError
from lthlib.randomness import generator, stream_seed
from lthlib.theory.arrays import Array
from lthlib.theory.strong.search import draw_weights, greedy
from lthlib.theory.subset_sum.solve import binary_entropy, empirical_constant, solve, solve_vectors

PRODUCTS = ("uniform", "product")


def best_rows(
    counts: Sequence[int], seeds: Sequence[int], draws: int, eps: Sequence[float], laws: Sequence[str] = PRODUCTS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Best subsets of n candidates, U[-1, 1] or products of two such: rows (law, n, seed, median, size), and rows
    (law, n, seed, eps, success), success being the share of targets with an error of at most eps."""
    medians, successes = [], []
    for law, n, seed in product(laws, counts, seeds):
        a, z = _instances(law, seed, draws, n)
        best = solve(a, z)
        common = {"law": law, "n": n, "seed": seed}
        median = float(np.median(best.error))
        medians.append(common | {"median": median, "scaled": median / math.sqrt(n), "size": float(best.size.mean())})
        successes += [common | {"eps": limit, "success": float(best.reached(limit).mean())} for limit in eps]
    return pd.DataFrame(medians), pd.DataFrame(successes)


def first_hit_rows(n: int, eps: float, draws: int, seed: int = 0) -> pd.DataFrame:
    """The statistics of Burkholz's released code (NeurIPS 2022): sizes 0, 1, ... in turn, the first hit within eps.

    One row a law: failure, mean size where reached, the share of each size, and the constant of
    n >= C ln(1 / min(eps, failure)).
    """
    rows = []
    for law in PRODUCTS:
        a, z = _instances(law, seed, draws, n)
        hits = solve(a, z, "sparsest", eps=eps, choice="first")
        reached = hits.reached(eps)
        failure = float((~reached).mean())
        shares = {f"size {k}": float((hits.size[reached] == k).mean()) for k in range(8)}
        size = float(hits.size[reached].mean())
        rows.append({"law": law, "failure": failure, "size": size, "C": empirical_constant(n, eps, failure)} | shares)
    return pd.DataFrame(rows)


def fixed_size_rows(
    counts: Sequence[int], sizes: Sequence[int], seeds: Sequence[int], draws: int, eps: float
) -> pd.DataFrame:
    """Success of subsets of exactly k of n uniforms: rows (n, k, seed, success), k <= n."""
    rows = []
    for n, seed in product(counts, seeds):
        a, z = _instances("uniform", seed, draws, n)
        hits = {k: solve(a, z, "fixed", k=k).reached(eps) for k in sizes if k <= n}
        rows += [{"n": n, "k": k, "seed": seed, "success": float(hit.mean())} for k, hit in hits.items()]
    return pd.DataFrame(rows)


def entropy_width(k: int, eps: float) -> float:
    """The n >= k at which n H_2(k / n) = log_2(k / eps): where the form of Natale et al. (NeurIPS 2024), Theorem 2,
    with constant 1 puts the transition of fixed size k. (The theorem speaks of n >= 2 k.)"""
    goal, low, high = math.log2(k / eps), float(k), 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle * binary_entropy(k / middle) < goal else (low, middle)
    return high


def entropy_ratio(n: pd.Series, k: pd.Series, eps: float) -> pd.Series:
    """n H_2(k / n) / log_2(k / eps) for measured widths n (at least k) and sizes k: 1 where the entropy law holds."""
    ratios = [
        width * binary_entropy(min(1.0, size / width)) / math.log2(size / eps) for width, size in zip(n, k, strict=True)
    ]
    return pd.Series(ratios, index=n.index)


def nearest_rows(counts: Sequence[int], seeds: Sequence[int], draws: int) -> pd.DataFrame:
    """One product a weight: rows (n, seed, median), the median distance of targets U[-1, 1] to the nearest of n."""
    rows = []
    for n, seed in product(counts, seeds):
        errors = []
        for part in range(math.ceil(draws * n / 4_000_000)):
            a, z = _instances("product", stream_seed(seed, part), min(draws, 4_000_000 // n), n)
            errors.append(np.abs(a - z[:, None]).min(axis=1))
        rows.append({"n": n, "seed": seed, "median": float(np.median(np.concatenate(errors)))})
    return pd.DataFrame(rows)


def vector_rows(counts: Sequence[int], dimensions: Sequence[int], seeds: Sequence[int], draws: int) -> pd.DataFrame:
    """Best subsets in d dimensions, largest norm: rows (d, n, seed, median, scaled = median / sqrt(n))."""
    rows = []
    for d, n, seed in product(dimensions, counts, seeds):
        rng = np.random.default_rng(stream_seed(seed, "vectors", d, n))
        best = solve_vectors(rng.uniform(-1, 1, (draws, n, d)), rng.uniform(-1, 1, (draws, d)))
        median = float(np.median(best.error))
        rows.append({"d": d, "n": n, "seed": seed, "median": median, "scaled": median / math.sqrt(n)})
    return pd.DataFrame(rows)


def greedy_rows(counts: Sequence[int], eps: Sequence[float], seeds: Sequence[int], draws: int) -> pd.DataFrame:
    """Greedy digits (Orseau et al., NeurIPS 2020) by law: rows (law, n, eps, seed, success, steps).

    Hyperbolic magnitudes lie between eps / 2 and 1.5; U[-1, 1] and N(0, 1) have no such scale. `steps` is the mean
    number of digits where reached.
    """
    rows = []
    for law, limit, n, seed in product(("uniform", "normal", "hyperbolic"), eps, counts, seeds):
        source = generator(seed, "greedy", law, n)
        a = draw_weights("uniform", (draws, n), source).astype(np.float64)
        if law == "hyperbolic":
            a = np.sign(a) * np.exp(math.log(limit / 2) + math.log(3 / limit) * np.abs(a))
        elif law == "normal":
            a = draw_weights("normal", (draws, n), source).astype(np.float64)
        z = draw_weights("uniform", (draws,), source).astype(np.float64)
        kept = greedy(a, z, limit)
        reached = np.abs((a * kept).sum(axis=1) - z) <= limit
        steps = float(kept[reached].sum(axis=1).mean()) if reached.any() else math.nan
        success = float(reached.mean())
        rows.append({"law": law, "n": n, "eps": limit, "seed": seed, "success": success, "steps": steps})
    return pd.DataFrame(rows)


def pruned_source_rows(
    counts: Sequence[int], sparsities: Sequence[float], seeds: Sequence[int], draws: int, eps: float
) -> pd.DataFrame:
    """Sources pruned at random beforehand: each of n uniforms is gone with probability `sparsity`; rows (sparsity, n,
    seed, success). Gone candidates are zeros, which change no sum."""
    rows = []
    for sparsity, n, seed in product(sparsities, counts, seeds):
        a, z = _instances("uniform", seed, draws, n)
        left = np.random.default_rng(stream_seed(seed, "sparsity", n)).random(a.shape) >= sparsity
        success = float(solve(a * left, z).reached(eps).mean())
        rows.append({"sparsity": sparsity, "n": n, "seed": seed, "success": success})
    return pd.DataFrame(rows)


def trade_off_rows(
    densities: Sequence[float], seeds: Sequence[int], draws: int, eps: float, level: float = 0.9
) -> pd.DataFrame:
    """Width against density at one success `level`: rows (arm, asked, density, n, seed).

    n is the smallest at which exactly k = round(density n) candidates reach. The end points are Malach's one of n
    (asked: 0) and Pensia's best of any size (asked: 1; density one half, which best subsets have).
    n is NaN where no n up to 32 is enough (up to 10^5 for one of n).
    """
    rows = []
    for seed in seeds:
        for density in densities:
            n = _first(range(math.ceil(1 / density), 33), seed, draws, eps, level, density)
            rows.append({"arm": "fixed size", "asked": density, "n": n, "seed": seed})
            rows[-1]["density"] = max(1, round(density * n)) / n if math.isfinite(n) else math.nan
        n = _first(range(2, 33), seed, draws, eps, level, None)
        rows.append({"arm": "best of any size (Pensia)", "asked": 1.0, "n": n, "seed": seed, "density": 0.5})
        n = _nearest_width(seed, draws, eps, level)
        rows.append({"arm": "one of n (Malach)", "asked": 0.0, "n": n, "seed": seed, "density": 1 / n})
    return pd.DataFrame(rows)


def _first(counts: range, seed: int, draws: int, eps: float, level: float, density: float | None) -> float:
    for n in counts:
        a, z = _instances("uniform", seed, draws, n)
        best = solve(a, z) if density is None else solve(a, z, "fixed", k=max(1, round(density * n)))
        if best.reached(eps).mean() >= level:
            return float(n)
    return math.nan


def _nearest_width(seed: int, draws: int, eps: float, level: float) -> float:
    """For single uniforms the chance of a hit is 1 - (1 - p)^n, p the mass within eps of the target."""
    z = np.random.default_rng(stream_seed(seed, "nearest")).uniform(-1, 1, draws)
    mass = (np.minimum(1, z + eps) - np.maximum(-1, z - eps)) / 2
    low, high = 1, 100_000
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if (1 - (1 - mass) ** middle).mean() >= level else (middle + 1, high)
    return float(low)


def needed(
    rows: pd.DataFrame, by: str | Sequence[str], level: float = 0.9, x: str = "n", y: str = "success"
) -> pd.DataFrame:
    """Where `y` first crosses `level` as `x` grows, interpolated linearly: rows (by, seed, needed); NaN where never.

    Raises InputError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}, which no success crosses (valid: between 0 and 1)")
    names = [by] if isinstance(by, str) else list(by)
    out = []
    for key, group in rows.groupby([*names, "seed"], sort=True):
        part = group.sort_values(x)
        above = np.flatnonzero(part[y].to_numpy() >= level)
        crossing = math.nan
        if len(above):
            i, xs, ys = int(above[0]), part[x].to_numpy(float), part[y].to_numpy(float)
            share = 0.0 if i == 0 else (level - ys[i - 1]) / (ys[i] - ys[i - 1])
            crossing = xs[0] if i == 0 else xs[i - 1] + share * (xs[i] - xs[i - 1])
        out.append(dict(zip([*names, "seed"], key, strict=True)) | {"needed": float(crossing)})
    return pd.DataFrame(out)


def slopes(rows: pd.DataFrame, x: str, y: str, log_x: bool = False, log_y: bool = True) -> np.ndarray:
    """The least-squares slope of y over x for each seed, one number a replicate, in the order of seeds; logarithms
    are to base 2, and rows that are NaN are left out."""
    out = []
    for _, part in rows.dropna(subset=[x, y]).groupby("seed", sort=True):
        left, right = part[x].to_numpy(float), part[y].to_numpy(float)
        left, right = (np.log2(left) if log_x else left), (np.log2(right) if log_y else right)
        out.append(float(np.polyfit(left, right, 1)[0]))
    return np.array(out)


def _instances(law: str, seed: int, draws: int, n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(stream_seed(seed, "instances", law, n))
    a = rng.uniform(-1, 1, (draws, n))
    if law == "product":
        a *= rng.uniform(-1, 1, (draws, n))
    return a, rng.uniform(-1, 1, draws)
