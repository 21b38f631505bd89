"""Finders of strong tickets: their gradients by hand, exact masks, untouched weights, and a task that they solve."""

import math
from dataclasses import replace
from itertools import product
from threading import Event

import pytest
import torch
from replicates import of_seed, of_seeds
from torch import nn
from torch.nn import functional as F

from lthlib.data import load
from lthlib.errors import InputError
from lthlib.finders.find import find
from lthlib.finders.supermask import (
    METHODS,
    RECIPES,
    Supermask,
    Task,
    find_supermasks,
    large_final_same_sign,
    random_source,
)
from lthlib.finders.supermask_search import Scores, Search
from lthlib.masks.counts import kept_count
from lthlib.models.architecture import architecture
from lthlib.models.initial import initial_state
from lthlib.randomness import generator, stream_seed
from lthlib.store import Store
from lthlib.ticket import bases_for
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate

CPU = torch.device("cpu")
DIGITS = load("digits", train_size=300, validation_size=100, device="cpu")
LENET = architecture("lenet-20-12", DIGITS.input_shape, 10)
SHORT = Recipe(learning_rate=0.1, batch_size=50, epochs=2, evaluations=2)


def one_linear(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes, bias=False))


def short(method: str, **changes: object) -> Recipe:
    return replace(RECIPES[method], **({"batch_size": 50, "epochs": 2, "evaluations": 2} | changes))


def searched(settings: Supermask, model=LENET, data=DIGITS, seed: int = 0, recipe: Recipe | None = None, **source):
    origin = random_source(model, seed, **source)
    (found,) = find_supermasks(of_seeds([origin], [seed]), settings, recipe or short(settings.method), data)
    return origin, found


# ----------------------------------------------------------------------------------------------- density and weights


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.013, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_density_is_the_fraction_kept_and_exact(method, density, scope):
    origin, found = searched(Supermask(method, density, scope=scope), recipe=short(method, epochs=0.4))
    assert found.ticket.kept == round(density * origin.prunable)
    assert found.history[-1]["density"] == pytest.approx(found.ticket.density)
    if scope == "layerwise":
        for name, mask in found.ticket.masks.items():
            assert abs(int(mask.sum()) - density * mask.numel()) < 1.5, name


@pytest.mark.parametrize("method", ["edge-popup", "supermask", "gem-miner"])
def test_weights_are_the_sources_bit_for_bit(method):
    origin, found = searched(Supermask(method, 0.3), seed=3)
    assert found.ticket.coefficients.keys() == origin.coefficients.keys()
    for name, weight in random_source(LENET, 3).coefficients.items():
        assert torch.equal(found.ticket.coefficients[name], weight)
        assert torch.equal(origin.coefficients[name], weight)
    assert all(torch.equal(found.ticket.rest[name], tensor) for name, tensor in origin.rest.items())


def test_biprop_keeps_signs_and_one_magnitude_a_layer():
    origin, found = searched(Supermask("biprop", 0.4))
    for name, weight in origin.coefficients.items():
        alpha = weight[found.ticket.masks[name]].abs().mean()
        torch.testing.assert_close(found.ticket.coefficients[name], alpha * weight.sign())


def test_rescaling_multiplies_by_all_over_kept():
    origin, found = searched(Supermask("supermask", 0.25, rescale=True))
    for name, weight in origin.coefficients.items():
        factor = weight.numel() / int(found.ticket.masks[name].sum())
        torch.testing.assert_close(found.ticket.coefficients[name], factor * weight)


def test_normalisation_keeps_its_weights_and_learns_only_its_statistics():
    data = load("digits", train_size=100, validation_size=50, device="cpu")
    model = architecture("resnet-8-w2", data.input_shape, 10)
    origin, found = searched(Supermask("edge-popup", 0.5), model, data, recipe=short("edge-popup", epochs=1))
    for name, tensor in origin.rest.items():
        moved = not torch.equal(found.ticket.rest[name], tensor)
        assert moved == ("running" in name or "batches" in name), name
    assert all(torch.equal(found.ticket.coefficients[name], w) for name, w in origin.coefficients.items())
    assert found.ticket.kept == round(0.5 * origin.prunable)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["lenet-20-12", "conv-2-w2", "vgg-11-w2"])
