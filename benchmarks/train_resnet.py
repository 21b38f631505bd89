"""ResNet-20 on CIFAR-shaped data at batch 128: seconds a step, and how close training comes to matrix products.

`python benchmarks/train_resnet.py [--json FILE] [--tiny]`; `--tiny` only shows that everything runs. The limit of a
training rate is the rate of one large matrix product in the same precision and run; counted are the network's
products (`evidence.costs`), while gathering and augmenting batches, normalisation, activations and the optimizer cost
time but count nothing. A second pair of rows times the convolutions by themselves, forward and backward on data of
their shapes: what is below the matrix products there is the library's, what a step takes beyond it is ours. The bf16
goal stands only where this machine's bf16 matrix products are faster. Where CUDA is, images a second with the data on
the device, each training's step captured as a CUDA graph: of one network alone, of a stack in aggregate, and what
iterative pruning as in the literature (13 levels of 160 epochs of 50,000 images) would take at the latter's rate.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from images import CIFAR, random_images
from reporting import Row, parser, report
from torch import Tensor, nn
from torch.nn import functional as F

from lthlib.data import Dataset
from lthlib.evidence.costs import dense_flops
from lthlib.finders.controls import random_mask
from lthlib.finders.find import find
from lthlib.models.architecture import Architecture, architecture, build, skeleton
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.batches import Batches
from lthlib.training.mask_updates import Step
from lthlib.training.module_networks import SingleNetwork
from lthlib.training.recipe import Recipe
from lthlib.training.stacks import HIGHEST_ON_GPU, network
from lthlib.training.steps import step_of
from lthlib.training.train import train

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Measure = Callable[[], float]
# 13 levels, 160 epochs of 50,000 images each.
IMAGES_OF_IMP = 13 * 160 * 50_000


def in_turn(measures: dict[str, Measure], repeats: int) -> dict[str, float]:
    """The median of each measure, all taken in turn, so that a drift of the machine's speed touches all alike."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(repeats + 1):
        for name, measure in measures.items():
            value = measure()
            # The first round warms up.
            taken[name] += [value] if number else []
    return {name: statistics.median(values) for name, values in taken.items()}


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of `work`, with all that it gave to a GPU done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product(dtype: torch.dtype, size: int) -> Measure:
    """GFLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return lambda: 2 * size**3 / seconds(lambda: a @ b) / 1e9


def step(tickets: list[Ticket], dataset: Dataset, recipe: Recipe) -> Measure:
    """Seconds of one step of training the next of `tickets`; the set-up around the steps included."""
    steps, following = recipe.steps(len(dataset.train.labels)), itertools.cycle(tickets)
    return lambda: seconds(lambda: train([next(following)], recipe, dataset)) / steps


def convolutions(chosen: Architecture, batch: int, dtype: torch.dtype) -> Measure:
    """Seconds of all convolutions of one step, each by itself, forward and backward, in channels_last."""
    module = build(chosen).to(memory_format=torch.channels_last)
    work: list[Callable[[], object]] = []

    def record(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Backward to the images costs nothing in training.
        needs = inputs[0].requires_grad
        x = torch.randn_like(inputs[0], dtype=dtype).requires_grad_(needs)
        y = torch.randn_like(output, dtype=dtype)
        weight = layer.weight.detach().to(dtype).requires_grad_()
        wanted = [x, weight] if needs else [weight]
        work.append(
            lambda: torch.autograd.grad(F.conv2d(x, weight, None, layer.stride, layer.padding), wanted, y)  # type: ignore[arg-type]
        )

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(record)
    images = torch.randn(batch, *chosen.input_shape)
    module(images.contiguous(memory_format=torch.channels_last))
    return lambda: seconds(lambda: [one() for one in work])


def rows_of(model: str, dataset: Dataset, batch: int, size: int, repeats: int) -> list[Row]:
    """Seconds a step in fp32 and bf16, dense and under masks, and shares of the matrix-product rate."""
    chosen = architecture(model, dataset.input_shape, 10)
    (ticket,) = initial_tickets(chosen, [0])
    start = find(ticket, 0.1, "erk")
    masked = [random_mask(replace(start, seed=number)) for number in range(4)]
    counted = dense_flops(chosen)
    work = batch * sum(flops.training for flops in counted.values()) / 1e9
    in_convolutions = work - batch * counted["output.weight"].training / 1e9
    measures: dict[str, Measure] = {}
    for precision, dtype in TYPES.items():
        recipe = Recipe(batch_size=batch, epochs=1, evaluations=1, precision=precision)
        measures |= {
            f"{precision} product": product(dtype, size),
            f"{precision} step": step([ticket], dataset, recipe),
            f"{precision} masked": step(masked, dataset, recipe),
            f"{precision} convolutions": convolutions(chosen, batch, dtype),
        }
    taken = in_turn(measures, repeats)
    has_bf16 = taken["bf16 product"] > 1.5 * taken["fp32 product"]
    name, rows = f"{model}, cpu", []
    for precision in TYPES:
        dense, limit = taken[f"{precision} step"], taken[f"{precision} product"]
        beside = None if precision == "fp32" else taken["fp32 step"]
        goal = "<= 0.5556" if precision == "bf16" and has_bf16 else None
        share = ">= 0.75" if precision == "fp32" else None
        alone = in_convolutions / taken[f"{precision} convolutions"]
        rows += [
            Row(f"{name}, {precision}: a step of {batch}", dense, "s", beside, goal),
            Row(f"{name}, {precision}: training", batch / dense, "images/s"),
            Row(f"{name}, {precision}: training rate against matrix products", work / dense, "GFLOP/s", limit, share),
            Row(f"{name}, {precision}: convolutions alone", alone, "GFLOP/s", limit),
            Row(
                f"{name}, {precision}: a step, other masks each time",
                taken[f"{precision} masked"],
                "s",
                dense,
                "<= 1.1",
            ),
        ]
    return rows


def gpu_rows(model: str, dataset: Dataset, batch: int, steps: int) -> list[Row]:
    """Images a second on a GPU in bf16 under masks: one network's captured step, and a stack's in aggregate."""
    chosen = architecture(model, dataset.input_shape, 10)
    tickets = [find(ticket, 0.1, "erk") for ticket in initial_tickets(chosen, range(HIGHEST_ON_GPU))]
    recipe = Recipe(batch_size=batch, learning_rate=0.01, precision="bf16")
    alone = SingleNetwork(tickets[:1], skeleton(chosen), dataset.device, torch.float32, "coefficients")
    rates, first = [], 0.0
    for net in (alone, network(tickets, dataset.device, torch.float32)):
        batches, move = Batches(net, dataset, recipe, torch.float32), step_of(net, recipe, dataset.device)

        def run(count: int, batches: Batches = batches, move: Step = move) -> None:
            for number in range(count):
                move(*batches.at(number), 0.01)

        first = seconds(lambda run=run: run(1))
        run(20)  # the capture among them
        rates.append(net.count * batch * steps / seconds(lambda run=run: run(steps)))
    name, minutes = f"{model}, cuda, bf16, density 0.1", IMAGES_OF_IMP / rates[1] / 60
    return [
        Row(f"{name}: training, one network's captured step", rates[0], "images/s"),
        Row(f"{name}: training, {len(tickets)} stacked, in aggregate", rates[1], "images/s", goal=">= 150000"),
        Row(f"{name}: the first step of a stack", first, "s", goal="<= 20"),
        Row(f"{name}: IMP of one seed at the stack's rate", minutes, "min", goal="<= 25"),
    ]


def main() -> None:
    """Prints the rows of the CPU and, where there is one, of the GPU."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="a small network and few images, for correctness only")
    arguments.add_argument("--model", default="resnet-20")
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=6, help="of one timed training on the CPU")
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    tiny = options.tiny
    model, batch = ("resnet-8-w4", 16) if tiny else (options.model, options.batch)
    steps, repeats, size = (2, 1, 256) if tiny else (options.steps, options.repeats, 2048)
    rows = rows_of(model, augmented(batch * steps), batch, size, repeats)
    if torch.cuda.is_available():
        many = augmented(batch * (steps if tiny else 200)).to("cuda")
        rows += gpu_rows(model, many, batch, 5 if tiny else 200)
    # Figures of a tiny run mean nothing, so they miss no goal.
    report([replace(row, goal=None) for row in rows] if tiny else rows, options.json)


def augmented(examples: int) -> Dataset:
    """CIFAR-shaped random bytes with CIFAR's augmentation."""
    return replace(random_images(CIFAR, examples, 16), augmentation="crop-flip")


if __name__ == "__main__":
    main()
