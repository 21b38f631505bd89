"""Subset sums: solves a second by n, and the experiment of Pensia et al. (NeurIPS 2020) on a 784-500-10 network.

The figure beside the best-subset rates is the plain way: merge-doubling and two pointers, one instance at a time,
compiled by numba on as many threads. For scale, itertools and scipy's solver are timed on a few instances.
"""

import itertools
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import njit
from numba.core import config
from reporting import Row, parser, report, timing

from lthlib.theory.subset_sum import Solution, solve

EPS = 0.01
LAYERS = ((500, 784), (10, 500))
PUBLISHED_SECONDS = 77_266  # 36 cores, Gurobi: github.com/acnagle/optimal-lottery-tickets, README


@njit(nogil=True)
def _plain(candidates, targets):  # type: ignore[no-untyped-def]
    """Best errors by Horowitz and Sahni's search, without masks."""
    errors = np.empty(len(targets))
    n = candidates.shape[1]
    half = n // 2
    for i in range(len(targets)):
        lists = []
        for a in (candidates[i, :half], candidates[i, half:]):
            sums = np.zeros(1)
            for x in a:
                merged = np.empty(2 * len(sums))
                p, q = 0, 0
                for out in range(len(merged)):
                    if q == len(sums) or (p < len(sums) and sums[p] <= sums[q] + x):
                        merged[out] = sums[p]
                        p += 1
                    else:
                        merged[out] = sums[q] + x
                        q += 1
                sums = merged
            lists.append(sums)
        first, second = lists
        p, q = 0, len(second) - 1
        best = np.inf
        while p < len(first) and q >= 0:
            d = first[p] + second[q] - targets[i]
            best = min(best, abs(d))
            if d > 0:
                q -= 1
            else:
                p += 1
        errors[i] = best
    return errors


