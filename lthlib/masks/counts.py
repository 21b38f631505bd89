"""How many weights each layer keeps: counts from densities, exact in sum.

Masks and shapes are dictionaries keyed by tensor name; their order is the order of layers.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lthlib.errors import InputError


def kept_count(density: float, total: int) -> int:
    """round(density * total) weights; density in (0, 1], else InputError."""
    if not 0 < density <= 1:
        raise InputError(f"density {density} is not in (0, 1]")
    return round(density * total)


def counts_of(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Kept entries of each boolean mask: what to hand on as `count` for an arm with matched layers."""
    return {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()}


def uniform_counts(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, int]:
    """Counts of one density in all layers, that sum to exactly `count` (largest remainders)."""
    sizes = _checked_sizes(shapes, count)
    total = sum(sizes.values())
    return _apportion({name: count * size / total for name, size in sizes.items()}, sizes, count)


def erdos_renyi_counts(shapes: Mapping[str, tuple[int, ...]], count: int, *, kernel: bool = True) -> dict[str, int]:
    """Erdos-Renyi counts: layer density eps * sum(shape) / prod(shape), that sum to exactly `count`.

    Layers that would exceed density 1 are made dense and eps is solved again. `kernel` counts a convolution's kernel
    axes in the sum (ERK); without it only the two channel axes count (ER). Shapes are (out, in, *kernel).
    Source: Mocanu et al. 2018; Evci et al., "Rigging the Lottery" (arXiv 1911.11134), section 3.
    """
    sizes = _checked_sizes(shapes, count)
    # density * size = eps * weight
    weights = {
        name: float(sum(shape)) if kernel else sum(shape[:2]) * math.prod(shape[2:]) for name, shape in shapes.items()
    }
    dense: set[str] = set()
    while True:
        free = count - sum(sizes[name] for name in dense)
        weight = sum(weights[name] for name in sizes if name not in dense)
        eps = free / weight if weight else 0.0
        over = {name for name in sizes if name not in dense and eps * weights[name] > sizes[name]}
        if not over:
            break
        dense |= over
    return _apportion({n: sizes[n] if n in dense else eps * weights[n] for n in sizes}, sizes, count)


def smart_ratio_counts(
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    *,
    output_density: float = 0.3,
    divide_by_position: bool = False,
) -> dict[str, int]:
    """Smart-ratio counts: layer l of L has density proportional to (L-l+1)^2 + (L-l+1); they sum to exactly `count`.

    `shapes` are in forward order; the last one is the output layer and gets `output_density`. `divide_by_position`
    divides layer l by l^2 (the reference's rule for VGG). What a full layer cannot hold goes to the next, and what
    the last hidden layer cannot hold goes round again, then to the output layer.
    Source: Su et al., "Sanity-Checking Pruning Methods" (arXiv 2009.11094), section 4.
    """
    sizes = _checked_sizes(shapes, count)
    *hidden, output = sizes
    kept_count(output_density, sizes[output])
    layers = len(sizes)
    ratios = [((layers - i) ** 2 + (layers - i)) / ((i + 1) ** 2 if divide_by_position else 1) for i in range(layers)]
    targets = {output: min(output_density * sizes[output], count)}
    goal = count - targets[output]
    scale = sum(sizes[n] * r for n, r in zip(hidden, ratios, strict=False))
    overflow = 0.0 if hidden else goal
    for name, ratio in zip(hidden, ratios, strict=False):
        wanted = goal * sizes[name] * ratio / scale + overflow
        targets[name] = min(wanted, sizes[name])
        overflow = wanted - targets[name]
    for name in [*hidden, output]:
        extra = min(overflow, sizes[name] - targets[name])
        targets[name] += extra
        overflow -= extra
    return _apportion({name: targets[name] for name in sizes}, sizes, count)


def _checked_sizes(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    if not sizes or not 0 <= count <= total:
        raise InputError(f"count {count} is not between 0 and the {total} weights of {len(sizes)} layers")
    return sizes


def _apportion(targets: dict[str, float], sizes: dict[str, int], count: int) -> dict[str, int]:
    """Integers nearest to `targets`, none above its size, that sum to `count`: largest remainders first."""
    counts = {name: min(int(target), sizes[name]) for name, target in targets.items()}
    while missing := count - sum(counts.values()):
        step = 1 if missing > 0 else -1
        open_names = [n for n in counts if (counts[n] < sizes[n] if step > 0 else counts[n] > 0)]
        open_names.sort(key=lambda n: -step * (targets[n] - counts[n]))
        for name in open_names[: abs(missing)]:
            counts[name] += step
    return counts
