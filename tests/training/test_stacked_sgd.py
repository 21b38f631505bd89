"""The step by hand is that of autograd and torch.optim.SGD: in every basis, masked or not, for one or several."""

from dataclasses import replace

import pytest
import torch
from replicates import of_seeds

from lthlib import data
from lthlib.finders import imp as magnitude
from lthlib.models import architecture as models
from lthlib.ticket import Ticket, bases_for, initial_tickets
from lthlib.training import steps
from lthlib.training import train as training
from lthlib.training.recipe import Recipe
from lthlib.training.stacked_sgd import covers
from lthlib.training.stacks import network

DIGITS = data.load("digits", train_size=200, device="cpu")
RECIPE = Recipe(learning_rate=0.05, epochs=3, batch_size=64, precision="fp64", weight_decay=5e-4, evaluations=2)


def tickets(rule: str, off: str, model: str = "lenet-24-16", count: int = 3) -> list[Ticket]:
    architecture = models.architecture(model, DIGITS.input_shape, DIGITS.classes)
    dense = initial_tickets(architecture, range(count))
    turned = [ticket.in_bases(bases_for(ticket, rule)) for ticket in dense]
    scores = [{name: c.abs() for name, c in ticket.coefficients.items()} for ticket in turned]
    return magnitude.prune(turned, scores, magnitude.Pruning(levels=1, keep=0.4, off=off), 1, "kept")


@pytest.mark.parametrize("rule", ["canonical", "dct@input", "random", "haar@in", "hadamard@out"])
@pytest.mark.parametrize("off", ["zero", "init"])
def test_same_weights_as_autograd(rule: str, off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = tickets(rule, off)
    by_hand = training.train(of_seeds(pruned, [0, 1, 2]), RECIPE, DIGITS)
    monkeypatch.setattr(steps, "covers", lambda *_: False)
    by_autograd = training.train(of_seeds(pruned, [0, 1, 2]), RECIPE, DIGITS)
    for one, other in zip(by_hand, by_autograd, strict=True):
        for name, c in one.ticket.coefficients.items():
            assert torch.allclose(c, other.ticket.coefficients[name], rtol=0, atol=1e-13)
        for name, value in one.ticket.rest.items():
            assert torch.allclose(value, other.ticket.rest[name], rtol=0, atol=1e-13)
        assert one.history[-1]["train_loss"] == pytest.approx(other.history[-1]["train_loss"], rel=1e-12)


def test_one_replicate_rounds_as_several_do() -> None:
    recipe = replace(RECIPE, precision="fp32")
    pruned = tickets("canonical", "zero", "lenet-300-100")
    together = training.train(of_seeds(pruned, [0, 1, 2]), recipe, DIGITS)
    for seed, ticket in enumerate(pruned):
        (alone,) = training.train(of_seeds([ticket], [seed]), recipe, DIGITS)
        assert alone.history == together[seed].history
        for name, c in alone.ticket.coefficients.items():
            assert torch.equal(c, together[seed].ticket.coefficients[name])


def test_covers_only_what_it_is_written_for() -> None:
    def net(rule: str = "canonical", state_in: str = "coefficients"):
        return network(tickets(rule, "zero", count=1), torch.device("cpu"), torch.float32, state_in)

    assert covers(net(), "sgd", nesterov=False)
    assert not covers(net(), "sgd", nesterov=True)
    assert not covers(net(), "adam", nesterov=False)
    assert not covers(net("random", "weights"), "sgd", nesterov=False)
