r"""Masks found while training: dynamic sparse training (SET, RigL), and gradual magnitude pruning from dense to sparse.

Each is a rule for `training.train(mask_updates=...)`, so that batches, schedule, optimizer and evaluation are those of
every other arm. At an update the optimizer's step is made first and none is lost (google-research/rigl replaces
RigL's step by the update). Then a fraction of each layer's weights is dropped, those of least magnitude, and as many
are grown, at zero and with moments of zero: at random (SET), or where the batch's gradient is largest (RigL).
Density is exact after every step, layer by layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from torch import Tensor

from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.finders.find import find
from lthlib.masks.controls import random_masks
from lthlib.masks.counts import counts_of, kept_count
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator
from lthlib.store import Store, sources_digest
from lthlib.ticket import State, Ticket
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

ALLOCATIONS = ("erk", "er", "uniform")


def train_dynamic(
    tickets: Sequence[Ticket],
    density: float,
    method: str,
    recipe: Recipe,
    data: Dataset,
    *,
    allocation: str = "erk",
    start_step: int = 0,
    snapshots: Sequence[int] = (),
    store: Store | None = None,
    progress: str = "",
    **options: Any,
) -> list[Trained]:
    """Trains dense `tickets` to exactly round(density x prunable) coefficients each, by `method`, memoised in `store`.

    `method` is a name in METHODS: "set" and "rigl" are sparse from the first step, with random masks of layer counts
    by `allocation` (erk, er or uniform) drawn by the tickets' seeds; "gmp" starts dense and prunes. `options` are
    fields of the method's rule (`DropAndGrow`: interval, drop_fraction, decay, end; `GradualPruning`: interval, begin,
    end, scope).
    `Trained.ticket` has the final mask; the tickets that training starts from are those of `starting_tickets`. To go on
    from masks of one's own, call `train` with a rule as `mask_updates`. Other arguments as in `train`. Raises
    InputError for unknown names and options, a density outside (0, 1], and what `train` refuses.
    Sources: Mocanu et al. 2018 (SET, arXiv 1707.04780); Evci et al. (RigL, arXiv 1911.11134, Algorithm 1; M times
    longer training is the recipe's epochs times M); Zhu & Gupta (arXiv 1710.01878, equation 1).
    """
    rule = rule_for(method, density, **options)
    total = recipe.steps(len(data.train.labels))
    if isinstance(rule, GradualPruning) and start_step >= rule.last_step(total):
        raise InputError(
            f"gradual pruning ends at step {rule.last_step(total)}, so it cannot start at start_step {start_step}"
        )
    return train(
        starting_tickets(tickets, density, method, allocation=allocation), recipe, data,
        start_step=start_step, snapshots=snapshots, mask_updates=rule, store=store, progress=progress,
    )  # fmt: skip


def starting_tickets(
    tickets: Sequence[Ticket], density: float, method: str, *, allocation: str = "erk"
) -> list[Ticket]:
    """The tickets as `train_dynamic` starts them: under random masks for "set" and "rigl", as they are for "gmp"."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if allocation not in ALLOCATIONS:
        raise unknown("allocation", allocation, ALLOCATIONS)
    kept_count(density, 1)
    for ticket in tickets:
        if ticket.kept != ticket.prunable:
            raise InputError(f"{method!r} starts from dense tickets, found one of density {ticket.density:.4g}")
    if method == "gmp":
        return list(tickets)
    return [find(ticket, density, allocation) for ticket in tickets]


def rule_for(method: str, density: float, **options: Any) -> "DropAndGrow | GradualPruning":
    """The rule of a method in METHODS; `density` is what "gmp" prunes to. Raises InputError for bad names or values."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    kept_count(density, 1)
    make = METHODS[method]
    kind = GradualPruning if method == "gmp" else DropAndGrow
    valid = [field.name for field in fields(kind) if field.name not in ("grow", "density")]
    for name in options:
        if name not in valid:
            raise unknown(f"option of method {method!r}", name, valid)
    return make(density=density, **options) if method == "gmp" else make(**options)


class _Rule:
    def key(self) -> object:
        """The rule's fields and the version of the code behind them."""
        return {"rule": repr(self), "code": sources_digest("masks", "finders/dynamic")}


@dataclass(frozen=True)
class DropAndGrow(_Rule):
    r"""Drops and grows the same number of coefficients in each layer, every `interval` steps.

    - `grow`: "random" among those not kept (SET), or those of the largest "gradient" in magnitude (RigL).
    - `interval`: RigL's 100 is for tens of thousands of steps; a short training needs a shorter one to update at all.
    - `drop_fraction`: share of a layer's kept coefficients that is dropped, in [0, 1]; with `decay` "cosine" it falls
      as $\frac{\alpha}{2}(1+\cos(\pi t/T_{end}))$ (RigL, section 3), with "constant" it stays (SET).
    - `end`: updates stop at this fraction of all steps (RigL: 0.75).

    What was dropped may be grown at once; it has then not changed, as in google-research/rigl.
    """

    grow: Literal["random", "gradient"]
    interval: int = 100
    drop_fraction: float = 0.3
    decay: Literal["cosine", "constant"] = "cosine"
    end: float = 0.75

    def __post_init__(self) -> None:
        if self.grow not in ("random", "gradient"):
            raise unknown("grow", self.grow, ("random", "gradient"))
        if self.decay not in ("cosine", "constant"):
            raise unknown("decay", self.decay, ("cosine", "constant"))
        if not 0 <= self.drop_fraction <= 1:
            raise InputError(f"drop_fraction {self.drop_fraction!r} is not in [0, 1]")
        _check_times(self.interval, 0.0, self.end)

    @property
    def reads_gradients(self) -> bool:
        """RigL does."""
        return self.grow == "gradient"

    def due(self, done: int, total: int) -> bool:
        """Every `interval` steps, before `end`."""
        return done % self.interval == 0 and done < self.end * total

    def fraction_at(self, done: int, total: int) -> float:
        """The share of kept coefficients that an update after `done` of `total` steps drops."""
        if self.decay == "constant":
            return self.drop_fraction
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * min(1.0, done / (self.end * total))))

    def masks(
        self, masks: State, coefficients: State, gradients: State | None, done: int, total: int, seed: int
    ) -> State:
        """The layers' masks after one update; counts as before. Random growth has a stream for each seed and step."""
        fraction = self.fraction_at(done, total)
        counts = counts_of(masks)
        dropped = {name: int(fraction * count) for name, count in counts.items()}
        kept = keep_top(
            _magnitudes(coefficients, done, seed),
            {name: count - dropped[name] for name, count in counts.items()},
            among=masks,
        )
        free = {name: ~mask for name, mask in kept.items()}
        if gradients is None:
            source = generator(seed, "dynamic", "grow", done)
            grown = random_masks({name: tuple(m.shape) for name, m in masks.items()}, dropped, source, among=free)
        else:
            grown = keep_top(_magnitudes(gradients, done, seed), dropped, among=free)
        return {name: mask | grown[name] for name, mask in kept.items()}


