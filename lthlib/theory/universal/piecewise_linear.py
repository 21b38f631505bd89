r"""Univariate functions as broken lines: where to put the knots, which values to give them, and what error is left.

A broken line of N pieces on [a, b] is N ReLU units and a constant, $f(t)\approx c+\sum_i w_i\,\sigma(t-t_i)$. Uniform
knots leave an error of at most $h^2\max|f''|/8$; knots that equidistribute $\sqrt{|f''|}$ leave about
$(\int\sqrt{|f''|})^2/(8N^2)$; values shifted by half the error between knots halve either. All in float64 and exact up
to rounding: what pruning adds is measured in `theory.universal`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lthlib.errors import InputError, unknown
from lthlib.theory.arrays import Array

Map = Callable[[Array], Array]

GRID = 10_001  # points at which a supremum is taken, and the knots beside
LARGEST = 1e6  # a function beyond it is taken for unbounded
PLACEMENTS = ("equidistributed", "uniform")
VALUES = ("shifted", "interpolated")


@dataclass(frozen=True)
class UnivariateFunction:
    """A function of one variable on a domain [a, b], `value` and `curvature` (its second derivative) elementwise.

    `weight` says how much an error at t matters (1 without it). Without `curvature`, second differences stand in.
    """

    name: str
    value: Map
    domain: tuple[float, float]
    curvature: Map | None = None
    weight: Map | None = None

    def grid(self, points: int = GRID) -> Array:
        """Equally spaced points of the domain, both ends included."""
        return np.linspace(*self.domain, points)

    def __call__(self, t: Array) -> Array:
        """The function's values, float64, in the shape of t."""
        return np.asarray(self.value(np.asarray(t, float)), float)

    def importance(self, t: Array) -> Array:
        """The weight of an error at t, in the shape of t."""
        return np.ones_like(t) if self.weight is None else np.asarray(self.weight(t), float)


def checked(function: UnivariateFunction, lowest: float = -math.inf) -> UnivariateFunction:
    """The function itself, if its domain is an interval from `lowest` on and it is finite and bounded there.

    Raises InputError otherwise, naming the point.
    """
    a, b = function.domain
    if not (math.isfinite(a) and math.isfinite(b) and a < b):
        raise InputError(f"domain [{a}, {b}] of {function.name} is no interval (valid: finite ends, the lower first)")
    if a < lowest:
        raise InputError(
            f"the domain [{a}, {b}] of {function.name} reaches below {lowest:g}, where the block's units are dead "
            f"(valid: ends of {lowest:g} or more; shift the input)"
        )
    t = function.grid()
    with np.errstate(all="ignore"):
        values = function(t)
    if values.shape != t.shape:
        raise InputError(f"{function.name} maps shape {t.shape} to {values.shape} (valid: elementwise functions)")
    wrong = np.flatnonzero(~(np.abs(values) <= LARGEST))
    if len(wrong):
        value, at = values[wrong[0]], t[wrong[0]]
        kind = "NaN" if np.isnan(value) else f"unbounded ({value:g})"
        raise InputError(
            f"{function.name} is {kind} at t = {at:g} (valid: magnitudes to {LARGEST:g} on [{a:g}, {b:g}])"
        )
    return function


# --- the functions of Burkholz et al. (ICLR 2022), in coordinates in which every layer's values are positive ---


def minus_log(degree: int = 1) -> UnivariateFunction:
    r"""$-\ln\frac{1+x}{2}$ on [0, 1], its errors weighted by $\max_{r\le R} r y^r$, $y=(1+x)/2$, R = `degree`.

    That weight is what an error of the logarithm does to $y^r$ at most (the release's g_1 with its sign turned).
    """
    _positive(degree, "degree")
    powers = range(1, degree + 1)
    return UnivariateFunction(
        "-log((1+x)/2)",
        lambda x: -np.log((1 + x) / 2),
        (0.0, 1.0),
        lambda x: 1 / (1 + x) ** 2,
        lambda x: np.max([r * ((1 + x) / 2) ** r for r in powers], axis=0),
    )


def decay(degree: float = 4, padding: float = 0.02) -> UnivariateFunction:
    r"""$e^{-u}$ on $[0, R\ln 2+\text{padding}]$, R = `degree`; the padding is room for errors of the exponent."""
    if not (degree > 0 and padding >= 0):
        raise InputError(f"degree {degree} and padding {padding} give no domain (valid: above 0, and 0 or more)")
    return UnivariateFunction(
        "exp(-u)", lambda u: np.exp(-u), (0.0, degree * math.log(2) + padding), lambda u: np.exp(-u)
    )


def sine(periods: float = 1.0) -> UnivariateFunction:
    r"""$\sin 2\pi u$ on [0, `periods`]."""
    if not 0 < periods <= 1000:
        raise InputError(f"a sine over {periods} periods is no domain (valid: above 0, at most 1000)")
    turn = 2 * math.pi
    return UnivariateFunction(
        "sin(2 pi u)", lambda u: np.sin(turn * u), (0.0, float(periods)), lambda u: -(turn**2) * np.sin(turn * u)
    )


# --- knots, values, errors ---


