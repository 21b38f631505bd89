"""Networks to explore: dense trainings with their data, from a notebook, a finished run's folder, or trained here."""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from lthlib import data
from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.evidence.results import read_metrics
from lthlib.finders.imp import train_dense
from lthlib.models import architecture as models
from lthlib.ticket import Ticket, initial_tickets
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe

RULES = ("canonical", "dct@input", "haar@input", "dct", "haar", "hadamard", "random", "svd")
LARGEST_VALIDATION = 5_000  # images on which a slider's network is evaluated


@dataclass(frozen=True)
class Loaded:
    """What an explorer of networks looks at.

    - `dense`: dense trainings in the canonical basis, each with its initial ticket among the snapshots;
    - `dataset`, `recipe`: what they were trained with; `table`: measured rows of a notebook, or None;
    - `pruned`: tickets, in any bases, that belong to `dense[0]`'s replicate.
    """

    dense: tuple[Trained, ...]
    dataset: Dataset
    recipe: Recipe
    table: pd.DataFrame | None = None
    pruned: tuple[Ticket, ...] = ()

    def __post_init__(self) -> None:
        if not self.dense:
            raise InputError("an explorer needs at least one dense training (valid: what train_dense returns)")
        for run in self.dense:
            if not run.snapshots:
                raise InputError(f"the training of seed {run.seed} has no snapshot (valid: what train_dense returns)")
            if run.ticket.kept != run.ticket.prunable:
                raise InputError(f"the training of seed {run.seed} has density {run.ticket.density:.4g} (valid: 1)")
        if len(self.dataset.validation.labels) > LARGEST_VALIDATION:
            split = self.dataset.validation
            first = data.Split(split.images[:LARGEST_VALIDATION], split.labels[:LARGEST_VALIDATION])
            object.__setattr__(self, "dataset", replace(self.dataset, validation=first))

    @property
    def seeds(self) -> list[int]:
        """The replicates."""
        return [run.seed for run in self.dense]

    @property
    def layers(self) -> list[str]:
        """The prunable tensors."""
        return list(self.dense[0].ticket.masks)

    def run(self, seed: int) -> Trained:
        """The training of one replicate. Raises InputError for a seed that is not there."""
        for run in self.dense:
            if run.seed == seed:
                return run
        raise InputError(f"there is no training of seed {seed} (valid: {', '.join(map(str, self.seeds))})")


@dataclass
class Worked:
    """Loaded networks, and what was computed from them, each once."""

    source: Loaded
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, kw_only=True)

    def once(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What `work` returned when it was first asked for under this key."""
        if key not in self._kept:
            self._kept[key] = work()
        return self._kept[key]


def fitting(rules: Iterable[str], attempt: Callable[[str], object]) -> list[str]:
    """The bases that can be taken: `attempt` raises InputError where one needs an image or even sizes."""
    fit = []
    for rule in rules:
        with suppress(InputError):
            attempt(rule)
            fit.append(rule)
    return fit


def initial(run: Trained) -> Ticket:
    """The dense ticket at the rewinding point: the earliest snapshot."""
    return run.snapshots[min(run.snapshots)]


def loaded(
    dense: Sequence[Trained] | None = None,
    dataset: Dataset | None = None,
    recipe: Recipe | None = None,
    table: pd.DataFrame | None = None,
    pruned: Sequence[Ticket] = (),
) -> Loaded:
    """What is given; with nothing given, two small networks trained on the spot (a second or two)."""
    if dense is None:
        return example() if table is None else replace(example(), table=table)
    if dataset is None:
        raise InputError("trainings without the data set that they were trained on cannot be explored: pass dataset")
    return Loaded(tuple(dense), dataset, recipe or Recipe(), table, tuple(pruned))


@cache
def example() -> Loaded:
    """Two LeNets 64-300-100-10 trained for six epochs on the bundled digits."""
    digits = data.load("digits")
    net = models.architecture("lenet-300-100", digits.input_shape, digits.classes)
    recipe = Recipe(learning_rate=0.05, epochs=6.0)
    dense = train_dense(initial_tickets(net, [0, 1]), recipe, digits)
    return Loaded(tuple(dense), digits, recipe)


def of_run(folder: Path | str, data_dir: Path | str = "data") -> Loaded:
    """The dense trainings, rows and tickets of a finished notebook's folder (results/<profile>/<notebook>).

    Its data set is read from `data_dir`. Raises InputError where the folder holds no finished run or its store no
    dense training.
    """
    folder = Path(folder)
    dataset, _ = data_of_run(folder, data_dir)
    dense, recipe = stored_dense(folder / "store", dataset)
    saved = [Ticket.load(path) for path in sorted(folder.glob("*.safetensors"))]
    net = dense[0].ticket.architecture
    pruned = tuple(ticket for ticket in saved if ticket.architecture == net and ticket.kept < ticket.prunable)
    return Loaded(tuple(dense), dataset, recipe, read_metrics(folder), pruned)


def data_of_run(folder: Path | str, data_dir: Path | str = "data") -> tuple[Dataset, dict[str, Any]]:
    """A finished run's data set, read from `data_dir`, and its parameters.

    Raises InputError where the folder holds no finished run of a notebook with a data set.
    """
    try:
        parameters = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["parameters"]
        return data.load(parameters["dataset"], data_dir, download=False), parameters
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{str(folder)!r} holds no finished run of a notebook with a data set ({error!r})") from error


def stored_dense(store: Path, dataset: Dataset) -> tuple[list[Trained], Recipe]:
    """The canonical dense trainings on images of the data's shape that a run's store keeps, by seed; their recipe."""
    runs: dict[int, tuple[Trained, Recipe]] = {}
    for entry in sorted(store.glob("*/training.json")):
        snapshots = {int(path.stem.split("-")[1]): path for path in entry.parent.glob("snapshot-*.safetensors")}
        record = json.loads(entry.read_text(encoding="utf-8"))
        if not snapshots or record["seed"] in runs:
            continue
        ticket = Ticket.load(entry.parent / "ticket.safetensors")
        fits = tuple(ticket.architecture.input_shape) == dataset.input_shape
        if ticket.kept == ticket.prunable and fits and all(basis.is_identity for basis in ticket.bases.values()):
            kept = {step: Ticket.load(path) for step, path in snapshots.items()}
            fields = json.loads((entry.parent / "parameters.json").read_text(encoding="utf-8"))["recipe"]
            recipe = Recipe(**{**fields, "milestones": tuple(fields["milestones"])})
            runs[record["seed"]] = Trained(ticket=ticket, snapshots=kept, **record), recipe
    if not runs:
        raise InputError(f"{str(store)!r} keeps no dense training: run the notebook again, or pass its `dense`")
    first = min(runs)
    return [runs[seed][0] for seed in sorted(runs)], runs[first][1]
