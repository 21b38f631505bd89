"""Rows of the elastic notebook: small trainings beside each other, and each elastic ticket against the direct one."""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
import torch

from lthlib.data import Dataset
from lthlib.elastic import drift_of_equal_copies, stages
from lthlib.errors import InputError
from lthlib.evidence.intervals import mean_interval
from lthlib.models import architecture as models
from lthlib.studies.setting import Arm, Chain, Setting
from lthlib.ticket import Ticket
from lthlib.training.loop import Trained

# ------------------------------------------------------------------------------------------------------------ the arms


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (source, target) of different depth that a map connects, by target; a stage without units cannot grow."""
    pairs = []
    for target, source in permutations(names, 2):
        both = [stages(models.architecture(name, (1, 8, 8), 10)) for name in (source, target)]
        lengths = [{stage.name: len(stage.replicable) for stage in one} for one in both]
        alike = lengths[0].keys() == lengths[1].keys() and lengths[0] != lengths[1]
        if alike and not any(lengths[1][name] > before == 0 for name, before in lengths[0].items()):
            pairs.append((source, target))
    return pairs


def nearest_source(target: str, names: Sequence[str]) -> str:
    """The source of the smallest ratio of depths among those that a map connects to `target`; a shallower one first."""
    sources = [source for source, other in pairs_of(names) if other == target]
    if not sources:
        raise InputError(f"no ticket of {', '.join(names)} can be carried to {target!r}")
    return min(sources, key=lambda source: (depth_gap(source, target), blocks(source)))


def blocks(name: str) -> int:
    """How many units all stages have together."""
    return sum(len(stage.units) for stage in stages(models.architecture(name, (1, 8, 8), 10)))


def depth_gap(source: str, target: str) -> float:
    """|log(units of target / units of source)|."""
    return abs(float(np.log(blocks(target) / blocks(source))))


# ------------------------------------------------------------------------------------------------------ what rows say


def against_direct(rows: pd.DataFrame, direct: pd.DataFrame) -> pd.DataFrame:
    """The rows with `direct`, the accuracy of IMP on the target itself at the same density, and `delta` to it.

    Per seed, linear in the logarithm of the density between the levels of `direct` (which has the dense network as
    level 0); a density below the last level is compared with that level.
    """
    accuracies = []
    for _, row in rows.iterrows():
        levels = direct[(direct["model"] == row["model"]) & (direct["seed"] == row["seed"])].sort_values("density")
        accuracies.append(np.interp(np.log(row["density"]), np.log(levels["density"]), levels["accuracy"]))
    return rows.assign(direct=accuracies, delta=rows["accuracy"] - accuracies)


def drift_rows(arms: Sequence[Arm], found: Mapping[str, Sequence[Chain]], setting: Setting) -> pd.DataFrame:
    """Achieved density of elastic tickets minus their source's, and what the identity for equal copies predicts."""
    rows = []
    for arm in arms:
        for ticket, chain in zip(arm.tickets, found[arm.columns["source"]], strict=True):
            source = chain[arm.columns["round"]].tickets[0]
            rows.append({**arm.columns, "seed": ticket.seed, "source density": source.density,
                         "density": ticket.density, "drift": ticket.density - source.density,
                         "predicted": drift_of_equal_copies(source, ticket.architecture)})  # fmt: skip
    return pd.DataFrame(rows)


def recovered_share(rows: pd.DataFrame, controls: Sequence[str]) -> list[float]:
    r"""$\rho$, one number a seed: (elastic - best control) / (direct - best control); NaN where direct is no better.

    The best control is the best on average over seeds, so that luck does not choose it seed by seed.
    """
    table = rows.pivot_table(index="seed", columns="arm", values="accuracy")
    best = table[list(controls)].mean().idxmax()
    gain = table["direct"] - table[best]
    return ((table["elastic"] - table[best]) / gain.where(gain > 0)).tolist()


@torch.no_grad()
def dead_units(ticket: Ticket, dataset: Dataset) -> int:
    """How many hidden units of an MLP's ticket are zero on every training image."""
    state, dead = ticket.state(), 0
    x = dataset.normalised("train").flatten(1)
    for stage in stages(ticket.architecture):
        for prefix in stage.units:
            x = torch.relu(x @ state[f"{prefix}weight"].T + state[f"{prefix}bias"])
            dead += int((x == 0).all(0).sum())
    return dead


def dead_unit_rows(
    found: Mapping[str, Sequence[Chain]],
    arms: Sequence[Arm],
    trained: Sequence[Sequence[Trained]],
    level: int,
    dataset: Dataset,
) -> pd.DataFrame:
    """Dead hidden units of trained MLP tickets, direct ones of one level and elastic ones: a row a ticket."""
    runs = [("direct", name, name, chain[level].trained[0]) for name, by_seed in found.items() for chain in by_seed]
    for arm, carried in zip(arms, trained, strict=True):
        runs += [(arm.columns["arm"], arm.columns["source"], arm.columns["target"], run) for run in carried]
    return pd.DataFrame(
        [(*names, run.seed, dead_units(run.ticket, dataset)) for *names, run in runs],
        columns=["arm", "source", "target", "seed", "dead units"],
    )


def extra_dead_units(rows: pd.DataFrame) -> pd.Series:
    """Dead units of elastic minus direct tickets of the same target, mean over stretches, one number a seed."""
    direct = rows[rows["arm"] == "direct"].set_index(["target", "seed"])["dead units"]
    longer = [blocks(target) > blocks(source) for source, target in zip(rows["source"], rows["target"], strict=True)]
    carried = rows[longer].set_index(["target", "seed"])["dead units"]
    return (carried - direct.reindex(carried.index)).groupby("seed").mean()


def accuracy_table(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean test accuracy with the half-width of its 95 % t interval, a row for each value of `by`, a column an arm."""

    def written(part: pd.Series) -> str:
        mean = mean_interval(part)
        return f"{mean.estimate:.1f} ± {mean.high - mean.estimate:.1f}"

    named = rows.groupby([*by, "arm"], sort=False)["accuracy"].agg(written).unstack(sort=False)
    density = rows.groupby(list(by), sort=False)["density"].mean().map("{:.3f}".format)
    return named.assign(density=density).fillna("")
