"""Tables to look at: heat maps with their numbers, rows of images, and the notebook's table of verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from lthlib.errors import InputError
from lthlib.evidence.intervals import mean_interval
from lthlib.evidence.style import Chart, chart, need, note, ordered, per_replicate, style, times

# Dark on light, told apart without colour by the words and the sign.
_VERDICTS = {
    "supported": ("✓", "#CDEBDD"),
    "not supported": ("✗", "#F6D2BF"),
    "inconclusive": ("?", "#E4E4E4"),
}


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
    """Heat map of the mean of `value` over replicates, rows by columns in order of appearance, numbers written in.

    `interval` adds the half-width of the 95 % t interval. `diverging` centres the colours on zero, for differences.
    Raises InputError for a column that the frame lacks.
    """
    need(frame, row, column, value, replicate)
    rows, columns = ordered(frame[row]), ordered(frame[column])
    means = np.full((len(rows), len(columns)), math.nan)
    texts, counts = {}, set()
    for i, first in enumerate(rows):
        for j, second in enumerate(columns):
            part = frame[(frame[row] == first) & (frame[column] == second)]
            one = mean_interval(per_replicate(part, value, replicate))
            if not one.n:
                continue
            counts.add(one.n)
            means[i, j] = one.estimate
            half = one.high - one.estimate
            texts[i, j] = f"{one.estimate:.{digits}f}" + (
                f"\n±{half:.{digits}f}" if interval and not math.isnan(half) else ""
            )
    extent = float(np.nanmax(np.abs(means))) if np.isfinite(means).any() else 1.0
    limits = {"vmin": -extent, "vmax": extent, "cmap": "PuOr"} if diverging else {"cmap": "cividis"}
    with style():
        figure, (axes,) = chart(width=2.6 + 0.85 * len(columns), height=1.7 + 0.55 * len(rows))
        image = axes.imshow(means, aspect="auto", **limits)
        axes.grid(visible=False)
        for (i, j), text in texts.items():
            red, green, blue, _ = image.cmap(image.norm(means[i, j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axes.set_xticks(range(len(columns)), [str(one) for one in columns])
        axes.set_yticks(range(len(rows)), [str(one) for one in rows])
        axes.set(xlabel=column.replace("_", " "), ylabel=row.replace("_", " "))
        axes.set_title(title)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label=label or value.replace("_", " "))
        shown = "Mean ± half the 95 % t interval" if interval else "Mean"
        note(figure, f"{shown} over {times(counts, replicate)}.")
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
        figure, axes = chart(
            lines,
            columns,
            width=side * columns + (0.2 if masks else 1.0),
            height=side * lines + 0.25 * bool(titles) + 0.5,
        )
        for place, one in enumerate(axes):
            one.set_axis_off()
            if place < len(listed):
                shown = one.imshow(listed[place].astype(float), interpolation="nearest", **scale)
                one.set_title(titles[place] if titles else "", fontsize=9.5, loc="center")
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
            {
                "id": record["id"],
                "claim": record["claim"],
                "statistic": record["statistic"],
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
    return styler.map(_shade, subset=["verdict"]) if rows else styler


def _shade(text: str) -> str:
    return f"background-color: {_VERDICTS[text[2:]][1]}; color: black; white-space: nowrap"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
