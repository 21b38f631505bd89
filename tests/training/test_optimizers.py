"""Optimizers are torch's, to the last bit, without what its classes bring along."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lthlib.training.optimizers import Optimizer
from lthlib.training.recipe import OPTIMIZERS, Recipe

CLASSES: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
# Long and odd enough for vectorised loops and what is left after them; the last may get no gradient at first.
SHAPES = [(3, 37, 5), (101,), (8, 4, 3, 3), (4,)]


def parameters() -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=source) for shape in SHAPES]
    found[2] = found[2].contiguous(memory_format=torch.channels_last)
    return [one.requires_grad_() for one in found]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.0, "weight_decay": 0.01}),
        ("sgd", {"nesterov": True, "weight_decay": 0.01}),
        ("adam", {}),
        ("adam", {"weight_decay": 0.01}),
        ("adamw", {"weight_decay": 0.01}),
        ("rmsprop", {}),
        ("rmsprop", {"weight_decay": 0.01}),
    ],
)
def test_steps_are_torchs(name: str, fields: dict[str, Any], fused: bool) -> None:
    if fused and name == "rmsprop":
        pytest.skip("torch has no fused RMSprop")
    recipe = replace(Recipe(optimizer=name), **fields)
    options: dict[str, Any] = {"lr": 1.0, "weight_decay": recipe.weight_decay, "fused" if fused else "foreach": True}
    if name == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    own, wanted = parameters(), parameters()
    optimizer, reference = Optimizer(own, recipe, fused=fused), CLASSES[name](wanted, **options)
    source = torch.Generator().manual_seed(1)
    for number in range(7):
        for index, (one, other) in enumerate(zip(own, wanted, strict=True)):
            gradient = torch.randn(one.shape, generator=source).contiguous(memory_format=torch.preserve_format)
            late = index == 3 and number < 3 and not fused
            one.grad, other.grad = (None, None) if late else (gradient, gradient.clone())
        rate = 0.1 / (number + 1)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        optimizer.step(torch.tensor(rate) if fused and number % 2 else rate)
        for one, other in zip(own, wanted, strict=True):
            # A learning rate that comes as a tensor is rounded to float32.
            torch.testing.assert_close(one, other, rtol=1e-6 if fused else 0, atol=1e-7 if fused else 0)
    if not fused:
        for one, other in zip(own, wanted, strict=True):
            held = [value for key, value in reference.state[other].items() if value is not None]
            found = optimizer.moments[one]
            assert len(found) == len(held)
            assert all(any(torch.equal(a, b) for b in held if a.shape == b.shape) for a in found)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_any_gradient_nothing_moves(name: str) -> None:
    own, before = parameters(), parameters()
    Optimizer(own, Recipe(optimizer=name, weight_decay=0.1)).step(0.1)
    assert all(torch.equal(one, other) for one, other in zip(own, before, strict=True))


def test_training_does_not_import_a_compiler_nor_scikit_learn() -> None:
    code = """
import sys
from lthlib import data
from lthlib.ticket import initial_tickets
from lthlib.models.architecture import architecture
from lthlib.training.recipe import VALID_OPTIMIZERS, Recipe
from lthlib.training.train import train

images = data.load("digits", device="cpu")
for name in ("lenet-8", "resnet-8-w2"):
    tickets = initial_tickets(architecture(name, images.input_shape, images.classes), [0])
    for optimizer in VALID_OPTIMIZERS:
        train(tickets, Recipe(optimizer=optimizer, epochs=0.1, learning_rate=0.001), images)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy", "triton", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
