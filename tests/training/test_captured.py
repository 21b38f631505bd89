"""A step replayed from fixed memory trains as the step itself does, and what cannot be replayed is not.

CUDA graphs need a GPU. What they ask of a step is tested without one: a tape writes down the tensor operations of one
step and makes them again in the same memory, with no Python of the step's in between, as a graph does.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from replicates import of_seeds
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lthlib.basis import bases
from lthlib.data import Dataset, load
from lthlib.finders.dynamic import train_dynamic
from lthlib.masks.controls import random_masks
from lthlib.models.architecture import architecture
from lthlib.randomness import generator
from lthlib.ticket import Ticket, initial_tickets, shapes_of
from lthlib.training import loop, steps
from lthlib.training.captured import WARM_UP, Capture, CapturedStep, Replay, cuda_graph
from lthlib.training.loop import Trained
from lthlib.training.network import Network
from lthlib.training.recipe import Recipe
from lthlib.training.stacks import network
from lthlib.training.steps import AutogradStep
from lthlib.training.train import train

LENET, CONV, RESNET = "lenet-24-16", "conv-2-w4", "resnet-8-w2"
# 5 batches an epoch, the last of 22.
RECIPE = Recipe(
    learning_rate=0.05, weight_decay=1e-2, batch_size=32, epochs=5, evaluations=3, warmup_epochs=0.5, nesterov=True
)


class Tape(TorchDispatchMode):
    """Tensor operations as they are made, with the very tensors that they read and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], dict[str, Any], object]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        result = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.made:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taping(tapes: list[Tape]) -> Capture:
    def capture(work: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        tapes.append(tape := Tape())
        with tape:
            losses = work()
        return losses, tape.replay

    return capture


def refusing(_: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors ...")


def capturing(monkeypatch: pytest.MonkeyPatch, capture: Capture) -> None:
    """Lets trainings on the CPU capture their steps."""

    def step_of(net: Network, recipe: Recipe, device: torch.device) -> AutogradStep:
        return AutogradStep(net, recipe, device, capture)

    monkeypatch.setattr(loop, "step_of", step_of)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return replace(load("digits", train_size=150, validation_size=40, device="cpu"), augmentation="crop-flip")


def make(name: str, rule: str = "canonical", density: float = 0.5, off: str = "zero") -> Ticket:
    (ticket,) = initial_tickets(architecture(name, (1, 8, 8), 10), [0])
    shapes = shapes_of(ticket)
    ticket = ticket.in_bases(bases(rule, shapes, (1, 8, 8), 0, ticket.weights()))
    if density < 1:
        ticket = ticket.with_masks(random_masks(shapes, round(density * ticket.prunable), generator(0, "masks")))
    return replace(ticket, off=off)  # type: ignore[arg-type]


def same(a: Trained, b: Trained) -> None:
    assert a.history == b.history
    assert a.ticket.digest() == b.ticket.digest()


def both(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Trained]) -> list[Tape]:
    """Asserts that a training with captured steps is the training without, and gives what was captured."""
    capturing(monkeypatch, refusing)
    with pytest.warns(UserWarning, match="not replayed from a CUDA graph: operation not permitted when stream is cap"):
        wanted = run()
    tapes: list[Tape] = []
    capturing(monkeypatch, taping(tapes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(run(), wanted)
    return tapes


@pytest.mark.parametrize("name", [LENET, CONV, RESNET])
@pytest.mark.parametrize(
    ("rule", "off", "fields"),
    [
        ("canonical", "zero", {}),
        ("dct", "init", {}),
        ("units", "zero", {"optimizer": "adam", "nesterov": False, "learning_rate": 0.01, "schedule": "step"}),
        ("random", "zero", {"optimizer": "adamw", "learning_rate": 0.01, "state_in": "weights"}),
        ("canonical", "zero", {"precision": "bf16", "momentum": 0.0, "nesterov": False}),
    ],
)
def test_a_replayed_training_is_the_training(
    name: str, rule: str, off: str, fields: dict[str, Any], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, recipe = make(name, rule, off=off), replace(RECIPE, **fields)
    tapes = both(monkeypatch, lambda: train(of_seeds([ticket], [3]), recipe, digits, snapshots=(17,))[0])
    (tape,) = tapes
    # Captured at the twelfth step, the first after the warm-up that is as large as the one before: once to compare,
    # then all full batches.
    assert tape.replays == 1 + 2 + 4 + 4
    assert not any("_local_scalar_dense" in str(func) for func, *_ in tape.made), "a step waits for a value"


@pytest.mark.parametrize(("method", "density"), [("rigl", 0.3), ("gmp", 0.3)])
def test_masks_may_change_under_a_captured_step(
    method: str, density: float, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gradual pruning starts dense, so that masks come to be only after the capture: then it is captured anew.
    options = {"interval": 3} if method == "rigl" else {"interval": 3, "begin": 0.6, "end": 0.8}
    start = [make(RESNET, density=1.0)]

    def run() -> Trained:
        return train_dynamic(of_seeds(start, [0]), density, method, RECIPE, digits, **options)[0]

    tapes = both(monkeypatch, run)
    assert len(tapes) == (1 if method == "rigl" else 2)
    assert all(tape.replays > 2 for tape in tapes)


@pytest.mark.parametrize("left_out", ["_fused_sgd_", "convolution_backward", "masked", "none"])
def test_a_replay_that_misses_a_part_is_noticed(
    left_out: str, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(work: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        tape = Tape()
        with tape:
            losses = work()
        if left_out == "masked":
            kept = [call for call in tape.made if "mul_" not in str(call[0])]
        else:
            kept = [call for call in tape.made if left_out not in str(call[0])]
        assert (len(kept) == len(tape.made)) == (left_out == "none")
        tape.made = kept
        return losses, tape.replay

    ticket = make(CONV)
    capturing(monkeypatch, refusing)
    with pytest.warns(UserWarning, match="not replayed"):
        (wanted,) = train(of_seeds([ticket], [0]), RECIPE, digits)
    capturing(monkeypatch, capture)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (found,) = train(of_seeds([ticket], [0]), RECIPE, digits)
    same(found, wanted)
    told = [str(one.message) for one in warned]
    wanted_told = ["training steps are not replayed from a CUDA graph: its replay gave another result"]
    assert told == ([] if left_out == "none" else wanted_told)


def test_short_trainings_and_odd_batches_are_not_captured() -> None:
    total, tapes, seen = torch.zeros(()), [], []

    def work(inputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(inputs))
        total.add_(inputs.sum())
        return inputs * labels

    step = CapturedStep(work, lambda: [total], taping(tapes))
    sizes = [4, 4, 2] * 5
    for number, size in enumerate(sizes):
        inputs = torch.full((size,), float(number))
        assert torch.equal(step(inputs, torch.ones(size)), inputs)
        assert bool(tapes) == (number >= WARM_UP)
    assert total == sum(number * size for number, size in enumerate(sizes))
    # The eleventh is the first of its shape in a row; it and the capture run the work, later ones of 4 do not.
    assert len(tapes) == 1
    assert seen[WARM_UP:].count(4) == 2
    step.forget()
    for _ in range(3):
        step(torch.ones(4), torch.ones(4))
    assert [tape.replays for tape in tapes] == [3, 3]


class Moody(torch.nn.Module):
    """A user's layer, which may do one thing in one step and another in the next."""


@pytest.mark.parametrize(
    ("name", "device", "fields", "captured"),
    [
        (RESNET, "cuda", {}, True),
        (CONV, "cuda", {"optimizer": "adam", "nesterov": False}, True),
        (RESNET, "cuda", {"optimizer": "muon"}, False),
        (RESNET, "cuda", {"optimizer": "rmsprop", "nesterov": False}, False),
        (RESNET, "cpu", {}, False),
    ],
)
def test_only_steps_whose_python_is_known_are_captured(
    name: str, device: str, fields: dict[str, Any], captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network([make(name)] * (4 if name == CONV else 1), torch.device("cpu"), torch.float32)
    asked: list[object] = []
    monkeypatch.setattr(steps, "AutogradStep", lambda *arguments: asked.append(arguments[3]))
    recipe = replace(RECIPE, **fields)
    steps.step_of(net, recipe, torch.device(device))
    net.module.add_module("moody", Moody())
    steps.step_of(net, recipe, torch.device(device))
    assert asked == [cuda_graph if captured else None, None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [LENET, CONV, RESNET])
@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam", "nesterov": False, "learning_rate": 0.01}])
def test_on_a_gpu_a_replayed_training_is_the_training(
    name: str, fields: dict[str, Any], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, recipe = make(name), replace(RECIPE, precision="fp64", **fields)

    def run() -> Trained:
        return train(of_seeds([ticket], [3]), recipe, digits)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replayed = run()
    capturing(monkeypatch, refusing)
    with pytest.warns(UserWarning, match="not replayed"):
        wanted = run()
    for key, weight in wanted.ticket.weights().items():
        assert torch.allclose(replayed.ticket.weights()[key], weight, rtol=1e-5, atol=1e-7)