def test_the_ticket_is_the_network_that_the_history_judged(method, name):
    model = architecture(name, DIGITS.input_shape, 10)
    _, found = searched(Supermask(method, 0.5), model, recipe=short(method, epochs=1, evaluations=1))
    (judged,) = evaluate([found.ticket], DIGITS, "validation")
    assert judged.loss == pytest.approx(found.history[-1]["validation_loss"], rel=1e-4)
    assert judged.accuracy == pytest.approx(found.history[-1]["validation_accuracy"])


def test_counts_are_those_asked_for():
    origin = random_source(LENET, 0)
    counts = (500, 100, 8)
    settings = Supermask(density=sum(counts) / origin.prunable, counts=counts, levels=3)
    (found,) = find_supermasks(of_seeds([origin], [0]), settings, SHORT, DIGITS)
    assert tuple(int(mask.sum()) for mask in found.ticket.masks.values()) == counts


# ---------------------------------------------------------------------------------------------------- one step by hand


def one_step(method: str, density: float, rate: float = 2.0, seed: int = 5):
    """A search over one linear layer, its scores before and after one step of plain gradient descent."""
    images = torch.randn(6, 1, 2, 2, generator=generator(0, "images"), dtype=torch.float64)
    task = Task(images, torch.tensor([0, 1, 2, 0, 1, 2]), images, torch.tensor([0, 1, 2, 0, 1, 2]))
    model = architecture(f"{__name__}:one_linear", (1, 2, 2), 3)
    recipe = Recipe(
        learning_rate=rate, momentum=0.0, batch_size=6, epochs=1, schedule="constant", precision="fp64", evaluations=1
    )
    search = Search([random_source(model, seed)], Supermask(method, density, levels=0), recipe, task)
    (own,) = search.scores
    before = own.scores["1.weight"].clone()
    search.run("", Event())
    return own, images.flatten(1), before, own.scores["1.weight"]


def test_edge_popup_moves_scores_by_gradient_times_weight_times_input():
    search, x, before, after = one_step("edge-popup", 0.5)
    weight = search.weights["1.weight"]
    mask = before.abs() >= before.abs().flatten().sort(descending=True).values[5]
    assert int(mask.sum()) == 6
    error = (x @ (weight * mask).T).softmax(1) - F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    # Each score: dL/d(output j) w_ji x_i, kept or not, through |s|.
    gradient = (error.T @ x / 6) * weight * before.sign()
    torch.testing.assert_close(after, before - 2 * gradient)
    assert bool((after != before)[~mask].all())


def surrogate(method: str, weight, mask, s):
    """What autograd should see instead of the mask: its value forward, its smooth stand-in backward."""
    if method == "biprop":
        alpha = (weight.abs() * mask).sum() / mask.sum()
        return alpha * weight.sign() * mask + weight * (s.abs() - s.abs().detach())
    soft = {"edge-popup": s.abs(), "supermask": s.sigmoid(), "gem-miner": s}[method]
    return weight * (mask + soft - soft.detach())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.25, 0.75])
def test_scores_get_the_straight_through_gradient(method, density):
    search, x, before, after = one_step(method, density)
    s = before.clone().requires_grad_()
    if method == "supermask":
        draws = torch.Generator().manual_seed(stream_seed(5, "supermask", "draws"))
        mask = torch.rand(s.shape, generator=draws, dtype=s.dtype) < s.detach().sigmoid()
    else:
        rank = before if method == "gem-miner" else before.abs()
        mask = rank >= rank.flatten().sort(descending=True).values[round(density * 12) - 1]
    effective = surrogate(method, search.weights["1.weight"], mask, s)
    F.cross_entropy(x @ effective.T, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    expected = before - 2 * s.grad
    torch.testing.assert_close(after, expected.clamp(0, 1) if method == "gem-miner" else expected)


def test_supermask_starts_at_the_density_asked_for():
    source = Scores(random_source(LENET, 0), Supermask("supermask", 0.2), torch.device("cpu"), torch.float32)
    drawn = source.training_masks(0.2, last=True)
    share = sum(int(mask.sum()) for mask in drawn.values()) / sum(mask.numel() for mask in drawn.values())
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 1640) ** 0.5)


