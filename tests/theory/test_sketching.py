"""The linear theory of sketching: every formula against Monte-Carlo or an exact sum over all masks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lthlib.errors import InputError
from lthlib.masks.draws import draws_for
from lthlib.randomness import generator
from lthlib.theory import sketching


@pytest.fixture(scope="module")
def problem():
    """Section 2.6's synthetic case: d = 400, n = 150, w* by gradient descent from a Gaussian w_0."""
    x, y = sketching.synthetic_problem(400, 150, generator(0, "problem"))
    w0 = sketching.initial_weights((400,), 1.0, "gaussian", generator(0, "init"))
    return x, w0, sketching.gradient_descent(x, y, w0, [2000])[0]


def tiny(seed: int, outputs: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, _ = sketching.synthetic_problem(4, 3, generator(seed, "problem"))
    shape = (4, outputs) if outputs else (4,)
    w = torch.randn(shape, generator=generator(seed, "w"), dtype=torch.float64)
    p = torch.rand(shape, generator=generator(seed, "p"), dtype=torch.float64) + 0.1
    return x, w, p / p.sum()


def exact_over_draws(x, w, p, s, *, reweight):
    """Mean error over every sequence of s draws, by its probability."""
    total = 0.0
    for draws in itertools.product(range(p.numel()), repeat=s):
        counts = torch.bincount(torch.tensor(draws), minlength=p.numel()).double().view(p.shape)
        chance = math.prod(float(p.view(-1)[i]) for i in draws)
        mask = torch.where(p > 0, counts / (s * p), 0.0) if reweight else (counts > 0).double()
        total += chance * float(sketching.output_error(x, w, mask))
    return total


def exact_over_subsets(x, w, pi, *, reweight):
    """Mean error over every subset of independently kept entries."""
    total = 0.0
    for kept in itertools.product((False, True), repeat=pi.numel()):
        mask = torch.tensor(kept).view(pi.shape)
        chance = float(torch.where(mask, pi, 1 - pi).prod())
        weighted = torch.where(mask, 1 / pi, 0.0) if reweight else mask
        total += chance * float(sketching.output_error(x, w, weighted)) if chance else 0.0
    return total


# --- the sketch ---


@pytest.mark.parametrize("s", [40, 200])
def test_monte_carlo_meets_the_optimal_error_within_2_percent(problem, s):
    x, w0, _ = problem
    p = sketching.distribution("optimal", x, w0)
    masks = sketching.sketch_masks(p, s, 4000, generator(s, "draws"), reweight=True)
    formula = sketching.expected_error(x, w0, p, s)
    assert float(sketching.output_error(x, w0, masks).mean()) == pytest.approx(formula, rel=0.02)
    least = (sketching.optimal_scale(x, w0) ** 2 - float((x.T @ w0).square().sum())) / s
    assert formula == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("kind", ["magnitude", "gaussian_data", "uniform", "oracle"])
def test_monte_carlo_meets_the_formula_for_every_distribution(problem, kind):
    x, w0, w_star = problem
    p = sketching.defensive_mixture(
        sketching.distribution(kind, x, w0, w_star=w_star, generator=generator(1, "data")), 0.3
    )
    masks = sketching.sketch_masks(p, 100, 4000, generator(1, kind), reweight=True)
    for w in (w0, w_star):
        formula = sketching.expected_error(x, w, p, 100)
        assert float(sketching.output_error(x, w, masks).mean()) == pytest.approx(formula, rel=0.04)
        assert formula <= sketching.defensive_bound(x, w, 100, 0.3)


def test_sketch_mask_has_mean_one_and_at_most_s_entries(problem):
    x, w0, _ = problem
    p = sketching.distribution("optimal", x, w0)
    masks = sketching.sketch_masks(p, 200, 4000, generator(2), reweight=True)
    error = (masks.mean(0) - 1) / (1 / (200 * p) / 4000).sqrt()
    large = p > 1e-4
    assert float(error[large].abs().max()) < 5
    assert float(error[large].square().mean()) == pytest.approx(1, abs=0.3)
    assert int((masks > 0).sum(1).max()) <= 200


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 500), s=st.integers(1, 4), outputs=st.sampled_from([0, 1]), reweight=st.booleans())
def test_replacement_formulas_are_exact(seed, s, outputs, reweight):
    x, w, p = tiny(seed, outputs)
    if seed % 3 == 0:
        p[seed % 4] = 0
        p /= p.sum()
    exact = exact_over_draws(x, w, p, s, reweight=reweight)
    formula = sketching.expected_error if reweight else sketching.merged_error
    assert formula(x, w, p, s) == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_replacement_formulas_are_exact_for_several_outputs():
    x, w, p = tiny(5, 2)
    assert sketching.expected_error(x, w, p, 2) == pytest.approx(exact_over_draws(x, w, p, 2, reweight=True))
    assert sketching.merged_error(x, w, p, 3) == pytest.approx(exact_over_draws(x, w, p, 3, reweight=False))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 500), share=st.floats(0.05, 1))
