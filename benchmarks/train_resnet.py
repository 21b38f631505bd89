"""ResNet-20 on CIFAR-shaped data at batch 128: seconds a step, and how close training comes to matrix products.

`python benchmarks/train_resnet.py [--json FILE] [--tiny]`; `--tiny` only shows that everything runs. The limit of a
training rate is the rate of one large matrix product in the same precision and run; counted are the network's
products (`evidence.costs`), while gathering and augmenting batches, normalisation, activations and the optimizer cost
time but count nothing. A second pair of rows times the convolutions by themselves, forward and backward on data of
their shapes: what is below the matrix products there is the library's, what a step takes beyond it is ours. The bf16
goal stands only where this machine's bf16 matrix products are faster. Where CUDA is, images a second with the data on
the device; masks are tensors that a step reads, so that other levels and seeds compile nothing anew.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from basis_overhead import cifar_shaped
from reporting import Row, parser, report, timing
from torch import Tensor, nn

from lthlib.data import Dataset
from lthlib.evidence.costs import dense_flops
from lthlib.finders.magnitude import initial_tickets, randomly_masked
from lthlib.finders.saliency import find
from lthlib.models import Architecture, architecture, build
from lthlib.recipe import Recipe
from lthlib.ticket import Ticket
from lthlib.training import train

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def synchronised(device: str) -> float:
    """Now, with all work given to the device done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def gemm_rate(dtype: torch.dtype, device: str, size: int, repeats: int = 5) -> float:
    """GFLOP/s of a square matrix product, the median of `repeats`."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    times = []
    for _ in range(repeats):
        start = synchronised(device)
        a @ b
        times.append(synchronised(device) - start)
    return 2 * size**3 / statistics.median(times) / 1e9


def step_seconds(ticket: Ticket, dataset: Dataset, recipe: Recipe, device: str, repeats: int) -> float:
    """Median seconds of one step of training, after one training to warm up; the set-up around the steps included."""
    times = []
    for _ in range(repeats + 1):
        start = synchronised(device)
        train([ticket], recipe, dataset, [0], device=device)
        times.append((synchronised(device) - start) / recipe.steps(len(dataset.train.labels)))
    return statistics.median(times[1:])


def convolution_seconds(chosen: Architecture, batch: int, dtype: torch.dtype, repeats: int) -> float:
    """Seconds of all convolutions of one step on the CPU, each by itself, forward and backward, in channels_last."""
    module = build(chosen).to(memory_format=torch.channels_last)
    work: list[Callable[[], object]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Backward to the images costs nothing in training.
        needs = inputs[0].requires_grad
        x = torch.randn_like(inputs[0], dtype=dtype).requires_grad_(needs)
        y = torch.randn_like(output, dtype=dtype)
        weight = layer.weight.detach().to(dtype).requires_grad_()  # type: ignore[union-attr]
        stride, padding = layer.stride, layer.padding
        wanted = [x, weight] if needs else [weight]
        work.append(
            lambda: torch.autograd.grad(nn.functional.conv2d(x, weight, None, stride, padding), wanted, y)  # type: ignore[arg-type]
        )

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(record)
    module(torch.randn(batch, *chosen.input_shape).contiguous(memory_format=torch.channels_last))
    for one in work:
        one()
    return timing(lambda: [one() for one in work], repeats).wall


def cpu_rows(model: str, dataset: Dataset, batch: int, size: int, repeats: int) -> list[Row]:
    """Seconds a step in fp32 and bf16, and shares of the matrix-product rate."""
    chosen = architecture(model, dataset.input_shape, 10)
    (ticket,) = initial_tickets(chosen, [0])
    counted = dense_flops(chosen)
    work = batch * sum(flops.training for flops in counted.values()) / 1e9
    convolutions = work - batch * counted["output.weight"].training / 1e9
    seconds, rates, rows = {}, {}, []
    for precision, dtype in TYPES.items():
        recipe = Recipe(batch_size=batch, epochs=1, evaluations=1, precision=precision)
        before = gemm_rate(dtype, "cpu", size)
        seconds[precision] = step_seconds(ticket, dataset, recipe, "cpu", repeats)
        alone = convolution_seconds(chosen, batch, dtype, repeats)
        rates[precision] = statistics.mean((before, gemm_rate(dtype, "cpu", size)))
        goal = ">= 0.6" if precision == "fp32" else None
        rate, limit = work / seconds[precision], rates[precision]
        rows += [
            Row(f"{model}, {precision}: training rate against matrix products", rate, "GFLOP/s", limit, goal),
            Row(f"{model}, {precision}: convolutions alone", convolutions / alone, "GFLOP/s", limit),
        ]
    has_bf16 = rates["bf16"] > 1.5 * rates["fp32"]
    first = Row(f"{model}, fp32: a step of {batch}", seconds["fp32"], "s")
    goal = "<= 0.5" if has_bf16 else None
    return [first, Row(f"{model}, bf16: a step of {batch}", seconds["bf16"], "s", seconds["fp32"], goal), *rows]


def masked_rows(model: str, dataset: Dataset, batch: int, device: str, repeats: int, precision: str) -> list[Row]:
    """A step under masks beside the dense one, and under masks that are new at each training."""
    chosen = architecture(model, dataset.input_shape, 10)
    (ticket,) = initial_tickets(chosen, [0])
    recipe = Recipe(batch_size=batch, epochs=1, evaluations=1, precision=precision)
    dense = step_seconds(ticket, dataset, recipe, device, repeats)
    sparse = find(ticket, 0.1, "erk", device="cpu")
    times = []
    for number in range(repeats):
        start = synchronised(device)
        train([randomly_masked(sparse, number)], recipe, dataset, [0], device=device)
        times.append((synchronised(device) - start) / recipe.steps(len(dataset.train.labels)))
    name = f"{model}, {precision}, {device}: a step under other masks each time"
    return [Row(name, statistics.median(times), "s", dense, "<= 1.1")]


def cuda_rows(model: str, dataset: Dataset, batch: int, size: int, repeats: int) -> list[Row]:
    """Images a second and the share of the matrix-product rate on the GPU."""
    chosen = architecture(model, dataset.input_shape, 10)
    (ticket,) = initial_tickets(chosen, [0])
    each = sum(flops.training for flops in dense_flops(chosen).values()) / 1e9
    there, rows = dataset.to("cuda"), []
    for precision, dtype in TYPES.items():
        recipe = Recipe(batch_size=batch, epochs=1, evaluations=1, precision=precision)
        images = batch / step_seconds(ticket, there, recipe, "cuda", repeats)
        limit = gemm_rate(dtype, "cuda", size)
        rows += [
            Row(f"{model}, {precision}, cuda: training", images, "images/s"),
            Row(f"{model}, {precision}, cuda: rate against matrix products", images * each, "GFLOP/s", limit),
        ]
    return rows + masked_rows(model, there, batch, "cuda", repeats, "bf16")


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
    rows = cpu_rows(model, augmented(batch * steps), batch, size, repeats)
    rows += masked_rows(model, augmented(batch * steps), batch, "cpu", repeats, "fp32")
    if torch.cuda.is_available():
        many = augmented(batch * (steps if tiny else 200))
        rows += cuda_rows(model, many, batch, size if tiny else 8192, repeats)
    # Figures of a tiny run mean nothing, so they miss no goal.
    report([replace(row, goal=None) for row in rows] if tiny else rows, options.json)


def augmented(examples: int) -> Dataset:
    """CIFAR-shaped random bytes with CIFAR's augmentation."""
    return replace(cifar_shaped(examples), augmentation="crop-flip")


if __name__ == "__main__":
    main()
