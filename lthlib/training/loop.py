"""One stack of networks through its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor

from lthlib.data import Dataset
from lthlib.ticket import State, Ticket
from lthlib.training.batches import Batches, prepared
from lthlib.training.mask_updates import MaskUpdates, dense_gradients, update_masks
from lthlib.training.network import Network
from lthlib.training.parallel import StoppedError
from lthlib.training.proximal import Penalty
from lthlib.training.recipe import DTYPES, Recipe
from lthlib.training.stacks import network
from lthlib.training.steps import autocast, losses_of, step_of

# Images of a split that are judged at once.
CHUNK = 250


@dataclass(frozen=True)
class Trained:
    """What training one ticket gave.

    - `ticket`: the ticket with its final coefficients (pruned ones exactly zero, or as held) and masks.
    - `history`: one row per evaluation: step, train_loss, validation_loss, validation_accuracy (percent).
    - `early_stopping_step`: the step of the smallest validation loss.
    - `snapshots`: the ticket after the asked-for numbers of steps.
    """

    ticket: Ticket
    history: list[dict[str, float]]
    early_stopping_step: int
    snapshots: dict[int, Ticket] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The replicate's."""
        return self.ticket.seed


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and accuracy (percent) of one ticket on one split."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class _Job:
    """What all stacks of one call to `train` share."""

    recipe: Recipe
    data: Dataset
    start_step: int
    snapshots: tuple[int, ...]
    penalty: Penalty | None
    mask_updates: MaskUpdates | None = None

    def run(self, tickets: list[Ticket], progress: str, stop: Event) -> list[Trained]:
        """Trains tickets that share one network."""
        recipe, data = self.recipe, self.data
        dtype = DTYPES[recipe.precision]
        net = network(tickets, data.device, dtype, recipe.state_in)
        batches = Batches(net, data, recipe, dtype)
        validation = prepared(net, data, "validation", dtype)
        total = recipe.steps(len(data.train.labels))
        move = step_of(net, recipe, data.device)
        penalised = () if self.penalty is None else self.penalty.chosen(tuple(net.leaves))
        marks = {round(total * (k + 1) / recipe.evaluations) for k in range(recipe.evaluations)} | {total}
        histories: list[list[dict[str, float]]] = [[] for _ in tickets]
        kept = {self.start_step: net.tickets()} if self.start_step in self.snapshots else {}
        losses: list[Tensor] = []
        for step in counted_steps(self.start_step, total, progress):
            if stop.is_set():
                raise StoppedError("another stack failed")
            inputs, labels = batches.at(step)
            rate = recipe.learning_rate_at(step, len(data.train.labels))
            due = self.mask_updates is not None and self.mask_updates.due(step + 1, total)
            gradients = self._gradients(net, inputs, labels) if due else None
            # Summed in double and rounded once: the order of summation, which depends on the stack, leaves no trace.
            each = move(inputs, labels, rate)
            losses.append(each.double().mean(1).to(each.dtype))
            if self.penalty is not None:
                _penalise(net, self.penalty, penalised, rate)
            if self.mask_updates is not None and due:
                update_masks(net, move, self.mask_updates, gradients, step + 1, total)
            if step + 1 in marks:
                _refuse_divergence(torch.stack(losses), step + 1 - len(losses), tickets)
                means = torch.stack(losses).double().mean(0).float().tolist()
                losses.clear()
                evaluations = _evaluate(net, validation, data.validation.labels, recipe.precision)
                # The last step's update shows in no training loss.
                _refuse_divergence(torch.tensor([[evaluation.loss for evaluation in evaluations]]), step, tickets)
                for history, train_loss, evaluation in zip(histories, means, evaluations, strict=True):
                    judged = {"validation_loss": evaluation.loss, "validation_accuracy": evaluation.accuracy}
                    history.append({"step": step + 1, "train_loss": train_loss, **judged})
            if step + 1 in self.snapshots:
                kept[step + 1] = net.tickets()
        return [
            Trained(
                ticket=ticket,
                history=history,
                early_stopping_step=_early_stopping_step(history, total),
                snapshots={step: taken[index] for step, taken in kept.items()},
            )
            for index, (ticket, history) in enumerate(zip(net.tickets(), histories, strict=True))
        ]

    def _gradients(self, net: Network, inputs: Tensor, labels: Tensor) -> State | None:
        """What the masks' update reads of the step's batch, before the step."""
        if self.mask_updates is None or not self.mask_updates.reads_gradients:
            return None

        def losses() -> Tensor:
            with autocast(self.recipe.precision, self.data.device):
                return losses_of(net.forward(inputs, training=True), labels)

        return dense_gradients(net, losses)


def _early_stopping_step(history: list[dict[str, float]], total: int) -> int:
    return int(min(history, key=lambda row: row["validation_loss"])["step"]) if history else total


def _penalise(net: Network, penalty: Penalty, names: Sequence[str], learning_rate: float) -> None:
    net.change(lambda _, coefficients: penalty.apply(coefficients, learning_rate, net.leading), names)


@torch.no_grad()
def _evaluate(net: Network, inputs: Tensor, labels: Tensor, precision: str) -> list[Evaluation]:
    losses = torch.zeros(net.count, dtype=torch.float64, device=labels.device)
    correct = torch.zeros_like(losses)
    for start in range(0, len(labels), CHUNK):
        part, truth = inputs[start : start + CHUNK], labels[start : start + CHUNK]
        # A user's own first layer may work in place.
        part = part.clone() if net.count == 1 else part
        with autocast(precision, labels.device):
            # A real copy for each replicate: with stride 0 the products would round otherwise for one than for several.
            logits = net.forward(part.expand(net.count, *part.shape).contiguous(), training=False)
        every = truth.expand(net.count, -1)
        losses += losses_of(logits, every).double().sum(1)
        correct += (logits.argmax(-1) == every).sum(1)
    return [
        Evaluation(loss=loss, accuracy=100 * right)
        for loss, right in zip((losses / len(labels)).tolist(), (correct / len(labels)).tolist(), strict=True)
    ]


def _refuse_divergence(losses: Tensor, first_step: int, tickets: list[Ticket]) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        row, index = bad[0].tolist()
        raise FloatingPointError(
            f"training diverged: the loss of the ticket of seed {tickets[index].seed} (density "
            f"{tickets[index].density:.4g}) is {losses[row, index].item()} at step {first_step + row} "
            "(a smaller learning rate or a warm-up may help)"
        )


def counted_steps(start: int, total: int, progress: str) -> Any:
    """The steps from `start` to `total`, under a bar named `progress`; empty shows none."""
    if not progress:
        return range(start, total)
    from tqdm.auto import tqdm

    return tqdm(range(start, total), desc=progress, unit="step", leave=False, mininterval=1.0)
