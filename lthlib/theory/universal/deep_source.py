r"""Depth leverage: one target weight as a subset sum over several layers of a random source.

With one hidden layer of width n, $wx=\sum_j m_j b_j\sigma(a_jx)$ has about n/2 candidates for x >= 0. With k - 1 hidden
layers, a unit a layer carries x on, the others are candidates again, and two accumulators a layer (one whose way to the
output is positive, one whose way is negative) take up the products of the layer before: nearly k - 1 times the
candidates at the same width. (Our construction; the paper's constants could not be read.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lthlib.errors import InputError
from lthlib.theory.arrays import Array
from lthlib.theory.subset_sum.solve import LARGEST_N, solve
from lthlib.theory.universal.chains import Chain, draw_chain, run_chain

Path = tuple[tuple[int, int], ...]  # (layer, row) and its column follow from the path's previous unit


@dataclass(frozen=True)
class DeepWeight:
    """A target weight as a masked chain 1 -> n -> ... -> n -> 1: |sum - target|, and how many candidates there were."""

    chain: Chain
    error: float
    candidates: int


def candidate_paths(source: Chain) -> tuple[Array, list[Path]]:
    """Products of all candidate paths and the units (one a hidden layer) that each takes, largest products first.

    Every path is positive up to its last weight, so that ReLU lets it through for x >= 0, and paths share units only
    along the carriers and the accumulators: any subset's products add up.
    """
    weights = [layer.weight for layer in source]
    hidden = len(weights) - 1
    width = weights[0].shape[0]
    # accumulators from the output backwards, one a sign: the unit of layer l + 1 that takes up layer l's products
    taken: list[set[int]] = [set() for _ in range(hidden)]
    ways: list[dict[int, tuple[int, float]]] = [{} for _ in range(hidden)]
    for sign in (1, -1):
        row, factor = 0, float(sign)
        for level in range(hidden - 1, 0, -1):
            gains = weights[level + 1][row] * (sign if level == hidden - 1 else 1)
            free = [unit for unit in range(width) if unit not in taken[level] and gains[unit] > 0]
            if not free:
                break
            unit = free[int(gains[free].argmax())]
            factor *= float(gains[unit])
            taken[level].add(unit)
            ways[level][sign] = (unit, factor)
            row = unit
    carriers: list[int] = []
    reach = 1.0
    candidates: list[tuple[float, Path]] = []
    for level in range(hidden):
        gains = weights[level][:, carriers[-1] if carriers else 0] * reach
        free = [unit for unit in range(width) if unit not in taken[level] and gains[unit] > 0]
        if not free:
            break
        carrier = free[int(gains[free].argmax())] if level < hidden - 1 else -1
        for unit in free:
            if unit == carrier:
                continue
            head = tuple(enumerate([*carriers, unit]))
            if level == hidden - 1:
                candidates.append((float(gains[unit] * weights[level + 1][0, unit]), head))
                continue
            onward = weights[level + 1][:, unit]
            tails = [(float(onward[at]) * gain, side) for side, (at, gain) in ways[level + 1].items() if onward[at] > 0]
            if tails:
                value, sign = max(tails, key=lambda tail: abs(tail[0]))
                way = tuple((later, ways[later][sign][0]) for later in range(level + 1, hidden))
                candidates.append((float(gains[unit] * value), (*head, *way)))
        carriers.append(carrier)
        reach = float(gains[carrier]) if level < hidden - 1 else 0.0
    candidates.sort(key=lambda candidate: -abs(candidate[0]))
    return np.array([product for product, _ in candidates]), [path for _, path in candidates]


def deep_weight(seed: int, target: float, width: int, depth: int, law: str = "uniform") -> DeepWeight:
    """The best subset of a source of `depth` layers (2 is the plain construction) and hidden `width` for the target.

    At most 32 candidates are used, those of the largest products. Raises InputError for a depth below 2, a width below
    4 and a source without candidates.
    """
    if depth < 2 or width < 4:
        raise InputError(f"depth {depth} and width {width} are no source (valid: 2 layers or more, 4 units or more)")
    source = _source(seed, width, depth, law)
    products, paths = candidate_paths(source)
    if not len(products):
        raise InputError(f"a source of width {width} and depth {depth} has no positive path (valid: wider sources)")
    products = products[:LARGEST_N]
    solution = solve(products, np.array(target))
    chosen = np.flatnonzero(solution.kept(len(products)))
    return DeepWeight(_masked(source, [paths[place] for place in chosen]), float(solution.error), len(products))


def deep_errors(seed: int, targets: Sequence[float] | Array, width: int, depth: int, law: str = "uniform") -> Array:
    """Errors (T,) of many targets, each from a source of its own seed (seed, number): see `deep_weight`."""
    pools = [candidate_paths(_source(seed + 1000 * i, width, depth, law))[0] for i in range(len(targets))]
    most = min(LARGEST_N, max(map(len, pools)))
    # padding with zeros leaves every sum as it is
    candidates = np.array([np.pad(pool[:most], (0, most - len(pool[:most]))) for pool in pools])
    return solve(candidates, np.asarray(targets, float)).error


def realised(weight: DeepWeight) -> float:
    """The masked chain's output at x = 1."""
    return float(run_chain(weight.chain, np.ones((1, 1)))[0, 0])


def _source(seed: int, width: int, depth: int, law: str) -> Chain:
    return draw_chain(seed, f"deep weight {depth} {width}", [1, *[width] * (depth - 1), 1], law)


def _masked(source: Chain, paths: list[Path]) -> Chain:
    keeps = [np.zeros_like(layer.keep) for layer in source]
    for path in paths:
        column = 0
        for level, unit in path:
            keeps[level][unit, column] = True
            column = unit
        keeps[-1][0, column] = True
    return tuple(replace(layer, keep=keep) for layer, keep in zip(source, keeps, strict=True))
