r"""One set of features, many tasks: found (or built) once, then read out by a linear map alone.

Images of all data sets come as 8 x 8 = 64 numbers in [0, 1], so that a network found on one reads the others. Arms have
equal numbers of features, hence equal readouts: the universal ticket (made without data), its exact basis, random ReLU
features, an edge-popup ticket and a trained network, each found on one task and read out on all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lthlib import data
from lthlib.data import Dataset, Split
from lthlib.errors import InputError, unknown
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.supermask import Supermask, find_supermasks, random_source
from lthlib.models import architecture as models
from lthlib.randomness import generator
from lthlib.store import Store
from lthlib.theory.universal.chains import UniversalTicket
from lthlib.theory.universal.construct import Design, polynomial_ticket
from lthlib.theory.universal.univariate import BlockPruning
from lthlib.theory.universal.universality import least_squares
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate, train

Array = np.ndarray[Any, Any]
SIDE = 8
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FOUND_ON_TASKS = ("edge-popup", "trained")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageTask:
    """Images of 8 x 8 pixels and what to tell of them: `dataset` has labels, `targets` (split to (n, m)) the numbers
    that a readout is fitted to. `classes` is 0 for regression."""

    name: str
    dataset: Dataset
    targets: Mapping[str, Array]
    classes: int

    def inputs(self, split: str) -> Array:
        """Pixels of a split in [0, 1], float64 (n, 64)."""
        part: Split = getattr(self.dataset, split)
        return part.images.flatten(1).double().numpy()


def pooled(dataset: Dataset) -> Dataset:
    """Images pooled to 8 x 8 grey pixels in [0, 1] (mean over channels and over the cells of an even grid)."""
    largest = float(dataset.train.images.max())

    def pooled(split: Split) -> Split:
        grey = split.images.float().mean(dim=1, keepdim=True) / largest
        return Split(torch.nn.functional.adaptive_avg_pool2d(grey, SIDE), split.labels)

    parts = [pooled(split) for split in (dataset.train, dataset.validation, dataset.test)]
    mean, std = float(parts[0].images.mean()), float(parts[0].images.std())
    train_part, validation, test = parts
    return replace(dataset, train=train_part, validation=validation, test=test, mean=(mean,), std=(std,),
                   augmentation="none")  # fmt: skip


def load_small(name: str, data_dir: Path | str, train_size: int = 0) -> Dataset:
    """The data set called `name`, pooled, with its first `train_size` training images (0, or fewer there: all)."""
    whole = data.load(name, data_dir)
    if train_size and train_size < len(whole.train.labels):
        whole = data.load(name, data_dir, train_size=train_size)
    return pooled(whole)


def classification(name: str, dataset: Dataset) -> ImageTask:
    """The task to name the class of a pooled image, read out against one-hot targets."""
    eye = np.eye(dataset.classes)
    targets = {split: eye[getattr(dataset, split).labels.numpy()] for split in SPLITS}
    return ImageTask(name, dataset, targets, dataset.classes)


def halves(dataset: Dataset) -> list[ImageTask]:
    """Two tasks without a common class or image: the lower and the upper half of the classes."""
    middle = dataset.classes // 2
    tasks = []
    for low, high in ((0, middle), (middle, dataset.classes)):

        def chosen(split: Split, low: int = low, high: int = high) -> Split:
            which = (split.labels >= low) & (split.labels < high)
            return Split(split.images[which], split.labels[which] - low)

        train_part, validation, test = (chosen(getattr(dataset, split)) for split in SPLITS)
        name = f"{dataset.label} {low}-{high - 1}"
        half = replace(dataset, name=name, classes=high - low, train=train_part, validation=validation, test=test)
        tasks.append(classification(name, half))
    return tasks


def quadratics(task: ImageTask, outputs: int = 5, pairs: int = 20, seed: int = 0) -> ImageTask:
    """A regression task on the same images: random sums of so many products of two pixels each."""
    source = generator(seed, "quadratics")
    pixels = SIDE * SIDE
    first, second = (torch.randint(pixels, (outputs, pairs), generator=source).numpy() for _ in range(2))
    weights = torch.randn(outputs, pairs, generator=source).double().numpy()

    def values(split: str) -> Array:
        x = task.inputs(split)
        return np.stack([(x[:, a] * x[:, b]) @ w for a, b, w in zip(first, second, weights, strict=True)], axis=1)

    return ImageTask(f"quadratics of {task.name}", task.dataset, {split: values(split) for split in SPLITS}, 0)


def image_exponents(features: int, seed: int) -> Array:
    """Exponents (features, 64): each pixel by itself, then random pairs of pixels (or squares), drawn without data."""
    pixels = SIDE * SIDE
    if features < pixels:
        raise InputError(f"{features} features leave out some of the {pixels} pixels (valid: {pixels} or more)")
    source = generator(seed, "image exponents")
    rows = [np.eye(pixels, dtype=int)]
    pairs = torch.randint(pixels, (features - pixels, 2), generator=source).numpy()
    rows.append(np.eye(pixels, dtype=int)[pairs].sum(axis=1))
    return np.concatenate(rows)


def image_ticket(features: int, seed: int) -> UniversalTicket:
    """The universal polynomial ticket for 64 pixels: exponents as in `image_exponents`, blocks shared over pixels."""
    pruning = BlockPruning(tolerance=1e-3)
    return polynomial_ticket(seed, image_exponents(features, seed), design=Design((10, 12), linear=40), pruning=pruning)


def network_features(ticket: Ticket, dataset: Dataset) -> Callable[[str], Array]:
    """What a ticket's network hands to its output layer, by split: float64 (n, features)."""
    network = models.build(ticket.architecture)
    network.load_state_dict(ticket.state())
    network.eval()
    layer = network.get_submodule(models.output_layer(ticket.architecture).removesuffix(".weight"))

    def features(split: str) -> Array:
        caught: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        with torch.inference_mode():
            network(dataset.normalised(split))
        hook.remove()
        return caught[0].double().numpy()

    return features


