"""Subset sums: solves a second by n, and the experiment of Pensia et al. (NeurIPS 2020) on a 784-500-10 network.

The network is trained here, on MNIST. "emulated" is the experiment as published, each sum of candidates U[smallest,
largest weight] written into a network of the target's shape; "real" is a masked random source of two layers a layer,
21 products a weight and sign, whose accuracy is that of its own forward pass.

The figure beside the best-subset rates is the plain way: merge-doubling and two pointers, one instance at a time,
compiled by numba on as many threads. For scale, itertools and scipy's solver are timed on a few instances.
"""

import itertools
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import njit
from numba.core import config
from reporting import Row, parser, report, timing

from lthlib import data
from lthlib.models import architecture as models
from lthlib.models.initial import initial_state
from lthlib.theory.strong.construct import construct
from lthlib.theory.strong.search import SubsetSearch
from lthlib.theory.subset_sum.solve import Solution, empirical_constant, solve
from lthlib.ticket import Ticket, dense_ticket
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate, train

EPS = 0.01
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


SIZES = ((10, 200_000), (15, 200_000), (18, 60_000), (20, 40_000), (21, 30_000), (24, 8_000), (30, 600))


def rates(rows: list[Row], repeats: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Solves a second, by n and mode."""
    rng = np.random.default_rng(0)
    for n, count in sizes:
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


def trained(dataset: str, folder: Path, model: str, epochs: float, file: Path) -> None:
    """Trains the target network and saves its ticket; in a process of its own, whose memory is not the task's."""
    images = data.load(dataset, folder)
    start = models.architecture(model, images.input_shape, images.classes)
    initial = dense_ticket(start, initial_state(start, 0))
    recipe = Recipe(learning_rate=0.1, batch_size=128, epochs=epochs, evaluations=1)
    (run,) = train([initial], recipe, images)
    run.ticket.save(file)


def pensia(
    rows: list[Row], name: str, layers: list[np.ndarray], bounds: tuple[float, float], repeats: int
) -> dict[str, list[Solution]]:
    """The task as published: n = 3 round(log2(1 / eps)) = 21 candidates a weight, U[bounds]."""
    rng = np.random.default_rng(1)
    own = [rng.uniform(*bounds, (*layer.shape, 21)) for layer in layers]
    shared = [rng.uniform(*bounds, (len(layer), 21)) for layer in layers]
    total = sum(layer.size for layer in layers)
    rows.append(Row(f"{name}: weights of the source, 21 a weight", float(21 * total), "weights"))
    solved: list[Solution] = []
    sums: dict[str, list[np.ndarray]] = {}

    def run(candidates: list[np.ndarray], mode: str, allow_empty: bool = True) -> None:
        solved[:] = [
            solve(a, layer, mode, eps=EPS, allow_empty=allow_empty) for a, layer in zip(candidates, layers, strict=True)
        ]

    for label, candidates, mode, allow_empty, goal, most in (
        ("best, own candidates", own, "best", True, "<= 10", None),
        ("best, shared by a row", shared, "best", True, "<= 3", None),
        ("sparsest, own", own, "sparsest", True, "<= 1", None),
        ("sparsest, own, not empty", own, "sparsest", False, "<= 1", "<= 2"),
        ("sparsest, shared by a row", shared, "sparsest", True, "<= 1", None),
    ):
        seconds = timing(lambda c=candidates, m=mode, e=allow_empty: run(c, m, e), repeats)
        kept = sum(int(solution.size.sum()) for solution in solved)
        failed = sum(int((~solution.reached(EPS)).sum()) for solution in solved)
        task = f"{name}: {label}"
        rows += [
            Row(task, seconds.wall, "s", goal=goal),
            Row(f"{task}, CPU", seconds.cpu, "s"),
            Row(f"{task}, kept a weight", kept / total, "candidates", goal=most if "U[-1" not in name else None),
            Row(f"{task}, above eps", float(failed), "weights"),
        ]
        if mode == "best" and total == 397_000:
            rows.append(Row(f"{task}, published / ours", PUBLISHED_SECONDS / seconds.wall, "times"))
        sums[label] = [
            (np.broadcast_to(a if a.ndim == 3 else a[:, None], (*layer.shape, 21)) * one.kept(21)).sum(axis=2)
            for a, layer, one in zip(candidates, layers, solved, strict=True)
        ]
    return sums


def accuracies(rows: list[Row], name: str, target: Ticket, images: data.Dataset, sums: dict) -> float:
    """Test accuracy of the target and of the networks of the target's shape that hold the sums."""
    import torch

    names = list(target.masks)
    emulated = {
        label: dense_ticket(
            target.architecture,
            {**target.rest, **{n: torch.from_numpy(w).float() for n, w in zip(names, weights, strict=True)}},
        )
        for label, weights in sums.items()
    }
    exact, *others = evaluate([target, *emulated.values()], images, "test")
    rows.append(Row(f"{name}: test accuracy of the target", exact.accuracy, "%"))
    for label, found in zip(emulated, others, strict=True):
        # the cost of sparsity is stated; the best subsets shall cost nothing that 10,000 images could show
        goal = "<= 0.02" if label.startswith("best") else "<= 0.1"
        lost = exact.accuracy - found.accuracy
        rows.append(Row(f"{name}: {label}, accuracy lost, emulated", lost, "points", goal=goal))
    return exact.accuracy


def real(rows: list[Row], name: str, target: Ticket, images: data.Dataset, exact: float) -> None:
    """The masked source itself, run forwards."""
    for label, search, goal in (
        ("best", SubsetSearch(candidates=21, eps=EPS), "<= 0.02"),
        ("sparsest", SubsetSearch(candidates=21, method="sparsest", eps=EPS, allow_empty=False), "<= 0.1"),
        ("sparsest, empty allowed", SubsetSearch(candidates=21, method="sparsest", eps=EPS), None),
    ):
        start = time.perf_counter()
        found = construct(target, search)
        seconds = time.perf_counter() - start
        (test,) = evaluate([found.ticket], images, "test")
        counts = found.counts
        task = f"{name}: real ticket, {label}"
        rows += [
            Row(task, seconds, "s"),
            Row(f"{task}, solves", float(found.solves), "sums"),
            Row(f"{task}, above eps", float(found.unreached), "weights"),
            Row(f"{task}, source", counts["source"], "numbers"),
            Row(f"{task}, kept", counts["ticket"], "numbers"),
            Row(f"{task}, density", 100 * counts["density"], "%"),
            Row(f"{task}, outer weights kept a weight", counts["kept_per_weight"], "candidates"),
            Row(f"{task}, accuracy lost", exact - test.accuracy, "points", goal=goal),
        ]


def failures(rows: list[Row], draws: int) -> None:
    """n = 15, eps = .01, targets U[-1, 1]: how often no subset is near enough, and the constant that this implies."""
    rng = np.random.default_rng(3)
    for law in ("uniform", "product of two uniforms"):
        a = rng.uniform(-1, 1, (draws, 15)) * (1.0 if law == "uniform" else rng.uniform(-1, 1, (draws, 15)))
        found = solve(a, rng.uniform(-1, 1, draws), "sparsest", eps=EPS, choice="first")
        failed = float((~found.reached(EPS)).mean())
        rows += [
            Row(f"n=15, {law}: failures of {draws:,}", 100 * failed, "%"),
            Row(f"n=15, {law}: mean size where reached", float(found.size[found.reached(EPS)].mean()), "candidates"),
            Row(f"n=15, {law}: constant C", empirical_constant(15, EPS, failed), "-"),
        ]


def peak() -> float:
    """The most memory this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    arguments = parser("Subset sums: solves a second by n, and Pensia's task on a trained network.")
    arguments.add_argument("--data-dir", type=Path, default=Path("data"), help="folder with MNIST")
    arguments.add_argument("--weights", type=Path, help="a saved ticket to take as the target instead of training one")
    arguments.add_argument("--train", type=float, default=5, metavar="EPOCHS", help="epochs of the target's training")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--tiny", action="store_true", help="digits and few instances: seconds")
    arguments.add_argument("--skip-rates", action="store_true", help="only Pensia's task")
    options = arguments.parse_args()
    dataset, model = ("digits", "lenet-12") if options.tiny else ("mnist", "lenet-500")
    repeats = 1 if options.tiny else options.repeats
    rows: list[Row] = []
    start = time.perf_counter()  # compiled once, then cached on disk: NUMBA_CACHE_DIR names an empty folder to see it
    small = np.random.default_rng(0).uniform(-1, 1, (40, 10))
    solve(small, small[:, 0])
    solve(small, small[:, 0], "sparsest", eps=EPS)
    solve(small, np.repeat(small[:, :1], 20, axis=1))
    rows.append(
        Row("first call of three modes: compiling, or loading from the cache", time.perf_counter() - start, "s")
    )
    with tempfile.TemporaryDirectory() as folder:
        file = options.weights or Path(folder) / "target.safetensors"
        if options.weights is None:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
                other.submit(trained, dataset, options.data_dir, model, options.train, file).result()
        target = Ticket.load(file)
    layers = [weight.double().numpy() for weight in target.weights().values()]
    rng = np.random.default_rng(2)
    uniform = [rng.uniform(-1, 1, layer.shape) for layer in layers]
    pensia(rows, "Pensia, targets U[-1, 1]", uniform, (-1.0, 1.0), repeats)
    bounds = (min(float(layer.min()) for layer in layers), max(float(layer.max()) for layer in layers))
    name = f"Pensia, trained {model} on {dataset}"
    sums = pensia(rows, name, layers, bounds, repeats)
    rows.append(Row("peak memory of the task", peak(), "MiB", goal="<= 1536"))
    images = data.load(dataset, options.data_dir)
    exact = accuracies(rows, name, target, images, sums)
    failures(rows, 1000 if options.tiny else 100_000)
    if not options.skip_rates:
        plain(small, small[:, 0])
        rates(rows, repeats, ((10, 2000), (15, 1000)) if options.tiny else SIZES)
    real(rows, name, target, images, exact)
    rows.append(Row("peak memory with the real tickets and their forward passes", peak(), "MiB"))
    report(rows, options.json)


if __name__ == "__main__":
    main()
