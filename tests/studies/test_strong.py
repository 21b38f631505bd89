"""Tables of constructed tickets and their figures: what is evaluated is the masked source."""

import io

import numpy as np
import pandas as pd
import pytest

from lthlib import data
from lthlib.errors import InputError
from lthlib.studies import strong as strong_tables
from lthlib.studies import strong_figures as strong_plots
from lthlib.studies.strong import TARGET, Way
from lthlib.theory.strong.search import SubsetSearch
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate


@pytest.fixture(scope="module")
def built():
    digits = data.load("digits", "data", device="cpu")
    trained = strong_tables.targets("lenet-12", digits, Recipe(learning_rate=0.1, epochs=3, evaluations=1), [0, 1])
    ways = {"best": Way(SubsetSearch(18, redraws=3)), "one more": Way(SubsetSearch(18), "depth-plus-one")}
    return digits, trained, *strong_tables.constructions(trained, ways, digits, keep=list(ways))


def test_rows_are_those_of_the_masked_source(built):
    digits, trained, rows, made, speed = built
    assert rows["arm"].value_counts().to_dict() == {TARGET: 2, "best": 2, "one more": 2}
    for name, parts in made.items():
        for place, found in enumerate(parts):
            row = rows[(rows["arm"] == name) & (rows["seed"] == trained[place].seed)].iloc[0]
            # the network evaluated is the source with its mask, not the target that was approximated
            assert found.ticket.architecture != trained[place].ticket.architecture
            (test,) = evaluate([found.ticket], digits, "test")
            assert row["accuracy"] == test.accuracy
            assert row["density"] == pytest.approx(found.counts["density"])
            assert row["ticket"] == found.counts["ticket"]
    best = rows[rows["arm"] == "best"]
    assert (best["sup_error"] <= best["bound"]).all()
    assert best["delta"].abs().max() < 1
    assert (speed["solves/s"] > 0).all()


def test_controls_keep_the_density_and_lose_the_accuracy(built):
    digits, trained, rows, made, _ = built
    control = strong_tables.controls(trained, {"best": made["best"]}, digits, 0.01)
    masked = control[control["arm"].str.contains("source")]
    assert masked.groupby("seed")["density"].nunique().tolist() == [1, 1]
    assert masked["accuracy"].max() < 40 < rows[rows["arm"] == "best"]["accuracy"].min()
    assert control[control["arm"].str.startswith("target")]["accuracy"].min() > 60


def test_found_tickets_have_the_constructions_density(built):
    digits, trained, _, made, _ = built
    beside = strong_tables.found_on_the_same_source(trained, {"best": made["best"]}, digits, 0.3)
    expected = [found.ticket.density for found in made["best"]]
    assert beside["density"].tolist() == pytest.approx(expected, abs=1e-3)
    with pytest.raises(InputError, match="no construction to compare with"):
        strong_tables.found_on_the_same_source(trained, {}, digits, 1.0)


def test_width_rows_find_the_fewest_candidates():
    rows = strong_tables.width_rows([4], range(6, 29, 2), 0.05, [0, 1])
    wide = strong_tables.width_rows([4], [28], 0.05, [0, 1])
    assert rows["needed"].between(6, 28).all()
    assert (wide["needed"] == 28).all()
    assert strong_tables.width_rows([4], [2], 1e-4, [0])["needed"].isna().all()


def test_the_best_density_is_picked_on_validation():
    found = pd.DataFrame(
        {
            "finder": ["a", "a", "dense"],
            "density": [0.5, 0.2, 1.0],
            "seed": [0, 0, 0],
            "accuracy": [80.0, 90.0, 95.0],
            "validation_accuracy": [85.0, 84.0, 95.0],
            "trained": [False, False, True],
        }
    )
    assert strong_tables.best_minus_dense(found, ["a"]) == {"a": [-15.0]}


def test_figures_draw_what_there_is_and_refuse_the_rest():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([{"n": n, "eps": e, "seed": s} for n in (4, 6, 8) for e in (0.1, 0.01) for s in range(3)])
    rows = rows.assign(success=rng.uniform(0, 1, len(rows)), k=rows["n"] // 2, density=0.1 * rows["n"], accuracy=50.0)
    rows["arm"] = "a"
    figures = [
        strong_plots.scaling(rows, "n", "success", "eps", theory={"law": lambda x: 1 / x}),
        strong_plots.transition(rows),
        strong_plots.size_map(rows.assign(k=rows["eps"].map({0.1: 1, 0.01: 2})), {"line": [(4, 1), (8, 2)]}),
        strong_plots.accuracy_against_density(rows, dense=[60.0, 61.0], lines=["a"]),
    ]
    for figure in figures:
        with io.BytesIO() as buffer:
            figure.savefig(buffer, format="png")
            assert len(buffer.getvalue()) > 5000
    assert figures[3].axes[0].get_ylabel() == "test accuracy (%)"
    with pytest.raises(InputError, match="unknown column 'epsilon'"):
        strong_plots.transition(rows, hue="epsilon")
