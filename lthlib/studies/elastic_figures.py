"""Figures of the elastic notebook that no other notebook needs: depth maps as data, costs, lines between networks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lthlib.elastic import StageMap
from lthlib.errors import InputError
from lthlib.evidence.intervals import mean_interval
from lthlib.evidence.style import (
    BLACK,
    PALETTE,
    Chart,
    caption,
    chart,
    error_bars,
    legend,
    looks,
    mean_points,
    need,
    note,
    ordered,
    parts_by,
    per_replicate,
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
        look = looks(ordered(rows[route]))
        counts = set()
        for name, part in parts_by(rows, route):
            groups = mean_points(part, "targets", y, replicate)
            counts |= {one.n for _, one in groups}
            colour, marker, line = look[name]
            axes.plot(
                [at for at, _ in groups], [one.estimate for _, one in groups],
                color=colour, marker=marker, linestyle=line, label=str(name),
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        weighed = "weighed by density" if y == "sparse" else "dense products"
        axes.set(xlabel="number of target depths", ylabel=f"training FLOPs, {weighed}")
        axes.set_title(title)
        legend(figure, [axes], route)
        note(figure, f"{caption(counts, replicate)} Seeds hardly differ: intervals are narrower than the lines.")
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
        look, counts = looks(ordered(rows[arm])), set()
        for one, (name, part) in zip(axes, parts, strict=True):
            for label, some in parts_by(part, arm):
                found = mean_interval(per_replicate(some, "accuracy", replicate))
                counts.add(found.n)
                colour, marker, _ = look[label]
                error_bars(
                    one,
                    [(float(some["flops"].mean()), found)],
                    colour=colour,
                    marker=marker,
                    label=str(label),
                    log=False,
                )
            one.set_xlim(left=0)
            one.xaxis.set_major_locator(MaxNLocator(4))
            one.set_title(str(name))
            one.set_xlabel("training FLOPs")
        axes[0].set_ylabel("test accuracy (%)")
        legend(figure, axes, arm)
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        note(
            figure, f"{caption(counts, replicate)} FLOPs weighed by density; elastic tickets share their source's IMP."
        )
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
        look = looks(ordered(rows[path]))
        counts = set()
        for one, (kind, part) in zip(axes, parts, strict=True):
            for name, line in parts_by(part, path):
                points = mean_points(line, "alpha", "accuracy", replicate)
                counts |= {found.n for _, found in points}
                colour, marker, dash = look[name]
                at = [where for where, _ in points]
                one.plot(
                    at, [found.estimate for _, found in points],
                    color=colour, marker=marker, linestyle=dash, label=str(name),
                )  # fmt: skip
                low, high = ([getattr(found, side) for _, found in points] for side in ("low", "high"))
                one.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            one.set_title(f"BatchNorm statistics {kind}")
            one.set_xlabel(r"$\alpha$, from one training to the other")
        axes[0].set_ylabel("validation accuracy (%)")
        axes[0].set_ylim(max(0, axes[0].get_ylim()[0]), 101)
        legend(figure, axes, path)
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        note(figure, caption(counts, replicate))
    return figure


def density_drift(rows: pd.DataFrame, *, replicate: str = "seed", title: str = "") -> Chart:
    """Achieved minus source density of elastic tickets, measured against what the identity for equal copies predicts.

    Takes rows of `elastic_tables.drift_rows`, with a column `pair`. On the line the identity is exact; off it units
    are copied or dropped unequally.
    """
    need(rows, "drift", "predicted", "pair", replicate)
    with style():
        figure, (axes,) = chart()
        look = looks(ordered(rows["pair"]))
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
        legend(figure, [axes], "pair")
        note(figure, f"One mark a level and {replicate}, n = {rows[replicate].nunique()} {replicate}s.")
    return figure
