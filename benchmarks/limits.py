"""What a machine can do at most, measured beside what is compared with it."""

import statistics
import time

import torch
from reporting import timing
from torch import Tensor, nn
from torch.nn import functional as F


def gemm_rate(size: int = 2048, repeats: int = 7) -> float:
    """GFLOP/s of a square float32 matrix product, the median of `repeats`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    return 2 * size**3 / timing(lambda: a @ b, repeats).wall / 1e9


def bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """GB/s that a copy of `megabytes` moves, reads and writes both counted; the median of `repeats`."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / timing(lambda: target.copy_(source), repeats).wall / 1e9


def forward_backward(module: nn.Module, images: Tensor, labels: Tensor, repeats: int = 5) -> float:
    """Median seconds of one forward and backward pass of a batch that lies in memory, ready to use."""
    parameters = list(module.parameters())
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.autograd.grad(F.cross_entropy(module(images), labels), parameters)
        times.append(time.perf_counter() - start)
    # The first sets up.
    return statistics.median(times[1:])
