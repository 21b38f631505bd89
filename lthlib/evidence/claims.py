"""Claims: stated before their data are looked at, decided from replicates, corrected within a notebook.

Every test here is read off a two-sided 95 % interval: "supported" means that the whole interval lies where the claim
says, "not supported" that the whole interval lies outside, anything else is "inconclusive". Each direction therefore
errs at most 2.5 % of the time, both together 5 %; the p-values are doubled one-sided ones, so that p < 0.05 says the
same as the interval, and Holm's correction over a notebook's claims can be applied to them.

Power, the probability that a true claim is found supported, with the effect in standard deviations of a replicate's
difference: for one claim at n = 5, 0.59 at an effect of 1.3 and 0.91 at 2; at n = 3, 0.47 at 2 and 0.91 at 4; for the
first of ten claims of a notebook at n = 5, 0.37 at 2 and 0.95 at 4. So `inconclusive` at few replicates says little.
The tests take replicates for normal: with heavy tails they keep to their 5 %, but where replicates are as skewed as
exponential ones they err about 12 % of the time.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.special import stdtr

from lthlib.errors import InputError, unknown
from lthlib.evidence.intervals import (
    LEVEL,
    Interval,
    Pairs,
    constant,
    exponential,
    log,
    mean_interval,
    paired_difference,
    rate_interval,
    ratio_interval,
    replicates,
    standard_error,
)
from lthlib.randomness import stream_seed

# What a notebook needs, the intervals included.
__all__ = [
    "Claim", "Decision", "Interval", "Judgement", "Pairs", "decide", "every", "holm", "judge", "ledger",
    "mean_interval", "paired_difference", "part_table", "rank_correlation", "rate_interval", "ratio_interval", "some",
    "verdict",
]  # fmt: skip

Kind = Literal["greater", "less", "non-inferior", "not-greater", "equivalent", "exact"]
Measure = Literal["mean", "ratio", "rate"]
Combine = Literal["every", "some"]
Verdict = Literal["supported", "not supported", "inconclusive"]


@dataclass(frozen=True)
class Claim:
    """A claim in one sentence with the rule that will decide it, written down before the data are looked at.

    `kind` and `margin` say where the measured number must lie:
    greater: > margin; less: < margin; non-inferior: > -margin; not-greater: < +margin; equivalent: within +-margin;
    exact: the absolute value is at most margin in every replicate (identities, up to rounding).
    `measure` says what a sample holds: "mean", numbers (mostly paired differences), one a replicate; "ratio", positive
    ratios, judged by their geometric mean, with the margin a ratio too (1.1 = 10 %; the lower limit is its inverse);
    "rate", successes (0 or 1), judged by the exact binomial test.
    `combine` says how several samples (per basis, density, ...) make one claim: all must hold, or at least one.
    Raises InputError for an unknown kind, measure or combination, or a margin that the kind cannot have.
    """

    id: str
    claim: str
    source: str
    statistic: str
    kind: Kind
    margin: float | None = None
    measure: Measure = "mean"
    combine: Combine = "every"

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("kind of claim", self.kind, get_args(Kind)),
            ("measure", self.measure, get_args(Measure)),
            ("combination", self.combine, get_args(Combine)),
        ):
            if value not in valid:
                raise unknown(name, value, valid)
        if not self.id or not self.claim:
            raise InputError(f"a claim needs an id and a sentence, not {self.id!r} and {self.claim!r}")
        if self.measure != "mean" and self.kind == "exact":
            raise InputError(f"claim {self.id}: an exact claim is about plain numbers, not a {self.measure}")
        if self.measure == "rate" and self.kind not in ("greater", "less"):
            raise InputError(f"claim {self.id}: a rate can be 'greater' or 'less' than its margin, not {self.kind!r}")
        if self.margin is None:
            if self.kind not in ("greater", "less") or self.measure == "rate":
                raise InputError(f"claim {self.id}: {self.kind!r} on a {self.measure} needs a margin stated beforehand")
            object.__setattr__(self, "margin", 1.0 if self.measure == "ratio" else 0.0)
        self.bounds()

    def bounds(self) -> tuple[float, float]:
        """The open interval (low, high) in which the claim places the measured number (logarithms for ratios)."""
        assert self.margin is not None
        margin = float(self.margin)
        if not math.isfinite(margin) or (self.measure == "ratio" and margin <= 0):
            raise InputError(f"claim {self.id}: margin {margin} is no valid margin for a {self.measure}")
        if self.measure == "rate" and not 0 <= margin <= 1:
            raise InputError(f"claim {self.id}: the margin of a rate lies in [0, 1], not at {margin}")
        margin = math.log(margin) if self.measure == "ratio" else margin
        if self.kind == "greater":
            return margin, math.inf
        if self.kind == "less":
            return -math.inf, margin
        if margin < 0 or (margin == 0 and self.kind == "equivalent"):
            raise InputError(f"claim {self.id}: {self.kind!r} needs a margin above no difference, not {self.margin}")
        low = -margin if self.kind in ("non-inferior", "equivalent") else -math.inf
        high = margin if self.kind in ("not-greater", "equivalent", "exact") else math.inf
        return low, high


@dataclass(frozen=True)
class Judgement:
    """What one test found: the interval, and doubled one-sided p-values for the claim and for its opposite."""

    interval: Interval
    p: float
    p_against: float
    exact: bool = False


@dataclass(frozen=True)
class Decision:
    """A claim with the outcome that decides it, and the outcomes of its parts, by name, where it has several."""

    claim: Claim
    outcome: Judgement
    parts: Mapping[str, Judgement] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The verdict of this claim taken alone; `ledger` corrects for the other claims of the notebook."""
        return verdict(self.outcome)


