"""The look that all figures share: one colour, marker and line a name, the same across the book."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from io import BytesIO
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lthlib.errors import InputError, unknown
from lthlib.evidence.intervals import Interval, mean_interval

Replicates = Sequence[float] | np.ndarray | pd.Series
Curve = Callable[[np.ndarray], np.ndarray]
Look = tuple[str, str, str]  # colour, marker, line style

LABELS = {
    "density": "density: weights kept, % (log scale)",
    "accuracy": "test accuracy (%)",
    "n_free": "trainable numbers (log scale)",
    "n_stored": "stored numbers (log scale)",
    "macs": "multiply-accumulates per example (log scale)",
    "early_stop_step": "early-stopping step",
    "early_stopping_step": "early-stopping step",
    "difference": "difference (percentage points)",
}

# Okabe and Ito's palette ("Color Universal Design", 2008), its yellow darkened to be seen on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PINK, OLIVE = "#0072B2", "#D55E00", "#CC79A7", "#9A8700"
GREY, BROWN, VIOLET = "#7A7A7A", "#7B4A12", "#5B3A8E"
PALETTE = (BLUE, RED, GREEN, PINK, ORANGE, SKY, OLIVE, VIOLET, BROWN, GREY, BLACK)

# Bases and arms are never hues of one figure, so that they may share colours; a control is dashed.
_NAMED = {
    "dense": (BLACK, "s", "-"),
    # bases
    "canonical": (BLUE, "o", "-"),
    "dct": (RED, "^", "-"),
    "dct@input": (ORANGE, "v", "-"),
    "dct@kernel": (BROWN, "<", "-"),
    "haar": (GREEN, "D", "-"),
    "haar@input": (OLIVE, "d", "-"),
    "hadamard": (PINK, "P", "-"),
    "random": (GREY, "X", "--"),
    "svd": (SKY, "p", "-"),
    "units": (VIOLET, "h", "-"),
    # arms
    "ticket": (BLUE, "o", "-"),
    "reinit": (RED, "v", "--"),
    "random mask": (GREY, "X", "--"),
    "layerwise shuffle": (PINK, "P", "--"),
    "inverted": (BROWN, "<", "--"),
    "both random": (BLACK, "x", ":"),
    "one-shot": (OLIVE, "d", "-"),
    "magnitude": (SKY, "p", "-"),
    "snip": (GREEN, "D", "-"),
    "grasp": (VIOLET, "h", "-"),
    "synflow": (BROWN, ">", "-"),
    "elastic": (ORANGE, "^", "-"),
}
_ALIASES = {
    "imp": "ticket",
    "ett": "elastic",
    "direct": "ticket",  # found on the network itself, where others are carried to it
    "random reinit": "reinit",
    "shuffle": "layerwise shuffle",
    "layer shuffle": "layerwise shuffle",
    "inverted score": "inverted",
}
_MARKERS = "o^DvPphs<>dX"


class Chart(Figure):
    """A matplotlib figure that a notebook shows as the cell's value and that pyplot never holds open.

    It is laid out when first saved or shown, and stays so: matplotlib would lay it out anew, and draw it once more for
    that, each time, which takes as long again as all drawing.
    """

    def savefig(self, fname: Any, *, dpi: Any = "figure", **options: Any) -> None:
        """Saves the figure as matplotlib does."""
        engine, before = self.get_layout_engine(), self.dpi
        if engine is not None:
            self.dpi = dpi if isinstance(dpi, int | float) else before
            engine.execute(self)
            self.dpi = before
            self.set_layout_engine(None)
        super().savefig(fname, dpi=dpi, **options)

    def _repr_png_(self) -> bytes:
        with BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=110, facecolor="white")
            return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The book's matplotlib settings, for the time of a `with` block."""
    settings: dict[Any, Any] = {
        "figure.facecolor": "white",  # solid, so that a dark page does not shine through
        "savefig.facecolor": "white",
        "axes.facecolor": "white",
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.titlelocation": "left",
        "axes.labelsize": 10.5,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.7,
        "lines.markersize": 5,
        "svg.fonttype": "path",  # looks the same where the font is missing
    }
    with mpl.rc_context(settings):
        yield


