"""The one loop that trains a list of tickets of one architecture.

Networks of linear layers train stacked: one batched product per layer for several replicates; on the CPU one stack a
core, beside each other. Others train in turn on all cores, in channels_last. Every replicate has its own data order
and augmentation, fixed by its seed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
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
from lthlib.training.loop import Evaluation, Trained, _evaluate, _Job
from lthlib.training.mask_updates import MaskUpdates, refuse_unchangeable
from lthlib.training.network import is_linear, network, stack_key
from lthlib.training.parallel import shares, values_of
from lthlib.training.proximal import Penalty
from lthlib.training.recipe import DTYPES, Recipe

# Whose sources fix what a training gives; a stored training of other sources is not reused.
ROOMS = ("axes", "basis", "data", "models", "randomness", "rounding", "ticket", "training")


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
        "code": sources_digest(*ROOMS),
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
