"""SGD, Adam, AdamW and RMSprop: torch's own functions, called without the classes around them.

Those import torch's compiler when first used, seconds that a short training does not have, and pass through it at
each step. Defaults are the classes': betas of 0.9 and 0.999, RMSprop's alpha of 0.99, epsilon of 1e-8.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from lthlib.training.network import Network
from lthlib.training.recipe import Recipe


class Optimizer:
    """Moves parameters by their gradients as the recipe's optimizer does; those without a gradient stay.

    `fused` asks for one kernel for all, which takes the learning rate as a tensor too; not for RMSprop.
    """

    def __init__(self, parameters: Sequence[Tensor], recipe: Recipe, *, fused: bool = False) -> None:
        self.recipe, self.fused = recipe, fused
        self.moments = {parameter: self._start(parameter) for parameter in parameters}

    def _start(self, parameter: Tensor) -> list[Tensor]:
        """Moments of zero and the count of steps; none for SGD, whose momentum starts as the first gradient."""
        if self.recipe.optimizer == "sgd":
            return []
        averages = 1 if self.recipe.optimizer == "rmsprop" else 2
        counted = torch.zeros((), dtype=torch.float32, device=parameter.device if self.fused else "cpu")
        return [*(torch.zeros_like(parameter, requires_grad=False) for _ in range(averages)), counted]

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        """One step from the gradients that the parameters hold."""
        held = {parameter: parameter.grad for parameter in self.moments if parameter.grad is not None}
        live, gradients = list(held), list(held.values())
        if not live:
            return
        if self.recipe.optimizer == "sgd":
            self._sgd(live, gradients, learning_rate)
            return
        averages = [list(each) for each in zip(*(self.moments[parameter] for parameter in live), strict=True)]
        if self.recipe.optimizer == "rmsprop":
            squares, counts = averages
            rmsprop(
                live, gradients, squares, [], [], counts, foreach=True, lr=learning_rate, alpha=0.99, eps=1e-8,
                weight_decay=self.recipe.weight_decay, momentum=0, centered=False,
            )  # fmt: skip
            return
        firsts, squares, counts = averages
        adam(
            live, gradients, firsts, squares, [], counts, foreach=not self.fused, fused=self.fused, amsgrad=False,
            beta1=0.9, beta2=0.999, lr=learning_rate, weight_decay=self.recipe.weight_decay, eps=1e-8, maximize=False,
            decoupled_weight_decay=self.recipe.optimizer == "adamw",
        )  # fmt: skip

    def _sgd(self, live: list[Tensor], gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        momentum = self.recipe.momentum
        velocities = [next(iter(self.moments[parameter]), None) for parameter in live] if momentum else []
        sgd(
            live, gradients, velocities, foreach=not self.fused, fused=self.fused, lr=learning_rate, momentum=momentum,
            weight_decay=self.recipe.weight_decay, dampening=0, nesterov=self.recipe.nesterov, maximize=False,
        )  # fmt: skip
        for parameter, velocity in zip(live, velocities, strict=momentum != 0):
            self.moments[parameter] = [] if velocity is None else [velocity]


# Chosen by Muon's author for the steepest slope at 0, with singular values that end between 0.7 and 1.2.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon:
    """The optimizer of a `Network`: Muon for matrices, SGD for convolutions, biases and normalisation.

    Both take the recipe's learning rate (a matrix of more rows than columns takes sqrt(rows / columns) times it),
    momentum (in Muon an average of gradients, in SGD a sum), Nesterov and weight decay (in Muon decoupled). A step
    mixes the coordinates of a matrix, so that what is pruned moves and must be put back (`Network.hold`).
    """

    def __init__(self, net: Network, recipe: Recipe) -> None:
        self.momentum, self.nesterov, self.weight_decay = recipe.momentum, recipe.nesterov, recipe.weight_decay
        self.parameters, self.leading = net.parameters(), net.leading
        matrices = [leaf for leaf in net.leaves.values() if leaf.dim() - net.leading == 2]
        self.matrices = {leaf: torch.zeros_like(leaf) for leaf in matrices}
        others = [tensor for tensor in self.parameters if tensor not in self.matrices]
        self.others = Optimizer(others, replace(recipe, optimizer="sgd"))

    @property
    def moments(self) -> dict[Tensor, list[Tensor]]:
        """Moments by leaf."""
        return self.others.moments | {leaf: [moments] for leaf, moments in self.matrices.items()}

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        """One step from the gradients of the network's parameters."""
        for leaf, moments in self.matrices.items():
            if leaf.grad is None:
                continue
            # One replicate after the other, so that none is rounded otherwise than alone.
            stacks = (leaf, leaf.grad, moments)
            each = (stack.unbind() if self.leading else (stack,) for stack in stacks)
            for weight, gradient, own in zip(*each, strict=True):
                self._step(weight, gradient, own, float(learning_rate))
        self.others.step(learning_rate)

    def _step(self, weight: Tensor, gradient: Tensor, moments: Tensor, rate: float) -> None:
        rows, columns = weight.shape
        moments.lerp_(gradient, 1 - self.momentum)
        update = gradient.lerp(moments, self.momentum) if self.nesterov else moments
        weight.mul_(1 - rate * self.weight_decay)
        weight.add_(orthogonalised(update), alpha=-rate * math.sqrt(max(1, rows / columns)))


def orthogonalised(matrix: Tensor) -> Tensor:
    r"""Nearly $UV^\top$ of a matrix (rows, columns) $U\Sigma V^\top$, in its dtype: 5 Newton-Schulz iterations.

    Singular values end between 0.7 and 1.2, but for those far below the largest. Commutes with orthonormal changes of
    the basis of rows and of columns. A matrix of zeros stays zero.
    """
    first, third, fifth = QUINTIC
    wide = matrix.mT if len(matrix) > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide.mT if len(matrix) > matrix.shape[1] else wide
