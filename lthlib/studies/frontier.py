"""One frontier over all finders: numbers kept, accuracy, and the training FLOPs that each ticket needed."""

from collections.abc import Sequence

import pandas as pd

from lthlib.evidence import measure as tables
from lthlib.evidence.costs import (
    Cost,
    dense_flops,
    drop_and_grow_cost,
    examples_seen,
    imp_cost,
    initialization_cost,
    training_cost,
)
from lthlib.finders import dynamic
from lthlib.finders.find import tickets_of
from lthlib.finders.imp import Level, after_training
from lthlib.finders.supermask import Supermask, find_supermasks, random_source
from lthlib.finders.supermask import finder_arms as supermask_arms
from lthlib.models.narrower import small_dense
from lthlib.studies.beyond import TICKET, setting_rows
from lthlib.studies.setting import Setting, interval
from lthlib.theory.strong.construct import construct
from lthlib.theory.strong.search import SubsetSearch
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate

IMP, DENSE, SMALL, STRONG = "IMP", "dense", "small dense", "strong, constructed"
EXAMPLES_PER_CLASS, SYNFLOW_ITERATIONS = 10, 100
COLUMNS = ["finder", "asked", "seed", "kept", "share", "accuracy", "flops", "dense_flops"]


def weights_trained(levels: Sequence[Level], setting: Setting) -> pd.DataFrame:
    """Tickets whose weights train, at the density of every level: rows (COLUMNS) with a ticket's whole training cost.

    `levels` are IMP's in the canonical basis. Finders: dense and small dense networks, IMP, one-shot magnitude (pruned
    after training, rewound; from level 2 on, as IMP's first is just that), SNIP, SynFlow, RigL. `asked` is the density
    asked for, `share` kept / prunable weights of the whole network, `flops` weighs layers by density, `dense_flops`
    does not. This reads the test split.
    """
    parts = [_rows(DENSE, levels[0].tickets, setting, levels[:1], 1.0)]
    for number, level in enumerate(levels[1:], 1):
        target = level.density
        parts.append(_rows(IMP, level.tickets, setting, levels[: number + 1], target))
        initial, data = levels[0].tickets, setting.dataset
        tickets_by = {
            "snip": tickets_of("snip", initial, target, data, examples_per_class=EXAMPLES_PER_CLASS),
            "synflow": tickets_of("synflow", initial, target, data, iterations=SYNFLOW_ITERATIONS),
        }
        if number > 1:
            tickets_by["one-shot"] = after_training(levels[0].trained, target, setting.pruning.rewind_step)
        parts += [_rows(name, tickets, setting, levels[:1], target) for name, tickets in tickets_by.items()]
        parts.append(_rigl(target, setting, initial))
        small = small_dense(initial[0].architecture, level.tickets[0].kept)
        parts.append(_rows(SMALL, initial_tickets(small, setting.seeds), setting, levels[:1], target))
    whole = levels[0].tickets[0].prunable
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(share=rows["kept"] / whole)[COLUMNS]


def _rows(
    finder: str, tickets: Sequence[Ticket], setting: Setting, chain: Sequence[Level], target: float
) -> pd.DataFrame:
    """Rows of trained tickets; `chain` holds the levels that were trained before or for them."""
    if finder in (DENSE, IMP):
        level = chain[-1]
        rows = tables.measure(level.tickets, level.trained, setting.dataset)
    else:
        rows = setting_rows({TICKET: tickets}, setting)
    spent = [_cost(finder, ticket, setting, chain, place) for place, ticket in enumerate(tickets)]
    return rows.assign(finder=finder, asked=target, kept=[ticket.kept for ticket in tickets], **_columns(spent))


def _columns(spent: Sequence[Cost]) -> dict[str, list[float]]:
    return {"flops": [cost.sparse for cost in spent], "dense_flops": [cost.dense for cost in spent]}


def _cost(finder: str, ticket: Ticket, setting: Setting, chain: Sequence[Level], place: int) -> Cost:
    recipe, count, start = setting.recipe, len(setting.dataset.train.labels), setting.pruning.rewind_step
    shape, own = ticket.architecture, ticket.layer_densities()
    if finder in (DENSE, SMALL):
        return training_cost(shape, recipe, count)
    if finder == IMP:
        masks = [level.tickets[place].layer_densities() for level in chain[1:]]
        return imp_cost(shape, recipe, count, masks, rewind_step=start)
    if finder == "one-shot":
        return imp_cost(shape, recipe, count, [own], rewind_step=start)
    scored = {"snip": EXAMPLES_PER_CLASS * shape.classes, "synflow": SYNFLOW_ITERATIONS}[finder]
    return initialization_cost(shape, recipe, count, own, rewind_step=start, scored_examples=scored)


