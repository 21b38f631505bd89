"""Rows of notebook 06: tickets stretched, drawn, stripped of values, trained otherwise and moved, in several bases."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from lthlib import data
from lthlib.data import Dataset
from lthlib.elastic import carry, depth_map
from lthlib.errors import unknown
from lthlib.evidence import measure as tables
from lthlib.finders import imp as magnitude
from lthlib.finders.controls import control, layerwise_shuffled
from lthlib.finders.imp import Level
from lthlib.masks.counts import counts_of
from lthlib.masks.draws import sample
from lthlib.randomness import generator
from lthlib.studies.setting import (
    Arm,
    Chain,
    Setting,
    arm_rows,
    chains,
    control_arms,
    elastic_arm,
    flipped,
    pruning_levels,
)
from lthlib.ticket import Ticket, initial_tickets

Chains = Mapping[str, Sequence[Chain]]
TICKET, RANDOM = "ticket", "random mask"
# What a row is called, and the control that it is: here, as in kept tables, RANDOM has each layer's own count.
VALUE_CHECKS = {
    "signs alone": "signs alone",
    "magnitudes permuted": "magnitudes permuted",
    "signs drawn": "signs drawn",
    "reinit": "reinit",
    RANDOM: "layerwise shuffle",
}

# -------------------------------------------------------------------------------------------------- stretched tickets


def stretchable(source: str, target: str, basis: str, setting: Setting) -> dict[str, list[Chain]]:
    """The chains that elastic and direct tickets of the last level need in a basis: the source's, and the target's but
    for its last level, from which `direct_at` prunes to the elastic ticket's count."""
    shorter = replace(setting, pruning=replace(setting.pruning, levels=setting.pruning.levels - 1))
    return chains([source], setting, basis) | chains([target], shorter, basis)


def stretched_arms(found: Chains, source: str, target: str, basis: str, setting: Setting) -> list[Arm]:
    """The last level's elastic tickets and the direct ones of the same count, in `basis`, which is a column of the
    rows; in the canonical basis also a random mask of the elastic ticket's layer counts."""
    level = setting.pruning.levels
    controls = ["direct", RANDOM] if basis == "canonical" else ["direct"]
    arms = [
        elastic_arm(found, source, target, level, setting),
        *control_arms(controls, found, source, target, level, setting),
    ]
    return [replace(one, columns={**one.columns, "basis": basis}) for one in arms]


def drawn_arms(
    found: Chains, source: str, target: str, setting: Setting, basis: str, temperature: float = 1.0
) -> list[Arm]:
    r"""Stretched tickets whose masks are drawn by score, with the layer counts of the stretched top-k mask.

    The score is the one that pruned the source's last level, $|c_T|$ of the level before, among its survivors; a draw
    is Gumbel-top-k with p proportional to score ** temperature. "drawn": in the target, for each copy of a unit by
    itself. "drawn, then stretched": once in the source, and carried, so that copies share it. Values are carried.
    """
    level = setting.pruning.levels
    longer = setting.architecture(target)
    depths = depth_map(setting.architecture(source), longer)
    alone, shared = [], []
    for chain in found[source]:
        ticket, before = chain[level].tickets[0], chain[level - 1]
        # Scores as the coefficients of a ticket, which a depth map carries like any other.
        scored = replace(before.tickets[0], coefficients=magnitude.magnitudes(before.trained)[0])
        drawn = ticket.with_masks(_drawn(scored, counts_of(ticket.masks), temperature))
        shared.append(carry(drawn, longer, depths))
        elastic = carry(ticket, longer, depths)
        masks = _drawn(carry(scored, longer, depths), counts_of(elastic.masks), temperature)
        alone.append(elastic.with_masks(masks))
    columns = {"source": source, "target": target, "round": level, "basis": basis}
    named = {"drawn": alone, "drawn, then stretched": shared}
    return [Arm(tickets, {"arm": name, **columns}) for name, tickets in named.items()]


def _drawn(scored: Ticket, counts: dict[str, int], temperature: float) -> dict[str, Tensor]:
    source = generator(scored.seed, "drawn elastic mask")
    return sample(scored.coefficients, counts, temperature=temperature, among=scored.masks, generator=source)


# ------------------------------------------------------------------------------------------------- stacks of networks


def pruned_levels(model: str, basis: str, setting: Setting) -> list[Level]:
    """Iterative magnitude pruning of all seeds of one network in a basis, the dense level first."""
    return pruning_levels(initial_tickets(setting.architecture(model), setting.seeds), setting, basis)


def level_rows(levels: Sequence[Level], setting: Setting, **columns: Any) -> pd.DataFrame:
    """Rows of all levels: arm "dense" for level 0, else "ticket"."""
    rows = tables.measure_levels(levels, setting.dataset, **columns)
    return rows.assign(arm=["dense" if number == 0 else TICKET for number in rows["round"]])


def setting_rows(arms: Mapping[str, Sequence[Ticket]], setting: Setting, **columns: Any) -> pd.DataFrame:
    """`arm_rows` by the recipe, from the rewinding point, and on the data of `setting`."""
    return arm_rows(
        arms,
        setting.recipe,
        setting.dataset,
        start_step=setting.pruning.rewind_step,
        store=setting.store,
        **columns,
    )


