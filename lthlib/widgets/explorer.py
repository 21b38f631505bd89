"""What all explorers share: controls, a picture, one line of numbers, one busy sign, one line for errors.

An explorer makes its widgets when it is first shown, and not at all in a run without a person (`LTH_BATCH` is set by
the runner): an executed notebook then holds one line of text after its static figure.
"""

import asyncio
import html
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import log10
from threading import RLock
from typing import Any

import ipywidgets as controls
from ipywidgets import Widget

from lthlib.errors import InputError
from lthlib.evidence.style import Chart
from lthlib.training.parallel import on_cores
from lthlib.widgets.scene import Draw, Facts, Painter, Size, figure_of, stacked

BATCH = "LTH_BATCH"
PAUSE = 0.02  # seconds without another event after which a figure is redrawn
_shown: dict[tuple[str, str], "Explorer"] = {}


class Explorer:
    """Controls over a pure function: each change of a control redraws the picture and the read-out.

    `rows` are the controls by the name of their setting; `facts(**settings)` and `draw` are as in `scene`; `variants`
    of the first settings (three say most) make the static figure; `extras` gives further widgets below the controls.
    """

    def __init__(
        self,
        title: str,
        rows: Mapping[str, "Row"],
        facts: Callable[..., Facts],
        draw: Draw,
        size: Size,
        *variants: Mapping[str, Any],
    ) -> None:
        self.title, self.rows, self.facts, self.draw, self.size = title, rows, facts, draw, size
        first = {name: row.value for name, row in rows.items()}
        self.examples = [{**first, **variant} for variant in variants]
        self._painter = Painter(draw, size)
        self._box: controls.VBox | None = None
        self.controls: dict[str, Widget] = {}
        self.redraws = 0
        # A training that ends redraws from its own thread.
        self._lock = RLock()
        self._deaf = False

    # --- without widgets ---

    def figure(self, **settings: Any) -> Chart:
        """The figure at one setting, as the widget shows it. Raises InputError for settings that do not fit."""
        return figure_of(self.draw, self.facts(**settings), self.size)

    def readout(self, **settings: Any) -> str:
        """The line of numbers at one setting."""
        return self.facts(**settings).readout

    def static(self, *settings: Mapping[str, Any]) -> Chart:
        """The figure at several settings, by default three that say most: complete without a kernel."""
        return stacked(self.draw, [self.facts(**example) for example in settings or self.examples], self.size)

    # --- with widgets ---

    @property
    def box(self) -> controls.VBox:
        """The widget itself, made when first asked for."""
        if self._box is not None:
            return self._box
        self.controls = {name: row.make() for name, row in self.rows.items()}
        self.image = controls.Image(format="png", layout=controls.Layout(max_width="100%", object_fit="contain"))
        self.numbers = controls.HTML()
        self.sign = controls.HTML()
        self.problem = controls.HTML()
        heading = controls.HTML(f"<b>{html.escape(self.title)}</b>")
        top = controls.HBox([heading, self.sign], layout=controls.Layout(gap="12px"))
        wrap = controls.Layout(display="flex", flex_flow="row wrap")
        rows = [top, controls.Box(list(self.controls.values()), layout=wrap), *self.extras()]
        self._box = controls.VBox([*rows, self.numbers, self.problem, self.image])
        self._box.add_class("lth-explorer")
        redraw = Debounced(self.redraw)
        for control in self.controls.values():
            control.observe(lambda _: None if self._deaf else redraw(), "value")
        self.redraw()
        return self._box

    @property
    def settings(self) -> dict[str, Any]:
        """What the controls say now."""
        return {name: control.value for name, control in self.controls.items()}

    def extras(self) -> Sequence[Widget]:
        """Further widgets below the controls."""
        return ()

    def redraw(self) -> None:
        """Shows the settings as they are now; a mistake is told in one line and the last picture stays."""
        # On one core: at each end of many small steps, threads would wait for a core that other work holds.
        with self._lock, self.busy("drawing"), on_cores(1):
            facts = self.facts(**self.settings)
            self.image.value = self._painter.png(facts)
            self.numbers.value = f'<span class="lth-readout" role="status">{html.escape(facts.readout)}</span>'
            self.follow(facts)
            self.redraws += 1

    def follow(self, facts: Any) -> None:
        """Sets what else depends on the facts that have just been drawn: further widgets, other controls' choices."""

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Meanwhile a control that changes redraws nothing, because the picture shows it already."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Shows the sign meanwhile; errors end in the widget's own line."""
        self.sign.value = f"<span class='lth-busy'>⏳ {html.escape(what)} …</span>"
        self.tell("")
        try:
            yield
        except Exception as error:
            self.tell(one_line(error))
        finally:
            self.sign.value = ""

    def tell(self, problem: str) -> None:
        """One line where errors go; empty clears it."""
        red = f"<span class='lth-error' role='alert' style='color:#A03000'>{html.escape(problem)}</span>"
        self.problem.value = red if problem else ""

    def close(self) -> None:
        """Ends the widget and all its parts; the explorer can be shown anew."""
        if self._box is not None:
            close_all(self._box)
        self._box, self.controls = None, {}

    def _repr_mimebundle_(self, **keywords: Any) -> Any:
        """How Jupyter shows the explorer; another one that this cell showed before is closed."""
        if os.environ.get(BATCH):
            return {"text/plain": f"{self.title}: an interactive control; open the notebook in JupyterLab to use it."}
        place = (type(self).__name__, _cell())
        before = _shown.get(place)
        if before is not None and before is not self:
            before.close()
        _shown[place] = self
        return self.box._repr_mimebundle_(**keywords)


