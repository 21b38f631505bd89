"""Finders beside a planted ticket: random networks that hold a known one, their data, and the table of who finds it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from lthlib.data import Dataset, Split
from lthlib.errors import InputError, unknown
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.find import find
from lthlib.finders.supermask import Supermask, Task, find_supermasks, random_source
from lthlib.masks.counts import counts_of
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture
from lthlib.randomness import generator
from lthlib.store import Store
from lthlib.studies.supermask import RANDOM, FinderArm
from lthlib.theory.strong.planted import INPUTS, OUTPUTS, TASKS, Planted, compare, plant, truth
from lthlib.ticket import Ticket

LAYERS = ("planted", "equal", "global")


def planted_network(task: str, depth: int = 4, width: int = 50, seed: int = 0, **options: Any) -> Planted:
    """The task's target planted in a random network of `depth` linear layers with hidden layers of `width`.

    Its weights are N(0, 2 / fan_in), its biases product-scaled (`random_source` with `bias_scale=1`). Options and
    errors are those of `plant`.
    """
    if task not in TASKS:
        raise unknown("planted task", task, TASKS)
    name = "-".join(["lenet", *[str(width)] * (depth - 1)])
    return plant(
        random_source(architecture(name, (1, 1, INPUTS[task]), OUTPUTS[task]), seed, bias_scale=1.0), task, **options
    )


def search_settings(planted: Planted, method: str = "edge-popup", layers: str = "planted") -> Supermask:
    """Settings that ask a finder for the planted density.

    `layers`: in each layer the planted one's count ("planted"), one density in every layer ("equal", as in the
    released code, though that need not admit the planted ticket), or one ranking of all weights ("global").
    """
    if layers not in LAYERS:
        raise unknown("layers", layers, LAYERS)
    density = planted.ticket.density
    if layers == "planted":
        return Supermask(method, density, counts=tuple(counts_of(planted.ticket.masks).values()))
    return Supermask(method, density, scope="global" if layers == "global" else "layerwise")


def samples(task: str, seed: int = 0, count: int = 10_000, noise: float = 0.01) -> Task:
    """A task's data: `count` inputs, uniform in [-1, 1], of which 90 % to learn from and the rest to judge by.

    Values (relu, helix) are the true function's plus N(0, noise^2). Classes (circle) are those of the largest true
    logit, or with probability `noise` of the second largest. Raises InputError for an unknown task, a count below 10
    and negative noise.
    """
    if task not in TASKS:
        raise unknown("planted task", task, TASKS)
    if count < 10 or noise < 0:
        raise InputError(f"samples needs a count of 10 or more and noise of 0 or more, found {count} and {noise}")
    source = generator(seed, "planted", task)
    x = 2 * torch.rand(count, INPUTS[task], generator=source, dtype=torch.float64) - 1
    exact = truth(task, x)
    if task == "circle":
        second = torch.rand(count, generator=source) < noise
        targets = exact.argsort(1, descending=True).gather(1, second.long()[:, None]).squeeze(1)
    else:
        targets = (exact + noise * torch.randn(exact.shape, generator=source, dtype=torch.float64)).float()
    images, learn = x.float().view(count, 1, 1, -1), count - count // 10
    return Task(images[:learn], targets[:learn], images[learn:], targets[learn:])


def as_dataset(task: str, shown: Task) -> Dataset:
    """The circle's samples as a data set, for training and for saliency; judged samples are validation and test.

    Raises InputError for the other tasks, whose targets are values.
    """
    if shown.targets.dim() != 1:
        raise InputError(f"planted task {task!r} has values for targets, not classes (valid: 'circle')")
    learn, judge = Split(shown.inputs, shown.targets), Split(shown.validation_inputs, shown.validation_targets)
    return Dataset(f"planted-{task}", learn, judge, judge, OUTPUTS[task], (0.0,), (1.0,), "none")


def planted_table(
    finders: Mapping[str, FinderArm],
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] = TASKS,
    depth: int = 3,
    width: int = 50,
    layers: Sequence[str] = LAYERS,
    densities: Sequence[float] = (),
    count: int = 10_000,
    store: Store | None = None,
) -> pd.DataFrame:
    """One row per task, finder, layer counts, density and seed: how near each comes to the planted ticket.

    Columns: task, finder, layers, seed and those of `planted.compare`. Finders search the planted source, whatever
    their arm's own: at the planted density with each of `layers` (those of `search_settings`), and with one density
    in every layer at each of `densities`. Baselines at the planted density: a random mask and the largest weights with
    the planted counts, on the circle SNIP, none of them trained; and the planted ticket itself. `count` is the number
    of samples.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        hidden = [planted_network(task, depth, width, seed) for seed in seeds]
        # One draw of the data for all replicates, as with any data set.
        shown = samples(task, 0, count)
        arms = _unsearched(task, hidden, shown)
        for label, arm in finders.items():
            # The planted counts are the target's, whatever the seed.
            asked = [(kind, search_settings(hidden[0], arm.settings.method, kind)) for kind in layers]
            asked += [("equal", Supermask(density=density)) for density in densities]
            for kind, wish in asked:
                settings = replace(arm.settings, density=wish.density, scope=wish.scope, counts=wish.counts)
                sources = [planted.source for planted in hidden]
                runs = find_supermasks(sources, settings, arm.recipe, shown, store=store)
                arms.append((label, kind, [run.ticket for run in runs]))
        rows += [
            {"task": task, "finder": label, "layers": kind, "seed": ticket.seed}
            | compare(planted, ticket, shown.validation_inputs, shown.validation_targets)
            for label, kind, tickets in arms
            for planted, ticket in zip(hidden, tickets, strict=True)
        ]
    return pd.DataFrame(rows)


def _unsearched(task: str, hidden: Sequence[Planted], shown: Task) -> list[tuple[str, str, list[Ticket]]]:
    """Finder, layer counts and tickets of what needs no search."""
    counts = counts_of(hidden[0].ticket.masks)
    sources, tickets = [planted.source for planted in hidden], [planted.ticket for planted in hidden]
    sizes = [{name: c.abs() for name, c in source.coefficients.items()} for source in sources]
    largest = [source.with_masks(keep_top(size, counts)) for source, size in zip(sources, sizes, strict=True)]
    arms = [
        ("planted", "planted", tickets),
        (RANDOM, "planted", [layerwise_shuffled(ticket) for ticket in tickets]),
        ("magnitude", "planted", largest),
    ]
    if shown.targets.dim() == 1:
        dataset, density = as_dataset(task, shown), tickets[0].density
        arms.append(("snip", "global", [find(source, density, "snip", dataset, keep_one=True) for source in sources]))
    return arms
