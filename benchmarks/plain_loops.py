"""Seconds of a training step at batch 128, a replicate, beside a DataLoader loop over the same images and network.

The limit is one forward and backward pass of the plain module on a batch that lies ready in memory; whatever gathers,
augments and updates comes on top of it. Replicates of LeNet are stacked, so that they can fall below it.
"""

import statistics
import time

import torch
from images import MNIST, random_images
from limits import forward_backward
from plain import masked, step_seconds
from reporting import Row, parser, report
from train_resnet import augmented

from lthlib.data import Dataset
from lthlib.finders.find import find
from lthlib.models.architecture import architecture, build
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import train


def ours(tickets: list[Ticket], dataset: Dataset, batch: int, repeats: int) -> float:
    """Median seconds of a step a replicate, the set-up of the training included."""
    recipe = Recipe(batch_size=batch, epochs=1, evaluations=1)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        train(tickets, recipe, dataset)
        times.append((time.perf_counter() - start) / len(tickets) / recipe.steps(len(dataset.train.labels)))
    return statistics.median(times[1:])


def rows_of(name: str, dataset: Dataset, batch: int, replicates: int, repeats: int, goal: str | None) -> list[Row]:
    """A dense and a masked row of one network."""
    model = architecture(name, dataset.input_shape, dataset.classes)
    dense = initial_tickets(model, list(range(replicates)))
    pruned = [find(ticket, 0.1, "erk") for ticket in dense]
    part = dataset.normalise(dataset.train.images[:batch])
    labels = dataset.train.labels[:batch]
    rows = []
    for label, tickets in (("", dense), (", density 0.1", pruned)):
        seconds = ours(tickets, dataset, batch, repeats)
        limit = forward_backward(build(model), part, labels, max(repeats, 3))
        module = build(model) if tickets is dense else masked(build(model), tickets[0])
        loop = step_seconds(module, dataset, batch)
        stacked = f", {replicates} stacked" if replicates > 1 else ""
        # The goal is the dense network's.
        own = None if label else goal
        rows.append(Row(f"{name}{stacked}{label}: a step of {batch}", seconds, "s", limit, None, loop, own))
    return rows


def main() -> None:
    """Prints a dense and a masked row of each network."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="small networks and few images, for correctness only")
    arguments.add_argument("--repeats", type=int, default=3)
    tiny = (options := arguments.parse_args()).tiny
    batch, repeats = (16, 1) if tiny else (128, options.repeats)
    lenet = random_images(MNIST, batch * (2 if tiny else 100))
    images = augmented(batch * (2 if tiny else 4))
    torch.manual_seed(0)  # of the plain loop's shuffling and crops alone
    rows = rows_of("lenet-24-16" if tiny else "lenet-300-100", lenet, batch, 4, repeats, None if tiny else ">= 8")
    for name in ("resnet-8-w4",) if tiny else ("conv-2", "resnet-20"):
        rows += rows_of(name, images, batch, 1, repeats, None)
    report(rows, options.json)


if __name__ == "__main__":
    main()