class Debounced:
    """Calls `work` once when events have paused, where an event loop runs; at once where none does (tests)."""

    def __init__(self, work: Callable[[], None], pause: float = PAUSE) -> None:
        self.work, self.pause = work, pause
        self._waiting: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.work()
            return
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = loop.call_later(self.pause, self.work)


def one_line(error: BaseException) -> str:
    """An error as one line: the sentence of bad input, else kind and message."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def close_all(widget: Widget) -> None:
    """Closes a widget with its children, their layouts and styles, none of which ipywidgets closes by itself."""
    for child in getattr(widget, "children", ()):
        close_all(child)
    for name in ("layout", "style"):
        if isinstance(part := getattr(widget, name, None), Widget):
            part.close()
    widget.close()


def labelled(text: str) -> dict[str, Any]:
    """Keywords that every control takes: its label and width."""
    return {"description": text, "layout": controls.Layout(width="340px"), "style": {"description_width": "110px"}}


@dataclass(frozen=True)
class Row:
    """A control that `make` makes when its explorer is first shown, and the value that it starts with."""

    value: Any
    make: Callable[[], Widget]


def row(kind: type[Widget], text: str, value: Any, **options: Any) -> Row:
    """A control of a kind under its label."""
    return Row(value, lambda: kind(value=value, **options, **labelled(text)))


def settled(kind: type[Widget], text: str, value: Any, **options: Any) -> Row:
    """A control of which only a settled value counts."""
    return row(kind, text, value, continuous_update=False, **options)


def density_slider(lowest: float = 0.005, value: float = 0.1) -> Row:
    """Density on a log scale from `lowest` to 1, twenty steps a decade."""
    return log_slider("density", round(log10(lowest), 2), 0, value, 0.05, ".4f")


def log_slider(text: str, low: float, high: float, value: float, step: float, form: str) -> Row:
    """A number from 10^low to 10^high, its exponent in steps; `form` is the format of the read-out."""
    grid = {"base": 10, "min": low, "max": high, "step": step, "readout_format": form}
    return settled(controls.FloatLogSlider, text, value, **grid)


def dropdown(text: str, options: Sequence[Any], value: Any = None) -> Row:
    """A choice of names; the first is the default."""
    return row(controls.Dropdown, text, options[0] if value is None else value, options=list(options))


def text_field(text: str, value: str = "") -> Row:
    """A line to type in."""
    return settled(controls.Text, text, value)


def whole_slider(text: str, low: int, high: int, value: int) -> Row:
    """A whole number from `low` to `high`."""
    return settled(controls.IntSlider, text, value, min=low, max=high)


def slider(text: str, low: float, high: float, value: float, step: float) -> Row:
    """A number from `low` to `high`."""
    return settled(controls.FloatSlider, text, value, min=low, max=high, step=step)


def _cell() -> str:
    """The cell that is being run, as JupyterLab names it; empty elsewhere."""
    from IPython import get_ipython

    shell = get_ipython()
    parent = getattr(shell, "parent_header", None) or {}
    with suppress(AttributeError):
        parent = shell.kernel.get_parent("shell") or parent
    return str((parent.get("metadata") or {}).get("cellId", ""))
