"""How one weight becomes a subset: the random laws of sources, and the ways to choose among a weight's candidates."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lthlib.errors import InputError, unknown
from lthlib.theory.arrays import Array
from lthlib.theory.subset_sum.solve import CHOICES, LARGEST_N, solve

METHODS = ("best", "sparsest", "fixed", "nearest", "greedy")
LAWS = ("uniform", "normal", "hyperbolic")
HYPERBOLIC = (0.05, 1.5)  # magnitudes; products of two then span .0025 to 2.25
MOST_CANDIDATES = 100_000  # of the methods that do not look at subsets


@dataclass(frozen=True)
class SubsetSearch:
    """How subsets are found, the same for every weight of a construction.

    - `candidates`: how many random numbers a weight may choose from (a side of the sign split), at most 32 where
      subsets are searched, any number for "nearest" and "greedy".
    - `method`: "best", "sparsest" and "fixed" (exactly `size`; Natale et al., NeurIPS 2024) are `subset_sum.solve`'s;
      "nearest" keeps the one nearest candidate (Malach et al., ICML 2020); "greedy" takes, from the largest down, every
      candidate that still fits (Orseau et al., NeurIPS 2020, with the law "hyperbolic").
    - `eps`: what counts as reached, per weight. `law`: "uniform" U[-1, 1], "normal" N(0, 1), or "hyperbolic",
      density proportional to 1/|w| on .05 <= |w| <= 1.5.
    - `redraws`: how often unreached weights get fresh candidates, for what is left of them ("fixed" and "nearest":
      instead of the others); this widens the source and is counted.
    - `round_small`: weights of at most `eps` become 0 without a search, as in released code.
    - `shared`: all outputs share an input's hidden neurons (batched); otherwise each weight has its own.
    """

    candidates: int = 20
    method: str = "best"
    eps: float = 0.01
    size: int | None = None
    law: str = "uniform"
    redraws: int = 0
    round_small: bool = False
    allow_empty: bool = True
    choice: str = "best_in_size"
    shared: bool = True

    def __post_init__(self) -> None:
        names = {"method": (self.method, METHODS), "law": (self.law, LAWS), "choice": (self.choice, CHOICES)}
        for kind, (value, valid) in names.items():
            if value not in valid:
                raise unknown(kind, value, valid)
        most = MOST_CANDIDATES if self.method in ("nearest", "greedy") else LARGEST_N
        if not 1 <= self.candidates <= most:
            why = f"a mask has {LARGEST_N} bits" if most == LARGEST_N else "the source would not fit"
            raise InputError(f"{self.candidates} candidates a weight: {why} (valid: 1 to {most} with {self.method!r})")
        if not 0 < self.eps < math.inf:
            raise InputError(f"eps is {self.eps}, which is no tolerance of a weight (valid: above 0, finite)")
        if self.redraws < 0:
            raise InputError(f"{self.redraws} redraws (valid: 0 or more)")
        if self.method == "fixed" and not (self.size is not None and 1 <= self.size <= self.candidates):
            raise InputError(f"size is {self.size}, but method 'fixed' needs one (valid: 1 to {self.candidates})")


def draw_weights(law: str, shape: tuple[int, ...], source: torch.Generator) -> Array:
    """Independent draws from a law of `LAWS`, float32 of that shape: what a source network is made of."""
    if law == "normal":
        return torch.randn(shape, generator=source).numpy()
    uniform = torch.rand(shape, generator=source) * 2 - 1
    if law == "uniform":
        return uniform.numpy()
    low, high = (math.log(limit) for limit in HYPERBOLIC)
    return (uniform.sign() * torch.exp(low + (high - low) * uniform.abs())).numpy()


def choose(candidates: Array, targets: Array, search: SubsetSearch, eps: float) -> tuple[Array, Array]:
    """Which of each row's candidates (B, n) approach its target (B,): kept (B, n) bool and errors (B,), float64.

    Errors are computed from what is kept. Fewer candidates than `search.size` are all kept.
    """
    a, z = np.asarray(candidates, np.float64), np.asarray(targets, np.float64)
    n = a.shape[1]
    if n == 0:
        return np.zeros(a.shape, bool), np.abs(z)
    if search.method == "nearest":
        kept = np.zeros(a.shape, bool)
        kept[np.arange(len(a)), np.abs(a - z[:, None]).argmin(axis=1)] = True
    elif search.method == "greedy":
        kept = greedy(a, z, eps)
    else:
        modes: dict[str, dict[str, Any]] = {
            "best": {"allow_empty": search.allow_empty},
            "sparsest": {"eps": eps, "choice": search.choice, "allow_empty": search.allow_empty},
            "fixed": {"k": min(search.size or n, n)},
        }
        solution = solve(a, z, search.method, **modes[search.method])
        return solution.kept(n), solution.error
    return kept, np.abs((a * kept).sum(axis=1) - z)


def greedy(candidates: Array, targets: Array, eps: float) -> Array:
    """Digits of each target from random candidates: of the target's sign, from the largest down, every one that is no
    larger than what is left, until at most eps is left. Candidates (B, n), targets (B,); kept (B, n), bool.

    With magnitudes drawn from 1/|w| the next digit is likely to lie within a fixed factor of what is left, so that the
    rest falls geometrically and about log(1/eps) candidates suffice (Orseau et al., NeurIPS 2020).
    """
    a = np.asarray(candidates, float) * np.sign(np.asarray(targets, float))[:, None]
    order = np.argsort(-a, axis=1, kind="stable")
    ranked = np.take_along_axis(a, order, axis=1)
    left = np.abs(np.asarray(targets, float))
    taken = np.zeros(a.shape, bool)
    for j in range(a.shape[1]):
        digit = ranked[:, j]
        taken[:, j] = (digit > 0) & (digit <= left) & (left > eps)
        left = left - np.where(taken[:, j], digit, 0.0)
    kept = np.zeros(a.shape, bool)
    np.put_along_axis(kept, order, taken, axis=1)
    return kept
