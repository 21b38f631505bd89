"""Sanity checks of pruning at initialization: what of a ticket matters, and what of the data that found it.

An arm takes a ticket and a replicate's seed and gives a ticket of the same total count, in the same bases, that lacks
one thing. The checks follow Frankle et al. (arXiv 2009.08576) and Su et al. (arXiv 2009.11094); inversion is
`find(..., invert=True)`, corrupted pruning data `find(..., corruption=...)`.
"""

import torch
from torch import Tensor

from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
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
