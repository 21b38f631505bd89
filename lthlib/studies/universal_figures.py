"""Figures of notebook 04: blocks with their errors, errors against knots, errors against parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lthlib.evidence.style import (
    BLACK,
    BLUE,
    GREY,
    RED,
    Chart,
    chart,
    looks,
    mean_line,
    need,
    note,
    ordered,
    parts_by,
    style,
)
from lthlib.theory.universal import piecewise_linear as lines
from lthlib.theory.universal.chains import live_part, run_chain
from lthlib.theory.universal.construct import Design
from lthlib.theory.universal.piecewise_linear import UnivariateFunction
from lthlib.theory.universal.univariate import BlockPruning, univariate_block

Array = np.ndarray[Any, Any]


def block_errors(
    functions: Sequence[tuple[UnivariateFunction, int, float]], seed: int = 0, points: int = 2001
) -> Chart:
    """Each function with the block found for it (pieces, tolerance) above its error: effective net and masked source.

    The effective net is the sum of ramps read off the achieved parameters; the masked source runs every unit. Knots are
    ticks at the zero line; the band is the error of the broken line on the achieved knots.
    """
    with style():
        figure, axes = chart(2, len(functions), width=3.9 * len(functions) + 1.4, height=5.0, share=False)
        for column, (function, pieces, tolerance) in enumerate(functions):
            design = Design((pieces,))
            block = univariate_block(
                design.chain(seed, "figure", "uniform"), function, pieces, BlockPruning(tolerance=tolerance)
            )
            t = function.grid(points)
            exact, source = function(t), run_chain(block.chain, t[:, None])[:, 0]
            effective = run_chain(live_part(block.chain), t[:, None])[:, 0]
            upper, lower = axes[column], axes[len(functions) + column]
            upper.plot(t, exact, color=BLACK, linewidth=1.0, label="function")
            upper.plot(t, source, color=BLUE, linestyle="--", label="masked source")
            upper.set_title(function.name)
            floor = lines.line_error(function, np.append(block.achieved, function.domain[1]))
            lower.axhspan(-floor, floor, color=GREY, alpha=0.18, linewidth=0, label="broken line's error")
            lower.plot(t, source - exact, color=BLUE, linewidth=2.2, label="masked source")
            lower.plot(t, effective - exact, color=RED, linewidth=0.8, linestyle=":", label="effective net")
            lower.plot(block.achieved, np.zeros(pieces)[: len(block.achieved)], "|", color=BLACK, label="knots")
            lower.set_xlabel("input of the block")
            lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        axes[0].set_ylabel("value")
        axes[len(functions)].set_ylabel("error")
        # a panel of the last column has no room of its own either: one legend beside the lower row
        axes[0].legend()
        axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        note(figure, f"One random source each (seed {seed}); the effective net lies on the masked source.")
    return figure


def error_against_knots(functions: Sequence[UnivariateFunction], pieces: Sequence[int]) -> Chart:
    """Supremum error of broken lines by pieces: uniform knots under their bound h^2 max|f''| / 8, and better ones."""
    arms = {"uniform": ("uniform", "interpolated"), "equidistributed": ("equidistributed", "interpolated"),
            "equidistributed, shifted": ("equidistributed", "shifted")}  # fmt: skip
    with style():
        figure, axes = chart(1, len(functions), width=3.7 * len(functions) + 1.6, height=3.9)
        look = looks(arms)
        for place, function in enumerate(functions):
            for arm, (placement, values) in arms.items():
                errors = [lines.line_error(function, lines.knots(function, n, placement), values) for n in pieces]
                axes[place].plot(pieces, errors, marker=look[arm][1], color=look[arm][0], label=arm)
            bound = [lines.uniform_bound(function, n) for n in pieces]
            axes[place].plot(pieces, bound, color=BLACK, linestyle=":", label="bound $h^2\\max|f''|/8$")
            axes[place].set(xscale="log", yscale="log", xlabel="pieces N", title=function.name)
            axes[place].set_xticks(pieces, [str(n) for n in pieces])
            axes[place].set_xticks([], minor=True)
        axes[0].set_ylabel("supremum error")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        note(figure, "Exact arithmetic, hence no intervals. The logarithm's knots weight its errors by y.")
    return figure


def error_against_parameters(
    rows: pd.DataFrame, marks: Mapping[str, tuple[float, float]], goals: Mapping[str, tuple[float, float]]
) -> Chart:
    """Supremum error against kept parameters: small dots are sources, large ones medians, one panel a ticket.

    `marks` are points to beat and `goals` upper limits of both, by ticket, as (parameters, error).
    """
    need(rows, "ticket", "size", "tolerance", "kept", "sup")
    with style():
        tickets = ordered(rows["ticket"])
        figure, axes = chart(1, len(tickets), width=4.6 * len(tickets) + 1.4, height=4.2, share=False)
        look = looks(rows["tolerance"])
        for place, (ticket, part) in enumerate(parts_by(rows, "ticket")):
            for tolerance, sources in parts_by(part, "tolerance"):
                colour, marker, _ = look[tolerance]
                axes[place].plot(sources["kept"], sources["sup"], ".", color=colour, alpha=0.3, markersize=4)
                middle, label = sources.groupby("size")[["kept", "sup"]].median(), f"tolerance {tolerance:g}"
                axes[place].plot(middle["kept"], middle["sup"], marker=marker, color=colour, label=label)
            axes[place].plot(*marks[ticket], "*", color=RED, markersize=13, label="release (one source)")
            most, error = goals[ticket]
            axes[place].axvline(most, color=BLACK, linestyle=":", linewidth=1)
            axes[place].axhline(error, color=BLACK, linestyle=":", linewidth=1, label="goal: left of and below")
            axes[place].set(xscale="log", yscale="log", xlabel="parameters kept, all factors", title=ticket)
            low, high = part["kept"].min(), marks[ticket][0]
            ticks = [n for n in (50, 100, 200, 400, 800, 1600) if low / 1.3 <= n <= 1.3 * high]
            axes[place].set_xticks(ticks, [str(n) for n in ticks])
            axes[place].set_xticks([], minor=True)
        axes[0].set_ylabel("supremum error (largest over features)")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        count = int(rows.groupby(["ticket", "size", "tolerance"]).size().min())
        note(figure, f"Small dots: sources (n = {count} a setting); lines: medians. Tolerances are shares of the goal.")
    return figure


def success(rows: pd.DataFrame) -> Chart:
    """Share of sources that succeed by width, one line an eps, with 95 % Wilson intervals as bands."""
    from lthlib.evidence.intervals import rate_interval

    need(rows, "eps", "width", "success")
    with style():
        figure, (axes,) = chart()
        look = looks(rows["eps"])
        for eps, part in parts_by(rows, "eps"):
            counts = part.groupby("width")["success"].agg(["sum", "count"])
            rates = pd.DataFrame(rate_interval(int(hits), int(n)) for hits, n in counts.itertuples(index=False))
            colour, marker, _ = look[eps]
            mean_line(axes, rates.assign(at=counts.index), (colour, marker, "-"), f"{eps:g}", shade=0.15)
        axes.set(xlabel="candidates for each target parameter", ylabel="share of sources that succeed")
        axes.legend(title="tolerance")
        note(figure, f"Bands: 95 % Wilson intervals, n = {int(counts['count'].min())} sources.")
    return figure
