"""Broken lines have the errors that theory gives them; bad functions are named."""

import math

import numpy as np
import pytest

from lthlib.errors import InputError
from lthlib.theory.universal import piecewise_linear as lines
from lthlib.theory.universal.piecewise_linear import UnivariateFunction, decay, knots, line_error, minus_log, sine


def test_uniform_bounds_are_the_specified_ones() -> None:
    # h^2 max|f''| / 8 with 10, 40 and 21 pieces, as in the specification
    assert lines.uniform_bound(minus_log(), 10) == pytest.approx(1.25e-3, rel=0.01)
    assert lines.uniform_bound(decay(4, 0.07), 40) == pytest.approx(6.3e-4, rel=0.01)
    assert lines.uniform_bound(sine(), 21) == pytest.approx(1.12e-2, rel=0.01)
    for function in (minus_log(), decay(), sine()):
        for pieces in (7, 21):
            error = line_error(function, knots(function, pieces, "uniform"), "interpolated")
            assert error <= lines.uniform_bound(function, pieces) * (1 + 1e-9)


def test_equidistributed_rates_are_the_specified_ones() -> None:
    rates = [lines.equidistributed_rate(function, 1) for function in (minus_log(), decay(4, 0), sine())]
    assert rates == pytest.approx([0.060, 0.281, 2.87], rel=0.01)


@pytest.mark.parametrize("function", [decay(), sine()], ids=lambda function: function.name)
@pytest.mark.parametrize("placement", lines.PLACEMENTS)
@pytest.mark.parametrize("values", lines.VALUES)
def test_errors_fall_with_the_square_of_the_pieces(function: UnivariateFunction, placement: str, values: str) -> None:
    pieces = np.array([16, 32, 64, 128])
    errors = [line_error(function, knots(function, n, placement), values) for n in pieces]
    assert np.polyfit(np.log(pieces), np.log(errors), 1)[0] == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize(
    ("pieces", "placement", "values", "padding", "published"),
    [
        ((10, 40), "uniform", "interpolated", 0.07, (5.9e-4, 6.2e-4, 9.1e-4, 1.10e-3)),
        ((20, 40), "uniform", "interpolated", 0.07, (5.7e-4, 5.6e-4, 4.5e-4, 5.6e-4)),
        ((16, 24), "equidistributed", "interpolated", 0.0, (5.0e-4, 5.0e-4, 4.9e-4, 4.9e-4)),
        ((10, 40), "equidistributed", "shifted", 0.0, (4.4e-4, 5.0e-4, 4.8e-4, 4.9e-4)),
        ((11, 30), "equidistributed", "shifted", 0.0, (4.7e-4, 4.6e-4, 4.8e-4, 4.8e-4)),
        ((16, 20), "equidistributed", "shifted", 0.0, (4.9e-4, 5.1e-4, 5.1e-4, 5.1e-4)),
        ((14, 18), "equidistributed", "shifted", 0.0, (6.2e-4, 5.9e-4, 6.4e-4, 6.4e-4)),
    ],
)
def test_powers_in_exact_arithmetic(
    pieces: tuple[int, int], placement: str, values: str, padding: float, published: tuple[float, ...]
) -> None:
    log_knots = knots(minus_log(4), pieces[0], placement)
    exp_knots = knots(decay(4, padding), pieces[1], placement)
    errors = lines.power_errors(log_knots, exp_knots, [1, 2, 3, 4], values)
    assert errors.max() == pytest.approx(max(published), rel=0.05)
    # where knots are free their details differ: single powers agree less closely than the largest error
    assert errors == pytest.approx(published, rel=0.02 if placement == "uniform" else 0.08)


def test_sine_in_exact_arithmetic() -> None:
    assert line_error(sine(), knots(sine(), 21, "uniform"), "interpolated") == pytest.approx(1.114e-2, rel=0.01)
    errors = [line_error(sine(), knots(sine(), pieces)) for pieces in (13, 16, 21)]
    assert errors == pytest.approx([1.08e-2, 9.6e-3, 4.1e-3], rel=0.05)


def test_sawtooth_errors_and_parameters() -> None:
    t = np.linspace(0, 1, 4097)
    for levels in (1, 3, 6):
        assert np.abs(lines.sawtooth_square(t, levels) - t**2).max() == pytest.approx(4.0 ** -(levels + 1), rel=1e-3)
    x, y = np.meshgrid(t[::64], t[::64])
    assert np.abs(lines.sawtooth_product(x, y, 5) - x * y).max() <= 3 * 4.0**-6
    counts = [lines.sawtooth_parameters(levels) for levels in (1, 2, 3)]
    assert counts == [10, 25, 40]


def test_knots_without_a_second_derivative_or_curvature() -> None:
    kink = UnivariateFunction("kink", lambda t: np.abs(t - 0.5), (0.0, 1.0))
    at = knots(kink, 6)
    assert (np.diff(at) > 0).all()
    assert line_error(kink, at, "interpolated") < 0.02
    flat = UnivariateFunction("flat", lambda t: 2 * t, (0.0, 1.0))
    assert knots(flat, 4) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (UnivariateFunction("f", lambda t: np.where(t > 0.5, np.nan, t), (0.0, 1.0)), "f is NaN at t = 0.5"),
        (UnivariateFunction("f", lambda t: 1 / t, (0.0, 1.0)), r"f is unbounded \(inf\) at t = 0"),
        (UnivariateFunction("f", lambda t: 1 / (t - 0.3), (0.0, 1.0)), "f is unbounded"),
        (UnivariateFunction("f", np.sin, (-1.0, 1.0)), "reaches below 0.*shift the input"),
        (UnivariateFunction("f", np.sin, (1.0, 1.0)), "is no interval"),
        (UnivariateFunction("f", np.sin, (0.0, math.inf)), "is no interval"),
        (UnivariateFunction("f", lambda t: t[:3], (0.0, 1.0)), "valid: elementwise functions"),
    ],
)
def test_bad_functions_are_named(function: UnivariateFunction, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lines.checked(function, lowest=0.0)


def test_bad_choices_are_named() -> None:
    with pytest.raises(InputError, match="unknown placement of knots 'equal'"):
        knots(sine(), 3, "equal")
    with pytest.raises(InputError, match="pieces is 0"):
        knots(sine(), 0)
    with pytest.raises(InputError, match="unknown values at the knots"):
        lines.values_at(sine(), np.array([0.0, 1.0]), "free")
    with pytest.raises(InputError, match="second derivative"):
        lines.uniform_bound(UnivariateFunction("f", np.sin, (0.0, 1.0)), 3)
