"""How often verdicts are wrong, and how often true claims are found, as `evidence.claims` states: simulated data."""

import math

import numpy as np
import pytest
from scipy.stats import binom, nct, t

from lthlib.evidence.claims import Claim, decide, judge, ledger, verdict

RUNS = 600


def claim(kind="greater", margin=None, measure="mean", name="T-1"):
    return Claim(name, "A sentence.", "[paper]", "paired difference", kind, margin, measure)


def share(claim, samples, wanted):
    verdicts = [verdict(judge(claim, sample)) for sample in samples]
    return sum(outcome in wanted for outcome in verdicts) / len(verdicts)


def at_most(rate):
    """What a share of RUNS exceeds once in 2000 times, where its expectation is `rate`."""
    return binom.ppf(0.9995, RUNS, rate) / RUNS


def power(effect, n, level=0.05):
    """Of the two-sided t test, in the right direction (noncentral t distribution)."""
    return 1 - nct.cdf(t.ppf(1 - level / 2, n - 1), n - 1, effect * math.sqrt(n))


DECIDED = ("supported", "not supported")


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize(("kind", "margin", "mean"), [("greater", 0.0, 0.0), ("equivalent", 2.0, 2.0)])
def test_false_verdicts_are_at_most_5_percent_whatever_n(kind, margin, mean, n):
    samples = np.random.default_rng(n).normal(mean, 0.5, (RUNS, n))
    assert share(claim(kind, margin), samples, DECIDED) <= at_most(0.05)


def test_heavy_tails_keep_the_5_percent_and_skew_does_not():
    rng = np.random.default_rng(0)
    assert share(claim(), rng.standard_t(3, (RUNS, 5)), DECIDED) <= at_most(0.05)
    skewed = share(claim(), rng.exponential(1, (RUNS, 5)) - 1, DECIDED)
    assert at_most(0.05) < skewed <= at_most(0.13)


def test_the_stated_power_is_that_of_the_t_test():
    stated = {(1.3, 5, 0.05): 0.59, (2, 5, 0.05): 0.91, (2, 3, 0.05): 0.47, (4, 3, 0.05): 0.91}
    stated |= {(2, 5, 0.005): 0.37, (4, 5, 0.005): 0.95}
    assert {key: round(float(power(*key)), 2) for key in stated} == stated


@pytest.mark.parametrize(("effect", "n"), [(2.0, 3), (4.0, 3), (1.3, 5), (2.0, 5)])
def test_a_true_claim_is_found_as_often_as_stated(effect, n):
    samples = np.random.default_rng(n).normal(effect, 1, (RUNS, n))
    assert share(claim(), samples, ["supported"]) == pytest.approx(power(effect, n), abs=0.06)
    assert share(claim("less"), samples, ["not supported"]) == pytest.approx(power(effect, n), abs=0.06)
    assert share(claim("non-inferior", effect), samples - effect, ["supported"]) == pytest.approx(
        power(effect, n), abs=0.06
    )


@pytest.mark.parametrize(("effect", "stated"), [(2.0, 0.37), (4.0, 0.95)])
def test_power_of_the_one_true_claim_among_ten(effect, stated):
    rng, runs = np.random.default_rng(1), 300
    claims = [claim(name=f"T-{number}") for number in range(10)]
    supported = 0
    for _ in range(runs):
        samples = rng.normal(0, 1, (10, 5)) + effect * np.eye(10)[:, :1]
        records = ledger(map(decide, claims, samples), "digits", "quick")
        supported += records[0]["verdict"] == "supported"
    assert supported / runs == pytest.approx(stated, abs=0.1)


def test_power_of_ratios_and_rates():
    rng = np.random.default_rng(2)
    ratios = np.exp(rng.normal(0.4, 0.2, (RUNS, 5)))  # an effect of 2 standard deviations of the logarithm
    assert share(claim("greater", 1.0, "ratio"), ratios, ["supported"]) == pytest.approx(power(2.0, 5), abs=0.06)
    trials, truth, margin = 20, 0.95, 0.5
    exact = sum(
        binom.pmf(hits, trials, truth)
        for hits in range(trials + 1)
        if verdict(judge(claim("greater", margin, "rate"), [1] * hits + [0] * (trials - hits))) == "supported"
    )
    assert exact > 0.99