def test_no_distribution_beats_the_optimal_one(seed, share):
    x, w, p = tiny(seed)
    best = sketching.expected_error(x, w, sketching.distribution("optimal", x, w), 3)
    near = sketching.defensive_mixture(p, share)
    assert best <= sketching.expected_error(x, w, near, 3) * (1 + 1e-12)
    beta = sketching.near_optimality(near, x, w)
    assert 0 < beta <= 1
    assert sketching.expected_error(x, w, near, 3) <= sketching.optimal_scale(x, w) ** 2 / (beta * 3) + 1e-9


@pytest.mark.parametrize(("delta", "share"), [(0.5, 0.0), (0.1, 0.0), (0.1, 1.0)])
def test_probability_bound_holds_on_its_share_of_draws(problem, delta, share):
    x, w0, _ = problem
    p = sketching.defensive_mixture(sketching.distribution("optimal", x, w0), share)
    beta = sketching.near_optimality(p, x, w0)
    bound = sketching.probability_bound(x, w0, 50, delta, beta=beta)
    errors = sketching.output_error(x, w0, sketching.sketch_masks(p, 50, 2000, generator(3), reweight=True))
    assert float((errors <= bound).double().mean()) >= 1 - delta


# --- data independence ---


def test_standardised_features_make_magnitude_optimal(problem):
    x, w0, _ = problem
    z = sketching.prepare(x + 5, "standardised")
    assert sketching.data_independence_factor(z) == pytest.approx(1)
    optimal, magnitude = (sketching.distribution(kind, z, w0) for kind in ("optimal", "magnitude"))
    assert torch.allclose(optimal, magnitude)
    assert sketching.near_optimality(magnitude, z, w0) == pytest.approx(1)


def test_no_data_costs_at_most_kappa(problem):
    x, w0, _ = problem
    magnitude = sketching.distribution("magnitude", x, w0)
    kappa = sketching.data_independence_factor(x)
    assert 1 / kappa <= sketching.near_optimality(magnitude, x, w0) < 1
    assert sketching.expected_error(x, w0, magnitude, 50) <= kappa * sketching.optimal_scale(x, w0) ** 2 / 50


def test_gaussian_data_approaches_magnitude_with_examples():
    w = torch.randn(50, generator=generator(4), dtype=torch.float64)
    magnitude = sketching.distribution("magnitude", torch.ones(50, 2, dtype=torch.float64), w)
    gaps = []
    for examples in (20, 20_000):
        x = torch.ones(50, examples, dtype=torch.float64)
        p = sketching.distribution("gaussian_data", x, w, generator=generator(4, "data"))
        gaps.append(float((p / magnitude - 1).abs().max()))
    assert gaps[1] < 0.03 < gaps[0]


def test_dead_features_are_never_drawn_and_cost_nothing(problem):
    x, w0, _ = problem
    x = x.clone()
    x[:50] = 0
    p = sketching.distribution("optimal", x, w0)
    assert float(p[:50].sum()) == 0
    assert sketching.data_independence_factor(x) == math.inf
    assert math.isfinite(sketching.expected_error(x, w0, p, 10))
    assert torch.equal(sketching.prepare(x + 0.3, "standardised")[:50], torch.zeros_like(x[:50]))


# --- the end of training ---


def test_trained_error_bounds_hold(problem):
    x, w0, w_star = problem
    p, scale = sketching.distribution("optimal", x, w0), sketching.optimal_scale(x, w0)
    error = sketching.expected_error(x, w_star, p, 60)
    # Section 2.4's formula, written out
    spread = (torch.linalg.vector_norm(x, dim=1) * w_star.square() / w0.abs()).sum()
    assert error == pytest.approx(float(scale * spread - (x.T @ w_star).square().sum()) / 60)
    assert error <= sketching.movement_bound(x, w0, w_star, 60)
    assert error <= sketching.growth_bound(x, w0, w_star, 60)
    assert sketching.movement_bound(x, w0, w0, 60) == pytest.approx(scale**2 / 60)
    assert sketching.growth_bound(x, w0, w0, 60) == pytest.approx(scale**2 / 60)


