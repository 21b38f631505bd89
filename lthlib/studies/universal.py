"""Tables of notebook 04: one row a measurement, from the constructions in `theory.universal` and their controls."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lthlib.errors import unknown
from lthlib.randomness import generator
from lthlib.theory.subset_sum.solve import solve
from lthlib.theory.universal import construct as universal
from lthlib.theory.universal import piecewise_linear as lines
from lthlib.theory.universal import universality
from lthlib.theory.universal.chains import Layer, UniversalTicket
from lthlib.theory.universal.construct import Design
from lthlib.theory.universal.deep_source import deep_errors
from lthlib.theory.universal.univariate import RELEASED, BlockPruning

Array = np.ndarray[Any, Any]

# RelationalML/UniversalLT, seed 42, as re-run for the specification (commented figures in the code: 1,126 and 436).
RELEASE = {"polynomials": (1126, 1.11e-3), "sine": (436, 1.1189e-2)}
RELEASED_DESIGNS = {"polynomials": Design((10, 40), 200, 200, 500), "sine": Design((21,), 250, 250, 250)}
# its subsets are as good as their function needs, which the sine does not need to the same six digits
RELEASED_PRUNINGS = {"polynomials": RELEASED, "sine": replace(RELEASED, tolerance=3e-5)}
ABLATIONS: dict[str, tuple[BlockPruning, str]] = {
    "as built": (BlockPruning(tolerance=1e-3), "uniform"),
    "refit once": (BlockPruning(tolerance=1e-3, refit="once"), "uniform"),
    "no refit": (BlockPruning(tolerance=1e-3, refit="off"), "uniform"),
    "subset inner": (BlockPruning(tolerance=1e-3, inner="subset", mode="best"), "uniform"),
    "subset inner, no refit": (BlockPruning(tolerance=1e-3, inner="subset", mode="best", refit="off"), "uniform"),
    "best of 5": (BlockPruning(tolerance=1e-6, mode="best"), "uniform"),
    "uniform knots": (BlockPruning(tolerance=1e-3, placement="uniform"), "uniform"),
    "values not shifted": (BlockPruning(tolerance=1e-3, values="interpolated"), "uniform"),
    "hidden units not shared": (BlockPruning(tolerance=1e-3, share=False), "uniform"),
    "normal law": (BlockPruning(tolerance=1e-3), "normal"),
    "mixture law": (BlockPruning(tolerance=1e-3), "mixture"),
}


def errors_of(kind: str, ticket: UniversalTicket) -> Array:
    """Supremum errors of a ticket's features: of the powers 1 to 4 ("polynomials"), or of the one sine ("sine")."""
    if kind == "polynomials":
        return universal.power_sup_errors(ticket)
    function = lines.sine()
    return np.array([lines.sup_error(function, lambda t: ticket.features(t[:, None])[:, 0])])


def made(kind: str, seed: int, **options: Any) -> UniversalTicket:
    """A ticket of one of the two goals, "polynomials" or "sine"; options as in `theory.universal`."""
    build = universal.polynomial_ticket if kind == "polynomials" else universal.sine_ticket
    return build(seed, **options)


def goal_rows(seeds: Iterable[int], folder: Path, arm: str = "ours") -> tuple[pd.DataFrame, dict[str, float]]:
    """Both goals on one source a seed: kept, density, errors; and the median seconds (not for the metrics, they vary).

    Every ticket is saved below `folder`, loaded, and evaluated again: `reload_difference` is what that changed. Arm
    "ours", or "released": the release's widths, knots and subset sums in our masks.
    """
    rows, seconds = [], {}
    if arm not in ("ours", "released"):
        raise unknown("arm", arm, ("ours", "released"))
    for kind, design in RELEASED_DESIGNS.items():
        options: dict[str, Any] = {} if arm == "ours" else {"design": design, "pruning": RELEASED_PRUNINGS[kind]}
        times = []
        for seed in seeds:
            start = time.perf_counter()
            ticket = made(kind, seed, **options)
            errors = errors_of(kind, ticket)
            times.append(time.perf_counter() - start)
            again = errors_of(kind, ticket.reloaded(folder / f"{kind}-{arm}-{seed}.safetensors"))
            goal = universal.POLYNOMIAL_GOAL if kind == "polynomials" else universal.SINE_GOAL
            row = {"arm": arm, "ticket": kind, "seed": seed, "kept": ticket.kept, "density": ticket.density,
                   "source_parameters": ticket.source_parameters, "sup": errors.max(),
                   "success": float(errors.max() <= goal), "missed_tolerances": len(ticket.failures),
                   "reload_difference": float(np.abs(again - errors).max())}  # fmt: skip
            rows.append(row | {f"sup_{i + 1}": error for i, error in enumerate(errors)})
        seconds[kind] = float(np.median(times))
    return pd.DataFrame(rows), seconds