def image_features(
    arm: str,
    found_on: ImageTask | None,
    features: int,
    seed: int,
    recipe: Recipe,
    store: Store | None = None,
    folder: Path | None = None,
) -> Callable[[ImageTask, str], Array]:
    """The features of an arm: a map of (task, split) to an array (n, features).

    Arms: "universal ticket", "exact basis", "random features", "pixels" (64), and, found on a task, "edge-popup"
    (density 0.5 of a random network with one hidden layer) and "trained" (the same network). With a `folder`, the
    universal ticket is written there and its file's features are used. Raises InputError for other arms, or where the
    task to find on is missing.
    """
    if arm == "universal ticket":
        ticket = image_ticket(features, seed)
        if folder is not None:
            ticket = ticket.reloaded(folder / f"images-{features}-{seed}.safetensors")
        live = ticket.live()
        return lambda task, split: live.features_in_full(task.inputs(split))
    if arm == "exact basis":
        exponents = image_exponents(features, seed)
        return lambda task, split: np.exp(np.log((1 + task.inputs(split)) / 2) @ exponents.T)
    if arm == "pixels":
        return lambda task, split: task.inputs(split)
    name = f"lenet-{features}"
    if arm == "random features":
        architecture = models.architecture(name, (1, SIDE, SIDE), 10)
        (untrained,) = initial_tickets(architecture, [seed])
        return lambda task, split: network_features(untrained, task.dataset)(split)
    if arm not in FOUND_ON_TASKS:
        arms = ("universal ticket", "exact basis", "pixels", "random features", *FOUND_ON_TASKS)
        raise unknown("arm", arm, arms)
    if found_on is None or not found_on.classes:
        raise InputError(f"arm {arm!r} is found on a task with classes, not on {found_on and found_on.name!r}")
    architecture = models.architecture(name, (1, SIDE, SIDE), found_on.classes)
    if arm == "trained":
        (trained,) = train(initial_tickets(architecture, [seed]), recipe, found_on.dataset, store=store)
        network = trained.ticket
    else:
        source = random_source(architecture, seed)
        (search,) = find_supermasks([source], Supermask(density=0.5), recipe, found_on.dataset, store=store)
        network = search.ticket
    return lambda task, split: network_features(network, task.dataset)(split)


