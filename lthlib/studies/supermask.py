"""Finders of strong tickets side by side: tidy rows by finder, density and seed, with their baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.finders.find import find
from lthlib.finders.supermask import (
    FinderArm,
    SearchedMask,
    find_supermasks,
    large_final_same_sign,
    random_source,
)
from lthlib.models.architecture import Architecture
from lthlib.store import Store
from lthlib.ticket import Ticket
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate, train

RANDOM, DENSE, ONE_SHOT = "random mask", "dense, trained", "large final, same sign"


def finder_table(
    architecture: Architecture,
    dataset: Dataset,
    finders: Mapping[str, FinderArm],
    densities: Sequence[float],
    seeds: Sequence[int],
    dense_recipe: Recipe,
    *,
    store: Store | None = None,
    progress: str = "",
) -> pd.DataFrame:
    """One row per finder, density and seed: test accuracy (percent) and loss of tickets whose weights never trained.

    Columns: model, dataset, finder, density, seed, accuracy, loss, validation_accuracy, trained. Baselines, all of the
    `kaiming_normal` source: "random mask" at each density, and at density 1 (the random network itself); Zhou's
    one-shot "large final, same sign" mask; and "dense, trained" by `dense_recipe` (the one row whose weights trained).
    """
    if not densities or not seeds:
        raise InputError("a table of finders needs at least one density and one seed")
    labels: list[str] = []
    tickets: list[Ticket] = []
    judged: list[float] = []
    for label, arm in finders.items():
        for density in densities:
            sources = [arm.source(architecture, seed, density) for seed in seeds]
            settings = replace(arm.settings, density=density)
            name = f"{progress} {label} {density:.3g}" if progress else ""
            searches = find_supermasks(sources, settings, arm.recipe, dataset, store=store, progress=name)
            labels += [label] * len(seeds)
            tickets += [search.ticket for search in searches]
            judged += [search.history[-1]["validation_accuracy"] for search in searches]
    plain = [random_source(architecture, seed) for seed in seeds]
    dense = train(plain, dense_recipe, dataset, store=store, progress=progress)
    baselines: list[tuple[str, Ticket]] = []
    for source, run in zip(plain, dense, strict=True):
        baselines += [(RANDOM, source), (DENSE, run.ticket)]
        for density in densities:
            if density < 1:
                baselines.append((RANDOM, find(source, density, "uniform")))
                baselines.append((ONE_SHOT, large_final_same_sign(source, run.ticket, density)))
    labels += [label for label, _ in baselines]
    judged += [result.accuracy for result in evaluate([ticket for _, ticket in baselines], dataset, "validation")]
    tickets += [ticket for _, ticket in baselines]
    tests = evaluate(tickets, dataset, "test")
    rows = [
        (label, ticket.density, ticket.seed, test.accuracy, test.loss, validation, label == DENSE)
        for label, ticket, validation, test in zip(labels, tickets, judged, tests, strict=True)
    ]
    columns = ["finder", "density", "seed", "accuracy", "loss", "validation_accuracy", "trained"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(0, "model", architecture.name)
    table.insert(1, "dataset", dataset.label)
    return table


def curve_rows(searches: Sequence[SearchedMask], **columns: Any) -> pd.DataFrame:
    """The searches' histories as rows, one per evaluation, with the seed; `columns` are added to each."""
    return pd.DataFrame([{"seed": run.seed} | row | columns for run in searches for row in run.history])
