"""A trainable network is its tickets: the same logits, the gradient in coordinates, and nothing moves what is off."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lthlib.basis import bases, valid_rules
from lthlib.errors import InputError
from lthlib.masks.controls import random_masks
from lthlib.models.architecture import architecture, build, output_layer
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, dense_ticket
from lthlib.training.linear_stack import LinearStack
from lthlib.training.module_networks import SingleNetwork
from lthlib.training.stacks import network, stack_key

DIGITS = (1, 8, 8)
CPU = torch.device("cpu")
LENET, CONV, RESNET = "lenet-12-6", "conv-2-w2", "resnet-8-w2"
RULES = [rule for rule in valid_rules() if not rule.endswith("@kernel")]


def noise(shape: tuple[int, ...], *purpose: str | int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test", *purpose))


def make(name: str, rule: str = "canonical", density: float = 1.0, off: str = "zero", seed: int = 0) -> Ticket:
    """A float64 ticket whose biases and normalisation are not 0 and 1."""
    arch = architecture(name, DIGITS, 10)
    state: dict[str, Tensor] = {}
    for key, value in initial_state(arch, seed).items():
        shift = 0.1 * noise(tuple(value.shape), key, seed).abs() if value.is_floating_point() else 0
        state[key] = value.double() + shift if value.is_floating_point() else value
    ticket = dense_ticket(arch, state)
    shapes = {key: tuple(c.shape) for key, c in ticket.coefficients.items()}
    ticket = ticket.in_bases(bases(rule, shapes, DIGITS, 0, ticket.weights()))
    if density < 1:
        masks = random_masks(shapes, round(density * ticket.prunable), generator(seed, "masks"))
        ticket = ticket.with_masks(masks)
    return replace(ticket, off=off)  # type: ignore[arg-type]


def plain(ticket: Ticket, images: Tensor, training: bool) -> tuple[Tensor, nn.Module]:
    module = build(ticket.architecture).double().train(training)
    module.load_state_dict(ticket.state())
    return module(images), module


CASES = [(LENET, rule) for rule in RULES] + [
    (name, rule) for name in (CONV, RESNET) for rule in ("canonical", "dct", "random", "units", "svd", "dct@kernel")
]


@pytest.mark.parametrize("off", ["zero", "init"])
@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize(("name", "rule"), CASES)
def test_logits_and_gradients_are_the_modules_in_coordinates(name: str, rule: str, state_in: str, off: str) -> None:
    ticket = make(name, rule, 0.5, off)
    images, labels = noise((7, *DIGITS), "images"), torch.arange(7)
    net = network([ticket], CPU, torch.float64, state_in)
    logits = net.forward(net.prepare(images).unsqueeze(0), training=True)
    expected, module = plain(ticket, images, training=True)
    torch.testing.assert_close(logits[0], expected, rtol=1e-14, atol=1e-12)
    F.cross_entropy(logits[0], labels).backward()
    net.mask_gradients()
    F.cross_entropy(expected, labels).backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None
        if key not in net.leaves:
            torch.testing.assert_close(net.affine[key].grad.view_as(parameter), parameter.grad, rtol=1e-14, atol=1e-12)  # type: ignore[union-attr]
            continue
        basis = ticket.bases[key]
        expected_gradient = basis.analyse(parameter.grad) * ticket.masks[key]
        if net.in_weights:
            expected_gradient = basis.synthesise(expected_gradient)
        found = net.leaves[key].grad
        assert found is not None
        torch.testing.assert_close(found.view_as(parameter), expected_gradient, rtol=1e-14, atol=1e-12)
        if not net.in_weights:
            assert not found.view_as(parameter)[~ticket.masks[key]].any(), "exactly zero where pruned"


@pytest.mark.parametrize("rule", ["canonical", "dct", "random"])
def test_a_stack_is_its_tickets_side_by_side(rule: str) -> None:
    tickets = [make(LENET, rule, 0.4, seed=seed) for seed in range(3)]
    images = noise((3, 5, 64), "each its own images")
    net = network(tickets, CPU, torch.float64)
    assert isinstance(net, LinearStack)
    inputs = torch.stack([net.prepare(part) for part in images])
    logits = net.forward(inputs, training=False)
    assert logits.shape == (3, 5, 10)
    for ticket, part, found in zip(tickets, images, logits, strict=True):
        torch.testing.assert_close(found, plain(ticket, part.view(5, *DIGITS), False)[0], rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("off", ["zero", "init"])
@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize(("name", "rule"), [(LENET, "dct"), (LENET, "units"), (CONV, "svd"), (RESNET, "random")])
def test_an_untrained_network_gives_its_tickets_back(name: str, rule: str, state_in: str, off: str) -> None:
    ticket = make(name, rule, 0.5, off)
    [back] = network([ticket], CPU, torch.float64, state_in).tickets()
    assert list(back.coefficients) == list(ticket.coefficients)
    for key, expected in ticket.effective_coefficients().items():
        found = back.coefficients[key]
        assert found.is_contiguous()
        if state_in == "coefficients":
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        assert torch.equal(found[~ticket.masks[key]], expected[~ticket.masks[key]])
    assert back.rest.keys() == ticket.rest.keys()
    assert all(torch.equal(value, ticket.rest[key]) for key, value in back.rest.items())


def test_training_a_network_leaves_its_tickets_alone() -> None:
    tickets = [make(LENET), make(CONV)]
    before = [ticket.digest() for ticket in tickets]
    for ticket in tickets:
        net = network([ticket], CPU, torch.float64)
        taken = net.tickets()[0]
        digest = taken.digest()
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers.values()):
                tensor.add_(1)
        assert taken.digest() == digest
    assert [ticket.digest() for ticket in tickets] == before


@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize("off", ["zero", "init"])
@pytest.mark.parametrize("name", [LENET, CONV])
def test_a_change_of_coefficients_leaves_pruned_ones_held(name: str, off: str, state_in: str) -> None:
    ticket = make(name, "dct", 0.5, off)
    net = network([ticket], CPU, torch.float64, state_in)
    chosen = list(ticket.masks)[1]
    shapes = []

    def update(key: str, coefficients: Tensor) -> Tensor:
        assert key == chosen
        shapes.append(coefficients.shape)
        return coefficients + 1

    net.change(update, [chosen])
    [back] = net.tickets()
    mask = ticket.masks[chosen]
    assert shapes == [(1, *mask.shape) if net.leading else mask.shape]
    expected = torch.where(mask, ticket.coefficients[chosen] + 1, ticket.effective_coefficients()[chosen])
    torch.testing.assert_close(back.coefficients[chosen], expected, rtol=0, atol=1e-13)
    assert torch.equal(back.coefficients[chosen][~mask], expected[~mask])
    others = [key for key in ticket.masks if key != chosen]
    for key in others:
        torch.testing.assert_close(back.coefficients[key], ticket.effective_coefficients()[key], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("state_in", "off"), [("coefficients", "init"), ("weights", "zero"), ("weights", "init")])
def test_held_coefficients_return_after_a_step_that_moved_them(state_in: str, off: str) -> None:
    ticket = make(LENET, "random", 0.5, off)
    net = network([ticket], CPU, torch.float64, state_in)
    with torch.no_grad():
        for leaf in net.leaves.values():
            leaf.mul_(0.9).add_(0.01)
    net.hold()
    for key, mask in ticket.masks.items():
        coefficients = net.bases[key].analyse(net.leaves[key])[0] if net.in_weights else net.leaves[key][0]
        held = ticket.effective_coefficients()[key]
        torch.testing.assert_close(coefficients[~mask], held[~mask], rtol=0, atol=1e-14)
        assert not torch.allclose(coefficients[mask], held[mask])


def sequence(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Tanh(), nn.Linear(8, classes))


def normalised(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))


def test_what_can_be_stacked() -> None:
    assert stack_key(make(LENET), CPU) == stack_key(make(LENET, seed=1), CPU)
    assert stack_key(make(LENET, density=0.5), CPU) == stack_key(make(LENET, density=0.2, seed=1), CPU)
    assert stack_key(make(LENET, "random"), CPU) == stack_key(make(LENET, "random", seed=1), CPU), (
        "one random basis for all"
    )
    different = [
        make(LENET), make("lenet-12-7"), make(LENET, "dct"), make(LENET, "dct@input"), make(LENET, off="init"),
        make(LENET, density=0.5),
    ]  # fmt: skip
    assert len({stack_key(ticket, CPU) for ticket in different}) == len(different)
    for alone in (make(LENET, "svd"), make(LENET, "units"), make(CONV), make(RESNET)):
        assert stack_key(alone, CPU) is None
    own = make(f"{__name__}:sequence")
    assert stack_key(own, CPU) is not None
    assert isinstance(network([own, own], CPU, torch.float64), LinearStack)
    assert stack_key(make(f"{__name__}:normalised"), CPU) is None
    assert isinstance(network([make(f"{__name__}:normalised")], CPU, torch.float64), SingleNetwork)


def one_activation_twice(shape: tuple[int, int, int], classes: int) -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, classes))


def rows_first(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, classes))


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


def own_layer(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Doubled(64, 8), nn.ReLU(), nn.Linear(8, classes))


@pytest.mark.parametrize(
    ("factory", "stacked"),
    [
        ("sequence", True),
        ("normalised", False),
        ("one_activation_twice", True),
        ("rows_first", False),
        ("own_layer", False),
    ],
)
def test_a_users_own_sequence_gives_its_own_logits(factory: str, stacked: bool) -> None:
    ticket = make(f"{__name__}:{factory}", "dct", 0.5)
    net = network([ticket], CPU, torch.float64)
    assert (type(net) is LinearStack) == stacked == (stack_key(ticket, CPU) is not None)
    images = noise((4, *DIGITS), "images")
    found = net.forward(net.prepare(images).unsqueeze(0), training=False)[0]
    torch.testing.assert_close(found, plain(ticket, images, False)[0], rtol=1e-14, atol=1e-12)


def test_the_output_layer_comes_last() -> None:
    # Penalties on "all but output" rely on it.
    for name in (LENET, CONV, RESNET, "vgg-11-w1"):
        ticket = make(name)
        assert list(network([ticket], CPU, torch.float64).leaves)[-1] == output_layer(ticket.architecture)


def test_batch_normalisation_moves_its_statistics_in_training_only() -> None:
    ticket = make(RESNET)
    net, images = network([ticket], CPU, torch.float64), noise((9, *DIGITS), "images")
    with torch.no_grad():
        net.forward(net.prepare(images).unsqueeze(0), training=False)
        assert net.tickets()[0].digest() == ticket.digest()
        net.forward(net.prepare(images).unsqueeze(0), training=True)
    _, module = plain(ticket, images, training=True)
    expected = module.state_dict()
    for key, value in net.tickets()[0].rest.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-14)
    assert int(net.buffers["stem.1.num_batches_tracked"]) == 1


def one_layer_twice(shape: tuple[int, int, int], classes: int) -> nn.Module:
    middle = nn.Linear(8, 8)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), middle, nn.ReLU(), middle, nn.Linear(8, classes))


def test_parameters_in_more_than_one_place_are_refused() -> None:
    # state_dict lists them twice, and a ticket would hold two values for one tensor.
    with pytest.raises(InputError, match=r"one_layer_twice' uses '4.bias' in more than one place"):
        architecture(f"{__name__}:one_layer_twice", DIGITS, 10)
