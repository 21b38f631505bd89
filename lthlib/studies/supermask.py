"""Finders of strong tickets side by side: tidy rows by finder, density and seed, with their baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.find import find
from lthlib.finders.supermask import (
    RECIPES,
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


@dataclass(frozen=True)
class Arm:
    """One finder of a table: its settings (density is the table's), its recipe and the source that it searches.

    `scale_fan` scales the source's weights for each density; see `random_source` for `scheme` and `bias_scale`.
    """

    settings: Supermask
    recipe: Recipe
    scheme: str = "kaiming_normal"
    scale_fan: bool = False
    bias_scale: float = 0.0

    def source(self, architecture: Architecture, seed: int, density: float) -> Ticket:
        """The random network of one replicate."""
        fan = density if self.scale_fan else 1.0
        return random_source(architecture, seed, self.scheme, scale_fan=fan, bias_scale=self.bias_scale)


def arms(epochs: float, batch_size: int = 64, evaluations: int = 10) -> dict[str, Arm]:
    """The finders of the notebook with their papers' settings, for searches of `epochs`.

    Gem-Miner's rate is 5 instead of 0.1: its scores start all over [0, 1], and must cross it in so few steps.
    """
    recipes = {
        name: replace(recipe, epochs=epochs, batch_size=batch_size, evaluations=evaluations)
        for name, recipe in RECIPES.items()
    }
    popup, gem = recipes["edge-popup"], replace(recipes["gem-miner"], learning_rate=5.0)
    return {
        "edge-popup": Arm(Supermask("edge-popup"), popup),
        "edge-popup, signed constant": Arm(Supermask("edge-popup"), popup, "signed_constant", scale_fan=True),
        "edge-popup, biases": Arm(Supermask("edge-popup", prune_biases=True), popup, bias_scale=1.0),
        "supermask": Arm(Supermask("supermask"), recipes["supermask"]),
        "biprop": Arm(Supermask("biprop"), recipes["biprop"]),
        "gem-miner": Arm(Supermask("gem-miner"), gem, "signed_constant"),
    }


def finder_table(
    architecture: Architecture,
    dataset: Dataset,
    finders: Mapping[str, Arm],
    densities: Sequence[float],
    seeds: Sequence[int],
    dense_recipe: Recipe,
    *,
    device: str = "auto",
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
    labels: list[tuple[str, float, int]] = []
    tickets: list[Ticket] = []
    judged: list[float] = []
    for label, arm in finders.items():
        for density in densities:
            sources = [arm.source(architecture, seed, density) for seed in seeds]
            settings = replace(arm.settings, density=density)
            name = f"{progress} {label} {density:.3g}" if progress else ""
            found = find_supermasks(
                sources, settings, arm.recipe, dataset, seeds, device=device, store=store, progress=name
            )
            labels += [(label, density, seed) for seed in seeds]
            tickets += [run.ticket for run in found]
            judged += [run.history[-1]["validation_accuracy"] for run in found]
    plain = [random_source(architecture, seed) for seed in seeds]
    dense = train(plain, dense_recipe, dataset, seeds, device=device, store=store, progress=progress)
    baselines: list[tuple[str, float, int, Ticket]] = []
    for source, run, seed in zip(plain, dense, seeds, strict=True):
        baselines += [(RANDOM, 1.0, seed, source), (DENSE, 1.0, seed, run.ticket)]
        for density in densities:
            if density < 1:
                masked = find(source, density, "uniform", seed=seed, device=device)
                one_shot = large_final_same_sign(source, run.ticket, density)
                baselines += [(RANDOM, density, seed, masked), (ONE_SHOT, density, seed, one_shot)]
    labels += [(label, density, seed) for label, density, seed, _ in baselines]
    tickets += [ticket for *_, ticket in baselines]
    judged += [one.accuracy for one in evaluate([row[3] for row in baselines], dataset, "validation", device=device)]
    rows = []
    for (label, _, seed), ticket, validation, test in zip(
        labels, tickets, judged, evaluate(tickets, dataset, "test", device=device), strict=True
    ):
        rows.append(
            {
                "model": architecture.name,
                "dataset": dataset.label,
                "finder": label,
                "density": ticket.density,
                "seed": seed,
                "accuracy": test.accuracy,
                "loss": test.loss,
                "validation_accuracy": validation,
                "trained": label == DENSE,
            }
        )
    return pd.DataFrame(rows)


def curve_rows(found: Sequence[Found], **columns: Any) -> pd.DataFrame:
    """The searches' histories as rows, one per evaluation, with the seed; `columns` are added to each."""
    return pd.DataFrame([{"seed": run.seed} | row | columns for run in found for row in run.history])


def planted_table(
    finders: Mapping[str, Arm],
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] = TASKS,
    depth: int = 3,
    width: int = 50,
    layers: Sequence[str] = ("planted", "equal", "global"),
    densities: Sequence[float] = (),
    count: int = 10_000,
    device: str = "auto",
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
        found = _unsearched(hidden, shown, seeds, device)
        for label, arm in finders.items():
            # The planted counts are the target's, whatever the seed.
            asked = [(kind, hidden[0].settings(arm.settings.method, kind)) for kind in layers]
            asked += [("equal", Supermask(density=density)) for density in densities]
            for kind, wish in asked:
                settings = replace(arm.settings, density=wish.density, scope=wish.scope, counts=wish.counts)
                sources = [one.source for one in hidden]
                runs = find_supermasks(sources, settings, arm.recipe, shown, seeds, device=device, store=store)
                found.append((label, kind, [run.ticket for run in runs]))
        rows += [
            {"task": task, "finder": label, "layers": kind, "seed": seed} | compare(one, ticket, shown)
            for label, kind, tickets in found
            for one, ticket, seed in zip(hidden, tickets, seeds, strict=True)
        ]
    return pd.DataFrame(rows)


def _unsearched(
    hidden: Sequence[Planted], shown: Task, seeds: Sequence[int], device: str
) -> list[tuple[str, str, list[Ticket]]]:
    """Finder, layer counts and tickets of what needs no search."""
    counts = counts_of(hidden[0].ticket.masks)
    largest = [keep_top({name: c.abs() for name, c in one.source.coefficients.items()}, counts) for one in hidden]
    found = [
        ("planted", "planted", [one.ticket for one in hidden]),
        (RANDOM, "planted", [layerwise_shuffled(one.ticket, seed) for one, seed in zip(hidden, seeds, strict=True)]),
        ("magnitude", "planted", [one.source.with_masks(m) for one, m in zip(hidden, largest, strict=True)]),
    ]
    if shown.targets.dim() == 1:
        dataset = as_dataset(hidden[0], shown)
        chosen = [
            find(one.source, one.ticket.density, "snip", dataset, seed, device=device, keep_one=True)
            for one, seed in zip(hidden, seeds, strict=True)
        ]
        found.append(("snip", "global", chosen))
    return found
