"""Masks that change while training: what a rule of dynamic sparse training is to the one training loop.

A rule acts after the optimizer's step, so that no step is lost, and says which coefficients each ticket keeps from
then on. What is dropped becomes zero; what is grown starts at zero; both with optimizer moments of zero.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lthlib.errors import InputError
from lthlib.ticket import State, Ticket
from lthlib.training.network import Network
from lthlib.training.recipe import Recipe


class MaskUpdates(Protocol):
    """A rule that changes masks while training; `finders.dynamic` has them. Steps count from the training's start."""

    @property
    def reads_gradients(self) -> bool:
        """Whether `masks` wants the loss's gradients, which cost one more pass at each update."""

    def due(self, done: int, total: int) -> bool:
        """Whether masks change once `done` of `total` steps are done."""

    def masks(
        self, masks: State, coefficients: State, gradients: State | None, done: int, total: int, seed: int
    ) -> State:
        """One ticket's masks from here on, for all its prunable tensors.

        `coefficients` are those after the step; `gradients`, of pruned coefficients too, those that the step's batch
        gave before it.
        """

    def key(self) -> object:
        """What fixes the rule's choices, its own code's version included: part of the key of a stored training."""


class Step(Protocol):
    """What moves a network by one training step, and follows a change of its masks."""

    def __call__(self, inputs: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """One step on inputs (replicates, batch, ...); returns the losses (replicates, batch) before it."""

    def remasked(self, stays: State) -> None:
        """Forgets the moments of all coefficients but those that stay kept, after `Network.remask`."""


def refuse_unchangeable(tickets: Sequence[Ticket], recipe: Recipe) -> None:
    """Raises InputError for tickets or recipes under which a mask cannot change: grown coefficients start at zero."""
    for ticket in tickets:
        if ticket.off != "zero":
            raise InputError(f"masks that change need pruned coefficients of zero, found off={ticket.off!r}")
        if recipe.state_in == "weights" and not all(basis.is_identity for basis in ticket.bases.values()):
            raise InputError("masks that change need state_in 'coefficients', found 'weights' in another basis")


def dense_gradients(net: Network, losses: Callable[[], Tensor]) -> State:
    """Gradients of the mean loss by all leaves, those of pruned coefficients too; leaves the network as it was.

    `losses` runs the network forward and gives (replicates, batch).
    """
    before = {name: buffer.clone() for name, buffer in net.buffers.items()}
    gradients = torch.autograd.grad(losses().mean(1).sum(), list(net.leaves.values()), materialize_grads=True)
    # The pass has moved normalisation statistics, which the step itself will move.
    for name, buffer in before.items():
        net.buffers[name].copy_(buffer)
    return dict(zip(net.leaves, gradients, strict=True))


@torch.no_grad()
def update_masks(net: Network, move: Step, rule: MaskUpdates, gradients: State | None, done: int, total: int) -> None:
    """Gives each ticket of the network the masks that the rule wants after `done` of `total` steps."""
    leaves = {name: leaf.detach() for name, leaf in net.leaves.items()}
    masks = {name: net.masks.get(name, torch.ones_like(leaf, dtype=torch.bool)) for name, leaf in leaves.items()}
    parts = net.each(gradients) if gradients is not None else [None] * net.count
    wanted = [
        rule.masks(mask, coefficients, gradient, done, total, ticket.seed)
        for mask, coefficients, gradient, ticket in zip(
            net.each(masks), net.each(leaves), parts, net.sources, strict=True
        )
    ]
    move.remasked(net.remask(wanted))
