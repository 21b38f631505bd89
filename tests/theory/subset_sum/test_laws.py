"""Experiments on random subset sums: rows that say what they claim, widths read off, laws recovered."""

import math

import numpy as np
import pandas as pd
import pytest

from lthlib.errors import InputError
from lthlib.theory.subset_sum import laws as experiments
from lthlib.theory.subset_sum.solve import binary_entropy, predicted_median_error, solve

SEEDS = [0, 1]


def test_best_rows_follow_the_law_and_repeat_themselves():
    medians, successes = experiments.best_rows([8, 12], SEEDS, 2000, [0.1, 0.01])
    again, _ = experiments.best_rows([8, 12], SEEDS, 2000, [0.1, 0.01])
    pd.testing.assert_frame_equal(medians, again)
    assert len(medians) == 2 * 2 * 2
    assert len(successes) == 2 * len(medians)
    uniform = medians[medians["law"] == "uniform"].groupby("n")["median"].mean()
    for n, median in uniform.items():
        # targets U[-1, 1] lie 10 to 20 % above the law at 0
        assert 1.0 < median / predicted_median_error(int(n)) < 1.6
    assert (
        successes.pivot_table(index=["law", "n", "seed"], columns="eps", values="success").diff(axis=1)[0.1] > 0
    ).all()


def test_first_hits_count_what_a_direct_count_counts():
    rows = experiments.first_hit_rows(12, 0.02, 3000).set_index("law")
    assert rows.loc["product", "failure"] > rows.loc["uniform", "failure"]
    assert rows[[f"size {k}" for k in range(8)]].sum(axis=1).to_numpy() == pytest.approx([1, 1], abs=0.01)
    assert rows.loc["uniform", "C"] == pytest.approx(12 / -math.log(min(0.02, rows.loc["uniform", "failure"])))


def test_the_entropy_width_solves_its_equation():
    for k in range(1, 9):
        n = experiments.entropy_width(k, 0.01)
        assert n * binary_entropy(k / n) == pytest.approx(math.log2(k / 0.01), rel=1e-6)
    ratio = experiments.entropy_ratio(pd.Series([experiments.entropy_width(3, 0.01)]), pd.Series([3]), 0.01)
    assert ratio[0] == pytest.approx(1)


def test_one_of_n_falls_as_one_over_n_and_vectors_as_their_dimension_says():
    single = experiments.nearest_rows([30, 300], SEEDS, 2000)
    assert experiments.slopes(single, "n", "median", log_x=True) == pytest.approx([-1, -1], abs=0.12)
    vectors = experiments.vector_rows([8, 12], [2], SEEDS, 400)
    assert experiments.slopes(vectors, "n", "scaled") == pytest.approx([-0.5, -0.5], abs=0.12)


def test_hyperbolic_digits_need_fewer_candidates():
    rows = experiments.greedy_rows([40], [1 / 64], SEEDS, 400)
    reached = rows.groupby("law")["success"].mean()
    assert reached["hyperbolic"] > 0.9 > reached["uniform"] > reached["normal"]


def test_pruned_sources_need_more():
    rows = experiments.pruned_source_rows(range(3, 21), [0.0, 0.5], SEEDS, 300, 0.1)
    needed = experiments.needed(rows, "sparsity").groupby("sparsity")["needed"].mean()
    assert 1.5 < needed[0.5] / needed[0.0] < 3.5


def test_trade_off_has_its_end_points():
    rows = experiments.trade_off_rows([0.2, 0.5], SEEDS, 300, 0.02).groupby("asked")["n"].mean()
    assert rows[0.0] > rows[0.2] > rows[0.5] >= rows[1.0]
    # Malach's end in closed form: 1 - (1 - eps)^n = .9 away from the edges
    assert rows[0.0] == pytest.approx(math.log(0.1) / math.log(1 - 0.02), rel=0.05)


def test_widths_are_read_off_between_measurements():
    rows = pd.DataFrame({"n": [4, 6, 8, 4, 6, 8], "success": [0.5, 0.8, 1.0, 0.1, 0.2, 0.3], "seed": [0] * 3 + [1] * 3})
    crossings = experiments.needed(rows.assign(arm="a"), "arm").set_index("seed")["needed"]
    assert crossings[0] == pytest.approx(7)
    assert math.isnan(crossings[1])
    assert experiments.slopes(rows, "n", "success", log_y=False) == pytest.approx([0.125, 0.05])
    with pytest.raises(InputError, match=r"level is 1\.0"):
        experiments.needed(rows, "seed", 1.0)


def test_fixed_sizes_are_those_of_the_engine():
    rows = experiments.fixed_size_rows([8], [2, 9], [0], 200, 0.05)
    assert rows["k"].tolist() == [2]
    a, z = experiments._instances("uniform", 0, 200, 8)
    assert rows["success"][0] == np.mean(solve(a, z, "fixed", k=2).error <= 0.05)
