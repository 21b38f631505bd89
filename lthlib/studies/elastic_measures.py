"""What else is measured of elastic tickets: what each route to them costs, and lines between their trainings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from lthlib.evidence.costs import (
    Cost,
    break_even,
    drop_and_grow_cost,
    examples_seen,
    imp_cost,
    route_rows,
    training_cost,
)
from lthlib.finders import dynamic
from lthlib.finders.elastic_arms import AT_REWIND
from lthlib.studies.connectivity import barrier, path_rows
from lthlib.studies.setting import Arm, Chain, Setting, beside, interval
from lthlib.training.loop import Trained


def cost_rows(
    found: Mapping[str, Sequence[Chain]], carried: Sequence[Arm], dynamic_arms: Sequence[Arm], setting: Setting
) -> pd.DataFrame:
    """Cumulated training FLOPs of three routes to a ticket of each target, seed by seed (see `evidence.costs`).

    `carried` are the elastic arms of one source, one a target and all of one level; `dynamic_arms` those of RigL on
    the same targets. Columns: seed, route, targets, last_target, dense, sparse (FLOPs), break_even (targets).
    """
    recipe, count, rows = setting.recipe, len(setting.dataset.train.labels), []
    start, level = setting.pruning.rewind_step, carried[0].columns["round"]
    rule = dynamic.rule_for("rigl", 1.0, interval=interval(setting))
    assert isinstance(rule, dynamic.DropAndGrow)
    for place, seed in enumerate(setting.seeds):
        tickets = {arm.columns["target"]: arm.tickets[place] for arm in carried}
        alone = {target: _chain_cost(found, target, place, level, setting) for target in tickets}
        each = {
            target: training_cost(ticket.architecture, recipe, count, ticket.layer_densities(), start_step=start)
            for target, ticket in tickets.items()
        }
        source = _chain_cost(found, carried[0].columns["source"], place, level, setting)
        routes = {"IMP on each target": (Cost(), alone), "one IMP, then elastic": (source, each)}
        sparse = {
            arm.columns["target"]: drop_and_grow_cost(
                arm.tickets[place].architecture, recipe, count, arm.densities[place], rule
            )
            for arm in dynamic_arms
        }
        if list(sparse) == list(each):
            routes["RigL on each target"] = (Cost(), sparse)
        mean = [sum(cost.sparse for cost in costs.values()) / len(costs) for costs in (each, alone)]
        even = break_even(source.sparse, *mean)
        rows += [row | {"seed": seed, "break_even": even} for row in route_rows(routes)]
    return pd.DataFrame(rows)


def with_cost(
    rows: pd.DataFrame, found: Mapping[str, Sequence[Chain]], shared_by: int, setting: Setting
) -> pd.DataFrame:
    """The rows with `flops`, all training that a ticket needed, weighed by density; gradual pruning is left out.

    Direct: the target's chain. Elastic and arms that use its mask: the source's chain, shared by so many targets, and
    their own training. Scores at the rewinding point: the dense steps before it (scores themselves are not counted).
    SET and RigL: their own training.
    """
    count, start = len(setting.dataset.train.labels), setting.pruning.rewind_step
    place = {seed: number for number, seed in enumerate(setting.seeds)}

    def chain_cost(name: str, row: pd.Series) -> float:
        return _chain_cost(found, name, place[row["seed"]], row["round"], setting).sparse

    costs = []
    for _, row in rows.iterrows():
        after = 6.0 * row["sparse_macs"] * examples_seen(setting.recipe, count, start)
        if row["arm"] == "direct":
            costs.append(chain_cost(row["target"], row))
        elif row["arm"] in ("set", "rigl"):
            costs.append(6.0 * row["sparse_macs"] * examples_seen(setting.recipe, count))
        elif row["arm"] in AT_REWIND:
            before = training_cost(setting.architecture(row["target"]), setting.recipe, count, stop_step=start)
            costs.append(after + before.sparse)
        elif row["arm"] in dynamic.METHODS:
            costs.append(math.nan)
        else:
            costs.append(after + chain_cost(row["source"], row) / shared_by)
    return rows.assign(flops=costs).dropna(subset="flops")


def _chain_cost(found: Mapping[str, Sequence[Chain]], name: str, place: int, level: int, setting: Setting) -> Cost:
    """IMP on the network called `name` by its replicate at `place`, down to a level."""
    masks = [pruned.tickets[0].layer_densities() for pruned in found[name][place][1 : level + 1]]
    count, start = len(setting.dataset.train.labels), setting.pruning.rewind_step
    return imp_cost(setting.architecture(name), setting.recipe, count, masks, rewind_step=start)


def barrier_rows(
    arms: Sequence[Arm], trained: Sequence[Sequence[Trained]], setting: Setting, points: int = 11
) -> pd.DataFrame:
    """Accuracy along the line between two trainings of one ticket that differ in data order alone, for each arm."""
    # The order of a seed that no replicate has.
    again = setting.train([replace(ticket, seed=1_000_000 + ticket.seed) for arm in arms for ticket in arm.tickets])
    parts = []
    for arm, runs in zip(arms, trained, strict=True):
        others, again = again[: len(runs)], again[len(runs) :]
        parts.append(line_rows(runs, others, setting, arm.columns["arm"], points))
    return pd.concat(parts, ignore_index=True)


def line_rows(
    first: Sequence[Trained], second: Sequence[Trained], setting: Setting, path: str, points: int = 11
) -> pd.DataFrame:
    """Accuracy along the line between trainings of two arms, seed by seed."""

    def work(a: Trained, b: Trained) -> pd.DataFrame:
        rows = path_rows(a.ticket, b.ticket, setting.dataset, points)
        return rows.assign(seed=a.seed, path=path)

    tasks = [partial(work, a, b) for a, b in zip(first, second, strict=True)]
    return pd.concat(beside(tasks, setting), ignore_index=True)


def barriers(paths: pd.DataFrame, statistics: str = "re-estimated") -> pd.DataFrame:
    """The error barrier of each path, a row a seed: path, seed, barrier (percentage points)."""
    rows = paths[paths["statistics"] == statistics].sort_values("alpha", kind="stable")
    parts = rows.groupby(["path", "seed"], sort=False)["accuracy"]
    return parts.apply(lambda part: barrier(part.tolist())).rename("barrier").reset_index()
