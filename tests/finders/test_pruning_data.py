"""Sanity arms keep what they say and lose the rest; small dense networks; corrupted pruning data."""

import pytest
import torch
from replicates import of_seed

from lthlib.basis import bases
from lthlib.data import Dataset, load
from lthlib.errors import InputError
from lthlib.finders.controls import control
from lthlib.finders.find import find
from lthlib.finders.pruning_data import CORRUPTIONS, pruning_data
from lthlib.masks.counts import counts_of, erdos_renyi_counts, smart_ratio_counts
from lthlib.models.architecture import architecture
from lthlib.models.initial import initial_state
from lthlib.models.narrower import small_dense
from lthlib.studies.saliency import SANITY_CHECKS
from lthlib.ticket import Ticket, dense_ticket, shapes_of


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", device="cpu")


def dense(name: str) -> Ticket:
    model = architecture(name, (1, 8, 8), 10)
    return dense_ticket(model, initial_state(model, 0))


@pytest.mark.parametrize("name", SANITY_CHECKS)
@pytest.mark.parametrize("model", ["conv-2-w4", "vgg-11-w2"])
def test_arms_keep_the_total_and_what_they_say(name, model):
    ticket = find(dense(model), 0.2, "magnitude")
    arm, again, other = (control(of_seed(ticket, seed), SANITY_CHECKS[name]) for seed in (0, 0, 1))
    assert arm.kept == ticket.kept and arm.digest() == again.digest() != other.digest()
    masks_equal = all(torch.equal(arm.masks[key], mask) for key, mask in ticket.masks.items())
    values_equal = all(torch.equal(arm.coefficients[key], c) for key, c in ticket.coefficients.items())
    assert masks_equal == (name in ("reinit", "value shuffle"))
    assert values_equal == (name not in ("reinit", "reinit and shuffle", "value shuffle"))
    counts = counts_of(arm.masks)
    if "shuffle" in name and name != "global shuffle":
        assert counts == counts_of(ticket.masks)
    if name == "erk":
        assert counts == erdos_renyi_counts(shapes_of(ticket), ticket.kept)
    if name == "smart-ratio":
        vgg = model.startswith("vgg")
        assert counts == smart_ratio_counts(shapes_of(ticket), ticket.kept, divide_by_position=vgg)


def test_shuffled_values_are_the_same_values_elsewhere():
    ticket = find(dense("lenet-20-10"), 0.3, "magnitude")
    shuffled = control(of_seed(ticket, 0), SANITY_CHECKS["value shuffle"])
    for name, mask in ticket.masks.items():
        before, after = ticket.coefficients[name][mask], shuffled.coefficients[name][mask]
        assert not torch.equal(before, after) and torch.equal(before.sort().values, after.sort().values)
        assert torch.equal(ticket.coefficients[name][~mask], shuffled.coefficients[name][~mask])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet-300-100", (1, 28, 28)),
        ("conv-4", (3, 32, 32)),
        ("vgg-11-w16", (3, 32, 32)),
        ("vgg-11-fc3-w32", (1, 8, 8)),
        ("resnet-20", (3, 32, 32)),
    ],
)
def test_small_dense_is_the_nearest_narrower_network(name, shape):
    model = architecture(name, shape, 10)

    def size(candidate) -> int:
        return sum(mask.numel() for mask in dense_ticket(candidate, initial_state(candidate, 0)).masks.values())

    whole = size(model)
    assert small_dense(model, whole) == model and small_dense(model, 10 * whole) == model
    small = small_dense(model, whole // 10)
    assert size(small) == pytest.approx(whole / 10, rel=0.15) and small.input_shape == shape
    least = small_dense(model, 1)
    assert size(least) <= size(small) and small_dense(model, size(small)) == small


def test_small_dense_knows_only_its_families():
    with pytest.raises(InputError, match="valid: lenet, conv, vgg, resnet"):
        small_dense(architecture("lenet-4", (1, 2, 2), 2), 0)


def test_pruning_data_is_balanced_and_corrupted_as_named(digits):
    ticket = dense("lenet-20-10")
    images, labels = pruning_data(of_seed(ticket, 0), digits)
    assert labels.bincount().tolist() == [10] * 10 and images.shape == (100, 1, 8, 8)
    every = digits.normalised("train").flatten(1)
    assert all(bool((every == image).all(1).any()) for image in images.flatten(1))
    assert torch.equal(pruning_data(of_seed(ticket, 0), digits)[0], images)
    assert not torch.equal(pruning_data(of_seed(ticket, 1), digits)[0], images)
    made = {how: pruning_data(of_seed(ticket, 0), digits, corruption=how) for how in CORRUPTIONS}
    assert made["half data"][1].bincount().tolist() == [5] * 10
    assert all(bool((images == image).flatten(1).all(1).any()) for image in made["half data"][0])
    assert torch.equal(made["random labels"][0], images) and not torch.equal(made["random labels"][1], labels)
    shuffled, same = made["shuffled pixels"]
    assert torch.equal(same, labels) and not torch.equal(shuffled, images)
    assert torch.equal(shuffled.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    gaussian, balanced = made["gaussian"]
    assert balanced.bincount().tolist() == [10] * 10 and float(gaussian.std()) == pytest.approx(1, abs=0.05)
    with pytest.raises(InputError, match="examples_per_class 0"):
        pruning_data(of_seed(ticket, 0), digits, examples_per_class=0)
    with pytest.raises(InputError, match="'score' needs data"):
        pruning_data(of_seed(ticket, 0), None, corruption="half data")


def test_arms_stay_in_the_tickets_basis():
    ticket = dense("lenet-20-10")
    rotated = find(ticket.in_bases(bases("dct", shapes_of(ticket))), 0.3, "magnitude")
    for name in SANITY_CHECKS.values():
        assert control(rotated, name).bases == rotated.bases