def test_gem_miner_rounds_and_never_takes_back_what_it_removed():
    search = Scores(random_source(LENET, 0), Supermask("gem-miner", 0.05), torch.device("cpu"), torch.float32)
    rounded = search.training_masks(1.0, last=False)
    assert all(torch.equal(mask, search.scores[name] > 0.5) for name, mask in rounded.items())
    search.remove(0.3)
    left = search.exact_masks(0.3)
    for score in search.scores.values():
        score.copy_(1 - score)
    # The scores are turned round, but only survivors can be ranked or rounded.
    for masks in (search.exact_masks(0.2), search.training_masks(0.3, last=False)):
        assert all(not bool((mask & ~left[name]).any()) for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in search.exact_masks(0.2).values()) == round(0.2 * 1640)


def test_levels_take_the_density_down_geometrically():
    settings = Supermask(density=0.1, levels=4)
    assert [settings.density_at(step, 10) for step in range(0, 10, 2)] == pytest.approx(
        [1, 0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1]
    )
    assert Supermask(density=0.1).density_at(0, 10) == 0.1 == Supermask("gem-miner", 0.1).density_at(9, 10)
    _, found = searched(settings, recipe=short("edge-popup", epochs=5, evaluations=5))
    densities = [row["density"] for row in found.history]
    assert densities == pytest.approx([0.1 ** (k / 4) for k in range(5)], abs=1e-3)
    assert found.ticket.kept == 164


# ------------------------------------------------------------------------------------------------------------- sources


def test_signed_constants_and_their_scaled_fan():
    plain, signed = random_source(LENET, 4), random_source(LENET, 4, "signed_constant", scale_fan=0.3)
    for name, weight in signed.coefficients.items():
        fan_in = weight.shape[1]
        assert torch.equal(weight.sign(), plain.coefficients[name].sign())
        torch.testing.assert_close(weight.abs(), torch.full_like(weight, math.sqrt(2 / (fan_in * 0.3))))
    kaiming = random_source(LENET, 4, scale_fan=0.25)
    assert all(torch.equal(w, 2 * plain.coefficients[name]) for name, w in kaiming.coefficients.items())
    state = initial_state(LENET, 4)
    assert all(torch.equal(w, state[name]) for name, w in plain.coefficients.items())
    assert not any(bool(plain.rest[name].any()) for name in plain.rest)


def test_biases_have_the_product_of_the_layers_deviations():
    model = architecture("lenet-1600-3000", (1, 2, 2), 10)
    found = random_source(model, 0, bias_scale=0.06).rest
    first = 0.06 * math.sqrt(2 / 4)
    assert float(found["1.bias"].std()) == pytest.approx(first, rel=0.05)
    assert float(found["3.bias"].std()) == pytest.approx(first * math.sqrt(2 / 1600), rel=0.05)
    assert abs(float(found["1.bias"].mean())) < 4 * first / math.sqrt(1600)


def test_pruned_biases_keep_the_density_and_the_others_their_values():
    origin, found = searched(Supermask(density=0.5, prune_biases=True), bias_scale=1.0)
    for name in ("1.bias", "3.bias", "5.bias"):
        bias, kept = origin.rest[name], found.ticket.rest[name] != 0
        assert int(kept.sum()) == kept_count(0.5, bias.numel())
        assert torch.equal(found.ticket.rest[name][kept], bias[kept])


