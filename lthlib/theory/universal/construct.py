r"""Universal tickets: masks on random networks whose features serve a whole family of functions, no weight trained.

After Burkholz, Laha, Mukherjee & Gotovos, "On the Existence of Universal Lottery Tickets" (ICLR 2022, arXiv
2111.11146) and the code RelationalML/UniversalLT: univariate blocks shared over coordinates, and products through
logarithm, exponents and exponential, $\prod_i(\frac{1+x_i}{2})^{r_i}=\exp(\sum_i r_i\ln\frac{1+x_i}{2})$. Signs are
turned so that every value between stages is positive (minus logarithm, $e^{-u}$): a plain ReLU network does for source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations_with_replacement
from typing import Any

import numpy as np

from lthlib.errors import InputError
from lthlib.theory.arrays import Array
from lthlib.theory.universal import piecewise_linear as lines
from lthlib.theory.universal.chains import Chain, ChainStage, UniversalTicket, copy_purpose, draw_chain
from lthlib.theory.universal.piecewise_linear import UnivariateFunction
from lthlib.theory.universal.univariate import (
    BlockPruning,
    Narrow,
    UnivariateBlock,
    block_error,
    subsets,
    univariate_block,
)

POLYNOMIAL_GOAL = 6e-4  # the supremum error for each power
SINE_GOAL = 1.1e-2


@dataclass(frozen=True)
class Design:
    """How large the source of a ticket is, and how many pieces its blocks have.

    `inner`, `rows`, `outer`: hidden widths of a univariate block's chain; `linear`: hidden units for each input of a
    linear stage; `pieces`: of each block in turn.
    """

    pieces: tuple[int, ...]
    inner: int = 24
    rows: int = 200
    outer: int = 200
    linear: int = 64

    def chain(self, seed: int, purpose: str, law: str) -> Chain:
        """The random chain that a univariate block is found in."""
        return draw_chain(seed, purpose, (1, self.inner, self.rows, self.outer, 1), law)


POLYNOMIAL = Design((18, 28))
SINE = Design((20,))


def single_powers(degree: int) -> Array:
    """Exponents 1 to `degree` of one variable, shape (degree, 1)."""
    return np.arange(1, degree + 1)[:, None]


def monomials(variables: int, degree: int) -> Array:
    """Exponents of all monomials of total degree 1 to `degree` in so many variables, shape (k, variables), int."""
    if variables < 1 or degree < 1:
        raise InputError(f"{variables} variables and degree {degree} make no monomials (valid: whole numbers from 1)")
    chosen = (combinations_with_replacement(range(variables), total) for total in range(1, degree + 1))
    return np.array([np.bincount(factors, minlength=variables) for factors in chain.from_iterable(chosen)])


def polynomial_ticket(
    seed: int,
    exponents: Array | None = None,
    *,
    design: Design = POLYNOMIAL,
    pruning: BlockPruning = BlockPruning(tolerance=6e-5),  # noqa: B008
    law: str = "uniform",
    copied: bool = False,
    goal: float | None = None,
) -> UniversalTicket:
    r"""Features $\prod_i((1+x_i)/2)^{r_{ki}}$ for x in [0, 1]^d, one for each row of `exponents` (k, d).

    Default exponents: powers 1 to 4 of one variable. The logarithm's block serves all d inputs and the exponential's
    all k features, unless `copied`, where each has a block of its own, from draws of its own (the dense form).
    With `goal`, a part that keeps its block from the goal raises InputError with a width that would do; without it, the
    ticket lists the targets that missed their tolerance in `failures`. Raises InputError for exponents that are not
    non-negative whole numbers with at least one positive in each row.
    """
    r = single_powers(4) if exponents is None else np.asarray(exponents)
    if r.ndim != 2 or not r.size or (r < 0).any() or (r != np.round(r)).any() or not (r.sum(axis=1) > 0).all():
        raise InputError(f"exponents of shape {r.shape} (valid: (k, d), whole numbers from 0, none of the rows all 0)")
    degree = int(r.sum(axis=1).max())
    log_pieces, exp_pieces = design.pieces
    log_function, exp_function = lines.minus_log(degree), lines.decay(degree)
    # errors of the exponent arrive as |u exp(-u)| delta / r, at most delta / (e r) for a feature of total degree r
    limits = pruning.tolerance * math.e * r.sum(axis=1) / (r > 0).sum(axis=1)
    width = design.linear * r.shape[1]
    linear, missed = linear_chain(
        draw_chain(seed, "exponents", (r.shape[1], width, len(r)), law),
        r.astype(float),
        np.zeros(len(r)),
        limits,
        pruning,
    )
    logs = _blocks(seed, "logarithm", r.shape[1] if copied else 1, log_function, log_pieces, design, pruning, law, goal)
    exps = _blocks(seed, "exponential", len(r) if copied else 1, exp_function, exp_pieces, design, pruning, law, goal)
    counts = {"logarithm": sum(block.missed for block in logs), "exponents": missed}
    counts["exponential"] = sum(block.missed for block in exps)
    kind = "copied" if copied else "shared"
    stages = (
        ChainStage("logarithm", kind, tuple(block.chain for block in logs)),
        ChainStage("exponents", "dense", (linear,)),
        ChainStage("exponential", kind, tuple(block.chain for block in exps), rectified=False),
    )
    return UniversalTicket(seed, law, r.shape[1], stages, _failures(counts))


def _failures(missed: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{name}: {number} targets missed their tolerance" for name, number in missed.items() if number)


def _blocks(
    seed: int,
    purpose: str,
    copies: int,
    function: UnivariateFunction,
    pieces: int,
    design: Design,
    pruning: BlockPruning,
    law: str,
    goal: float | None,
) -> list[UnivariateBlock]:
    """The blocks of one stage, each from its own draws.

    One that misses the goal raises InputError with a width that would do: the source grows by steps of 1.5 until then.
    """

    def attempt(name: str, size: Design) -> tuple[UnivariateBlock | None, float]:
        lines.checked(function, lowest=0.0)
        try:
            block = univariate_block(size.chain(seed, name, law), function, pieces, pruning)
        except InputError:
            return None, math.inf
        return block, block_error(block, function)

    blocks = []
    for copy in range(copies):
        name, wide = copy_purpose(purpose, copy), design
        if goal is None:
            blocks.append(univariate_block(design.chain(seed, name, law), function, pieces, pruning))
            continue
        block, reached = attempt(name, design)
        if block is not None and reached <= goal:
            blocks.append(block)
            continue
        for _ in range(10):
            wide = Design(wide.pieces, *(math.ceil(1.5 * width) for width in (wide.inner, wide.rows, wide.outer)))
            _, error = attempt(name, wide)
            if error <= goal or wide.rows > 2000:
                break
        enough = f"inner {wide.inner}, rows {wide.rows} and outer {wide.outer} would do"
        never = f"more than {pieces} pieces: no width up to {wide.rows} does"
        raise InputError(
            f"block {name!r} failed in a source of widths {design.inner}, {design.rows}, {design.outer}: best error "
            f"{f'{reached:.3g}' if math.isfinite(reached) else 'no candidates at all'}, goal {goal:g} "
            f"(valid: {enough if error <= goal else never})"
        )
    return blocks


def function_ticket(
    seed: int,
    function: UnivariateFunction,
    *,
    design: Design = SINE,
    pruning: BlockPruning = BlockPruning(tolerance=1e-3),  # noqa: B008
    law: str = "uniform",
    goal: float | None = None,
) -> UniversalTicket:
    """A ticket with one univariate block, applied to each coordinate of its input: here sin(2 pi x), or any function.

    `goal` and errors as in `polynomial_ticket`. Raises InputError for a function that is NaN or unbounded and for a
    domain that begins below 0.
    """
    (pieces,) = design.pieces
    (block,) = _blocks(seed, "function", 1, function, pieces, design, pruning, law, goal)
    stages = (ChainStage("function", "shared", (block.chain,), rectified=False),)
    return UniversalTicket(seed, law, 1, stages, _failures({"function": block.missed}))


def sine_ticket(seed: int, **options: Any) -> UniversalTicket:
    r"""The ticket of $\sin 2\pi x$ on [0, 1]; options as in `function_ticket`."""
    return function_ticket(seed, lines.sine(), **options)


def fourier_ticket(
    seed: int,
    frequencies: Array,
    phases: Sequence[float] | Array,
    *,
    design: Design | None = None,
    pruning: BlockPruning = BlockPruning(tolerance=1e-3),  # noqa: B008
    law: str = "uniform",
    goal: float | None = None,
) -> UniversalTicket:
    r"""Features $\sin 2\pi(n_k\cdot x+c_k)$ for x in [0, 1]^d: `frequencies` (k, d) and `phases` (k,), both >= 0.

    One sine block over as many periods as are needed is shared by all features; the linear layer before it is a mask
    of subset sums too. Default design: 16 pieces a period. (The release has the univariate sine only; the layer before
    it is our reading of the paper.) Raises InputError for negative or misshapen numbers; `goal` as in
    `polynomial_ticket`.
    """
    n, c = np.asarray(frequencies, float), np.asarray(phases, float)
    if n.ndim != 2 or not n.size or c.shape != n.shape[:1] or (n < 0).any() or (c < 0).any():
        raise InputError(
            f"frequencies {n.shape} and phases {c.shape} (valid: (k, d) and (k,), all 0 or more, so that "
            "sin(-t) is written with a phase of a half)"
        )
    function = lines.sine(float((n.sum(axis=1) + c).max()) + 0.02)
    if design is None:
        periods = math.ceil(function.domain[1])
        design = Design((16 * periods,), rows=200 + 60 * periods, outer=200 + 60 * periods)
    limits = np.full(len(n), pruning.tolerance / (2 * math.pi)) / ((n > 0).sum(axis=1) + (c > 0))
    groups = n.shape[1] + int((c > 0).any())
    source = draw_chain(seed, "frequencies", (n.shape[1], design.linear * groups, len(n)), law)
    linear, missed = linear_chain(source, n, c, limits, pruning)
    (block,) = _blocks(seed, "sine", 1, function, design.pieces[0], design, pruning, law, goal)
    stages = (
        ChainStage("frequencies", "dense", (linear,)),
        ChainStage("sine", "shared", (block.chain,), rectified=False),
    )
    return UniversalTicket(seed, law, n.shape[1], stages, _failures({"frequencies": missed, "sine": block.missed}))


def linear_chain(
    source: Chain, exponents: Array, constants: Array, limits: Array, pruning: BlockPruning
) -> tuple[Chain, int]:
    """Non-negative numbers `exponents` (k, d) and `constants` (k,) as a mask on a chain d -> hidden -> k.

    Hidden units belong to one input each (or to the constants) and are shared by all outputs; `limits` (k,) bound the
    error of each number of an output. Returns the masked chain and the number of targets that missed their limit.
    """
    hidden, output = source
    inputs = exponents.shape[1]
    groups = inputs + int((constants != 0).any())
    room = len(hidden.bias) // groups
    keep, keep_bias = np.zeros_like(hidden.keep), np.zeros_like(hidden.keep_bias)
    keep_output, missed = np.zeros_like(output.keep), 0
    for group in range(groups):
        units = np.arange(group * room, (group + 1) * room)
        factors = hidden.weight[units, group] if group < inputs else hidden.bias[units]
        units, factors = units[factors > 0][: pruning.pool], factors[factors > 0][: pruning.pool]
        targets = exponents[:, group] if group < inputs else constants
        rows = np.flatnonzero(targets)
        if not len(rows):
            continue
        if not len(units):
            raise Narrow(len(hidden.bias), 8 * groups, f"no unit of a positive factor for input {group}")
        mask, errors = subsets(output.weight[np.ix_(rows, units)] * factors, targets[rows], pruning, limits[rows])
        missed += int((errors > limits[rows]).sum())
        keep_output[np.ix_(rows, units)] = mask
        used = units[mask.any(axis=0)]
        if group < inputs:
            keep[used, group] = True
        else:
            keep_bias[used] = True
    first = replace(hidden, keep=keep, keep_bias=keep_bias)
    return (first, replace(output, keep=keep_output, keep_bias=np.zeros_like(output.keep_bias))), missed


def power_sup_errors(ticket: UniversalTicket, exponents: Array | None = None, points: int = lines.GRID) -> Array:
    r"""Supremum errors (k,) of the ticket's features against $\prod_i((1+x_i)/2)^{r_{ki}}$.

    One variable: over `points` equally spaced points; several: over as many Sobol points of the cube and its corners.
    """
    r = single_powers(4) if exponents is None else np.asarray(exponents)
    x = cube_points(r.shape[1], points)
    exact = np.prod(((1 + x[:, None, :]) / 2) ** r, axis=2)
    return np.abs(ticket.features(x) - exact).max(axis=0)


def cube_points(variables: int, points: int) -> Array:
    """Points (points, variables) of the unit cube: a grid on the line, else Sobol points and (to 2^10) the corners."""
    if variables == 1:
        return np.linspace(0, 1, points)[:, None]
    from scipy.stats import qmc

    drawn = qmc.Sobol(variables, scramble=True, rng=0).random(1 << math.ceil(math.log2(points)))[:points]
    if variables > 10:
        return drawn
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * variables), axis=-1).reshape(-1, variables)
    return np.concatenate([drawn, corners])
