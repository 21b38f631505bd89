"""Layers of several replicates in one: activations (batch, replicates x channels, ...), replicate by replicate.

A network whose layers are exchanged for these runs all its replicates by its own forward pass, unchanged: convolutions
in groups, BatchNorm over the channels of all, linear layers as batched products. From two replicates on neither their
number nor a replicate's place changes one bit of what it gives; one alone is another kernel's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lthlib.models.layers import Function

# Numbers that a register holds, at most.
REGISTER = 16
# Layers that work on each number, or on each channel's image, by itself.
PLAIN = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten, Function)


def can_stack(module: nn.Module) -> bool:
    """Whether all layers of one of our own networks have a stacked form here, a convolution among them."""
    layers = [layer for layer in module.modules() if not any(True for _ in layer.children())]
    return any(type(layer) is nn.Conv2d for layer in layers) and all(_has_stacked_form(layer) for layer in layers)


def _has_stacked_form(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1
    if type(layer) is nn.BatchNorm2d:
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    return type(layer) in (nn.Linear, nn.Sequential, nn.ModuleList, *PLAIN)


def stack_layers(module: nn.Module, count: int) -> None:
    """Exchanges the layers of a module that `can_stack` for those of `count` replicates, whose values are to be set."""
    for name, layer in list(module.named_children()):
        stacked = _STACKED.get(type(layer))
        if stacked is None:
            stack_layers(layer, count)
        else:
            setattr(module, name, stacked(layer, count))


class StackedConvolution(nn.Module):
    """`layer` of each replicate: weight (replicates, out, in, height, width), bias (replicates, out)."""

    def __init__(self, layer: nn.Conv2d, count: int) -> None:
        super().__init__()
        self.layer = layer
        layer.groups = count
        self.weight = _place(layer.weight, count)
        self.bias = None if layer.bias is None else _place(layer.bias, count)
        # They are this layer's now, and a module lists what it holds.
        del layer.weight, layer.bias

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        outputs = self.layer._conv_forward(images, weight, None)
        # The kernel itself would add a bias now first, now last, by the number of groups.
        return outputs if self.bias is None else _Biased.apply(outputs, self.bias)


class _Biased(torch.autograd.Function):
    """Outputs (batch, replicates x channels, height, width) plus a bias (replicates, channels), in place.

    Its gradient is summed for so many channels at a time as fill a register: autograd would sum for all at once, in an
    order that depends on how many they are.
    """

    @staticmethod
    def forward(context: Any, outputs: Tensor, bias: Tensor) -> Tensor:
        context.mark_dirty(outputs)
        context.shape = bias.shape
        return outputs.add_(bias.flatten()[:, None, None])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows = gradient.movedim(1, -1).reshape(-1, context.shape.numel())
        return gradient, torch.cat([part.sum(0) for part in rows.split(REGISTER, 1)]).view(context.shape)


class StackedLinear(nn.Module):
    """`layer` of each replicate: weight (replicates, out, in), bias (replicates, out)."""

    def __init__(self, layer: nn.Linear, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight = _place(layer.weight, count)
        self.bias = None if layer.bias is None else _place(layer.bias, count)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.count, -1)).transpose(0, 1).contiguous()
        product = torch.bmm(rows, self.weight.mT)
        if self.bias is not None:
            product = product + self.bias.unsqueeze(1)
        if product.requires_grad:
            # The sum that is the bias's gradient depends on how the examples lie in memory.
            product.register_hook(Tensor.contiguous)
        return product.transpose(0, 1).flatten(1)


class StackedBatchNorm(nn.Module):
    """`layer` of each replicate: weight, bias and running statistics (replicates, channels)."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: nn.BatchNorm2d, count: int) -> None:
        super().__init__()
        assert layer.momentum is not None
        self.momentum, self.eps = layer.momentum, layer.eps
        self.weight, self.bias = _place(layer.weight, count), _place(layer.bias, count)
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer.new_empty((count, *buffer.shape)))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, variance = self.running_mean.flatten(), self.running_var.flatten()
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return F.batch_norm(images, mean, variance, weight, bias, self.training, self.momentum, self.eps)


_STACKED: dict[type, Callable[[Any, int], nn.Module]] = {
    nn.Conv2d: StackedConvolution,
    nn.Linear: StackedLinear,
    nn.BatchNorm2d: StackedBatchNorm,
}


def _place(tensor: Tensor, count: int) -> nn.Parameter:
    """Where the values of `count` replicates go."""
    return nn.Parameter(tensor.new_empty((count, *tensor.shape)))
