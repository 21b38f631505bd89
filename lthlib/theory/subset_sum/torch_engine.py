"""Subset sums in torch: the path for GPUs, and a plain second opinion on the compiled kernels.

The same functions as `kernels`, on any device, in float64: half lists by concatenation (a sum's place in the
list is its mask), one of them sorted, the other's complements searched in it. Batches are cut to fit memory.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lthlib.theory.arrays import Array

CPU_BYTES = 1 << 28  # held at a time on a CPU; on a GPU a quarter of what is free


def _slices(count: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    budget = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CPU_BYTES
    step = max(1, budget // bytes_each)
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


def _rows(candidates: Array, targets: Array, repeat: int, part: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = candidates[np.arange(part.start, part.stop) // repeat]
    return torch.from_numpy(rows).to(device), torch.from_numpy(targets[part]).to(device)


def _sums(a: Tensor) -> Tensor:
    """All subset sums over axis 1 of a (B, n, ...): (B, 2^n, ...), the index being the mask."""
    sums = torch.zeros_like(a[:, :1]) if a.shape[1] else a.new_zeros(len(a), 1, *a.shape[2:])
    for j in range(a.shape[1]):
        sums = torch.cat((sums, sums + a[:, j : j + 1]), dim=1)
    return sums


def best(candidates: Array, targets: Array, repeat: int, device: torch.device) -> tuple[Array, Array]:
    """Best subset for targets (B,) float64; target i has row i // repeat of candidates (S, n) float64.

    Returns masks (B,) uint32 and the search's errors (B,) float64.
    """
    half = candidates.shape[1] // 2
    last = (1 << candidates.shape[1] - half) - 1
    masks, errors = np.zeros(len(targets), np.uint32), np.empty(len(targets))
    for part in _slices(len(targets), 64 * (last + 1 + (1 << half)), device):
        a, z = _rows(candidates, targets, repeat, part, device)
        wanted = z[:, None] - _sums(a[:, :half])
        values, order = _sums(a[:, half:]).sort(dim=1)
        above = torch.searchsorted(values, wanted).clamp_(max=last)
        below = (above - 1).clamp_(min=0)
        further = (values.gather(1, above) - wanted).abs() > (values.gather(1, below) - wanted).abs()
        place = torch.where(further, below, above)
        error, first = (values.gather(1, place) - wanted).abs().min(dim=1, keepdim=True)
        second = order.gather(1, place.gather(1, first))
        masks[part] = (first | second << half).squeeze(1).cpu().numpy()
        errors[part] = error.squeeze(1).cpu().numpy()
    return masks, errors


def smallest(
    candidates: Array, targets: Array, repeat: int, eps: float, sizes: range, first: bool, device: torch.device
) -> tuple[Array, Array]:
    """As `best`, over growing `sizes` until a subset is within `eps`: the best of that size, or the first one found.

    An error above eps says that no such subset exists; its mask is then the best of the last size.
    """
    masks, errors = np.zeros(len(targets), np.uint32), np.empty(len(targets))
    left = np.arange(len(targets))
    for size in sizes:
        listed = list(itertools.combinations(range(candidates.shape[1]), size))
        chosen = torch.tensor(listed, dtype=torch.int64, device=device)
        bits = (1 << chosen).sum(dim=1)
        for part in _slices(len(left), 16 * (1 + size) * len(bits), device):
            places = left[part]
            a = torch.from_numpy(candidates[places // repeat]).to(device)
            z = torch.from_numpy(targets[places]).to(device)
            # added one at a time and in index order, as the reported error is
            total = torch.zeros(len(a), len(bits), dtype=a.dtype, device=device)
            for column in range(size):
                total += a[:, chosen[:, column]]
            distance = (total - z[:, None]).abs()
            error, place = distance.min(dim=1)
            if first:
                hit = distance <= eps
                place = torch.where(hit.any(dim=1), hit.int().argmax(dim=1), place)
                error = distance.gather(1, place[:, None]).squeeze(1)
            masks[places] = bits[place].cpu().numpy()
            errors[places] = error.cpu().numpy()
        left = left[errors[left] > eps]
    return masks, errors


def best_vectors(candidates: Array, targets: Array, device: torch.device) -> tuple[Array, Array]:
    """Best subset in the largest norm for targets (B, d) from candidates (B, n, d), both float64, of all 2^n."""
    n, d = candidates.shape[1:]
    half = n // 2
    width = 1 << n - half
    masks, errors = np.zeros(len(targets), np.uint32), np.empty(len(targets))
    for part in _slices(len(targets), 64 * d * width, device):
        a, z = _rows(candidates, targets, 1, part, device)
        wanted = z[:, None] - _sums(a[:, :half])
        second = _sums(a[:, half:])
        error = torch.full((len(a),), torch.inf, dtype=a.dtype, device=device)
        mask = torch.zeros(len(a), dtype=torch.int64, device=device)
        for i in range(1 << half):
            distance, place = (second - wanted[:, i : i + 1]).abs().amax(dim=2).min(dim=1)
            mask = torch.where(distance < error, i | place << half, mask)
            error = torch.minimum(distance, error)
        masks[part], errors[part] = mask.cpu().numpy(), error.cpu().numpy()
    return masks, errors
