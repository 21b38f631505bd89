r"""Univariate blocks: a function of one variable as a mask on a random chain 1 -> inner -> knots -> outer -> 1.

A block of two target layers, $f(t)\approx\sum_i w^{out}_i\sigma(w^{in}_it+b_i)+b^{out}$, has each of its parameters
realised by a subset sum of products of two source numbers (the 2L construction). Pruning is compensated (RelationalML/
UniversalLT): the inner layer comes first, then each outer weight aims at what the ones before it have left to do.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lthlib.errors import InputError, unknown
from lthlib.theory.arrays import Array
from lthlib.theory.subset_sum.solve import LARGEST_N, solve
from lthlib.theory.universal import piecewise_linear as lines
from lthlib.theory.universal.chains import Chain, Layer, live_part, run_chain
from lthlib.theory.universal.piecewise_linear import UnivariateFunction

INNER = ("single", "subset")
REFITS = ("each", "once", "off")
MODES = ("sparsest", "best")
MISPLACED = 0.2  # pieces that a knot may lie from its place before the inner layer takes more hidden units


@dataclass(frozen=True)
class BlockPruning:
    """How a block is pruned.

    - `tolerance`: how far the block's value at a knot may be from the broken line aimed at, which sets each outer
      weight's own tolerance.
    - `inner`: "single", one product for each inner weight and one for its bias, chosen so that the knot falls near its
      place; or "subset", subset sums towards the balanced targets, as released.
    - `refit`: outer targets are computed anew after "each" outer weight, "once" on the achieved knots (as released), or
      not at all ("off": the ablation).
    - `mode`: the "sparsest" subset within tolerance, or the "best" of at most `largest` candidates (released: 5 of 30),
      sizes beyond the first within tolerance not being tried.
    - `pool`: candidates a target; `share`: hidden units already in use may serve again.
    - `placement`, `values`: of the broken line, see `piecewise_linear`.
    """

    tolerance: float = 1e-4
    inner: str = "single"
    refit: str = "each"
    mode: str = "sparsest"
    largest: int = 5
    pool: int = 24
    share: bool = True
    placement: str = "equidistributed"
    values: str = "shifted"

    def __post_init__(self) -> None:
        for what, value, valid in (
            ("inner pruning", self.inner, INNER),
            ("refit", self.refit, REFITS),
            ("mode", self.mode, MODES),
            ("placement of knots", self.placement, lines.PLACEMENTS),
            ("values at the knots", self.values, lines.VALUES),
        ):
            if value not in valid:
                raise unknown(what, value, valid)
        if not (0 < self.tolerance < math.inf):
            raise InputError(f"a tolerance of {self.tolerance} cannot be reached (valid: above 0)")
        if not 1 <= self.pool <= LARGEST_N:
            raise InputError(f"a pool of {self.pool} candidates (valid: 1 to {LARGEST_N})")
        if not 1 <= self.largest <= self.pool:
            raise InputError(f"subsets of {self.largest} out of {self.pool} candidates (valid: 1 to the pool)")


RELEASED = BlockPruning(
    2e-6, inner="subset", refit="once", mode="best", pool=30, share=False, placement="uniform", values="interpolated"
)


@dataclass(frozen=True)
class UnivariateBlock:
    """A pruned block: its masked `chain`, the knots `achieved`, and how many targets missed their tolerance."""

    chain: Chain
    achieved: Array
    missed: int


@dataclass(frozen=True)
class Inner:
    """An inner layer as pruned: the two masked layers, and of each knot unit its row, weight and bias, knots rising."""

    layers: tuple[Layer, Layer]
    rows: Array
    weights: Array
    biases: Array
    missed: int = 0

    @property
    def knots(self) -> Array:
        """Where each unit begins to rise, -bias / weight."""
        return -self.biases / self.weights


# --- step 1: the inner layer ---


def prune_inner(source: Chain, function: UnivariateFunction, at: Array, pruning: BlockPruning) -> Inner:
    """Masks the first two layers of a chain 1 -> inner -> rows so that units begin to rise near the knots `at`.

    `at` (N + 1) are the wanted knots; the last is the end of the domain and needs no unit, the first unit has no bias.
    Hidden units with a positive weight carry the input, ones with a positive bias and no input carry the biases, and
    each is shared by all rows. Raises InputError where the source has too few rows or units of the right signs.
    """
    first, second = source[0], source[1]
    places, slopes = at[:-1], np.diff(lines.values_at(function, at, pruning.values)) / np.diff(at)
    bends = np.abs(np.diff(slopes, prepend=0.0))
    rows, carried, biased, missed = (
        _inner_subsets(first, second, places, bends, pruning)
        if pruning.inner == "subset"
        else _inner_singles(first, second, places, np.diff(at), bends)
    )
    keep, keep_first = np.zeros_like(second.keep), np.zeros_like(first.keep)
    keep_first_bias = np.zeros_like(first.keep_bias)
    for row, carriers, constants in zip(rows, carried, biased, strict=True):
        keep[row, carriers] = keep[row, constants] = True
        keep_first[carriers, 0] = True
        keep_first_bias[constants] = True
    layers = (
        replace(first, keep=keep_first, keep_bias=keep_first_bias),
        replace(second, keep=keep, keep_bias=np.zeros_like(second.keep_bias)),
    )
    reached = achieved(layers, np.array(rows), missed)
    if not (reached.weights > 0).all():
        width = len(first.weight)
        raise Narrow(width, 2 * width, "too few candidates: an inner weight came out as zero or negative")
    return reached


def achieved(layers: tuple[Layer, Layer], rows: Array, missed: int = 0) -> Inner:
    """Reads what the masked inner layers do: weight and bias of each knot unit, in the order of their knots."""
    at_zero, at_one = (run_chain(layers[:1], np.array([[t]]), rectified=True)[0] for t in (0.0, 1.0))
    masked = np.where(layers[1].keep[rows], layers[1].weight[rows], 0.0)
    biases = masked @ at_zero
    weights = masked @ (at_one - at_zero)
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-biases / weights, kind="stable")
    return Inner(layers, rows[order], weights[order], biases[order], missed)


def _inner_singles(first: Layer, second: Layer, places: Array, gaps: Array, bends: Array) -> tuple[Any, ...]:
    weights, biases = first.weight[:, 0], first.bias
    by_weight, by_bias = (np.argsort(-numbers, kind="stable") for numbers in (weights, biases))
    by_weight, by_bias = by_weight[weights[by_weight] > 0], by_bias[biases[by_bias] > 0]
    if not len(by_weight) or not len(np.setdiff1d(by_bias, by_weight[:1])):
        raise Narrow(len(weights), 2 * len(weights), "no unit of a positive weight and one of a positive bias")
    if len(second.weight) < len(places):
        raise Narrow(len(second.weight), 2 * len(places), f"fewer rows than its {len(places)} knots")
    # each further carrier and constant costs a parameter or two: take more only where knots stay far from their places
    for count in (3, 4, 6, 8):
        carriers = _spread(by_weight, count)
        constants = _spread(by_bias[~np.isin(by_bias, carriers)], count)
        if len(constants):
            assigned = _assigned(first, second, carriers, constants, places, gaps, bends)
            if assigned[-1] < MISPLACED or count >= max(len(by_weight), len(by_bias)):
                break
    if not len(constants) or not math.isfinite(assigned[-1]):
        width = len(second.weight)
        raise Narrow(width, 2 * width, f"no rows of the right signs for its {len(places)} knots")
    return (*assigned[:-1], 0)


def _spread(ordered: Array, count: int) -> Array:
    """The first of an ordered list and others evenly down to its end, so that products of many sizes are at hand."""
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int))] if len(ordered) else ordered


def _assigned(
    first: Layer, second: Layer, carriers: Array, constants: Array, places: Array, gaps: Array, bends: Array
) -> tuple[Any, ...]:
    """Rows, their carriers and their constants for each knot, and the largest miss in units of the piece's width."""
    from scipy.optimize import linear_sum_assignment

    # Every row with every pair of a carrier and a constant is a possible knot; costs are squared misses of the place,
    # and a penalty where a small inner weight would need an outer one out of reach.
    slopes = first.weight[carriers, 0] * second.weight[:, carriers]
    offsets = first.bias[constants] * second.weight[:, constants]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where((slopes[:, :, None] > 0) & (offsets[:, None] < 0), -offsets[:, None] / slopes[:, :, None], np.inf)
        lack = np.maximum(0.0, np.log(np.sqrt(bends) / np.maximum(slopes, 1e-12)[:, :, None])) ** 2
    misses = np.abs(at.reshape(len(at), 1, -1) - places[:, None]) / gaps[:, None]  # (rows, knots, pairs)
    costs = misses**2 + 0.1 * np.repeat(lack.transpose(0, 2, 1), len(constants), axis=2)
    costs[:, 0] = np.inf
    choice = costs.argmin(axis=2)
    best = np.minimum(np.take_along_axis(costs, choice[:, :, None], axis=2)[:, :, 0], 1e6)
    straight = np.where(slopes > 0, lack[:, :, 0], 1e7)
    choice[:, 0], best[:, 0] = straight.argmin(axis=1), 0.1 * straight.min(axis=1)
    rows, columns = linear_sum_assignment(best)
    order = np.argsort(columns)
    rows = rows[order]
    picks = choice[rows, np.arange(len(places))]
    pairs = [divmod(int(pick), len(constants)) for pick in picks[1:]]
    carried = [[carriers[picks[0]]], *([carriers[pair[0]]] for pair in pairs)]
    missed = [misses[row, place + 1, pick] for place, (row, pick) in enumerate(zip(rows[1:], picks[1:], strict=True))]
    worst = max(missed, default=0.0) if best[rows[0], 0] < 1e5 else math.inf
    return rows, carried, [[], *([constants[pair[1]]] for pair in pairs)], worst


