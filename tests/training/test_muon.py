"""Muon on stacks steps as torch's does on each matrix, and leaves what is pruned where it is."""

from dataclasses import replace

import pytest
import torch
from replicates import of_seed, of_seeds
from torch.nn.functional import cross_entropy

from lthlib.data import Dataset, load
from lthlib.errors import InputError
from lthlib.finders.controls import layerwise_shuffled
from lthlib.finders.dynamic import train_dynamic
from lthlib.finders.find import find
from lthlib.finders.supermask import Supermask, find_supermasks
from lthlib.models.architecture import architecture, build
from lthlib.randomness import generator
from lthlib.ticket import Ticket, bases_for, initial_tickets
from lthlib.training.optimizers import orthogonalised
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

DIGITS = load("digits", train_size=120, validation_size=30, device="cpu")
RECIPE = Recipe(
    optimizer="muon", learning_rate=0.02, momentum=0.95, nesterov=True, batch_size=40, epochs=2, evaluations=1
)
LENET = architecture("lenet-12-8", DIGITS.input_shape, 10)


def tickets(rule: str = "canonical", density: float = 1.0, seeds: int = 1) -> list[Ticket]:
    whole = [one.in_bases(bases_for(one, rule)) for one in initial_tickets(LENET, range(seeds))]
    return [find(of_seed(one, seed), density, "random") if density < 1 else one for seed, one in enumerate(whole)]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_a_dense_network_trains_as_with_torch_alone() -> None:
    (start,) = tickets()
    (run,) = train(of_seeds([start], [0]), replace(RECIPE, schedule="constant"), DIGITS)
    module = build(LENET)
    module.load_state_dict(start.state())
    matrices = [parameter for parameter in module.parameters() if parameter.dim() == 2]
    biases = [parameter for parameter in module.parameters() if parameter.dim() == 1]
    options = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.0}
    optimizers = [torch.optim.Muon(matrices, **options), torch.optim.SGD(biases, **options)]  # type: ignore[arg-type]
    images, labels = DIGITS.normalised("train"), DIGITS.train.labels
    for epoch in range(2):
        for chosen in torch.randperm(120, generator=generator(0, "order", epoch)).split(40):
            module.zero_grad()
            cross_entropy(module(images[chosen]), labels[chosen]).backward()
            for optimizer in optimizers:
                optimizer.step()
    for name, weight in run.ticket.weights().items():
        moved, wanted = (after - start.weights()[name] for after in (weight, module.state_dict()[name]))
        # Torch's own iterations run in bfloat16.
        assert (moved - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize("off", ["zero", "init"])
@pytest.mark.parametrize("rule", ["canonical", "dct", "random", "units"])
def test_what_is_pruned_stays_where_it_is(rule: str, off: str, state_in: str) -> None:
    (whole,) = initial_tickets(LENET, [0])
    whole = whole.in_bases(bases_for(whole, rule, fit_to=whole.weights()))
    start = replace(find(of_seed(whole, 0), 0.3, "random"), off=off)  # type: ignore[arg-type]
    (run,) = train(of_seeds([start], [0]), replace(RECIPE, state_in=state_in, weight_decay=0.1), DIGITS)  # type: ignore[arg-type]
    for name, mask in start.masks.items():
        held = start.effective_coefficients()[name]
        assert torch.equal(run.ticket.coefficients[name][~mask], held[~mask])
        assert not torch.equal(run.ticket.coefficients[name][mask], held[mask])


def test_a_replicate_does_not_depend_on_its_neighbours() -> None:
    three = tickets("dct", 0.4, seeds=3)
    together = train(of_seeds(three, range(3)), RECIPE, DIGITS)
    (alone,) = train(of_seeds(three[1:2], [1]), RECIPE, DIGITS)
    assert together[1].ticket.digest() == alone.ticket.digest()


def test_turned_networks_take_turned_steps() -> None:
    """Newton-Schulz commutes with rotations of rows and columns, up to bfloat16; Adam's steps do not."""
    step = replace(RECIPE, epochs=1 / 3, schedule="constant")
    found = {}
    for optimizer in ("muon", "adam"):
        recipe = replace(step, optimizer=optimizer)
        runs = [train(of_seeds(tickets(rule), [0]), recipe, DIGITS)[0] for rule in ("canonical", "dct")]
        (start,) = tickets()
        first, second = (run.ticket.weights()["1.weight"] - start.weights()["1.weight"] for run in runs)
        found[optimizer] = float((first - second).norm() / first.norm())
    assert found["muon"] < 1e-3
    assert found["adam"] > 0.3


def test_convolutions_step_by_sgd() -> None:
    network = architecture("conv-2-w2", DIGITS.input_shape, 10)
    (start,) = initial_tickets(network, [0])
    one = replace(RECIPE, epochs=1 / 3, schedule="constant")
    (run,) = train(of_seeds([start], [0]), one, DIGITS)
    (plain,) = train(of_seeds([start], [0]), replace(one, optimizer="sgd"), DIGITS)
    for name, c in run.ticket.coefficients.items():
        assert torch.equal(c, plain.ticket.coefficients[name]) == (c.dim() == 4)
    (sparse,) = train(of_seeds([layerwise_shuffled(of_seed(find(start, 0.5, "random"), 0))], [0]), RECIPE, DIGITS)
    assert sparse.ticket.density == 0.5


def test_masks_may_change_while_it_trains() -> None:
    (run,) = train_dynamic(of_seeds(tickets(), [0]), 0.3, "rigl", RECIPE, DIGITS, interval=2)
    for name, mask in run.ticket.masks.items():
        assert not run.ticket.coefficients[name][~mask].any()


def test_it_learns_digits() -> None:
    data: Dataset = load("digits", device="cpu")
    (run,) = train(of_seeds(tickets("haar"), [0]), replace(RECIPE, epochs=8), data)
    assert run.history[-1]["validation_accuracy"] > 80


def test_scores_of_masks_do_not_take_it() -> None:
    with pytest.raises(InputError, match="unknown optimizer of a mask's scores 'muon'"):
        find_supermasks(of_seeds(tickets(), [0]), Supermask(density=0.5), RECIPE, DIGITS)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=generator(0, "matrix"), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ orthogonalised(matrix) @ vh.mT
    values = inside.diagonal()
    assert torch.allclose(inside, values.diag(), atol=1e-10)
    assert ((values > 0.6) & (values < 1.25)).all()
    assert not orthogonalised(torch.zeros(shape)).any()
