"""Figures over categories (arms, layers, pairs, images), and the notebook's table of verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from lthlib.errors import InputError
from lthlib.evidence.intervals import mean_interval
from lthlib.evidence.style import (
    LABELS,
    Chart,
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
    ordered,
    parts_by,
    per_replicate,
    style,
)

# Dark on light, told apart without colour by the words and the sign.
_VERDICTS = {"supported": ("✓", "#CDEBDD"), "not supported": ("✗", "#F6D2BF"), "inconclusive": ("?", "#E4E4E4")}


def bars(
    frame: pd.DataFrame,
    arm: str = "arm",
    value: str = "accuracy",
    *,
    zero: bool = False,
    dense: Replicates | None = None,
    replicate: str = "seed",
    label: str = "",
    title: str = "",
) -> Chart:
    """One row per arm: mean, 95 % interval and each replicate as a dot; with `zero`, bars that start at zero."""
    need(frame, arm, value, replicate)
    names = ordered(frame[arm])
    look = looks(names)
    counts = set()
    with style():
        figure, (axes,) = chart(height=1.5 + 0.42 * len(names))
        below = " Small dots: the replicates."
        if dense is not None:
            baseline = mean_interval(np.asarray(dense, float))
            band(axes, baseline, "dense", vertical=True)
            below += f" Dashed line and band: dense, n = {baseline.n}."
        for place, (name, part) in enumerate(parts_by(frame, arm)):
            values = per_replicate(part, value, replicate)
            mean = mean_interval(values)
            counts.add(mean.n)
            colour, marker, _ = look[name]
            if zero:
                axes.barh(place, mean.estimate, height=0.6, color=colour, alpha=0.35)
            axes.plot(values, np.full(len(values), place + 0.22), ".", color=colour, alpha=0.55, markersize=5)
            spread = None if math.isnan(mean.low) else [[mean.estimate - mean.low], [mean.high - mean.estimate]]
            axes.errorbar(mean.estimate, place, xerr=spread, fmt=marker, color=colour, capsize=3, markersize=6)
        axes.set_yticks(range(len(names)), [str(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label or LABELS.get(value, value))
        axes.set_title(title)
        note(figure, caption(counts, replicate) + below)
    return figure


def layer_densities(
    frame: pd.DataFrame,
    layer: str = "layer",
    density: str = "density",
    hue: str = "basis",
    *,
    replicate: str = "seed",
    title: str = "",
) -> Chart:
    """Density of each layer (log scale, %), layers in the frame's order, one mark with 95 % interval per `hue`."""
    need(frame, layer, density, hue, replicate)
    layers = ordered(frame[layer])
    look = looks(frame[hue])
    order = {name: place for place, name in enumerate(layers)}
    shares = frame.assign(place=frame[layer].map(order).astype(float), percent=100 * frame[density])
    counts: set[int] = set()
    empty = 0
    with style():
        figure, (axes,) = chart(width=max(6.4, 2.5 + 0.42 * len(layers)))
        for place, (name, part) in enumerate(parts_by(shares, hue)):
            points = mean_points(part, "place", "percent", replicate)
            points["at"] += (place - (len(look) - 1) / 2) * 0.7 / max(len(look), 1)
            counts |= set(points["n"])
            empty += int((points["estimate"] <= 0).sum())
            error_bars(axes, points[points["estimate"] > 0], look[name], name, log=True)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        slanted = len(layers) > 4 or max(len(str(name)) for name in layers) > 12
        rotate: dict[str, Any] = {"rotation": 45, "ha": "right"} if slanted else {}
        axes.set_xticks(range(len(layers)), [str(name) for name in layers], **rotate)
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.set(ylabel="density of the layer, % (log scale)", xlabel="layer, from input to output")
        axes.set_title(title)
        gone = f" {empty} empty layers are not drawn." if empty else ""
        finish(figure, [axes], hue, caption(counts, replicate) + gone)
    return figure


