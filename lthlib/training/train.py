"""The one loop that trains a list of tickets.

Networks of linear layers, and narrow convolutional ones of ours, train stacked: one product or grouped convolution per
layer for several replicates; on the CPU one stack a core, beside each other. Others train alone, in channels_last.
Every replicate has its own data order and augmentation, fixed by its seed, and sees nothing of its neighbours.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from threading import Event

import torch

from lthlib.data import SPLITS, Dataset
from lthlib.errors import InputError, unknown
from lthlib.rounding import warn_of_neighbours
from lthlib.store import Store, sources_digest, write_json
from lthlib.ticket import Ticket
from lthlib.training.batches import prepared
from lthlib.training.loop import CHUNK, Evaluation, Trained, _evaluate, _Job
from lthlib.training.mask_updates import MaskUpdates, refuse_unchangeable
from lthlib.training.parallel import Value, values_of
from lthlib.training.proximal import Penalty
from lthlib.training.recipe import DTYPES, Recipe
from lthlib.training.stacks import groups, network, with_twins

# Whose sources fix what a training gives; a stored training of other sources is not reused.
ROOMS = ("axes", "basis", "data", "models", "randomness", "rounding", "ticket", "training")


def train(
    tickets: Sequence[Ticket],
    recipe: Recipe,
    data: Dataset,
    *,
    start_step: int = 0,
    snapshots: Sequence[int] = (),
    penalty: Penalty | None = None,
    mask_updates: MaskUpdates | None = None,
    store: Store | None = None,
    progress: str = "",
) -> list[Trained]:
    """Trains each ticket with the data order and augmentation of its seed, from `start_step` to the recipe's end.

    All on the device where the data are.

    The schedule and the data order go on from `start_step`; optimizer moments start at zero. `penalty` acts
    on the coefficients after each step; then `mask_updates`, where they are due, change the masks. With a `store`,
    trainings that it holds are read and new ones kept: the key is all that fixes the result, the tickets' content
    included.
    `progress` names a progress bar; empty shows none. Raises InputError for tickets of
    another input shape than the data's, or steps outside the training, and FloatingPointError, naming ticket and step,
    where a loss is no longer finite.
    """
    _refuse_misfits(tickets, data)
    total = recipe.steps(len(data.train.labels))
    if not 0 <= start_step <= total:
        raise InputError(f"start_step {start_step} is outside the training (valid: 0 to {total})")
    for step in snapshots:
        if not start_step <= step <= total:
            raise InputError(f"snapshot at step {step} is outside the training (valid: {start_step} to {total})")
    if mask_updates is not None:
        refuse_unchangeable(tickets, recipe)
    if data.device.type == "cpu":
        warn_of_neighbours()

    def work(indices: list[int]) -> Iterator[Trained]:
        """In the order of `indices`, each as soon as it is there, so that a store keeps what a killed run finished."""
        job = _Job(recipe, data, start_step, tuple(snapshots), penalty, mask_updates)
        results: dict[int, Trained] = {}
        pending, asked = list(indices), len(tickets)
        beside, in_turn = groups([tickets[i] for i in indices], data.device, recipe.batch_size, recipe.state_in, asked)

        def run(stack: list[int], stop: Event) -> list[Trained]:
            members = [tickets[indices[i]] for i in stack]
            return with_twins(members, data.device, lambda members: job.run(members, progress, stop))

        together = zip(beside, values_of([partial(run, stack) for stack in beside], data.device), strict=True)
        for stack, trained in chain(together, ((stack, run(stack, Event())) for stack in in_turn)):
            results |= zip([indices[i] for i in stack], trained, strict=True)
            yield from in_order(pending, results)

    if store is None:
        return list(work(list(range(len(tickets)))))
    common = {
        "recipe": asdict(recipe),
        "data": _fingerprint(data),
        "start_step": start_step,
        "snapshots": sorted(snapshots),
        "penalty": repr(penalty),
        "device": data.device.type,
        "code": sources_digest(*ROOMS),
        "torch": torch.__version__,
    }
    if mask_updates is not None:
        common["mask_updates"] = mask_updates.key()
    keys = [{**common, "ticket": ticket.digest(), "seed": ticket.seed} for ticket in tickets]
    return store.compute(keys, work, _save, _load)


def in_order(pending: list[int], results: dict[int, Value]) -> Iterator[Value]:
    """Takes from both what is next in order and there."""
    while pending and pending[0] in results:
        yield results.pop(pending.pop(0))


def _fingerprint(data: Dataset) -> str:
    digest = blake2b(repr((data.mean, data.std, data.augmentation)).encode(), digest_size=16)
    for split in (data.train, data.validation):
        for tensor in (split.images, split.labels):
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(trained: Trained, folder: Path) -> None:
    trained.ticket.save(folder / "ticket.safetensors")
    for step, ticket in trained.snapshots.items():
        ticket.save(folder / f"snapshot-{step}.safetensors")
    record = {"history": trained.history, "early_stopping_step": trained.early_stopping_step}
    write_json(folder / "training.json", record)


def _load(folder: Path) -> Trained:
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    snapshots = {int(path.stem.split("-")[1]): Ticket.load(path) for path in folder.glob("snapshot-*.safetensors")}
    return Trained(ticket=Ticket.load(folder / "ticket.safetensors"), snapshots=snapshots, **record)


def evaluate(
    tickets: Sequence[Ticket],
    data: Dataset,
    split: str,
    *,
    precision: str = "fp32",
) -> list[Evaluation]:
    """Loss and accuracy of each ticket on a split: train, validation or test (the last to be read once, at the end)."""
    if precision not in DTYPES:
        raise unknown("precision", precision, DTYPES)
    _refuse_misfits(tickets, data)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    labels = getattr(data, split).labels

    def judged(members: list[Ticket]) -> list[Evaluation]:
        net = network(members, data.device, DTYPES[precision])
        return _evaluate(net, prepared(net, data, split, DTYPES[precision]), labels, precision)

    def measured(stack: list[int], _: Event) -> list[Evaluation]:
        return with_twins([tickets[i] for i in stack], data.device, judged)

    beside, in_turn = groups(tickets, data.device, CHUNK, "coefficients", len(tickets))
    together = zip(beside, values_of([partial(measured, stack) for stack in beside], data.device), strict=True)
    alone = ((stack, measured(stack, Event())) for stack in in_turn)
    results = {i: value for stack, part in chain(together, alone) for i, value in zip(stack, part, strict=True)}
    return [results[i] for i in range(len(tickets))]


def _refuse_misfits(tickets: Sequence[Ticket], data: Dataset) -> None:
    for ticket in tickets:
        model = ticket.architecture
        if tuple(model.input_shape) != data.input_shape or model.classes < data.classes:
            raise InputError(
                f"model {model.name!r} for inputs {model.input_shape} and {model.classes} classes does not fit "
                f"data set {data.label!r} (valid: inputs {data.input_shape} and {data.classes} classes)"
            )
