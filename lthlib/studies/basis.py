r"""Which optimizers see the basis: train one network twice, as weights and as coefficients, and compare the weights.

SGD with momentum and weight decay commutes with every orthonormal basis; optimizers that treat coordinates one by one
(Adam, AdamW, RMSprop) do not (Maes et al., arXiv 2410.19964). Muon commutes with bases of rows and columns, since the
nearest orthogonal matrix to $B_{out}GB_{in}^\top$ is the turned one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch

from lthlib.basis import energy_curve, energy_share
from lthlib.data import Dataset
from lthlib.evidence.intervals import mean_interval
from lthlib.masks.controls import jaccard
from lthlib.ticket import State, Ticket, bases_for
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.training.train import train


def relative_difference(tickets: Sequence[Ticket], recipe: Recipe, dataset: Dataset, rule: str) -> list[float]:
    r"""$\lVert\theta_B-\theta\rVert/\lVert\theta\rVert$ of each replicate's weights, trained in the bases of `rule`
    and canonically, with the same data order, in float64. `tickets` are dense and canonical."""
    exact = replace(recipe, precision="fp64", evaluations=1)
    double = [
        replace(ticket, coefficients={name: c.double() for name, c in ticket.coefficients.items()})
        for ticket in tickets
    ]
    turned = [ticket.in_bases(bases_for(ticket, rule)) for ticket in double]
    plain = train(double, exact, dataset)
    other = train(turned, exact, dataset)
    return [_relative(one.ticket, two.ticket) for one, two in zip(plain, other, strict=True)]


def _relative(reference: Ticket, other: Ticket) -> float:
    first, second = (torch.cat([w.flatten() for w in ticket.weights().values()]) for ticket in (reference, other))
    return float((second - first).norm() / first.norm())


def difference_at_equal_cost(
    table: pd.DataFrame, cost: str, arms: tuple[str, str], at_most: float, hue: str = "basis"
) -> list[float]:
    """Accuracy of `arms[0]` minus that of `arms[1]` at the cost of the first, one mean a replicate (seed).

    The second's accuracy is interpolated linearly in the logarithm of `cost` between its own rounds; rounds of the
    first outside that range, or of density above `at_most`, are left out.
    """
    differences = []
    for _, rows in table.groupby("seed"):
        first, second = (rows[rows[hue] == arm].sort_values(cost) for arm in arms)
        low, high = second[cost].min(), second[cost].max()
        inside = first[(first["density"] <= at_most) & first[cost].between(low, high)]
        reached = np.interp(np.log(inside[cost].astype(float)), np.log(second[cost].astype(float)), second["accuracy"])
        differences.append(float((inside["accuracy"] - reached).mean()) if len(inside) else math.nan)
    return differences


def smallest_matching_density(table: pd.DataFrame, margin: float, hue: str = "basis") -> pd.Series:
    """For each basis the smallest density at which, and above which, `delta` (ticket minus dense) is non-inferior.

    Non-inferior: the lower 95 % t limit of the mean delta is above -margin. NaN where no round is.
    """
    densities = {}
    for name, rows in table.groupby(hue, sort=False):
        densities[name] = math.nan
        for _, level in sorted(rows.groupby("round"), key=lambda part: -part[1]["density"].mean()):
            if not mean_interval(level["delta"]).low > -margin:
                break
            densities[name] = level["density"].mean()
    return pd.Series(densities, name="smallest matching density")


def energy_rows(coefficients: Mapping[int, State], points: int = 60, **columns: Any) -> pd.DataFrame:
    """Sorted cumulative energy of each replicate's coefficients (by seed), at `points` log-spaced fractions."""
    rows: list[tuple[int, float, float]] = []
    for seed, state in coefficients.items():
        fractions, energy = energy_curve(state)
        total = len(fractions)
        chosen = sorted({min(total, max(1, round(total ** (k / (points - 1))))) for k in range(points)})
        rows += [(seed, float(fractions[k - 1]), float(energy[k - 1])) for k in chosen]
    return pd.DataFrame(rows, columns=["seed", "fraction", "energy"]).assign(**columns)


def stability_rows(tickets: Sequence[Ticket], **columns: Any) -> pd.DataFrame:
    r"""Jaccard overlap of the masks of each pair of replicates, per layer, beside the chance level $\rho/(2-\rho)$."""
    rows = []
    for first, second in combinations(tickets, 2):
        for layer, mask in first.masks.items():
            other = second.masks[layer]
            density = float((mask.float().mean() + other.float().mean()) / 2)
            overlap = jaccard({layer: mask}, {layer: other})
            rows.append((f"{first.seed}-{second.seed}", first.seed, layer, overlap, density / (2 - density)))
    return pd.DataFrame(rows, columns=["pair", "seed", "layer", "jaccard", "chance"]).assign(**columns)


def energy_shares_of_delta(dense: Sequence[Trained], fraction: float) -> list[float]:
    r"""Share of the energy of the training delta $B(\theta_T-\theta_k)$ in its top `fraction`, one number a replicate.

    `dense` are dense trainings seen in a basis, with a snapshot at the start.
    """
    shares = []
    for run in dense:
        start = run.snapshots[min(run.snapshots)].coefficients
        shares.append(energy_share({name: c - start[name] for name, c in run.ticket.coefficients.items()}, fraction))
    return shares


def share_of_zeros(ticket: Ticket) -> float:
    """Share of all prunable coefficients that are exactly zero."""
    zeros = sum(int((c == 0).sum()) for c in ticket.coefficients.values())
    return zeros / ticket.prunable