def test_trained_error_with_a_defensive_mixture_is_met_by_monte_carlo(problem):
    x, w0, w_star = problem
    p = sketching.defensive_mixture(sketching.distribution("optimal", x, w0), 0.5)
    masks = sketching.sketch_masks(p, 60, 4000, generator(5), reweight=True)
    formula = sketching.expected_error(x, w_star, p, 60)
    assert float(sketching.output_error(x, w_star, masks).mean()) == pytest.approx(formula, rel=0.05)
    assert formula <= sketching.defensive_bound(x, w_star, 60, 0.5)
    assert formula < sketching.expected_error(x, w_star, sketching.distribution("optimal", x, w0), 60)


def test_signed_constant_initialization_has_one_magnitude():
    w = sketching.initial_weights((300,), 0.2, "signed_constant", generator(6))
    assert torch.equal(w.abs(), torch.full((300,), 0.2, dtype=torch.float64))
    assert 0.3 < float((w > 0).double().mean()) < 0.7
    assert float(sketching.initial_weights((5000,), 0.2, "gaussian", generator(6)).std()) == pytest.approx(0.2, rel=0.1)


def test_gradient_descent_converges_to_least_squares_from_its_start():
    x, y = sketching.synthetic_problem(6, 20, generator(7), shape=20.0)
    w0 = torch.randn(6, generator=generator(7, "w"), dtype=torch.float64)
    start, end = sketching.gradient_descent(x, y, w0, [0, 5000])
    assert torch.equal(start, w0)
    assert torch.allclose(end, torch.linalg.lstsq(x.T, y).solution, atol=1e-5)
    first = sketching.gradient_descent(x, y, w0, [1], step_size=0.01)[0]
    assert torch.allclose(first, w0 - 0.01 * x @ (x.T @ w0 - y) / 20)


def test_masks_train_as_columns_and_stay_masks():
    x, y = sketching.synthetic_problem(6, 20, generator(8))
    w0 = torch.randn(6, generator=generator(8, "w"), dtype=torch.float64)
    masks = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0]]).bool()
    both = sketching.gradient_descent(x, y[:, None].expand(-1, 2), w0[:, None].expand(-1, 2), [50], mask=masks.T)[0]
    for column, mask in zip(both.T, masks, strict=True):
        assert torch.allclose(column, sketching.gradient_descent(x, y, w0, [50], mask=mask)[0])
        assert not column[~mask].any()