def looks(names: Iterable[object]) -> dict[object, Look]:
    """Colour, marker and line style of each name: fixed for the bases and arms of the book, else the next free ones.

    The names of a column are taken in the order of `ordered`.
    """
    listed = ordered(names) if isinstance(names, pd.Series) else list(dict.fromkeys(names))
    look: dict[object, Look] = {}
    for name in listed:
        plain = str(name).lower().replace("_", " ").strip()
        fixed = _NAMED.get(_ALIASES.get(plain, plain))
        if fixed and fixed not in look.values():
            look[name] = fixed
    used, marked = ({taken[part] for taken in look.values()} for part in (0, 1))
    free = [colour for colour in PALETTE if colour not in used] or list(PALETTE)
    marks = [marker for marker in _MARKERS if marker not in marked] or _MARKERS
    for place, name in enumerate([name for name in listed if name not in look]):
        line = ("-", "--", ":")[place // len(free) % 3]
        look[name] = (free[place % len(free)], marks[place % len(marks)], line)
    return {name: look[name] for name in listed}


def chart(
    rows: int = 1, columns: int = 1, *, width: float = 6.4, height: float = 4.0, share: bool = True
) -> tuple[Chart, list[Axes]]:
    """A figure of rows x columns axes (inches), `share`: one y axis along a row; call it inside `style()`."""
    figure = Chart(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if share else False)
    return figure, list(axes.flat)


def note(figure: Figure, text: str) -> None:
    """A caption in small print below the axes: what the marks are, and n."""
    # About 15 characters an inch at this size: matplotlib does not break lines by itself.
    wrapped = fill(text, max(20, int(15 * figure.get_figwidth())))
    figure.supxlabel(wrapped, fontsize=8.5, color="#444444", x=0.01, ha="left")


def need(frame: pd.DataFrame, *columns: str | None) -> None:
    """Raises InputError for a column that the frame lacks, or a frame without rows."""
    for column in columns:
        if column is not None and column not in frame.columns:
            raise unknown("column", column, map(str, frame.columns))
    if frame.empty:
        raise InputError("the frame to draw has no rows: select some that there are")


def ordered(column: pd.Series) -> list[Any]:
    """Distinct values in order of appearance; a categorical column's own order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [value for value in column.cat.categories if (column == value).any()]
    return list(column.dropna().unique())


def parts_by(frame: pd.DataFrame, column: str) -> list[tuple[Any, pd.DataFrame]]:
    """The rows of each distinct value of a column, in the order of `ordered`."""
    return [(name, frame[frame[column] == name]) for name in ordered(frame[column])]


def per_replicate(rows: pd.DataFrame, value: str, replicate: str) -> np.ndarray:
    """One number a replicate: the mean of its rows, so that two rows of one seed never count as two samples."""
    return rows.groupby(replicate, observed=True)[value].mean().dropna().to_numpy(float)


def mean_points(rows: pd.DataFrame, x: str, y: str, replicate: str, group: str | None = None) -> pd.DataFrame:
    """One row (at, estimate, low, high, n) a value of `group` (default x), by `at`, the mean x: the mean of y with its
    95 % t interval over replicates. Groups without a finite y are left out."""
    parts = rows.groupby(group or x, observed=True)
    means = [(part[x].mean(), *astuple(mean_interval(per_replicate(part, y, replicate)))) for _, part in parts]
    points = pd.DataFrame(means, columns=["at", "estimate", "low", "high", "n"], dtype=float).astype({"n": int})
    return points[points["n"] > 0].sort_values("at", kind="stable")


def caption(counts: set[int], replicate: str) -> str:
    """What the marks are, and n, in one sentence, from the numbers of replicates behind the points."""
    low, high = min(counts, default=0), max(counts, default=0)
    n = f"n = {low} {replicate}{'s' if low != 1 else ''}" if low == high else f"n = {low} to {high} {replicate}s"
    return f"Mean and 95 % t interval over {n}." if high > 1 else f"{n}, so that there is no interval."


def legend(figure: Chart, axes: Iterable[Axes], title: str) -> None:
    """One legend for all panels, beside the last: it never covers data."""
    entries: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        name = title.replace("_", " ") or None
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", title=name)


def finish(figure: Chart, axes: Iterable[Axes], hue: str, text: str, title: str = "") -> None:
    """The legend under the name of `hue`, a caption, and a title over all panels where one is given."""
    legend(figure, axes, hue)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    note(figure, text)


def error_bars(
    axes: Axes, points: pd.DataFrame, look: Look, label: object, *, log: bool = False, joined: float = 0.0
) -> set[int]:
    """Marks with their intervals at `mean_points`, joined by a line of a width (0: none); all n behind the points."""
    if points.empty:
        return set()
    colour, marker, line = look
    at, middle = points["at"].to_numpy(), points["estimate"].to_numpy()
    low, high = (np.nan_to_num(half.to_numpy()) for half in (middle - points["low"], points["high"] - middle))
    # A limit at or below zero has no place on a log axis: the bar then ends just below the mark's decade.
    low = np.minimum(low, 0.9 * middle) if log else low
    bars: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 2.5, "elinewidth": 1.3, "label": str(label)}
    axes.errorbar(at, middle, yerr=[low, high], **bars)
    if joined:
        axes.plot(at, middle, line, color=colour, linewidth=joined)
    return set(points["n"])


def mean_line(
    axes: Axes, points: pd.DataFrame, look: Look, label: object, *, markers: bool = True, shade: float = 0.18
) -> set[int]:
    """A line through `mean_points` in the band of their intervals, `shade` its opacity (0: none); all n behind them."""
    if points.empty:
        return set()
    colour, marker, line = look
    marker = marker if markers else ""
    axes.plot(points["at"], points["estimate"], color=colour, marker=marker, linestyle=line, label=str(label))
    if shade:
        axes.fill_between(points["at"], points["low"], points["high"], color=colour, alpha=shade, linewidth=0)
    return set(points["n"])


def draw_means(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, hue: str, replicate: str, mark: Callable[..., set[int]],
    look: Mapping[Any, Look] | None = None, group: str | None = None, **options: Any,
) -> set[int]:  # fmt: skip
    """The `mean_points` of each value of `hue` by `mark` (`error_bars`, `mean_line`); all n behind the points.

    `look` is that of all panels (default: of these rows), `options` are those of `mark`.
    """
    look = look or looks(rows[hue])
    counts: set[int] = set()
    for name, part in parts_by(rows, hue):
        counts |= mark(axes, mean_points(part, x, y, replicate, group), look[name], name, **options)
    return counts


def theory_lines(
    axes: Axes, theory: Mapping[str, Curve] | None, look: Mapping[object, Look], at: np.ndarray, named: str, dashes: str
) -> None:
    """Functions of x at the places `at`: one called like a name of `look` in its colour and the dash `named`."""
    colours = {str(name): colour for name, (colour, _, _) in look.items()}
    styles = dashes.split()
    for place, (label, curve) in enumerate((theory or {}).items()):
        dash = named if label in colours else styles[place % len(styles)]
        axes.plot(
            at, curve(at), color=colours.get(label, "#555555"), linestyle=dash, linewidth=1.3, zorder=1,
            label=f"theory: {label}",
        )  # fmt: skip


def band(axes: Axes, interval: Interval, label: str, vertical: bool = False) -> None:
    """The dense baseline: a dashed line in its 95 % band."""
    line, span = (axes.axvline, axes.axvspan) if vertical else (axes.axhline, axes.axhspan)
    label = f"{label} (n = {interval.n})"
    line(interval.estimate, color=BLACK, linewidth=1.1, linestyle=(0, (5, 3)), label=label, zorder=1)
    if not math.isnan(interval.low):
        span(interval.low, interval.high, color=BLACK, alpha=0.12, linewidth=0, zorder=0)
