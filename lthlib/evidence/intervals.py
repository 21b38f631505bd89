"""Estimates with 95 % intervals, and pairs: what a table of replicates says before it is asked a question."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from lthlib.errors import InputError, unknown
from lthlib.randomness import stream_seed

LEVEL = 0.05


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval from `n` replicates; limits are NaN where n is too small for one."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"


def mean_interval(
    values: Iterable[float] | np.ndarray,
    method: Literal["t", "percentile", "bca"] = "t",
    *,
    seed: int = 0,
    resamples: int = 4999,
) -> Interval:
    """The mean of 1-D `values` with its 95 % interval: Student's t, or the percentile or BCa bootstrap.

    NaN counts as a missing replicate. Below two replicates the limits are NaN; where all replicates are equal they
    equal the estimate. The bootstrap (Efron & Tibshirani 1993, ch. 14) is too narrow below about 15 replicates: use
    "t" for seeds. Raises InputError for an unknown method.
    """
    if method not in ("t", "percentile", "bca"):
        raise unknown("interval", method, ("t", "percentile", "bca"))
    sample = replicates(values)
    n, estimate = len(sample), mean(sample)
    if n < 2 or not math.isfinite(estimate):
        return Interval(estimate, math.nan, math.nan, n)
    if constant(sample):
        return Interval(estimate, estimate, estimate, n)
    if method == "t":
        half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * standard_error(sample)
        return Interval(estimate, estimate - half, estimate + half, n)
    from scipy.stats import bootstrap  # a second of start-up

    limits = bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        confidence_level=1 - LEVEL,
        method="BCa" if method == "bca" else "percentile",
        rng=np.random.default_rng(stream_seed(seed, "bootstrap")),
    ).confidence_interval
    return Interval(estimate, float(limits.low), float(limits.high), n)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray) -> Interval:
    """The geometric mean of the paired ratios of two 1-D arrays of positive numbers, with the 95 % t interval
    of their logarithms. Raises InputError for numbers that are not positive or arrays of different length."""
    top, bottom = np.asarray(numerator, float), np.asarray(denominator, float)
    if top.shape != bottom.shape:
        raise InputError(f"ratios need pairs: got {top.shape} over {bottom.shape}")
    return exponential(mean_interval(log(top) - log(bottom)))


def rate_interval(successes: int, trials: int, method: Literal["wilson", "exact"] = "wilson") -> Interval:
    """The share of successes with its 95 % interval: Wilson (1927) for figures, exact (Clopper & Pearson 1934) as
    tests use it. Raises InputError unless 0 <= successes <= trials."""
    if not 0 <= successes <= trials:
        raise InputError(f"{successes} successes in {trials} trials: successes lie between 0 and the trials")
    if trials == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    from scipy.stats import binomtest

    limits = binomtest(successes, trials).proportion_ci(1 - LEVEL, method=method)
    return Interval(successes / trials, float(limits.low), float(limits.high), trials)


@dataclass(frozen=True)
class Pairs:
    """Two arms paired: `table` has one row a pair (the pairing columns, both arms, "difference" or "ratio"), `values`
    one number a replicate (the mean over its pairs), `dropped` counts the rows that had no partner."""

    table: pd.DataFrame
    values: np.ndarray
    dropped: int
    ratio: bool = False

    @property
    def interval(self) -> Interval:
        """The mean difference (geometric mean ratio) with its 95 % t interval over replicates."""
        return exponential(mean_interval(np.log(self.values))) if self.ratio else mean_interval(self.values)


def paired_difference(
    table: pd.DataFrame,
    value: str,
    arm: str,
    arms: tuple[object, object],
    pair_on: Sequence[str] = ("seed",),
    *,
    replicate: str = "seed",
    ratio: bool = False,
) -> Pairs:
    """Column `value` of arm `arms[0]` minus that of `arms[1]` (`ratio`: divided by it), paired on `pair_on`.

    Two rows of one replicate are not two samples, so that `values` averages the pairs of each replicate (ratios:
    geometrically). Rows whose value is missing, or which find no partner, are dropped and counted. Raises InputError
    for unknown columns or arms, or where several rows of an arm share the pairing columns.
    """
    on = list(dict.fromkeys([*pair_on, replicate]))
    for column in (value, arm, *on):
        if column not in table.columns:
            raise unknown("column", column, map(str, table.columns))
    sides = []
    for name in arms:
        rows = table.loc[table[arm] == name, [*on, value]]
        if rows.empty:
            raise unknown(arm, name, map(str, table[arm].dropna().unique()))
        if rows.duplicated(on).any():
            first = rows.loc[rows.duplicated(on), on].iloc[0].to_dict()
            raise InputError(f"{arm} {name!r} has several rows at {first}: pair on the column that tells them apart")
        sides.append(rows.dropna())
    lost = sum(int((table[arm] == name).sum()) for name in arms)
    merged = sides[0].merge(sides[1], on=on, suffixes=("_0", "_1"), sort=True)
    left, right = (merged[f"{value}_{side}"].to_numpy(float) for side in (0, 1))
    difference = log(left) - log(right) if ratio else left - right
    if not ratio:
        # Equal to the last bit but one is equal: rounding must not pass for a tiny, perfectly consistent difference.
        difference[np.abs(difference) <= 1e-13 * np.maximum(np.abs(left), np.abs(right))] = 0.0
    pairs = merged[on].assign(**{str(arms[0]): left, str(arms[1]): right, "difference": difference})
    values = pairs.groupby(replicate, sort=True)["difference"].mean().to_numpy(float)
    if ratio:
        pairs = pairs.assign(difference=np.exp(difference)).rename(columns={"difference": "ratio"})
        values = np.exp(values)
    return Pairs(pairs, values, lost - 2 * len(merged), ratio)


def replicates(values: Iterable[float] | np.ndarray) -> np.ndarray:
    """A sample as a 1-D float64 array without its NaN entries; InputError for any other number of dimensions."""
    sample = np.asarray(values if isinstance(values, np.ndarray) else list(values), float)
    if sample.ndim != 1:
        raise InputError(f"a sample is one number a replicate (1-D), not an array of shape {sample.shape}")
    return sample[~np.isnan(sample)]


def mean(sample: np.ndarray) -> float:
    """The mean of a 1-D array; NaN where it is empty or holds an infinity."""
    return float(sample.mean()) if len(sample) and np.isfinite(sample).all() else math.nan


def constant(sample: np.ndarray, scale: float = 0.0) -> bool:
    """Whether all entries of a finite sample are equal, up to rounding at the size of its entries or of `scale`."""
    return float(np.ptp(sample)) <= 1e-12 * max(float(np.abs(sample).max()), scale)


def standard_error(sample: np.ndarray) -> float:
    """The standard error of the mean of two or more replicates."""
    return float(sample.std(ddof=1)) / math.sqrt(len(sample))


def log(values: np.ndarray) -> np.ndarray:
    """Natural logarithms; InputError where a number is not positive."""
    if (values <= 0).any():
        raise InputError(f"a ratio needs positive numbers, not {float(values.min())}")
    return np.log(values)


def exponential(interval: Interval) -> Interval:
    """The interval of logarithms brought back to ratios."""
    low, high = math.exp(interval.low), math.exp(interval.high)
    return Interval(math.exp(interval.estimate), low, high, interval.n)
