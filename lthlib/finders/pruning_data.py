"""The images that pruning at initialization scores, and what of them can be taken away to see what they told.

The checks follow Su et al. (arXiv 2009.11094); those of a ticket are in `finders.controls`.
"""

import torch
from torch import Tensor

from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.randomness import generator
from lthlib.ticket import Ticket

CORRUPTIONS = ("none", "gaussian", "random labels", "shuffled pixels", "half data")


def pruning_data(
    ticket: Ticket,
    data: Dataset | None,
    *,
    name: str = "score",
    examples_per_class: int = 10,
    corruption: str = "none",
) -> tuple[Tensor, Tensor]:
    """Normalised training images (N, C, H, W) and labels (N,) for scoring: so many of each class, by the ticket's seed.

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
    source = generator(ticket.seed, "pruning data", corruption)
    if corruption == "gaussian":
        images = torch.randn(examples_per_class * classes, *ticket.architecture.input_shape, generator=source)
        return images.to(device), (torch.arange(len(images)) % classes).to(device)
    if data is None:
        raise InputError(f"method {name!r} needs data: pass a data set (or corruption='gaussian', which needs none)")
    if corruption == "half data":
        examples_per_class = max(1, examples_per_class // 2)
    order = torch.randperm(len(data.train.labels), generator=generator(ticket.seed, "pruning data"))
    shuffled = data.train.labels.cpu()[order]
    chosen = torch.cat([order[shuffled == label][:examples_per_class] for label in range(classes)])
    where = chosen.to(data.train.images.device)
    images, labels = data.normalise(data.train.images[where]), data.train.labels[where]
    if corruption == "random labels":
        labels = torch.randint(classes, labels.shape, generator=source)
    elif corruption == "shuffled pixels":
        pixels = images.flatten(2)
        orders = torch.rand(len(pixels), 1, pixels.shape[2], generator=source).argsort(2).expand(pixels.shape)
        images = pixels.gather(2, orders.to(pixels.device)).view(images.shape)
    return images.to(device), labels.to(device)
