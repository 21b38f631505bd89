"""SubsetSumExplorer: which of n random numbers add up to a target, and how near one may hope to come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase

from lthlib.errors import InputError, unknown
from lthlib.evidence.style import BLACK, BLUE, GREY, ORANGE, RED
from lthlib.randomness import generator
from lthlib.theory.subset_sum.solve import (
    LAWS,
    MODES,
    expected_fixed_size_hits,
    predicted_failure,
    predicted_median_error,
    solve,
)
from lthlib.widgets import loaded
from lthlib.widgets.explorer import Explorer, dropdown, log_slider, slider, whole_slider
from lthlib.widgets.scene import Facts, Move

SIZE = (10.8, 3.5)
MOST = 20  # candidates
INSTANCES = 200
LOW, HIGH = 1e-8, 1.0  # errors shown
GRID = np.geomspace(LOW, HIGH, 120)


@dataclass(frozen=True)
class SubsetFacts(Facts):
    """One instance's candidates (n,), which are kept (bool), its error; errors of other instances of the same law."""

    candidates: np.ndarray
    kept: np.ndarray
    target: float
    eps: float
    error: float
    errors: np.ndarray
    predicted: np.ndarray


def candidates(n: int, instances: int, law: str, seed: int, pool: np.ndarray | None = None) -> np.ndarray:
    """Random numbers (instances, n): U[-1, 1], or products of two of them; or drawn with replacement from a `pool`.

    Raises InputError for another law without a pool.
    """
    source = generator(seed, "explorer", "subset sum", n)
    if pool is not None:
        return pool[torch.randint(len(pool), (instances, n), generator=source).numpy()]
    if law not in LAWS:
        raise unknown("law", law, LAWS)
    shape = (instances, n, 1 if law == "uniform" else 2)
    return (2 * torch.rand(shape, generator=source, dtype=torch.float64) - 1).prod(2).numpy()


@lru_cache(maxsize=256)
def _errors(n: int, target: float, mode: str, k: int, law: str) -> np.ndarray:
    return _errors_of(candidates(n, INSTANCES, law, 1_000), target, mode, k)


def _errors_of(others: np.ndarray, target: float, mode: str, k: int) -> np.ndarray:
    """Errors of instances (instances, n), in order: of the best subset, or of the best of size k."""
    chosen = {"mode": "fixed", "k": k} if mode == "fixed" else {"mode": "best"}
    return np.sort(solve(others, np.full(len(others), target), allow_empty=False, **chosen).error)


def subset_facts(
    *,
    n: int,
    eps: float,
    target: float,
    mode: str,
    k: int = 3,
    law: str = "uniform",
    seed: int = 0,
    pool: np.ndarray | None = None,
) -> SubsetFacts:
    """The subset that `subset_sum.solve` finds among n candidates, and the law of such errors over 200 instances.

    `mode` sparsest takes the fewest within `eps`, fixed exactly min(k, n); the empty subset, which at target 0 would
    win, is barred. Numbers from a `pool`, which `law` then only names, have no predicted law. Raises InputError for n
    outside 1 to 20, an eps that is not positive, and as `solve` does.
    """
    if not 1 <= n <= MOST:
        raise InputError(f"{n} candidates (valid here: 1 to {MOST})")
    if not 0 < eps < math.inf:
        raise InputError(f"tolerance {eps} is not above 0")
    k = min(k, n)
    (numbers,) = candidates(n, 1, law, seed, pool)
    subset = solve(numbers, target, mode, eps=eps, k=k, allow_empty=False)
    kept, error = subset.kept(n), float(subset.error)
    size = k if mode == "fixed" else 0
    if pool is None:
        errors = _errors(n, target, mode, size, law)
    else:
        errors = _errors_of(candidates(n, INSTANCES, law, 1_000, pool), target, mode, size)
    predicted = np.full(len(GRID), math.nan)
    if pool is None and mode != "fixed":
        predicted = np.array([predicted_failure(n, at, target, law) for at in GRID])
    elif pool is None and law == "uniform":
        # Hits are nearly a Poisson number of this mean.
        predicted = np.array([math.exp(-expected_fixed_size_hits(n, k, at, target)) for at in GRID])
    failed = int((errors > eps).sum())
    verdict = "within" if error <= eps else "not within"
    typical = (
        "" if mode == "fixed" or pool is not None else f" (predicted {predicted_median_error(n, target, law):.2g})"
    )
    readout = (
        f"{int(kept.sum())} of {n} candidates add up to {float(numbers[kept].sum()):.6g}, target {target:g}: error "
        f"{error:.2g}, {verdict} {eps:.2g}; of {INSTANCES} other draws {failed} miss it, median error "
        f"{np.median(errors):.2g}{typical}"
    )
    return SubsetFacts(readout, law, numbers, kept, target, eps, error, errors, predicted)


def walk(chosen: np.ndarray, target: float) -> np.ndarray:
    """Partial sums from 0, kept numbers in an order that stays near the target: up while below it, else down."""
    up, down = sorted(chosen[chosen > 0]), sorted(chosen[chosen <= 0], reverse=True)
    sums = [0.0]
    while up or down:
        rising = up and (sums[-1] < target or not down)
        sums.append(sums[-1] + (up.pop() if rising else down.pop()))
    return np.array(sums)


