"""Planted tickets: hand-made networks that solve their tasks, hidden exactly, and verdicts with a known answer."""

import math
from dataclasses import replace

import pytest
import torch

from lthlib.errors import InputError
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.supermask import FinderArm, Supermask, find_supermasks, random_source
from lthlib.finders.supermask_search import Task
from lthlib.randomness import generator
from lthlib.studies.supermask_planted import as_dataset, planted_network, planted_table, samples, search_settings
from lthlib.theory.strong.planted import INPUTS, TASKS, compare, loss_of, outputs_of, scaled_to_fit, target
from lthlib.training.recipe import Recipe

DEPTHS = (2, 3, 4, 5, 7)
SHORT = Recipe(learning_rate=0.1, batch_size=100, epochs=2, evaluations=1)


def uniform(task: str, count: int = 500) -> torch.Tensor:
    return 2 * torch.rand(count, INPUTS[task], generator=generator(0, "x", task), dtype=torch.float64) - 1


def judged(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    return task.validation_inputs, task.validation_targets


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("depth", DEPTHS)
def test_relu_target_is_both_rectified_inputs(depth):
    x = uniform("relu")
    network = target("relu", depth)
    torch.testing.assert_close(network(x), torch.cat([x, -x], 1).clamp(min=0), rtol=0, atol=1e-15)
    assert len(network.weights) == depth and network.size == 2 * depth


def helix(x: torch.Tensor) -> torch.Tensor:
    y = 5 * math.pi + 3 * math.pi * x
    return torch.cat([y * y.cos(), y * y.sin(), y], 1) / (8 * math.pi)


@pytest.mark.parametrize("depth", DEPTHS)
def test_helix_target_meets_the_curve_at_its_knots(depth):
    network, knots = target("helix", depth, 12), torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
    torch.testing.assert_close(network(knots), helix(knots), rtol=0, atol=1e-12)
    # Between knots a piecewise linear curve: the middle is the mean of the ends.
    middle = (knots[1:] + knots[:-1]) / 2
    torch.testing.assert_close(network(middle), (helix(knots)[1:] + helix(knots)[:-1]) / 2, rtol=0, atol=1e-12)


def test_helix_error_falls_with_the_square_of_the_knots():
    x = uniform("helix", 4000)
    worst = [float((target("helix", 3, knots)(x) - helix(x)).abs().max()) for knots in (41, 81, 161)]
    assert worst[0] / worst[1] == pytest.approx(4, rel=0.2) and worst[1] / worst[2] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_circle_target_tells_the_rings(depth):
    x = uniform("circle", 4000)
    squared = x.square().sum(1)
    rings = torch.bucketize(squared, torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64))
    network = target("circle", depth, 200)
    assert bool((network(x).argmax(1) == rings).double().mean() > 0.999)
    # Logits are lines a s + c with a = 5, 10, 20, 40 and c = 0, -1, -6, -20.
    lines = squared[:, None] * torch.tensor([5.0, 10, 20, 40]) + torch.tensor([0.0, -1, -6, -20])
    torch.testing.assert_close(network(x), lines, rtol=0, atol=5e-3)
    assert bool((target("circle", depth)(x).argmax(1) == rings).double().mean() > 0.93)


# ------------------------------------------------------------------------------------------------------------ planting


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_planted_ticket_has_exactly_its_targets_outputs(task, depth):
    planted = planted_network(task, depth, 70, seed=depth, dtype=torch.float64)
    x = uniform(task)
    outputs = outputs_of(planted.ticket, x.view(len(x), 1, 1, -1)) / planted.output_scale
    torch.testing.assert_close(outputs, planted.target(x), rtol=1e-9, atol=1e-10)
    assert planted.ticket.kept == planted.target.size
    counts = [int(mask.sum()) for mask in planted.ticket.masks.values()]
    assert counts == [int(torch.count_nonzero(weight)) for weight in planted.target.weights]


@pytest.mark.parametrize("task", TASKS)
def test_only_planted_weights_differ_from_the_random_network(task):
    planted = planted_network(task, 4, 60, seed=2)
    random = random_source(planted.source.architecture, 2, bias_scale=1.0)
    for name, weight in random.coefficients.items():
        mask = planted.ticket.masks[name]
        assert torch.equal(planted.source.coefficients[name][~mask], weight[~mask])
        assert torch.equal(planted.ticket.coefficients[name], planted.source.coefficients[name])
        bias = name.removesuffix("weight") + "bias"
        untouched = ~mask.any(1)
        assert torch.equal(planted.source.rest[bias][untouched], random.rest[bias][untouched])
    # Where signs fit, the overwritten weight had the planted one's sign.
    assert planted.matched == pytest.approx(1, abs=0.15)
    name, mask = next(iter(planted.ticket.masks.items()))
    assert torch.equal(planted.source.coefficients[name][mask].sign(), random.coefficients[name][mask].sign())


def test_planting_repeats_by_seed_and_scales_its_output_on_demand():
    first, same, other = (
        planted_network("helix", 3, 40, 1),
        planted_network("helix", 3, 40, 1),
        planted_network("helix", 3, 40, 2),
    )
    assert first.source.digest() == same.source.digest() != other.source.digest()
    assert first.ticket.digest() == same.ticket.digest()
    full = planted_network("helix", 3, 40, 1, output_scale=1.0, dtype=torch.float64)
    x = uniform("helix")
    torch.testing.assert_close(outputs_of(full.ticket, x.view(-1, 1, 1, 1)), full.target(x), rtol=1e-9, atol=1e-10)
    assert full.output_scale == 1.0 != first.output_scale


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_rescaling_is_least_squares_and_leaves_silent_outputs_alone():
    outputs = torch.tensor([[1.0, 0], [2, 0], [3, 0]]).double()
    values = torch.tensor([[2.0, 1], [5, 1], [5, 1]]).double()
    assert scaled_to_fit(outputs, values)[:, 0].tolist() == pytest.approx([27 / 14, 54 / 14, 81 / 14])
    assert not scaled_to_fit(outputs, values)[:, 1].any()