def test_one_shot_mask_keeps_the_largest_of_unchanged_sign():
    model = architecture(f"{__name__}:one_linear", (1, 1, 4), 2)
    source, trained = random_source(model, 0), random_source(model, 0)
    source = replace(source, coefficients={"1.weight": torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, -1]])})
    trained = replace(trained, coefficients={"1.weight": torch.tensor([[3.0, 5, 1, 4], [-9, 2, -6, 0.5]])})
    found = large_final_same_sign(source, trained, 0.5)
    assert found.masks["1.weight"].tolist() == [[True, False, False, True], [False, True, True, False]]
    assert torch.equal(found.coefficients["1.weight"], source.coefficients["1.weight"])


# ---------------------------------------------------------------------------------------------------- what comes of it


def test_edge_popup_solves_digits_far_above_a_random_mask():
    data = load("digits", device="cpu")
    model = architecture("lenet-200-100", data.input_shape, 10)
    sources = [random_source(model, seed) for seed in range(2)]
    recipe = replace(RECIPES["edge-popup"], batch_size=50, epochs=8, evaluations=1)
    found = find_supermasks(of_seeds(sources, [0, 1]), Supermask(density=0.5), recipe, data)
    masked = [find(of_seed(source, seed), 0.5, "uniform") for seed, source in enumerate(sources)]
    tests = [one.accuracy for one in evaluate([run.ticket for run in found], data, "test")]
    chance = [one.accuracy for one in evaluate(masked, data, "test")]
    assert min(tests) > 88
    assert max(chance) < 45


@pytest.mark.parametrize("method", METHODS)
def test_every_finder_lowers_its_loss(method):
    rate = {"gem-miner": 5.0}.get(method, RECIPES[method].learning_rate)
    recipe = short(method, epochs=15, evaluations=5, learning_rate=rate)
    _, found = searched(Supermask(method, 0.3), architecture("lenet-100", DIGITS.input_shape, 10), recipe=recipe)
    assert found.history[-1]["train_loss"] < 0.7 * found.history[0]["train_loss"]
    assert found.history[-1]["validation_accuracy"] > 60
    assert [row["step"] for row in found.history] == [18, 36, 54, 72, 90]


def test_values_are_fitted_by_the_squared_error():
    x = torch.rand(400, 1, 1, 1, generator=generator(0, "x")) * 2 - 1
    y = torch.cat([x.flatten(1).abs(), x.flatten(1)], 1)
    task = Task(x[:300], y[:300], x[300:], y[300:])
    model = architecture("lenet-100-100", (1, 1, 1), 2)
    recipe = replace(RECIPES["edge-popup"], batch_size=50, epochs=20, evaluations=4)
    _, found = searched(Supermask(density=0.5), model, task, recipe=recipe, bias_scale=1.0)
    assert found.history[-1]["validation_loss"] < 0.25 * float(y[300:].var(0).mean())
    assert "validation_accuracy" not in found.history[-1]


def test_a_replicate_is_the_same_again_and_whatever_is_beside_it():
    for model, method in product((LENET, architecture("resnet-8-w8", (1, 8, 8), 10)), METHODS):
        sources = [random_source(model, seed) for seed in (0, 1, 2)]
        settings, recipe = Supermask(method, 0.3), short(method)
        together = find_supermasks(of_seeds(sources, [0, 1, 2]), settings, recipe, DIGITS)
        (alone,) = find_supermasks(of_seeds(sources[1:2], [1]), settings, recipe, DIGITS)
        assert alone.history == together[1].history and alone.ticket.digest() == together[1].ticket.digest()
        (other,) = find_supermasks(of_seeds(sources[1:2], [7]), settings, recipe, DIGITS)
        assert other.ticket.digest() != alone.ticket.digest()


def test_searches_are_kept_and_read_again(tmp_path, monkeypatch):
    sources, store = [random_source(LENET, seed) for seed in (0, 1)], Store(tmp_path)
    first = find_supermasks(of_seeds(sources, [0, 1]), Supermask(), SHORT, DIGITS, store=store)
    monkeypatch.setattr(Search, "run", lambda *_: pytest.fail("searched again"))
    again = find_supermasks(of_seeds(sources, [0, 1]), Supermask(), SHORT, DIGITS, store=store)
    for one, two in zip(first, again, strict=True):
        assert one.history == two.history and one.seed == two.seed
        assert all(torch.equal(mask, two.ticket.masks[name]) for name, mask in one.ticket.masks.items())


