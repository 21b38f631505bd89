"""Scores against their definitions: closed forms, explicit derivatives and Jacobians, and untouched tickets."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from lthlib.errors import InputError
from lthlib.finders.scores import (
    force_scores,
    grasp_scores,
    loss_gradients,
    magnitude_scores,
    ntk_sap_scores,
    ntk_sketch_scores,
    random_scores,
    snip_scores,
)
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture, build
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.theory.sketching import distribution
from lthlib.ticket import Ticket, bases_for, dense_ticket, forward_of

SHAPE = (1, 8, 8)


def one_linear(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes, bias=False))


def dense(name: str, shape: tuple[int, int, int] = SHAPE, classes: int = 10, dtype=torch.float64) -> Ticket:
    model = architecture(name, shape, classes)
    state = initial_state(model, 0)
    return dense_ticket(model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})


def half(ticket: Ticket) -> Ticket:
    return ticket.with_masks(keep_top(random_scores(ticket, generator(1, "half")), ticket.prunable // 2))


def batch(count: int = 12, shape=SHAPE, classes: int = 10, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(count, *shape, generator=generator(0, "images"), dtype=dtype)
    return images, torch.arange(count) % classes


@pytest.mark.parametrize("name", ["lenet-12-8", "conv-2-w2", "resnet-8-w2"])
def test_snip_is_the_gradient_of_the_loss_with_respect_to_the_mask(name):
    ticket, (images, labels) = half(dense(name)), batch()
    module = build(ticket.architecture).double().eval()
    masks = {key: mask.double().requires_grad_() for key, mask in ticket.masks.items()}
    weights = {key: masks[key] * ticket.coefficients[key] for key in masks}
    loss = F.cross_entropy(functional_call(module, {**weights, **ticket.rest}, (images,)), labels)
    gradients = dict(zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True))
    scores, force = snip_scores(ticket, images, labels), force_scores(ticket, images, labels)
    parts = loss_gradients(ticket, images, labels, batch=5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(scores[key], (gradient * masks[key].detach()).abs())
        # The mask's gradient where it is 0 is FORCE's score: dense values, gradient of the masked network.
        torch.testing.assert_close(force[key], gradient.abs())
        torch.testing.assert_close(scores[key], (parts[key] * weights[key].detach()).abs())
        assert not scores[key][~ticket.masks[key]].any() and force[key][~ticket.masks[key]].any()


def test_scores_in_a_basis_are_those_of_its_coefficients():
    ticket, (images, labels) = dense("conv-2-w2"), batch()
    rotated = ticket.in_bases(bases_for(ticket, "random", 3))
    gradients = loss_gradients(ticket, images, labels)
    for key, score in snip_scores(rotated, images, labels).items():
        torch.testing.assert_close(
            score, (rotated.bases[key].analyse(gradients[key]) * rotated.coefficients[key]).abs()
        )
    assert all(torch.equal(score, rotated.coefficients[key].abs()) for key, score in magnitude_scores(rotated).items())


def gradient_norm(ticket: Ticket, images, labels, divide: float) -> float:
    forward = forward_of(ticket)
    leaves = {key: c.requires_grad_() for key, c in ticket.effective_coefficients().items()}
    loss = F.cross_entropy(forward(leaves, images) / divide, labels)
    return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(leaves.values())))


def without(ticket: Ticket, key: str, place: int) -> Ticket:
    masks = {name: mask.clone() for name, mask in ticket.masks.items()}
    masks[key].view(-1)[place] = False
    return ticket.with_masks(masks)


@pytest.mark.parametrize("divide", [1.0, 200.0])
def test_grasp_is_minus_half_the_change_of_the_squared_gradient(divide):
    ticket, (images, labels) = half(dense("lenet-6-5", (1, 2, 2), 3)), batch(9, (1, 2, 2), 3)
    scores = grasp_scores(ticket, images, labels, divide_logits=divide, batch=4)
    for key, c in ticket.coefficients.items():
        for place in ticket.masks[key].view(-1).nonzero().flatten().tolist():
            changed = []
            for step in (1e-5, -1e-5):
                moved = c.clone()
                moved.view(-1)[place] *= 1 - step
                state = {**ticket.state(), **{key: moved * ticket.masks[key]}}
                changed.append(gradient_norm(dense_ticket(ticket.architecture, state), images, labels, divide))
            slope = (changed[0] - changed[1]) / 2e-5
            assert float(scores[key].view(-1)[place]) == pytest.approx(-slope / 2, rel=1e-4, abs=1e-12)


def test_grasp_removes_first_the_weight_whose_removal_raises_the_gradient_most():
    # One input of 1, one example of class 0, logits w0 and w1: without w0 > 0 the example is more wrong and the
    # gradient larger, without w1 > 0 it is less wrong and the gradient smaller.
    ticket = dense(f"{__name__}:one_linear", (1, 1, 1), 2)
    ticket = replace(ticket, coefficients={"1.weight": torch.tensor([[0.4], [0.3]]).double()})
    images, labels = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, dtype=torch.long)
    before = gradient_norm(ticket, images, labels, 1.0)
    assert gradient_norm(without(ticket, "1.weight", 0), images, labels, 1.0) > before
    assert gradient_norm(without(ticket, "1.weight", 1), images, labels, 1.0) < before
    scores = grasp_scores(ticket, images, labels, divide_logits=1.0)
    assert float(scores["1.weight"][0]) < 0 < float(scores["1.weight"][1])
    assert keep_top(scores, 1)["1.weight"].tolist() == [[False], [True]]


@pytest.mark.parametrize(
    ("name", "rule"), [("lenet-12-8", "canonical"), ("conv-2-w2", "random"), ("resnet-8-w2", "canonical")]
)
def test_ntk_sketch_is_the_norm_of_the_jacobians_columns(name, rule):
    ticket, (images, _) = dense(name), batch(5)
    ticket = half(ticket.in_bases(bases_for(ticket, rule, 2)))
    values = ticket.effective_coefficients()
    forward = forward_of(ticket)
    jacobian = jacrev(lambda c: forward(c, images))(values)
    for key, score in ntk_sketch_scores(ticket, images).items():
        assert jacobian[key].shape == (5, 10, *values[key].shape)
        torch.testing.assert_close(score, values[key].abs() * jacobian[key].square().sum((0, 1)).sqrt())


def test_ntk_sketch_of_one_linear_layer_is_the_optimal_sketch():
    ticket, (images, _) = dense(f"{__name__}:one_linear"), batch(20)
    (score,) = ntk_sketch_scores(ticket, images).values()
    best = distribution("optimal", images.flatten(1).T, ticket.coefficients["1.weight"].T)
    torch.testing.assert_close(score.T / score.sum(), best)


def test_probes_estimate_the_exact_norms():
    ticket, (images, _) = dense("lenet-12-8"), batch(8)
    exact = ntk_sketch_scores(ticket, images)
    estimate = ntk_sketch_scores(ticket, images, probes=400, batch=4, source=generator(0, "probes"))
    for key, score in exact.items():
        # 800 squares: each known to 1 / sqrt(2 x 800) = 2.5 %, a layer's sum far better.
        assert float(estimate[key].square().sum()) == pytest.approx(float(score.square().sum()), rel=0.05)
        torch.testing.assert_close(estimate[key], score, rtol=0.2, atol=1e-12)
    with pytest.raises(InputError, match="generator"):
        ntk_sketch_scores(ticket, images, probes=2)
    with pytest.raises(InputError, match="choose probes"):
        ntk_sketch_scores(ticket, images, norm="batch")


def test_ntk_sap_of_one_linear_layer_has_its_closed_form():
    # The output moves by eps sum_k m_k z_k x_k, so the score of k is 2 eps^2 m_k sum over x of (m z x) z_k x_k,
    # whose mean over z and x is 2 eps^2 examples.
    ticket = half(dense(f"{__name__}:one_linear", classes=4, dtype=torch.float32))
    (score,) = ntk_sap_scores(ticket, 0, redraws=100, examples=64, perturbation=0.1).values()
    assert not score[~ticket.masks["1.weight"]].any()
    kept = score[ticket.masks["1.weight"]]
    assert float(kept.mean()) == pytest.approx(2 * 0.1**2 * 64 * 100, rel=0.05)
    again = ntk_sap_scores(ticket, 0, redraws=100, examples=64, perturbation=0.1)["1.weight"]
    assert torch.equal(score, again)


def test_ntk_sap_sees_the_mask_and_not_the_weights():
    ticket = half(dense("resnet-8-w2", dtype=torch.float32))
    other = replace(ticket, coefficients={key: torch.zeros_like(c) for key, c in ticket.coefficients.items()})
    first, second = (ntk_sap_scores(t, 5, redraws=1, examples=8) for t in (ticket, other))
    assert all(torch.equal(first[key], second[key]) and bool(first[key].any()) for key in first)
    assert all(bool(score.isfinite().all()) for score in first.values())


SCORES = {
    "magnitude": lambda ticket, images, labels: magnitude_scores(ticket),
    "snip": lambda ticket, images, labels: snip_scores(ticket, images, labels, norm="batch"),
    "force": force_scores,
    "grasp": lambda ticket, images, labels: grasp_scores(ticket, images, labels, norm="batch"),
    "ntk-sketch": lambda ticket, images, labels: ntk_sketch_scores(ticket, images),
    "ntk-sap": lambda ticket, images, labels: ntk_sap_scores(ticket, 0, redraws=1, examples=4),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_leave_the_ticket_and_the_global_generator_untouched(name):
    ticket, (images, labels) = half(dense("resnet-8-w2", dtype=torch.float32)), batch(6, dtype=torch.float32)
    digest, state = ticket.digest(), torch.random.get_rng_state()
    scores = SCORES[name](ticket, images, labels)
    assert ticket.digest() == digest and torch.equal(torch.random.get_rng_state(), state)
    assert {key: score.shape for key, score in scores.items()} == {key: m.shape for key, m in ticket.masks.items()}
    assert not any(score.requires_grad for score in scores.values())
    for key, score in scores.items():
        score.fill_(7)
        assert not (ticket.coefficients[key] == 7).any()


def test_batch_statistics_change_scores_and_an_unknown_norm_is_named():
    ticket, (images, labels) = dense("resnet-8-w2"), batch()
    running, own = snip_scores(ticket, images, labels), snip_scores(ticket, images, labels, norm="batch")
    assert not torch.allclose(running["output.weight"], own["output.weight"])
    with pytest.raises(InputError, match=r"unknown norm 'train' \(valid: eval, batch\)"):
        snip_scores(ticket, images, labels, norm="train")
