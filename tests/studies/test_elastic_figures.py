"""The elastic notebook's figures: maps as boxes, costs, lines and drift, each drawn from the rows as they are."""

import pandas as pd
import pytest

from lthlib.errors import InputError
from lthlib.studies import elastic_figures as elastic_plots


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_schematic_shows_the_map_itself():
    figure = elastic_plots.schematic({"append": (0, 1, 2, 1, 2), "interpolate": (0, 1, 1, 2, 2)})
    assert texts(figure) == list("0121201122")
    hatched = [bool(patch.get_hatch()) for patch in figure.axes[0].patches]
    assert hatched == [False, False, False, True, True, False, False, True, False, True]
    with pytest.raises(InputError, match="at least one map"):
        elastic_plots.schematic({})


def test_costs_against_targets_and_accuracy():
    rows = pd.DataFrame({"seed": [0, 0, 1, 1], "targets": [0, 1, 0, 1], "sparse": [5.0, 6, 5, 7], "route": "elastic"})
    (axes,) = elastic_plots.cost_curve(rows).axes
    assert axes.lines[0].get_ydata().tolist() == [5.0, 6.5]
    rows = pd.DataFrame(
        {"seed": [0, 1, 0, 1], "flops": [1e9, 1e9, 2e9, 2e9], "accuracy": [80.0, 82, 90, 91], "target": "t"}
    ).assign(arm=["elastic", "elastic", "direct", "direct"])
    figure = elastic_plots.cost_scatter(rows)
    assert labels(figure) == ["elastic", "direct"] and figure.axes[0].get_xlim()[0] == 0


def test_lines_have_a_panel_for_each_kind_of_statistics():
    rows = pd.DataFrame(
        {"seed": s, "alpha": a, "statistics": k, "path": p, "accuracy": 50.0 + s}
        for s in (0, 1)
        for a in (0.0, 0.5, 1.0)
        for k in ("interpolated", "re-estimated")
        for p in ("direct", "elastic")
    )
    figure = elastic_plots.accuracy_along_lines(rows)
    assert len(figure.axes) == 2 and labels(figure) == ["direct", "elastic"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50.5] * 3


def test_drift_is_drawn_in_points():
    rows = pd.DataFrame({"seed": [0, 1], "drift": [0.01, 0.02], "predicted": [0.01, 0.02], "pair": "a to b"})
    (axes,) = elastic_plots.density_drift(rows).axes
    assert axes.lines[1].get_ydata().tolist() == pytest.approx([1, 2])
    with pytest.raises(InputError, match="unknown column 'pair'"):
        elastic_plots.density_drift(rows.drop(columns="pair"))
