"""Structured tickets are the smaller networks that they claim to be, and cost what those cost."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicates import of_seeds
from torch import nn

from lthlib.basis import bases
from lthlib.data import Dataset, load
from lthlib.errors import InputError
from lthlib.finders.structured import (
    low_rank_identity_error,
    low_rank_ticket,
    multiply_accumulates_of,
    readers,
    singular_values,
    stored_numbers_of,
    unit_identity_error,
    unit_norms,
    unit_ticket,
)
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture, build, multiply_accumulates
from lthlib.randomness import generator
from lthlib.ticket import Ticket, bases_for, dense_ticket, initial_tickets
from lthlib.training.loop import Trained
from lthlib.training.proximal import LOW_RANK_FORMS, Penalty, factorised_numbers, rank
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

DIGITS = (1, 8, 8)
SMALL = {
    "lenet-24-16": DIGITS,
    "conv-2-w4": DIGITS,
    "resnet-8-w4": DIGITS,
    "vgg-11-w4": DIGITS,
    "vgg-11-fc2-w4": DIGITS,
}
STEPS = Recipe(epochs=0.5, evaluations=1, weight_decay=1e-2, learning_rate=0.05)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train_size=300, validation_size=50, device="cpu")


def gaussian(shape: tuple[int, ...], *purpose: str | int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test", *purpose))


def dense(name: str, dtype: torch.dtype = torch.float64) -> Ticket:
    """A ticket with biases and normalisation away from zero and one, as after training."""
    (ticket,) = initial_tickets(architecture(name, SMALL[name], 10), [0])
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in ticket.state().items()}
    for key, value in ticket.rest.items():
        if value.is_floating_point():
            noise = 0.3 * gaussian(tuple(value.shape), name, key)
            state[key] = (value + (noise.abs() if "var" in key else noise)).to(dtype)
    return dense_ticket(ticket.architecture, state)


def as_trained(ticket: Ticket) -> Trained:
    return Trained(ticket=ticket, history=[], early_stopping_step=1, snapshots={0: ticket})


def logits(ticket: Ticket, images: torch.Tensor) -> torch.Tensor:
    module = build(ticket.architecture).double().eval()
    module.load_state_dict(ticket.state())
    with torch.no_grad():
        return module(images)


# -------------------------------------------------------------------------------------------------------------- units


def test_which_layer_reads_a_layers_units() -> None:
    assert readers(architecture("lenet-24-16", DIGITS, 10)) == {"1.weight": "3.weight", "3.weight": "5.weight"}
    conv = readers(architecture("conv-2-w4", DIGITS, 10))
    assert conv["stages.0.2.weight"] == "hidden1.weight"
    assert conv["hidden2.weight"] == "output.weight"
    resnet = readers(architecture("resnet-8-w4", DIGITS, 10))
    assert resnet["stages.1.0.conv1.weight"] == "stages.1.0.conv2.weight"
    assert len(resnet) == 3, "only what lies inside a block: elsewhere paths add up"
    assert len(readers(architecture("vgg-11-w4", DIGITS, 10))) == 8


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_a_unit_ticket_ignores_whatever_its_dead_units_would_give_out(name: str, scope: str) -> None:
    ticket = dense(name)
    pruned = unit_ticket(ticket, as_trained(ticket), 0.5, scope=scope)
    images = gaussian((6, *DIGITS), "images")
    expected = logits(pruned, images)
    assert not torch.allclose(expected, logits(ticket, images))
    # Move everything that belongs to dead units: rows, biases, BatchNorm.
    noisy, moved = dict(pruned.state()), 0
    for tensor in readers(ticket.architecture):
        dead = ~pruned.masks[tensor].flatten(1).any(1)
        prefix = tensor.removesuffix("weight")
        norm = prefix.replace("conv", "norm")
        for key in {prefix + "bias", f"{norm}weight", f"{norm}bias", f"{norm}running_mean"} & set(pruned.rest):
            noisy[key] = noisy[key] + dead * 7.0
            moved += int(dead.sum())
    assert moved > 0
    module = build(ticket.architecture).double().eval()
    module.load_state_dict(noisy)
    with torch.no_grad():
        assert torch.equal(module(images), expected)


def smaller(pruned: Ticket) -> Ticket:
    """The LeNet that has only the live units of a pruned one."""
    inputs = torch.ones(64, dtype=torch.bool)
    state, widths = {}, []
    names = list(pruned.masks)
    for name in names:
        rows = pruned.masks[name].any(1) if name != names[-1] else torch.ones(10, dtype=torch.bool)
        state[name] = pruned.weights()[name][rows][:, inputs]
        bias = name.replace("weight", "bias")
        state[bias] = pruned.rest[bias][rows]
        widths.append(int(rows.sum()))
        inputs = rows
    small = architecture("lenet-" + "-".join(map(str, widths[:-1])), pruned.architecture.input_shape, 10)
    return dense_ticket(small, state)


@settings(max_examples=20, deadline=None)
@given(density=st.floats(0.01, 1), scope=st.sampled_from(["layerwise", "global"]))
def test_a_unit_ticket_is_a_smaller_dense_network_and_costs_the_same(density: float, scope: str) -> None:
    ticket = dense("lenet-24-16")
    pruned = unit_ticket(ticket, as_trained(ticket), density, scope=scope)
    small = smaller(pruned)
    images = gaussian((6, *DIGITS), "images")
    torch.testing.assert_close(logits(pruned, images), logits(small, images), rtol=0, atol=1e-12)
    assert list(multiply_accumulates_of(pruned).values()) == list(multiply_accumulates(small.architecture).values())
    # Beyond the smaller network's weights only bits for which rows and columns are gone: 16 + 24 + 64 + 10 at most.
    extra = sum(stored_numbers_of(pruned).values()) - small.prunable
    assert 0 <= extra <= 7
    live = [int(pruned.masks[name].any(1).sum()) for name in ("1.weight", "3.weight")]
    if scope == "layerwise":
        assert live == [max(1, round(density * 24)), max(1, round(density * 16))]
    else:
        assert sum(live) == max(2, round(density * 40))
        assert min(live) >= 1


def test_units_go_by_trained_norm_and_values_come_from_the_ticket() -> None:
    ticket, final = dense("lenet-24-16"), dense("lenet-24-16")
    order = torch.randperm(24, generator=generator(0, "order"))
    weights = {**final.coefficients, "1.weight": final.coefficients["1.weight"] * (1.0 + order)[:, None] ** 3}
    pruned = unit_ticket(ticket, as_trained(replace(final, coefficients=weights)), 0.25)
    assert torch.equal(pruned.masks["1.weight"].any(1), order >= 18)
    assert torch.equal(pruned.coefficients["1.weight"], ticket.coefficients["1.weight"])
    assert torch.equal(pruned.rest["1.bias"], ticket.rest["1.bias"] * (order >= 18))
    assert torch.equal(pruned.masks["3.weight"].any(0), order >= 18)


def test_falling_densities_nest() -> None:
    ticket = dense("conv-2-w4")
    half = unit_ticket(ticket, as_trained(ticket), 0.5)
    # Other scores at the second level: the dead must stay dead all the same.
    other = as_trained(dense_ticket(ticket.architecture, {k: v.flip(0) for k, v in ticket.state().items()}))
    quarter = unit_ticket(half, other, 0.25)
    for name, mask in quarter.masks.items():
        assert not (mask & ~half.masks[name]).any()
    assert int(quarter.masks["hidden1.weight"].any(1).sum()) == 4


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_dead_units_stay_dead_through_training(name: str, optimizer: str, digits: Dataset) -> None:
    ticket = dense(name, torch.float32)
    pruned = unit_ticket(ticket, as_trained(ticket), 0.5)
    recipe = replace(STEPS, optimizer=optimizer, learning_rate=0.01)
    [run] = train(of_seeds([pruned], [0]), recipe, digits)
    for tensor, reader in readers(ticket.architecture).items():
        dead = ~pruned.masks[tensor].flatten(1).any(1)
        assert dead.any()
        weights = run.ticket.weights()
        assert not weights[tensor][dead].any()
        assert not weights[reader].unflatten(1, (len(dead), -1))[:, dead].any()
        bias = tensor.removesuffix("weight") + "bias"
        if bias in run.ticket.rest:
            assert not run.ticket.rest[bias][dead].any()
            assert not torch.equal(run.ticket.rest[bias], pruned.rest[bias])


def test_unit_tickets_live_in_any_basis_of_the_input_and_in_no_basis_that_mixes_units() -> None:
    ticket = dense("lenet-24-16")
    shapes = {name: tuple(c.shape) for name, c in ticket.coefficients.items()}
    canonical = unit_ticket(ticket, as_trained(ticket), 0.5)
    dct = ticket.in_bases(bases("dct@input", shapes, DIGITS))
    pruned = unit_ticket(dct, as_trained(dct), 0.5)
    assert all(torch.equal(pruned.masks[name], mask) for name, mask in canonical.masks.items())
    for name, weight in pruned.weights().items():
        torch.testing.assert_close(weight, canonical.weights()[name], rtol=0, atol=1e-14)
    assert multiply_accumulates_of(pruned) == multiply_accumulates_of(canonical)
    for rule, axis, tensor in (("random@out", 0, "1.weight"), ("random@in", 1, "3.weight"), ("units", 1, "3.weight")):
        mixed = ticket.in_bases(bases(rule, shapes, DIGITS, weights=ticket.weights()))
        with pytest.raises(InputError, match=f"mixes the units on axis {axis} of '{tensor}'"):
            unit_ticket(mixed, as_trained(mixed), 0.5)


@pytest.mark.parametrize("rule", ["dct@input", "random@in"])
def test_unit_norms_do_not_see_a_basis_of_the_input_axis(rule: str) -> None:
    ticket = dense("lenet-24-16")
    turned = ticket.in_bases(bases_for(ticket, rule))
    for name, norms in unit_norms(turned).items():
        torch.testing.assert_close(norms, unit_norms(ticket)[name], rtol=1e-12, atol=0)
        # Not even in the coefficients themselves.
        torch.testing.assert_close(turned.coefficients[name].norm(dim=1), norms, rtol=1e-12, atol=0)


def with_a_skip(shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.output = nn.Linear(math.prod(shape), 8), nn.Linear(8, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.output(self.first(images.flatten(1)))

    return Skip()


def chain(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6 * 16, 8), nn.Sigmoid(), nn.Linear(8, classes),
    )  # fmt: skip


def test_a_users_own_chain_has_readers_and_another_structure_is_refused() -> None:
    assert readers(architecture(f"{__name__}:chain", DIGITS, 10)) == {"0.weight": "5.weight", "5.weight": "7.weight"}
    with pytest.raises(InputError, match=r"which layer reads which units of model .*with_a_skip.* is not known"):
        readers(architecture(f"{__name__}:with_a_skip", DIGITS, 10))


def test_a_group_penalty_finds_whole_units(digits: Dataset) -> None:
    tickets = initial_tickets(architecture("lenet-24-16", DIGITS, 10), [0, 1])
    recipe = Recipe(epochs=6, learning_rate=0.05, batch_size=32, evaluations=1)
    for ticket, run in zip(
        tickets, train(of_seeds(tickets, [0, 1]), recipe, digits, penalty=Penalty("group", 0.2)), strict=True
    ):
        alive = unit_norms(run.ticket)["1.weight"] > 0
        assert 0 < int(alive.sum()) < 24
        pruned = unit_ticket(ticket, run, int(alive.sum()) / 24)
        assert torch.equal(pruned.masks["1.weight"].any(1), alive)


# ----------------------------------------------------------------------------------------------------------- low rank


@pytest.mark.parametrize("form", LOW_RANK_FORMS)
@pytest.mark.parametrize("name", ["lenet-24-16", "conv-2-w4"])
def test_a_low_rank_ticket_has_its_rank_its_numbers_and_its_cost(form: str, name: str) -> None:
    ticket = dense(name)
    final = dense_ticket(
        ticket.architecture, {key: value + gaussian(tuple(value.shape), key) for key, value in ticket.state().items()}
    )
    pruned = low_rank_ticket(ticket, as_trained(final), 0.25, form)
    macs, stored = multiply_accumulates_of(pruned), stored_numbers_of(pruned)
    *hidden, output = pruned.masks
    assert pruned.masks[output].all()
    assert macs[output] == stored[output] == pruned.masks[output].numel()
    for tensor in hidden:
        weight = pruned.weights()[tensor]
        rows, columns = weight.flatten(1).shape
        r = max(1, round(0.25 * min(rows, columns)))
        assert rank(weight) == r
        assert int(pruned.masks[tensor].sum()) == {"diagonal": r, "block": r**2, "row": r * columns}[form]
        factors = factorised_numbers(rows, columns, r)
        positions = multiply_accumulates(ticket.architecture)[tensor] // (rows * columns)
        assert macs[tensor] == min(factors, rows * columns) * positions
        # One bit for each row and column may stand in for the mask; a block's core is smaller than what it saves.
        assert stored[tensor] <= min(factors, rows * columns)


def test_a_low_rank_ticket_of_its_own_weights_is_the_truncated_decomposition() -> None:
    ticket = dense("lenet-24-16")
    for form in LOW_RANK_FORMS:
        pruned = low_rank_ticket(ticket, as_trained(ticket), 0.5, form)
        weight = ticket.weights()["1.weight"]
        u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
        torch.testing.assert_close(pruned.weights()["1.weight"], (u[:, :12] * sigma[:12]) @ vh[:12], rtol=0, atol=1e-12)


def test_ranks_can_be_shared_out_over_all_layers() -> None:
    ticket = dense("lenet-24-16")
    values = singular_values(ticket)
    pruned = low_rank_ticket(ticket, as_trained(ticket), 0.4, "diagonal", scope="global", output_layer_kept=False)
    expected = keep_top(values, round(0.4 * (24 + 16 + 10)), keep_one=True)
    assert pruned.kept == 20
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == {
        name: int(mask.sum()) for name, mask in expected.items()
    }


def test_low_rank_needs_a_dense_ticket_a_known_form_and_scope() -> None:
    ticket = dense("lenet-24-16")
    run = as_trained(ticket)
    with pytest.raises(InputError, match="cannot change its basis"):
        low_rank_ticket(unit_ticket(ticket, run, 0.5), run, 0.5)
    with pytest.raises(InputError, match="unknown low-rank form 'rows'"):
        low_rank_ticket(ticket, run, 0.5, "rows")
    with pytest.raises(InputError, match="unknown scope 'all'"):
        low_rank_ticket(ticket, run, 0.5, scope="all")
    for density in (0.0, 1.5, math.nan):
        with pytest.raises(InputError, match=r"not in \(0, 1\]"):
            unit_ticket(ticket, run, density)
        with pytest.raises(InputError, match=r"not in \(0, 1\]"):
            low_rank_ticket(ticket, run, density)


@pytest.mark.parametrize("form", LOW_RANK_FORMS)
def test_training_keeps_the_rank(form: str, digits: Dataset) -> None:
    ticket = dense("lenet-24-16", torch.float32)
    pruned = low_rank_ticket(ticket, as_trained(ticket), 0.25, form)
    [run] = train(of_seeds([pruned], [0]), STEPS, digits)
    weight = run.ticket.weights()["1.weight"]
    singular = torch.linalg.svdvals(weight.double())
    assert singular[6] < 1e-6 * singular[0]
    assert not torch.equal(weight, pruned.weights()["1.weight"])


# --------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rule", ["canonical", "random", "units"])
def test_scattered_coefficients_save_storage_and_no_multiplications(name: str, rule: str) -> None:
    ticket = dense(name)
    ticket = ticket.in_bases(bases_for(ticket, rule, fit_to=ticket.weights()))
    scores = {key: gaussian(tuple(c.shape), key).abs() for key, c in ticket.coefficients.items()}
    # Every row and column keeps one, so that only scattered coefficients are gone.
    for score in scores.values():
        score.flatten(1)[torch.arange(max(score.flatten(1).shape)) % len(score),
                         torch.arange(max(score.flatten(1).shape)) % score[0].numel()] = 10.0  # fmt: skip
    pruned = ticket.with_masks(keep_top(scores, ticket.prunable * 2 // 3))
    assert multiply_accumulates_of(pruned) == multiply_accumulates(ticket.architecture)
    if rule != "units":
        assert sum(stored_numbers_of(pruned).values()) < ticket.prunable
    assert sum(stored_numbers_of(pruned).values()) <= pruned.stored_numbers + len(pruned.masks)


@pytest.mark.parametrize("rule", ["canonical", "dct", "units", "svd"])
def test_a_dense_ticket_costs_what_its_architecture_costs(rule: str) -> None:
    ticket = dense("conv-2-w4")
    ticket = ticket.in_bases(bases_for(ticket, rule, fit_to=ticket.weights()))
    assert multiply_accumulates_of(ticket) == multiply_accumulates(ticket.architecture)
    assert sum(stored_numbers_of(ticket).values()) == ticket.prunable


def test_held_coefficients_make_a_dense_weight_with_few_free_numbers() -> None:
    ticket = dense("lenet-24-16")
    pruned = replace(unit_ticket(ticket, as_trained(ticket), 0.5), off="init")
    assert multiply_accumulates_of(pruned) == multiply_accumulates(ticket.architecture)
    assert sum(stored_numbers_of(pruned).values()) < 0.6 * ticket.prunable


def test_few_coefficients_of_a_mixing_basis_bound_the_rank() -> None:
    # 3 coefficients of a DCT span 3 rank-one matrices: two thin factors give their product.
    ticket = dense("lenet-24-16")
    ticket = ticket.in_bases(bases_for(ticket, "dct"))
    mask = torch.zeros(24, 64, dtype=torch.bool)
    mask[[1, 5, 7], [2, 40, 40]] = True
    pruned = ticket.with_masks({**ticket.masks, "1.weight": mask})
    assert rank(pruned.weights()["1.weight"]) == 2
    assert multiply_accumulates_of(pruned)["1.weight"] == 2 * (24 + 64)
    assert stored_numbers_of(pruned)["1.weight"] == 3 + 24 * 64 // 32


def test_in_the_units_basis_one_coefficient_a_row_costs_its_row() -> None:
    ticket = dense("lenet-24-16")
    ticket = ticket.in_bases(bases_for(ticket, "units", fit_to=ticket.weights()))
    mask = torch.zeros(24, 64, dtype=torch.bool)
    mask[:7, 0] = True
    pruned = ticket.with_masks({**ticket.masks, "1.weight": mask})
    assert multiply_accumulates_of(pruned)["1.weight"] == 7 * 64
    # Seven directions of 64 numbers need as many stored numbers as seven rows; and a bit a row and column.
    assert stored_numbers_of(pruned)["1.weight"] == 7 * 64 + math.ceil((24 + 64) / 32)


# --------------------------------------------------------------------------------------------------- exact identities


@pytest.mark.parametrize("shape", [(24, 16), (10, 30), (8, 3, 3, 3), (1, 5), (5, 1)])
def test_unit_pruning_and_low_rank_are_magnitude_pruning_in_their_bases(shape: tuple[int, ...]) -> None:
    weight = gaussian(shape, "identity")
    every_unit, every_rank = range(shape[0] + 1), range(min(weight.flatten(1).shape) + 1)
    assert unit_identity_error(weight, every_unit) < 1e-14
    assert low_rank_identity_error(weight, every_rank) < 1e-13
    assert unit_identity_error(weight) < 1e-14
    assert low_rank_identity_error(weight.float()) < 1e-13


def test_the_identities_hold_with_dead_units() -> None:
    weight = gaussian((6, 9), "dead")
    weight[2] = 0
    assert unit_identity_error(weight, range(7)) < 1e-14
