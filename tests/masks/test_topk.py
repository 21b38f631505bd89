"""Selection: exact counts, samplers with known distributions, layer counts and the shuffling controls."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import chisquare

from lthlib.errors import InputError
from lthlib.masks import counts as allocation
from lthlib.masks import topk as selection
from lthlib.masks.controls import invert, jaccard, jaccard_by_chance, layerwise_shuffle, random_masks
from lthlib.masks.counts import counts_of
from lthlib.masks.draws import (
    DRAWS,
    draws_for,
    inclusion_probabilities,
    multinomial_counts,
    positive,
    sample,
    sample_reweighted,
)
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator

SMALL = {"a": torch.tensor([0.1, 0.4]), "b": torch.tensor([[0.2], [0.3]])}


def resnet20_shapes() -> dict[str, tuple[int, ...]]:
    """3-block ResNet-20 with 1x1 convolution shortcuts, shapes written by hand."""
    shapes: dict[str, tuple[int, ...]] = {"conv": (16, 3, 3, 3)}
    for stage, (width_in, width) in enumerate([(16, 16), (16, 32), (32, 64)]):
        for block in range(3):
            first = width_in if block == 0 else width
            shapes[f"{stage}.{block}.conv1"] = (width, first, 3, 3)
            shapes[f"{stage}.{block}.conv2"] = (width, width, 3, 3)
            if first != width:
                shapes[f"{stage}.{block}.shortcut"] = (width, first, 1, 1)
    return shapes | {"fc": (10, 64)}


# --- exact top-k ---


def sorted_reference(scores, count, among):
    flat = torch.cat([s.reshape(-1) for s in scores.values()])
    live = torch.cat([a.reshape(-1) for a in among.values()])
    order = [i for i in flat.argsort(descending=True, stable=True).tolist() if live[i]][:count]
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[order] = True
    return mask


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_keep_top_is_a_stable_sort_with_ties_by_index(data):
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(lambda s: sum(s) > 0))
    values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1e-300, 1e300])
    scores, among = {}, {}
    for i, size in enumerate(sizes):
        drawn = data.draw(st.lists(values, min_size=size, max_size=size))
        scores[str(i)] = torch.tensor(drawn, dtype=torch.float64)
        among[str(i)] = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    live = sum(int(a.sum()) for a in among.values())
    count = data.draw(st.integers(0, live))
    masks = keep_top(scores, count, among=among)
    assert sum(counts_of(masks).values()) == count
    assert torch.equal(torch.cat(list(masks.values())), sorted_reference(scores, count, among))


def test_keep_top_keeps_shapes_and_counts_layerwise():
    masks = keep_top(SMALL, {"a": 1, "b": 2})
    assert masks["a"].tolist() == [False, True]
    assert masks["b"].tolist() == [[True], [True]]
    assert all(mask.dtype == torch.bool for mask in masks.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_keep_top_takes_every_dtype(dtype):
    scores = {"a": torch.arange(6).to(dtype)}
    assert keep_top(scores, 2)["a"].tolist() == [False] * 4 + [True] * 2


def test_keep_top_tells_float64_neighbours_apart():
    scores = {"a": torch.tensor([1.0, 1.0 + 2**-52, 1.0], dtype=torch.float64)}
    assert keep_top(scores, 1)["a"].tolist() == [False, True, False]


def test_minus_infinity_is_kept_only_when_nothing_else_is_left():
    scores = {"a": torch.tensor([-math.inf, 1.0, -math.inf, -5.0])}
    assert keep_top(scores, 2)["a"].tolist() == [False, True, False, True]
    assert keep_top(scores, 3)["a"].tolist() == [True, True, False, True]


def test_all_zero_scores_fall_to_the_index():
    masks = keep_top({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, 4)
    assert counts_of(masks) == {"a": 3, "b": 1}
    assert masks["b"].flatten().tolist() == [True, False, False, False]


def test_keep_one_gives_every_layer_its_best():
    scores = {"a": torch.tensor([5.0, 6.0, 7.0]), "b": torch.tensor([1.0, 2.0]), "c": torch.tensor([-math.inf])}
    masks = keep_top(scores, 3, keep_one=True)
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [False, True]
    assert not masks["c"].any()
    assert counts_of(keep_top(scores, 3)) == {"a": 3, "b": 0, "c": 0}
    assert torch.equal(scores["a"], torch.tensor([5.0, 6.0, 7.0]))


def test_masks_do_not_share_memory():
    masks = keep_top(SMALL, 2)
    masks["a"].fill_(True)
    assert counts_of(masks)["b"] == 1


def test_twenty_million_ties_past_the_24th_power_of_two():
    scores = {"a": torch.zeros(18_000_000), "b": torch.zeros(2_000_000)}
    scores["b"][-1] = 1.0
    masks = keep_top(scores, 17_500_001)
    assert counts_of(masks) == {"a": 17_500_000, "b": 1}
    assert masks["a"][:17_500_000].all()
    assert masks["b"][-1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_top({"w": torch.tensor([1.0, math.nan])}, 1), "'w' hold NaN"),
        (lambda: keep_top(SMALL, 5), "count 5 is not between 0 and the 4"),
        (lambda: keep_top(SMALL, {"a": 3, "b": 0}), "count 3 in 'a'"),
        (lambda: keep_top(SMALL, {"a": 1}), "counts are for"),
        (lambda: keep_top({}, 0), "no scores"),
        (lambda: keep_top(SMALL, 1, among={"a": torch.ones(2, dtype=torch.bool)}), "unknown tensor of survivors 'b'"),
        (lambda: keep_top({"a": torch.ones(2)}, 1, among={"a": torch.ones(2)}), "torch.bool of shape"),
        (lambda: keep_top(SMALL, 1, keep_one=True), "one weight in each of 2 layers"),
        (lambda: sample(SMALL, 1, draw="gumble", generator=generator(0)), "did you mean 'gumbel'"),
        (lambda: sample(SMALL, 1), "needs a generator"),
        (lambda: sample(SMALL, 1, temperature=-1.0, generator=generator(0)), "temperature -1.0"),
        (lambda: sample({"a": torch.tensor([1.0, -1.0])}, 1, generator=generator(0)), "scores of a are negative"),
        (lambda: sample({"a": torch.tensor([1.0, 0.0])}, 2, generator=generator(0)), "1 positive scores"),
        (lambda: sample({"a": torch.tensor([0.0])}, {"a": 1}, generator=generator(0)), "count 1 in 'a'"),
        (lambda: allocation.kept_count(0.0, 10), r"density 0.0 is not in \(0, 1\]"),
        (lambda: allocation.kept_count(1.5, 10), "density 1.5"),
        (lambda: allocation.uniform_counts({"a": (2, 2)}, 5), "count 5"),
        (lambda: positive(SMALL, "relu"), "unknown positive map"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_check_scores_names_method_and_layer():
    good = {"first": torch.ones(2), "second": torch.tensor([0.0, -math.inf])}
    selection.check_scores("SNIP", good)
    for bad, message in [(math.nan, "NaN"), (math.inf, "infinite"), (0.0, "only zero")]:
        with pytest.raises(InputError, match=f"SNIP gave {message}.*'third'"):
            selection.check_scores("SNIP", good | {"third": torch.tensor([0.0, bad])})
    selection.check_scores("SNIP", {"a": torch.tensor([math.nan, 1.0])}, among={"a": torch.tensor([False, True])})


# --- samplers ---


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 30), temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0, math.inf]))
def test_gumbel_keeps_exactly_the_count_and_never_a_zero(seed, count, temperature):
    noise = torch.rand(40, generator=generator(seed), dtype=torch.float64)
    scores = {"a": noise[:15], "b": noise[15:].view(5, 5).clone()}
    scores["b"][0] = 0.0
    among = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    among["a"][:5] = False
    masks = sample(scores, count, temperature=temperature, among=among, generator=generator(seed, "mask"))
    assert sum(counts_of(masks).values()) == count
    assert not masks["a"][:5].any()
    assert temperature == 0 or not masks["b"][0].any()


def successive_sampling(weights, count):
    """Exact probabilities of the sets drawn one by one without replacement."""
    chances: dict[frozenset[int], float] = {frozenset(): 1.0}
    for _ in range(count):
        grown: dict[frozenset[int], float] = {}
        for chosen, chance in chances.items():
            left = sum(w for i, w in enumerate(weights) if i not in chosen)
            for i, w in enumerate(weights):
                if i not in chosen:
                    grown[chosen | {i}] = grown.get(chosen | {i}, 0.0) + chance * w / left
        chances = grown
    return chances


@pytest.mark.parametrize(("temperature", "time"), [(0.0, None), (1.0, None), (1.0, 0.03), (1.0, 0.5), (2.0, None)])
def test_gumbel_is_successive_sampling(temperature, time, monkeypatch):
    if time is not None:
        # A guess that is too early: the draw goes on from there.
        monkeypatch.setattr("lthlib.masks.draws._time_of", lambda *_: time)
    weights, count, draws, stream = [1.0, 2.0, 3.0, 4.0, 0.5], 2, 2500, generator(3, "mask")
    expected = successive_sampling([w**temperature for w in weights], count)
    seen = dict.fromkeys(expected, 0)
    scores = {"a": torch.tensor(weights)}
    for _ in range(draws):
        mask = sample(scores, count, temperature=temperature, generator=stream)["a"]
        seen[frozenset(mask.nonzero().view(-1).tolist())] += 1
    assert chisquare(list(seen.values()), [draws * c for c in expected.values()]).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "scale"), [(3_000, 1.0), (60_000, 1e-30), (250_000, 1e20)])
def test_gumbel_draws_of_many_have_their_inclusion_probabilities(count, scale, dtype):
    weights, size = torch.tensor([1e-3, 0.1, 1.0, 30.0, 0.0], dtype=torch.float64), 70_000
    scores = {"a": (weights * scale).to(dtype).repeat(size)}
    mask = sample(scores, count, generator=generator(5, "mask"))["a"]
    drawn = mask.view(size, 5).sum(0).double()
    assert int(drawn.sum()) == count and drawn[4] == 0
    # With so many of each, one time separates those that are drawn from those that come later.
    time = brentq(lambda t: float(-size * torch.expm1(-weights * t).sum()) - count, 0, 1e5)
    chances = -torch.expm1(-weights[:4] * time)
    spread = (size * chances * (1 - chances)).clamp(min=1).sqrt()
    assert float(((drawn[:4] - size * chances) / spread).abs().max()) < 4


def test_gumbel_draws_do_not_depend_on_threads():
    scores, masks = {"a": torch.rand(300_000, generator=generator(6))}, []
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        masks.append(sample(scores, 20_000, generator=generator(7))["a"])
    torch.set_num_threads(threads)
    assert torch.equal(*masks)


def test_poisson_draws_independently_with_its_inclusion_probabilities():
    weights, draws = torch.tensor([1.0, 2.0, 3.0, 100.0, 0.0], dtype=torch.float64), 2000
    pi = inclusion_probabilities(weights.log(), 2)
    assert torch.allclose(pi, torch.tensor([1 / 6, 2 / 6, 3 / 6, 1, 0], dtype=torch.float64))
    stream = generator(4, "mask")
    masks = torch.stack([sample({"a": weights}, 2, draw="poisson", generator=stream)["a"] for _ in range(draws)])
    cells = masks[:, 0] * 4 + masks[:, 1] * 2 + masks[:, 2] * 1
    expected = [
        draws * math.prod(p if on else 1 - p for p, on in zip((1 / 6, 1 / 3, 1 / 2), (a, b, c), strict=True))
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1)
    ]
    assert chisquare(torch.bincount(cells, minlength=8).tolist(), expected).pvalue > 1e-3
    assert masks[:, 3].all()
    assert not masks[:, 4].any()


@settings(max_examples=100, deadline=None)
@given(exponents=st.lists(st.floats(-700, 700), min_size=1, max_size=30), data=st.data())
def test_inclusion_probabilities_sum_to_the_count_over_any_number_of_decades(exponents, data):
    log_p = torch.tensor(exponents, dtype=torch.float64)
    count = data.draw(st.integers(0, len(exponents)))
    pi = inclusion_probabilities(log_p, count)
    assert float(pi.sum()) == pytest.approx(count, rel=1e-9, abs=1e-12)
    assert bool(((pi >= 0) & (pi <= 1)).all())
    order = log_p.argsort()
    assert bool((pi[order].diff() >= 0).all())
    free = pi < 1 - 1e-9
    if count and int(free.sum()) > 1:
        offset = (pi[free].log() - log_p[free])[pi[free] > 1e-300]
        assert offset.numel() == 0 or float(offset.max() - offset.min()) < 1e-6


def test_multinomial_counts_follow_the_multinomial():
    p = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4], dtype=torch.float64)
    stream = generator(5, "mask")
    counts = multinomial_counts(p, 20_000, stream)
    assert counts.sum() == 20_000
    assert counts[2] == 0
    assert chisquare(counts[p > 0], 20_000 * p[p > 0]).pvalue > 1e-3
    pairs = torch.stack([multinomial_counts(p, 2, stream) for _ in range(1500)])
    # Var c_k = s p (1 - p), Cov(c_j, c_k) = -s p_j p_k
    covariance = torch.cov(pairs.T)
    assert torch.allclose(covariance, 2 * (torch.diag(p) - p.outer(p)), atol=0.05)


def test_multinomial_solves_the_number_of_draws_for_the_expected_density():
    weights = torch.rand(500, generator=generator(6), dtype=torch.float64)
    p = weights / weights.sum()
    draws = draws_for(p, 200)
    assert float((1 - (1 - p) ** draws).sum()) == pytest.approx(200, abs=0.5)
    stream = generator(6, "mask")
    kept = [int(sample({"a": weights}, 200, draw="multinomial", generator=stream)["a"].sum()) for _ in range(300)]
    assert sum(kept) / len(kept) == pytest.approx(200, abs=1.5)
    with pytest.raises(InputError, match="no number of draws"):
        draws_for(torch.tensor([1 - 1e-30, 1e-30], dtype=torch.float64), 1.9)


@pytest.mark.parametrize("draw", ["gumbel", "multinomial", "poisson"])
def test_reweighting_makes_the_mask_unbiased(draw):
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0, 0.0])
    stream = generator(7, "mask")
    seen = []
    for _ in range(1000):
        masks, factors = sample_reweighted({"a": weights}, 3, draw=draw, generator=stream)
        assert torch.equal(masks["a"], factors["a"] > 0)
        seen.append(factors["a"])
    factors = torch.stack(seen)
    error = (factors.mean(0) - (weights > 0).double()).abs()
    assert bool((error <= 4 * factors.std(0) / 1000**0.5).all())


@pytest.mark.parametrize("draw", DRAWS)
def test_same_seed_same_mask_and_another_seed_another(draw):
    scores = {"a": torch.rand(300, generator=generator(8)), "b": torch.rand(20, 10, generator=generator(9))}
    first, again, other = (sample(scores, 100, draw=draw, generator=generator(s, "mask")) for s in (0, 0, 1))
    assert all(torch.equal(first[n], again[n]) for n in scores)
    assert any(not torch.equal(first[n], other[n]) for n in scores) == (draw != "topk")


@pytest.mark.parametrize("draw", ["gumbel", "multinomial", "poisson"])
def test_temperature_limits(draw):
    scores = {"a": torch.rand(200, generator=generator(10), dtype=torch.float64)}
    top = keep_top(scores, 50)
    sharp = sample(scores, 50, draw=draw, temperature=math.inf, generator=generator(0))
    assert torch.equal(sharp["a"], top["a"])
    if draw == "gumbel":
        assert torch.equal(sample(scores, 50, temperature=1e6, generator=generator(0))["a"], top["a"])
    # Uniform: zero and positive scores alike, at one rate; entries at -inf never.
    flat = {"a": torch.cat([torch.zeros(100), torch.full((100,), 9.0), torch.full((50,), -math.inf)])}
    stream, rate = generator(11), torch.zeros(250)
    for _ in range(300):
        rate += sample(flat, 50, draw=draw, temperature=0.0, generator=stream)["a"] / 300
    assert float(rate[:100].mean()) == pytest.approx(0.25, abs=0.01)
    assert float(rate[100:200].mean()) == pytest.approx(0.25, abs=0.01)
    assert float(rate[200:].max()) == 0.0


@pytest.mark.parametrize("draw", DRAWS)
def test_layerwise_counts_are_matched_exactly_or_in_expectation(draw):
    scores = {"a": 100 * torch.rand(400, generator=generator(12)), "b": torch.rand(400, generator=generator(13))}
    masks = sample(scores, {"a": 100, "b": 300}, draw=draw, generator=generator(0))
    exact = draw in ("topk", "gumbel")
    assert counts_of(masks)["a"] == pytest.approx(100, abs=0 if exact else 40)
    assert counts_of(masks)["b"] == pytest.approx(300, abs=0 if exact else 40)


@pytest.mark.parametrize("draw", DRAWS)
def test_keep_one_survives_scores_tens_of_decades_apart(draw):
    scores = {"a": torch.rand(50, generator=generator(14), dtype=torch.float64) + 0.5}
    scores |= {"b": 1e-40 * scores["a"], "dead": torch.zeros(5)}
    masks = sample(scores, 20, draw=draw, keep_one=True, generator=generator(0))
    assert counts_of(masks)["b"] == 1
    assert counts_of(masks)["dead"] == (1 if draw == "topk" else 0)
    if draw in ("topk", "gumbel"):
        assert sum(counts_of(masks).values()) == 20
    assert counts_of(sample(scores, 20, draw=draw, generator=generator(0)))["b"] == 0


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count", [0, 6])
def test_none_and_all(draw, count):
    scores = {"a": torch.tensor([1e-30, 1.0, 5.0]), "b": torch.tensor([2.0, 1e30, 1.0])}
    masks, factors = sample_reweighted(scores, count, draw=draw, generator=generator(0))
    assert sum(counts_of(masks).values()) == count
    assert all(torch.equal(factors[n], masks[n].double()) for n in scores)


def test_gumbel_past_the_24th_power_of_two_is_fair_to_every_index():
    scores = {"a": torch.ones(18_000_000), "b": torch.ones(2_000_000)}
    masks = sample(scores, 2_000_000, generator=generator(0))
    counts = counts_of(masks)
    assert sum(counts.values()) == 2_000_000
    assert counts["b"] == pytest.approx(200_000, abs=2000)


# --- how many ---


def test_erk_densities_of_resnet20():
    shapes = resnet20_shapes()
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    assert sum(sizes.values()) == 270_896
    for density, first, last, fc in [(0.05, 0.47, 0.030, 0.95), (0.1, 0.98, 0.062, 1.0)]:
        counts = allocation.erdos_renyi_counts(shapes, allocation.kept_count(density, 270_896))
        assert sum(counts.values()) == round(density * 270_896)
        assert counts["conv"] / sizes["conv"] == pytest.approx(first, abs=0.006)
        assert counts["2.2.conv2"] / sizes["2.2.conv2"] == pytest.approx(last, abs=0.0006)
        assert counts["fc"] / sizes["fc"] == pytest.approx(fc, abs=0.006)


def test_er_counts_channels_only():
    counts = allocation.erdos_renyi_counts({"a": (10, 10, 3, 3), "b": (10, 30)}, 440, kernel=False)
    # eps * 20 * 9 : eps * 40
    assert counts == {"a": 360, "b": 80}


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=4), min_size=1, max_size=6),
    share=st.floats(0, 1),
    rule=st.sampled_from(["uniform", "erk", "er", "smart", "smart-vgg"]),
)
def test_allocations_sum_exactly_and_fit_the_layers(shapes, share, rule):
    named = {str(i): tuple(s) for i, s in enumerate(shapes)}
    count = round(share * sum(math.prod(s) for s in shapes))
    counts = {
        "uniform": lambda: allocation.uniform_counts(named, count),
        "erk": lambda: allocation.erdos_renyi_counts(named, count),
        "er": lambda: allocation.erdos_renyi_counts(named, count, kernel=False),
        "smart": lambda: allocation.smart_ratio_counts(named, count),
        "smart-vgg": lambda: allocation.smart_ratio_counts(named, count, divide_by_position=True),
    }[rule]()
    assert list(counts) == list(named)
    assert sum(counts.values()) == count
    assert all(0 <= counts[n] <= math.prod(s) for n, s in named.items())


def test_smart_ratio_formula():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (10, 10)}
    # L = 3: 12 : 6 for the hidden layers, 30 % of the output layer
    assert allocation.smart_ratio_counts(shapes, 120) == {"a": 60, "b": 30, "c": 30}
    # 12 / 1 : 6 / 4
    assert allocation.smart_ratio_counts(shapes, 120, divide_by_position=True) == {"a": 80, "b": 10, "c": 30}
    # the first layer overflows into the second
    assert allocation.smart_ratio_counts(shapes, 190) == {"a": 100, "b": 60, "c": 30}


def test_uniform_counts_give_largest_remainders_first():
    assert allocation.uniform_counts({"a": (10,), "b": (7,), "c": (3,)}, 5) == {"a": 2, "b": 2, "c": 1}


# --- controls ---


def test_layerwise_shuffle_keeps_counts_and_moves_the_mask():
    scores = {"a": torch.rand(100, generator=generator(1)), "b": torch.rand(10, 10, generator=generator(2))}
    masks = keep_top(scores, 60)
    shuffled = layerwise_shuffle(masks, generator(0, "shuffle"))
    assert counts_of(shuffled) == counts_of(masks)
    assert all(not torch.equal(shuffled[n], masks[n]) for n in masks)
    assert shuffled["b"].shape == (10, 10)
    pair = {"a": torch.tensor([True, False])}
    for seed in range(20):
        assert layerwise_shuffle(pair, generator(seed))["a"].tolist() == [False, True]
    full = {"a": torch.ones(3, dtype=torch.bool), "b": torch.zeros(2, dtype=torch.bool)}
    assert counts_of(layerwise_shuffle(full, generator(0))) == {"a": 3, "b": 0}


def test_layerwise_shuffle_is_uniform():
    mask, stream = {"a": torch.tensor([True] * 3 + [False] * 7)}, generator(15)
    rate = sum(layerwise_shuffle(mask, stream)["a"].double() for _ in range(3000))
    assert chisquare(rate, [900] * 10).pvalue > 1e-3


def test_random_masks_have_the_counts_asked_for():
    shapes = {"a": (4, 5), "b": (30,)}
    assert counts_of(random_masks(shapes, {"a": 3, "b": 7}, generator(0))) == {"a": 3, "b": 7}
    masks = random_masks(shapes, 25, generator(0), among={n: torch.ones(s) > 0 for n, s in shapes.items()})
    assert sum(counts_of(masks).values()) == 25
    assert masks["a"].shape == (4, 5)


@pytest.mark.parametrize("values", [[0.0, 1e-20, 1.0, 3.0, -math.inf], [-2.0, 0.0, 1.0, 5.0, -math.inf]])
def test_invert_reverses_the_order_and_leaves_pruned_weights_out(values):
    inverted = invert({"a": torch.tensor(values)})["a"]
    assert inverted[:4].argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert bool(inverted[:4].isfinite().all())
    assert inverted[4] == -math.inf


@pytest.mark.parametrize("how", ["abs", "shift", "softmax"])
def test_positive_maps_can_be_sampled(how):
    scores = {"a": torch.tensor([-2.0, 1.0]), "b": torch.tensor([3.0, -math.inf])}
    mapped = positive(scores, how)
    expected = {"abs": [2.0, 1.0, 3.0], "shift": [0.0, 3.0, 5.0], "softmax": None}[how]
    flat = torch.cat(list(mapped.values()))
    if expected:
        assert flat[:3].tolist() == expected
    else:
        assert float(flat[1] / flat[0]) == pytest.approx(math.exp(3 / torch.tensor([-2.0, 1.0, 3.0]).std(correction=0)))
    assert flat[3] == -math.inf
    assert sum(counts_of(sample(mapped, 2, generator=generator(0))).values()) == 2


def test_jaccard_and_its_chance_level():
    first = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False])}
    second = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True, False])}
    assert jaccard(first, second) == 2 / 4
    assert jaccard(first, first) == 1.0
    # rho = 1/2: rho / (2 - rho) = 1/3
    assert jaccard_by_chance(first, second) == pytest.approx(1 / 3)
    full = {"a": torch.ones(4, dtype=torch.bool), "b": torch.zeros(40, dtype=torch.bool)}
    assert jaccard_by_chance(full, full, layerwise=True) == 1.0
    assert jaccard_by_chance(full, full) < 0.1
    shapes = {"a": (20_000,)}
    one, two = (random_masks(shapes, 4000, generator(s)) for s in (0, 1))
    assert jaccard(one, two) == pytest.approx(0.2 / 1.8, abs=0.01)