@dataclass(frozen=True)
class GradualPruning(_Rule):
    r"""Gradual magnitude pruning (GMP): a dense network loses its smallest coefficients every `interval` steps.

    Sparsity after step $t$ is $s_f\left(1-(1-\frac{t-t_0}{T-t_0})^3\right)$ (Zhu & Gupta, equation 1 with $s_i=0$),
    from $t_0$ = `begin` to $T$ = `end`, fractions of all steps; the last update, at `end`, makes density exact.
    `scope` ranks all layers together ("global"), or gives each the same density ("layerwise", as in the paper). What
    was pruned never returns.
    """

    density: float
    interval: int = 100
    begin: float = 0.0
    end: float = 0.75
    scope: Literal["global", "layerwise"] = "global"

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layerwise"):
            raise unknown("scope", self.scope, ("global", "layerwise"))
        kept_count(self.density, 1)
        _check_times(self.interval, self.begin, self.end)

    @property
    def reads_gradients(self) -> bool:
        """Magnitudes need none."""
        return False

    def first_step(self, total: int) -> int:
        """The step from which intervals count."""
        return int(self.begin * total)

    def last_step(self, total: int) -> int:
        """The step of the last update, at least one after the first."""
        return max(self.first_step(total) + 1, int(self.end * total))

    def due(self, done: int, total: int) -> bool:
        """Every `interval` steps from `begin`, and at `end`."""
        first, last = self.first_step(total), self.last_step(total)
        return first < done <= last and ((done - first) % self.interval == 0 or done == last)

    def density_at(self, done: int, total: int) -> float:
        """The density that an update after `done` of `total` steps leaves."""
        first, last = self.first_step(total), self.last_step(total)
        progress = min(1.0, max(0.0, (done - first) / (last - first)))
        return 1 - (1 - self.density) * (1 - (1 - progress) ** 3)

    def masks(
        self, masks: State, coefficients: State, gradients: State | None, done: int, total: int, seed: int
    ) -> State:
        """The masks of this step's density among the survivors; those of a ticket that is sparser stay."""
        # The final density itself, or a rounding error of the schedule could move a count.
        density = self.density if done >= self.last_step(total) else self.density_at(done, total)
        sizes = {name: mask.numel() for name, mask in masks.items()}
        counts = counts_of(masks)
        scores = _magnitudes(coefficients, done, seed)
        if self.scope == "layerwise":
            wanted = {name: min(counts[name], round(density * size)) for name, size in sizes.items()}
            return keep_top(scores, wanted, among=masks)
        return keep_top(scores, min(sum(counts.values()), round(density * sum(sizes.values()))), among=masks)


METHODS: dict[str, Callable[..., DropAndGrow | GradualPruning]] = {
    "set": partial(DropAndGrow, grow="random"),
    "rigl": partial(DropAndGrow, grow="gradient"),
    "gmp": GradualPruning,
}


def _check_times(interval: int, begin: float, end: float) -> None:
    if not isinstance(interval, int) or interval < 1:
        raise InputError(f"interval {interval!r} is not a whole number of steps of at least 1")
    if not 0 <= begin < end <= 1:
        raise InputError(f"begin {begin!r} and end {end!r} are not fractions of all steps with 0 <= begin < end <= 1")


def _magnitudes(state: State, done: int, seed: int) -> dict[str, Tensor]:
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"training diverged: {name!r} of seed {seed} is no longer finite at step {done} "
                "(a smaller learning rate or a warm-up may help)"
            )
    return {name: value.abs() for name, value in state.items()}
