"""Proximal operators on coefficients, and the structured tickets (units, low rank) that they find.

prox_h(c) = argmin_x 1/2 |x - c|^2 + strength * h(x), with strength = step size * penalty weight. For an orthonormal
B, prox_{h o B}(w) = B^T prox_h(B w), so that every operator here serves every basis (`proximal_in_basis`). Apply
after the optimiser step (forward-backward splitting), with momentum after the velocity update. Under Adam the metric is
diag(sqrt(v) + eps): pass strength / (sqrt(v) + eps) as a tensor; a plain number there is a heuristic.
Source: Parikh and Boyd, Proximal Algorithms, 2014, sections 2.2, 4.2 and 6.5.

Structured operators see a tensor as a matrix (rows, everything after flattened), a convolution included; `leading`
batch axes before the tensor's own are treated one by one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lthlib.basis import Basis
from lthlib.errors import InputError, unknown

POWERS = (0.0, 1 / 2, 2 / 3, 1.0)
LOW_RANK_FORMS = ("diagonal", "block", "row")
PENALTIES = ("l1", "group", "sparse-group", "nuclear", "rank")
Strength: TypeAlias = float | Tensor


def proximal_in_basis(operator: Callable[[Tensor], Tensor], basis: Basis, weight: Tensor) -> Tensor:
    """B^T prox(B w): the operator on coefficients, applied to a weight (..., *tensor shape) in its basis."""
    return basis.synthesise(operator(basis.analyse(weight)))


def soft_threshold(coefficients: Tensor, strength: Strength) -> Tensor:
    """sign(c) max(|c| - strength, 0): the operator of the l1 norm.

    `strength` >= 0 is a number or a tensor that broadcasts; every operator here raises InputError for a number below 0
    (tensors are not checked, which would make a GPU wait).
    """
    return lp_threshold(coefficients, strength, 1.0)


def hard_threshold(coefficients: Tensor, strength: Strength) -> Tensor:
    """c where |c| > sqrt(2 strength), else 0: the operator of the number of nonzeros (l0)."""
    return lp_threshold(coefficients, strength, 0.0)


def lp_threshold(coefficients: Tensor, strength: Strength, p: float) -> Tensor:
    """The operator of sum |c_i|^p for p in {0, 1/2, 2/3, 1}, where it has a closed form.

    It is 0 up to |c| = (2-p)/(2-2p) (2 (1-p) strength)^(1/(2-p)) and jumps there (p < 1). At p = 1/2 and 2/3 it is
    computed in float64. Raises InputError for another p. Sources: Xu et al., L1/2 regularization, IEEE TNNLS 2012
    (half thresholding); Cao, Sun and Xu, Fast image deconvolution using closed-form thresholding formulas of Lq
    (q = 1/2, 2/3) regularization, J. Vis. Commun. Image R. 2013.
    """
    _check_strength(strength)
    # A p read from a file may be 0.6667.
    near = [power for power in POWERS if math.isclose(p, power, abs_tol=1e-3)]
    if not near:
        raise unknown("penalty power p", p, ("0", "1/2", "2/3", "1"))
    p = near[0]
    if p == 1:
        return coefficients.sign() * (coefficients.abs() - strength).clamp(min=0)
    size = coefficients.abs().double()
    scale = strength.double() if isinstance(strength, Tensor) else size.new_full((), strength)
    kept = size > (2 - p) / (2 - 2 * p) * (2 * (1 - p) * scale) ** (1 / (2 - p))
    if p == 0:
        return coefficients.where(kept, 0)
    # Values below the threshold are replaced at the end; ones in their place keep the formulas in their domain.
    z, weight = size.where(kept, 1.0), scale.expand_as(size).where(kept, 0.0).clamp(min=1e-150)
    if p == 1 / 2:
        angle = torch.arccos(weight / 4 * (z / 3) ** -1.5)
        shrunk = 2 / 3 * z * (1 + torch.cos(2 / 3 * (math.pi - angle)))
    else:
        doubled = 2 * weight
        cosh = torch.cosh(torch.arccosh(27 / 16 * z**2 * doubled**-1.5) / 3)
        a = 2 / math.sqrt(3) * doubled**0.25 * cosh.sqrt()
        shrunk = ((a + (2 * z / a - a**2).sqrt()) / 2) ** 3
    return coefficients.sign() * shrunk.where(kept, 0.0).to(coefficients.dtype)


def group_soft_threshold(coefficients: Tensor, strength: Strength, leading: int = 0) -> Tensor:
    """c_g max(0, 1 - strength sqrt(|g|) / |c_g|) for every row g: the operator of the group lasso (unit pruning).

    A `strength` tensor is one number a row, (..., rows). Source: Yuan and Lin, Model selection with grouped variables,
    JRSS B 2006.
    """
    return group_lp_threshold(coefficients, strength, 1.0, leading)


def group_lp_threshold(coefficients: Tensor, strength: Strength, p: float, leading: int = 0) -> Tensor:
    """The operator of sum_g sqrt(|g|) |c_g|^p over rows, p as in `lp_threshold`; p = 1 is the group lasso."""
    _check_strength(strength)
    rows = coefficients.flatten(leading + 1) if coefficients.ndim > leading + 1 else coefficients.unsqueeze(-1)
    norms = rows.norm(dim=-1)
    shrunk = lp_threshold(norms, strength * math.sqrt(rows.shape[-1]), p)
    factors = shrunk / norms.where(norms > 0, 1.0)
    return (rows * factors.unsqueeze(-1)).reshape(coefficients.shape)


def sparse_group_threshold(coefficients: Tensor, strength: Strength, group: Strength, leading: int = 0) -> Tensor:
    """Soft, then group: the operator of strength |c|_1 + group sum_g sqrt(|g|) |c_g| (the sparse group lasso).

    Source: Simon et al., A sparse-group lasso, JCGS 2013.
    """
    return group_soft_threshold(soft_threshold(coefficients, strength), group, leading)


def nuclear_threshold(coefficients: Tensor, strength: Strength, leading: int = 0) -> Tensor:
    """U S(sigma) V^T, singular values soft-thresholded: the operator of the nuclear norm.

    Source: Cai, Candes and Shen, A singular value thresholding algorithm, SIAM J. Optim. 2010, theorem 2.1.
    """
    return singular_lp_threshold(coefficients, strength, 1.0, leading)


def singular_lp_threshold(coefficients: Tensor, strength: Strength, p: float, leading: int = 0) -> Tensor:
    """The operator of sum_i sigma_i^p, p as in `lp_threshold`: p = 1 is the nuclear norm and p = 0 the rank."""
    u, sigma, vh = torch.linalg.svd(_matrices(coefficients, leading), full_matrices=False)
    shrunk = lp_threshold(sigma, strength, p)
    return (u * shrunk.unsqueeze(-2) @ vh).reshape(coefficients.shape)


def rank_truncation(coefficients: Tensor, rank: int, leading: int = 0) -> Tensor:
    """The nearest tensor of at most that rank: the largest `rank` singular values stay (Eckart-Young).

    Raises InputError unless 0 <= rank <= min(rows, columns).
    """
    matrices = _matrices(coefficients, leading)
    _check_rank(rank, (matrices.shape[-2], matrices.shape[-1]))
    u, sigma, vh = torch.linalg.svd(matrices, full_matrices=False)
    return (u[..., :rank] * sigma[..., None, :rank] @ vh[..., :rank, :]).reshape(coefficients.shape)


def _matrices(tensor: Tensor, leading: int = 0) -> Tensor:
    if tensor.ndim < leading + 2:
        raise InputError(f"a matrix is needed after {leading} batch axes, not a tensor of shape {tuple(tensor.shape)}")
    return tensor.flatten(leading + 1)


def _check_strength(strength: Strength) -> None:
    if not isinstance(strength, Tensor) and not strength >= 0:
        raise InputError(f"the strength of a proximal step is at least 0, not {strength}")


def _check_rank(rank: int, shape: tuple[int, int]) -> None:
    if not 0 <= rank <= min(shape):
        raise InputError(f"a rank of a {shape[0]} x {shape[1]} matrix lies in 0..{min(shape)}, not at {rank}")


# ------------------------------------------------------------------------------------------------ penalised training


@dataclass(frozen=True)
class Penalty:
    """A penalty on coefficients, for `training.train`: its operator follows each optimiser step (forward-backward).

    - `kind`: `l1`; `group` (rows: units, filters); `sparse-group` (`weight` on the l1 part, `group_weight` on the
      rows); `nuclear` (singular values); `rank` (no penalty but a constraint: the largest `rank` singular values stay,
      all of them where a tensor has fewer).
    - `weight`: lambda of `loss + lambda h(c)`; a step of size eta applies the operator with strength eta lambda.
    - `p`: 0, 1/2, 2/3 or 1, the power of |coefficient|, row norm or singular value in `l1`, `group` and `nuclear`.
    - `tensors`: `all`, `all but output`, or names.

    Exact for SGD. Under Adam, AdamW and RMSprop one threshold for all coefficients is a heuristic: in their metric it
    would be eta lambda / (sqrt(v) + eps) a coefficient. Under a mask the kept coefficients move and the pruned ones
    stay where they are, which for the two kinds on singular values is a projection after the operator, not the
    operator of the sum.
    """

    kind: str
    weight: float = 0.0
    group_weight: float = 0.0
    p: float = 1.0
    rank: int = 0
    tensors: str | tuple[str, ...] = "all but output"

    def __post_init__(self) -> None:
        if self.kind not in PENALTIES:
            raise unknown("penalty", self.kind, PENALTIES)
        for name in ("weight", "group_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"a penalty's {name} is finite and at least 0, not {getattr(self, name)}")
        if self.kind == "rank" and self.rank < 1:
            raise InputError(f"a rank to train at is at least 1, not {self.rank}")
        if not any(math.isclose(self.p, power, abs_tol=1e-3) for power in POWERS):
            raise unknown("penalty power p", self.p, ("0", "1/2", "2/3", "1"))
        if self.kind in ("sparse-group", "rank") and self.p != 1:
            raise InputError(f"penalty {self.kind!r} has no power p={self.p} (valid: 1)")
        if isinstance(self.tensors, str) and self.tensors not in ("all", "all but output"):
            raise unknown("choice of tensors", self.tensors, ("all", "all but output", "a tuple of names"))

    def chosen(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of a network's prunable tensors that are penalised; `names` in its order, the output layer last."""
        if self.tensors == "all":
            return tuple(names)
        if self.tensors == "all but output":
            return tuple(names[:-1])
        for name in self.tensors:
            if name not in names:
                raise unknown("penalised tensor", name, names)
        return tuple(self.tensors)

    def apply(self, coefficients: Tensor, learning_rate: float, leading: int = 0) -> Tensor:
        """The coefficients of one tensor after a step of size `learning_rate`; `leading` axes of replicates first."""
        strength = learning_rate * self.weight
        if self.kind == "l1":
            return lp_threshold(coefficients, strength, self.p)
        if self.kind == "group":
            return group_lp_threshold(coefficients, strength, self.p, leading)
        if self.kind == "sparse-group":
            return sparse_group_threshold(coefficients, strength, learning_rate * self.group_weight, leading)
        # A diverged training is reported with its ticket and step; here LAPACK would only say that it did not converge.
        if not coefficients.isfinite().all():
            return coefficients
        if self.kind == "nuclear":
            return singular_lp_threshold(coefficients, strength, self.p, leading)
        matrices = _matrices(coefficients, leading)
        return rank_truncation(coefficients, min(self.rank, *matrices.shape[-2:]), leading)