def test_augmented_images_reach_the_search():
    moved = replace(DIGITS, augmentation="crop")
    _, plain = searched(Supermask(), recipe=SHORT)
    _, cropped = searched(Supermask(), data=moved, recipe=SHORT)
    assert plain.history[0]["train_loss"] != cropped.history[0]["train_loss"]
    # An augmentation that moves nothing gives what no augmentation gives.
    task, still = Task.of(moved), replace(Task.of(moved), augmentation="none")
    assert task.inputs.dtype == torch.uint8
    _, same = searched(Supermask(), data=still, recipe=SHORT)
    assert same.history == plain.history
    assert len({task.fingerprint(), still.fingerprint(), Task.of(DIGITS).fingerprint()}) == 3


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"unknown supermask method 'edge-pop', did you mean 'edge-popup'\?"):
        Supermask("edge-pop")
    with pytest.raises(InputError, match=r"density 0 is not in \(0, 1\]"):
        Supermask(density=0)
    with pytest.raises(InputError, match="unknown scope 'local'"):
        Supermask(scope="local")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="levels cannot be negative, found -1"):
        Supermask(levels=-1)
    with pytest.raises(InputError, match="alone, not of 'biprop'"):
        Supermask("biprop", rescale=True)
    with pytest.raises(InputError, match="scope must be None, found 'global'"):
        Supermask(counts=(1,), scope="global")
    with pytest.raises(InputError, match=r"in \(0, 1\], found 1.5"):
        random_source(LENET, 0, scale_fan=1.5)
    with pytest.raises(InputError, match="bias_scale must be at least 0 and finite, found -1"):
        random_source(LENET, 0, bias_scale=-1)
    with pytest.raises(InputError, match="unknown initialisation scheme 'kaiming'"):
        random_source(LENET, 0, "kaiming")


def test_searches_that_cannot_be_are_refused():
    source, bare = random_source(LENET, 0), architecture(f"{__name__}:one_linear", DIGITS.input_shape, 10)
    with pytest.raises(InputError, match="has no biases to draw"):
        random_source(bare, 0, bias_scale=1.0)
    with pytest.raises(InputError, match="has no biases to prune"):
        find_supermasks(of_seeds([random_source(bare, 0)], [0]), Supermask(prune_biases=True), SHORT, DIGITS)
    with pytest.raises(InputError, match=r"dense source in the canonical basis, found density 0\.5"):
        find_supermasks(of_seeds([find(of_seed(source, 0), 0.5, "uniform")], [0]), Supermask(), SHORT, DIGITS)
    with pytest.raises(InputError, match="canonical basis"):
        find_supermasks(of_seeds([source.in_bases(bases_for(source, "random", 0))], [0]), Supermask(), SHORT, DIGITS)
    other = random_source(architecture("lenet-9", (1, 4, 4), 10), 0)
    with pytest.raises(InputError, match=r"does not fit data of inputs \(1, 8, 8\) and 10 outputs"):
        find_supermasks(of_seeds([other], [0]), Supermask(), SHORT, DIGITS)
    with pytest.raises(InputError, match=r"levels 12 need more steps than that, found 12 \(valid: 0 to 11\)"):
        find_supermasks(of_seeds([source], [0]), Supermask(levels=12), SHORT, DIGITS)
    with pytest.raises(InputError, match=r"counts \(9, 9\) do not keep 820 weights"):
        find_supermasks(of_seeds([source], [0]), Supermask(counts=(9, 9)), SHORT, DIGITS)
    with pytest.raises(FloatingPointError, match=r"the loss of seed 0 \(density 0\.5\) is nan at step \d+"):
        loud = replace(source, coefficients={name: 1e30 * c for name, c in source.coefficients.items()})
        find_supermasks(of_seeds([loud], [0]), Supermask(), SHORT, DIGITS)
