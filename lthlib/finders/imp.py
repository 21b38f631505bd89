r"""Magnitude pruning with rewinding, in any basis, and its controls.

Iterative magnitude pruning in coordinates: train from $m\odot c_k$; score $|c_T|$; keep the largest; set
$c:=m\odot B\theta_k$; repeat. With the canonical basis it is the lottery-ticket procedure of Frankle & Carbin
(arXiv 1803.03635); with another orthonormal basis that of Alabdulmohsin et al. (arXiv 2107.06825).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.masks.counts import counts_of, kept_count
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import output_layer
from lthlib.store import Store
from lthlib.ticket import State, Ticket, bases_for
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

RETRAIN = ("weight_rewind", "lr_rewind", "finetune", "one_shot")


@dataclass(frozen=True)
class Pruning:
    """How a mask is found level by level.

    - `levels`: how often to prune; `keep`: the fraction of survivors kept each time (0.8 = 20 % a level). Level k keeps
      exactly `round(keep**k * n)` of n coefficients, so nothing drifts.
    - `keep_convolution`: another fraction for convolutions (Conv-2/4/6 of the paper); None: the same.
    - `scope`: rank all layers together (`global`) or each by itself (`layerwise`). The recipe's `output_layer` sets
      the classifier's own rate.
    - `retrain`: where the next level starts from. `weight_rewind`: values of step `rewind_step`; `lr_rewind`: trained
      values, learning-rate schedule replayed from that step; `finetune`: trained values, last learning rate;
      `one_shot`: every level is pruned from the dense training and rewound.
    - `off`: pruned coefficients are `zero`, or held at `init`.
    """

    levels: int = 10
    keep: float = 0.8
    keep_convolution: float | None = None
    scope: Literal["global", "layerwise"] = "global"
    rewind_step: int = 0
    retrain: str = "weight_rewind"
    off: Literal["zero", "init"] = "zero"

    def __post_init__(self) -> None:
        for kind, value, valid in (
            ("scope", self.scope, ("global", "layerwise")),
            ("retrain", self.retrain, RETRAIN),
            ("off", self.off, ("zero", "init")),
        ):
            if value not in valid:
                raise unknown(kind, value, valid)
        for name in ("keep", "keep_convolution"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is a density a level and must be in (0, 1], found {value!r}")
        if self.levels < 0 or self.rewind_step < 0:
            raise InputError(f"levels and rewind_step cannot be negative, found {self.levels}, {self.rewind_step}")

    def counts(self, level: int, sizes: State, output: str, output_rule: str) -> list[tuple[list[str], int]]:
        """Groups of tensors that are ranked together at `level`, each with the exact number it keeps (at least 1)."""
        rates = {name: self._keep(tensor.dim() == 4) for name, tensor in sizes.items()}
        if output_rule != "pruned":
            rates[output] = 1 - (1 - rates[output]) / 2 if output_rule == "half" else 1.0
        groups: dict[object, list[str]] = {}
        for name in sizes:
            alone = self.scope == "layerwise" or (name == output and output_rule != "pruned")
            groups.setdefault(name if alone else rates[name], []).append(name)
        return [
            (names, max(1, round(rates[names[0]] ** level * sum(sizes[name].numel() for name in names))))
            for names in groups.values()
        ]

    def _keep(self, convolution: bool) -> float:
        return self.keep_convolution if convolution and self.keep_convolution is not None else self.keep


@dataclass(frozen=True)
class Level:
    """One level of pruning for all replicates: tickets as they start training, and what training gave."""

    number: int
    tickets: list[Ticket]
    trained: list[Trained]

    @property
    def density(self) -> float:
        """Achieved density, the mean over replicates (they differ only where layers collapse)."""
        return sum(ticket.density for ticket in self.tickets) / len(self.tickets)


def train_dense(
    tickets: Sequence[Ticket],
    recipe: Recipe,
    data: Dataset,
    *,
    rewind_step: int = 0,
    store: Store | None = None,
    progress: str = "",
) -> list[Trained]:
    """Level 0: dense training with a snapshot at the rewinding point.

    With SGD it is the same run in every orthonormal basis, so that all bases share one.
    """
    return train(tickets, recipe, data, snapshots=(rewind_step,), store=store, progress=progress)


def prune(
    tickets: Sequence[Ticket], scores: Sequence[State], pruning: Pruning, level: int, output_rule: str
) -> list[Ticket]:
    """Each ticket with the mask of `level`: exactly so many of its survivors, those of the highest scores."""
    pruned = []
    for ticket, score in zip(tickets, scores, strict=True):
        masks: State = {}
        for names, count in pruning.counts(level, ticket.masks, output_layer(ticket.architecture), output_rule):
            part = {name: score[name] for name in names}
            survivors = {name: ticket.masks[name] for name in names}
            masks |= keep_top(part, min(count, sum(counts_of(survivors).values())), among=survivors)
        pruned.append(replace(ticket.with_masks(masks), off=pruning.off))
    return pruned


def magnitudes(trained: Sequence[Trained]) -> list[State]:
    """The score of magnitude pruning: |coefficient| after training."""
    return [{name: c.abs() for name, c in run.ticket.coefficients.items()} for run in trained]


def in_basis(dense: Sequence[Trained], rule: str, seed: int = 0, fit_to: str = "trained") -> list[Trained]:
    """Dense trainings seen in the bases of `rule`: final tickets and snapshots analysed, each once.

    `fit_to` says which weights an adaptive basis is fitted to: `init` (the first snapshot) or `trained`.
    """
    if fit_to not in ("init", "trained"):
        raise unknown("fit_to", fit_to, ("init", "trained"))
    if rule == "canonical":
        return list(dense)
    seen = []
    for run in dense:
        fitted = run.ticket if fit_to == "trained" else run.snapshots[min(run.snapshots)]
        chosen = bases_for(run.ticket, rule, seed, fitted.weights())
        snapshots = {step: ticket.in_bases(chosen) for step, ticket in run.snapshots.items()}
        seen.append(replace(run, ticket=run.ticket.in_bases(chosen), snapshots=snapshots))
    return seen


def iterative_magnitude_pruning(
    dense: Sequence[Trained],
    recipe: Recipe,
    data: Dataset,
    pruning: Pruning,
    *,
    store: Store | None = None,
    progress: str = "",
) -> Iterator[Level]:
    """Yields level 0 (the dense training as given, in its bases) and then each pruned level, trained.

    `dense` comes from `train_dense` (with a snapshot at `pruning.rewind_step`), seen `in_basis`. With a `store` a
    killed run goes on at the level that it had reached.
    """
    try:
        rewound = [run.snapshots[pruning.rewind_step] for run in dense]
    except KeyError:
        held = sorted(dense[0].snapshots)
        raise InputError(f"no snapshot at rewind_step {pruning.rewind_step} (the dense training kept {held})") from None
    trained, tickets = list(dense), rewound
    yield Level(0, tickets, trained)
    final_rate = recipe.learning_rate_at(recipe.steps(len(data.train.labels)) - 1, len(data.train.labels))
    tuned = recipe
    if pruning.retrain == "finetune":
        tuned = replace(recipe, schedule="constant", learning_rate=final_rate, warmup_epochs=0.0)
    for number in range(1, pruning.levels + 1):
        one_shot = pruning.retrain == "one_shot"
        tickets = prune(
            rewound if one_shot else tickets,
            magnitudes(dense if one_shot else trained),
            pruning,
            number,
            recipe.output_layer,
        )
        if pruning.retrain in ("lr_rewind", "finetune"):
            tickets = [
                _continued(ticket, run, start) for ticket, run, start in zip(tickets, trained, rewound, strict=True)
            ]
        trained = train(
            tickets, tuned, data, start_step=pruning.rewind_step, store=store,
            progress=progress and f"{progress}, level {number}/{pruning.levels}",
        )  # fmt: skip
        yield Level(number, tickets, trained)


def imp(
    tickets: Sequence[Ticket],
    recipe: Recipe,
    data: Dataset,
    pruning: Pruning,
    basis: str = "canonical",
    *,
    store: Store | None = None,
    progress: str = "",
) -> Iterator[Level]:
    """Iterative magnitude pruning of dense tickets in the bases of a rule: yields the dense level and each pruned one.

    SGD's dense training is the same in every orthonormal basis, so it is canonical and all bases share it; other
    optimizers train the dense network in the basis.
    """
    turns = recipe.optimizer != "sgd"
    if turns:
        tickets = [ticket.in_bases(bases_for(ticket, basis)) for ticket in tickets]
    dense = train_dense(tickets, recipe, data, rewind_step=pruning.rewind_step, store=store, progress=progress)
    dense = dense if turns else in_basis(dense, basis)
    yield from iterative_magnitude_pruning(dense, recipe, data, pruning, store=store, progress=progress)


def _continued(ticket: Ticket, run: Trained, rewound: Ticket) -> Ticket:
    """The ticket with trained values where it keeps any; pruned ones are held where they were rewound to."""
    coefficients = {
        name: torch.where(ticket.masks[name], c, rewound.coefficients[name])
        for name, c in run.ticket.coefficients.items()
    }
    return replace(ticket, coefficients=coefficients, rest=run.ticket.rest)


def after_training(dense: Sequence[Trained], density: float, start_step: int = 0) -> list[Ticket]:
    """Magnitude pruning after training, rewound: the initial values under the mask of the largest trained weights."""
    starts = [run.snapshots[start_step] for run in dense]
    return [
        start.with_masks(keep_top(scores, kept_count(density, start.prunable)))
        for start, scores in zip(starts, magnitudes(dense), strict=True)
    ]
