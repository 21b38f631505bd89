"""The one loop that trains a list of tickets.

Networks of linear layers, and narrow convolutional ones of ours, train stacked: one product or grouped convolution per
layer for several replicates; on the CPU one stack a core, beside each other. Others train alone, in channels_last.
Every replicate has its own data order and augmentation, fixed by its seed, and sees nothing of its neighbours.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
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
from lthlib.training.proximal import Penalty
from lthlib.training.recipe import DTYPES, Recipe
from lthlib.training.stacks import in_stacks, network

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
        return in_stacks(
            [tickets[i] for i in indices], data.device, lambda stack, stop: job.run(stack, progress, stop),
            batch=recipe.batch_size, state_in=recipe.state_in, asked=len(tickets),
        )  # fmt: skip

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

    def judged(stack: list[Ticket], _: Event) -> list[Evaluation]:
        net = network(stack, data.device, DTYPES[precision])
        return _evaluate(net, prepared(net, data, split, DTYPES[precision]), labels, precision)

    return list(in_stacks(tickets, data.device, judged, batch=CHUNK, asked=len(tickets)))


def _refuse_misfits(tickets: Sequence[Ticket], data: Dataset) -> None:
    for ticket in tickets:
        model = ticket.architecture
        if tuple(model.input_shape) != data.input_shape or model.classes < data.classes:
            raise InputError(
                f"model {model.name!r} for inputs {model.input_shape} and {model.classes} classes does not fit "
                f"data set {data.label!r} (valid: inputs {data.input_shape} and {data.classes} classes)"
            )