@pytest.mark.parametrize("task", TASKS)
def test_planted_loss_is_the_noise_and_its_verdict_perfect(task):
    planted = planted_network(task, 4, 60, seed=1, knots=None if task == "relu" else 60 if task == "helix" else 30)
    shown = samples(planted.task, seed=3, noise=0.02)
    assert (len(shown.targets), len(shown.validation_targets)) == (9000, 1000)
    verdict = compare(planted, planted.ticket, *judged(shown))
    # One ring in 50 is wrong on purpose (and a few by interpolation), or the variance of the noise.
    assert verdict["loss"] == pytest.approx(0.02, abs=0.02) if task == "circle" else verdict["loss"] < 1.25 * 0.02**2
    assert verdict["loss"] == verdict["planted_loss"] == loss_of(planted.ticket, *judged(shown))
    assert (verdict["recall"], verdict["precision"], verdict["attained"]) == (1, 1, 1)
    assert verdict["explained"] > 0.9
    assert verdict["density"] == verdict["planted_density"] == planted.target.size / planted.source.prunable


def test_a_random_mask_recalls_what_chance_says_and_attains_nothing():
    planted = planted_network("helix", 3, 60)
    shown = samples(planted.task, count=1000)
    verdicts = [
        compare(planted, layerwise_shuffled(replace(planted.ticket, seed=seed)), *judged(shown)) for seed in range(40)
    ]
    recall = sum(verdict["recall"] for verdict in verdicts) / 40
    assert recall == pytest.approx(verdicts[0]["chance"], abs=0.03)
    assert not any(verdict["attained"] for verdict in verdicts)
    assert max(verdict["explained"] for verdict in verdicts) < 0.5
    whole = compare(planted, planted.source, *judged(shown))
    assert whole["recall"] == whole["chance"] == whole["density"] == 1
    assert whole["precision"] == pytest.approx(planted.ticket.density)


def test_samples_are_the_tasks_and_noise_flips_rings_to_the_second_best():
    planted = planted_network("circle", 3, 40)
    clean, noisy = samples(planted.task, 5, 5000, noise=0.0), samples(planted.task, 5, 5000, noise=0.3)
    assert torch.equal(clean.inputs, noisy.inputs) and float(clean.inputs.abs().max()) <= 1
    squared = clean.inputs.flatten(1).square().sum(1)
    rings = torch.bucketize(squared, torch.tensor([0.2, 0.5, 0.7]))
    assert int((rings != clean.targets).sum()) <= 2  # float32 at the very boundary
    flipped = clean.targets != noisy.targets
    assert float(flipped.double().mean()) == pytest.approx(0.3, abs=0.03)
    assert bool(((clean.targets - noisy.targets).abs()[flipped] == 1).all())
    data = as_dataset(planted.task, clean)
    assert data.input_shape == (1, 1, 2) and data.classes == 4 and len(data.test.labels) == 500


@pytest.mark.parametrize("layers", ["planted", "equal", "global"])
def test_finders_run_at_the_planted_density(layers):
    planted = planted_network("relu", 3, 30)
    shown = samples(planted.task, count=400)
    settings = search_settings(planted, "edge-popup", layers)
    (search,) = find_supermasks([planted.source], settings, SHORT, shown)
    assert search.ticket.kept == planted.ticket.kept
    same = [int(search.ticket.masks[k].sum()) == int(m.sum()) for k, m in planted.ticket.masks.items()]
    assert all(same) == (layers == "planted")


def test_a_table_of_finders_beside_the_planted_ticket():
    finders = {"popup": FinderArm(Supermask(), SHORT)}
    table = planted_table(finders, [0, 1], tasks=["circle", "relu"], width=40, count=400, densities=[0.5])
    assert len(table) == 2 * (4 + 4 + 3 + 4)
    planted = table[table["finder"] == "planted"]
    assert (planted["recall"] == 1).all() and (planted["attained"] == 1).all()
    others = table[(table["finder"] != "planted") & (table["density"] != 0.5)]
    assert set(others["finder"]) == {"random mask", "magnitude", "snip", "popup"}
    assert others["density"].to_numpy() == pytest.approx(others["planted_density"].to_numpy(), abs=1e-3)
    halves = table[table["density"].round(2) == 0.5]
    assert len(halves) == 4 and set(halves["layers"]) == {"equal"}


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"unknown planted task 'cirle', did you mean 'circle'\?"):
        target("cirle", 3)
    with pytest.raises(InputError, match="depth 2 or more, found 1"):
        target("relu", 1)
    with pytest.raises(InputError, match="2 knots or more, found 1"):
        planted_network("helix", 3, knots=1)
    with pytest.raises(InputError, match="width 20 cannot hold the target of task 'helix', which needs 30"):
        planted_network("helix", 3, 20)
    with pytest.raises(InputError, match="output_scale must be above 0 and finite, found 0"):
        planted_network("relu", 3, 20, output_scale=0)
    planted = planted_network("relu", 2, 10)
    with pytest.raises(InputError, match="unknown layers 'same'"):
        search_settings(planted, "biprop", "same")
    with pytest.raises(InputError, match="count of 10 or more and noise of 0 or more, found 5"):
        samples(planted.task, count=5)
    with pytest.raises(InputError, match="'relu' has values for targets, not classes"):
        as_dataset(planted.task, samples(planted.task, count=50))
