"""SketchExplorer: a mask drawn by scores as the sketch of a product, its error beside the theory's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase
from torch import Tensor

from lthlib import data
from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.evidence.intervals import mean_interval
from lthlib.evidence.style import BLACK, BLUE, GREY
from lthlib.randomness import generator
from lthlib.theory import sketching
from lthlib.widgets import loaded
from lthlib.widgets.explorer import Explorer, dropdown, slider, whole_slider
from lthlib.widgets.scene import Facts, Move, picture

SIZE = (10.8, 3.5)
DRAWS = 300
SAMPLERS = (
    "with replacement, reweighted", "with replacement, binary", "poisson, reweighted", "poisson, binary",
    "gumbel, exact count", "top-k",
)  # fmt: skip
DENSITIES = np.geomspace(0.03, 1, 14)
LOW, HIGH = 1e-3, 30.0  # relative errors shown


@dataclass(frozen=True, eq=False)
class Problem:
    """X (d, n) float64 on the CPU, initial weights w (d,), trained ones w_star, and how to show d features: (h, w)."""

    name: str
    x: Tensor
    w: Tensor
    w_star: Tensor
    shape: tuple[int, int]


@dataclass(frozen=True)
class SketchFacts(Facts):
    """Relative errors of `DRAWS` masks at one setting, and what theory expects at all densities (NaN: no formula)."""

    density: float
    errors: np.ndarray
    mean: tuple[float, float, float]
    theory: np.ndarray
    best: np.ndarray
    p: np.ndarray
    mask: np.ndarray


def digits_problem(dataset: Dataset | None = None, seed: int = 0, examples: int = 600) -> Problem:
    """Pixels of a data set's training images (first channel), Gaussian initial weights, target: class 0 or not."""
    dataset = data.load("digits") if dataset is None else dataset
    images = dataset.normalised("train")[:examples, 0].double()
    x = images.flatten(1).T.contiguous()
    y = torch.where(dataset.train.labels[:examples] == 0, 1.0, -1.0).double()
    return _problem(f"pixels of {dataset.label}", x, y, seed, (images.shape[1], images.shape[2]))


@cache
def synthetic(seed: int = 0) -> Problem:
    """64 Gaussian features of unequal scale, 600 examples, a random linear target."""
    x, y = sketching.synthetic_problem(64, 600, generator(seed, "explorer", "synthetic"))
    return _problem("synthetic features", x, y, seed, (8, 8))


def _problem(name: str, x: Tensor, y: Tensor, seed: int, shape: tuple[int, int]) -> Problem:
    source = generator(seed, "explorer", "sketch weights")
    w = sketching.initial_weights((len(x),), 1 / math.sqrt(len(x)), "gaussian", source)
    (w_star,) = sketching.gradient_descent(x, y, w, [200])
    return Problem(name, x, w, w_star, shape)


def probabilities(problem: Problem, score: str, tau: float) -> Tensor:
    """p ~ score^tau, shaped as w; tau 0 is uniform. Raises InputError for a negative tau and unknown scores."""
    if not 0 <= tau < math.inf:
        raise InputError(f"tau {tau} is not 0 or more")
    source = generator(0, "explorer", "gaussian data")
    p = sketching.distribution(score, problem.x, problem.w, w_star=problem.w_star, generator=source)
    powers = torch.where(p > 0, p / p.max(), 0.0) ** tau if tau else torch.ones_like(p)
    return powers / powers.sum()


def expected(problem: Problem, p: Tensor, sampler: str, count: int) -> float | None:
    """The expected relative error of a sampler at a count, by `theory.sketching`; None where no formula is known."""
    x, w = problem.x, problem.w
    if sampler.startswith("with replacement"):
        formula = sketching.expected_error if sampler.endswith("reweighted") else sketching.merged_error
        error = formula(x, w, p, count)
    elif sampler.startswith("poisson"):
        pi = sketching.poisson_probabilities(p, min(count, int((p > 0).sum())))
        error = sketching.poisson_error(x, w, pi, reweight=sampler.endswith("reweighted"))
    elif sampler == "top-k":
        return float(sketching.relative_error(x, w, sketching.top_mask(p, count)))
    else:
        return None
    return error / float((x.T @ w).square().sum())


