import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, nct, t, ttest_1samp

from lthlib.errors import InputError
from lthlib.evidence.claims import (
    Claim,
    Judgement,
    decide,
    every,
    holm,
    judge,
    ledger,
    mean_interval,
    paired_difference,
    part_table,
    rank_correlation,
    rate_interval,
    ratio_interval,
    some,
    verdict,
)

FIELDS = ["id", "claim", "source", "statistic", "estimate", "ci", "margin", "n", "verdict", "dataset", "profile"]


def claim(kind, margin=None, measure="mean", combine="every", id="T-1"):
    return Claim(id, "A sentence.", "[paper]", "paired difference", kind, margin, measure, combine)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_t_interval_of_a_known_sample():
    found = mean_interval([1.0, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(2.5 / 5)  # t(4, 0.975) from the table, standard error by hand
    assert (found.estimate, found.n) == (3.0, 5)
    assert found.low == pytest.approx(3 - half, abs=1e-6)
    assert found.high == pytest.approx(3 + half, abs=1e-6)


def test_t_factors_at_three_and_five_replicates():
    for n, factor in ((3, 4.3026527), (5, 2.7764451)):
        sample = np.linspace(-1, 1, n)
        assert mean_interval(sample).high == pytest.approx(factor * sample.std(ddof=1) / math.sqrt(n), abs=1e-6)


@pytest.mark.parametrize("method", ["t", "percentile", "bca"])
def test_small_and_constant_samples_have_sensible_intervals(method):
    nothing, one, equal = (mean_interval(sample, method) for sample in ([], [2.5], [2.5] * 4))
    assert nothing.n == 0 and math.isnan(nothing.estimate)
    assert one.estimate == 2.5 and math.isnan(one.low) and math.isnan(one.high)
    assert (equal.low, equal.estimate, equal.high) == (2.5, 2.5, 2.5)


def test_nan_is_a_missing_replicate():
    assert mean_interval([1.0, math.nan, 3.0]) == mean_interval([1.0, 3.0])


def test_bootstrap_depends_on_its_seed_alone():
    sample = np.random.default_rng(3).exponential(size=30)
    first, again, other = (mean_interval(sample, "bca", seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert other.low == pytest.approx(first.low, abs=0.05)


def covered(intervals, truth):
    return sum(one.low <= truth <= one.high for one in intervals)


def test_t_interval_covers_95_percent():
    rng = np.random.default_rng(0)
    hits = covered([mean_interval(rng.normal(1, 2, 5)) for _ in range(2000)], 1)
    assert binom.ppf(0.0005, 2000, 0.95) <= hits <= binom.ppf(0.9995, 2000, 0.95)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_interval_covers_nearly_95_percent_at_40_replicates(method):
    rng = np.random.default_rng(1)
    hits = covered([mean_interval(rng.normal(0, 1, 40), method, resamples=499) for _ in range(250)], 0)
    assert 0.90 <= hits / 250 <= 0.98


def test_wilson_interval_of_a_known_case():
    found = rate_interval(7, 10)  # centre and half-width by Wilson's formula with z = 1.959964
    assert (found.low, found.high) == pytest.approx((0.396771, 0.892209), abs=1e-5)
    assert rate_interval(0, 10).low == 0 and rate_interval(10, 10).high == pytest.approx(1)
    assert math.isnan(rate_interval(0, 0).estimate)


def test_ratio_interval_is_symmetric_in_logarithms():
    found = ratio_interval(np.array([2.0, 8.0]), np.array([1.0, 1.0]))
    assert found.estimate == pytest.approx(4)
    assert found.low * found.high == pytest.approx(16)


def test_bad_input_to_intervals():
    with pytest.raises(InputError, match=r"unknown interval 'bootstrap'.*percentile"):
        mean_interval([1.0, 2.0], "bootstrap")
    with pytest.raises(InputError, match=r"1-D\), not an array of shape \(2, 2\)"):
        mean_interval(np.ones((2, 2)))
    with pytest.raises(InputError, match="11 successes in 10 trials"):
        rate_interval(11, 10)
    with pytest.raises(InputError, match="positive numbers, not 0"):
        ratio_interval(np.array([1.0, 0.0]), np.array([1.0, 1.0]))


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    rows = [
        {"seed": seed, "density": density, "basis": basis, "accuracy": 90 + seed + 5 * density + (basis == "dct")}
        for seed in range(3)
        for density in (0.1, 0.5)
        for basis in ("canonical", "dct")
    ]
    return pd.DataFrame(rows)


def test_pairs_are_averaged_within_a_replicate(table):
    pairs = paired_difference(table, "accuracy", "basis", ("dct", "canonical"), ["seed", "density"])
    assert len(pairs.table) == 6 and pairs.dropped == 0
    assert list(pairs.table) == ["seed", "density", "dct", "canonical", "difference"]
    assert pairs.values == pytest.approx([1, 1, 1])
    assert pairs.interval.n == 3


def test_rows_without_a_partner_are_dropped_and_counted(table):
    table.loc[0, "accuracy"] = math.nan
    pairs = paired_difference(table.drop(index=5), "accuracy", "basis", ("dct", "canonical"), ["density"])
    assert (len(pairs.table), pairs.dropped) == (4, 3)


def test_differences_of_the_size_of_rounding_are_zero():
    table = pd.DataFrame({"arm": ["a", "b"] * 2, "seed": [0, 0, 1, 1], "x": [0.1 + 0.2, 0.3] * 2})
    assert list(paired_difference(table, "x", "arm", ("a", "b")).values) == [0, 0]


def test_paired_ratios_are_geometric(table):
    table["accuracy"] = np.where(table.basis == "dct", 2.0, 1.0) * np.where(table.density > 0.2, 1, 4)
    pairs = paired_difference(table, "accuracy", "basis", ("dct", "canonical"), ["density"], ratio=True)
    assert list(pairs.values) == pytest.approx([2, 2, 2]) and "ratio" in pairs.table
    assert pairs.interval.estimate == pytest.approx(2)
    assert decide(claim("greater", 1.5, "ratio"), pairs).outcome.interval.estimate == pytest.approx(2)
    with pytest.raises(InputError, match="T-1 measures a mean, but its pairs are ratios"):
        decide(claim("greater"), pairs)


def test_bad_input_to_pairs(table):
    with pytest.raises(InputError, match=r"unknown column 'acuracy', did you mean 'accuracy'"):
        paired_difference(table, "acuracy", "basis", ("dct", "canonical"))
    with pytest.raises(InputError, match=r"unknown basis 'haar'.*canonical, dct"):
        paired_difference(table, "accuracy", "basis", ("haar", "canonical"))
    with pytest.raises(InputError, match=r"several rows at \{'seed': 0\}"):
        paired_difference(table, "accuracy", "basis", ("dct", "canonical"))


# --- tests and verdicts ----------------------------------------------------------------------------------------------


def test_p_value_is_the_two_sided_t_test():
    sample = np.random.default_rng(0).normal(0.8, 1, 9)
    assert judge(claim("greater", 0.1), sample).p == pytest.approx(ttest_1samp(sample, 0.1).pvalue)


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=8),
    st.sampled_from(["greater", "less", "non-inferior", "not-greater", "equivalent"]),
    st.floats(0.01, 2),
)
def test_verdict_says_what_the_interval_says(values, kind, margin):
    if np.ptp(values) < 1e-3:
        return
    one = claim(kind, margin)
    found = judge(one, values)
    low, high = one.bounds()
    inside = low < found.interval.low and found.interval.high < high
    outside = found.interval.high < low or found.interval.low > high
    assert verdict(found) == ("supported" if inside else "not supported" if outside else "inconclusive")


KINDS = [
    ("greater", 0.0, [0.0]),
    ("less", 0.5, [0.5]),
    ("non-inferior", 0.3, [-0.3]),
    ("not-greater", 0.3, [0.3]),
    ("equivalent", 1.0, [-1.0, 1.0]),
]


@pytest.mark.parametrize(("kind", "margin", "means"), KINDS)
def test_false_verdicts_at_the_boundary_are_at_most_5_percent(kind, margin, means):
    one, rng, runs = claim(kind, margin), np.random.default_rng(5), 1500
    for mean in means:
        verdicts = [decide(one, rng.normal(mean, 0.4, 5)).verdict for _ in range(runs)]
        wrong = runs - verdicts.count("inconclusive")  # the truth lies on the boundary: any verdict is a false one
        assert wrong <= binom.ppf(0.9995, runs, 0.05)
        assert verdicts.count("supported") <= binom.ppf(0.9995, runs, 0.025)


def test_false_verdicts_of_ratios_are_at_most_5_percent():
    rng, runs, one = np.random.default_rng(6), 1500, claim("not-greater", 1.1, "ratio")
    wrong = sum(decide(one, 1.1 * np.exp(rng.normal(0, 0.2, 6))).verdict != "inconclusive" for _ in range(runs))
    assert wrong <= binom.ppf(0.9995, runs, 0.05)


def test_false_verdicts_of_rates_are_at_most_5_percent():
    one, trials = claim("greater", 0.8, "rate"), 40
    wrong = sum(
        binom.pmf(hits, trials, 0.8)
        for hits in range(trials + 1)
        if decide(one, [1] * hits + [0] * (trials - hits)).verdict != "inconclusive"
    )
    assert 0 < wrong <= 0.05


def test_power_at_a_stated_effect():
    # Power of the two-sided 5 % t test at n = 5, one direction: 0.59 at an effect of 1.3 standard deviations and
    # 0.91 at 2 (noncentral t distribution); for equivalence at a margin of 3 standard deviations, at no difference.
    rng, runs = np.random.default_rng(7), 1000
    share = {
        effect: sum(decide(claim("greater"), rng.normal(effect, 1, 5)).verdict == "supported" for _ in range(runs))
        / runs
        for effect in (1.3, 2.0)
    }
    assert share[1.3] == pytest.approx(power(1.3, 5), abs=0.05)
    assert share[2.0] == pytest.approx(power(2.0, 5), abs=0.04)
    same = sum(decide(claim("equivalent", 3.0), rng.normal(0, 1, 5)).verdict == "supported" for _ in range(runs)) / runs
    assert same > 0.9


def power(effect, n):
    return 1 - nct.cdf(t.ppf(0.975, n - 1), n - 1, effect * math.sqrt(n))


@pytest.mark.parametrize("kind", ["greater", "less", "non-inferior", "not-greater", "equivalent", "exact"])
@pytest.mark.parametrize("sample", [[], [0.1], [math.nan, 7.0]])
def test_fewer_than_two_replicates_decide_nothing(kind, sample):
    decision = decide(claim(kind, 0.5), sample)
    assert decision.verdict == "inconclusive" and decision.outcome.interval.n == len(sample) - sum(
        map(math.isnan, sample)
    )
    assert decide(claim("greater", 0.5, "rate"), sample[:0]).verdict == "inconclusive"


def test_an_infinite_replicate_decides_nothing():
    (record,) = ledger([decide(claim("greater"), [1.0, 1.1, math.inf])], "digits", "quick")
    assert record["verdict"] == "inconclusive" and record["estimate"] is None and record["ci"] == [None, None]


def test_equal_replicates_are_judged_by_the_sign_test():
    assert decide(claim("greater"), [0.5] * 5).outcome.p == 2**-5
    assert decide(claim("greater"), [0.5] * 5).verdict == "supported"
    assert decide(claim("greater"), [0.5] * 3).verdict == "inconclusive"  # three ties are no evidence yet
    assert decide(claim("greater"), [-0.5] * 5).verdict == "not supported"
    assert decide(claim("greater"), [0.0] * 9).verdict == "inconclusive"  # exactly on the boundary
    assert decide(claim("equivalent", 0.3), [0.0] * 5).verdict == "supported"
    assert decide(claim("equivalent", 0.3), [0.4] * 5).verdict == "not supported"
    assert decide(claim("equivalent", 0.3), [0.1 + 0.2] * 5).verdict == "inconclusive"


def test_exact_claims_are_bounds_on_every_replicate():
    one = claim("exact", 1e-12)
    assert decide(one, [1e-15, -3e-14]).verdict == "supported"
    assert decide(one, [1e-15, -3e-11]).verdict == "not supported"
    assert decide(one, [1e-15, -3e-14]).outcome.interval.estimate == 3e-14


def test_rates_use_the_exact_binomial_test():
    one = claim("greater", 0.5, "rate")
    assert judge(one, [1] * 9 + [0]).p == pytest.approx(2 * 11 / 1024)
    assert decide(claim("less", 0.5, "rate"), [0] * 9 + [1]).verdict == "supported"
    assert decide(one, [0] * 10).verdict == "not supported"
    with pytest.raises(InputError, match="0 or 1 a replicate"):
        judge(one, [0.5, 1])


def test_ratio_margins_are_ratios():
    ratios = np.array([0.98, 1.01, 1.02, 0.99, 1.0])
    assert decide(claim("equivalent", 1.1, "ratio"), ratios).verdict == "supported"
    assert decide(claim("greater", measure="ratio"), 2 * ratios).verdict == "supported"
    assert claim("greater", measure="ratio").margin == 1.0
    interval = judge(claim("greater", measure="ratio"), ratios).interval
    assert interval.low < 1 < interval.high


# --- several parts, several claims -----------------------------------------------------------------------------------


def test_holm_against_an_example_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made monotone: .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert list(holm([])) == [] and list(holm([0.7, 0.9])) == [1, 1]


def outcome(p, against=1.0, estimate=0.0, exact=False):
    return Judgement(mean_interval([estimate, estimate]), p, against, exact)


def test_every_takes_the_weakest_part_and_some_the_best():
    parts = [outcome(0.001, estimate=1), outcome(0.2, 0.9, estimate=2), outcome(0.03, estimate=3)]
    assert (every(parts).p, every(parts).interval.estimate) == (0.2, 2)
    assert (some(parts).p, some(parts).interval.estimate) == (0.003, 1)
    refuted = every([outcome(1.0, 0.01, estimate=-1), outcome(0.001, estimate=1)])
    assert (refuted.p_against, refuted.interval.estimate, verdict(refuted)) == (0.02, -1, "not supported")
    assert verdict(some([outcome(1.0, 0.01), outcome(1.0, 0.3)])) == "inconclusive"
    with pytest.raises(InputError, match="at least one sample"):
        every([])


@pytest.mark.parametrize("combine", ["every", "some"])
def test_combined_claims_err_at_most_5_percent(combine):
    one, rng, runs = claim("greater", combine=combine), np.random.default_rng(8), 600
    wrong = sum(
        decide(one, {part: rng.normal(0, 1, 5) for part in range(4)}).verdict != "inconclusive" for _ in range(runs)
    )
    assert wrong <= binom.ppf(0.9995, runs, 0.05)


def test_a_ledger_of_ten_null_claims_errs_at_most_5_percent():
    rng, runs = np.random.default_rng(9), 300
    claims = [claim("greater", id=f"T-{i}") for i in range(10)]
    wrong = 0
    for _ in range(runs):
        records = ledger([decide(one, rng.normal(0, 1, 5)) for one in claims], "digits", "quick")
        wrong += any(record["verdict"] != "inconclusive" for record in records)
    assert wrong <= binom.ppf(0.9995, runs, 0.05)


def test_ledger_corrects_over_its_claims_and_keeps_their_order():
    sample = np.array([0.9, 1.0, 1.2, 0.2, 0.3])  # p = 0.02 alone
    alone = decide(claim("greater"), sample)
    assert 0.01 < alone.outcome.p < 0.05
    others = [decide(claim("greater", id=f"T-{i}"), [1.0, -1.0, 0.5, -0.4]) for i in (2, 3, 4, 5)]
    identities = [decide(claim("exact", 1.0, id=f"X-{i}"), [2.0, 2.0]) for i in range(5)]
    assert ledger([alone, *identities], "digits", "quick")[0]["verdict"] == "supported"
    records = ledger([*others, alone], "digits", "quick")
    assert [record["id"] for record in records] == ["T-2", "T-3", "T-4", "T-5", "T-1"]
    assert records[-1]["verdict"] == "inconclusive"


def test_ledger_records_have_the_documented_shape_and_are_json():
    decisions = [decide(claim("non-inferior", 0.3), [0.1, 0.0, 0.2]), decide(claim("greater", id="T-2"), [])]
    records = ledger(decisions, "digits", "quick")
    assert all(list(record) == FIELDS for record in records)
    assert records[1]["estimate"] is None and records[1]["ci"] == [None, None] and records[1]["n"] == 0
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    with pytest.raises(InputError, match="'T-1' is decided twice"):
        ledger([decisions[0], decisions[0]], "digits", "quick")


def test_part_table_corrects_within_the_claim():
    decision = decide(claim("greater"), {"dct": [1.0, 1.1, 0.9], "haar": [1.0, -1.0, 0.2]})
    parts = part_table(decision)
    assert list(parts.part) == ["dct", "haar"] and list(parts.verdict) == ["supported", "inconclusive"]
    assert parts.p[0] == pytest.approx(2 * decision.parts["dct"].p)
    assert list(part_table(decide(claim("greater"), [1.0, 2.0])).part) == ["T-1"]


# --- rank correlation ------------------------------------------------------------------------------------------------


def test_rank_correlation_of_items_in_order():
    x = np.arange(6.0) + np.random.default_rng(0).normal(0, 0.05, (5, 6))
    found = rank_correlation(x, np.exp(x))
    assert found.interval.estimate == 1 and verdict(found) == "supported"
    assert found.p == pytest.approx(2 / 720)  # one order of six items in 720
    assert verdict(rank_correlation(x, -x)) == "not supported"
    assert decide(claim("less"), rank_correlation(x, -x, "less")).verdict == "supported"


def test_rank_correlation_of_unrelated_items_errs_at_most_5_percent():
    # Items without relation, measured almost without noise: a bootstrap over seeds alone would be sure of itself.
    rng, runs = np.random.default_rng(2), 200
    wrong = 0
    for _ in range(runs):
        x, y = rng.normal(0, 1, 5), rng.normal(0, 1, 5)
        found = rank_correlation(x + rng.normal(0, 0.01, (5, 5)), y + rng.normal(0, 0.01, (5, 5)), resamples=199)
        wrong += verdict(found) != "inconclusive"
    assert wrong <= binom.ppf(0.9995, runs, 0.05)


def test_rank_correlation_of_little_or_bad_input():
    one = rank_correlation(np.arange(5.0)[None], np.arange(5.0)[None])
    assert one.interval.n == 1 and verdict(one) == "inconclusive"
    assert rank_correlation(np.full((2, 3), math.nan), np.ones((2, 3))).interval.n == 0
    assert verdict(rank_correlation(np.ones((4, 9)), np.ones((4, 9)))) == "inconclusive"
    with pytest.raises(InputError, match="3 items or more"):
        rank_correlation(np.ones((4, 2)), np.ones((4, 2)))
    with pytest.raises(InputError, match="unknown kind of correlation claim 'equivalent'"):
        rank_correlation(np.ones((4, 3)), np.ones((4, 3)), "equivalent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("higher",), "unknown kind of claim 'higher'"),
        (("greater", 0.0, "median"), "unknown measure 'median'"),
        (("greater", 0.0, "mean", "any"), "unknown combination 'any'"),
        (("equivalent",), "needs a margin stated beforehand"),
        (("equivalent", 0.0), "needs a margin above no difference"),
        (("equivalent", 0.9, "ratio"), "needs a margin above no difference, not 0.9"),
        (("greater", math.nan), "no valid margin"),
        (("greater", 1.5, "rate"), r"lies in \[0, 1\]"),
        (("equivalent", 0.5, "rate"), "can be 'greater' or 'less'"),
        (("exact", 1.5, "ratio"), "about plain numbers"),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        claim(*arguments)
