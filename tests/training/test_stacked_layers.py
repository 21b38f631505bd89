"""Convolutional replicates trained as one network: each is what its module is, and sees nothing of its neighbours."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lthlib.basis import bases
from lthlib.data import Dataset, Split, load
from lthlib.finders.dynamic import rule_for
from lthlib.finders.find import find
from lthlib.models.architecture import architecture, build, skeleton
from lthlib.ticket import State, Ticket, initial_tickets
from lthlib.training.loop import Trained
from lthlib.training.module_networks import ConvolutionStack, SingleNetwork
from lthlib.training.proximal import Penalty
from lthlib.training.recipe import Recipe
from lthlib.training.stacked_layers import can_stack
from lthlib.training.stacks import groups, network, stack_key
from lthlib.training.train import evaluate, train

CPU = torch.device("cpu")
RESNET, VGG, CONV = "resnet-8-w8", "vgg-11-w8", "conv-4-w4"
TEXT = "layers-conv8k3x3-relu-cyclic8k3x3s2-tanh-pool-flatten-linear24-relu-linear10"
RECIPE = Recipe(learning_rate=0.05, momentum=0.9, weight_decay=1e-3, batch_size=22, epochs=1, evaluations=1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train_size=70, validation_size=30, device="cpu")


def larger(data: Dataset, side: int) -> Dataset:
    """The images at another size."""

    def resized(split: Split) -> Split:
        images = nn.functional.interpolate(split.images.float(), (side, side), mode="bilinear")
        return replace(split, images=images.to(torch.uint8))

    return replace(data, train=resized(data.train), validation=resized(data.validation), test=resized(data.test))


def tickets_of(name: str, data: Dataset, count: int = 5, rule: str = "canonical", density: float = 1) -> list[Ticket]:
    starts = initial_tickets(architecture(name, data.input_shape, data.classes), range(count))
    shapes = {key: tuple(c.shape) for key, c in starts[0].coefficients.items()}
    moved = [start.in_bases(bases(rule, shapes, data.input_shape, start.seed, start.weights())) for start in starts]
    return moved if density == 1 else [find(ticket, density, "random") for ticket in moved]


def same(first: Trained, second: Trained) -> None:
    assert first.history == second.history
    for name in ("coefficients", "masks", "rest"):
        states: list[State] = [getattr(run.ticket, name) for run in (first, second)]
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize(
    ("name", "side", "fields", "more"),
    [
        (RESNET, 8, {}, {}),
        (RESNET, 8, {"precision": "bf16"}, {}),
        (RESNET, 11, {"precision": "fp64", "batch_size": 13}, {}),
        (RESNET, 28, {"epochs": 0.5}, {}),
        ("resnet-8-w4", 14, {}, {}),
        (VGG, 8, {}, {}),
        (VGG, 9, {"optimizer": "adam", "learning_rate": 0.01}, {}),
        (CONV, 8, {"optimizer": "muon"}, {}),
        (CONV, 14, {}, {}),
        (TEXT, 8, {}, {}),
        (RESNET, 8, {}, {"penalty": Penalty("group", 0.01)}),
        (RESNET, 8, {}, {"mask_updates": rule_for("rigl", 0.4, interval=1, end=1.0)}),
        (CONV, 8, {}, {"mask_updates": rule_for("set", 0.4, interval=1, end=1.0)}),
    ],
)
def test_neither_the_number_of_neighbours_nor_a_place_changes_a_bit(
    name: str, side: int, fields: dict, more: dict, digits: Dataset
) -> None:
    data = larger(digits, side)
    tickets = tickets_of(name, data, density=0.4 if "mask_updates" in more else 1)
    tickets[1:3] = [find(ticket, 0.3, "random") for ticket in tickets[1:3]]
    recipe = replace(RECIPE, **fields)
    whole = train(tickets, recipe, data, **more)
    for chosen in ([0], [3, 1], [4, 2, 0], [1, 1, 4, 3, 2, 0]):
        for index, run in zip(chosen, train([tickets[i] for i in chosen], recipe, data, **more), strict=True):
            same(run, whole[index])
    judged = evaluate([run.ticket for run in whole], data, "validation")
    for index in (0, 4):
        assert evaluate([whole[index].ticket], data, "validation") == [judged[index]]


@pytest.mark.parametrize("rule", ["dct@kernel", "random", "svd", "units"])
@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize("density", [1, 0.3])
def test_in_a_basis_too(rule: str, state_in: str, density: float, digits: Dataset) -> None:
    tickets = tickets_of(RESNET, digits, 4, rule, density)
    recipe = replace(RECIPE, state_in=state_in, epochs=0.75)
    whole = train(tickets, recipe, digits)
    for chosen in ([2], [3, 0, 1]):
        for index, run in zip(chosen, train([tickets[i] for i in chosen], recipe, digits), strict=True):
            same(run, whole[index])
    for ticket, run in zip(tickets, whole, strict=True):
        for name, mask in ticket.masks.items():
            assert not run.ticket.coefficients[name][~mask].any()


def plain(ticket: Ticket, images: Tensor, training: bool) -> tuple[Tensor, State]:
    """Logits by the module itself, and its buffers after the pass."""
    module = build(ticket.architecture).double().train(training)
    weights = {key: ticket.bases[key].synthesise(c.double()) for key, c in ticket.effective_coefficients().items()}
    state = weights | {
        key: value.double() if value.is_floating_point() else value for key, value in ticket.rest.items()
    }
    outputs = functional_call(module, state, (images,))
    return outputs, {name: state[name] for name, _ in module.named_buffers()}


@pytest.mark.parametrize("name", [RESNET, VGG, CONV, TEXT])
@pytest.mark.parametrize("rule", ["canonical", "dct@kernel", "svd"])
@pytest.mark.parametrize("training", [True, False])
def test_each_replicate_is_its_module(name: str, rule: str, training: bool, digits: Dataset) -> None:
    tickets = tickets_of(name, digits, 4, rule, 0.6)
    net = network(tickets, CPU, torch.float64)
    assert isinstance(net, ConvolutionStack)
    images = torch.stack([digits.normalised("train")[6 * i : 6 * i + 6].double() for i in range(4)])
    logits = net.forward(torch.stack([net.prepare(part) for part in images]), training)
    for index, (ticket, part) in enumerate(zip(tickets, images, strict=True)):
        wanted, buffers = plain(ticket, part, training)
        torch.testing.assert_close(logits[index], wanted, rtol=1e-9, atol=1e-9)
        for key, value in buffers.items():
            torch.testing.assert_close(net.buffers[key][index], value, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_module(digits: Dataset) -> None:
    tickets = tickets_of(CONV, digits, 4)
    net = network(tickets, CPU, torch.float64)
    images = digits.normalised("train")[:6].double()
    net.forward(net.prepare(images).expand(4, *images.shape), training=True).square().sum().backward()
    for index, ticket in enumerate(tickets):
        module = build(ticket.architecture).double()
        module.load_state_dict(ticket.state())
        module(images).square().sum().backward()
        for name, parameter in module.named_parameters():
            gradient = (net.leaves | net.affine)[name].grad
            assert gradient is not None and parameter.grad is not None
            torch.testing.assert_close(gradient[index], parameter.grad, rtol=1e-9, atol=1e-9)


def own(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))


def test_what_trains_as_a_stack(digits: Dataset) -> None:
    narrow, masked = tickets_of(RESNET, digits, 2), tickets_of(RESNET, digits, 2, density=0.5)
    assert stack_key(narrow[0], CPU) == stack_key(narrow[1], CPU) == stack_key(masked[0], CPU)
    in_weights = [stack_key(ticket, CPU, "weights") for ticket in (narrow[0], masked[0], masked[1])]
    assert in_weights[0] != in_weights[1] == in_weights[2], "a projection onto a mask rounds"
    fitted = tickets_of(RESNET, digits, 2, "svd")
    assert stack_key(fitted[0], CPU) == stack_key(fitted[1], CPU), "each in a basis of its own"
    for name in ("resnet-8", "resnet-8-w6", "resnet-8-w2", "conv-2-w16", "reconstructed-fourier", own):
        (ticket,) = initial_tickets(architecture(name, digits.input_shape, 10), [0])
        assert stack_key(ticket, CPU) is None, name
        assert isinstance(network([ticket], CPU, torch.float32), SingleNetwork)
    (large,) = tickets_of(VGG, larger(digits, 28), 1)
    assert stack_key(large, CPU) is None, "its convolutions have biases"
    (wide,) = tickets_of("resnet-8", digits, 1)
    assert stack_key(wide, torch.device("cuda")) is not None
    assert not can_stack(skeleton(architecture("lenet-12-7", digits.input_shape, 10)))


def test_stacks_are_even_and_fit_the_caches(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def heights(name: str, data: Dataset, batch: int, count: int) -> list[int]:
        beside, in_turn = groups(tickets_of(name, data, count), CPU, batch, "coefficients", count)
        assert not in_turn and sorted(i for stack in beside for i in stack) == list(range(count))
        return [len(stack) for stack in beside]

    assert heights(RESNET, digits, 32, 16) == [8, 8]
    assert heights(RESNET, digits, 32, 5) == [4, 1]
    assert heights(RESNET, larger(digits, 28), 128, 8) == [2, 2, 2, 2]
    assert heights("resnet-8-w4", larger(digits, 28), 512, 8) == [4, 4], "channels that fill a register"
    assert heights("resnet-8", digits, 32, 3) == [1, 1, 1]
