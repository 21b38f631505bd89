"""Finders of strong tickets side by side: tidy rows by finder, density and seed, with their baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.find import find
from lthlib.finders.supermask import (
    FinderArm,
    Found,
    Supermask,
    Task,
    find_supermasks,
    large_final_same_sign,
    random_source,
)
from lthlib.masks.counts import counts_of
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import Architecture
from lthlib.store import Store
from lthlib.theory.strong.planted import TASKS, Planted, as_dataset, compare, plant, samples
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
    rows = []
    for label, ticket, validation, test in zip(
        labels, tickets, judged, evaluate(tickets, dataset, "test"), strict=True
    ):
        rows.append(
            {
                "model": architecture.name,
                "dataset": dataset.label,
                "finder": label,
                "density": ticket.density,
                "seed": ticket.seed,
                "accuracy": test.accuracy,
                "loss": test.loss,
                "validation_accuracy": validation,
                "trained": label == DENSE,
            }
        )
    return pd.DataFrame(rows)


def curve_rows(searches: Sequence[Found], **columns: Any) -> pd.DataFrame:
    """The searches' histories as rows, one per evaluation, with the seed; `columns` are added to each."""
    return pd.DataFrame([{"seed": run.seed} | row | columns for run in searches for row in run.history])


def planted_table(
    finders: Mapping[str, FinderArm],
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] = TASKS,
    depth: int = 3,
    width: int = 50,
    layers: Sequence[str] = ("planted", "equal", "global"),
    densities: Sequence[float] = (),
    count: int = 10_000,
    store: Store | None = None,
) -> pd.DataFrame:
    """One row per task, finder, layer counts, density and seed: how near each comes to the planted ticket.

    Columns: task, finder, layers, seed and those of `planted.compare`. Finders search the planted source, whatever
    their arm's own: at the planted density with each of `layers` (those of `Planted.settings`), and with one density
    in every layer at each of `densities`. Baselines at the planted density: a random mask and the largest weights with
    the planted counts, on the circle SNIP, none of them trained; and the planted ticket itself. `count` is the number
    of samples.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        hidden = [plant(task, depth, width, seed) for seed in seeds]
        # One draw of the data for all replicates, as with any data set.
        shown = samples(hidden[0], 0, count)
        found = _unsearched(hidden, shown)
        for label, arm in finders.items():
            # The planted counts are the target's, whatever the seed.
            asked = [(kind, hidden[0].settings(arm.settings.method, kind)) for kind in layers]
            asked += [("equal", Supermask(density=density)) for density in densities]
            for kind, wish in asked:
                settings = replace(arm.settings, density=wish.density, scope=wish.scope, counts=wish.counts)
                sources = [one.source for one in hidden]
                runs = find_supermasks(sources, settings, arm.recipe, shown, store=store)
                found.append((label, kind, [run.ticket for run in runs]))
        rows += [
            {"task": task, "finder": label, "layers": kind, "seed": ticket.seed} | compare(one, ticket, shown)
            for label, kind, tickets in found
            for one, ticket in zip(hidden, tickets, strict=True)
        ]
    return pd.DataFrame(rows)


def _unsearched(hidden: Sequence[Planted], shown: Task) -> list[tuple[str, str, list[Ticket]]]:
    """Finder, layer counts and tickets of what needs no search."""
    counts = counts_of(hidden[0].ticket.masks)
    largest = [keep_top({name: c.abs() for name, c in one.source.coefficients.items()}, counts) for one in hidden]
    found = [
        ("planted", "planted", [one.ticket for one in hidden]),
        (RANDOM, "planted", [layerwise_shuffled(one.ticket) for one in hidden]),
        ("magnitude", "planted", [one.source.with_masks(m) for one, m in zip(hidden, largest, strict=True)]),
    ]
    if shown.targets.dim() == 1:
        dataset = as_dataset(hidden[0], shown)
        chosen = [find(one.source, one.ticket.density, "snip", dataset, keep_one=True) for one in hidden]
        found.append(("snip", "global", chosen))
    return found
