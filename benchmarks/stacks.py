"""Replicates trained as one stack: linear networks beside calls in turn, convolutional ones beside each alone.

Linear: 16 seeds of digits-sized networks as one call, beside 16 calls one after the other, at batch 64; the limit is
the time of the same arithmetic at the rate of a large matrix product. Convolutional: milliseconds a step a network on
one core (a batch's forward and backward pass and SGD), stacked as high as `training.stacks` has it for that shape; the
limit is a step of one network alone in channels_last, as networks train that do not stack. All measured in turn, so
that a drift of the machine's speed touches all alike.
"""

import statistics
import time
from collections.abc import Callable

import torch
from images import random_images
from limits import gemm_rate
from reporting import Row, parser, report

from lthlib import data
from lthlib.data import Dataset
from lthlib.models.architecture import architecture, skeleton
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.batches import Batches
from lthlib.training.module_networks import SingleNetwork
from lthlib.training.network import Network
from lthlib.training.recipe import Recipe
from lthlib.training.stacks import groups, network
from lthlib.training.steps import step_of
from lthlib.training.train import train

CPU = torch.device("cpu")
LINEAR = {"lenet-64-32": ">= 6", "lenet-300-100": ">= 2.2"}
# Name, images' side and channels, batch, and the bound on stacked / alone.
CONVOLUTIONAL = (
    ("resnet-8-w8", 8, 1, 30, "<= 0.5"),
    ("resnet-14-w8", 8, 1, 30, "<= 0.5"),
    ("resnet-20-w8", 8, 1, 30, "<= 0.5"),
    ("resnet-20-w8", 14, 1, 128, "<= 0.9"),
    ("resnet-20-w4", 28, 1, 64, "<= 0.6"),
    ("resnet-14-w8", 28, 1, 128, "<= 1.02"),
    ("vgg-11-w8", 14, 1, 128, "<= 1.02"),
    ("conv-2-w8", 14, 1, 64, "<= 1.02"),
    ("conv-2-w8", 28, 1, 64, "<= 1.02"),
    ("resnet-20-w8", 32, 3, 128, "<= 1.02"),
    ("resnet-20", 32, 3, 128, "<= 1.02"),
)


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, measured in turn after one warm-up each."""
    first(), second()
    taken = [(seconds(first), seconds(second)) for _ in range(repeats)]
    medians = [statistics.median(times) for times in zip(*taken, strict=True)]
    return medians[0], medians[1]


def linear_row(name: str, goal: str | None, images: Dataset, count: int, recipe: Recipe, size: int) -> Row:
    """All seeds in one call, beside a call each."""
    model = architecture(name, images.input_shape, images.classes)
    tickets = initial_tickets(model, range(count))
    first, *others = (mask.numel() for mask in tickets[0].masks.values())
    steps = recipe.steps(len(images.train.labels))
    work = count * steps * recipe.batch_size * (4 * first + 6 * sum(others)) / 1e9
    stacked, single = in_turn(
        lambda: train(tickets, recipe, images), lambda: [train([ticket], recipe, images) for ticket in tickets], 3
    )
    label = f"{images.input_shape[1] ** 2}-{name.removeprefix('lenet-')}-10, {count} seeds stacked: {steps} steps"
    return Row(label, stacked, "s", work / gemm_rate(size), None, single, goal)


def stepping(net: Network, images: Dataset, recipe: Recipe) -> Callable[[], object]:
    """A step of the network: its batch gathered, forward, backward, update."""
    batches, move = Batches(net, images, recipe, torch.float32), step_of(net, recipe, CPU)
    return lambda: move(*batches.at(0), recipe.learning_rate)


def convolutional_row(name: str, side: int, channels: int, batch: int, goal: str | None, repeats: int) -> Row:
    """Milliseconds a step a network on one core, stacked and alone."""
    images, recipe = random_images((channels, side, side), 2 * batch, 10), Recipe(batch_size=batch, learning_rate=0.01)
    tickets = initial_tickets(architecture(name, images.input_shape, 10), range(16))
    beside, alone = groups(tickets, CPU, batch, "coefficients", len(tickets))
    stack: list[Ticket] = [tickets[index] for index in (beside + alone)[0]]
    single = SingleNetwork(tickets[:1], skeleton(tickets[0].architecture), CPU, torch.float32, "coefficients")
    stacked, one = in_turn(
        stepping(network(stack, CPU, torch.float32), images, recipe), stepping(single, images, recipe), repeats
    )
    label = f"{name}, {side}x{side}, batch {batch}: a step a network, {len(stack)} stacked"
    return Row(label, 1000 * stacked / len(stack), "ms", 1000 * one, goal)


def main() -> None:
    """Prints one row a network."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="a fraction of an epoch, for correctness only")
    arguments.add_argument("--seeds", type=int, default=16)
    arguments.add_argument("--epochs", type=float, default=10)
    options = arguments.parse_args()
    tiny, digits = options.tiny, data.load("digits")
    recipe = Recipe(learning_rate=0.05, batch_size=64, epochs=0.1 if tiny else options.epochs, evaluations=1)
    rows = [
        linear_row(name, None if tiny else goal, digits, options.seeds, recipe, 256 if tiny else 2048)
        for name, goal in LINEAR.items()
    ]
    torch.set_num_threads(1)
    for name, side, channels, batch, goal in CONVOLUTIONAL[:1] if tiny else CONVOLUTIONAL:
        repeats = 1 if tiny else 5 if side == 32 else 15
        rows.append(convolutional_row(name, side, channels, batch, None if tiny else goal, repeats))
    report(rows, options.json)


if __name__ == "__main__":
    main()
