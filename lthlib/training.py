"""The one loop that trains a list of tickets of one architecture.

Networks of linear layers train stacked: one batched product per layer for several replicates; on the CPU one stack a
core, beside each other. Others train in turn on all cores, in channels_last. Every replicate has its own data order
and augmentation, fixed by its seed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from lthlib.batches import Batches, prepared
from lthlib.data import SPLITS, Dataset
from lthlib.errors import InputError, unknown
from lthlib.mask_updates import MaskUpdates, dense_gradients, refuse_unchangeable, update_masks
from lthlib.network import Network, is_linear, network, stack_key
from lthlib.proximal import Penalty
from lthlib.recipe import DTYPES, Recipe
from lthlib.rounding import warn_of_neighbours
from lthlib.steps import autocast, losses_of, step_of
from lthlib.store import Store, sources_digest, write_json
from lthlib.threads import StoppedError, shares, values_of
from lthlib.ticket import State, Ticket


@dataclass(frozen=True)
class Trained:
    """What training one ticket gave.

    - `ticket`: the ticket with its final coefficients (pruned ones exactly zero, or as held) and masks.
    - `history`: one row per evaluation: step, train_loss, validation_loss, validation_accuracy (percent).
    - `early_stopping_step`: the step of the smallest validation loss.
    - `snapshots`: the ticket after the asked-for numbers of steps.
    """

    ticket: Ticket
    seed: int
    history: list[dict[str, float]]
    early_stopping_step: int
    snapshots: dict[int, Ticket] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and accuracy (percent) of one ticket on one split."""

    loss: float
    accuracy: float


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; asking for a CUDA device that is absent is an InputError."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise unknown("device", str(device), ("auto", "cpu", "cuda", "cuda:0")) from error
    if picked.type not in ("cpu", "cuda"):
        raise unknown("device", str(device), ("auto", "cpu", "cuda", "cuda:0"))
    if picked.type == "cuda" and (picked.index or 0) >= (count := torch.cuda.device_count()):
        there = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
        raise InputError(f"device {str(device)!r} is not there: {count} CUDA devices (valid: {there})")
    return picked


def train(
    tickets: Sequence[Ticket],
    recipe: Recipe,
    dataset: Dataset,
    seeds: Sequence[int],
    *,
    start_step: int = 0,
    snapshots: Sequence[int] = (),
    penalty: Penalty | None = None,
    mask_updates: MaskUpdates | None = None,
    device: str | torch.device = "auto",
    store: Store | None = None,
    progress: str = "",
) -> list[Trained]:
    """Trains each ticket with the data order and augmentation of its seed, from `start_step` to the recipe's end.

    The schedule and the data order go on from `start_step`; optimizer moments start at zero. `penalty` acts
    on the coefficients after each step; then `mask_updates`, where they are due, change the masks. With a `store`,
    trainings that it holds are read and new ones kept: the key is all that fixes the result, the tickets' content
    included.
    `progress` names a progress bar; empty shows none. Raises InputError for tickets of several architectures, of
    another input shape than the data's, or steps outside the training, and FloatingPointError, naming ticket and step,
    where a loss is no longer finite.
    """
    if len(tickets) != len(seeds):
        raise InputError(f"{len(tickets)} tickets need as many seeds, found {len(seeds)}")
    if len({ticket.architecture for ticket in tickets}) > 1:
        raise InputError("tickets trained together must share one architecture")
    _refuse_misfits(tickets, dataset)
    total = recipe.steps(len(dataset.train.labels))
    if not 0 <= start_step <= total:
        raise InputError(f"start_step {start_step} is outside the training (valid: 0 to {total})")
    for step in snapshots:
        if not start_step <= step <= total:
            raise InputError(f"snapshot at step {step} is outside the training (valid: {start_step} to {total})")
    if mask_updates is not None:
        refuse_unchangeable(tickets, recipe)
    where = pick_device(device)
    if where.type == "cpu":
        warn_of_neighbours()
    data = dataset.to(where)

    def work(indices: list[int]) -> Iterator[Trained]:
        """In the order of `indices`, each as soon as it is there, so that a store keeps what a killed run finished."""
        job = _Job(recipe, data, start_step, tuple(snapshots), penalty, where, mask_updates)
        results: dict[int, Trained] = {}
        pending = list(indices)
        stacks, alone = _groups([tickets[i] for i in indices], where, len(tickets))
        tasks = [
            partial(job.run, [tickets[indices[i]] for i in stack], [seeds[indices[i]] for i in stack], progress)
            for stack in stacks
        ]
        for stack, trained in zip(stacks, values_of(tasks, where), strict=True):
            results |= zip([indices[i] for i in stack], trained, strict=True)
            yield from _in_order(pending, results)
        for i in alone:
            index = indices[i]
            (results[index],) = job.run([tickets[index]], [seeds[index]], progress, Event())
            yield from _in_order(pending, results)

    if store is None:
        return list(work(list(range(len(tickets)))))
    common = {
        "recipe": asdict(recipe),
        "data": _fingerprint(dataset),
        "start_step": start_step,
        "snapshots": sorted(snapshots),
        "penalty": repr(penalty),
        "device": where.type,
        "code": code_version(),
        "torch": torch.__version__,
    }
    if mask_updates is not None:
        common["mask_updates"] = mask_updates.key()
    keys = [{**common, "ticket": ticket.digest(), "seed": seed} for ticket, seed in zip(tickets, seeds, strict=True)]
    return store.compute(keys, work, _save, _load)