def _inner_subsets(first: Layer, second: Layer, places: Array, bends: Array, pruning: BlockPruning) -> tuple[Any, ...]:
    rows = np.arange(len(places))
    if len(second.weight) < len(rows):
        raise Narrow(len(second.weight), len(rows), f"fewer rows than its {len(rows)} knots")
    weights, biases = first.weight[:, 0], first.bias
    half = len(weights) // 2  # units before it carry the input, units from it on are constants
    carriers = np.flatnonzero(weights[:half] > 0)[: pruning.pool]
    constants = half + np.flatnonzero(biases[half:] > 0)[: pruning.pool]
    if len(carriers) < 2 or len(constants) < 2:
        raise Narrow(len(weights), 4 * pruning.pool, "hardly a unit of the right sign")
    inner = np.sqrt(np.maximum(bends, 1e-3))
    masks, missed = [], 0
    for units, factors, targets in ((carriers, weights, inner), (constants, biases, -places * inner)):
        products = second.weight[np.ix_(rows, units)] * factors[units]
        mask, errors = subsets(products, targets, pruning, np.full(len(targets), pruning.tolerance))
        masks.append([units[chosen] for chosen in mask])
        missed += int((errors > pruning.tolerance).sum()) if pruning.mode == "sparsest" else 0
    carried, biased = masks
    biased[0] = biased[0][:0] if places[0] == 0 else biased[0]
    return rows, carried, biased, missed


