"""Muon on stacks of networks: steps of orthogonalised momentum, one matrix after the other, and SGD for all else.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), the defaults of `torch.optim.Muon`. That one takes
single matrices and computes in bfloat16, which a CPU does several times more slowly than float32 at these sizes; here
steps are computed in the parameters' own precision, so that they are as blind to rotations as exact arithmetic has it.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lthlib.network import Network
from lthlib.optimizers import Optimizer
from lthlib.recipe import Recipe

# Chosen by its author for the steepest slope at 0, with singular values that end between 0.7 and 1.2.
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
