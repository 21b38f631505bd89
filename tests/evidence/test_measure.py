"""Tidy rows from tickets: costs counted as stated, interpolation at equal cost, matching densities."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from replicates import of_seed, of_seeds

from lthlib import data
from lthlib.evidence import measure as tables
from lthlib.finders.controls import layerwise_shuffled, random_mask
from lthlib.models import architecture as models
from lthlib.studies.basis import difference_at_equal_cost, energy_rows, smallest_matching_density, stability_rows
from lthlib.ticket import bases_for, initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

DIGITS = data.load("digits", train_size=100, device="cpu")
NET = models.architecture("lenet-16", DIGITS.input_shape, DIGITS.classes)
SEEDS = [0, 1, 2]


def test_measure_gives_one_row_a_replicate_with_costs_and_accuracy() -> None:
    initial = initial_tickets(NET, SEEDS)
    trained = train(of_seeds(initial, SEEDS), Recipe(epochs=2, evaluations=2), DIGITS)
    rows = tables.measure(initial, trained, DIGITS, basis="canonical", round=0)
    assert list(rows["seed"]) == SEEDS
    assert (rows["density"] == 1).all()
    weights = 64 * 16 + 16 * 10
    for column in ("n_free", "n_stored", "macs", "sparse_macs"):
        assert (rows[column] == weights).all()
    assert rows["accuracy"].between(0, 100).all()
    assert (rows["early_stop_step"] >= 1).all()


def test_ideal_multiply_accumulates_count_kept_coefficients_and_transforms() -> None:
    (ticket,) = initial_tickets(NET, [0])
    kept = {name: torch.zeros_like(mask) for name, mask in ticket.masks.items()}
    kept["1.weight"][0, :5] = True
    kept["3.weight"][:2, 0] = True
    assert tables.ideal_multiply_accumulates(ticket.with_masks(kept)) == 7
    # An 8x8 image transformed along rows and along columns: 64 * (8 + 8).
    turned = ticket.in_bases(bases_for(ticket, "dct@input")).with_masks(kept)
    assert tables.ideal_multiply_accumulates(turned) == min(64 * 16, 5 + 64 * 16) + 2


def test_difference_at_equal_cost_interpolates_in_the_logarithm() -> None:
    def row(basis: str, cost: float, accuracy: float, seed: int) -> dict[str, object]:
        return {"basis": basis, "cost": cost, "accuracy": accuracy, "seed": seed, "density": 0.05}

    rows = [row("b", 1, 0, s) for s in (0, 1)] + [row("b", 100, 20, s) for s in (0, 1)]
    rows += [row("a", 10, 13, 0), row("a", 10, 9, 1), row("a", 1000, 99, 0)]
    found = difference_at_equal_cost(pd.DataFrame(rows), "cost", ("a", "b"), at_most=0.1)
    assert found == pytest.approx([3, -1])
    none = difference_at_equal_cost(pd.DataFrame(rows), "cost", ("a", "b"), at_most=0.01)
    assert all(math.isnan(value) for value in none)


def test_smallest_matching_density_stops_at_the_first_loss() -> None:
    rows = [
        {"basis": "a", "round": r, "density": d, "delta": delta + 0.01 * seed}
        for r, d, delta in ((1, 0.5, 0.0), (2, 0.25, 0.1), (3, 0.1, -2.0), (4, 0.05, 0.0))
        for seed in range(5)
    ]
    assert smallest_matching_density(pd.DataFrame(rows), margin=0.3)["a"] == 0.25
    assert math.isnan(smallest_matching_density(pd.DataFrame(rows[10:]), margin=0.3)["a"])


def test_input_share_is_a_picture_of_the_first_layer() -> None:
    initial = initial_tickets(NET, SEEDS)
    kept = {name: mask.clone() for name, mask in initial[0].masks.items()}
    kept["1.weight"][:8, 3] = False
    share = tables.input_share([initial[0].with_masks(kept), initial[1]])
    assert share.shape == (8, 8)
    assert share[0, 3] == pytest.approx(0.75)
    convolution = models.architecture("conv-2-w2", (1, 28, 28), 10)
    assert tables.input_share(initial_tickets(convolution, [0])).shape == (3, 3)


def test_stability_rows_compare_every_pair_with_chance() -> None:
    masked = [random_mask(of_seed(t, s)) for t, s in zip(initial_tickets(NET, SEEDS), SEEDS, strict=True)]
    masked = [layerwise_shuffled(of_seed(ticket, seed)) for ticket, seed in zip(masked, SEEDS, strict=True)]
    rows = stability_rows(of_seeds(masked, SEEDS))
    assert len(rows) == 3 * 2
    assert (rows["chance"] == 1).all()
    assert (rows["jaccard"] == 1).all()


def test_energy_rows_end_at_all_the_energy() -> None:
    rows = energy_rows({0: {"w": torch.tensor([3.0, 4.0])}}, points=5)
    assert np.allclose(rows[["fraction", "energy"]].to_numpy()[-1], [1, 1])
    assert rows["energy"].iloc[0] == pytest.approx(16 / 25)
