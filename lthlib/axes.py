"""Orthonormal matrices of one axis: DCT-II, Haar, Hadamard, random, or fitted; built in float64 and cast once."""

import math
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from lthlib.errors import InputError, unknown
from lthlib.randomness import generator

FIXED = ("dct", "haar", "hadamard", "random")


def _dct(n: int) -> Tensor:
    from scipy.fft import dct

    return torch.from_numpy(np.ascontiguousarray(dct(np.eye(n), type=2, norm="ortho", axis=0)))


def _haar(n: int) -> Tensor:
    import pywt

    levels = (n & -n).bit_length() - 1
    if levels == 0:
        return torch.eye(n, dtype=torch.float64)
    parts = pywt.wavedec(np.eye(n), "haar", mode="periodization", level=levels, axis=0)
    return torch.from_numpy(np.concatenate(parts))


def _hadamard(n: int) -> Tensor:
    blocks = []
    for digit in reversed(range(n.bit_length())):
        if n >> digit & 1:
            block = torch.ones(1, 1, dtype=torch.float64)
            for _ in range(digit):
                block = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), block)
            blocks.append(block / math.sqrt(2**digit))
    return torch.block_diag(*blocks)


def _random(n: int, seed: int, stream: str) -> Tensor:
    gaussian = torch.randn(n, n, dtype=torch.float64, generator=generator(seed, "basis", stream))
    q, r = torch.linalg.qr(gaussian)
    # Without the signs of diag(R) the law is LAPACK's convention, not the Haar measure.
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


@lru_cache(maxsize=16)
def axis_matrix(kind: str, sizes: tuple[int, ...], seed: int = 0, stream: str = "") -> Tensor:
    """The orthonormal matrix (n, n), float64 on the CPU, of one axis of length n = prod(sizes).

    `kind` is one of dct (DCT-II), haar (periodised, as many levels as n is divisible by 2; odd n: identity), hadamard
    (Sylvester, one block for each binary digit of n), random (Haar measure on the whole axis, from `seed` and
    `stream`). With several sizes the first three are Kronecker products, one factor a size; a leading image-channel
    axis has size -C and the identity. Raises InputError for another kind or a size of 0. The tensor is shared: do not
    write to it.
    """
    if kind not in FIXED:
        raise unknown("basis matrix", kind, FIXED)
    if not sizes or 0 in sizes:
        raise InputError(f"a basis matrix needs sizes of at least 1, not {sizes}")
    with torch.inference_mode(False):
        if kind == "random":
            return _random(abs(math.prod(sizes)), seed, stream)
        of = {"dct": _dct, "haar": _haar, "hadamard": _hadamard}[kind]
        factors = [torch.eye(-size, dtype=torch.float64) if size < 0 else of(size) for size in sizes]
        return reduce(torch.kron, factors).contiguous()


def _is_identity(kind: str, sizes: tuple[int, ...]) -> bool:
    if kind == "haar":
        return all(size < 0 or size % 2 for size in sizes)
    # A random 1x1 matrix would be a bare sign: it changes no ticket and costs a matmul.
    return all(size in (-1, 1) for size in sizes) or (kind != "random" and all(size < 0 or size == 1 for size in sizes))


@dataclass(frozen=True, eq=False)
class Axis:
    """An orthonormal matrix over `span` adjacent axes of a tensor, by recipe or, for kind "given", by its numbers.

    Fields as in `axis_matrix`; `given` is (n, n) float64. Make one with `fixed_axis` or `given_axis`.
    """

    kind: str
    sizes: tuple[int, ...]
    span: int = 1
    seed: int = 0
    stream: str = ""
    given: Tensor | None = None
    _casts: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def matrix(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """The matrix (n, n) in this dtype on this device, cast once and kept; do not write to it."""
        key = (dtype, torch.device(device))
        if key not in self._casts:
            # A tensor cast under inference_mode could never again take part in training.
            with torch.inference_mode(False), torch.no_grad():
                given = self.given
                matrix = axis_matrix(self.kind, self.sizes, self.seed, self.stream) if given is None else given
                self._casts[key] = matrix.to(device=device, dtype=dtype)
        return self._casts[key]


# Equal recipes share one Axis, hence one cast, for as long as any basis holds it.
_axes: WeakValueDictionary[tuple[Any, ...], Axis] = WeakValueDictionary()


def fixed_axis(kind: str, sizes: tuple[int, ...], span: int = 1, seed: int = 0, stream: str = "") -> Axis | None:
    """The axis of `axis_matrix(kind, sizes, seed, stream)`; None where that is the identity.

    Raises InputError as `axis_matrix` does.
    """
    if kind not in FIXED:
        raise unknown("basis matrix", kind, FIXED)
    if _is_identity(kind, sizes):
        return None
    key = (kind, sizes, span, *((seed, stream) if kind == "random" else (0, "")))
    axis = _axes.get(key)
    if axis is None:
        axis = _axes[key] = Axis(*key)
    return axis


def given_axis(matrix: Tensor, span: int = 1) -> Axis:
    """An axis fitted to weights, from its orthonormal matrix (n, n).

    Raises InputError where the matrix is not orthonormal to 1e-9.
    """
    matrix = matrix.detach().to("cpu", torch.float64).contiguous().clone()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"a basis matrix is square, not of shape {tuple(matrix.shape)}")
    error = (matrix @ matrix.T - torch.eye(len(matrix), dtype=torch.float64)).abs().max().item()
    if not error < 1e-9:
        raise InputError(f"a basis matrix has orthonormal rows, but its B B^T is off the identity by {error:.1e}")
    return Axis("given", (len(matrix),), span, given=matrix)