def _in_order(pending: list[int], results: dict[int, Trained]) -> Iterator[Trained]:
    """Takes from both what is next in order and there."""
    while pending and pending[0] in results:
        yield results.pop(pending.pop(0))


@cache
def code_version() -> str:
    """A digest of the sources that fix what a training gives; a stored training of other sources is not reused."""
    rooms = (
        "axes",
        "basis",
        "batches",
        "captured",
        "data",
        "mask_updates",
        "models",
        "muon",
        "network",
        "optimizers",
        "proximal",
        "randomness",
        "recipe",
        "rounding",
        "stacked_sgd",
        "steps",
        "threads",
        "ticket",
        "training",
    )
    return sources_digest(rooms, __file__)


def _fingerprint(dataset: Dataset) -> str:
    digest = blake2b(repr((dataset.mean, dataset.std, dataset.augmentation)).encode(), digest_size=16)
    for split in (dataset.train, dataset.validation):
        for tensor in (split.images, split.labels):
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(trained: Trained, folder: Path) -> None:
    trained.ticket.save(folder / "ticket.safetensors")
    for step, ticket in trained.snapshots.items():
        ticket.save(folder / f"snapshot-{step}.safetensors")
    record = {"seed": trained.seed, "history": trained.history, "early_stopping_step": trained.early_stopping_step}
    write_json(folder / "training.json", record)


def _load(folder: Path) -> Trained:
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    snapshots = {int(path.stem.split("-")[1]): Ticket.load(path) for path in folder.glob("snapshot-*.safetensors")}
    return Trained(ticket=Ticket.load(folder / "ticket.safetensors"), snapshots=snapshots, **record)


def evaluate(
    tickets: Sequence[Ticket],
    dataset: Dataset,
    split: str,
    *,
    precision: str = "fp32",
    device: str | torch.device = "auto",
) -> list[Evaluation]:
    """Loss and accuracy of each ticket on a split: train, validation or test (the last to be read once, at the end)."""
    if precision not in DTYPES:
        raise unknown("precision", precision, DTYPES)
    _refuse_misfits(tickets, dataset)
    where = pick_device(device)
    data = dataset.to(where)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    labels = getattr(data, split).labels

    def measured(group: Sequence[int], _: Event) -> list[Evaluation]:
        net = network([tickets[i] for i in group], where, DTYPES[precision])
        return _evaluate(net, prepared(net, data, split, DTYPES[precision]), labels, precision)

    stacks, alone = _groups(tickets, where, len(tickets))
    tasks = [partial(measured, stack) for stack in stacks]
    found = zip(stacks, values_of(tasks, where), strict=True)
    results = {i: one for stack, part in found for i, one in zip(stack, part, strict=True)}
    results |= {i: measured([i], Event())[0] for i in alone}
    return [results[i] for i in range(len(tickets))]


def _refuse_misfits(tickets: Sequence[Ticket], dataset: Dataset) -> None:
    for ticket in tickets:
        found = ticket.architecture
        if tuple(found.input_shape) != dataset.input_shape or found.classes < dataset.classes:
            raise InputError(
                f"model {found.name!r} for inputs {found.input_shape} and {found.classes} classes does not fit "
                f"data set {dataset.label!r} (valid: inputs {dataset.input_shape} and {dataset.classes} classes)"
            )


def _groups(tickets: Sequence[Ticket], device: torch.device, asked: int) -> tuple[list[list[int]], list[int]]:
    """Indices of tickets that train as stacks, beside each other on the CPU's cores, and of those that train in turn.

    Fully connected networks stack. A convolutional one has a core for itself, unless fewer than the cores were
    `asked` for: then each has all cores in its turn. What a store already holds must not decide it, because the sums
    inside a convolution depend on the number of cores in their last bits.
    """
    groups: dict[object, list[int]] = {}
    stacks, alone = [], []
    for index, ticket in enumerate(tickets):
        groups.setdefault(stack_key(ticket) or index, []).append(index)
    for group in groups.values():
        if is_linear(tickets[group[0]]):
            parts = shares(len(group)) if device.type == "cpu" else [range(len(group))]
            stacks += [[group[i] for i in part] for part in parts]
        elif device.type == "cpu" and asked >= torch.get_num_threads():
            stacks += [[index] for index in group]
        else:
            alone += group
    return stacks, alone


