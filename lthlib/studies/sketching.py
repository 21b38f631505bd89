"""Tidy rows of the sketching study: relative errors of many drawn masks beside their formulas."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.finders.synflow import synflow_scores
from lthlib.masks.counts import kept_count
from lthlib.models.architecture import architecture, output_layer
from lthlib.randomness import generator
from lthlib.theory import sketching
from lthlib.theory.linearisation import flat, jacobian
from lthlib.ticket import Ticket, dense_ticket
from lthlib.training.loop import Trained

MASKS = ("reweighted", "merged", "poisson", "gumbel", "top-k")
EQUAL = "equal sizes, "
STEPS = (0, 1, 3, 10, 30, 100, 300, 500)


def pixel_problem(dataset: Dataset, examples: int, how: str, seed: int) -> tuple[Tensor, Tensor]:
    """X (d, n), float64: pixels scaled to [0, 1] of n drawn training images, prepared by `how` (`sketching.prepare`);
    and y (n,), +1 for class 0 and -1 for all others."""
    count = len(dataset.train.labels)
    if not 2 <= examples <= count:
        raise InputError(f"examples {examples} is not between 2 and the {count} training images")
    chosen = torch.randperm(count, generator=generator(seed, "linear problem"))[:examples]
    images = dataset.train.images.cpu()[chosen].double()
    x = sketching.prepare((images / images.max()).flatten(1).T.contiguous(), how)
    return x, torch.where(dataset.train.labels.cpu()[chosen] == 0, 1.0, -1.0).double()


def error_rows(
    x: Tensor,
    w0: Tensor,
    w_star: Tensor,
    densities: Sequence[float],
    seed: int,
    *,
    draws: int = 200,
    masks: Sequence[str] = MASKS,
    kinds: Sequence[str] = sketching.DISTRIBUTIONS,
    given: Mapping[str, Tensor] | None = None,
    **columns: Any,
) -> pd.DataFrame:
    """One row per distribution, mask, density and weights: relative error (1: the zero mask) of masks found from w0.

    `on` says whose output is kept: the initial weights "w0" or the trained "w*". `error` is the mean over `draws`
    masks, `median` their median, `theory` the exact expectation where there is a formula, `below_one` the share of
    masks better than keeping nothing, `kept` the mean density achieved, `s` the asked-for number of weights (and of
    draws). Top-k has one mask, and none for the uniform distribution, where ties would decide. `given` adds
    distributions by name to those of `kinds`.
    """
    chances = {
        kind: sketching.distribution(kind, x, w0, w_star=w_star, generator=generator(seed, "sketch", kind))
        for kind in kinds
    }
    judged = {
        on: (w, float(sketching.output_error(x, w, torch.zeros_like(w)))) for on, w in (("w0", w0), ("w*", w_star))
    }
    rows = []
    for kind, p in (chances | dict(given or {})).items():
        for density in densities:
            s = max(1, kept_count(density, p.numel()))
            pi = sketching.poisson_probabilities(p, s)
            for mask in masks:
                if mask == "top-k" and kind == "uniform":
                    continue
                drawn = _masks(mask, p, pi, s, draws, generator(seed, "sketch", kind, mask, s))
                for on, (w, energy) in judged.items():
                    errors = sketching.relative_error(x, w, drawn)
                    row = {"seed": seed, "distribution": kind, "mask": mask, "density": density, "s": s, "on": on,
                           "kept": float((drawn != 0).double().mean()), "error": float(errors.mean()),
                           "median": float(errors.median()), "below_one": float((errors < 1).double().mean()),
                           "theory": _expected(mask, x, w, p, pi, s) / energy}  # fmt: skip
                    rows.append(row | columns)
    return pd.DataFrame(rows)


def _masks(mask: str, p: Tensor, pi: Tensor, s: int, draws: int, source: torch.Generator) -> Tensor:
    if mask == "poisson":
        return sketching.poisson_masks(pi, draws, source, reweight=False)
    if mask == "gumbel":
        return sketching.gumbel_masks(p, s, draws, source)
    if mask == "top-k":
        return sketching.top_mask(p, s)[None]
    return sketching.sketch_masks(p, s, draws, source, reweight=mask == "reweighted")


def _expected(mask: str, x: Tensor, w: Tensor, p: Tensor, pi: Tensor, s: int) -> float:
    if mask == "reweighted":
        return sketching.expected_error(x, w, p, s)
    if mask == "poisson":
        return sketching.poisson_error(x, w, pi, reweight=False)
    # The formula of distinct draws sums over all pairs of weights: seconds for the 3,072 of a colour image.
    if mask == "merged" and w.numel() <= 1024:
        return sketching.merged_error(x, w, p, s)
    return float("nan")


def pixel_rows(
    dataset: Dataset,
    seeds: Sequence[int],
    densities: Sequence[float],
    *,
    examples: int = 500,
    preparations: Sequence[str] = ("raw", "centred", "standardised"),
    scales: Sequence[float] = (1.0,),
    schemes: Sequence[str] = ("gaussian",),
    steps: int = 500,
    draws: int = 200,
) -> pd.DataFrame:
    """`error_rows` of least squares on pixels, by preparation, by initial std (`scales` / sqrt d) and by scheme.

    w* is w0 after `steps` of gradient descent; `movement` is |w* - w0| / |w0|.
    """
    parts = []
    for seed, how in product(seeds, preparations):
        x, y = pixel_problem(dataset, examples, how, seed)
        for scheme, scale in product(schemes, scales):
            w0 = sketching.initial_weights((len(x),), scale / len(x) ** 0.5, scheme, generator(seed, "linear weights"))
            w_star = sketching.gradient_descent(x, y, w0, [steps])[0]
            columns: dict[str, Any] = {
                "features": how,
                "init": f"{EQUAL if scheme == 'signed_constant' else ''}std {scale:g}/√d",
                "movement": float((w_star - w0).norm() / w0.norm()),
            }
            parts.append(error_rows(x, w0, w_star, densities, seed, draws=draws, **columns))
    return pd.concat(parts, ignore_index=True)


def masked_training_rows(
    dataset: Dataset, seeds: Sequence[int], densities: Sequence[float], *, how: str = "centred", examples: int = 500
) -> pd.DataFrame:
    """Least squares on pixels trained *under* a mask found at init: one row per mask, density and step of STEPS.

    `fit` is |X^T w - y|^2 / |y|^2 of the weights trained under the mask, `error` the relative error of masking the
    weights that the same number of unmasked steps gave. Masks: top-k, Gumbel-top-k (optimal p) and uniform; and none.
    """
    rows = []
    for seed in seeds:
        x, y = pixel_problem(dataset, examples, how, seed)
        w0 = sketching.initial_weights((len(x),), len(x) ** -0.5, "gaussian", generator(seed, "linear weights"))
        free = sketching.gradient_descent(x, y, w0, STEPS)
        p = sketching.distribution("optimal", x, w0)
        even = torch.full_like(p, 1 / p.numel())
        for density in densities:
            count = max(1, kept_count(density, p.numel()))
            masks = {"top-k": sketching.top_mask(p, count), "none": torch.ones_like(p)}
            for name, chances in {"gumbel": p, "uniform": even}.items():
                source = generator(seed, "masked training", name, count)
                masks[name] = sketching.gumbel_masks(chances, count, 1, source)[0]
            for name, mask in masks.items():
                trained = sketching.gradient_descent(x, y, w0, STEPS, mask=mask)
                for step, masked, whole in zip(STEPS, trained, free, strict=True):
                    fit = float((x.T @ masked - y).square().sum() / y.square().sum())
                    error = float(sketching.relative_error(x, whole, mask))
                    rows.append((seed, name, density, step, fit, error))
    return pd.DataFrame(rows, columns=["seed", "mask", "density", "step", "fit", "error"])


def linearised_rows(
    dense: Sequence[Trained],
    dataset: Dataset,
    densities: Sequence[float],
    *,
    examples: int = 50,
    draws: int = 100,
) -> pd.DataFrame:
    """`error_rows` with the Jacobian at the start in the place of the pixels, one dense training a seed.

    `dense` has a snapshot at step 0; w0 are its prunable weights, w* those at its end. "gaussian_data" is |w_k| |J_k|
    with the Jacobian on N(0, 1) images, judged on the real ones.
    """
    parts = []
    for run in dense:
        start = run.snapshots[0]
        w0, w_star = flat(start.coefficients), flat(run.ticket.coefficients)
        chosen = torch.randperm(len(dataset.train.labels), generator=generator(run.seed, "linearised"))[:examples]
        images = dataset.normalise(dataset.train.images.cpu()[chosen])
        x = jacobian(start, images)
        noise = torch.randn(images.shape, generator=generator(run.seed, "linearised noise"))
        given = {"gaussian_data": sketching.distribution("optimal", jacobian(start, noise), w0)}
        options: dict[str, Any] = {"draws": draws, "masks": ("reweighted", "gumbel", "top-k")}
        kinds = ("optimal", "magnitude", "uniform", "oracle")
        parts.append(error_rows(x, w0, w_star, densities, run.seed, kinds=kinds, given=given, **options))
    return pd.concat(parts, ignore_index=True)


def one_layer_identity(ticket: Ticket) -> float:
    """Largest difference between SynFlow's scores of one linear layer and the optimal p for rows of equal norm.

    The layer is the ticket's output layer as a network of its own; that p is |w| / sum |w|.
    """
    weight = ticket.weights()[output_layer(ticket.architecture)].double()
    alone = architecture("linear", (1, 1, weight.shape[1]), weight.shape[0])
    score = synflow_scores(dense_ticket(alone, {"1.weight": weight, "1.bias": weight.new_zeros(len(weight))}))
    return float((score["1.weight"] / score["1.weight"].sum() - weight.abs() / weight.abs().sum()).abs().max())


def error_slopes(rows: pd.DataFrame) -> dict[str, list[float]]:
    """For each preparation and init of `error_rows`: slope of log(error) on log(s), plus 1, one number a seed."""
    slopes: dict[str, list[float]] = {}
    for (features, init, _), part in rows.groupby(["features", "init", "seed"]):
        slope = np.polyfit(np.log(part["s"]), np.log(part["error"]), 1)[0]
        slopes.setdefault(f"{features}, {init}", []).append(float(slope) + 1)
    return slopes


def ratios(rows: pd.DataFrame) -> dict[str, list[float]]:
    """For each preparation and init (where there are such columns) the measured over the predicted error, one
    geometric mean over all other rows of a seed."""
    by = [name for name in ("features", "init") if name in rows]
    labels = rows[by].agg(", ".join, axis=1) if by else pd.Series("all", rows.index)
    logs = np.log(rows["error"]) - np.log(rows["theory"])
    return {name: [float(np.exp(v)) for v in part.groupby(rows["seed"]).mean()] for name, part in logs.groupby(labels)}
