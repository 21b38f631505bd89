"""Sanity checks of pruning at initialization: what of a ticket matters, and what of the data that found it.

An arm takes a ticket and a replicate's seed and gives a ticket of the same total count, in the same bases, that lacks
one thing. The checks follow Frankle et al. (arXiv 2009.08576) and Su et al. (arXiv 2009.11094); inversion is
`find(..., invert=True)`, corrupted pruning data `find(..., corruption=...)`.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lthlib import models
from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.finders.allocation import erdos_renyi_counts, smart_ratio_counts
from lthlib.finders.magnitude import layerwise_shuffled, randomly_masked, reinitialised, shapes_of
from lthlib.finders.selection import random_masks
from lthlib.models import Architecture, prunable
from lthlib.randomness import generator
from lthlib.ticket import Ticket

CORRUPTIONS = ("none", "gaussian", "random labels", "shuffled pixels", "half data")

# ---------------------------------------------------------------------------------------------------------- the data


def pruning_data(
    ticket: Ticket,
    dataset: Dataset | None,
    seed: int,
    *,
    name: str = "score",
    examples_per_class: int = 10,
    corruption: str = "none",
) -> tuple[Tensor, Tensor]:
    """Normalised training images (N, C, H, W) and labels (N,) for scoring: so many of each class, drawn by `seed`.

    `corruption`: "gaussian" (N(0, 1) images with balanced labels: needs no dataset), "random labels" (uniform),
    "shuffled pixels" (each image by a permutation of its own, channels together), "half data" (half as many of each
    class, at least one); the last three are the checks of Su et al. (arXiv 2009.11094). Raises InputError for a method
    `name` called without the dataset that it needs.
    """
    if corruption not in CORRUPTIONS:
        raise unknown("corruption", corruption, CORRUPTIONS)
    if examples_per_class < 1:
        raise InputError(f"examples_per_class {examples_per_class} is not 1 or more")
    classes, device = ticket.architecture.classes, next(iter(ticket.masks.values())).device
    source = generator(seed, "pruning data", corruption)
    if corruption == "gaussian":
        images = torch.randn(examples_per_class * classes, *ticket.architecture.input_shape, generator=source)
        return images.to(device), (torch.arange(len(images)) % classes).to(device)
    if dataset is None:
        raise InputError(f"method {name!r} needs data: pass a dataset (or corruption='gaussian', which needs none)")
    if corruption == "half data":
        examples_per_class = max(1, examples_per_class // 2)
    order = torch.randperm(len(dataset.train.labels), generator=generator(seed, "pruning data"))
    shuffled = dataset.train.labels.cpu()[order]
    chosen = torch.cat([order[shuffled == label][:examples_per_class] for label in range(classes)])
    where = chosen.to(dataset.train.images.device)
    images, labels = dataset.normalise(dataset.train.images[where]), dataset.train.labels[where]
    if corruption == "random labels":
        labels = torch.randint(classes, labels.shape, generator=source)
    elif corruption == "shuffled pixels":
        pixels = images.flatten(2)
        orders = torch.rand(len(pixels), 1, pixels.shape[2], generator=source).argsort(2).expand(pixels.shape)
        images = pixels.gather(2, orders.to(pixels.device)).view(images.shape)
    return images.to(device), labels.to(device)


# -------------------------------------------------------------------------------------------------------- the ticket


def reinitialised_and_shuffled(ticket: Ticket, seed: int) -> Ticket:
    """A fresh initialization under a mask shuffled within each layer: only the layers' counts are left."""
    return layerwise_shuffled(reinitialised(ticket, seed), seed)


def values_shuffled(ticket: Ticket, seed: int) -> Ticket:
    """The same mask with the kept coefficients' values permuted within each layer."""
    values = {}
    for name, c in ticket.coefficients.items():
        mask = ticket.masks[name]
        order = torch.randperm(int(mask.sum()), generator=generator(seed, "value shuffle", name)).to(c.device)
        values[name] = c.clone()
        values[name][mask] = c[mask][order]
    return replace(ticket, coefficients=values)


def erk_masked(ticket: Ticket, seed: int) -> Ticket:
    """A random mask of the same total with Erdos-Renyi-kernel counts (`allocation.erdos_renyi_counts`)."""
    shapes = shapes_of(ticket)
    counts = erdos_renyi_counts(shapes, ticket.kept)
    return ticket.with_masks(random_masks(shapes, counts, generator(seed, "random mask", "erk")))


def smart_ratio_masked(ticket: Ticket, seed: int) -> Ticket:
    """A random mask of the same total with smart-ratio counts (`allocation.smart_ratio_counts`, their rule for VGG)."""
    shapes, vgg = shapes_of(ticket), ticket.architecture.name.startswith("vgg")
    counts = smart_ratio_counts(shapes, ticket.kept, divide_by_position=vgg)
    return ticket.with_masks(random_masks(shapes, counts, generator(seed, "random mask", "smart-ratio")))


ARMS: dict[str, Callable[[Ticket, int], Ticket]] = {
    "layerwise shuffle": layerwise_shuffled,
    "reinit": reinitialised,
    "reinit and shuffle": reinitialised_and_shuffled,
    "global shuffle": randomly_masked,
    "value shuffle": values_shuffled,
    "erk": erk_masked,
    "smart-ratio": smart_ratio_masked,
}


def small_dense(architecture: Architecture, count: int) -> Architecture:
    """The same family with all widths scaled down by one factor, its prunable count as near to `count` as widths allow.

    For "small dense at equal parameters": compare `ticket.kept` with what the result has. Never wider than
    `architecture`. Raises InputError for a user's own module, and for a count below 1.
    """
    name, shape, classes = architecture.name, architecture.input_shape, architecture.classes
    if ":" in name or count < 1:
        raise InputError(f"no model like {name!r} of {count} weights is known (valid: lenet, conv, vgg, resnet)")
    family, *numbers = name.split("-")
    plain, _, own = name.partition("-w")

    def narrower(width: int) -> Architecture:
        if family == "lenet":
            hidden = [max(1, round(int(number) * width / widest)) for number in numbers]
            return models.architecture("-".join(map(str, (family, *hidden))), shape, classes)
        return models.architecture(f"{plain}-w{width}", shape, classes)

    default = 16 if family == "resnet" else 64
    widest = max(map(int, numbers)) if family == "lenet" else int(own) if own else default
    widths = range(1, widest + 1)
    place = min(bisect_left(widths, count, key=lambda width: _size(narrower(width))), widest - 1)
    return min((narrower(widths[i]) for i in {max(place - 1, 0), place}), key=lambda a: abs(_size(a) - count))


def _size(architecture: Architecture) -> int:
    with torch.device("meta"):
        state = models.build(architecture).state_dict()
    return sum(state[name].numel() for name in prunable(architecture))