def knots(function: UnivariateFunction, pieces: int, placement: str = "equidistributed") -> Array:
    """`pieces` + 1 increasing knots from one end of the domain to the other, float64.

    "uniform", or "equidistributed": equal shares of the integral of sqrt(weight * |f''|). Raises InputError for an
    unknown placement or fewer than one piece.
    """
    if placement not in PLACEMENTS:
        raise unknown("placement of knots", placement, PLACEMENTS)
    _positive(pieces, "pieces")
    if placement == "uniform":
        return function.grid(pieces + 1)
    t = function.grid()
    if function.curvature is None:
        step = t[1] - t[0]
        values = function(t)
        second = np.abs(np.diff(values, 2))
        # what rounding leaves of a straight line is no curvature
        middle = np.where(second > 1e-13 * np.abs(values).max(), second, 0.0) / step**2
        bend = np.concatenate([middle[:1], middle, middle[-1:]])
    else:
        bend = np.abs(function.curvature(t))
    density = np.sqrt(bend * function.importance(t))
    # a straight stretch still needs its pieces' ends in order
    density = density + 1e-6 * (density.max() or 1.0)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    places = np.interp(np.linspace(0, mass[-1], pieces + 1), mass, t)
    places[[0, -1]] = function.domain
    return places


def values_at(function: UnivariateFunction, at: Array, values: str = "shifted") -> Array:
    """Values of the broken line at its knots `at` (N + 1, increasing): the function's own ("interpolated"), or
    "shifted" by half the error in the middle of the adjoining pieces (their mean inside), which halves the supremum."""
    if values not in VALUES:
        raise unknown("values at the knots", values, VALUES)
    exact = function(at)
    if values == "interpolated":
        return exact
    middle = function((at[1:] + at[:-1]) / 2) - (exact[1:] + exact[:-1]) / 2
    return exact + (np.concatenate([middle[:1], middle]) + np.concatenate([middle, middle[-1:]])) / 4


def sup_error(
    function: UnivariateFunction, approximation: Map, extra: Array | None = None, points: int = GRID
) -> float:
    """The largest |approximation - function| over `points` equally spaced points and the `extra` ones inside."""
    t = function.grid(points)
    if extra is not None:
        a, b = function.domain
        t = np.concatenate([t, extra[(extra >= a) & (extra <= b)]])
    return float(np.abs(approximation(t) - function(t)).max())


def line_error(function: UnivariateFunction, at: Array, values: str = "shifted") -> float:
    """The supremum error of the broken line through `at`: the floor of whatever is built on those knots."""
    heights = values_at(function, at, values)
    return sup_error(function, lambda t: np.interp(t, at, heights), at)


def uniform_bound(function: UnivariateFunction, pieces: int) -> float:
    """h^2 max|f''| / 8, the bound for uniform knots and interpolated values."""
    _positive(pieces, "pieces")
    if function.curvature is None:
        raise InputError(f"the bound needs the second derivative of {function.name} (valid: a function with curvature)")
    a, b = function.domain
    return ((b - a) / pieces) ** 2 / 8 * float(np.abs(function.curvature(function.grid())).max())


def equidistributed_rate(function: UnivariateFunction, pieces: int) -> float:
    """(integral of sqrt|f''|)^2 / (8 N^2): what equidistributed knots, interpolated, come to for many pieces."""
    _positive(pieces, "pieces")
    if function.curvature is None:
        raise InputError(f"the rate needs the second derivative of {function.name} (valid: a function with curvature)")
    t = function.grid()
    return float(np.trapezoid(np.sqrt(np.abs(function.curvature(t))), t)) ** 2 / (8 * pieces**2)


def power_errors(log_knots: Array, exp_knots: Array, degrees: Sequence[int], values: str = "shifted") -> Array:
    r"""Supremum errors of $\exp(-r\,v(x))$ against $((1+x)/2)^r$ on [0, 1] for each r, by broken lines for both maps.

    Exact arithmetic: no subset sums, no rounding of exponents. `log_knots` lie on [0, 1], `exp_knots` from 0 on.
    """
    x = np.linspace(0, 1, GRID)
    log_values = values_at(minus_log(), log_knots, values)
    exp_values = values_at(decay(), exp_knots, values)
    v = np.interp(x, log_knots, log_values)
    errors = [np.interp(r * v, exp_knots, exp_values) - ((1 + x) / 2) ** r for r in degrees]
    return np.array([float(np.abs(error).max()) for error in errors])


# --- comparison arm: products through sawtooth functions ---


def sawtooth_square(t: Array, levels: int) -> Array:
    r"""$t^2$ on [0, 1] as $t-\sum_{s\le m} g_s(t)/4^s$, $g_s$ the tent map s times over; the error is $4^{-m-1}$.

    Yarotsky (Neural Networks 94, 2017), Proposition 2, after Telgarsky (2015). Not part of the universal tickets'
    release; its depth grows with accuracy, its number of parameters only as log(1 / error).
    """
    _positive(levels, "levels")
    t = np.asarray(t, float)
    tent, total = t, t.copy()
    for s in range(1, levels + 1):
        tent = 2 * np.maximum(tent, 0) - 4 * np.maximum(tent - 0.5, 0) + 2 * np.maximum(tent - 1, 0)
        total = total - tent / 4.0**s
    return total


def sawtooth_parameters(levels: int) -> int:
    """Nonzero weights and biases of the ReLU network that computes `sawtooth_square`.

    Level 1 has three tent units (3 weights, 2 biases) and the running total (1); each further level has the units (9
    weights, 2 biases) and the total, which reads the tent and itself (4); the output reads the total and a tent (4).
    """
    _positive(levels, "levels")
    return 6 + 15 * (levels - 1) + 4


def sawtooth_product(x: Array, y: Array, levels: int) -> Array:
    r"""$xy=2\left(\frac{x+y}{2}\right)^2-\frac{x^2+y^2}{2}$ on [0, 1]^2, error at most $3\cdot 4^{-m-1}$."""
    half = sawtooth_square((np.asarray(x, float) + np.asarray(y, float)) / 2, levels)
    return 2 * half - (sawtooth_square(x, levels) + sawtooth_square(y, levels)) / 2


def _positive(value: int, what: str) -> None:
    if not (isinstance(value, int | np.integer) and value >= 1):
        raise InputError(f"{what} is {value} (valid: whole numbers from 1)")
