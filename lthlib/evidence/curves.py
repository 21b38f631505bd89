"""The figures that all notebooks share: each takes a tidy frame and returns a matplotlib figure.

Accuracies are in percent, differences in percentage points, density is kept / prunable in (0, 1]. Means are over
replicates (the column `replicate`, "seed"), with 95 % t intervals; several rows of one replicate at one point are
averaged first. Every figure states n. Every function raises InputError for a column that the frame lacks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from lthlib.errors import InputError
from lthlib.evidence.grids import bars, image_grid, layer_densities, matrix, verdict_table
from lthlib.evidence.intervals import mean_interval, paired_difference
from lthlib.evidence.style import (
    BLACK,
    LABELS,
    Chart,
    Curve,
    Replicates,
    band,
    caption,
    chart,
    draw_means,
    error_bars,
    finish,
    looks,
    mean_line,
    mean_points,
    need,
    ordered,
    parts_by,
    style,
    theory_lines,
)

__all__ = [
    "accuracy_curve", "bars", "difference_curve", "energy_compaction", "image_grid", "law", "layer_densities", "matrix",
    "verdict_table",
]  # fmt: skip

MARGIN = "#F3E9C6"


def accuracy_curve(
    frame: pd.DataFrame,
    x: str = "density",
    y: str = "accuracy",
    hue: str = "basis",
    *,
    dense: Replicates | Mapping[Any, Replicates] | None = None,
    panel: str | None = None,
    group: str | None = None,
    log: bool = True,
    replicate: str = "seed",
    x_label: str = "",
    y_label: str = "",
    title: str = "",
) -> Chart:
    """Mean of `y` against `x`, one line per `hue` with its 95 % band.

    `dense` holds the replicates of the dense baseline, or a mapping of each panel's name to them. `panel` gives one
    pair of axes per value. `group` joins points whose achieved x differs between replicates (a
    pruning level): they are drawn at their mean x. A log axis of densities falls to the right and is labelled with the
    densities there are.
    """
    need(frame, x, y, hue, replicate, panel, group)
    with style():
        figure, panels = _panels(frame, panel)
        counts = _lines(panels, frame, x, y, hue, replicate, group)
        for axes, part, name in panels:
            baseline = dense.get(name) if isinstance(dense, Mapping) else dense
            if baseline is not None:
                band(axes, mean_interval(np.asarray(baseline, float)), "dense")
            at = part.groupby([hue, group], observed=True)[x].mean() if group else part[x]
            _finish_x(axes, at, x, log, x_label)
            axes.set_title(name or title)
        panels[0][0].set_ylabel(y_label or LABELS.get(y, y))
        finish(figure, [axes for axes, _, _ in panels], hue, caption(counts, replicate), title if panel else "")
    return figure


def difference_curve(
    frame: pd.DataFrame,
    x: str = "density",
    y: str = "accuracy",
    hue: str = "basis",
    *,
    reference: object | None = None,
    margin: float | None = None,
    panel: str | None = None,
    log: bool = True,
    replicate: str = "seed",
    x_label: str = "",
    y_label: str = "",
    title: str = "",
) -> Chart:
    """Paired difference of `y` to the `hue` value `reference`, by replicate and `x`, with 95 % band and zero line.

    Without `reference`, `y` already holds paired differences. `margin` shades what a claim declared to be no
    difference beforehand.
    """
    need(frame, x, y, hue, replicate, panel)
    what = f"{LABELS.get(y, y).replace(' (%)', '')}: difference"
    if reference is not None:
        parts = []
        for other in ordered(frame[hue]):
            if other != reference:
                on = [replicate, x, *([panel] if panel else [])]
                pairs = paired_difference(frame, y, hue, (other, reference), on, replicate=replicate)
                parts.append(pairs.table.assign(**{hue: other, y: pairs.table["difference"]}))
        if not parts:
            raise InputError(f"a difference needs two arms, and column {hue!r} holds only {reference!r}")
        frame = pd.concat(parts, ignore_index=True)
        what += f" to {reference}"
    with style():
        figure, panels = _panels(frame, panel)
        for axes, part, name in panels:
            if margin is not None:
                axes.axhspan(-margin, margin, color=MARGIN, zorder=0, label=f"margin ±{margin:g}")
            axes.axhline(0, color=BLACK, linewidth=1)
            _finish_x(axes, part[x], x, log, x_label)
            axes.set_title(name or title)
        counts = _lines(panels, frame, x, y, hue, replicate)
        panels[0][0].set_ylabel(y_label or f"{what}\n(percentage points)")
        below = f"Paired by {replicate}. {caption(counts, replicate)}"
        finish(figure, [axes for axes, _, _ in panels], hue, below, title if panel else "")
    return figure


def law(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    *,
    theory: Mapping[str, Curve] | None = None,
    log: bool = True,
    replicate: str = "seed",
    x_label: str = "",
    y_label: str = "",
    title: str = "",
) -> Chart:
    """Measured means with 95 % intervals over the lines of a theory (functions of x, by label), on log axes.

    A theory named like a value of `hue` is drawn in its colour. On log axes, means that are not positive are left out
    and counted in the caption.
    """
    need(frame, x, y, hue, replicate)
    with style():
        figure, (axes,) = chart()
        rows = frame.assign(**{hue or "measured": frame[hue] if hue else "measured"})
        hue = hue or "measured"
        look, missing = looks(rows[hue]), 0
        counts: set[int] = set()
        for name, part in parts_by(rows, hue):
            points = mean_points(part, x, y, replicate)
            shown = points[points["estimate"] > 0] if log else points
            missing += len(points) - len(shown)
            counts |= error_bars(axes, shown, look[name], name, log=log)
        low, high = float(frame[x].min()), float(frame[x].max())
        theory_lines(axes, theory, look, (np.geomspace if log else np.linspace)(low, high, 200), "-", "- -- : -.")
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            _plain_counts(axes, low)
        axes.set(xlabel=x_label or LABELS.get(x, x), ylabel=y_label or LABELS.get(y, y))
        axes.set_title(title)
        left_out = f" {missing} means that are not positive are left out." if missing else ""
        finish(figure, [axes], "" if hue == "measured" else hue, caption(counts, replicate) + left_out)
    return figure


def energy_compaction(
    frame: pd.DataFrame,
    x: str = "fraction",
    y: str = "energy",
    hue: str = "basis",
    *,
    panel: str | None = None,
    gaussian: bool = True,
    replicate: str = "seed",
    title: str = "",
) -> Chart:
    """Share of the energy (sum of squares) in the largest coefficients against their share of all, both in (0, 1].

    `gaussian` adds what independent Gaussian coefficients give in any orthonormal basis: the top fraction q holds
    2 [z phi(z) + 1 - Phi(z)] with z = Phi^-1(1 - q / 2).
    """
    from scipy.special import ndtr, ndtri

    need(frame, x, y, hue, replicate, panel)
    with style():
        figure, panels = _panels(frame, panel)
        counts = _lines(panels, frame, x, y, hue, replicate, markers=False)
        for axes, part, name in panels:
            if gaussian:
                q = np.geomspace(float(part[x][part[x] > 0].min()), 1, 200)
                z = ndtri(1 - q / 2)
                energy = 2 * (z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) + 1 - ndtr(z))
                axes.plot(q, energy, color=BLACK, linestyle=":", linewidth=1.4, label="Gaussian (theory)", zorder=1)
            axes.set_xscale("log")
            axes.set_ylim(0, 1.02)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
            axes.set_xlabel("largest coefficients, % of all (log scale)")
            axes.set_title(name or title)
        panels[0][0].set_ylabel("energy they hold, %")
        finish(figure, [axes for axes, _, _ in panels], hue, caption(counts, replicate), title if panel else "")
    return figure


Panels = list[tuple[Axes, pd.DataFrame, str]]


def _panels(frame: pd.DataFrame, panel: str | None) -> tuple[Chart, Panels]:
    parts = parts_by(frame, panel) if panel else [("", frame)]
    figure, axes = chart(columns=len(parts), width=6.4 if len(parts) == 1 else 1.2 + 3.6 * len(parts))
    return figure, [(plot, part, str(name)) for plot, (name, part) in zip(axes, parts, strict=True)]


def _lines(
    panels: Panels, frame: pd.DataFrame, x: str, y: str, hue: str, replicate: str,
    group: str | None = None, markers: bool = True,
) -> set[int]:  # fmt: skip
    look = looks(frame[hue])
    counts: set[int] = set()
    for axes, rows, _ in panels:
        counts |= draw_means(axes, rows, x, y, hue, replicate, mean_line, look, group, markers=markers)
    return counts


def _finish_x(axes: Axes, values: pd.Series, x: str, log: bool, label: str) -> None:
    axes.set_xlabel(label or (LABELS.get(x, x) if log else LABELS.get(x, x).replace(" (log scale)", "")))
    if log:
        axes.set_xscale("log")
    if x != "density":
        if log:
            _plain_counts(axes, float(values.min()))
        return
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    if log:
        ticks = _thinned(sorted(values.dropna().unique()))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([_percent(tick) for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.invert_xaxis()


def _plain_counts(axes: Axes, smallest: float) -> None:
    """Counts on a log axis: plain numbers at 1, 2 and 5 of each decade; matplotlib's own minor labels overlap."""
    if smallest >= 1:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())


def _percent(density: float) -> str:
    return f"{100 * density:.3g}" if density >= 0.001 else f"{100 * density:.2g}"


def _thinned(values: Sequence[float], most: int = 8) -> list[float]:
    """At most `most` of the sorted positive values, both ends among them, that lie well apart on a log axis."""
    span = math.log(values[-1] / values[0])
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if math.log(kept[-1] / value) >= span / most:
            kept.append(value)
    if kept[-1] != values[0] and len(kept) > 1:
        kept[-1] = values[0]
    return kept[::-1]
