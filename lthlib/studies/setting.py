"""What all trainings of a study share, and its arms: tickets to train, from which rows come."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import pandas as pd

from lthlib.data import Dataset
from lthlib.elastic import carry, depth_map
from lthlib.evidence.measure import measure, measure_levels
from lthlib.finders import dynamic
from lthlib.finders.dynamic import DropAndGrow, GradualPruning, rule_for, starting_tickets
from lthlib.finders.elastic_arms import direct_at, elastic_control
from lthlib.finders.imp import Level, Pruning, imp
from lthlib.models import architecture as models
from lthlib.models.architecture import Architecture
from lthlib.store import Store
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.loop import Trained
from lthlib.training.parallel import Value, values_of
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

Chain = list[Level]  # one replicate's levels, the dense one first


@dataclass(frozen=True)
class Setting:
    """What all trainings of the notebook share; every ticket starts at the pruning's `rewind_step`."""

    recipe: Recipe
    dataset: Dataset
    seeds: Sequence[int]
    pruning: Pruning
    store: Store | None = None

    def architecture(self, name: str) -> Architecture:
        """The architecture called `name` for this data set."""
        return models.architecture(name, self.dataset.input_shape, self.dataset.classes)

    def on(self, dataset: Dataset) -> "Setting":
        """The same on other data."""
        return replace(self, dataset=dataset)

    def keeping_output(self) -> "Setting":
        """The same with the output layer never pruned."""
        return replace(self, recipe=replace(self.recipe, output_layer="kept"))

    def train(self, tickets: Sequence[Ticket]) -> list[Trained]:
        """Trains the tickets from the rewinding point, stacked where they can be."""
        return train(tickets, self.recipe, self.dataset, start_step=self.pruning.rewind_step, store=self.store)

    def steps(self) -> int:
        """Optimizer steps of a whole training."""
        return self.recipe.steps(len(self.dataset.train.labels))


def beside(tasks: Sequence[Callable[[], Value]], setting: Setting) -> list[Value]:
    """The tasks' values in order: on the CPU one core each, beside each other; on another device in turn."""

    def run(task: Callable[[], Value], stop: Event) -> Value:
        return task()

    return list(values_of([partial(run, task) for task in tasks], setting.dataset.device))


def pruning_levels(initial: Sequence[Ticket], setting: Setting, basis: str = "canonical") -> list[Level]:
    """Iterative magnitude pruning of dense tickets in the bases of a rule, the dense level first (`finders.imp`)."""
    return list(imp(initial, setting.recipe, setting.dataset, setting.pruning, basis, store=setting.store))


def chains(names: Iterable[str], setting: Setting, basis: str = "canonical") -> dict[str, list[Chain]]:
    """Iterative magnitude pruning of each network, in the bases of a rule: by name, one chain a seed."""
    found = {}
    for name in dict.fromkeys(names):
        levels = pruning_levels(initial_tickets(setting.architecture(name), setting.seeds), setting, basis)
        found[name] = [
            [Level(level.number, [level.tickets[place]], [level.trained[place]]) for level in levels]
            for place in range(len(setting.seeds))
        ]
    return found


def chain_rows(found: Mapping[str, Sequence[Chain]], setting: Setting, **columns: Any) -> pd.DataFrame:
    """One row per network, seed and level: the direct tickets, level 0 the dense network."""
    parts = [
        partial(measure_levels, chain, setting.dataset, source=name, target=name, **columns)
        for name, by_seed in found.items()
        for chain in by_seed
    ]
    rows = pd.concat(beside(parts, setting), ignore_index=True)
    return rows.assign(arm=np.where(rows["round"] == 0, "dense", "direct"))


@dataclass(frozen=True)
class Arm:
    """Tickets to train, one a seed, with the columns that name their rows; `method` trains them to `densities`."""

    tickets: Sequence[Ticket]
    columns: Mapping[str, Any]
    method: str = ""
    densities: Sequence[float] = ()