def _rigl(target: float, setting: Setting, initial: Sequence[Ticket]) -> pd.DataFrame:
    rule = dynamic.rule_for("rigl", target, interval=interval(setting))
    assert isinstance(rule, dynamic.DropAndGrow)
    runs = dynamic.train_dynamic(
        initial, target, "rigl", setting.recipe, setting.dataset, store=setting.store, interval=rule.interval
    )
    tickets = [run.ticket for run in runs]
    count = len(setting.dataset.train.labels)
    spent = [
        drop_and_grow_cost(one.architecture, setting.recipe, count, one.layer_densities(), rule) for one in tickets
    ]
    rows = tables.measure(tickets, runs, setting.dataset)
    return rows.assign(finder="rigl", asked=target, kept=[one.kept for one in tickets], **_columns(spent))


# -------------------------------------------------------------------------------------------------- weights untrained


def scores_trained(levels: Sequence[Level], epochs: float, setting: Setting) -> pd.DataFrame:
    """Edge-popup at the density of every level, over the Kaiming-normal network of the same size: rows (COLUMNS)."""
    popup = supermask_arms(epochs, setting.recipe.batch_size, evaluations=1)["edge-popup"]
    shape, whole = levels[0].tickets[0].architecture, levels[0].tickets[0].prunable
    sources = [random_source(shape, seed) for seed in setting.seeds]
    parts = []
    for level in levels[1:]:
        settings = Supermask("edge-popup", level.density)
        runs = find_supermasks(sources, settings, popup.recipe, setting.dataset, store=setting.store)
        tickets = [run.ticket for run in runs]
        spent = [score_training_cost(one, popup.recipe, len(setting.dataset.train.labels)) for one in tickets]
        parts.append(_untrained("edge-popup", tickets, level.density, setting, spent, whole))
    return pd.concat(parts, ignore_index=True)


def score_training_cost(ticket: Ticket, recipe: Recipe, examples: int) -> Cost:
    """Training scores in place of weights: products with masked weights are sparse, gradients of scores dense."""
    seen, own = examples_seen(recipe, examples), ticket.layer_densities()
    dense = sparse = 0.0
    for name, flops in dense_flops(ticket.architecture).items():
        density = own.get(name, 1.0)
        dense += flops.training
        sparse += density * (flops.forward + flops.inputs) + flops.weights
    return Cost(seen * dense, seen * sparse)


def constructed(levels: Sequence[Level], search: SubsetSearch, setting: Setting) -> pd.DataFrame:
    """A strong ticket for the trained network of every level, the dense one's too: rows (COLUMNS and more).

    `asked` is the density of the network whose function is constructed, `ratio` numbers kept over its own kept
    weights, `source_density` kept over the random source, `delta` accuracy minus the target network's. FLOPs are those
    of training the target network; the search, `solves` subset sums, is not training and not among them.
    """
    whole = levels[0].tickets[0].prunable
    parts = []
    for number, level in enumerate(levels):
        finder = IMP if number else DENSE
        spent = [_cost(finder, ticket, setting, levels[: number + 1], i) for i, ticket in enumerate(level.tickets)]
        exact = evaluate([run.ticket for run in level.trained], setting.dataset, "test")
        made = [construct(run.ticket, search, seed=run.seed) for run in level.trained]
        rows = _untrained(STRONG, [one.ticket for one in made], level.density, setting, spent, whole)
        parts.append(
            rows.assign(
                ratio=[one.ticket.kept / run.ticket.kept for one, run in zip(made, level.trained, strict=True)],
                source_density=[one.ticket.density for one in made],
                solves=[one.solves for one in made],
                delta=rows["accuracy"] - [one.accuracy for one in exact],
            )
        )
    return pd.concat(parts, ignore_index=True)


def _untrained(
    finder: str, tickets: Sequence[Ticket], target: float, setting: Setting, spent: Sequence[Cost], whole: int
) -> pd.DataFrame:
    tests = evaluate(tickets, setting.dataset, "test")
    kept = [ticket.kept for ticket in tickets]
    columns = {"finder": finder, "asked": target, "seed": list(setting.seeds), "kept": kept,
               "share": [number / whole for number in kept],
               "accuracy": [test.accuracy for test in tests]}  # fmt: skip
    return pd.DataFrame(columns | _columns(spent))


# --------------------------------------------------------------------------------------------------------- comparisons


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a finder and target density, means over seeds, with `on_frontier`: no other needs no more numbers and no
    more FLOPs and is as accurate, and better in one of the three. Sorted by numbers kept."""
    means = rows.groupby(["finder", "asked"], sort=False)[["kept", "share", "accuracy", "flops"]].mean().reset_index()

    costs = means[["kept", "flops"]].assign(lost=-means["accuracy"])
    on = [not ((costs <= mean).all(axis=1) & (costs < mean).any(axis=1)).any() for _, mean in costs.iterrows()]
    return means.assign(on_frontier=on).sort_values(["kept", "flops"], ignore_index=True)


def imp_minus_others(rows: pd.DataFrame, finders: Sequence[str]) -> dict[str, pd.Series]:
    """IMP's accuracy minus each finder's, for every density that both have: points by seed, by "finder, density"."""
    table = rows.pivot_table(index="seed", columns=["finder", "asked"], values="accuracy")
    return {
        f"{name}, {100 * target:.2g} %": table[IMP][target] - table[name][target]
        for name in finders
        for target in table[IMP].columns
        if (name, target) in table
    }
