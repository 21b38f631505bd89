"""A mask as a sketch of a matrix product: the linear theory of pruning at initialization, exact and by Monte-Carlo.

Names follow Bar & Giryes, "Pruning at Initialization - A Sketching Perspective" (arXiv 2305.17559). X (d, n) holds one
feature a row and one example a column, w (d,) or (d, C) the weights of one or C linear outputs X^T w, p (shaped as w)
the probabilities of its entries, s a number of draws with replacement, m a mask. An error is a squared Frobenius norm
in the units of the output, over all examples and outputs. Float64 is advised.

The formulas follow from the sampling theorem of Drineas, Kannan & Mahoney, "Fast Monte Carlo Algorithms for Matrices
I" (SIAM J. Comput. 2006), and are exact; they make no claim to be the constants that the paper prints.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lthlib.errors import InputError, unknown
from lthlib.masks import topk as selection
from lthlib.masks.draws import inclusion_probabilities

DISTRIBUTIONS = ("optimal", "magnitude", "gaussian_data", "uniform", "oracle")


# --- the linear problem ---


def synthetic_problem(
    features: int, examples: int, generator: torch.Generator, *, shape: float = 0.75
) -> tuple[Tensor, Tensor]:
    """X (d, n) with Gaussian rows of Gamma(shape)-distributed scale, and y (n,), a random linear target; float64.

    A smaller `shape` makes the features more unequal, and data matter more.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    scale = torch.from_numpy(np.random.default_rng(seed).gamma(shape, size=features))
    x = scale[:, None] * torch.randn(features, examples, generator=generator, dtype=torch.float64)
    return x, x.T @ torch.randn(features, generator=generator, dtype=torch.float64)


def prepare(x: Tensor, how: str) -> Tensor:
    """Features as they are ("raw"), minus their mean over examples ("centred"), or also over their std
    ("standardised": kappa is 1); rows without variance become 0."""
    if how not in ("raw", "centred", "standardised"):
        raise unknown("preparation of features", how, ("raw", "centred", "standardised"))
    if how == "raw":
        return x
    centred = x - x.mean(1, keepdim=True)
    if how == "centred":
        return centred
    std = centred.square().mean(1, keepdim=True).sqrt()
    # A constant feature keeps rounding noise after centring, which must not be blown up to unit variance.
    constant = std <= 8 * torch.finfo(x.dtype).eps * x.abs().amax(1, keepdim=True)
    return torch.where(constant, 0.0, centred / std.clamp(min=torch.finfo(x.dtype).tiny))


def initial_weights(shape: tuple[int, ...], std: float, scheme: str, generator: torch.Generator) -> Tensor:
    """Float64 weights of standard deviation `std`: "gaussian", or "signed_constant" (std with a random sign), whose
    equal magnitudes keep the error on trained weights from being heavy-tailed."""
    if scheme not in ("gaussian", "signed_constant"):
        raise unknown("initialization", scheme, ("gaussian", "signed_constant"))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return std * (noise if scheme == "gaussian" else torch.where(noise < 0, -1.0, 1.0).double())