def draw_subset(figure: FigureBase, facts: SubsetFacts) -> Sequence[Move]:
    """The kept numbers as steps on the number line, and the share of draws that miss a tolerance."""
    axes = figure.add_axes((0.03, 0.17, 0.47, 0.68))
    axes.set(xlim=(-2.1, 2.1), ylim=(-1.2, 13), yticks=[], xlabel="number line")
    axes.axhline(0, color=BLACK, linewidth=1)
    axes.set_title("Candidates (grey), kept ones (blue), their partial sums")
    (target,) = axes.plot([0, 0], [-1.2, 13], color=RED, linewidth=1.2, label="target")
    (all_of,) = axes.plot([], [], "|", color=GREY, ms=16, mew=1.6)
    (chosen,) = axes.plot([], [], "|", color=BLUE, ms=22, mew=2.4, label="kept")
    (steps,) = axes.plot([], [], color=BLUE, linewidth=1.2, marker="o", ms=4, label="partial sums from 0")
    (end,) = axes.plot([], [], "o", color=ORANGE, ms=8, label="sum")
    axes.legend(loc="upper left", fontsize=8, ncols=2)

    right = figure.add_axes((0.58, 0.17, 0.41, 0.68))
    right.set(xscale="log", xlim=(LOW, HIGH), ylim=(-0.02, 1.05), yticks=[0, 0.5, 1])
    right.set_xticks([1e-8, 1e-6, 1e-4, 1e-2, 1])
    right.minorticks_off()
    right.set(xlabel="tolerance eps (log scale)", ylabel="share of draws that miss it")
    right.set_title(f"Error law, {INSTANCES} draws, {facts.background} candidates")
    (theory,) = right.plot([], [], color=BLACK, label="predicted (Poisson)")
    (measured,) = right.plot([], [], color=BLUE, drawstyle="steps-post", label="measured")
    (tolerance,) = right.plot([1, 1], [-0.02, 1.05], color=RED, linewidth=1.2, label="eps")
    (miss,) = right.plot([], [], "o", color=ORANGE, ms=8, label="this draw's error")
    right.legend(loc="lower left", fontsize=8)

    def move(now: SubsetFacts) -> Sequence[Artist]:
        kept, sums = now.candidates[now.kept], walk(now.candidates[now.kept], now.target)
        target.set_xdata([now.target, now.target])
        all_of.set_data(now.candidates, np.zeros(len(now.candidates)))
        chosen.set_data(kept, np.zeros(len(kept)))
        heights = np.linspace(0.8, max(1.6, min(10.0, len(sums))), len(sums))
        steps.set_data(sums, heights)
        end.set_data([sums[-1]], [heights[-1]])
        theory.set_data(GRID, now.predicted)
        errors = np.clip(now.errors, LOW, HIGH)
        shares = 1 - np.arange(1, len(errors) + 1) / len(errors)
        measured.set_data([LOW, *errors, HIGH], [1, *shares, 0])
        tolerance.set_xdata([now.eps, now.eps])
        miss.set_data([max(now.error, LOW)], [0])
        return (target, all_of, chosen, steps, end, theory, measured, tolerance, miss)

    return (move,)


class SubsetSumExplorer(Explorer):
    """n random candidates, a target, a tolerance: the chosen subset on the number line and the law of its error.

    `weights` by name (tensors of any shape): more laws to draw candidates from, such as the layers of a network, each
    scaled to a largest magnitude of 1.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        self.pools = {name: _pool(name, values) for name, values in (weights or {}).items()}
        rows = {
            "n": whole_slider("candidates n", 1, MOST, 12),
            "eps": log_slider("tolerance eps", -7, -0.5, 0.01, 0.25, ".1e"),
            "target": slider("target", -1, 1, 0.5, 0.05),
            "mode": dropdown("mode", MODES),
            "k": whole_slider("size (fixed)", 1, 8, 3),
            "law": dropdown("law", (*LAWS, *self.pools)),
            "seed": whole_slider("draw", 0, 20, 0),
        }
        variants = {"n": 6}, {"n": 16}, {"n": 16, "mode": "sparsest"}
        super().__init__("Subset-sum explorer", rows, self._facts, draw_subset, SIZE, *variants)

    @classmethod
    def of_run(cls, folder: Path | str, data_dir: Path | str = "data") -> "SubsetSumExplorer":
        """The explorer with the initial weights, by layer, of a finished run's first dense network as more laws.

        Raises InputError where the folder holds no finished run or its store no dense training.
        """
        start = loaded.initial(loaded.of_run(folder, data_dir).dense[0])
        return cls({f"initial {name}": values for name, values in start.coefficients.items()})

    def _facts(self, *, law: str, **settings: Any) -> SubsetFacts:
        return subset_facts(law=law, pool=self.pools.get(law), **settings)


def _pool(name: str, weights: torch.Tensor) -> np.ndarray:
    values = weights.detach().cpu().double().reshape(-1).numpy()
    largest = float(np.abs(values).max(initial=0.0))
    if not 0 < largest < math.inf:
        raise InputError(f"weights {name!r} have the largest magnitude {largest} (valid: above 0 and finite)")
    return np.asarray(values / largest)
