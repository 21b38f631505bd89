"""Networks from one line of text: the architectures `layers-TEXT`, and the layers that `nn` lacks."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lthlib.errors import InputError
from lthlib.models.networks import halved

LEAK = 0.01  # nn.LeakyReLU's own slope
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky": partial(F.leaky_relu, negative_slope=LEAK),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
MODULES = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def plain(name: str) -> Callable[[Tensor], Tensor]:
    """A layer without weights, by its name."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    return {"pool": halved, "mean": lambda x: x.mean((2, 3)), "flatten": lambda x: x.flatten(1)}[name]


def with_mean(x: Tensor) -> Tensor:
    """(batch, channels, members, 1) to (batch, channels, members, 2): each member beside the mean of all."""
    return torch.cat([x, x.mean(2, keepdim=True).expand_as(x)], dim=3)


class Function(nn.Module):
    """A layer without weights, by its name in a source's text."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.function = plain(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SetLayer(nn.Module):
    """x -> A x + B mean(x) + bias over the members of a set, x (batch, channels, members, 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(inputs, outputs, (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(with_mean(x))


class ResidualModule(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def module_of(text: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The module of a text: layers `linearN`, `convNkHxW[sS]`, `cyclicNkHxW`, `setsN`, relu, leaky, tanh, sigmoid,
    pool, mean, flatten and residual blocks `(-body-|-shortcut-)`. Raises InputError for any other word."""
    words = text.split("-")
    module, shape = _build(words, tuple(input_shape))
    if words:
        raise InputError(f"network text {text!r} closes a block that it does not open, at {words[0]!r}")
    if shape != (classes,):
        raise InputError(f"network text {text!r} ends in shape {shape}, not in {classes} classes")
    return module


def _build(words: list[str], shape: tuple[int, ...]) -> tuple[nn.Sequential, tuple[int, ...]]:
    layers: list[nn.Module] = []
    while words and words[0] not in ("|", ")"):
        word = words.pop(0)
        if word == "(":
            body, after = _build(words, shape)
            words[:1] = []
            shortcut, _ = _build(words, shape)
            words[:1] = []
            layers.append(ResidualModule(body, shortcut))
            shape = after
        elif match := re.fullmatch(r"(linear|sets)(\d+)", word):
            size = int(match[2])
            layers.append(nn.Linear(shape[0], size) if match[1] == "linear" else SetLayer(shape[0], size))
            shape = (size, *shape[1:])
        elif match := re.fullmatch(r"(conv|cyclic)(\d+)k(\d+)x(\d+)(?:s(\d+))?", word):
            size, height, width, stride = (int(part or 1) for part in match.groups()[1:])
            mode: Any = "zeros" if match[1] == "conv" else "circular"
            padding = (height // 2, width // 2)
            layers.append(nn.Conv2d(shape[0], size, (height, width), stride, padding, padding_mode=mode))
            shape = (size, *(math.ceil(side / stride) for side in shape[1:]))
        elif word == "flatten":
            layers.append(nn.Flatten())
            shape = (math.prod(shape),)
        elif word in MODULES:
            layers.append(MODULES[word]())
        elif word in ("pool", "mean"):
            layers.append(Function(word))
            shape = shape[:1] if word == "mean" else (shape[0], *(max(1, side // 2) for side in shape[1:]))
        else:
            raise InputError(f"network text has no layer {word!r} (valid: linearN, convNkHxW, cyclicNkHxW, setsN, "
                             f"{', '.join(ACTIVATIONS)}, pool, mean, flatten, and blocks in parentheses)")  # fmt: skip
    return nn.Sequential(*layers), shape