def train_arms(arms: Sequence[Arm], setting: Setting) -> tuple[pd.DataFrame, list[list[Trained]]]:
    """Trains all arms stacked, in one call for each rule of training: their rows, and each arm's trainings."""
    by_rule: dict[DropAndGrow | GradualPruning | None, list[tuple[int, Ticket]]] = {}
    for number, arm in enumerate(arms):
        for ticket, density in zip(arm.tickets, arm.densities or [1.0] * len(arm.tickets), strict=True):
            rule, start = None, ticket
            if arm.method:
                rule = rule_for(arm.method, density, interval=interval(setting))
                (start,) = starting_tickets([ticket], density, arm.method)
            by_rule.setdefault(rule, []).append((number, start))
    trained: list[list[Trained]] = [[] for _ in arms]
    for rule, members in by_rule.items():
        starts = [start for _, start in members]
        if rule is None:
            runs = setting.train(starts)
        else:
            # Dynamic sparse training starts at step 0.
            runs = train(starts, setting.recipe, setting.dataset, mask_updates=rule, store=setting.store)
        for (number, _), run in zip(members, runs, strict=True):
            trained[number].append(run)
    parts = []
    for arm, runs in zip(arms, trained, strict=True):
        tickets = [run.ticket for run in runs] if arm.method else arm.tickets
        parts.append(measure(tickets, runs, setting.dataset, **arm.columns))
    return pd.concat(parts, ignore_index=True), trained


def arm_rows(
    arms: Mapping[str, Sequence[Ticket]],
    recipe: Recipe,
    dataset: Dataset,
    *,
    column: str = "arm",
    start_step: int = 0,
    store: Store | None = None,
    progress: str = "",
    **columns: Any,
) -> pd.DataFrame:
    """Trains all arms (name to its tickets, one a replicate) in one call, which stacks them, and measures each.

    `column` holds the arm's name, `columns` are the same in every row.
    """
    every = [ticket for tickets in arms.values() for ticket in tickets]
    trained = train(every, recipe, dataset, start_step=start_step, store=store, progress=progress)
    parts = []
    for name, tickets in arms.items():
        runs, trained = trained[: len(tickets)], trained[len(tickets) :]
        parts.append(measure(tickets, runs, dataset, **{column: name}, **columns))
    return pd.concat(parts, ignore_index=True)


def interval(setting: Setting) -> int:
    """Steps between updates of SET and RigL and between prunings of GMP: ten a training."""
    return max(1, setting.steps() // 10)


def elastic_arm(
    found: Mapping[str, Sequence[Chain]],
    source: str,
    target: str,
    level: int,
    setting: Setting,
    label: str = "elastic",
    **how: Any,
) -> Arm:
    """The elastic tickets from `source`'s level to `target`, by `depth_map(..., **how)`."""
    architecture = setting.architecture(target)
    depths = depth_map(setting.architecture(source), architecture, **how)
    tickets = [carry(chain[level].tickets[0], architecture, depths) for chain in found[source]]
    return Arm(tickets, {"arm": label, "source": source, "target": target, "round": level})


def control_arms(
    names: Iterable[str],
    found: Mapping[str, Sequence[Chain]],
    source: str,
    target: str,
    level: int,
    setting: Setting,
    **how: Any,
) -> list[Arm]:
    """The arms beside an elastic ticket, at its count: those of `finders.elastic_arms`, `direct`, set, rigl, gmp."""
    architecture = setting.architecture(target)
    depths = depth_map(setting.architecture(source), architecture, **how)
    sources = [chain[level].tickets[0] for chain in found[source]]
    dense = [chain[0].tickets[0] for chain in found[target]]
    carried = [carry(ticket, architecture, depths) for ticket in sources]
    arms = []
    for name in names:
        columns = {"arm": name, "source": source, "target": target, "round": level}
        if name in dynamic.METHODS:
            # It has no dense run to rewind to.
            start = initial_tickets(architecture, setting.seeds)
            arms.append(Arm(start, columns, name, tuple(ticket.density for ticket in carried)))
            continue
        if name == "direct":
            rule = setting.recipe.output_layer
            tickets = [direct_at(chain, like.kept, rule) for chain, like in zip(found[target], carried, strict=True)]
        else:
            tasks = [
                partial(elastic_control, name, ticket, architecture, depths, unpruned, setting.dataset)
                for ticket, unpruned in zip(sources, dense, strict=True)
            ]
            tickets = beside(tasks, setting)
        arms.append(Arm(tickets, columns))
    return arms


def flipped(dataset: Dataset) -> Dataset:
    """The data set upside down: another task for a network that reads positions, at the same size and shape."""
    return dataset.with_images(f"{dataset.name} flipped", lambda images: images.flip(-2))
