"""One step of training: the loss, its gradients and an optimizer, by autograd or where it is written by hand."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lthlib.ticket import State
from lthlib.training.captured import Capture, CapturedStep, cuda_graph
from lthlib.training.mask_updates import Step
from lthlib.training.network import Network
from lthlib.training.optimizers import Muon, Optimizer
from lthlib.training.recipe import Recipe
from lthlib.training.stacked_sgd import StackedSGD, covers

FUSED = ("sgd", "adam", "adamw")


def step_of(net: Network, recipe: Recipe, device: torch.device) -> Step:
    """What moves the network by one step: by hand where that is written, else by autograd and torch's optimizer."""
    if recipe.precision != "bf16" and covers(net, recipe.optimizer, recipe.nesterov):
        return StackedSGD(net, recipe.momentum, recipe.weight_decay)
    captured = device.type == "cuda" and recipe.optimizer in FUSED and _is_replayable(net.module)
    return AutogradStep(net, recipe, device, cuda_graph if captured else None)


def _is_replayable(module: nn.Module) -> bool:
    """Whether all of the network's Python is torch's or ours: a user's may choose anew at each step."""
    return all(type(part).__module__.startswith(("torch.nn.", "lthlib.")) for part in module.modules())


class AutogradStep:
    """A step by autograd and the recipe's optimizer; with `capture`, which needs a fused one, replayed."""

    def __init__(self, net: Network, recipe: Recipe, device: torch.device, capture: Capture | None = None) -> None:
        self.net, self.precision, self.device = net, recipe.precision, device
        self.optimizer = _optimizer(net, recipe, fused=device.type == "cuda" or capture is not None)
        # A replay reads the learning rate from memory.
        self.rate: float | Tensor = 0.0 if capture is None else torch.zeros((), device=device)
        self.captured = None if capture is None else CapturedStep(self._step, self._moved, capture)
        self.masked = set(net.masks)

    def __call__(self, inputs: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        self.rate = self.rate.fill_(learning_rate) if isinstance(self.rate, Tensor) else learning_rate
        return (self.captured or self._step)(inputs, labels)

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            losses = losses_of(self.net.forward(inputs, training=True), labels)
        for parameter in self.net.parameters():
            parameter.grad = None
        losses.mean(1).sum().backward()
        self.net.mask_gradients()
        self.optimizer.step(self.rate)
        self.net.hold(everywhere=isinstance(self.optimizer, Muon))
        return losses.detach()

    def _moved(self) -> list[Tensor]:
        moments = [moment for moments in self.optimizer.moments.values() for moment in moments]
        return [*self.net.parameters(), *self.net.buffers.values(), *moments]

    def remasked(self, stays: State) -> None:
        # A dropped coefficient gets no gradient, but what is left of its momentum would still move it.
        for name, kept in stays.items():
            for moment in self.optimizer.moments[self.net.leaves[name]]:
                if moment.shape == kept.shape:
                    moment.masked_fill_(~kept, 0)
        if self.captured is not None and self.masked != set(self.net.masks):
            self.masked = set(self.net.masks)
            self.captured.forget()


def _optimizer(net: Network, recipe: Recipe, *, fused: bool) -> Optimizer | Muon:
    if recipe.optimizer == "muon":
        return Muon(net, recipe)
    # On the CPU the fused kernels round the ends of their chunks otherwise than the rest: where a replicate lies in
    # its stack would then change its result.
    return Optimizer(net.parameters(), recipe, fused=fused and recipe.optimizer in FUSED)


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example: (replicates, batch) from logits (replicates, batch, classes)."""
    flat = logits.flatten(0, 1)
    flat = flat.float() if flat.dtype == torch.bfloat16 else flat
    return F.cross_entropy(flat, labels.flatten(), reduction="none").view(labels.shape)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass: one that computes in bfloat16 where `precision` is bf16, else none."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