def judge(claim: Claim, values: Iterable[float] | np.ndarray) -> Judgement:
    """Tests one 1-D sample (one number a replicate) against the claim; fewer than two replicates decide nothing.

    mean, ratio: t tests; "equivalent" by two one-sided tests (Schuirmann 1987). rate: exact binomial. exact: every
    replicate within the bound (the interval is then the observed range). NaN is a missing replicate; an infinite
    value decides nothing. Where all replicates are equal, the t statistic does not exist and the sign test stands in
    (p = 2^-n). Raises InputError for rates that are not 0 or 1 and ratios that are not positive.
    """
    sample = replicates(values)
    n = len(sample)
    low, high = claim.bounds()
    if claim.measure == "ratio":
        sample = log(sample)
    if claim.measure == "rate":
        return _rate_test(sample, low, high)
    if claim.kind == "exact":
        sizes = np.abs(sample)
        holds = n >= 2 and bool((sizes <= high).all())
        fails = n >= 2 and not holds
        interval = Interval(float(sizes.max()), float(sizes.min()), float(sizes.max()), n) if n else mean_interval([])
        return Judgement(interval, 0.0 if holds else 1.0, 0.0 if fails else 1.0, exact=True)
    interval = mean_interval(sample)
    above = _below_p(low - interval.estimate, sample)  # p of "the mean is above low"
    below = _below_p(interval.estimate - high, sample)  # p of "the mean is below high"
    under = _below_p(interval.estimate - low, sample)
    over = _below_p(high - interval.estimate, sample)
    if claim.measure == "ratio":
        interval = exponential(interval)
    return Judgement(interval, _doubled(max(above, below)), _doubled(min(under, over)))


def _below_p(excess: float, sample: np.ndarray) -> float:
    """One-sided p of "the mean lies on the negative side", where the estimate lies there by -excess."""
    n = len(sample)
    if excess == -math.inf:
        return 0.0
    if n < 2 or not math.isfinite(excess):
        return 1.0
    if constant(sample, abs(excess)):
        size = max(abs(excess), float(np.abs(sample).max()))
        return 0.5 ** (n + 1) if excess < -1e-12 * size else 1.0
    return float(stdtr(n - 1, excess / standard_error(sample)))


