"""Figures of the elastic notebook that no other notebook needs: depth maps as data, costs, lines between networks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lthlib.elastic import StageMap
from lthlib.errors import InputError
from lthlib.evidence.style import (
    BLACK,
    PALETTE,
    Chart,
    caption,
    chart,
    draw_means,
    error_bars,
    finish,
    looks,
    mean_line,
    need,
    note,
    parts_by,
    style,
)


def schematic(maps: Mapping[str, StageMap], title: str = "") -> Chart:
    """One stage's units in target order, a row a map by name: the number and colour of a box are its source unit.

    Hatched boxes are second or later copies. Raises InputError for no map.
    """
    if not maps:
        raise InputError("a schematic needs at least one map")
    longest = max(map(len, maps.values()))
    with style():
        figure, (axes,) = chart(width=2.6 + 0.42 * longest, height=0.9 + 0.42 * len(maps))
        for row, line in enumerate(maps.values()):
            for place, unit in enumerate(line):
                again = unit in line[:place]
                colour = "#D5D5D5" if unit == 0 else PALETTE[(unit - 1) % (len(PALETTE) - 1)]
                axes.barh(
                    row, 0.86, left=place + 0.07, height=0.7, color=colour, alpha=0.45 if again else 0.8,
                    hatch="///" if again else "", edgecolor="white",
                )  # fmt: skip
                axes.text(place + 0.5, row, str(unit), ha="center", va="center", fontsize=9.5, color=BLACK)
        axes.set_yticks(range(len(maps)), list(maps))
        axes.set_ylim(len(maps) - 0.5, -0.5)
        axes.set_xticks(np.arange(longest) + 0.5, [str(place) for place in range(longest)])
        axes.grid(visible=False)
        axes.set_xlabel("place in the target's stage")
        axes.set_title(title)
        note(figure, "Number: the source's unit. Hatched: a copy. Unit 0 stays first and is never copied.")
    return figure


def cost_curve(
    rows: pd.DataFrame, y: str = "sparse", *, route: str = "route", replicate: str = "seed", title: str = ""
) -> Chart:
    """Cumulated training FLOPs of each route against the number of targets (rows of `elastic_measures.cost_rows`)."""
    need(rows, "targets", y, route, replicate)
    with style():
        figure, (axes,) = chart()
        counts = draw_means(axes, rows, "targets", y, route, replicate, mean_line, shade=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        weighed = "weighed by density" if y == "sparse" else "dense products"
        axes.set(xlabel="number of target depths", ylabel=f"training FLOPs, {weighed}")
        axes.set_title(title)
        below = " Seeds hardly differ: intervals are narrower than the lines."
        finish(figure, [axes], route, caption(counts, replicate) + below)
    return figure


def cost_scatter(
    rows: pd.DataFrame, *, arm: str = "arm", panel: str = "target", replicate: str = "seed", title: str = ""
) -> Chart:
    """Test accuracy of each arm, mean and 95 % t interval, against the FLOPs of all training that it needed.

    Takes rows of `elastic_measures.with_cost`; one pair of axes per value of `panel`.
    """
    need(rows, "flops", "accuracy", arm, panel, replicate)
    with style():
        parts = parts_by(rows, panel)
        figure, axes = chart(columns=len(parts), width=1.6 + 2.9 * len(parts))
        look = looks(rows[arm])
        counts: set[int] = set()
        for plot, (target, part) in zip(axes, parts, strict=True):
            runs = part.assign(whole=True)
            counts |= draw_means(plot, runs, "flops", "accuracy", arm, replicate, error_bars, look, "whole")
            plot.set_xlim(left=0)
            plot.xaxis.set_major_locator(MaxNLocator(4))
            plot.set(title=str(target), xlabel="training FLOPs")
        axes[0].set_ylabel("test accuracy (%)")
        below = " FLOPs weighed by density; elastic tickets share their source's IMP."
        finish(figure, axes, arm, caption(counts, replicate) + below, title)
    return figure


def accuracy_along_lines(
    rows: pd.DataFrame, *, path: str = "path", panel: str = "statistics", replicate: str = "seed", title: str = ""
) -> Chart:
    """Accuracy along the straight line between two trained networks, one line a path, one panel a kind of statistics.

    Takes rows of `connectivity.path_rows`; bands are 95 % t intervals over replicates.
    """
    need(rows, "alpha", "accuracy", path, panel, replicate)
    with style():
        parts = parts_by(rows, panel)
        figure, axes = chart(columns=len(parts), width=1.6 + 3.6 * len(parts))
        look = looks(rows[path])
        counts: set[int] = set()
        for plot, (kind, part) in zip(axes, parts, strict=True):
            counts |= draw_means(plot, part, "alpha", "accuracy", path, replicate, mean_line, look, shade=0.15)
            plot.set(title=f"BatchNorm statistics {kind}", xlabel=r"$\alpha$, from one training to the other")
        axes[0].set_ylabel("validation accuracy (%)")
        axes[0].set_ylim(max(0, axes[0].get_ylim()[0]), 101)
        finish(figure, axes, path, caption(counts, replicate), title)
    return figure


def density_drift(rows: pd.DataFrame, *, replicate: str = "seed", title: str = "") -> Chart:
    """Achieved minus source density of elastic tickets, measured against what the identity for equal copies predicts.

    Takes rows of `elastic_tables.drift_rows`, with a column `pair`. On the line the identity is exact; off it units
    are copied or dropped unequally.
    """
    need(rows, "drift", "predicted", "pair", replicate)
    with style():
        figure, (axes,) = chart()
        look = looks(rows["pair"])
        both = 100 * rows[["drift", "predicted"]]
        low, high = float(both.min().min()), float(both.max().max())
        room = 0.05 * (high - low or 1)
        axes.plot([low - room, high + room], [low - room, high + room], color=BLACK, linewidth=1, label="identity")
        for name, part in parts_by(rows, "pair"):
            colour, marker, _ = look[name]
            axes.plot(
                100 * part["predicted"], 100 * part["drift"],
                linestyle="", marker=marker, color=colour, alpha=0.8, label=str(name),
            )  # fmt: skip
        axes.set(xlabel="predicted drift of density (points)", ylabel="drift of density (points)")
        axes.set_title(title)
        n = rows[replicate].nunique()
        finish(figure, [axes], "pair", f"One mark a level and {replicate}, n = {n} {replicate}s.")
    return figure