def read_out(features: Callable[[ImageTask, str], Array], task: ImageTask) -> float:
    """Test accuracy in percent (regression: 100 R^2) of the least-squares readout, its ridge chosen on validation."""
    parts = {split: features(task, split) for split in SPLITS}
    best = max(
        (least_squares(parts["train"], task.targets["train"], ridge) for ridge in RIDGES),
        key=lambda readout: _score(readout(parts["validation"]), task, "validation"),
    )
    return _score(best(parts["test"]), task, "test")


def _score(outputs: Array, task: ImageTask, split: str) -> float:
    targets = task.targets[split]
    if task.classes:
        return 100 * float((outputs.argmax(axis=1) == targets.argmax(axis=1)).mean())
    rest = ((outputs - targets) ** 2).sum() / ((targets - targets.mean(axis=0)) ** 2).sum()
    return 100 * float(1 - rest)


def transfer_rows(
    tasks: Sequence[ImageTask],
    features: int,
    seeds: Sequence[int],
    recipe: Recipe,
    popup_recipe: Recipe,
    store: Store | None = None,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """The transfer matrix: one row an arm, the task it was found on, the task it is read out on, and a seed.

    Columns: found ("universal ticket", ..., "edge-popup on X", "trained on X"), arm, found_on, task, seed, score,
    features. Regression tasks are read out on but nothing is found on them. `folder` takes the universal tickets'
    files.
    """
    rows = []
    for seed in seeds:
        arms = [(arm, None) for arm in ("universal ticket", "exact basis", "random features", "pixels")]
        found = [(arm, task) for arm in FOUND_ON_TASKS for task in tasks if task.classes]
        for arm, found_on in [*arms, *found]:
            made = image_features(arm, found_on, features, seed, popup_recipe if arm == "edge-popup" else recipe,
                                  store, folder)  # fmt: skip
            label = arm if found_on is None else f"{arm} on {found_on.name}"
            for task in tasks:
                count = SIDE * SIDE if arm == "pixels" else features
                origin = "" if found_on is None else found_on.name
                rows.append({"found": label, "arm": arm, "found_on": origin, "task": task.name, "seed": seed,
                             "score": read_out(made, task), "features": count})  # fmt: skip
    return rows


def reconstructed_rows(
    dataset: Dataset, seeds: Sequence[int], recipe: Recipe, store: Store | None = None
) -> list[dict[str, Any]]:
    """Edge-popup at density 0.5 on both reconstructed architectures (non-zero biases, pruned too): test accuracies.

    One row an architecture, arm and seed; arms: "edge-popup", and "random mask", the same source under a random mask
    of the same density in every layer (its biases whole).
    """
    rows = []
    for name in ("polynomial", "fourier"):
        architecture = models.architecture(f"reconstructed-{name}", dataset.input_shape, dataset.classes)
        sources = [random_source(architecture, seed, bias_scale=1.0) for seed in seeds]
        settings = Supermask(density=0.5, prune_biases=True)
        masked = [search.ticket for search in find_supermasks(sources, settings, recipe, dataset, store=store)]
        random = [layerwise_shuffled(source.with_masks(ticket.masks))
                  for source, ticket in zip(sources, masked, strict=True)]  # fmt: skip
        for arm, tickets in (("edge-popup", masked), ("random mask", random)):
            for ticket, test in zip(tickets, evaluate(tickets, dataset, "test"), strict=True):
                rows.append({"architecture": name, "arm": arm, "seed": ticket.seed, "accuracy": test.accuracy})
    return rows
