"""The Jacobian as a data matrix."""

import pytest
import torch

from lthlib.errors import InputError
from lthlib.finders.scores import ntk_sketch_scores
from lthlib.models import architecture as models
from lthlib.theory import linearisation
from lthlib.theory.linearisation import flat, jacobian
from lthlib.ticket import forward_of, initial_tickets


def small():
    architecture = models.architecture("lenet-6-5", (1, 4, 4), 3)
    (ticket,) = initial_tickets(architecture, [0])
    return ticket, torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_jacobian_predicts_a_small_step() -> None:
    ticket, images = small()
    x = jacobian(ticket, images)
    step = 1e-4 * torch.randn(ticket.prunable, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parts = torch.split(step, [c.numel() for c in ticket.coefficients.values()])
    moved = {
        name: c.double() + part.view_as(c) for (name, c), part in zip(ticket.coefficients.items(), parts, strict=True)
    }
    start = {name: c.double() for name, c in ticket.coefficients.items()}
    forward, rest = forward_of(ticket), ticket.rest
    for name in rest:
        rest[name] = rest[name].double()
    change = (forward(moved, images.double()) - forward(start, images.double())).view(-1)
    assert torch.allclose(x.T @ step, change, rtol=1e-3, atol=1e-7)


def test_bias_free_relu_network_is_its_jacobian_times_its_weights_over_the_depth() -> None:
    ticket, images = small()
    rest = {name: torch.zeros_like(value) for name, value in ticket.rest.items()}
    ticket = ticket.__class__(ticket.architecture, ticket.bases, ticket.coefficients, ticket.masks, rest)
    logits = forward_of(ticket)(ticket.coefficients, images).double().view(-1)
    # Euler's theorem: the logits are homogeneous of degree 3 in the weights of three layers.
    assert torch.allclose(jacobian(ticket, images).T @ flat(ticket.coefficients), 3 * logits, rtol=1e-4, atol=1e-5)


def test_row_norms_are_the_sketch_scores() -> None:
    ticket, images = small()
    scores = flat(ntk_sketch_scores(ticket, images, probes=None))
    expected = flat(ticket.coefficients).abs() * jacobian(ticket, images).norm(dim=1)
    assert torch.allclose(scores / scores.sum(), expected / expected.sum(), rtol=1e-4)


def test_too_large_a_jacobian_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearisation, "LARGEST", 100)
    with pytest.raises(InputError, match="take fewer images"):
        jacobian(*small())