# ----------------------------------------------------------------------------------------------- structured tickets


def row_norms(weight: Tensor) -> Tensor:
    """The Euclidean norm of each row (unit, filter), (rows,): unchanged by any orthonormal basis of the other axes."""
    return weight.flatten(1).norm(dim=1)


def rank(weight: Tensor) -> int:
    """Numerical rank of (rows, ...): singular values above max(rows, columns) * machine epsilon * the largest."""
    return int(torch.linalg.matrix_rank(_matrices(weight.detach())).item())


def stable_rank(weight: Tensor) -> float:
    """|W|_F^2 / |W|_2^2 of (rows, ...), between 1 and the rank; 0 for a matrix of zeros."""
    squares = torch.linalg.svdvals(_matrices(weight.detach()).double()).square()
    return (squares.sum() / squares.max()).item() if squares.max() > 0 else 0.0


def low_rank_mask(shape: tuple[int, ...], rank: int, form: str) -> Tensor:
    """A boolean mask over the coefficients of an `svd` basis, whose ticket has at most that rank.

    `form` "diagonal" keeps `rank` numbers, sum_i c_i u_i v_i^T; "block" rank^2, U_r C V_r^T; "row" rank * columns,
    U_r C. `shape` is (rows, ...). Raises InputError for another form or rank.
    """
    if form not in LOW_RANK_FORMS:
        raise unknown("low-rank form", form, LOW_RANK_FORMS)
    mask = torch.zeros(shape, dtype=torch.bool)
    matrix = mask.view(shape[0], -1)
    _check_rank(rank, (matrix.shape[0], matrix.shape[1]))
    if form == "diagonal":
        matrix.diagonal()[:rank] = True
    else:
        matrix[:rank, : rank if form == "block" else None] = True
    return mask


def factorised_numbers(rows: int, columns: int, rank: int) -> int:
    """rank (rows + columns): stored numbers, and multiply-accumulates per example, of two factors W = F G.

    A convolution factorised as k x k to `rank` channels, then 1 x 1, has columns = C_in k^2; its multiply-accumulates
    are this times the output positions. Raises InputError for a rank outside 0..min(rows, columns).
    """
    _check_rank(rank, (rows, columns))
    return rank * (rows + columns)


def break_even_rank(rows: int, columns: int) -> int:
    """The largest rank whose two factors store no more than the matrix: floor(rows columns / (rows + columns))."""
    return rows * columns // (rows + columns)
