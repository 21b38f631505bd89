"""A step of edge-popup at batch 128, beside the released way (allenai/hidden-networks) in a DataLoader loop.

The limit is one forward and backward pass of the dense network on a batch that lies ready in memory.
"""

import statistics
import time
from typing import Any

import torch
from images import MNIST, random_images
from limits import forward_backward
from plain import step_seconds
from reporting import Row, parser, report
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from train_resnet import augmented

from lthlib.data import Dataset
from lthlib.finders.supermask import Supermask, find_supermasks, random_source
from lthlib.models.architecture import architecture, build
from lthlib.training.recipe import Recipe


class Subnet(torch.autograd.Function):
    """The mask of the largest scores, by a full sort of each layer; its gradient goes to the scores unchanged."""

    @staticmethod
    def forward(_: Any, scores: Tensor, density: float) -> Tensor:
        """1 for the kept entries, 0 for the others."""
        mask = scores.clone()
        order, cut = scores.flatten().sort()[1], int((1 - density) * scores.numel())
        flat = mask.flatten()
        flat[order[:cut]], flat[order[cut:]] = 0, 1
        return flat.view_as(scores)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Straight through."""
        return gradient, None


def plain(name: str, dataset: Dataset, batch: int, density: float) -> float:
    """Seconds a step of the plain loop."""
    model = architecture(name, dataset.input_shape, dataset.classes)
    source, module = random_source(model, 0), build(model)
    frozen = {key: value.clone() for key, value in {**source.coefficients, **source.rest}.items()}
    scores = {key: torch.rand_like(value).requires_grad_() for key, value in source.coefficients.items()}
    optimizer = torch.optim.SGD(scores.values(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        masks = {key: Subnet.apply(score.abs(), density) for key, score in scores.items()}
        weights = {key: frozen[key] * mask for key, mask in masks.items()}
        optimizer.zero_grad()
        loss = F.cross_entropy(functional_call(module, {**frozen, **weights}, (images,)), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step_seconds(module, dataset, batch, step)


def rows_of(name: str, dataset: Dataset, batch: int, repeats: int, replicates: int) -> Row:
    """Seconds a step and replicate."""
    model = architecture(name, dataset.input_shape, dataset.classes)
    sources = [random_source(model, seed) for seed in range(replicates)]
    recipe = Recipe(batch_size=batch, epochs=1, evaluations=1, weight_decay=1e-4)
    settings, times = Supermask(density=0.5), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        find_supermasks(sources, settings, recipe, dataset)
        times.append((time.perf_counter() - start) / replicates / recipe.steps(len(dataset.train.labels)))
    images = dataset.normalise(dataset.train.images[:batch])
    limit = forward_backward(build(model), images, dataset.train.labels[:batch], max(repeats, 3))
    label = f"edge-popup, {name}, {replicates} seeds: a step of {batch}, a seed"
    return Row(label, statistics.median(times[1:]), "s", limit, None, plain(name, dataset, batch, settings.density))


def main() -> None:
    """Prints one row a network."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="small networks and few images, for correctness only")
    tiny = (options := arguments.parse_args()).tiny
    batch, repeats = (16, 1) if tiny else (128, 3)
    torch.manual_seed(0)  # of the plain loop's shuffling, crops and scores alone
    lenet, images = random_images(MNIST, batch * (2 if tiny else 40)), augmented(batch * (2 if tiny else 4))
    rows = [rows_of("lenet-24-16" if tiny else "lenet-300-100", lenet, batch, repeats, 2)]
    rows.append(rows_of("resnet-8-w4" if tiny else "conv-2", images, batch, repeats, 2))
    report(rows, options.json)


if __name__ == "__main__":
    main()