# --- binary masks ---


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), outputs=st.sampled_from([0, 2]), reweight=st.booleans(), count=st.integers(0, 4))
def test_poisson_formulas_are_exact(seed, outputs, reweight, count):
    x, w, p = tiny(seed, outputs)
    pi = sketching.poisson_probabilities(p, count)
    assert float(pi.sum()) == pytest.approx(count)
    exact = exact_over_subsets(x, w, pi, reweight=reweight)
    assert sketching.poisson_error(x, w, pi, reweight=reweight) == pytest.approx(exact, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("reweight", [False, True])
def test_monte_carlo_meets_the_poisson_formulas(problem, reweight):
    x, w0, _ = problem
    pi = sketching.poisson_probabilities(sketching.distribution("optimal", x, w0), 60)
    masks = sketching.poisson_masks(pi, 4000, generator(9), reweight=reweight)
    formula = sketching.poisson_error(x, w0, pi, reweight=reweight)
    assert float(sketching.output_error(x, w0, masks).mean()) == pytest.approx(formula, rel=0.02)
    assert float((masks > 0).double().sum(1).mean()) == pytest.approx(60, abs=0.5)


def test_optimal_inclusion_beats_other_inclusions_of_the_same_count(problem):
    x, w0, _ = problem
    errors = [
        sketching.poisson_error(
            x, w0, sketching.poisson_probabilities(sketching.distribution(kind, x, w0), 60), reweight=True
        )
        for kind in ("optimal", "magnitude", "uniform")
    ]
    assert errors == sorted(errors)


def test_expected_distinct_counts(problem):
    x, w0, _ = problem
    p = sketching.distribution("optimal", x, w0)
    for s in (40, 200, 400, 800):
        masks = sketching.sketch_masks(p, s, 1000, generator(10), reweight=False)
        assert float(masks.sum(1).mean()) == pytest.approx(sketching.expected_distinct(p, s), rel=0.01)
    uniform = torch.full((100,), 0.01, dtype=torch.float64)
    assert sketching.expected_distinct(uniform, 1) == pytest.approx(1)
    assert sketching.expected_distinct(uniform, 2) == pytest.approx(1.99)
    # Section 2.6 gives 33.9, 111.8, 162.9 and 217.3 for its own draw of the problem.
    for s, stated in [(40, 33.9), (200, 111.8), (400, 162.9), (800, 217.3)]:
        assert sketching.expected_distinct(p, s) == pytest.approx(stated, rel=0.08)


def test_gumbel_and_top_masks_keep_exactly_their_count(problem):
    x, w0, _ = problem
    p = sketching.distribution("optimal", x, w0)
    masks = sketching.gumbel_masks(p, 60, 500, generator(11))
    assert torch.equal(masks.sum(1), torch.full((500,), 60.0, dtype=torch.float64))
    assert float(sketching.top_mask(p, 60).sum()) == 60
    assert float(p[sketching.top_mask(p, 60) > 0].min()) >= float(p[sketching.top_mask(p, 60) == 0].max())
    with pytest.raises(InputError, match="entries of positive probability"):
        sketching.gumbel_masks(torch.tensor([1.0, 0.0]), 2, 1, generator(0))


def test_gumbel_first_draw_follows_p():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rate = sketching.gumbel_masks(p, 1, 20_000, generator(12)).mean(0)
    assert torch.allclose(rate, p, atol=0.015)


def test_synthetic_table_is_in_the_stated_order(problem):
    x, w0, w_star = problem
    k, draws = 60, 400
    p = sketching.distribution("optimal", x, w0)
    uniform = sketching.distribution("uniform", x, w0)
    s = draws_for(p, k)
    assert sketching.expected_distinct(p, s) == pytest.approx(k, abs=0.5)
    pi = sketching.poisson_probabilities(p, k)
    masks = {
        "sketch": sketching.sketch_masks(p, s, draws, generator(13, "sketch"), reweight=True),
        "horvitz": sketching.poisson_masks(pi, draws, generator(13, "horvitz"), reweight=True),
        "merged": sketching.sketch_masks(p, s, draws, generator(13, "merged"), reweight=False),
        "poisson": sketching.poisson_masks(pi, draws, generator(13, "poisson"), reweight=False),
        "gumbel": sketching.gumbel_masks(p, k, draws, generator(13, "gumbel")),
        "uniform": sketching.gumbel_masks(uniform, k, draws, generator(13, "uniform")),
        "topk": sketching.top_mask(p, k)[None],
    }
    init = {name: float(sketching.relative_error(x, w0, m).mean()) for name, m in masks.items()}
    trained = {name: float(sketching.relative_error(x, w_star, m).mean()) for name, m in masks.items()}
    assert init["topk"] < init["poisson"] < init["gumbel"] < init["uniform"] < init["sketch"]
    assert init["merged"] == pytest.approx(init["gumbel"], rel=0.1)
    assert trained["topk"] < trained["gumbel"] < trained["uniform"] < 1
    assert min(trained["sketch"], trained["horvitz"]) > 1
    stated = {"sketch": 1.08, "horvitz": 0.71, "merged": 0.26, "poisson": 0.18, "gumbel": 0.26, "topk": 0.09}
    for name, value in stated.items():
        assert init[name] == pytest.approx(value, rel=0.35)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, p: sketching.distribution("optimum", x, w), "did you mean 'optimal'"),
        (lambda x, w, p: sketching.distribution("oracle", x, w), "needs w_star"),
        (lambda x, w, p: sketching.distribution("gaussian_data", x, w), "needs a generator"),
        (lambda x, w, p: sketching.distribution("magnitude", x, 0 * w), "sum to 0.0"),
        (lambda x, w, p: sketching.expected_error(x, w[:3], p[:3], 2), "X of shape"),
        (lambda x, w, p: sketching.expected_error(x, w, p[:3], 2), r"probabilities of shape \(3,\)"),
        (lambda x, w, p: sketching.expected_error(x, w, p, 0), "number of draws 0"),
        (lambda x, w, p: sketching.defensive_mixture(p, 1.5), "share 1.5"),
        (lambda x, w, p: sketching.defensive_bound(x, w, 3, 0.0), "share 0.0"),
        (lambda x, w, p: sketching.probability_bound(x, w, 3, 0.0), "delta 0.0"),
        (lambda x, w, p: sketching.gradient_descent(x, w, w, [1]), "targets of shape"),
        (lambda x, w, p: sketching.gradient_descent(x, x[0], w, [-1]), "steps"),
        (lambda x, w, p: sketching.prepare(x, "whitened"), "unknown preparation"),
        (lambda x, w, p: sketching.initial_weights((3,), 1.0, "xavier", generator(0)), "unknown initialization"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*tiny(0))
