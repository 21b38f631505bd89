"""UniversalExplorer: type a function, choose knots, and see the masked random network that computes it."""

import ast
import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from lthlib.widgets.explorer import Explorer, dropdown, text_field, whole_slider
from lthlib.widgets.scene import Facts, Move

SIZE = (10.8, 3.5)
MOST = 20  # knots: more take longer than a slider may
POINTS = 401
LOW = 1e-5
CONSTRUCTED = "made for the function"


# ------------------------------------------------------------------------------------------- functions typed as text

Array = np.ndarray[Any, Any]
LONGEST = 200  # characters
_OF_NUMPY = ("sin", "cos", "tan", "exp", "log", "sqrt", "abs", "tanh", "sign", "floor")
FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(np, name) for name in _OF_NUMPY}
FUNCTIONS |= {"relu": lambda x: np.maximum(x, 0.0), "min": np.minimum, "max": np.maximum}
CONSTANTS = {"pi": math.pi, "e": math.e}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.Mod: operator.mod, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


def expression(text: str, variable: str = "x") -> Callable[[Array], Array]:
    """The function that a text such as `sin(2*pi*x) + x**2` describes: arithmetic only, read without `eval`.

    It takes float64 arrays of any shape to arrays of the same shape, elementwise. Numbers, `variable`, pi, e,
    + - * / % ** (also written ^) and the functions in FUNCTIONS. Every number is a float64, so that no power can grow
    without bound. Raises InputError, naming what is wrong, for anything else.
    """
    if not text.strip():
        raise InputError("the function is empty (valid: such as sin(2*pi*x))")
    if len(text) > LONGEST:
        raise InputError(f"the function has {len(text)} characters (valid: at most {LONGEST})")
    try:
        value = _value(ast.parse(text.strip().replace("^", "**"), mode="eval").body, variable)
    except InputError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{text!r} is no function of {variable} (valid: such as sin(2*pi*{variable}))") from error

    def function(x: Array) -> Array:
        values = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(value(values), dtype=np.float64), values.shape).copy()

    return function


def _value(node: ast.expr, variable: str) -> Callable[[Array], Any]:
    """A node as a function of x, all of it checked before the first number is computed."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            # A whole number beyond float64 would overflow instead of becoming infinite.
            if abs(number) > sys.float_info.max:
                raise InputError(f"the number {str(number)[:20]} is too large")
            constant = np.float64(number)
            return lambda x: constant
        case ast.Name(id=name):
            if name == variable:
                return lambda x: x
            if name not in CONSTANTS:
                raise unknown("name", name, (variable, *CONSTANTS, *FUNCTIONS))
            constant = np.float64(CONSTANTS[name])
            return lambda x: constant
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _applied(_OPERATORS[type(op)], [left, right], variable)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _OPERATORS:
            return _applied(_OPERATORS[type(sign)], [operand], variable)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in FUNCTIONS:
                raise unknown("function", name, FUNCTIONS)
            if len(args) != (numbers := 2 if name in ("min", "max") else 1):
                raise InputError(f"{name} takes {numbers} numbers, not {len(args)}")
            return _applied(FUNCTIONS[name], args, variable)
        case _:
            raise InputError(f"{ast.unparse(node)[:40]!r} is not arithmetic (valid: numbers, {variable}, + - * / % **)")


def _applied(function: Callable[..., Any], nodes: Sequence[ast.expr], variable: str) -> Callable[[Array], Any]:
    values = [_value(node, variable) for node in nodes]
    return lambda x: function(*(value(x) for value in values))


# ---------------------------------------------------------------------------------------------------- the explorer


@dataclass(frozen=True)
class UniversalFacts(Facts):
    """A function and the ticket made for it on [0, 1]: values at x, errors, the mask's ones, the source's size."""

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
    return lines.checked(UnivariateFunction(text.strip(), expression(text), (0.0, 1.0)))


def universal_facts(*, text: str, knots: int, law: str = "uniform", seed: int = 0) -> UniversalFacts:
    """The typed function against a mask on a random ReLU chain 1 -> 24 -> 200 -> 200 -> 1, no weight trained.

    Raises InputError for what `expression` refuses, functions that are not bounded on [0, 1], and knots out of range.
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
        f"{line_error:.2g}); {_size(ticket)}{missed}"
    )
    sizes = ticket.kept, ticket.source_parameters
    return UniversalFacts(readout, (text, law, seed), x, values, features, wanted, error, line_error, *sizes)


def _size(ticket: UniversalTicket) -> str:
    share = f"{100 * ticket.density:.2g} %"
    return f"{ticket.kept:,} of {ticket.source_parameters:,} random parameters kept ({share})"


def readout_facts(ticket: UniversalTicket, name: str, text: str) -> UniversalFacts:
    """The typed function read out from a given ticket's features by least squares; the ticket stays as it is.

    Raises InputError for what `expression` refuses, unbounded functions, and a ticket of several inputs.
    """
    if ticket.inputs != 1:
        raise InputError(f"ticket {name!r} has {ticket.inputs} inputs (valid here: 1)")
    function = univariate(text)
    x = np.linspace(0, 1, POINTS)
    features, values = ticket.features(x[:, None]), function(x)
    fit = least_squares(features, values)
    readout = (
        f"{text.strip()} read out from ticket {name}: largest error {fit.sup:.2g} on {POINTS} points, by "
        f"{fit.parameters} readout numbers on {features.shape[1]} features; {_size(ticket)}"
    )
    fitted, sizes = fit(features)[:, 0], (ticket.kept, ticket.source_parameters)
    return UniversalFacts(readout, (text, name), x, values, fitted, np.array([]), fit.sup, math.nan, *sizes)


def draw_universal(figure: FigureBase, facts: UniversalFacts) -> Sequence[Move]:
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

    return (move,)


class UniversalExplorer(Explorer):
    """Any function of x on [0, 1], typed as an expression, as a mask on a random network: error and size by knots.

    `tickets` by name: found earlier, of one input; the typed function is then read out linearly from their features.
    """

    def __init__(self, text: str = "sin(2*pi*x)", tickets: Mapping[str, UniversalTicket] | None = None) -> None:
        self.tickets = dict(tickets or {})
        rows = {
            "text": text_field("function of x", text),
            "knots": whole_slider("knots", 2, MOST, 12),
            "law": dropdown("source law", LAWS),
            "seed": whole_slider("source seed", 0, 20, 0),
        }
        if self.tickets:
            rows["ticket"] = dropdown("ticket", (CONSTRUCTED, *self.tickets))
        variants = {"knots": 5}, {"knots": 12}, {"text": "abs(x - 0.3)*exp(x)", "knots": 20}
        super().__init__("Universal explorer", rows, self._facts, draw_universal, SIZE, *variants)

    @classmethod
    def of_run(cls, folder: Path | str) -> "UniversalExplorer":
        """The explorer with the tickets of one input that a finished run of notebook 04 saved.

        Raises InputError where the folder holds none.
        """
        files = sorted((Path(folder) / "tickets").glob("*-ours-*.safetensors"))
        if not files:
            raise InputError(f"{str(folder)!r} holds no universal ticket (valid: a finished run of notebook 04)")
        return cls(tickets={path.stem: UniversalTicket.load(path) for path in files})

    def _facts(self, *, text: str, ticket: str = CONSTRUCTED, **settings: Any) -> UniversalFacts:
        if ticket == CONSTRUCTED:
            return universal_facts(text=text, **settings)
        if ticket not in self.tickets:
            raise unknown("ticket", ticket, (CONSTRUCTED, *self.tickets))
        return readout_facts(self.tickets[ticket], ticket, text)
