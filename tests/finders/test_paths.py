"""Paths: effective density with known answers and against reachability, collapse, and PHEW's walks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lthlib.errors import InputError
from lthlib.finders.paths import (
    collapsed_layers,
    effective_density,
    effective_masks,
    is_connected,
    layer_report,
    phew_masks,
)
from lthlib.finders.scores import random_scores
from lthlib.masks.counts import counts_of
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, bases_for, dense_ticket


def dense(name: str, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> Ticket:
    model = architecture(name, shape, classes)
    return dense_ticket(model, initial_state(model, 0))


def empty(ticket: Ticket) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(mask) for name, mask in ticket.masks.items()}


def at_random(ticket: Ticket, count: int, seed: int = 0) -> Ticket:
    return ticket.with_masks(keep_top(random_scores(ticket, generator(seed, "paths")), count))


class Branches(nn.Module):
    """Two branches that add up, an activation that saturates and one that is negative: no chain."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(inputs, 4), nn.Linear(inputs, 4)
        self.norm, self.output = nn.LayerNorm(4), nn.Linear(4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return self.output(torch.tanh(self.norm(self.left(flat) + nn.functional.gelu(self.right(flat)))))


def branches(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Branches(input_shape[1] * input_shape[2], classes)


def test_a_hand_made_network_has_the_known_effective_weights():
    ticket = dense("lenet-3-2", (1, 1, 2), 2)
    masks = empty(ticket)
    first, second, third = masks.values()
    first[0, 0] = first[1, 1] = True  # inputs to units 0 and 1
    second[0, 0] = second[0, 2] = second[1, 1] = True  # unit 2 has no input; unit 1 leads to unit 1
    third[1, 0] = True  # unit 1 of the second layer reaches no output
    found = ticket.with_masks(masks)
    assert [mask.nonzero().tolist() for mask in effective_masks(found).values()] == [[[0, 0]], [[0, 0]], [[1, 0]]]
    assert effective_density(found) == 3 / 16 and found.density == 6 / 16
    assert [(row.kept, row.effective, row.empty) for row in layer_report(found)] == [
        (2, 1, False),
        (3, 1, False),
        (1, 1, False),
    ]
    third[1, 0] = False
    cut = ticket.with_masks(masks)
    assert effective_density(cut) == 0 and not is_connected(cut) and collapsed_layers(cut) == ("5.weight",)
    assert layer_report(cut)[2].empty and layer_report(cut)[2].density == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
def test_effective_weights_are_those_reached_from_both_ends(seed, count):
    ticket = at_random(dense("lenet-5-4-3", (1, 2, 2), 3), count, seed)
    masks = [mask.double() for mask in ticket.masks.values()]
    ahead = [torch.ones(4, dtype=torch.double)]
    for mask in masks:
        ahead.append((mask @ ahead[-1] > 0).double())
    behind = [torch.ones(3, dtype=torch.double)]
    for mask in masks[::-1]:
        behind.insert(0, (mask.T @ behind[0] > 0).double())
    for mask, start, end, found in zip(masks, ahead, behind[1:], effective_masks(ticket).values(), strict=False):
        assert torch.equal((mask * end[:, None] * start) > 0, found)


@pytest.mark.parametrize("name", ["lenet-9-7", "conv-4-w2", "resnet-8-w2", f"{__name__}:branches"])
def test_a_dense_network_is_all_effective_whatever_its_values(name):
    ticket = dense(name)
    noisy = {key: torch.randn_like(t) if t.is_floating_point() else t for key, t in ticket.rest.items()}
    digest = ticket.digest()
    assert effective_density(replace(ticket, rest=noisy)) == 1 and ticket.digest() == digest


def test_kernel_entries_that_only_meet_padding_are_not_effective():
    # VGG on 8x8 images: the last two stages see 1x1 maps, where a 3x3 kernel has one entry that meets its input.
    report = layer_report(dense("vgg-11-w2"))
    assert [row.effective / row.size for row in report[:-1]] == [1, 1, 1, 1, *[1 / 9] * 4]
    deep = dense("vgg-19-w2", (3, 32, 32))
    assert effective_density(deep) == 1


def test_a_maximum_passes_every_place_on():
    # With one kernel entry, bottom right, the edges of maps are 0, and a maximum has many ties: paths all the same.
    ticket = dense("conv-2-w1")
    masks = {name: mask.clone() for name, mask in ticket.masks.items()}
    for name in list(masks)[:2]:
        masks[name][:] = False
        masks[name][..., 2, 2] = True
    masks["hidden1.weight"][:] = False
    masks["hidden1.weight"][:, 0] = True
    found = ticket.with_masks(masks)
    assert effective_density(found) == found.density


def test_a_resnet_lives_past_an_empty_block_but_not_past_its_stem():
    ticket = dense("resnet-8-w2")
    masks = {name: mask.clone() for name, mask in ticket.masks.items()}
    masks["stages.0.0.conv1.weight"][:] = False
    found = ticket.with_masks(masks)
    effective = counts_of(effective_masks(found))
    assert effective["stages.0.0.conv2.weight"] == 0 and is_connected(found)
    assert collapsed_layers(found) == ("stages.0.0.conv1.weight",)
    masks["stem.0.weight"][:] = False
    assert not is_connected(ticket.with_masks(masks))


def test_deep_networks_neither_overflow_nor_underflow():
    ticket = dense("lenet" + "-40" * 150)
    assert effective_density(ticket) == 1
    single = empty(ticket)
    for mask in single.values():
        mask[0, 0] = True
    assert effective_density(ticket.with_masks(single)) == len(single) / ticket.prunable


@pytest.mark.parametrize("name", ["lenet-40-20", "conv-4-w4", "vgg-11-w4", "vgg-11-fc3-w4"])
@pytest.mark.parametrize("density", [0.02, 0.2])
def test_phew_keeps_an_exact_count_all_of_it_on_paths(name, density):
    ticket = dense(name, (1, 16, 16))
    count = round(density * ticket.prunable)
    found = ticket.with_masks(phew_masks(ticket, count, generator(0, "phew")))
    # On the smallest maps of VGG a walk of units may take kernel entries that lead off the edge.
    assert found.kept == count and effective_density(found) >= (0.95 if "vgg" in name else 1) * found.density
    again = phew_masks(ticket, count, generator(0, "phew"))
    assert all(torch.equal(again[key], mask) for key, mask in found.masks.items())
    other = phew_masks(ticket, count, generator(1, "phew"))
    assert any(not torch.equal(other[key], mask) for key, mask in found.masks.items())
    for key, mask in found.masks.items():
        values = ticket.coefficients[key].abs()
        assert float(values[mask].mean()) > float(values.mean()) or bool(mask.all())


def test_phew_joins_units_in_residual_networks_and_uses_shortcuts():
    ticket = dense("resnet-14-w4", (1, 16, 16))
    found = ticket.with_masks(phew_masks(ticket, ticket.prunable // 20, generator(0, "phew")))
    assert found.kept == ticket.prunable // 20 and collapsed_layers(found) == ()
    for name, mask in found.masks.items():
        if name.endswith("conv1.weight"):
            ends, starts = mask.flatten(2).any(2).any(1), found.masks[name.replace("conv1", "conv2")]
            assert torch.equal(ends, starts.flatten(2).any(2).any(0))
    assert effective_density(found) > 0.95 * found.density


def test_phew_steps_in_proportion_to_weights():
    # One path out of each input unit: with weights 3 : 1 to the two hidden units, forward walks take them 3 : 1, and a
    # count of 2 is exactly one walk.
    ticket = dense("lenet-2", (1, 1, 1), 2)
    first, last = ticket.coefficients
    weights = {first: torch.tensor([[3.0], [1.0]]), last: torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    ticket = replace(ticket, coefficients=weights)
    taken = [int(phew_masks(ticket, 2, generator(seed, "walk"))[first][0, 0]) for seed in range(150)]
    # Walks start forward: the mean is 3/4, with a standard error of 0.035.
    assert sum(taken) / 150 == pytest.approx(0.75, abs=0.1)


def test_phew_at_the_ends_of_its_range():
    ticket = dense("lenet-20-10")
    for count in (0, 1, 2, 3, ticket.prunable - 1, ticket.prunable):
        assert sum(counts_of(phew_masks(ticket, count, generator(0, "phew"))).values()) == count
    half = at_random(ticket, ticket.prunable // 2)
    inside = phew_masks(half, half.kept // 3, generator(0, "phew"))
    assert all(not (mask & ~half.masks[name]).any() for name, mask in inside.items())
    blank = ticket.with_masks(empty(ticket))
    assert sum(counts_of(phew_masks(blank, 0, generator(0, "phew"))).values()) == 0


def test_what_has_no_known_paths_is_refused():
    ticket = dense("lenet-8-6")
    rotated = ticket.in_bases(bases_for(ticket, "random", 0))
    with pytest.raises(InputError, match=r"must be canonical .* '1\.weight' has basis 'random'"):
        effective_density(rotated)
    with pytest.raises(InputError, match="pruned weights are held"):
        effective_density(replace(ticket, off="init"))
    assert [row.effective for row in layer_report(rotated)] == [None] * 3
    with pytest.raises(InputError, match="which layer reads which units"):
        phew_masks(dense(f"{__name__}:branches"), 10, generator(0, "phew"))