def frontier_rows(
    seeds: Sequence[int], sizes: Sequence[float], tolerances: Sequence[float], folder: Path
) -> pd.DataFrame:
    """Kept parameters and supremum error: blocks' pieces scaled by `sizes`, tolerances relative to the goal.

    Here and below every ticket is written below `folder`, and what is measured is what its file gives.
    """
    rows = []
    for kind, pieces, goal in (("polynomials", (18, 28), 6e-4), ("sine", (20,), 1.1e-2)):
        for size in sizes:
            for share in tolerances:
                # the error of broken lines falls as the square of the pieces, and so may the tolerance
                pruning = BlockPruning(tolerance=share * goal / size**2)
                design = Design(tuple(max(2, round(size * number)) for number in pieces))
                for seed in seeds:
                    path = folder / f"{kind}-size-{size}-tolerance-{share}-{seed}.safetensors"
                    ticket = made(kind, seed, design=design, pruning=pruning).reloaded(path)
                    rows.append({"ticket": kind, "size": size, "tolerance": share, "seed": seed, "kept": ticket.kept,
                                 "sup": float(errors_of(kind, ticket).max())})  # fmt: skip
    return pd.DataFrame(rows)


def ablation_rows(
    seeds: Sequence[int], folder: Path, arms: Mapping[str, tuple[BlockPruning, str]] = ABLATIONS
) -> pd.DataFrame:
    """The sine ticket with one choice changed at a time, paired by source; each with 20 pieces."""
    rows = []
    for arm, (pruning, law) in arms.items():
        for seed in seeds:
            # subset sums need more hidden units than single products; the wanted knots are the same
            design = Design((20,), inner=120 if pruning.inner == "subset" else 24)
            ticket = universal.sine_ticket(seed, design=design, pruning=pruning, law=law)
            ticket = ticket.reloaded(folder / f"sine-{arm}-{seed}.safetensors")
            sup = float(errors_of("sine", ticket)[0])
            rows.append({"arm": arm, "seed": seed, "kept": ticket.kept, "sup": sup,
                         "success": float(sup <= universal.SINE_GOAL)})  # fmt: skip
    return pd.DataFrame(rows)


def success_rows(seeds: Sequence[int], widths: Sequence[int], eps: Sequence[float], pieces: int = 21) -> pd.DataFrame:
    """Plain 2L sources: is every target parameter of the sine's block within eps by its own `width` products?

    One row a seed, width and eps: success (0 or 1) and `bits` = log2(1 / eps).
    """
    function = lines.sine()
    at = lines.knots(function, pieces)
    bends = np.diff(np.diff(lines.values_at(function, at)) / np.diff(at), prepend=0.0)
    split = np.sqrt(np.abs(bends))
    targets = np.concatenate([split, -at[:-1] * split, np.sign(bends) * split])
    targets = targets / np.abs(targets).max() / 2  # homogeneity: any target parameter may be one of [-1/2, 1/2]
    rows = []
    for seed in seeds:
        for width in widths:
            source = generator(seed, "plain source", width)
            drawn = 2 * torch.rand(2, len(targets), width, dtype=torch.float64, generator=source).numpy() - 1
            worst = float(solve(drawn[0] * drawn[1], targets).error.max())
            rows += [{"seed": seed, "width": width, "eps": one, "bits": math.log2(1 / one),
                      "targets": len(targets), "success": float(worst <= one)} for one in eps]  # fmt: skip
    return pd.DataFrame(rows)


def needed_widths(rows: pd.DataFrame) -> pd.DataFrame:
    """For each seed and eps of `success_rows`, the smallest width that succeeded (NaN where none did)."""
    least = rows[rows["success"] == 1].groupby(["seed", "bits"])["width"].min()
    grid = pd.MultiIndex.from_product([rows["seed"].unique(), rows["bits"].unique()], names=["seed", "bits"])
    return least.reindex(grid).rename("needed").reset_index()


def depth_rows(seeds: Sequence[int], widths: Sequence[int], depths: Sequence[int], targets: int = 12) -> pd.DataFrame:
    """Median error of single target weights U[-1, 1], each with a deep source of its own, by width and depth factor."""
    rows = []
    for seed in seeds:
        source = generator(seed, "deep targets")
        goals = 2 * torch.rand(targets, dtype=torch.float64, generator=source).numpy() - 1
        for depth, width in product(depths, widths):
            error = np.median(deep_errors(1_000_000 * seed, goals, width, depth))
            rows.append((seed, depth, width, float(error)))
    return pd.DataFrame(rows, columns=["seed", "depth", "width", "error"])


