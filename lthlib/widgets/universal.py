"""UniversalExplorer: type a function, choose knots, and see the masked random network that computes it."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as controls
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase

from lthlib.errors import InputError, unknown
from lthlib.evidence.style import BLACK, BLUE, ORANGE, RED
from lthlib.theory.universal import piecewise_linear as lines
from lthlib.theory.universal.chains import LAWS, UniversalTicket
from lthlib.theory.universal.construct import Design, function_ticket
from lthlib.theory.universal.piecewise_linear import UnivariateFunction
from lthlib.theory.universal.univariate import BlockPruning
from lthlib.theory.universal.universality import least_squares
from lthlib.widgets.explorer import Explorer, dropdown, labelled, whole_slider
from lthlib.widgets.expressions import parse
from lthlib.widgets.scene import Move, shared

SIZE = (10.8, 3.5)
MOST = 20  # knots: more take longer than a slider may
POINTS = 401
LOW = 1e-5
MADE = "made for the function"


@dataclass(frozen=True)
class UniversalFacts:
    """A function and the ticket made for it on [0, 1]: values at x, errors, the mask's ones, the source's size."""

    readout: str
    background: Hashable
    x: np.ndarray
    function: np.ndarray
    ticket: np.ndarray
    knots: np.ndarray
    error: float
    line_error: float
    kept: int
    source: int


@lru_cache(maxsize=128)
def ticket_of(text: str, knots: int, law: str, seed: int) -> UniversalTicket:
    """The universal ticket of one typed function, `knots` pieces, from the source of one seed."""
    return function_ticket(
        seed, univariate(text), design=Design((knots,)), pruning=BlockPruning(tolerance=1e-3), law=law
    )


def univariate(text: str) -> UnivariateFunction:
    """A typed function of x on [0, 1]. Raises InputError for text that is no function, NaN and unbounded values."""
    return lines.checked(UnivariateFunction(text.strip(), parse(text), (0.0, 1.0)))


def universal_facts(*, text: str, knots: int, law: str = "uniform", seed: int = 0) -> UniversalFacts:
    """The typed function against a mask on a random ReLU chain 1 -> 24 -> 200 -> 200 -> 1, no weight trained.

    Raises InputError for what `parse` refuses, functions that are not bounded on [0, 1], and knots out of range.
    """
    function = univariate(text)
    ticket = ticket_of(text, knots, law, seed)
    x = np.linspace(0, 1, POINTS)
    values, features = function(x), ticket.features(x[:, None])[:, 0]
    wanted = lines.knots(function, knots, "equidistributed")
    error = float(np.abs(values - features).max())
    line_error = lines.line_error(function, wanted)
    missed = f"; {'; '.join(ticket.failures)}" if ticket.failures else ""
    readout = (
        f"{text.strip()} with {knots} pieces: largest error {error:.2g} on {POINTS} points (the broken line's own "
        f"{line_error:.2g}); {ticket.kept:,} of {ticket.source_parameters:,} random parameters kept "
        f"({100 * ticket.density:.2g} %){missed}"
    )
    return UniversalFacts(
        readout=readout,
        background=(text, law, seed),
        x=x,
        function=values,
        ticket=features,
        knots=wanted,
        error=error,
        line_error=line_error,
        kept=ticket.kept,
        source=ticket.source_parameters,
    )


def readout_facts(ticket: UniversalTicket, name: str, text: str) -> UniversalFacts:
    """The typed function read out from a given ticket's features by least squares; the ticket stays as it is.

    Raises InputError for what `parse` refuses, unbounded functions, and a ticket of several inputs.
    """
    if ticket.inputs != 1:
        raise InputError(f"ticket {name!r} has {ticket.inputs} inputs (valid here: 1)")
    function = univariate(text)
    x = np.linspace(0, 1, POINTS)
    features, values = ticket.features(x[:, None]), function(x)
    fit = least_squares(features, values)
    readout = (
        f"{text.strip()} read out from ticket {name}: largest error {fit.sup:.2g} on {POINTS} points, by "
        f"{fit.parameters} readout numbers on {features.shape[1]} features; {ticket.kept:,} of "
        f"{ticket.source_parameters:,} random parameters kept ({100 * ticket.density:.2g} %)"
    )
    return UniversalFacts(
        readout=readout,
        background=(text, name),
        x=x,
        function=values,
        ticket=fit(features)[:, 0],
        knots=np.array([]),
        error=fit.sup,
        line_error=math.nan,
        kept=ticket.kept,
        source=ticket.source_parameters,
    )


def draw_universal(figure: FigureBase, facts: UniversalFacts) -> Move:
    """Function and ticket, their difference, and the parameters kept."""
    low, high = float(facts.function.min()), float(facts.function.max())
    room = 0.12 * ((high - low) or 1.0)
    axes = figure.add_axes((0.06, 0.17, 0.4, 0.68))
    axes.plot(facts.x, facts.function, color=BLACK, linewidth=3, alpha=0.35, label="function")
    axes.set(xlim=(0, 1), ylim=(low - room, high + 2.2 * room), xlabel="x", ylabel="value")
    axes.set_title("A mask on a random network")
    (ticket,) = axes.plot([], [], color=BLUE, linewidth=1.4, label="ticket")
    (knots,) = axes.plot([], [], "|", color=RED, ms=10, mew=1.5, label="knots")
    axes.legend(loc="upper center", fontsize=8, ncols=3)
    middle = figure.add_axes((0.54, 0.17, 0.27, 0.68))
    middle.set(xlim=(0, 1), yscale="log", ylim=(LOW, 3), xlabel="x", ylabel="|function - ticket| (log)")
    middle.minorticks_off()
    middle.set_title("Error")
    (error,) = middle.plot([], [], color=BLUE)
    (floor,) = middle.plot([0, 1], [1, 1], color=BLACK, linestyle="--", linewidth=1, label="broken line's error")
    middle.legend(loc="upper right", fontsize=8)
    right = figure.add_axes((0.88, 0.17, 0.11, 0.68))
    right.set(xlim=(-0.6, 0.6), yscale="log", ylim=(10, 1e5), xticks=[], ylabel="parameters (log)")
    right.axhline(facts.source, color=BLACK, linewidth=1.5)
    right.text(0, facts.source * 1.15, "source", ha="center", fontsize=8.5)
    right.set_title("Kept")
    (bar,) = right.plot([0, 0], [10, 10], color=ORANGE, linewidth=18, solid_capstyle="butt")

    def move(now: UniversalFacts) -> Sequence[Artist]:
        ticket.set_data(now.x, now.ticket)
        knots.set_data(now.knots, np.full(len(now.knots), low - 0.6 * room))
        error.set_data(now.x, np.maximum(np.abs(now.function - now.ticket), LOW))
        floor.set_ydata([np.maximum(now.line_error, LOW)] * 2)
        bar.set_ydata([10, max(10, now.kept)])
        return (ticket, knots, error, floor, bar)

    return move


class UniversalExplorer(Explorer):
    """Any function of x on [0, 1], typed as an expression, as a mask on a random network: error and size by knots.

    `tickets` by name: found earlier, of one input; the typed function is then read out linearly from their features.
    """

    def __init__(self, text: str = "sin(2*pi*x)", tickets: Mapping[str, UniversalTicket] | None = None) -> None:
        self.tickets = dict(tickets or {})
        first = {"text": text, "knots": 12, "law": "uniform", "seed": 0} | ({"ticket": MADE} if self.tickets else {})
        examples = shared(first, {"knots": 5}, {"knots": 12}, {"text": "abs(x - 0.3)*exp(x)", "knots": 20})
        super().__init__("Universal explorer", self._controls, self._facts, draw_universal, SIZE, examples)

    @classmethod
    def of_run(cls, folder: Path | str) -> "UniversalExplorer":
        """The explorer with the tickets of one input that a finished run of notebook 04 saved.

        Raises InputError where the folder holds none.
        """
        files = sorted((Path(folder) / "tickets").glob("*-ours-*.safetensors"))
        if not files:
            raise InputError(f"{str(folder)!r} holds no universal ticket (valid: a finished run of notebook 04)")
        return cls(tickets={path.stem: UniversalTicket.load(path) for path in files})

    def _facts(self, *, text: str, ticket: str = MADE, **settings: Any) -> UniversalFacts:
        if ticket == MADE:
            return universal_facts(text=text, **settings)
        if ticket not in self.tickets:
            raise unknown("ticket", ticket, (MADE, *self.tickets))
        return readout_facts(self.tickets[ticket], ticket, text)

    def _controls(self) -> dict[str, controls.Widget]:
        more: dict[str, Any] = labelled("function of x")
        made = {
            "text": controls.Text(value=str(self.examples[0]["text"]), **more),
            "knots": whole_slider("knots", 2, MOST, 12),
            "law": dropdown("source law", LAWS),
            "seed": whole_slider("source seed", 0, 20, 0),
        }
        return made | ({"ticket": dropdown("ticket", (MADE, *self.tickets))} if self.tickets else {})