@lru_cache(maxsize=64)
def _curve(problem: Problem, score: str, sampler: str, tau: float) -> np.ndarray:
    """The `expected` errors at `DENSITIES` (NaN: no formula), which most controls leave alone."""
    p = probabilities(problem, score, tau)
    return np.array([expected(problem, p, sampler, max(1, round(at * len(p)))) for at in DENSITIES], float)


def drawn(problem: Problem, p: Tensor, sampler: str, count: int, seed: int) -> Tensor:
    """Masks (draws, d) of a sampler; one for top-k. Raises InputError for an unknown sampler."""
    source = generator(seed, "explorer", "masks")
    positive = int((p > 0).sum())
    if sampler.startswith("with replacement"):
        return sketching.sketch_masks(p, count, DRAWS, source, reweight=sampler.endswith("reweighted"))
    if sampler.startswith("poisson"):
        pi = sketching.poisson_probabilities(p, min(count, positive))
        return sketching.poisson_masks(pi, DRAWS, source, reweight=sampler.endswith("reweighted"))
    if sampler.startswith("gumbel"):
        return sketching.gumbel_masks(p, min(count, positive), DRAWS, source)
    if sampler == "top-k":
        return sketching.top_mask(p, count)[None]
    raise unknown("sampler", sampler, SAMPLERS)