# --- step 2 and 3: outer targets, and the subset sums that realise them ---


def exact_outer(inner: Inner, nodes: Array, heights: Array) -> tuple[Array, float]:
    r"""Outer weights (N,) and bias with which the units of `inner` give the values `heights` at `nodes` (N + 1).

    $c_i=m_i-m_{i-1}$, $w^{out}_i=c_i/|w^{in}_i|$: exact where unit i begins to rise at node i.
    """
    slopes = np.diff(heights) / np.diff(nodes)
    weights = np.diff(slopes, prepend=0.0) / inner.weights
    units = np.maximum(np.outer([nodes[0]], inner.weights) + inner.biases, 0.0)
    return weights, float(heights[0] - (units @ weights)[0])


def prune_outer(
    source: Chain, inner: Inner, function: UnivariateFunction, pruning: BlockPruning, wanted: Array
) -> UnivariateBlock:
    """Masks the last two layers of the chain so that the block follows the broken line on the achieved knots.

    `wanted` are the knots the inner layer was to have: `refit="off"` computes its targets from them. With "each" the
    system is triangular (a unit moves only what lies beyond its knot), so that each target is what makes the next node
    right, given all that was pruned before: errors do not add up. Raises InputError where no candidates are left.
    """
    a, b = function.domain
    inside = inner.knots < b
    nodes = np.concatenate([np.maximum(inner.knots[inside], a), [b]])
    nodes[0] = a
    if not (np.diff(nodes) > 0).all():
        nodes = np.maximum.accumulate(nodes) + np.arange(len(nodes)) * 1e-12
    rows = inner.rows[inside]
    inner = replace(inner, rows=rows, weights=inner.weights[inside], biases=inner.biases[inside])
    heights = lines.values_at(function, nodes, pruning.values)
    if pruning.refit == "off":
        planned = np.diff(lines.values_at(function, wanted, pruning.values)) / np.diff(wanted)
        bends = np.diff(planned, prepend=0.0)
        # the balanced split that the inner layer was to have, or its own weights where it was free to choose
        split = np.sqrt(np.maximum(np.abs(bends), 1e-3))
        split = split if pruning.inner == "subset" else np.resize(inner.weights, len(bends))
        targets, bias = (bends / split)[: len(rows)], float(lines.values_at(function, wanted, pruning.values)[0])
    else:
        targets, bias = exact_outer(inner, nodes, heights)
    # D[n, i]: how much unit i adds at node n; unit i is the first to move node i + 1
    effect = np.maximum(np.outer(nodes, inner.weights) + inner.biases, 0.0)
    limits = pruning.tolerance / (np.diagonal(effect, -1) * np.sqrt(function.importance(nodes[1:])))
    outer = _Outer(source[2], source[3], pruning)
    constant = outer.bias(bias, pruning.tolerance / math.sqrt(float(function.importance(nodes[:1])[0])))
    value = np.full(len(nodes), constant)
    # the first unit may begin before the domain does
    for i, row in enumerate(rows):
        if pruning.refit == "each":
            targets[i] = (heights[i + 1] - value[i + 1]) / effect[i + 1, i]
        value += effect[:, i] * outer.weight(row, targets[i], float(limits[i]))
    first, second = inner.layers
    used = np.isin(np.arange(len(second.weight)), rows)
    chain = (first, replace(second, keep=second.keep & used[:, None]), *outer.layers())
    return UnivariateBlock(chain, nodes[:-1], outer.missed + inner.missed)


