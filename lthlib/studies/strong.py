"""Constructed strong tickets as tidy rows: their costs, their errors and the accuracy of their own forward pass."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.supermask import Supermask, find_supermasks, finder_arms, random_source
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.store import Store
from lthlib.theory.strong.construct import Construction, construct
from lthlib.theory.strong.error_bounds import error_bound
from lthlib.theory.strong.search import SubsetSearch
from lthlib.theory.strong.sources import source
from lthlib.ticket import Ticket, dense_ticket, initial_tickets
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate, train

TARGET = "target"
LARGEST_SEARCH = 1_000_000  # weights of a source that a finder searches beside a construction


@dataclass(frozen=True)
class Way:
    """A construction to compare: how subsets are searched, and how many layers a target layer becomes."""

    search: SubsetSearch
    kind: str = "two-layer"


def ways(candidates: int, eps: float) -> dict[str, Way]:
    """The constructions of the notebook by name, all with `candidates` random numbers a weight and sign (Malach's and
    Orseau's with four times as many, since they choose one, or greedily)."""
    base = SubsetSearch(candidates=candidates, eps=eps, redraws=2)
    greedy = replace(base, method="greedy", law="hyperbolic", candidates=4 * candidates)
    return {
        "best (Pensia)": Way(base),
        "sparsest, first hit": Way(replace(base, method="sparsest", choice="first")),
        "sparsest, best in size": Way(replace(base, method="sparsest")),
        "fixed size n/4 (Natale)": Way(replace(base, method="fixed", size=max(1, candidates // 4))),
        "one of 4 n (Malach)": Way(replace(base, method="nearest", candidates=4 * candidates, redraws=0)),
        "greedy (Orseau)": Way(greedy),
        "depth + 1 (Burkholz)": Way(base, "depth-plus-one"),
        "depth + 1, sparsest": Way(replace(base, method="sparsest"), "depth-plus-one"),
    }


def targets(
    name: str, dataset: Dataset, recipe: Recipe, seeds: Sequence[int], *, store: Store | None = None
) -> list[Trained]:
    """Trained target networks, one a seed: a model's name, or a text of `models.layers` (layers joined by dashes)."""
    shape, classes = dataset.input_shape, dataset.classes
    of_layers = name.startswith(("flatten-", "conv")) and "linear" in name
    network = (source if of_layers else architecture)(name, shape, classes)
    return train(initial_tickets(network, seeds), recipe, dataset, store=store)


def constructions(
    trained: Sequence[Trained],
    chosen: Mapping[str, Way],
    dataset: Dataset,
    *,
    keep: Sequence[str] = (),
    inputs: int = 100,
) -> tuple[pd.DataFrame, dict[str, list[Construction]], pd.DataFrame]:
    """Every way for every trained target: rows, the constructions of the ways to `keep`, and seconds and solves/s.

    One row a way and seed, and the target itself: depth, width (largest layer), source, ticket, density, ratio to the
    target's numbers, kept a weight, solves, unreached, sup error over `inputs` test images with the bound that the
    weights' errors give, test accuracy of the ticket and, as `delta`, minus that of its target.
    """
    exact = evaluate([run.ticket for run in trained], dataset, "test")
    images = dataset.normalised("test")[:inputs]
    rows: list[dict[str, Any]] = [
        {"arm": TARGET, "seed": run.seed, "accuracy": one.accuracy, "delta": 0.0}
        for run, one in zip(trained, exact, strict=True)
    ]
    made: dict[str, list[Construction]] = {name: [] for name in keep}
    speeds = []
    for name, way in chosen.items():
        for run, one in zip(trained, exact, strict=True):
            start = time.perf_counter()
            found = construct(run.ticket, way.search, kind=way.kind, seed=run.seed)
            seconds = time.perf_counter() - start
            (test,) = evaluate([found.ticket], dataset, "test")
            accuracy = {"accuracy": test.accuracy, "delta": test.accuracy - one.accuracy}
            rows.append({"arm": name, "seed": run.seed} | row_of(found, images) | accuracy)
            speeds.append({"arm": name, "seconds": seconds, "solves": found.solves})
            # Sources are large: only those that are asked for stay in memory.
            if name in made:
                made[name].append(found)
    speed = pd.DataFrame(speeds).groupby("arm", sort=False).mean()
    return pd.DataFrame(rows), made, speed.assign(**{"solves/s": speed["solves"] / speed["seconds"]})


def row_of(found: Construction, images: Tensor) -> dict[str, Any]:
    """The costs and errors of a construction, over some normalised images."""
    counts = found.counts
    bound = math.nan
    if found.kind == "two-layer":
        bound = error_bound(found.nodes, list(found.layers["largest_error"]), images)
    return counts | {
        "depth": len(found.ticket.masks),
        "width": max(len(mask) for mask in found.ticket.masks.values()),
        "solves": found.solves,
        "redrawn": int(found.layers["redrawn"].sum()),
        "unreached": found.unreached,
        "sup_error": found.sup_error(images),
        "bound": bound,
    }


def controls(
    trained: Sequence[Trained], made: Mapping[str, Sequence[Construction]], dataset: Dataset, eps: float
) -> pd.DataFrame:
    """What a constructed ticket is not: rows (arm, seed, density, accuracy).

    A random mask and the largest weights on the same source at each layer's own density; and the target itself with
    its weights rounded to 0 up to eps, or moved by U[-eps, eps], which tells whether the task would notice.
    """
    rows: list[dict[str, Any]] = []
    tickets: list[Ticket] = []
    for place, run in enumerate(trained):
        for name, parts in made.items():
            own = parts[place].ticket
            sizes = {layer: int(mask.sum()) for layer, mask in own.masks.items()}
            largest = own.with_masks(keep_top({n: c.abs() for n, c in own.coefficients.items()}, sizes))
            tickets += [layerwise_shuffled(own), largest]
            labels = (f"random mask on its source: {name}", f"largest weights of its source: {name}")
            rows += [{"arm": label, "seed": run.seed, "density": own.density} for label in labels]
        weights = run.ticket.coefficients
        rounded = {name: w * (w.abs() > eps) for name, w in weights.items()}
        moved = {
            name: w + eps * (2 * torch.rand(w.shape, generator=generator(run.seed, "noise", name)) - 1)
            for name, w in weights.items()
        }
        for label, state in (("target, rounded to 0 up to eps", rounded), ("target, moved by U[-eps, eps]", moved)):
            tickets.append(replace(run.ticket, coefficients=state))
            rows.append({"arm": label, "seed": run.seed, "density": 1.0})
    found = evaluate(tickets, dataset, "test")
    return pd.DataFrame([row | {"accuracy": one.accuracy} for row, one in zip(rows, found, strict=True)])


def width_rows(
    widths: Sequence[int], counts: Sequence[int], eps: float, seeds: Sequence[int], layers: int = 2
) -> pd.DataFrame:
    """Random MLPs of `layers` layers and width d, weights U[-1, 1] / sqrt(d): rows (d, seed, needed), the fewest
    candidates a weight of `counts` at which the two-layer ticket's sup error over 100 inputs of norm 1 is at most
    eps (NaN where none is)."""
    rows = []
    for width in widths:
        for seed in seeds:
            name = "-".join(["lenet", *[str(width)] * (layers - 1)])
            made = architecture(name, (1, 1, width), width)
            draws = generator(seed, "width", width)
            state = {
                key: (2 * torch.rand(value.shape, generator=draws) - 1) * (width**-0.5 if value.dim() > 1 else 0.0)
                for key, value in initial_state(made, seed).items()
            }
            target = dense_ticket(made, state)
            inputs = torch.nn.functional.normalize(torch.randn(100, 1, 1, width, generator=draws), dim=3)
            needed = math.nan
            for n in sorted(counts):
                if construct(target, SubsetSearch(candidates=n, eps=eps), seed=seed).sup_error(inputs) <= eps:
                    needed = float(n)
                    break
            rows.append({"d": width, "seed": seed, "needed": needed})
    return pd.DataFrame(rows)


def found_on_the_same_source(
    trained: Sequence[Trained],
    made: Mapping[str, Sequence[Construction]],
    dataset: Dataset,
    epochs: float,
    *,
    same_source: bool = False,
    store: Store | None = None,
) -> pd.DataFrame:
    """Edge-popup at a constructed ticket's own density: rows (arm, architecture, seed, density, accuracy).

    It searches a Kaiming-normal network of the target's architecture, or, with `same_source`, of the construction's
    source, which is far larger; sources above LARGEST_SEARCH weights are left out.
    """
    if not made:
        raise InputError("no construction to compare with (valid: one or more)")
    popup = finder_arms(epochs)["edge-popup"]
    rows = []
    for name, parts in made.items():
        for run, one in zip(trained, parts, strict=True):
            shape = (one.ticket if same_source else run.ticket).architecture
            if same_source and one.ticket.prunable > LARGEST_SEARCH:
                continue
            settings = Supermask("edge-popup", one.ticket.density)
            sources = [random_source(shape, run.seed)]
            (found,) = find_supermasks(sources, settings, popup.recipe, dataset, store=store)
            (test,) = evaluate([found.ticket], dataset, "test")
            rows.append({"arm": f"edge-popup on the {'source' if same_source else 'target'}'s architecture",
                         "beside": name, "seed": run.seed, "density": found.ticket.density,
                         "accuracy": test.accuracy})  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "beside", "seed", "density", "accuracy"])


def best_minus_dense(found: pd.DataFrame, finders: Sequence[str]) -> dict[str, list[float]]:
    """For each finder the test accuracy at its best density minus that of the trained network, points, one a seed; the
    density is picked by the mean validation accuracy over seeds. `found` is `supermask_tables.finder_table`'s."""
    dense = found[found["trained"]].set_index("seed")["accuracy"]
    gaps = {}
    for name in finders:
        rows = found[found["finder"] == name]
        best = rows.groupby(rows["density"].round(4))["validation_accuracy"].mean().idxmax()
        at = rows[rows["density"].round(4) == best].set_index("seed")["accuracy"].sort_index()
        gaps[name] = (at - dense.loc[at.index]).tolist()
    return gaps