def sketch_facts(
    problem: Problem, *, score: str, sampler: str, tau: float, density: float, seed: int = 0
) -> SketchFacts:
    """Errors of masks drawn from score^tau, relative to keeping nothing, beside their expectation.

    `density` is the number of draws (with replacement) or of kept weights over d. Raises InputError as its parts do,
    and for a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise InputError(f"density {density} is not in (0, 1]")
    x, w = problem.x, problem.w
    size = len(w)
    p = probabilities(problem, score, tau)
    masks = drawn(problem, p, sampler, max(1, round(density * size)), seed)
    errors = sketching.relative_error(x, w, masks).numpy()
    theory = expected(problem, p, sampler, max(1, round(density * size)))
    interval = mean_interval(errors) if len(errors) > 1 else None
    measured = (
        f"mean {interval.estimate:.3g} (95 % CI {interval.low:.3g} to {interval.high:.3g}, n = {interval.n} draws)"
        if interval
        else f"{errors[0]:.3g} (no draw, one mask)"
    )
    kept = float((masks > 0).sum(1).double().mean())
    readout = (
        f"{problem.name}: {kept:.3g} of {size} weights kept (density {100 * kept / size:.3g} %); "
        f"relative error: {measured}; "
        + (f"theory {theory:.3g}" if theory is not None else "theory: no closed form for this sampler")
    )
    low, high = (interval.low, interval.high) if interval else (float(errors[0]), float(errors[0]))
    return SketchFacts(
        readout=readout,
        background=problem.name,
        density=density,
        errors=errors,
        mean=(float(errors.mean()), low, high),
        theory=_curve(problem, score, sampler, tau),
        best=_curve(problem, "optimal", SAMPLERS[2], 1.0),
        p=p.numpy().reshape(problem.shape),
        mask=masks[0].numpy().reshape(problem.shape),
    )


def draw_sketch(figure: FigureBase, facts: SketchFacts) -> Sequence[Move]:
    """Probabilities, one mask, error against density with theory, and the histogram of errors."""
    p = picture(figure, (0.01, 0.1, 0.14, 0.7), "probability", facts.p)
    mask = picture(figure, (0.17, 0.1, 0.14, 0.7), "one mask", facts.mask)

    axes = figure.add_axes((0.385, 0.17, 0.31, 0.66))
    axes.set(xscale="log", yscale="log", xlim=(0.027, 1.1), ylim=(LOW, HIGH))
    axes.set_xticks([0.03, 0.1, 0.3, 1], ["3", "10", "30", "100"])
    axes.minorticks_off()
    axes.set(xlabel="draws or kept weights, % of all (log)", ylabel="relative squared error")
    axes.set_title(f"Error, {facts.background}")
    (optimal,) = axes.plot(DENSITIES, facts.best, color=GREY, linestyle=":", label="best score (Poisson, 1/pi)")
    (theory,) = axes.plot(DENSITIES, facts.best, color=BLACK, label="theory, expected")
    (bar,) = axes.plot([], [], color=BLUE, linewidth=2)
    (dot,) = axes.plot([], [], "o", color=BLUE, label="measured, 95 % CI")
    axes.legend(loc="lower left", fontsize=8)

    right = figure.add_axes((0.765, 0.17, 0.225, 0.66))
    right.set(xscale="log", xlim=(LOW, HIGH), ylim=(0, 0.4), xlabel="relative squared error", yticks=[0, 0.2, 0.4])
    right.minorticks_off()
    right.set_title(f"{DRAWS} draws")
    (steps,) = right.step([1], [0], where="mid", color=BLUE)
    (mean,) = right.plot([1, 1], [0, 0.4], color=BLUE, linestyle="--", linewidth=1)
    edges = np.geomspace(LOW, HIGH, 31)

    def move(now: SketchFacts) -> Sequence[Artist]:
        p.set_data(now.p)
        p.set_clim(0, float(now.p.max()))
        mask.set_data(now.mask)
        mask.set_clim(0, max(float(now.mask.max()), 1e-12))
        optimal.set_ydata(now.best)
        theory.set_ydata(now.theory)
        middle_error, low, high = np.clip(now.mean, LOW, HIGH)
        dot.set_data([now.density], [middle_error])
        bar.set_data([now.density] * 2, [low, high])
        counts = np.histogram(np.clip(now.errors, LOW, HIGH * 0.999), edges)[0] / len(now.errors)
        steps.set_data(np.sqrt(edges[1:] * edges[:-1]), np.minimum(counts, 0.4))
        mean.set_xdata([middle_error, middle_error])
        return (p, mask, optimal, theory, bar, dot, steps, mean)

    return (move,)


class SketchExplorer(Explorer):
    """Which score, which sampler, which temperature: one linear layer's mask as a sketch of its output.

    `problems` by name; with nothing given, pixels of the bundled digits and synthetic features. Black is what
    theory expects, blue what `DRAWS` masks gave; 1 is the error of keeping nothing.
    """

    def __init__(self, *problems: Problem) -> None:
        listed = problems or (digits_problem(), synthetic())
        self.problems = {problem.name: problem for problem in listed}
        rows = {
            "problem": dropdown("features", list(self.problems)),
            "score": dropdown("score", sketching.DISTRIBUTIONS),
            "sampler": dropdown("sampler", SAMPLERS),
            "tau": slider("tau", 0, 3, 1.0, 0.1),
            "density": slider("density", 0.03, 1, 0.25, 0.01),
            "seed": whole_slider("draw", 0, 20, 0),
        }
        half = {"score": "magnitude", "sampler": "poisson, reweighted", "density": 0.5}
        variants = {"score": "uniform"}, {"score": "optimal"}, half
        super().__init__("Sketch explorer", rows, self._facts, draw_sketch, SIZE, *variants)

    @classmethod
    def of_run(cls, folder: Path | str, data_dir: Path | str = "data") -> "SketchExplorer":
        """The explorer on the images of a finished run's data set, results/<profile>/<notebook>.

        Raises InputError where the folder holds no finished run, or its data are not in `data_dir`.
        """
        dataset, _ = loaded.data_of_run(folder, data_dir)
        return cls(digits_problem(dataset), synthetic())

    def _facts(self, *, problem: str, **settings: Any) -> SketchFacts:
        if problem not in self.problems:
            raise unknown("problem", problem, self.problems)
        return sketch_facts(self.problems[problem], **settings)