def _rate_test(sample: np.ndarray, low: float, high: float) -> Judgement:
    if not np.isin(sample, (0.0, 1.0)).all():
        raise InputError("a rate is measured by successes, 0 or 1 a replicate")
    n, successes = len(sample), int(sample.sum())
    interval = rate_interval(successes, n, "exact")
    if n < 2:
        return Judgement(interval, 1.0, 1.0)
    from scipy.stats import binomtest  # a second of start-up

    more, fewer = (
        _doubled(float(binomtest(successes, n, low if high == math.inf else high, alternative=side).pvalue))
        for side in ("greater", "less")
    )
    return Judgement(interval, more, fewer) if high == math.inf else Judgement(interval, fewer, more)


def rank_correlation(
    x: np.ndarray, y: np.ndarray, kind: Literal["greater", "less"] = "greater", *, seed: int = 0, resamples: int = 1999
) -> Judgement:
    """Spearman's correlation between items (bases, depth pairs, ...) of two (replicates, items) arrays' column means.

    The interval is the percentile bootstrap over replicates: it speaks of these items. The p-value is the larger of
    the bootstrap's and of a permutation of the items (exact up to 7 items), so that a claim about such items in
    general needs both. Raises InputError unless the arrays share a shape with at least three items.
    """
    if kind not in ("greater", "less"):
        raise unknown("kind of correlation claim", kind, ("greater", "less"))
    left, right = np.asarray(x, float), np.asarray(y, float)
    if left.ndim != 2 or left.shape != right.shape or left.shape[1] < 3:
        raise InputError(
            f"a rank correlation needs two (replicates, items) arrays, 3 items or more: {left.shape}, {right.shape}"
        )
    whole = ~(np.isnan(left).any(1) | np.isnan(right).any(1))
    left, right = left[whole], right[whole]
    n, items = left.shape
    if n == 0:
        return Judgement(mean_interval([]), 1.0, 1.0)
    estimate = float(_spearman(left.mean(0)[None], right.mean(0)[None])[0])
    if n < 2:
        return Judgement(Interval(estimate, math.nan, math.nan, n), 1.0, 1.0)
    rng = np.random.default_rng(stream_seed(seed, "rank correlation"))
    drawn = rng.integers(n, size=(resamples, n))
    draws = _spearman(left[drawn].mean(1), right[drawn].mean(1))
    if items <= 7:
        orders, extra = np.array(list(permutations(range(items)))), 0
    else:
        orders, extra = rng.permuted(np.tile(np.arange(items), (resamples, 1)), axis=1), 1
    null = _spearman(np.broadcast_to(left.mean(0), orders.shape), right.mean(0)[orders])

    def p(sign: int) -> float:
        beyond = (1 + int((sign * draws <= 0).sum())) / (resamples + 1)
        as_large = (extra + int((sign * null >= sign * estimate - 1e-12).sum())) / (extra + len(null))
        return _doubled(max(beyond, as_large))

    low, high = (float(limit) for limit in np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2)))
    sign = 1 if kind == "greater" else -1
    return Judgement(Interval(estimate, low, high, n), p(sign), p(-sign))


def every(outcomes: Iterable[Judgement]) -> Judgement:
    """The claim that all parts hold (intersection-union, Berger 1982): p is the largest. Its opposite, that some part
    fails, takes the smallest times their number (Bonferroni). The interval is that of the weakest part."""
    parts = _parts(outcomes)
    weakest = max(parts, key=lambda part: (part.p, -part.p_against))
    against = min(1.0, len(parts) * min(part.p_against for part in parts))
    if against < LEVEL:
        weakest = min(parts, key=lambda part: part.p_against)
    return Judgement(weakest.interval, max(part.p for part in parts), against, all(part.exact for part in parts))


def some(outcomes: Iterable[Judgement]) -> Judgement:
    """The claim that at least one part holds: p is the smallest times their number (Bonferroni, which is what Holm
    gives for the smallest); the opposite, that none holds, takes the largest. The interval is that of the best part."""
    parts = _parts(outcomes)
    best = min(parts, key=lambda part: (part.p, -part.p_against))
    p = min(1.0, len(parts) * best.p)
    return Judgement(best.interval, p, max(part.p_against for part in parts), all(part.exact for part in parts))


