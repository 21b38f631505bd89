r"""Paths of orthonormal matrices from the identity to a basis: how a basis's virtues come and go on the way.

An orthonormal matrix of determinant 1 is a rotation of planes by angles, $B=Q\,\mathrm{diag}(R(\varphi_k))\,Q^\top$
(real Schur form); the path $B(t)=Q\,\mathrm{diag}(R(t\varphi_k))\,Q^\top$ is the shortest from $I$ to $B$.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lthlib.axes import given_axis
from lthlib.basis import Kronecker
from lthlib.errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Path:
    """Planes (columns `first[k]`, `second[k]` of `q`, (n, n) float64) that turn by `angles[k]` radians."""

    q: Array
    first: Array
    second: Array
    angles: Array

    def at(self, t: float) -> Array:
        """The orthonormal matrix (n, n) at t: the identity at 0, the basis at 1."""
        cosine, sine = np.cos(t * self.angles)[:, None], np.sin(t * self.angles)[:, None]
        turned = self.q.T.copy()
        one, other = self.q.T[self.first], self.q.T[self.second]
        turned[self.first] = cosine * one + sine * other
        turned[self.second] = cosine * other - sine * one
        return self.q @ turned


def path(matrix: Array) -> Path:
    """The shortest path from the identity to an orthonormal matrix (n, n).

    A matrix of determinant -1 cannot be reached: its last row is taken with the other sign, which changes the sign of
    one coefficient and no mask. Raises InputError where the matrix is not orthonormal to 1e-9.
    """
    from scipy.linalg import schur

    matrix = np.array(matrix, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"a rotation is a square matrix, not one of shape {matrix.shape}")
    error = float(np.abs(matrix @ matrix.T - np.eye(len(matrix))).max())
    if not error < 1e-9:
        raise InputError(f"a rotation has orthonormal rows, but its B B^T is off the identity by {error:.1e}")
    if np.linalg.slogdet(matrix)[0] < 0:
        matrix[-1] *= -1
    blocks, q = schur(matrix, output="real")
    first, second, angles, reflected = [], [], [], []
    place = 0
    while place < len(matrix):
        if place + 1 < len(matrix) and abs(blocks[place + 1, place]) > 1e-10:
            first.append(place)
            second.append(place + 1)
            angles.append(np.arctan2(blocks[place, place + 1], blocks[place, place]))
            place += 2
        else:
            # Eigenvalues -1 come in pairs, and a pair is half a turn.
            if blocks[place, place] < 0:
                reflected.append(place)
            place += 1
    first += reflected[0::2]
    second += reflected[1::2]
    angles += [np.pi] * (len(reflected) // 2)
    return Path(q, np.array(first, int), np.array(second, int), np.array(angles, float))


def paths(basis: Kronecker) -> list[Path | None]:
    """The path of each axis of a basis; None where the axis stays as it is."""
    return [None if axis is None else path(axis.matrix(torch.float64).numpy()) for axis in basis.axes]


def partway(basis: Kronecker, along: list[Path | None], t: float) -> Kronecker:
    """The basis at t of the way from canonical (0) to `basis` (1), `along` the paths of its axes."""
    axes = tuple(
        None if axis is None or way is None else given_axis(torch.from_numpy(way.at(t)), axis.span)
        for axis, way in zip(basis.axes, along, strict=True)
    )
    return Kronecker(f"{basis.name} at {t:g}", axes)


def largest(coefficients: Tensor, share: float) -> Tensor:
    """Coefficients with all but the round(share n) largest set to 0 (at least one stays); ties go to the lower index.

    Raises InputError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"a share of coefficients lies in (0, 1], not at {share}")
    flat = coefficients.abs().flatten()
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[: max(1, round(share * len(flat)))]] = True
    return coefficients * kept.view(coefficients.shape)