def width_at(rows: pd.DataFrame, error: float) -> pd.DataFrame:
    """The width at which each seed and depth of `depth_rows` first reaches `error`, log-linear between the widths."""
    reached = []
    for (seed, depth), part in rows.sort_values("width").groupby(["seed", "depth"]):
        best = np.minimum.accumulate(part["error"].to_numpy(float))
        width = part["width"].to_numpy(float)
        below = np.flatnonzero(best <= error)
        at = math.nan
        if len(below):
            i = int(below[0])
            at = width[0]
            if i:
                share = math.log(best[i - 1] / error) / math.log(best[i - 1] / best[i])
                at = width[i - 1] + share * (width[i] - width[i - 1])
        reached.append({"seed": seed, "depth": depth, "width": at})
    return pd.DataFrame(reached)


def dimension_rows(seeds: Sequence[int], dimensions: Sequence[int], folder: Path, degree: int = 2) -> pd.DataFrame:
    """Parameters of the shared ("convolutional") and the copied ("dense") form of all monomials up to `degree`."""
    rows = []
    for variables in dimensions:
        exponents = universal.monomials(variables, degree)
        for form, copied in (("convolutional", False), ("dense", True)):
            for seed in seeds:
                ticket = universal.polynomial_ticket(seed, exponents, design=Design((14, 14)), copied=copied)
                ticket = ticket.reloaded(folder / f"monomials-{form}-{variables}-{seed}.safetensors")
                stages = ticket.kept_by_stage()
                rows.append({"form": form, "variables": variables, "features": len(exponents), "seed": seed,
                             "kept": ticket.kept, "kept_blocks": stages["logarithm"] + stages["exponential"],
                             "kept_logarithm": stages["logarithm"],
                             "sup": float(universal.power_sup_errors(ticket, exponents, 4000).max())})  # fmt: skip
    return pd.DataFrame(rows)


# --- readouts ---


def randomly_placed(ticket: UniversalTicket, seed: int) -> UniversalTicket:
    """The same source with as many kept in every layer, but at random places."""
    source = generator(seed, "random universal mask")

    def shuffled(layer: Layer) -> Layer:
        order = torch.randperm(layer.parameters, generator=source).numpy()
        kept = np.zeros(layer.parameters, bool)
        kept[order[: int(layer.keep.sum() + layer.keep_bias.sum())]] = True
        return layer.masked(kept)

    stages = [
        replace(stage, chains=tuple(tuple(map(shuffled, chain)) for chain in stage.chains)) for stage in ticket.stages
    ]
    return replace(ticket, stages=tuple(stages))


def families(functions: int) -> dict[str, dict[str, Any]]:
    """The unseen tasks: random polynomials, functions outside that family, and random sums of waves."""
    return {
        "polynomials": universality.random_polynomials(functions, 4),
        **{name: {name: function} for name, function in universality.other_functions().items()},
        "waves": universality.random_trigonometric(functions, 2),
    }


def wave_bank(frequency: int = 2) -> tuple[Array, Array]:
    """Frequencies (k, 1) and phases (k,) of sine and cosine up to `frequency`."""
    turns = np.repeat(np.arange(1, frequency + 1), 2)[:, None]
    return turns, np.tile([0.0, 0.25], frequency)