def gradient_descent(
    x: Tensor, y: Tensor, w0: Tensor, at: Sequence[int], *, step_size: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Weights after each number of steps in `at`, shape (len(at), *w0.shape), of descent on |X^T w - y|^2 / (2n).

    y is (n,) or (n, C) as w0 is (d,) or (d, C); columns are separate problems, so that many masks of one problem train
    at once as columns. `mask` (shaped as w0) multiplies the weights from the start. `step_size` is by default the
    inverse of the largest curvature, |X|_2^2 / n. Raises InputError for steps that are negative.
    """
    _check(x, w0)
    if y.shape != x.shape[1:] + w0.shape[1:]:
        raise InputError(f"targets of shape {tuple(y.shape)} do not fit {tuple(x.shape[1:] + w0.shape[1:])}")
    if not at or min(at) < 0:
        raise InputError(f"steps {tuple(at)} to stop at are not one or more numbers >= 0")
    step = x.shape[1] / float(torch.linalg.matrix_norm(x, 2)) ** 2 if step_size is None else step_size
    mask = torch.ones_like(w0) if mask is None else mask.to(w0.dtype)
    w, stops = w0 * mask, {}
    for done in range(max(at) + 1):
        if done in at:
            stops[done] = w
        w = w - step / x.shape[1] * mask * (x @ (x.T @ w - y))
    return torch.stack([stops[done] for done in at])


# --- sampling distributions ---


def distribution(
    kind: str, x: Tensor, w: Tensor, *, w_star: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Probabilities p, shaped as w, that sum to 1.

    "optimal": p ~ |X_k| |w_k|, least expected error for w. "magnitude": |w_k|, which needs no data. "gaussian_data":
    |G_k| |w_k| with G of X's shape and standard normal (needs `generator`). "uniform". "oracle": |X_k| |w*_k|, which
    knows the trained weights `w_star`. Raises InputError where what it needs is missing or all its scores are zero.
    """
    _check(x, w)
    if kind not in DISTRIBUTIONS:
        raise unknown("distribution", kind, DISTRIBUTIONS)
    if kind == "optimal":
        scores = _contributions(x, w)
    elif kind == "magnitude":
        scores = w.abs()
    elif kind == "uniform":
        scores = torch.ones_like(w)
    elif kind == "gaussian_data":
        if generator is None:
            raise InputError("distribution 'gaussian_data' needs a generator")
        scores = _contributions(torch.randn(x.shape, generator=generator, dtype=w.dtype).to(w.device), w)
    else:
        if w_star is None or w_star.shape != w.shape:
            raise InputError("distribution 'oracle' needs w_star, the trained weights, in the shape of w")
        scores = _contributions(x, w_star)
    total = scores.sum()
    if not 0 < float(total) < math.inf:
        raise InputError(f"scores of distribution {kind!r} sum to {float(total)} (a positive finite sum is needed)")
    return scores / total


def defensive_mixture(p: Tensor, share: float) -> Tensor:
    """(1 - share) p + share / numel: bounds 1/p by numel / share. share in [0, 1]. Hesterberg, Technometrics 1995."""
    if not 0 <= share <= 1:
        raise InputError(f"share {share} of the uniform distribution is not in [0, 1]")
    return (1 - share) * p + share / p.numel()


def data_independence_factor(x: Tensor) -> float:
    """kappa = max |X_k| / min |X_k|: sampling by |w| has at most kappa times the optimal S_0^2 / s.

    1 for standardised features; infinite where a feature is zero (see `near_optimality` for the exact factor).
    """
    norms = torch.linalg.vector_norm(x, dim=1)
    return float(norms.max() / norms.min()) if float(norms.min()) > 0 else math.inf


def near_optimality(p: Tensor, x: Tensor, w: Tensor) -> float:
    """beta, the largest number with p >= beta p* everywhere; in [0, 1]. For |w| it is at least 1 / kappa."""
    best = distribution("optimal", x, w)
    return min(1.0, float((p / best)[best > 0].min()))


# --- expected errors ---


def output_error(x: Tensor, w: Tensor, masks: Tensor) -> Tensor:
    """|X^T w - X^T (w m)|^2 for masks (..., *w.shape), bool or real; shape (...). At m = 0 it is |X^T w|^2."""
    _check(x, w)
    lost = w * (1 - masks.to(w.dtype))
    if w.ndim == 1:
        return (lost @ x).square().sum(-1)
    return torch.einsum("...dc,dn->...cn", lost, x).square().sum((-2, -1))


def relative_error(x: Tensor, w: Tensor, masks: Tensor) -> Tensor:
    """`output_error` over that of the zero mask: 0 is exact, 1 no better than keeping nothing."""
    return output_error(x, w, masks) / _energy(x, w)


def expected_error(x: Tensor, w: Tensor, p: Tensor, s: int) -> float:
    """E|X^T w - X^T (w m)|^2 of the reweighted sketch m_k = c_k / (s p_k), c_k = how often k is drawn, any p.

    (sum |X_k|^2 w_k^2 / p_k - |X^T w|^2) / s; entries with p = 0 are never drawn and add their whole output as bias.
    Optimal p makes it (S_0^2 - |X^T w|^2) / s. Trained weights w* under p from w_0 give section 2.4's end-of-training
    error; for Gaussian w_0 it is heavy-tailed over draws of w_0 (E[1/|w_0|] is infinite): report medians, or use
    `defensive_mixture`. Drineas, Kannan & Mahoney 2006, Lemma 4.
    """
    _check(x, w, p=p)
    if s < 1:
        raise InputError(f"number of draws {s} is not 1 or more")
    drawn = p > 0
    terms = _contributions(x, w)[drawn].square() / p[drawn]
    return float((terms.sum() - _energy(x, w * drawn)) / s + _energy(x, w * ~drawn))


def optimal_scale(x: Tensor, w: Tensor) -> float:
    """S_0 = sum |X_k| |w_k|: the optimal sketch's error is (S_0^2 - |X^T w|^2) / s."""
    return float(_contributions(x, w).sum())


def probability_bound(x: Tensor, w: Tensor, s: int, delta: float, *, beta: float = 1.0) -> float:
    """What the squared error stays below with probability >= 1 - delta, for p >= beta p*.

    eta^2 / (beta s) |X|_F^2 |w|^2 with eta = 1 + sqrt(8/beta ln(1/delta)); C outputs drawn entry by entry are one
    product with a block-diagonal X, of C |X|_F^2. Drineas, Kannan & Mahoney 2006, Theorem 1.
    """
    if not 0 < delta < 1 or not 0 < beta <= 1:
        raise InputError(f"delta {delta} is not in (0, 1), or beta {beta} not in (0, 1]")
    eta = 1 + math.sqrt(8 / beta * math.log(1 / delta))
    outputs = w.shape[1] if w.ndim > 1 else 1
    return eta**2 / (beta * s) * outputs * float(x.square().sum() * w.square().sum())


def growth_bound(x: Tensor, w0: Tensor, w_star: Tensor, s: int) -> float:
    """(1 + g)^2 S_0^2 / s, g = max |w*_k| / |w_0k| - 1 or 0: bounds the error on w* of the sketch optimal for w_0."""
    growth = max(1.0, float((w_star.abs() / w0.abs()).nan_to_num(0, posinf=math.inf).max()))
    return growth**2 * optimal_scale(x, w0) ** 2 / s


def movement_bound(x: Tensor, w0: Tensor, w_star: Tensor, s: int) -> float:
    """(S_0^2 + 2 S_0 sum |X_k||D_k| + S_0 sum |X_k| D_k^2 / |w_0k|) / s, D = w* - w_0: bounds the same error."""
    moved = w_star - w0
    scale, norms = optimal_scale(x, w0), _norms(x, w0)
    last = (norms * moved.square() / w0.abs()).nan_to_num(0, posinf=math.inf).sum()
    return float(scale * (scale + 2 * (norms * moved.abs()).sum() + last) / s)


def defensive_bound(x: Tensor, w_star: Tensor, s: int, share: float) -> float:
    """numel / (share s) sum |X_k|^2 (w*_k)^2: bounds the error on w* of any p mixed by `defensive_mixture`."""
    if not 0 < share <= 1:
        raise InputError(f"share {share} of the uniform distribution is not in (0, 1]")
    return w_star.numel() / (share * s) * float(_contributions(x, w_star).square().sum())


# --- binary masks, which are not the sketch ---


def poisson_probabilities(p: Tensor, count: int) -> Tensor:
    """pi = min(1, a p), shaped as p, that sum to `count`: for p = p* the best Poisson sampling with 1/pi weights."""
    return inclusion_probabilities(p.double().log().view(-1), count).view(p.shape).to(p.dtype)


def merged_inclusion(p: Tensor, s: int) -> Tensor:
    """P(entry comes up in s draws with replacement) = 1 - (1 - p)^s, shaped as p; its sum is `expected_distinct`."""
    return -torch.expm1(s * torch.log1p(-p))


def expected_distinct(p: Tensor, s: int) -> float:
    """Expected number of distinct entries among s draws with replacement; below s, and the nnz of the mask."""
    return float(merged_inclusion(p, s).sum())


def poisson_error(x: Tensor, w: Tensor, pi: Tensor, *, reweight: bool) -> float:
    """Expected error of keeping entry k independently with probability pi_k.

    Binary: sum |X_k|^2 w_k^2 pi_k (1 - pi_k) + |X^T (w (1 - pi))|^2, variance and squared bias. `reweight` by 1/pi
    (Horvitz & Thompson 1952): sum |X_k|^2 w_k^2 (1 - pi_k) / pi_k, plus the bias of entries with pi = 0.
    """
    _check(x, w, p=pi)
    terms = _contributions(x, w).square() * (1 - pi)
    if not reweight:
        return float((terms * pi).sum() + _energy(x, w * (1 - pi)))
    kept = pi > 0
    return float((terms[kept] / pi[kept]).sum() + _energy(x, w * ~kept))


def merged_error(x: Tensor, w: Tensor, p: Tensor, s: int) -> float:
    """Expected error of the binary mask of the distinct entries among s draws with replacement; d x d memory.

    Entries j and k are both missed with probability (1 - p_j - p_k)^s, so the error is
    sum_jk w_j w_k <X_j, X_k> (1 - p_j - p_k)^s, with (1 - p_k)^s on the diagonal.
    """
    _check(x, w, p=p)
    gram, error = x @ x.T, 0.0
    for column, chances in zip(w.view(len(w), -1).T, p.view(len(w), -1).T, strict=True):
        # One draw cannot be both j and k, so rounding alone takes the sum past 1.
        missed = (1 - chances[:, None] - chances).clamp(min=0) ** s
        missed.diagonal().copy_((1 - chances) ** s)
        error += float(column @ (gram * missed) @ column)
    return error


# --- masks, many draws at once ---


def sketch_masks(p: Tensor, s: int, draws: int, generator: torch.Generator, *, reweight: bool) -> Tensor:
    """`draws` masks, (draws, *p.shape), of s draws with replacement each: c / (s p), of mean 1, or binary c > 0."""
    picked = torch.multinomial(p.view(-1), s * draws, replacement=True, generator=generator).view(draws, s)
    counts = p.new_zeros(draws, p.numel()).scatter_add_(1, picked, p.new_ones(1).expand(draws, s))
    if not reweight:
        return (counts > 0).to(p.dtype).view(draws, *p.shape)
    return torch.where(counts > 0, counts / (s * p.view(-1)), 0.0).view(draws, *p.shape)


def poisson_masks(pi: Tensor, draws: int, generator: torch.Generator, *, reweight: bool) -> Tensor:
    """`draws` masks, (draws, *pi.shape), with entry k kept independently with probability pi_k, as 1/pi_k or 1."""
    kept = torch.rand((draws, *pi.shape), generator=generator, dtype=pi.dtype) < pi
    return torch.where(kept, 1 / pi if reweight else torch.ones_like(pi), 0.0)


def gumbel_masks(p: Tensor, count: int, draws: int, generator: torch.Generator) -> Tensor:
    """`draws` binary masks, (draws, *p.shape), of exactly `count` entries drawn by p one by one without replacement.

    Raises InputError where fewer than `count` entries have p > 0.
    """
    if not 0 <= count <= int((p > 0).sum()):
        raise InputError(f"count {count} is not between 0 and the {int((p > 0).sum())} entries of positive probability")
    race = torch.empty(draws, p.numel(), dtype=torch.float64).exponential_(generator=generator)
    first = (race.log() - p.view(-1).double().log()).topk(count, largest=False, sorted=False).indices
    return torch.zeros(draws, p.numel(), dtype=p.dtype).scatter_(1, first, 1.0).view(draws, *p.shape)


def top_mask(p: Tensor, count: int) -> Tensor:
    """The binary mask of the `count` largest p, shaped as p; never for a uniform p, where ties fall to the index."""
    return selection.keep_top({"w": p}, count)["w"].to(p.dtype)


# --- helpers ---


def _check(x: Tensor, w: Tensor, p: Tensor | None = None) -> None:
    if x.ndim != 2 or w.ndim not in (1, 2) or len(x) != len(w):
        raise InputError(f"X of shape {tuple(x.shape)} and w {tuple(w.shape)} are not (d, n) and (d,) or (d, C)")
    if p is not None and p.shape != w.shape:
        raise InputError(f"probabilities of shape {tuple(p.shape)} do not fit w of shape {tuple(w.shape)}")


def _norms(x: Tensor, w: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(x, dim=1)
    return norms if w.ndim == 1 else norms[:, None]


def _contributions(x: Tensor, w: Tensor) -> Tensor:
    """|X_k| |w_k|, the norm of each rank-one term of the product; shaped as w."""
    return _norms(x, w) * w.abs()


def _energy(x: Tensor, w: Tensor) -> float:
    return float((x.T @ w).square().sum())
