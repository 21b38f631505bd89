"""Images are normalised and turned into a basis once for all trainings that read them alike."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import nn

from lthlib import data
from lthlib.models.architecture import architecture
from lthlib.ticket import Ticket, bases_for, initial_tickets
from lthlib.training.batches import prepared
from lthlib.training.network import Network
from lthlib.training.stacks import network
from lthlib.training.train import evaluate

CPU = torch.device("cpu")
DIGITS = data.load("digits", device="cpu")


def ticket(name: str = "lenet-12-6", rule: str = "canonical") -> Ticket:
    (found,) = initial_tickets(architecture(name, DIGITS.input_shape, DIGITS.classes), [0])
    return found if rule == "canonical" else found.in_bases(bases_for(found, rule))


def net(name: str = "lenet-12-6", rule: str = "canonical") -> Network:
    return network([ticket(name, rule)], CPU, torch.float32)


def fresh() -> data.Dataset:
    """The digits in memory of their own, of which nothing is kept yet."""
    return DIGITS.with_images("digits", torch.clone)


def test_what_is_kept_is_what_would_be_made() -> None:
    images = fresh()
    lenets = [net(rule=rule) for rule in ("canonical", "dct@input", "random@input", "dct")]
    for one in (*lenets, net("conv-2-w2"), net("conv-2-w2", "dct@kernel")):
        for split in (*data.SPLITS, *data.SPLITS):
            wanted = one.prepare(images.normalised(split))
            assert torch.equal(prepared(one, images, split, torch.float32), wanted)


def test_networks_that_read_alike_share_and_others_do_not() -> None:
    images = fresh()
    first = prepared(net(), images, "train", torch.float32)
    assert prepared(net("lenet-7"), images, "train", torch.float32) is first
    assert prepared(net(rule="hadamard@out"), images, "train", torch.float32) is first
    others = [
        prepared(net(rule="dct@input"), images, "train", torch.float32),
        prepared(net(), images, "train", torch.float64),
        prepared(net(), replace(images, mean=(1.0,)), "train", torch.float32),
        prepared(net(), fresh(), "train", torch.float32),
    ]
    assert all(other is not first for other in others)
    assert others[1].dtype == torch.float64
    assert not torch.equal(others[2], first)


def test_stacks_beside_each_other_make_it_once() -> None:
    images, ones = fresh(), [net(rule="dct@input") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: prepared(one, images, "train", torch.float32), ones))
    assert all(one is found[0] for one in found)


def test_few_are_kept_and_none_longer_than_their_images() -> None:
    images = fresh()
    for split in (*data.SPLITS, "train"):
        for rule in ("canonical", "dct@input", "haar@input"):
            prepared(net(rule=rule), images, split, torch.float32)
            assert len(images._derived) <= len(data.SPLITS)
    last = weakref.ref(prepared(net(rule="haar@input"), images, "train", torch.float32))
    assert last() is not None
    del images
    gc.collect()
    assert last() is None


def in_place_first(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, classes))


def test_a_first_layer_that_works_in_place_leaves_the_images_alone() -> None:
    images, one = fresh(), ticket(f"{__name__}:in_place_first")
    before = prepared(network([one], CPU, torch.float32), images, "test", torch.float32).clone()
    evaluate([one], images, "test")
    assert torch.equal(prepared(network([one], CPU, torch.float32), images, "test", torch.float32), before)