class _Outer:
    """The hidden units of an outer layer while they are given out: which are in use, and the masks so far."""

    def __init__(self, hidden: Layer, output: Layer, pruning: BlockPruning) -> None:
        self.hidden, self.output, self.pruning = hidden, output, pruning
        self.keep, self.keep_bias = np.zeros_like(hidden.keep), np.zeros_like(hidden.keep_bias)
        self.keep_output = np.zeros_like(output.keep)
        self.used = np.zeros(len(hidden.bias), bool)  # carries knot units
        self.constant = np.zeros(len(hidden.bias), bool)
        self.missed = 0

    def layers(self) -> tuple[Layer, Layer]:
        hidden = replace(self.hidden, keep=self.keep, keep_bias=self.keep_bias)
        return hidden, replace(self.output, keep=self.keep_output, keep_bias=np.zeros_like(self.output.keep_bias))

    def bias(self, target: float, limit: float) -> float:
        """Keeps constants (hidden units without inputs) that add up to the target; returns what they add up to."""
        units = np.flatnonzero(self.hidden.bias > 0)[: self.pruning.pool]
        if not len(units):
            raise Narrow(len(self.hidden.bias), 8, "no hidden unit of a positive bias")
        products = self.hidden.bias[units] * self.output.weight[0, units]
        chosen, total = self._choose(products, target, limit)
        kept = units[chosen]
        self.keep_bias[kept] = self.constant[kept] = True
        self.keep_output[0, kept] = True
        return total

    def weight(self, row: int, target: float, limit: float) -> float:
        """Keeps products from knot unit `row` to the output that add up to the target; returns their sum."""
        free = (self.hidden.weight[:, row] > 0) & ~self.constant
        fresh = np.flatnonzero(free & ~self.used)[: self.pruning.pool]
        shared = np.flatnonzero(free & self.used)[: self.pruning.pool] if self.pruning.share else fresh[:0]
        mixed = np.concatenate([shared, fresh])[:LARGEST_N] if len(shared) and len(fresh) else shared[:0]
        if not len(shared) + len(fresh):
            raise Narrow(len(self.hidden.bias), 2 * len(self.hidden.bias), "no hidden unit left")
        tried = []
        for units in filter(len, (shared, fresh, mixed)):
            products = self.hidden.weight[units, row] * self.output.weight[0, units]
            chosen, total = self._choose(products, target, limit, count=False)
            kept = units[chosen]
            cost = len(kept) + int((~self.used[kept]).sum())
            error = abs(total - target)
            tried.append((error > limit, error if error > limit else cost, error, total, kept))
            if error <= limit and cost <= 2:
                break  # the later pools cannot do with fewer
        missed, _, _, total, kept = min(tried, key=lambda attempt: attempt[:3])
        self.missed += bool(missed) and self.pruning.mode == "sparsest"
        self.keep[kept, row] = self.used[kept] = True
        self.keep_output[0, kept] = True
        return total

    def _choose(self, products: Array, target: float, limit: float, count: bool = True) -> tuple[Array, float]:
        mask, errors = subsets(products[None], np.array([target]), self.pruning, np.array([limit]))
        self.missed += bool(count and errors[0] > limit and self.pruning.mode == "sparsest")
        return mask[0], float(products[mask[0]].sum())


