"""Readouts and their gaps, deep sources, and the readout of image features."""

from pathlib import Path

import numpy as np
import pytest

from lthlib import data
from lthlib.errors import InputError
from lthlib.studies import transfer
from lthlib.studies import universal as tables
from lthlib.theory.universal import construct as universal
from lthlib.theory.universal import deep_source, universality
from lthlib.training.recipe import Recipe


def test_exact_monomials_have_no_gap() -> None:
    points = universality.unit_grid()
    gap = universality.universality_gap(universality.exact_powers(4), universality.random_polynomials(10, 4), points)
    assert gap.sup < 1e-9
    assert gap.rms < 1e-9
    assert gap.readout_parameters == 5


def test_linear_program_is_never_worse_than_least_squares() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3, 8):
        features, targets = rng.normal(size=(300, size)), rng.normal(size=(300, 2))
        program, squares = (
            fit(features, targets) for fit in (universality.smallest_supremum, universality.least_squares)
        )
        assert program.sup <= squares.sup
        assert squares.rms <= program.rms


def test_linear_program_finds_the_best_line() -> None:
    # the best line for x^2 on [0, 1] is x - 1/8, with error 1/8 (Chebyshev)
    x = universality.unit_grid(1001)
    readout = universality.smallest_supremum(x, x[:, 0] ** 2)
    assert readout.sup == pytest.approx(1 / 8, rel=1e-3)
    assert readout.weights[0, 0] == pytest.approx(1, abs=1e-2)
    assert readout.amplification == pytest.approx(1, abs=1e-2)


def test_a_ticket_serves_its_family_and_controls_do_not() -> None:
    points, family = universality.unit_grid(2001), universality.random_polynomials(4, 4)
    ticket = universal.polynomial_ticket(0)
    gap = universality.universality_gap(ticket.features, family, points)
    assert gap.sup < 10 * universal.power_sup_errors(ticket).max()
    for control in (tables.randomly_placed(ticket, 0).features, universality.random_units(0, 4)):
        assert universality.universality_gap(control, family, points).sup > 5 * gap.sup


def test_bad_readouts_are_named() -> None:
    x = universality.unit_grid(11)
    with pytest.raises(InputError, match="targets hold NaN"):
        universality.least_squares(x, np.full(11, np.nan))
    with pytest.raises(InputError, match=r"features \(11, 1\) and targets \(10, 1\)"):
        universality.least_squares(x, np.zeros(10))
    with pytest.raises(InputError, match="ridge of -1"):
        universality.least_squares(x, x, -1)
    with pytest.raises(InputError, match="not an empty family"):
        universality.universality_gap(lambda x: x, {}, x)
    with pytest.raises(InputError, match="'f' is NaN"):
        universality.universality_gap(lambda x: x, {"f": lambda x: x[:, 0] * np.nan}, x)


def test_deep_masks_realise_what_they_claim() -> None:
    for depth in (2, 3, 4):
        for seed in range(20):
            weight = deep_source.deep_weight(seed, 0.3, 9, depth)
            assert abs(abs(deep_source.realised(weight) - 0.3) - weight.error) < 1e-12
    with pytest.raises(InputError, match="depth 1"):
        deep_source.deep_weight(0, 0.3, 9, 1)


def test_depth_spares_width() -> None:
    rows = tables.depth_rows([0, 1], [8, 12, 16, 20, 24], [2, 4])
    widths = tables.width_at(rows, 0.01).groupby("depth")["width"].mean()
    assert widths[4] < widths[2]


def test_existence_needs_more_width_for_less_error() -> None:
    rows = tables.success_rows(range(4), range(10, 27, 2), [1e-2, 1e-4])
    needed = tables.needed_widths(rows).groupby("bits")["needed"].median()
    assert needed.is_monotonic_increasing
    assert (needed > needed.index - 1).all()


def test_images_are_read_out_by_features_from_elsewhere(tmp_path: Path) -> None:
    small = transfer.pooled(data.load("digits", train_size=400, device="cpu"))
    tasks = transfer.halves(small)
    assert [task.classes for task in tasks] == [5, 5]
    assert set(tasks[1].dataset.test.labels.tolist()) == set(range(5))
    tasks.append(transfer.quadratics(tasks[0]))
    recipe = Recipe(epochs=1, learning_rate=0.05)
    rows = transfer.transfer_rows(tasks, 64, [0], recipe, recipe, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["images-64-0.safetensors"]
    assert len(rows) == 3 * (4 + 2 * 2)
    scores = {(row["found"], row["task"]): row["score"] for row in rows}
    universal_score, exact = (scores[arm, tasks[1].name] for arm in ("universal ticket", "exact basis"))
    assert universal_score > 80
    assert abs(universal_score - exact) < 5
    with pytest.raises(InputError, match="unknown arm 'trained on'"):
        transfer.image_features("trained on", None, 64, 0, recipe)
    with pytest.raises(InputError, match="found on a task with classes"):
        transfer.image_features("trained", tasks[2], 64, 0, recipe)
    with pytest.raises(InputError, match="leave out some of the 64 pixels"):
        transfer.image_exponents(10, 0)


def test_reconstructed_architectures_hold_masks_and_biases() -> None:
    small = transfer.pooled(data.load("digits", train_size=100, device="cpu"))
    rows = transfer.reconstructed_rows(small, [0], Recipe(epochs=1, learning_rate=0.01, optimizer="adam"))
    assert [(row["architecture"], row["arm"]) for row in rows] == [
        ("polynomial", "edge-popup"),
        ("polynomial", "random mask"),
        ("fourier", "edge-popup"),
        ("fourier", "random mask"),
    ]
    assert all(0 <= row["accuracy"] <= 100 for row in rows)
