"""LeNet-300-100 on MNIST-shaped data, replicates stacked: how close training comes to this machine's matrix products.

The limit is the rate of one large matrix product in float32, measured in the same run. Training counts 6 floating
point operations per weight and example (4 in the first layer, whose inputs need no gradient); gathering batches,
masks, the optimizer and the loss cost time but count nothing. Where CUDA is: 32 seeds stacked beside one.
"""

import statistics
import time

import torch
from images import MNIST, random_images
from limits import gemm_rate
from reporting import Row, parser, report

from lthlib.data import Dataset
from lthlib.finders.controls import random_mask
from lthlib.models.architecture import architecture
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import train


def seconds_an_epoch(
    dataset: Dataset, replicates: int, batch: int, density: float, epochs: int, device: str = "cpu"
) -> float:
    """Median seconds of one epoch of one replicate, all replicates trained as one stack."""
    seeds = list(range(replicates))
    tickets = initial_tickets(architecture("lenet-300-100", dataset.input_shape, 10), seeds)
    if density < 1:
        tickets = [random_mask(ticket) for ticket, seed in zip(tickets, seeds, strict=True)]
    recipe = Recipe(batch_size=batch, epochs=1, evaluations=1)
    times = []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        train(tickets, recipe, dataset)
        times.append((time.perf_counter() - start) / replicates)
    return statistics.median(times[1:])


def main() -> None:
    """Prints seconds, GFLOP/s and the share of the matrix-product rate, dense and masked."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--replicates", type=int, default=4)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--examples", type=int, default=30_000)
    arguments.add_argument("--epochs", type=int, default=5)
    chosen = arguments.parse_args()
    dataset = random_images(MNIST, chosen.examples)
    first, others = 784 * 300, 300 * 100 + 100 * 10
    work = chosen.examples * (4 * first + 6 * others) / 1e9
    rows = []
    for name, density, goal in (("dense", 1.0, ">= 0.75"), ("density 0.1", 0.1, ">= 0.7")):
        before = gemm_rate()
        seconds = seconds_an_epoch(dataset, chosen.replicates, chosen.batch, density, chosen.epochs)
        limit = statistics.mean((before, gemm_rate()))
        scaled = 60_000 / chosen.examples * seconds
        rows.append(Row(f"{name}: an epoch of 60,000 images, a replicate", scaled, "s"))
        rows.append(Row(f"{name}: training rate against matrix products", work / seconds, "GFLOP/s", limit, goal))
    if torch.cuda.is_available():
        stacked, one = (
            seconds_an_epoch(dataset.to("cuda"), count, chosen.batch, 1.0, chosen.epochs, "cuda") for count in (32, 1)
        )
        name = "dense, cuda: an epoch, a replicate, 32 stacked beside one alone"
        rows.append(Row(name, stacked, "s", plain=one, plain_goal=">= 20"))
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
