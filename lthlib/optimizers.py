"""SGD, Adam, AdamW and RMSprop: torch's own functions, called without the classes around them.

Those import torch's compiler when first used, seconds that a short training does not have, and pass through it at
each step. Defaults are the classes': betas of 0.9 and 0.999, RMSprop's alpha of 0.99, epsilon of 1e-8.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from lthlib.recipe import Recipe


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