def _parts(outcomes: Iterable[Judgement]) -> list[Judgement]:
    parts = list(outcomes)
    if not parts:
        raise InputError("a claim needs at least one sample, not none")
    return parts


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values of one family, in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def verdict(judgement: Judgement) -> Verdict:
    """ "supported" below p = 0.05, else "not supported" where the opposite is, else "inconclusive"."""
    if judgement.p < LEVEL:
        return "supported"
    return "not supported" if judgement.p_against < LEVEL else "inconclusive"


Evidence = Judgement | Pairs | Iterable[float] | np.ndarray


def decide(claim: Claim, evidence: Evidence | Mapping[Any, Evidence]) -> Decision:
    """Tests a claim on a sample, on a ready-made test, or on several of either by name (joined by `claim.combine`)."""

    def tested(part: Evidence) -> Judgement:
        if isinstance(part, Judgement):
            return part
        if isinstance(part, Pairs):
            if part.ratio != (claim.measure == "ratio"):
                pairs = "ratios" if part.ratio else "differences"
                raise InputError(f"claim {claim.id} measures a {claim.measure}, but its pairs are {pairs}")
            return judge(claim, part.values)
        return judge(claim, part)

    if not isinstance(evidence, Mapping):
        return Decision(claim, tested(evidence))
    parts = {str(name): tested(part) for name, part in evidence.items()}
    return Decision(claim, (every if claim.combine == "every" else some)(parts.values()), parts)


def part_table(decision: Decision) -> pd.DataFrame:
    """One row a part of a decided claim: part, estimate, low, high, n, p (Holm within the claim), verdict."""
    parts = decision.parts or {decision.claim.id: decision.outcome}
    rows = zip(parts, _corrected(list(parts.values())), strict=True)
    return pd.DataFrame(
        [{"part": name, **vars(part.interval), "p": part.p, "verdict": verdict(part)} for name, part in rows]
    )


def ledger(decisions: Iterable[Decision], dataset: str, profile: str) -> list[dict[str, Any]]:
    """The records of `claims.json`, in the order given, with Holm's correction over the notebook's claims.

    Supporting and opposing p-values are two families; exact claims are no statistical tests and count in neither. The
    intervals stay the plain 95 % ones. A number that does not exist is None. Raises InputError for an id given twice.
    """
    decided = list(decisions)
    name, times = next(iter(Counter(decision.claim.id for decision in decided).most_common(1)), ("", 0))
    if times > 1:
        raise InputError(f"claim {name!r} is decided twice in one notebook")
    records = []
    for decision, corrected in zip(decided, _corrected([decision.outcome for decision in decided]), strict=True):
        claim, interval = decision.claim, corrected.interval
        records.append(
            {name: getattr(claim, name) for name in ("id", "claim", "source", "statistic")}
            | {
                "estimate": _plain(interval.estimate),
                "ci": [_plain(interval.low), _plain(interval.high)],
                "margin": _plain(claim.margin),
                "n": interval.n,
                "verdict": verdict(corrected),
                "dataset": dataset,
                "profile": profile,
            }
        )
    return records


def _corrected(outcomes: list[Judgement]) -> list[Judgement]:
    family = [index for index, outcome in enumerate(outcomes) if not outcome.exact]
    p, against = (holm([getattr(outcomes[index], name) for index in family]) for name in ("p", "p_against"))
    corrected = list(outcomes)
    for place, index in enumerate(family):
        corrected[index] = replace(outcomes[index], p=float(p[place]), p_against=float(against[place]))
    return corrected


def _doubled(p: float) -> float:
    return min(1.0, 2 * p)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row; 0 where a row is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (x, y))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def _plain(number: float | None) -> float | None:
    return float(number) if number is not None and math.isfinite(number) else None
