"""The hot path by hand: one SGD step of a stack of linear nets, forward, backward and update.

It is the step that autograd and `torch.optim.SGD` make, with passes over memory saved: the product that gives a
gradient adds straight into the momentum buffer, and one masked update moves the coefficients. Weights of small nets
outgrow the caches once replicates are stacked, so memory, not arithmetic, is what such a step waits for.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from lthlib.rounding import rows_times
from lthlib.ticket import State
from lthlib.training.linear_stack import LinearStack
from lthlib.training.network import Network


class StackedSGD:
    """SGD with momentum and weight decay on a `LinearStack` of linear and ReLU layers; what is pruned never moves."""

    def __init__(self, net: LinearStack, momentum: float, weight_decay: float) -> None:
        self.net, self.momentum, self.weight_decay = net, momentum, weight_decay
        self.velocity = {name: torch.zeros_like(tensor) for name, tensor in {**net.leaves, **net.affine}.items()}
        self.masks = {name: mask.to(net.leaves[name].dtype) for name, mask in net.masks.items()}
        self.prefixes = [prefix for prefix, layer in net.layers if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def remasked(self, stays: State) -> None:
        """Follows a change of the network's masks: momentum is zero but where a coefficient stays kept."""
        for name, kept in stays.items():
            self.velocity[name].masked_fill_(~kept, 0)
            self.masks[name] = self.net.masks[name].to(self.velocity[name].dtype)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """One step on inputs (replicates, batch, features); returns the losses (replicates, batch) before it."""
        layers, x = [], inputs
        for position, prefix in enumerate(self.prefixes):
            activation = torch.relu_(x) if position else x
            inputs = self.net.into_basis(activation, f"{prefix}.weight")
            layers.append((prefix, activation, inputs))
            x = self.net.product(inputs, f"{prefix}.weight", self.net.affine.get(f"{prefix}.bias"))
        log_p, target = x.log_softmax(-1), labels.unsqueeze(-1)
        losses = -log_p.gather(-1, target).squeeze(-1)
        gradient = log_p.exp_().scatter_add_(-1, target, log_p.new_full((), -1.0).expand(target.shape))
        gradient /= labels.shape[1]
        for position in reversed(range(len(layers))):
            prefix, activation, inputs = layers[position]
            below = self._layer(prefix, inputs, gradient, learning_rate, first=position == 0)
            if below is not None:
                # An activation of zero is where the ReLU passed nothing on.
                gradient = torch.ops.aten.threshold_backward(below, activation, 0)
        return losses

    def _layer(self, prefix: str, inputs: Tensor, gradient: Tensor, rate: float, *, first: bool) -> Tensor | None:
        """Updates one layer from the gradient of its output; gives the gradient of its input, None for the first."""
        name, bias = f"{prefix}.weight", f"{prefix}.bias"
        leaf, velocity = self.net.leaves[name], self.velocity[name]
        into, out = self.net.matrices[name]
        if bias in self.net.affine:
            push = self.velocity[bias].mul_(self.momentum).add_(gradient.sum(1))
            if self.weight_decay:
                push.add_(self.net.affine[bias], alpha=self.weight_decay)
        if out is not None:
            gradient = rows_times(gradient, out.mT)
        below = None
        if not first:
            below = torch.bmm(gradient, leaf)
            if into is not None:
                below = rows_times(below, into.mT)
        self._accumulate(velocity, gradient, inputs)
        if self.weight_decay:
            velocity.add_(leaf, alpha=self.weight_decay)
        if name in self.masks:
            leaf.addcmul_(velocity, self.masks[name], value=-rate)
        else:
            leaf.add_(velocity, alpha=-rate)
        if bias in self.net.affine:
            self.net.affine[bias].add_(self.velocity[bias], alpha=-rate)
        return below

    def _accumulate(self, velocity: Tensor, gradient: Tensor, inputs: Tensor) -> None:
        """velocity <- momentum velocity + gradient^T inputs, rounded alike for one replicate and for several."""
        if len(velocity) > 1:
            torch.baddbmm(velocity, gradient.mT, inputs, beta=self.momentum, out=velocity)
        else:
            # A stack of one goes to another kernel, which rounds otherwise; a stack of twins does not.
            both, gradients, twice = (tensor.repeat(2, 1, 1) for tensor in (velocity, gradient, inputs))
            velocity.copy_(both.baddbmm_(gradients.mT, twice, beta=self.momentum)[:1])


def covers(net: Network, optimizer: str, nesterov: bool) -> TypeGuard[LinearStack]:
    """Whether `StackedSGD` is this network's and optimizer's step: fixed bases, coefficients, ReLU between layers."""
    if not isinstance(net, LinearStack) or optimizer != "sgd" or nesterov or not net.on_activations:
        return False
    kinds = [type(layer) for _, layer in net.layers]
    return len(kinds) % 2 == 1 and set(kinds[::2]) == {nn.Linear} and set(kinds[1::2]) <= {nn.ReLU}
