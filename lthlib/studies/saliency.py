"""Pruning at initialization as tables: arms of tickets found, trained together and measured; scores compared."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from lthlib.data import Dataset
from lthlib.finders import pruning_data as sanity
from lthlib.finders.controls import control
from lthlib.finders.find import NEEDS_DATA, tickets_of
from lthlib.finders.from_scores import select
from lthlib.finders.paths import collapsed_layers, effective_density
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import magnitude_scores, ntk_sketch_scores, snip_scores
from lthlib.finders.synflow import synflow_scores
from lthlib.masks.controls import jaccard, jaccard_by_chance
from lthlib.masks.counts import kept_count
from lthlib.models.architecture import architecture
from lthlib.models.narrower import small_dense
from lthlib.studies.setting import arm_rows
from lthlib.ticket import State, Ticket, initial_tickets
from lthlib.training.recipe import Recipe

SAMPLED = {
    "top-k": {},
    "gumbel": {"draw": "gumbel"},
    "gumbel, matched counts": {"draw": "gumbel", "scope": "matched"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "gumbel": {"draw": "gumbel"},
    "multinomial": {"draw": "multinomial"},
    "poisson": {"draw": "poisson"},
    "gumbel, reweighted": {"draw": "gumbel", "reweight": True},
    "gumbel, tau 0.5": {"draw": "gumbel", "temperature": 0.5},
    "gumbel, tau 2": {"draw": "gumbel", "temperature": 2.0},
    "gumbel, at the end": {"draw": "gumbel", "at": "end"},
}
# What a row of the checks is called, and the control that it is.
SANITY_CHECKS = {
    "layerwise shuffle": "layerwise shuffle",
    "reinit": "reinit",
    "reinit and shuffle": "reinit and shuffle",
    "global shuffle": "random mask",
    "value shuffle": "value shuffle",
    "erk": "erk",
    "smart-ratio": "smart-ratio",
}
Arms = Mapping[str, Sequence[Ticket]]


def connected_rows(arms: Arms, recipe: Recipe, dataset: Dataset, **options: Any) -> pd.DataFrame:
    """`arm_rows` with the columns `effective_density` (weights on input-output paths) and `empty_layers`.

    This reads the test split, once a ticket.
    """
    every = [ticket for tickets in arms.values() for ticket in tickets]
    return arm_rows(arms, recipe, dataset, **options).assign(
        effective_density=[effective_density(ticket) for ticket in every],
        empty_layers=[len(collapsed_layers(ticket)) for ticket in every],
    )


def method_rows(
    methods: Mapping[str, Mapping[str, Mapping[str, Any]]],
    densities: Sequence[float],
    initial: Sequence[Ticket],
    recipe: Recipe,
    dataset: Dataset,
    **options: Any,
) -> pd.DataFrame:
    """One row per method, arm (options of its sampling), target density and seed, found and trained from `initial`.

    `options` are those of `connected_rows`. The asked-for density is `target`; multinomial and Poisson draws meet it
    only on average (`density`).
    """
    parts = []
    for method, ways in methods.items():
        for target in densities:
            arms = {way: tickets_of(method, initial, target, dataset, **how) for way, how in ways.items()}
            parts.append(connected_rows(arms, recipe, dataset, method=method, target=target, **options))
    return pd.concat(parts, ignore_index=True)


def sanity_arms(method: str, initial: Sequence[Ticket], density: float, dataset: Dataset) -> dict[str, list[Ticket]]:
    """The original tickets of a method and, of the same total count, each of SANITY_CHECKS, the inverted score
    and, for methods that read data, each of `sanity.CORRUPTIONS`."""
    original = tickets_of(method, initial, density, dataset)
    arms = {"original": original} | controls(original)
    if method != "phew":
        arms["inverted"] = tickets_of(method, initial, density, dataset, invert=True)
    if method in NEEDS_DATA:
        for corruption in sanity.CORRUPTIONS[1:]:
            arms[corruption] = tickets_of(method, initial, density, dataset, corruption=corruption)
    return arms


def controls(tickets: Sequence[Ticket]) -> dict[str, list[Ticket]]:
    """Each control of SANITY_CHECKS of tickets of any origin."""
    return {label: [control(ticket, name) for ticket in tickets] for label, name in SANITY_CHECKS.items()}


def small_dense_rows(
    ticket: Ticket, recipe: Recipe, dataset: Dataset, seeds: Sequence[int], **options: Any
) -> pd.DataFrame:
    """A dense network of the same family with as many prunable weights as `ticket` keeps, trained for each seed."""
    small = small_dense(ticket.architecture, ticket.kept)
    rows = connected_rows({"small dense": initial_tickets(small, seeds)}, recipe, dataset, **options)
    return rows.assign(density=rows["n_free"] / rows["n_free"].max() * ticket.density)


def score_rows(
    initial: Sequence[Ticket], dataset: Dataset, density: float, *, examples_per_class: int = 10
) -> pd.DataFrame:
    """Agreement of scores at initialization: one row per seed and pair of scores.

    `spearman` is the rank correlation over all weights, `overlap` the Jaccard overlap of the two top-k masks at
    `density` and `chance` what independent masks of the same counts a layer have. Scores: the sketch's |w_k| |J_k|,
    that with Gaussian images, |w|, SNIP, SynFlow (one iteration).
    """
    rows = []
    for ticket in initial:
        scores = _scores(ticket, dataset, examples_per_class)
        count = kept_count(density, ticket.prunable)
        masks = {name: select(ticket, score, count).masks for name, score in scores.items()}
        ranks = {name: _ranks(score) for name, score in scores.items()}
        for first, second in product(scores, repeat=2):
            pair = masks[first], masks[second]
            rows.append({"seed": ticket.seed, "score": first, "other": second,
                         "spearman": float(ranks[first].corr(ranks[second])), "overlap": jaccard(*pair),
                         "chance": jaccard_by_chance(*pair, layerwise=True)})  # fmt: skip
    return pd.DataFrame(rows)


def _scores(ticket: Ticket, dataset: Dataset, examples_per_class: int) -> dict[str, State]:
    images, labels = pruning_data(ticket, dataset, examples_per_class=examples_per_class)
    noise, _ = pruning_data(ticket, None, examples_per_class=examples_per_class, corruption="gaussian")
    return {
        "sketch": ntk_sketch_scores(ticket, images, probes=None),
        "sketch, noise": ntk_sketch_scores(ticket, noise, probes=None),
        "magnitude": magnitude_scores(ticket),
        "snip": snip_scores(ticket, images, labels),
        "synflow": synflow_scores(ticket),
    }


def _ranks(scores: State) -> pd.Series:
    parts = [pd.Series(score.detach().double().reshape(-1).numpy()) for score in scores.values()]
    return pd.concat(parts, ignore_index=True).rank()


def collapse_rows(
    model: str, dataset: Dataset, seeds: Sequence[int], methods: Sequence[str], densities: Sequence[float]
) -> pd.DataFrame:
    """Untrained masks down to extreme densities: empty layers and effective density, one row per method and density."""
    initial = initial_tickets(architecture(model, dataset.input_shape, dataset.classes), seeds)
    rows = []
    for method, density in product(methods, densities):
        for ticket in tickets_of(method, initial, density, dataset):
            empty = collapsed_layers(ticket)
            rows.append({"seed": ticket.seed, "model": model, "method": method, "density": density,
                         "empty_layers": len(empty), "effective_density": effective_density(ticket),
                         "first_empty": empty[0] if empty else ""})  # fmt: skip
    return pd.DataFrame(rows)


def critical_density(rows: pd.DataFrame) -> pd.DataFrame:
    """The smallest density of `collapse_rows` at which, and above which, no layer is empty: one row per method, seed.

    NaN where a layer is empty at the largest density tried.
    """
    smallest = []
    for (method, seed), group in rows.groupby(["method", "seed"], sort=False):
        part = group.sort_values("density", ascending=False)
        whole = part[(part["empty_layers"] > 0).cumsum() == 0]
        smallest.append({"method": method, "seed": seed, "density": whole["density"].min()})
    return pd.DataFrame(smallest)
