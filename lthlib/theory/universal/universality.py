r"""How universal a ticket is, measured: the gap of a linear readout on functions that it was not made for.

A family F is served up to $\varepsilon$ by features b where each f in F has W, c with $\sup\lVert Wb+c-f\rVert\le
\varepsilon$. The readout is the only thing that is fitted, by a linear program (supremum) or least squares (RMS), and
its numbers are counted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lthlib.errors import InputError
from lthlib.randomness import generator
from lthlib.theory.arrays import Array
from lthlib.theory.universal.piecewise_linear import GRID

Features = Callable[[Array], Array]


@dataclass(frozen=True)
class Readout:
    """A linear readout `features @ weights + offset` (k, m) and (m,), and how it was fitted.

    `sup` and `rms` are its errors on the points of the fit; `condition` is that of the features with the constant.
    """

    weights: Array
    offset: Array
    sup: float
    rms: float
    condition: float

    @property
    def parameters(self) -> int:
        """Numbers fitted: km + m."""
        return int(self.weights.size + self.offset.size)

    @property
    def amplification(self) -> float:
        """The largest row sum of |W|: an error of the features can grow by that much."""
        return float(np.abs(self.weights).sum(axis=0).max(initial=0.0))

    def __call__(self, features: Array) -> Array:
        """The readout of features (points, k): (points, m)."""
        return np.asarray(features @ self.weights + self.offset)


def least_squares(features: Array, targets: Array, ridge: float = 0.0) -> Readout:
    """The readout of smallest squared error plus `ridge` times the mean square of the standardised weights.

    `features` (points, k) and `targets` (points, m) or (points,). Raises InputError for shapes that do not fit, numbers
    that are not finite and a negative ridge.
    """
    b, f = _checked(features, targets)
    if not 0 <= ridge < math.inf:
        raise InputError(f"a ridge of {ridge} (valid: 0 or more)")
    middle, spread = b.mean(axis=0), b.std(axis=0)
    spread = np.where(spread > 1e-12 * (1 + np.abs(middle)), spread, np.inf)  # a constant feature says nothing
    z = (b - middle) / spread
    if ridge:
        gram = z.T @ z / len(z) + ridge * np.eye(z.shape[1])
        scaled = np.linalg.solve(gram, z.T @ (f - f.mean(axis=0)) / len(z))
        condition = float(np.linalg.cond(gram)) ** 0.5
    else:
        scaled, _, _, singular = np.linalg.lstsq(z, f - f.mean(axis=0), rcond=1e-12)
        positive = singular[singular > 1e-12 * singular.max(initial=1e-300)]
        condition = float(positive.max() / positive.min()) if len(positive) else 1.0
    weights = scaled / spread[:, None]
    return _readout(b, f, weights, f.mean(axis=0) - middle @ weights, condition)


def smallest_supremum(features: Array, targets: Array) -> Readout:
    """The readout of smallest supremum error, by a linear program: minimise t with |W b + c - f| <= t at all points.

    Solved on a growing set of points (the worst are added until no point exceeds t), on orthogonal features and for
    what least squares leaves, so that its scale is 1; never worse than least squares. Several outputs are solved one
    by one. Raises InputError as `least_squares` does.
    """
    start = least_squares(features, targets)
    b, f = _checked(features, targets)
    design = np.concatenate([b, np.ones((len(b), 1))], axis=1)
    q, singular, back = np.linalg.svd(design, full_matrices=False)
    usable = singular > 1e-9 * singular[0]
    q, back = q[:, usable] * math.sqrt(len(b)), (back[usable] / singular[usable, None]).T * math.sqrt(len(b))
    weights, offset = start.weights.copy(), start.offset.copy()
    for output in range(f.shape[1]):
        rest = f[:, output] - start(b)[:, output]
        scale = float(np.abs(rest).max())
        if scale <= 1e-13 * max(1.0, float(np.abs(f[:, output]).max())):
            continue
        move = back @ _minimax(q, rest / scale) * scale
        moved = b @ (weights[:, output] + move[:-1]) + offset[output] + move[-1]
        if np.abs(moved - f[:, output]).max() < scale:
            weights[:, output] += move[:-1]
            offset[output] += move[-1]
    return _readout(b, f, weights, offset, start.condition)


def _minimax(q: Array, target: Array) -> Array:
    """Coefficients (k,) that minimise max |q w - target|, by linear programs on a growing set of points."""
    from scipy.optimize import linprog

    chosen = np.unique(np.linspace(0, len(q) - 1, min(len(q), 8 * q.shape[1] + 40)).astype(int))
    cost = np.append(np.zeros(q.shape[1]), 1.0)
    weights = np.zeros(q.shape[1])
    for _ in range(15):
        part, goal = q[chosen], target[chosen]
        ones = np.ones((len(part), 1))
        rows = np.block([[part, -ones], [-part, -ones]])
        solved = linprog(cost, A_ub=rows, b_ub=np.concatenate([goal, -goal]), bounds=(None, None), method="highs")
        if solved.status != 0:
            break
        weights, bound = solved.x[:-1], solved.x[-1]
        error = np.abs(q @ weights - target)
        if error.max() <= bound * (1 + 1e-4) + 1e-9:
            break
        worst = np.argsort(error)[-max(20, q.shape[1]) :]
        # the points where the error peaks, too: the worst ones are often neighbours
        peaks = 1 + np.flatnonzero((error[1:-1] >= error[:-2]) & (error[1:-1] >= error[2:]) & (error[1:-1] > bound))
        chosen = np.unique(np.concatenate([chosen, worst, peaks]))
    return weights


@dataclass(frozen=True)
class Gap:
    """How far a linear readout stays from the worst function of a sample: supremum and RMS, and what it costs."""

    sup: float
    rms: float
    worst: str
    readout_parameters: int
    amplification: float
    condition: float


def universality_gap(features: Features, family: Mapping[str, Callable[[Array], Array]], points: Array) -> Gap:
    """The gap of `features` (points (n, d) to (n, k)) on a sample of functions by name, on `points` (n, d).

    The supremum is by linear program, the RMS by least squares, each the worst over the sample; `readout_parameters`
    are for one function. Raises InputError for an empty sample and functions that are not finite.
    """
    if not family:
        raise InputError("a gap needs at least one function, not an empty family")
    values = features(points)
    targets = []
    for name, function in family.items():
        goal = np.asarray(function(points), float)
        if goal.shape != (len(points),) or not np.isfinite(goal).all():
            raise InputError(
                f"function {name!r} is NaN, infinite or misshapen on the points (valid: one number a point)"
            )
        targets.append(goal)
    goals = np.stack(targets, axis=1)
    program, squares = smallest_supremum(values, goals), least_squares(values, goals)
    sups = np.abs(program(values) - goals).max(axis=0)
    rms = float(np.sqrt(((squares(values) - goals) ** 2).mean(axis=0)).max())
    worst = list(family)[int(sups.argmax())]
    return Gap(float(sups.max()), rms, worst, values.shape[1] + 1, program.amplification, program.condition)


# --- families of functions on [0, 1] ---


def random_polynomials(number: int, degree: int, seed: int = 0) -> dict[str, Callable[[Array], Array]]:
    """Polynomials of x in [0, 1] with random coefficients whose absolute values add up to 1, up to `degree`."""
    drawn = _coefficients(number, degree + 1, seed, "polynomials")
    return {
        f"polynomial {i}": lambda x, c=c: np.polynomial.polynomial.polyval(x[:, 0], c)  # type: ignore[misc]
        for i, c in enumerate(drawn)
    }


def random_trigonometric(number: int, frequency: int, seed: int = 0) -> dict[str, Callable[[Array], Array]]:
    """Sums of sines and cosines of 2 pi j x, j to `frequency`, with coefficients as in `random_polynomials`."""
    drawn = _coefficients(number, 2 * frequency, seed, "trigonometric")
    turns = 2 * math.pi * np.arange(1, frequency + 1)

    def wave(x: Array, c: Array) -> Array:
        angle = x[:, :1] * turns
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1) @ c

    return {f"waves {i}": lambda x, c=c: wave(x, c) for i, c in enumerate(drawn)}  # type: ignore[misc]


def other_functions() -> dict[str, Callable[[Array], Array]]:
    """Functions outside the families: two smooth ones and one with a kink."""
    return {
        "exp(-x^2)": lambda x: np.exp(-(x[:, 0] ** 2)),
        "1/(1+x)": lambda x: 1 / (1 + x[:, 0]),
        "|x - .5|": lambda x: np.abs(x[:, 0] - 0.5),
    }


def exact_powers(degree: int) -> Features:
    """The basis that a polynomial ticket approximates: ((1+x)/2)^r, r = 1 to `degree`, of the first coordinate."""
    return lambda x: ((1 + x[:, :1]) / 2) ** np.arange(1, degree + 1)


def exact_waves(frequencies: Array, phases: Sequence[float] | Array) -> Features:
    """The basis that a Fourier ticket approximates, sin 2 pi (n_k x + c_k)."""
    return lambda x: np.sin(2 * math.pi * (x @ np.asarray(frequencies, float).T + np.asarray(phases, float)))


def random_units(seed: int, units: int) -> Features:
    """Untrained ReLU features of one coordinate, relu(w x + b), w U[-2, 2] and b U[-1, 1] as in the source."""
    source = generator(seed, "random units", units)
    w = ((2 * torch.rand(1, units, dtype=torch.float64, generator=source) - 1) * 2).numpy()
    b = (2 * torch.rand(units, dtype=torch.float64, generator=source) - 1).numpy()
    return lambda x: np.maximum(x[:, :1] @ w + b, 0.0)


def unit_grid(points: int = GRID) -> Array:
    """Equally spaced points of [0, 1], shape (points, 1)."""
    return np.linspace(0, 1, points)[:, None]


def _coefficients(number: int, size: int, seed: int, purpose: str) -> Array:
    source = generator(seed, "family", purpose)
    drawn = 2 * torch.rand(number, size, dtype=torch.float64, generator=source).numpy() - 1
    return np.asarray(drawn / np.abs(drawn).sum(axis=1, keepdims=True))


def _readout(b: Array, f: Array, weights: Array, offset: Array, condition: float) -> Readout:
    error = b @ weights + offset - f
    return Readout(weights, offset, float(np.abs(error).max()), float(np.sqrt((error**2).mean())), condition)


def _checked(features: Array, targets: Array) -> tuple[Array, Array]:
    b, f = np.asarray(features, float), np.asarray(targets, float)
    f = f[:, None] if f.ndim == 1 else f
    if b.ndim != 2 or f.ndim != 2 or len(b) != len(f) or not len(b):
        raise InputError(f"features {b.shape} and targets {f.shape} (valid: (points, k) and (points, m))")
    for what, numbers in (("features", b), ("targets", f)):
        if not np.isfinite(numbers).all():
            raise InputError(f"{what} hold NaN or infinite values (valid: finite numbers at every point)")
    return b, f
