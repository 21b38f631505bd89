"""Rows of the sketching study: what is drawn agrees with the formulas beside it."""

import numpy as np
import pytest
import torch
from replicates import of_seeds

from lthlib import data
from lthlib.errors import InputError
from lthlib.finders.imp import train_dense
from lthlib.models import architecture as models
from lthlib.studies import sketching as tables
from lthlib.theory import sketching
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe

DIGITS = data.load("digits", device="cpu")


def problem():
    source = torch.Generator().manual_seed(3)
    x, y = sketching.synthetic_problem(80, 40, source)
    w0 = sketching.initial_weights((80,), 1.0, "gaussian", source)
    return x, w0, sketching.gradient_descent(x, y, w0, [100])[0]


def test_measured_errors_agree_with_their_formulas() -> None:
    rows = tables.error_rows(*problem(), densities=[0.1, 0.4], seed=0, draws=3000)
    on = rows[(rows["on"] == "w0") & rows["theory"].notna() & (rows["distribution"] != "oracle")]
    assert set(on["mask"]) == {"reweighted", "merged", "poisson"}
    assert np.allclose(on["error"], on["theory"], rtol=0.08)
    exact = rows[rows["mask"].isin(["gumbel", "top-k"])]
    assert np.allclose(exact["kept"] * 80, exact["s"])


def test_top_k_of_a_uniform_distribution_is_left_out() -> None:
    rows = tables.error_rows(*problem(), densities=[0.2], seed=0, draws=10)
    assert "top-k" not in set(rows.loc[rows["distribution"] == "uniform", "mask"])


def test_binary_masks_come_in_the_order_of_the_specification() -> None:
    rows = tables.error_rows(*problem(), densities=[0.15], seed=0, draws=400, kinds=("optimal", "uniform"))
    on = rows[rows["on"] == "w0"].set_index(["distribution", "mask"])["error"]
    best = on["optimal"]
    assert best["top-k"] < best["poisson"] < best["gumbel"] < on["uniform", "gumbel"]


def test_a_given_distribution_is_judged_like_the_others() -> None:
    x, w0, w_star = problem()
    given = {"given": sketching.distribution("optimal", x, w0)}
    rows = tables.error_rows(x, w0, w_star, [0.2], 0, masks=("top-k",), kinds=("optimal",), given=given)
    errors = rows.set_index(["distribution", "on"])["error"]
    assert errors["given", "w0"] == errors["optimal", "w0"]


def test_pixel_rows_have_slope_minus_one_and_the_formulas_constant() -> None:
    rows = tables.pixel_rows(DIGITS, [0, 1], [0.1, 0.3], examples=100, preparations=["raw"], draws=1500)
    rows = rows[(rows["mask"] == "reweighted") & (rows["on"] == "w0") & (rows["distribution"] == "optimal")]
    (slopes,) = tables.error_slopes(rows).values()
    (ratios,) = tables.ratios(rows).values()
    assert len(slopes) == len(ratios) == 2
    assert np.allclose(slopes, 0, atol=0.1)
    assert np.allclose(ratios, 1, atol=0.08)


def test_preparation_changes_the_pixels_and_labels_stay() -> None:
    raw, y = tables.pixel_problem(DIGITS, 50, "raw", 0)
    ready, same = tables.pixel_problem(DIGITS, 50, "standardised", 0)
    assert raw.shape == ready.shape == (64, 50)
    assert float(raw.min()) >= 0 and float(raw.max()) == 1
    assert torch.equal(y, same) and set(y.tolist()) == {-1.0, 1.0}
    with pytest.raises(InputError, match="examples 5000 is not between 2 and the 1200"):
        tables.pixel_problem(DIGITS, 5000, "raw", 0)


def test_masked_training_starts_and_ends_where_it_must() -> None:
    rows = tables.masked_training_rows(DIGITS, [0], [0.5], examples=60)
    fit = rows.set_index(["mask", "step"])["fit"]
    assert all(fit["none", 500] < fit[mask, 500] < fit[mask, 1] for mask in ("top-k", "gumbel", "uniform"))
    assert (rows.loc[rows["mask"] == "none", "error"] == 0).all()


def test_linearised_rows_hold_for_the_formula() -> None:
    architecture = models.architecture("lenet-8-6", DIGITS.input_shape, 10)
    dense = train_dense(of_seeds(initial_tickets(architecture, [0]), [0]), Recipe(epochs=1, evaluations=1), DIGITS)
    rows = tables.linearised_rows(dense, DIGITS, [0.3], examples=5, draws=1500)
    assert set(rows["distribution"]) == {"optimal", "magnitude", "uniform", "oracle", "gaussian_data"}
    known = rows[(rows["on"] == "w0") & rows["theory"].notna() & (rows["distribution"] != "oracle")]
    assert np.allclose(known["error"], known["theory"], rtol=0.15)


def test_synflow_of_one_linear_layer_is_the_optimal_probability() -> None:
    architecture = models.architecture("lenet-8-6", DIGITS.input_shape, 10)
    for ticket in initial_tickets(architecture, [0, 1]):
        assert tables.one_layer_identity(ticket) < 1e-15