def matrix(
    frame: pd.DataFrame,
    row: str,
    column: str,
    value: str,
    *,
    diverging: bool = False,
    digits: int = 1,
    interval: bool = True,
    replicate: str = "seed",
    label: str = "",
    title: str = "",
) -> Chart:
    """Heat map of the mean of `value` over replicates, with its values written in; rows and columns in order of
    appearance, or of size where they are numbers.

    `interval` adds the half-width of the 95 % t interval. `diverging` centres the colours on zero, for differences.
    Raises InputError for a column that the frame lacks.
    """
    need(frame, row, column, value, replicate)
    rows, columns = (
        sorted(names) if all(isinstance(name, Real) for name in names) else names
        for names in (ordered(frame[row]), ordered(frame[column]))
    )
    means = np.full((len(rows), len(columns)), math.nan)
    texts, counts = {}, set()
    for i, first in enumerate(rows):
        for j, second in enumerate(columns):
            part = frame[(frame[row] == first) & (frame[column] == second)]
            mean = mean_interval(per_replicate(part, value, replicate))
            if not mean.n:
                continue
            counts.add(mean.n)
            means[i, j] = mean.estimate
            half = mean.high - mean.estimate
            texts[i, j] = f"{mean.estimate:.{digits}f}".replace("-", "−")
            if interval and not math.isnan(half):
                texts[i, j] += f"\n±{half:.{digits}f}"
    extent = float(np.nanmax(np.abs(means))) if np.isfinite(means).any() else 1.0
    limits: dict[str, Any] = {"vmin": -extent, "vmax": extent} if diverging else {}
    colours = colormaps["PuOr" if diverging else "cividis"].with_extremes(bad="#E2E2E2")
    with style():
        figure, (axes,) = chart(width=2.6 + 0.85 * len(columns), height=1.7 + 0.55 * len(rows))
        image = axes.imshow(means, aspect="auto", cmap=colours, **limits)
        axes.grid(visible=False)
        for (i, j), text in texts.items():
            red, green, blue, _ = image.cmap(image.norm(means[i, j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axes.set_xticks(range(len(columns)), [str(name) for name in columns])
        axes.set_yticks(range(len(rows)), [str(name) for name in rows])
        axes.set(xlabel=column.replace("_", " "), ylabel=row.replace("_", " "))
        axes.set_title(title)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label=label or value.replace("_", " "))
        empty = " Grey: not measured." if np.isnan(means).any() else ""
        note(figure, caption(counts, replicate) + empty)
    return figure


def image_grid(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str] = (),
    *,
    columns: int = 8,
    diverging: bool = True,
    label: str = "",
    title: str = "",
) -> Chart:
    """Images (each a 2-D array: filters, boolean masks, maps) in rows of `columns`, on one colour scale.

    Masks are drawn black where kept. `diverging` centres the colours of numbers on zero. Raises InputError for no
    images, arrays that are not 2-D, or titles that do not match.
    """
    listed = [np.asarray(image) for image in images]
    if not listed or any(image.ndim != 2 for image in listed):
        shapes = [image.shape for image in listed]
        raise InputError(f"an image grid takes 2-D arrays, at least one, not {shapes}")
    if titles and len(titles) != len(listed):
        raise InputError(f"{len(titles)} titles for {len(listed)} images: one each, or none")
    columns = min(columns, len(listed))
    lines = math.ceil(len(listed) / columns)
    masks = all(image.dtype == bool for image in listed)
    high = max(float(np.nanmax(image)) for image in listed)
    low = min(float(np.nanmin(image)) for image in listed)
    extent = max(abs(low), abs(high)) or 1.0
    scale: dict[str, Any] = {"cmap": "cividis", "vmin": low, "vmax": high}
    if masks:
        scale = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
    elif diverging:
        scale = {"cmap": "PuOr", "vmin": -extent, "vmax": extent}
    with style():
        side = 1.15 if columns > 4 else 1.8
        tall = side * max(image.shape[0] / image.shape[1] for image in listed)
        figure, axes = chart(
            lines,
            columns,
            width=side * columns + (0.2 if masks else 1.0),
            height=(tall + 0.25 * bool(titles)) * lines + 0.3 * (masks + bool(title)),
            share=False,
        )
        for place, panel in enumerate(axes):
            panel.grid(visible=False)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(place < len(listed))
            panel.spines[:].set_color("#999999")
            if place < len(listed):
                shown = panel.imshow(listed[place].astype(float), interpolation="nearest", **scale)
                panel.set_title(titles[place] if titles else "", fontsize=9.5, loc="center")
        if masks:
            note(figure, label or "Black: kept.")
        else:
            figure.colorbar(shown, ax=axes, label=label, shrink=0.9)
        if title:
            figure.suptitle(title, x=0.01, ha="left")
    return figure


def verdict_table(records: Iterable[Mapping[str, Any]]) -> Styler:
    """The records of `claims.ledger` as a table to display: a notebook's last cell."""
    rows = []
    for record in records:
        low, high = record["ci"]
        sign = _VERDICTS[record["verdict"]][0]
        rows.append(
            {name: record[name] for name in ("id", "claim", "statistic")}
            | {
                "estimate": _number(record["estimate"]),
                "95 % interval": "-" if low is None or high is None else f"{_number(low)} to {_number(high)}",
                "margin": _number(record["margin"]),
                "n": record["n"],
                "verdict": f"{sign} {record['verdict']}",
                "source": record["source"],
            }
        )
    table = pd.DataFrame(rows)
    left = [{"selector": "td, th", "props": "text-align: left; vertical-align: top; padding: 4px 8px"}]
    # A fixed identifier, because two runs of a notebook should give the same page.
    styler = Styler(table, uuid="verdicts", cell_ids=False).hide(axis="index").set_table_styles(left)
    styler = styler.format(escape="html")
    return styler.map(_shade, subset=["verdict"]) if rows else styler


def _shade(text: str) -> str:
    return f"background-color: {_VERDICTS[text[2:]][1]}; color: black; white-space: nowrap"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