def value_rows(levels: Sequence[Level], setting: Setting, **columns: Any) -> pd.DataFrame:
    """The last level's tickets without part of their values or positions: the arms of VALUE_CHECKS."""
    tickets = levels[-1].tickets
    arms = {label: [control(ticket, name) for ticket in tickets] for label, name in VALUE_CHECKS.items()}
    return setting_rows(arms, setting, round=levels[-1].number, **columns)


def gains(rows: pd.DataFrame, by: str, reference: str, hue: str = "basis", base: str = "canonical") -> dict[str, Any]:
    """How much more each `hue` gains over `base` at another value of `by` than at `reference`: one number a seed.

    [(hue - base) at a value of `by`] - [(hue - base) at the reference], in points of accuracy; by "value, hue".
    """
    table = rows.pivot_table(index="seed", columns=[by, hue], values="accuracy", sort=False)
    others = [value for value in rows[by].unique() if value != reference]
    return {
        f"{value}, {name}": (table[value][name] - table[value][base])
        - (table[reference][name] - table[reference][base])
        for value in others
        for name in rows[hue].unique()
        if name != base
    }


# ---------------------------------------------------------------------------------------------------- other data sets


def _shuffled(images: Tensor) -> Tensor:
    """Pixels of every image in one fixed random order, channels together."""
    order = torch.randperm(images[0, 0].numel(), generator=generator(0, "pixels permuted"))
    return images.flatten(2)[:, :, order].view_as(images)


VARIANTS = {"rotated": lambda images: images.rot90(1, (-2, -1)), "permuted": _shuffled}


def other_data(dataset: Dataset, name: str, data_dir: Path | str = "data", train_size: int = 0) -> Dataset:
    """A data set of the same shape: `rotated` (a quarter turn), `flipped` (upside down), `permuted` (one fixed order
    of pixels), all with the labels as they are, or another one by name, resized.

    `train_size` takes the first so many training images of another one (0, or fewer there: all). Raises InputError for
    unknown names and for images that are not square, where they are to be turned.
    """
    if name == "flipped":
        return flipped(dataset)
    if name not in VARIANTS:
        if name not in data.VALID_DATASETS and not name.startswith("folder:"):
            raise unknown("other data set", name, (*VARIANTS, "flipped", *data.VALID_DATASETS))
        other = data.load(name, data_dir)
        if 0 < train_size < len(other.train.labels):
            other = data.load(name, data_dir, train_size=train_size)
        return resized(other, dataset.input_shape)
    if name == "rotated" and dataset.input_shape[1] != dataset.input_shape[2]:
        raise unknown("other data set for images that are not square", name, ("flipped", "permuted"))
    return dataset.with_images(f"{dataset.name} {name}", VARIANTS[name])


def resized(dataset: Dataset, shape: tuple[int, int, int]) -> Dataset:
    """The images at another size (bilinear) and number of channels (their mean, repeated), in [0, 1], as float32."""
    largest = float(dataset.train.images.max())

    def change(images: Tensor) -> Tensor:
        grey = images.float().div(largest)
        if grey.shape[1] != shape[0]:
            grey = grey.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
        if grey.shape[2:] == shape[1:]:
            return grey
        return functional.interpolate(grey, shape[1:], mode="bilinear", align_corners=False, antialias=True)

    changed = dataset.with_images(dataset.name, change)
    pixels = changed.train.images.double().transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1), pixels.std(1, correction=0)
    std = std.where(std > 0, 1.0)
    return replace(changed, mean=tuple(mean.tolist()), std=tuple(std.tolist()), augmentation="none")


def moved_rows(found: Mapping[str, Sequence[Level]], setting: Setting, datasets: Mapping[str, Dataset]) -> pd.DataFrame:
    """The last level's masks of each data set over the same initial values, trained on each other one.

    `found` holds the levels found on each of `datasets`, by its name. Rows of arm "moved" (source and target data
    set), "own" (the mask found there) and "random mask" (own layer counts), all of one count.
    """
    parts = []
    for target, dataset in datasets.items():
        level = found[target][-1]
        arms = {"own": level.tickets, RANDOM: [layerwise_shuffled(ticket) for ticket in level.tickets]}
        arms |= {source: _remasked(level.tickets, found[source][-1].tickets) for source in found if source != target}
        rows = setting_rows(arms, setting.on(dataset), target=target, round=level.number)
        source = rows["arm"].where(~rows["arm"].isin(["own", RANDOM]), target)
        parts.append(rows.assign(source=source, arm=rows["arm"].where(source == target, "moved")))
    return pd.concat(parts, ignore_index=True)


def _remasked(tickets: Sequence[Ticket], others: Sequence[Ticket]) -> list[Ticket]:
    return [ticket.with_masks(other.masks) for ticket, other in zip(tickets, others, strict=True)]


def levels_on(datasets: Mapping[str, Dataset], model: str, basis: str, setting: Setting) -> dict[str, list[Level]]:
    """`pruned_levels` on each data set, by its name."""
    return {name: pruned_levels(model, basis, setting.on(dataset)) for name, dataset in datasets.items()}


def minus(rows: pd.DataFrame, first: Mapping[str, object], second: Mapping[str, object]) -> pd.Series:
    """Accuracy of the rows with the values `first` minus that of those with `second`, by seed: points, one a seed."""
    parts = [tables.where(rows, **chosen).groupby("seed")["accuracy"].mean() for chosen in (first, second)]
    return parts[0] - parts[1]