@dataclass(frozen=True)
class _Job:
    """What all stacks of one call to `train` share."""

    recipe: Recipe
    data: Dataset
    start_step: int
    snapshots: tuple[int, ...]
    penalty: Penalty | None
    device: torch.device
    mask_updates: MaskUpdates | None = None

    def run(self, tickets: list[Ticket], seeds: list[int], progress: str, stop: Event) -> list[Trained]:
        """Trains tickets that share one network."""
        recipe, data = self.recipe, self.data
        dtype = DTYPES[recipe.precision]
        net = network(tickets, self.device, dtype, recipe.state_in)
        batches = Batches(net, data, recipe, seeds, dtype)
        validation = prepared(net, data, "validation", dtype)
        total = recipe.steps(len(data.train.labels))
        move = step_of(net, recipe, self.device)
        penalised = () if self.penalty is None else self.penalty.chosen(tuple(net.leaves))
        marks = {round(total * (k + 1) / recipe.evaluations) for k in range(recipe.evaluations)} | {total}
        histories: list[list[dict[str, float]]] = [[] for _ in tickets]
        kept = {self.start_step: net.tickets()} if self.start_step in self.snapshots else {}
        losses: list[Tensor] = []
        for step in _steps(self.start_step, total, progress):
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
                update_masks(net, move, self.mask_updates, gradients, step + 1, total, seeds)
            if step + 1 in marks:
                _refuse_divergence(torch.stack(losses), step + 1 - len(losses), tickets, seeds)
                means = torch.stack(losses).double().mean(0).float().tolist()
                losses.clear()
                evaluations = _evaluate(net, validation, data.validation.labels, recipe.precision)
                # The last step's update shows in no training loss.
                _refuse_divergence(torch.tensor([[found.loss for found in evaluations]]), step, tickets, seeds)
                for history, train_loss, found in zip(histories, means, evaluations, strict=True):
                    history.append(
                        {
                            "step": step + 1,
                            "train_loss": train_loss,
                            "validation_loss": found.loss,
                            "validation_accuracy": found.accuracy,
                        }
                    )
            if step + 1 in self.snapshots:
                kept[step + 1] = net.tickets()
        return [
            Trained(
                ticket=ticket,
                seed=seed,
                history=history,
                early_stopping_step=_early_stopping_step(history, total),
                snapshots={step: taken[index] for step, taken in kept.items()},
            )
            for index, (ticket, seed, history) in enumerate(zip(net.tickets(), seeds, histories, strict=True))
        ]

    def _gradients(self, net: Network, inputs: Tensor, labels: Tensor) -> State | None:
        """What the masks' update reads of the step's batch, before the step."""
        if self.mask_updates is None or not self.mask_updates.reads_gradients:
            return None

        def losses() -> Tensor:
            with autocast(self.recipe.precision, self.device):
                return losses_of(net.forward(inputs, training=True), labels)

        return dense_gradients(net, losses)


def _early_stopping_step(history: list[dict[str, float]], total: int) -> int:
    return int(min(history, key=lambda row: row["validation_loss"])["step"]) if history else total


def _penalise(net: Network, penalty: Penalty, names: Sequence[str], learning_rate: float) -> None:
    net.change(lambda _, coefficients: penalty.apply(coefficients, learning_rate, net.leading), names)


@torch.no_grad()
def _evaluate(net: Network, inputs: Tensor, labels: Tensor, precision: str, *, chunk: int = 1000) -> list[Evaluation]:
    losses = torch.zeros(net.count, dtype=torch.float64, device=labels.device)
    correct = torch.zeros_like(losses)
    for start in range(0, len(labels), chunk):
        part, truth = inputs[start : start + chunk], labels[start : start + chunk]
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


def _refuse_divergence(losses: Tensor, first_step: int, tickets: list[Ticket], seeds: list[int]) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        row, index = bad[0].tolist()
        raise FloatingPointError(
            f"training diverged: the loss of the ticket of seed {seeds[index]} (density "
            f"{tickets[index].density:.4g}) is {losses[row, index].item()} at step {first_step + row} "
            "(a smaller learning rate or a warm-up may help)"
        )


def _steps(start: int, total: int, progress: str) -> Any:
    if not progress:
        return range(start, total)
    from tqdm.auto import tqdm

    return tqdm(range(start, total), desc=progress, unit="step", leave=False, mininterval=1.0)
