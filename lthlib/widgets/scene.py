"""Figures that answer a slider at once: what stays is drawn once, what moves is drawn over it.

An explorer is two pure functions. `facts(material, **settings)` computes all that one setting shows, as a frozen
dataclass with a `readout`, one line of text, a `background`, which names what the standing part of the figure depends
on, and `held`, which names what is drawn over it and changes with some controls only. `draw(figure, facts)` draws the
standing part and returns functions that put artists where other facts of the same background want them: the last the
artists that every event moves, those before it the held ones, which nothing else may touch: they are not called where
a picture of the same held ones is kept. Static figures, sliders and tests share both.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from textwrap import fill
from typing import Any, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import FigureBase
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator
from PIL import Image

from lthlib.evidence.style import Chart, style

DPI = 88
UNITS = 12  # filters shown
SIGNED = "PuOr"  # colours about zero
BACKGROUNDS, HELD = 6, 12  # pictures kept at a time, each of about a megabyte


@dataclass(frozen=True)
class Facts:
    """What one setting shows: its numbers in one line of plain text; `background` is equal where only artists move.

    Of these, the held ones stay where `held` is equal too.
    """

    readout: str
    background: Hashable
    held: Hashable = field(default=None, kw_only=True)


Move = Callable[[Any], Sequence[Artist]]
Draw = Callable[[FigureBase, Any], Sequence[Move]]
Size = tuple[float, float]
Value = TypeVar("Value")


def figure_of(draw: Draw, facts: Facts, size: Size) -> Chart:
    """The whole figure at one setting, `size` in inches."""
    figure = Chart(figsize=size)
    with style():
        _moved(draw(figure, facts), facts)
    return figure


def stacked(draw: Draw, listed: Sequence[Facts], size: Size) -> Chart:
    """The same figure at several settings, one below the other, each under its read-out."""
    figure = Chart(figsize=(size[0], (size[1] + 0.45) * len(listed)))
    with style():
        parts = figure.subfigures(len(listed), 1, squeeze=False)[:, 0]
        for part, facts in zip(parts, listed, strict=True):
            _moved(draw(part, facts), facts)
            part.text(0.01, 0.99, fill(facts.readout, int(14 * size[0])), fontsize=9.5, color="#444444", va="top")
    return figure


class Painter:
    """Renders facts as PNG; the last few standing parts, and the held artists over them, are kept as pictures."""

    def __init__(self, draw: Draw, size: Size) -> None:
        self.draw, self.size = draw, size
        self._standing: OrderedDict[Hashable, tuple[FigureCanvasAgg, Any, Sequence[Move]]] = OrderedDict()
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def png(self, facts: Facts) -> bytes:
        """The figure at these facts, `DPI` dots an inch."""
        with style():
            kept = _kept(self._standing, facts.background, lambda: self._stand(facts), BACKGROUNDS)
            canvas, standing, (*holds, move) = kept

            def hold() -> Any:
                canvas.restore_region(standing)
                _draw(canvas, _moved(holds, facts))
                return canvas.copy_from_bbox(canvas.figure.bbox)

            picture = _kept(self._held, (facts.background, facts.held), hold, HELD) if holds else standing
            canvas.restore_region(picture)
            _draw(canvas, move(facts))
        with BytesIO() as buffer:
            # Read in place: an array with the alpha cut off would be copied twice.
            size = canvas.get_width_height()
            pixels = Image.frombuffer("RGBA", size, canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
            pixels.save(buffer, "png", compress_level=1)
            return buffer.getvalue()

    def _stand(self, facts: Facts) -> tuple[FigureCanvasAgg, Any, Sequence[Move]]:
        figure = Chart(figsize=self.size, dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        moves = self.draw(figure, facts)
        # Not set_animated: matplotlib draws animated images all the same.
        moving = _moved(moves, facts)
        for artist in moving:
            artist.set_visible(False)
        canvas.draw()
        # A legend that is held shows its entries as visible as their artists are.
        for artist in moving:
            artist.set_visible(True)
        return canvas, canvas.copy_from_bbox(figure.bbox), moves


def _moved(moves: Sequence[Move], facts: Facts) -> list[Artist]:
    return [artist for move in moves for artist in move(facts)]


def _draw(canvas: FigureCanvasAgg, artists: Sequence[Artist]) -> None:
    renderer = canvas.get_renderer()
    for artist in sorted(artists, key=Artist.get_zorder):
        artist.draw(renderer)


def _kept(store: OrderedDict[Hashable, Value], key: Hashable, make: Callable[[], Value], most: int) -> Value:
    """The value under a key, made where there is none; of more than `most`, the one not asked for longest goes."""
    value = store.pop(key) if key in store else make()
    store[key] = value
    while len(store) > most:
        store.popitem(last=False)
    return value


def log_percent(axes: Axes, ticks: Sequence[float], *, falling: bool = True) -> None:
    """A log axis of densities labelled in percent at `ticks`, falling to the right as sparsity rises."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{100 * tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if falling:
        axes.invert_xaxis()


def picture(
    figure: FigureBase,
    rectangle: tuple[float, float, float, float],
    title: str,
    image: np.ndarray,
    cmap: str = "gray_r",
    **options: Any,
) -> AxesImage:
    """An image under a title, in grey (black: most) or other colours.

    `rectangle`: left, bottom, width, height in [0, 1].
    """
    axes = figure.add_axes(rectangle)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_visible(False)
    return axes.imshow(image, cmap=cmap, interpolation="nearest", **options)


def scale_about_zero(image: AxesImage, like: np.ndarray) -> None:
    """Colours for values as far from zero, on both sides, as those of `like` are."""
    extent = float(np.nanmax(np.abs(like))) or 1.0
    image.set_clim(-extent, extent)


def filters(weight: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """The first weights of a layer as one image: units over the input image, kernels, or the whole matrix coarsely."""
    if weight.ndim == 4:
        return tiles(weight[:UNITS].mean(axis=1), 3)
    if weight.shape[1] == math.prod(input_shape):
        return tiles(weight[:UNITS].reshape(-1, *input_shape).mean(axis=1), 3)
    return coarse(weight)


def kernels_beside(weight: np.ndarray) -> np.ndarray:
    """A layer's numbers as one matrix, kernels side by side."""
    if weight.ndim == 2:
        return weight
    outputs, inputs, height, width = weight.shape
    return weight.transpose(0, 2, 1, 3).reshape(outputs * height, inputs * width)


def coarse(matrix: np.ndarray, most: int = 120) -> np.ndarray:
    """A matrix (rows, columns) of at most `most` a side, block means of the given one: pictures show no more."""
    rows, columns = (max(1, -(-length // most)) for length in matrix.shape)
    if rows == columns == 1:
        return matrix
    heights, widths = -(-matrix.shape[0] // rows), -(-matrix.shape[1] // columns)
    padded = np.full((heights * rows, widths * columns), np.nan)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    # Blocks at the edge hold fewer entries, but none is empty.
    return np.nanmean(padded.reshape(heights, rows, widths, columns), axis=(1, 3))


def tiles(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (count, h, w) side by side in one (rows h', columns w') array, a line of NaN between them."""
    count, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + 1), (place % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet
