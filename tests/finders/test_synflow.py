"""SynFlow: conservation, no overflow, the published schedule, and rounds in place that give the same masks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lthlib.errors import InputError
from lthlib.finders import synflow
from lthlib.finders.find import find
from lthlib.finders.from_scores import exponential_counts, prune_by
from lthlib.finders.paths import collapsed_layers, is_connected
from lthlib.finders.scores import random_scores
from lthlib.finders.synflow import synflow_masks, synflow_scores
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, bases_for, dense_ticket


def one_linear(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes))


def dense(name: str, shape: tuple[int, int, int] = (1, 8, 8)) -> Ticket:
    model = architecture(name, shape, 10)
    return dense_ticket(model, initial_state(model, 0))


def test_one_linear_layer_scores_its_magnitudes():
    ticket = dense(f"{__name__}:one_linear")
    (score,) = synflow_scores(ticket).values()
    assert score.dtype == torch.float64 and torch.equal(score, ticket.coefficients["1.weight"].abs().double())


@pytest.mark.parametrize("name", ["lenet-12-8-6", "conv-4-w2", "vgg-11-w2", "vgg-11-fc2-w2"])
def test_flow_is_conserved_from_layer_to_layer(name):
    ticket = dense(name)
    for masked in (ticket, ticket.with_masks(synflow_masks(ticket, [ticket.prunable // 3]))):
        sums = [float(score.sum()) for score in synflow_scores(masked).values()]
        assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-12) and sums[0] > 0


def test_fifty_layers_neither_overflow_nor_underflow():
    ticket = dense("lenet" + "-100" * 50)
    for scale in (1.0, 1e3, 1e-3):
        scaled = replace(ticket, coefficients={name: c * scale for name, c in ticket.coefficients.items()})
        scores = synflow_scores(scaled)
        assert all(bool(score.isfinite().all()) and float(score.sum()) > 0 for score in scores.values())
    found = find(ticket, 0.01, "synflow", iterations=3)
    assert found.kept == round(0.01 * ticket.prunable)


def test_trained_statistics_and_signs_do_not_matter():
    ticket = dense("resnet-8-w2")
    noisy = {
        name: tensor + 1 if name.endswith(("running_mean", "running_var")) else tensor
        for name, tensor in ticket.rest.items()
    }
    flipped = {name: -c for name, c in ticket.coefficients.items()}
    other = synflow_scores(replace(ticket, rest=noisy, coefficients=flipped))
    assert all(torch.equal(score, other[name]) for name, score in synflow_scores(ticket).items())


def test_scores_leave_the_ticket_untouched_bit_for_bit():
    ticket = dense("resnet-8-w2")
    ticket = ticket.with_masks(keep_top(random_scores(ticket, generator(0, "m")), ticket.prunable // 2))
    digest = ticket.digest()
    synflow_scores(ticket)
    find(ticket, 0.1, "synflow", iterations=5)
    assert ticket.digest() == digest
    assert {tensor.dtype for tensor in ticket.coefficients.values()} == {torch.float32}


def test_density_follows_the_exponential_schedule():
    ticket = dense("lenet-20-10")
    total, density = ticket.prunable, 0.02
    counts = exponential_counts(total, density * total, 100)
    kept = [step.kept for step in prune_by(synflow_scores, ticket, counts)]
    assert kept == counts and kept[-1] == round(density * total)
    assert all(abs(kept[i - 1] - total * density ** (i / 100)) <= 1 for i in range(1, 101))


@pytest.mark.parametrize(("name", "start"), [("lenet-20-10", 1.0), ("conv-2-w2", 0.6), ("resnet-8-w2", 1.0)])
@pytest.mark.parametrize("ties", [False, True])
def test_rounds_in_place_give_the_masks_of_plain_rounds(name, start, ties, monkeypatch):
    monkeypatch.setattr("lthlib.finders.synflow.SAMPLED", 100)
    ticket = dense(name)
    if ties:
        # Few distinct values, many of them zero.
        coarse = {key: (c * 4 / c.abs().max()).round() / 4 for key, c in ticket.coefficients.items()}
        ticket = replace(ticket, coefficients=coarse)
    ticket = ticket.with_masks(keep_top(random_scores(ticket, generator(0, "start")), round(start * ticket.prunable)))
    counts = exponential_counts(ticket.kept, ticket.prunable // 20, 30)
    *_, plain = prune_by(synflow_scores, ticket, counts)
    fast = synflow_masks(ticket, counts)
    assert all(torch.equal(fast[key], mask) for key, mask in plain.masks.items())
    assert all(not (mask & ~ticket.masks[key]).any() for key, mask in fast.items())


@pytest.mark.parametrize("sampled", [200, 1000, 1500])
def test_a_sample_tells_what_is_near_the_threshold(sampled, monkeypatch):
    calls: list[int] = []

    def counted(bound, pairs, up_to=synflow._up_to):
        indices, scores, sizes = up_to(bound, pairs)
        calls.append(len(scores))
        return indices, scores, sizes

    monkeypatch.setattr(synflow, "SAMPLED", sampled)
    monkeypatch.setattr(synflow, "_up_to", counted)
    ticket = dense("vgg-11-w8", (3, 32, 32))
    counts = exponential_counts(ticket.prunable, ticket.prunable / 2, 10)
    synflow_masks(ticket, counts)
    # Seldom a second look at everything, and never many more than are lost.
    assert len(calls) <= len(counts) + 1
    assert sorted(calls)[5] < 3 * ticket.prunable / 2 / len(counts)


@pytest.mark.parametrize("name", ["lenet-30-20", "conv-2-w4"])
def test_no_layer_collapses_down_to_one_weight_a_layer(name):
    ticket = dense(name)
    layers = len(ticket.masks)
    for count in (layers, 3 * layers, ticket.prunable // 50):
        found = find(ticket, count / ticket.prunable, "synflow")
        assert found.kept == count and collapsed_layers(found) == () and is_connected(found)
    one_shot = find(ticket, layers / ticket.prunable, "magnitude")
    assert collapsed_layers(one_shot)


def test_batchnorm_in_training_mode_and_dead_networks_are_refused():
    ticket = dense("resnet-8-w2")
    with pytest.raises(InputError, match="unknown option of method 'synflow' 'norm'"):
        find(ticket, 0.1, "synflow", norm="batch")
    dead = {key: torch.zeros_like(c) if key == "stem.0.weight" else c for key, c in ticket.coefficients.items()}
    with pytest.raises(InputError, match=r"synflow gave only zero scores in layer 'stem\.0\.weight'"):
        find(replace(ticket, coefficients=dead), 0.1, "synflow")


def test_in_a_basis_the_scores_are_of_coefficients():
    ticket = dense("lenet-12-8")
    rotated = ticket.in_bases(bases_for(ticket, "random", 1))
    scores = synflow_scores(rotated)
    for name, basis in rotated.bases.items():
        c = rotated.coefficients[name].double().requires_grad_()
        flow = (basis.synthesise(c).abs() * (synflow_scores(ticket)[name] / ticket.coefficients[name].abs())).sum()
        (gradient,) = torch.autograd.grad(flow, c)
        torch.testing.assert_close(scores[name], (gradient * c).abs().detach(), rtol=1e-4, atol=1e-6)
    found = find(rotated, 0.1, "synflow", iterations=5)
    assert found.kept == round(0.1 * ticket.prunable)
