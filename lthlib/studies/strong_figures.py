"""Figures of strong tickets: laws of subset sums over measured points, transitions, and accuracy against density."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lthlib.evidence.intervals import mean_interval
from lthlib.evidence.style import (
    LABELS,
    Chart,
    Curve,
    Replicates,
    band,
    caption,
    chart,
    error_bars,
    finish,
    looks,
    mean_points,
    need,
    note,
    parts_by,
    style,
    theory_lines,
)

__all__ = ["accuracy_against_density", "scaling", "size_map", "transition"]


def scaling(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    *,
    theory: Mapping[str, Curve] | None = None,
    x_log: bool = False,
    y_log: bool = True,
    replicate: str = "seed",
    x_label: str = "",
    y_label: str = "",
    title: str = "",
) -> Chart:
    """Means of `y` with 95 % t intervals against `x`, one line per `hue`, over the lines of a theory (functions of x
    by label; one named like a value of `hue` takes its colour, dotted). Means that an axis cannot show are left out
    and counted in the caption."""
    need(frame, x, y, hue, replicate)
    with style():
        figure, (axes,) = chart()
        missing, counts = _lines(axes, frame, x, y, hue, replicate, y_log)
        low, high = float(frame[x].min()), float(frame[x].max())
        at = np.geomspace(low, high, 200) if x_log else np.linspace(low, high, 200)
        theory_lines(axes, theory, looks(frame[hue]), at, ":", ": -- -.")
        axes.set(xlabel=x_label or LABELS.get(x, x), ylabel=y_label or LABELS.get(y, y))
        if x_log:
            axes.set_xscale("log")
        if y_log:
            axes.set_yscale("log")
        axes.set_title(title)
        left_out = f" {missing} means are left out." if missing else ""
        finish(figure, [axes], hue, caption(counts, "replicate") + left_out)
    return figure


def transition(
    frame: pd.DataFrame,
    x: str = "n",
    y: str = "success",
    hue: str = "eps",
    *,
    level: float = 0.9,
    replicate: str = "seed",
    title: str = "",
) -> Chart:
    r"""Success against n, and against $n/\log_2(1/\varepsilon)$, one line per tolerance: do the curves collapse?"""
    need(frame, x, y, hue, replicate)
    scaled = frame.assign(ratio=frame[x] / np.log2(1 / frame[hue]))
    with style():
        figure, panels = chart(columns=2, width=9.6)
        for axes, column, label in zip(
            panels, (x, "ratio"), ("candidates n", r"$n\,/\,\log_2(1/\varepsilon)$"), strict=True
        ):
            _, counts = _lines(axes, scaled, column, y, hue, replicate, False, "tolerance ")
            axes.axhline(level, color="#555555", linestyle=":", linewidth=1)
            axes.set_xlabel(label)
            axes.set_xlim(0, 3 if column == "ratio" else None)
        panels[0].set(ylabel="share of targets reached", title=title)
        below = f" Dotted: {100 * level:g} %, where widths are read off."
        finish(figure, panels, "", caption(counts, "replicate") + below)
    return figure


def size_map(
    frame: pd.DataFrame,
    contours: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str = "n",
    y: str = "k",
    value: str = "success",
    replicate: str = "seed",
    title: str = "",
) -> Chart:
    """Success of subsets of exactly k of n as a map, under curves of (n, k) points by label: theory and measurement."""
    need(frame, x, y, value, replicate)
    table = frame.pivot_table(index=y, columns=x, values=value, aggfunc="mean")
    xs, ys = table.columns.to_numpy(float), table.index.to_numpy(float)
    with style():
        figure, (axes,) = chart(width=7.2, height=4.4)
        mesh = axes.pcolormesh(_edges(xs), _edges(ys), table.to_numpy(), cmap="Blues", vmin=0, vmax=1, shading="flat")
        figure.colorbar(mesh, ax=axes, label="share of targets reached")
        for (label, points), (dash, mark, colour) in zip(
            contours.items(), (("-", "o", "#D55E00"), ("--", "", "#000000"), (":", "", "#000000")), strict=False
        ):
            at = np.array(points, float).reshape(-1, 2)
            inside = (at[:, 0] >= _edges(xs)[0]) & (at[:, 0] <= _edges(xs)[-1])
            axes.plot(*at[inside].T, dash, marker=mark, color=colour, label=label)
        axes.set_xlim(_edges(xs)[0], _edges(xs)[-1])
        axes.set_ylim(_edges(ys)[0], _edges(ys)[-1])
        axes.grid(visible=False)
        axes.set(xlabel="candidates n", ylabel="size k of the subset", title=title)
        axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
        draws = frame.groupby([x, y])[replicate].nunique()
        note(figure, f"Mean over n = {int(draws.min())} replicates; white, at the left: k above n.")
    return figure


def accuracy_against_density(
    frame: pd.DataFrame,
    hue: str = "arm",
    *,
    dense: Replicates | None = None,
    lines: Sequence[str] = (),
    value: str = "accuracy",
    label: str = "",
    group: str | None = None,
    log: bool = False,
    replicate: str = "seed",
    title: str = "",
) -> Chart:
    """Accuracy (or another `value`, `log`: on a log axis) against density: arms in `lines` as curves over their
    densities, others as points.

    Rows of an arm are one point, at their mean density, where `group` is equal (default: where densities differ by
    under 20 %).
    """
    need(frame, hue, "density", value, replicate, group)
    rows = frame.assign(at=frame[group] if group else _grouped(frame, hue))
    with style():
        figure, (axes,) = chart(width=8.4, height=4.6)
        look = looks(frame[hue])
        counts: set[int] = set()
        for name, part in parts_by(rows, hue):
            points = mean_points(part, "density", value, replicate, "at")
            counts |= error_bars(axes, points, look[name], name, log=log, joined=1.7 * (name in lines))
        if dense is not None:
            band(axes, mean_interval(np.asarray(dense, float)), "trained target")
        if log:
            axes.set_yscale("log")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        axes.set(xlabel=LABELS["density"], ylabel=label or LABELS.get(value, value), title=title)
        finish(figure, [axes], "", caption(counts, "replicate"))
    return figure


def _grouped(frame: pd.DataFrame, hue: str) -> pd.Series:
    """Densities of one arm within a factor of 1.2 as one: the smallest of each run."""
    at = pd.Series(np.nan, index=frame.index)
    for _, part in frame.groupby(hue, observed=True):
        start = 0.0
        for index, density in part["density"].sort_values().items():
            start = density if density > 1.2 * start else start
            at[index] = start
    return at


def _lines(
    axes: Axes, frame: pd.DataFrame, x: str, y: str, hue: str, replicate: str, log: bool, before: str = ""
) -> tuple[int, set[int]]:
    look, missing = looks(frame[hue]), 0
    counts: set[int] = set()
    for name, part in parts_by(frame, hue):
        points = mean_points(part, x, y, replicate)
        shown = points[np.isfinite(points["estimate"]) & ((points["estimate"] > 0) | (not log))]
        missing += part[x].nunique() - len(shown)
        label = f"{before}{name:g}" if isinstance(name, float) else f"{before}{name}"
        counts |= error_bars(axes, shown, look[name], label, log=log, joined=1.0)
    return missing, counts


def _edges(places: np.ndarray) -> np.ndarray:
    middle = (places[1:] + places[:-1]) / 2
    return np.concatenate([[1.5 * places[0] - 0.5 * places[1]], middle, [1.5 * places[-1] - 0.5 * places[-2]]])