def gap_rows(seeds: Sequence[int], functions: int, folder: Path, points: int = lines.GRID) -> pd.DataFrame:
    """Worst supremum and RMS gap of each arm on each family, with the readout's size, amplification and condition.

    The ticket of waves serves the family of waves, that of powers the others. "more random features" has as many
    features as half the ticket's parameters (each has two), hence a larger readout, whose gap is by least squares.
    """
    grid = universality.unit_grid(points)
    bank = wave_bank()
    rows = []
    for seed in seeds:
        powers = universal.polynomial_ticket(seed).reloaded(folder / f"powers-{seed}.safetensors")
        waves = universal.fourier_ticket(seed, *bank).reloaded(folder / f"waves-{seed}.safetensors")
        for name, family in families(functions).items():
            ticket = waves if name == "waves" else powers
            exact = universality.exact_waves(*bank) if name == "waves" else universality.exact_powers(4)
            arms = {
                "ticket": ticket.features,
                "exact basis": exact,
                "random mask": randomly_placed(ticket, seed).features,
                "random features": universality.random_units(seed, 4),
            }
            for arm, features in arms.items():
                gap = universality.universality_gap(features, family, grid)
                rows.append({"arm": arm, "family": name, "seed": seed, "sup": gap.sup, "rms": gap.rms,
                             "readout": gap.readout_parameters, "amplification": gap.amplification,
                             "condition": gap.condition, "kept": ticket.kept})  # fmt: skip
            goals = np.stack([function(grid) for function in family.values()], axis=1)
            fits = universality.least_squares(universality.random_units(seed, ticket.kept // 2)(grid), goals)
            rows.append(_fitted("more random features", name, seed, fits, ticket.kept))
            constant = universality.least_squares(np.zeros((len(grid), 1)), goals)
            rows.append(_fitted("constant", name, seed, constant, ticket.kept) | {"readout": 1})
    return pd.DataFrame(rows)


def _fitted(arm: str, family: str, seed: int, fit: universality.Readout, kept: int) -> dict[str, Any]:
    # the RMS over all functions of the family, where the others have that of the worst
    return {"arm": arm, "family": family, "seed": seed, "sup": fit.sup, "rms": fit.rms,
            "readout": len(fit.weights) + 1, "kept": kept, "amplification": fit.amplification,
            "condition": fit.condition}  # fmt: skip


def trained_network(x: Array, y: Array, hidden: int, seeds: Sequence[int], steps: int = 1500) -> Any:
    """ReLU networks 1 -> hidden -> 1, one for each seed side by side, trained by Adam on squared error.

    `x` and `y` have shape (seeds, n). Returns a map of points (n,) to predictions (seeds, n).
    """
    shape = (len(seeds), hidden)
    draws = [generator(seed, "trained network", hidden) for seed in seeds]
    w, b, v = (torch.stack([torch.randn(hidden, dtype=torch.float64, generator=g) for g in draws]) for _ in range(3))
    parameters = [w, b, v / math.sqrt(hidden), torch.zeros(len(seeds), 1, dtype=torch.float64)]
    parameters = [one.requires_grad_() for one in parameters]
    inputs, targets = torch.from_numpy(np.asarray(x, float)), torch.from_numpy(np.asarray(y, float))

    def forward(t: torch.Tensor) -> torch.Tensor:
        units = torch.relu(t[:, :, None] * parameters[0][:, None] + parameters[1][:, None])
        return (units * parameters[2][:, None]).sum(dim=2) + parameters[3]

    optimizer = torch.optim.Adam(parameters, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        ((forward(inputs) - targets) ** 2).mean(dim=1).sum().backward()
        optimizer.step()
        schedule.step()

    def predict(t: Array) -> Array:
        with torch.no_grad():
            return forward(torch.from_numpy(np.asarray(t, float)).expand(shape[0], -1)).numpy()

    return predict


def sample_rows(
    seeds: Sequence[int], sizes: Sequence[int], folder: Path, noise: float = 0.02, steps: int = 300
) -> pd.DataFrame:
    """RMS error of readouts fitted to n noisy samples of a random polynomial (one a seed), measured on the grid.

    Arms: the ticket and random features (k = 4 each) by least squares, and a network trained from scratch with as many
    parameters as the ticket keeps.
    """
    grid = universality.unit_grid(1001)
    family = list(universality.random_polynomials(max(seeds) + 1, 4, seed=1).values())
    tickets = {
        seed: universal.polynomial_ticket(seed).reloaded(folder / f"powers-{seed}.safetensors").live() for seed in seeds
    }
    rows: list[dict[str, Any]] = []
    for size in sizes:
        points, noisy = [], []
        for seed in seeds:
            source = generator(seed, "samples", size)
            x = torch.rand(size, dtype=torch.float64, generator=source).numpy()[:, None]
            y = family[seed](x) + noise * torch.randn(size, dtype=torch.float64, generator=source).numpy()
            points.append(x[:, 0])
            noisy.append(y)
            for arm, features in (("ticket", tickets[seed].features_in_full),
                                  ("random features", universality.random_units(seed, 4))):  # fmt: skip
                readout = universality.least_squares(features(x), y, 1e-6)
                error = readout(features(grid))[:, 0] - family[seed](grid)
                rows.append({"arm": arm, "samples": size, "seed": seed, "rms": float(np.sqrt((error**2).mean()))})
        hidden = (int(np.median([ticket.kept for ticket in tickets.values()])) - 1) // 3
        predict = trained_network(np.array(points), np.array(noisy), hidden, seeds, steps)
        for seed, found in zip(seeds, predict(grid[:, 0]), strict=True):
            error = found - family[seed](grid)
            rows.append({"arm": "trained network", "samples": size, "seed": seed,
                         "rms": float(np.sqrt((error**2).mean()))})  # fmt: skip
    return pd.DataFrame(rows)