def subsets(products: Array, targets: Array, pruning: BlockPruning, limits: Array) -> tuple[Array, Array]:
    """Which products (T, n) are kept for each target (bool), and the errors (T,)."""
    n = products.shape[1]
    if pruning.mode == "sparsest":
        # one tolerance a call: scaled so that each target has its own
        solution = solve(products / limits[:, None], targets / limits, "sparsest", eps=1.0)
        return solution.kept(n), solution.error * limits
    best, errors = np.zeros((len(targets), n), bool), np.abs(targets)
    for size in range(1, min(pruning.largest, n) + 1):
        solution = solve(products, targets, "fixed", k=size)
        better = (solution.error < errors) & (errors > limits)
        best[better], errors = solution.kept(n)[better], np.minimum(errors, solution.error)
    return best, errors


# --- blocks ---


class Narrow(InputError):
    """A source without enough candidates."""

    def __init__(self, width: int, enough: int, reason: str) -> None:
        super().__init__(f"a width of {width} has {reason} (valid: about {enough} or more)")


def univariate_block(
    source: Chain, function: UnivariateFunction, pieces: int, pruning: BlockPruning = BlockPruning()
) -> UnivariateBlock:
    """The function as a mask on a random chain 1 -> inner -> knots -> outer -> 1, with `pieces` knot units.

    Raises InputError for a function that is NaN or unbounded, a domain that begins below 0 (inputs must be positive),
    and a source too narrow to have candidates at all.
    """
    lines.checked(function, lowest=0.0)
    if [layer.weight.shape[0] for layer in source][3:] != [1] or source[0].weight.shape[1] != 1:
        raise InputError(f"a block needs a chain 1 -> inner -> knots -> outer -> 1, not {len(source)} layers")
    wanted = lines.knots(function, pieces, pruning.placement)
    inner = prune_inner(source, function, wanted, pruning)
    return prune_outer(source, inner, function, pruning, wanted)


def block_error(block: UnivariateBlock, function: UnivariateFunction) -> float:
    """The supremum over at least 10,000 points and the achieved knots of the masked chain's error."""
    chain = live_part(block.chain)
    return lines.sup_error(function, lambda t: run_chain(chain, t[:, None])[:, 0], block.achieved)


def achieved_floor(block: UnivariateBlock, function: UnivariateFunction, values: str = "shifted") -> float:
    """The error of the broken line on the achieved knots: what a block has before its outer layer is pruned."""
    return lines.line_error(function, np.append(block.achieved, function.domain[1]), values)