def plain(candidates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`_plain` on as many threads as the engine uses."""
    parts = np.array_split(np.arange(len(targets)), 8 * config.NUMBA_NUM_THREADS)
    with ThreadPoolExecutor(config.NUMBA_NUM_THREADS) as threads:
        return np.concatenate(list(threads.map(lambda part: _plain(candidates[part], targets[part]), parts)))


def by_itertools(a: np.ndarray, z: float) -> float:
    """The best error as a loop over all subsets in Python."""
    subsets = itertools.chain.from_iterable(itertools.combinations(a, k) for k in range(len(a) + 1))
    return min(abs(sum(subset) - z) for subset in subsets)


def by_milp(a: np.ndarray, z: float) -> float:
    """The best error by scipy's mixed-integer solver, in the form that Pensia et al. gave to theirs."""
    from scipy.optimize import LinearConstraint, milp

    n = len(a)
    above, below = np.append(a, -1.0), np.append(-a, -1.0)
    constraints = LinearConstraint(np.stack([above, below]), ub=[z, -z])
    solution = milp(np.append(np.zeros(n), 1.0), integrality=np.append(np.ones(n), 0), constraints=constraints,
                    bounds=(np.zeros(n + 1), np.append(np.ones(n), np.inf)))  # fmt: skip
    return float(abs(a @ np.round(solution.x[:n]) - z))


def rates(rows: list[Row], repeats: int) -> None:
    """Solves a second, by n and mode."""
    rng = np.random.default_rng(0)
    for n, count in ((10, 200_000), (15, 200_000), (18, 60_000), (20, 40_000), (21, 30_000), (24, 8_000), (30, 600)):
        a, z = rng.uniform(-1, 1, (count, n)), rng.uniform(-1, 1, count)
        few = max(count // 10, 100)
        ours = timing(lambda a=a, z=z: solve(a, z), repeats)
        theirs = timing(lambda a=a[:few], z=z[:few]: plain(a, z), repeats)
        sets = count // 500 + 1
        goals = rng.uniform(-1, 1, (sets, 784))
        shared = timing(lambda a=a[:sets], z=goals: solve(a, z), repeats)
        sparsest = timing(lambda a=a, z=z: solve(a, z, "sparsest", eps=EPS), repeats)
        fixed = timing(lambda a=a[:few], z=z[:few], k=n // 2: solve(a, z, "fixed", k=k), repeats)
        rows += [
            Row(f"best, own candidates, n={n}", count / ours.wall, "solves/s", few / theirs.wall),
            Row(f"best, 784 targets a set, n={n}", sets * 784 / shared.wall, "solves/s"),
            Row(f"sparsest within .01, n={n}", count / sparsest.wall, "solves/s"),
            Row(f"fixed size n/2, n={n}", few / fixed.wall, "solves/s"),
        ]
    a, z = rng.uniform(-1, 1, (3, 15)), rng.uniform(-1, 1, 3)
    python = timing(lambda: [by_itertools(*pair) for pair in zip(a, z, strict=True)], 1)
    rows.append(Row("best by itertools, n=15", 3 / python.wall, "solves/s"))
    a, z = rng.uniform(-1, 1, (2, 21)), rng.uniform(-1, 1, 2)
    solver = timing(lambda: [by_milp(*pair) for pair in zip(a, z, strict=True)], 1)
    rows.append(Row("best by scipy.optimize.milp, n=21", 2 / solver.wall, "solves/s"))


def load_weights(file: Path | None, rng: np.random.Generator) -> tuple[str, list[np.ndarray]]:
    """Layers (500, 784) and (10, 500): from a .npy of 397,000 numbers, layer after layer, or synthetic ones."""
    if file is None:
        # spread as He initialisation spreads them: NOT a trained network, whose weights are smaller still
        return "synthetic Gaussian", [rng.normal(0, np.sqrt(2 / shape[1]), shape) / 2 for shape in LAYERS]
    flat = np.load(file).astype(np.float64).ravel()
    if flat.size != sum(np.prod(shape) for shape in LAYERS):
        sys.exit(f"{file} holds {flat.size} numbers, not the 397,000 of a 784-500-10 network")
    split = int(np.prod(LAYERS[0]))
    return file.stem, [flat[:split].reshape(LAYERS[0]), flat[split:].reshape(LAYERS[1])]


def pensia(rows: list[Row], name: str, layers: list[np.ndarray], bounds: tuple[float, float], repeats: int) -> None:
    """The whole task: n = 3 round(log2(1 / eps)) = 21 candidates a weight, U[bounds]."""
    rng = np.random.default_rng(1)
    own = [rng.uniform(*bounds, (*layer.shape, 21)) for layer in layers]
    shared = [rng.uniform(*bounds, (len(layer), 21)) for layer in layers]
    total = sum(layer.size for layer in layers)
    solved: list[Solution] = []

    def run(candidates: list[np.ndarray], mode: str, allow_empty: bool = True) -> None:
        solved[:] = [
            solve(a, layer, mode, eps=EPS, allow_empty=allow_empty) for a, layer in zip(candidates, layers, strict=True)
        ]

    for label, candidates, mode, allow_empty, goal in (
        ("best, own candidates", own, "best", True, "<= 10"),
        ("best, shared by a row", shared, "best", True, "<= 3"),
        ("sparsest, own", own, "sparsest", True, "<= 1"),
        ("sparsest, own, not empty", own, "sparsest", False, "<= 1"),
        ("sparsest, shared by a row", shared, "sparsest", True, "<= 1"),
    ):
        seconds = timing(lambda c=candidates, m=mode, e=allow_empty: run(c, m, e), repeats)
        kept = sum(int(solution.size.sum()) for solution in solved)
        failed = sum(int((~solution.reached(EPS)).sum()) for solution in solved)
        task = f"{name}: {label}"
        rows += [
            Row(task, seconds.wall, "s", goal=goal),
            Row(f"{task}, CPU", seconds.cpu, "s"),
            Row(f"{task}, kept a weight", kept / total, "candidates"),
            Row(f"{task}, above eps", float(failed), "weights"),
        ]
        if mode == "best":
            rows.append(Row(f"{task}, published / ours", PUBLISHED_SECONDS / seconds.wall, "times"))


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--weights", type=Path, help=".npy with a trained 784-500-10 network's 397,000 weights")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--skip-rates", action="store_true", help="only Pensia's task")
    options = arguments.parse_args()
    rows: list[Row] = []
    start = time.perf_counter()  # compiled once, then cached on disk: NUMBA_CACHE_DIR names an empty folder to see it
    small = np.random.default_rng(0).uniform(-1, 1, (40, 10))
    solve(small, small[:, 0])
    solve(small, small[:, 0], "sparsest", eps=EPS)
    solve(small, np.repeat(small[:, :1], 20, axis=1))
    rows.append(
        Row("first call of three modes: compiling, or loading from the cache", time.perf_counter() - start, "s")
    )
    plain(small, small[:, 0])
    if not options.skip_rates:
        rates(rows, options.repeats)
    rng = np.random.default_rng(2)
    uniform = [rng.uniform(-1, 1, shape) for shape in LAYERS]
    pensia(rows, "Pensia, targets U[-1, 1]", uniform, (-1.0, 1.0), options.repeats)
    name, layers = load_weights(options.weights, rng)
    bounds = (min(layer.min() for layer in layers), max(layer.max() for layer in layers))
    pensia(rows, f"Pensia, {name}", layers, bounds, options.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(Row("peak memory of all of this", peak, "MiB", goal="<= 1536"))
    report(rows, options.json)


if __name__ == "__main__":
    main()
