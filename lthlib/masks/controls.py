"""Shuffles and random masks, inversion, and how much two masks overlap."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lthlib.masks.counts import counts_of
from lthlib.masks.draws import _signed
from lthlib.masks.topk import Count, _flat, _unflatten, keep_top


def layerwise_shuffle(masks: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Masks with each tensor's entries permuted at random: per-tensor counts stay, positions do not.

    Redrawn while nothing at all has moved, as long as something can move.
    """
    movable = any(0 < kept < masks[name].numel() for name, kept in counts_of(masks).items())
    while True:
        shuffled = {name: _permuted(mask, generator) for name, mask in masks.items()}
        if not movable or any(not torch.equal(shuffled[name], mask) for name, mask in masks.items()):
            return shuffled


def _permuted(mask: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(mask.numel(), generator=generator, device=generator.device)
    return mask.reshape(-1)[order.to(mask.device)].view(mask.shape)


def random_masks(
    shapes: Mapping[str, tuple[int, ...]],
    count: Count,
    generator: torch.Generator,
    *,
    among: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks of exactly `count` entries, every such mask equally likely; overall, or per tensor for a dictionary.

    CPU tensors, or on the device of `among`. The global shuffle of a mask is its shapes and its total count.
    """
    # Double precision: with single, 15 million draws hold many ties, which favour low indices.
    noise = {n: torch.rand(tuple(shape), generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    if among is not None:
        noise = {n: value.to(among[n].device) if n in among else value for n, value in noise.items()}
    return keep_top(noise, count, among=among)


def invert(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float64 scores in the opposite order, for the inversion control; -inf stays -inf (pruned stays pruned).

    Signed scores are negated. Scores >= 0 become (smallest positive score) / z, and zeros 2, above all others: so they
    stay finite, positive and as spread as before, and can be sampled.
    """
    values = _flat(scores, None, tuple(scores)).double()
    if values.numel() and _signed(values):
        mapped = -values
    else:
        smallest = torch.where(values > 0, values, math.inf).min()
        mapped = torch.where(values > 0, smallest / values, 2.0)
    return _unflatten(torch.where(values > -math.inf, mapped, -math.inf), scores, None, tuple(scores))


def jaccard(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Overlap of two masks over the same tensors: kept by both / kept by either, in [0, 1]; 1 for two empty masks."""
    both = sum(int(torch.count_nonzero(mask & second[name])) for name, mask in first.items())
    either = sum(int(torch.count_nonzero(mask | second[name])) for name, mask in first.items())
    return both / either if either else 1.0


def jaccard_by_chance(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, layerwise: bool = False) -> float:
    """The overlap that random masks of the same counts have: expected intersection over expected union.

    rho / (2 - rho) for two masks of density rho. `layerwise` fixes the counts of each tensor, and so tells agreement
    on *which* weights from agreement on *how many* a layer.
    """
    sizes = {name: mask.numel() for name, mask in first.items()}
    a, b = counts_of(first), counts_of(second)
    if layerwise:
        both = sum(a[name] * b[name] / size for name, size in sizes.items() if size)
    else:
        both = sum(a.values()) * sum(b.values()) / sum(sizes.values())
    either = sum(a.values()) + sum(b.values()) - both
    return both / either if either else 1.0
