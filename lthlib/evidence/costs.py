r"""What a route to a ticket costs in training FLOPs: IMP on every depth, one IMP and transformations, or RigL.

A multiply-accumulate is two floating point operations. Counted are the network's products (convolutions and matrix
products, by `torch.utils.flop_counter`): forward, and backward once for the inputs and once for the weights; not
normalisation, activations, the optimizer, evaluations, or the transforms of a basis. Every cost has two figures:
`dense`, what hardware without sparse products computes, and `sparse`, each layer weighed by its density in all three
(Evci et al., arXiv 1911.11134, appendix on FLOPs).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from lthlib.errors import InputError, unknown
from lthlib.finders.dynamic import DropAndGrow
from lthlib.models.architecture import Architecture, build, prunable, with_factory
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe

OTHER = "other products"
# Of each prunable tensor, or one for all of them; products without a prunable tensor are always dense.
Densities = Mapping[str, float] | float


@dataclass(frozen=True)
class Flops:
    """FLOPs per example of one layer: `forward`, and backward by `inputs` (0 where it reads images) and `weights`."""

    forward: int
    inputs: int
    weights: int

    @property
    def training(self) -> int:
        """Forward and backward."""
        return self.forward + self.inputs + self.weights


@dataclass(frozen=True)
class Cost:
    """Training FLOPs: as `dense` products, and `sparse`, weighed by density. Costs add up with `+` and `total`."""

    dense: float = 0.0
    sparse: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.dense + other.dense, self.sparse + other.sparse)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())


# ----------------------------------------------------------------------------------------------------- one training


def dense_flops(architecture: Architecture) -> dict[str, Flops]:
    """FLOPs per example of each prunable tensor, dense, in the network's order.

    A user's own module may have products without a prunable tensor (attention): they are `OTHER`, present only then.
    """
    return dict(_counted(with_factory(architecture)))


@lru_cache(maxsize=64)
def _counted(architecture: Architecture) -> tuple[tuple[str, Flops], ...]:
    from torch.utils.flop_counter import FlopCounterMode

    module = build(architecture).eval()
    names = prunable(module)
    hidden: set[str] = set()  # backward to its inputs costs nothing where these are images

    def watch(name: str, _: nn.Module, inputs: tuple[object, ...], __: object) -> None:
        if any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            hidden.add(name)

    layers = {name: name.removesuffix(".weight") if name != "weight" else "" for name in names}
    for name, path in layers.items():
        module.get_submodule(path).register_forward_hook(partial(watch, name))
    images = torch.zeros(1, *architecture.input_shape)
    with FlopCounterMode(display=False) as forward:
        logits = module(images)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    # The counter's own split of the backward pass by module is wrong for layers beside each other (shortcuts).
    root = type(module).__name__
    flops, by_module = {}, forward.get_flop_counts()
    for name, path in layers.items():
        count = sum(by_module.get(f"{root}.{path}" if path else root, {}).values())
        flops[name] = Flops(count, count if name in hidden else 0, count)
    rest = forward.get_total_flops() - sum(layer.forward for layer in flops.values())
    back = backward.get_total_flops() - sum(layer.inputs + layer.weights for layer in flops.values())
    if rest or back:
        flops[OTHER] = Flops(rest, back, 0)
    return tuple(flops.items())


def examples_seen(recipe: Recipe, examples: int, start_step: int = 0, stop_step: int | None = None) -> int:
    """How many images the steps `start_step` to `stop_step` (None: the last) read, of `examples` an epoch.

    The last batch of an epoch may be smaller. Raises InputError for steps outside the training.
    """
    steps = recipe.steps(examples)
    stop = steps if stop_step is None else stop_step
    if not 0 <= start_step <= stop <= steps:
        raise InputError(f"steps {start_step} to {stop} are not within the training (valid: 0 to {steps})")

    def before(step: int) -> int:
        epoch, position = divmod(step, recipe.steps_per_epoch(examples))
        return epoch * examples + min(examples, position * recipe.batch_size)

    return before(stop) - before(start_step)


def flops_per_example(architecture: Architecture, densities: Densities = 1.0) -> Cost:
    """Training FLOPs of one example, forward and backward; densities are `Ticket.layer_densities` or one for all.

    Raises InputError for densities outside [0, 1], of unknown tensors, or that leave one out.
    """
    counted = dense_flops(architecture)
    weights = _checked(architecture, densities)
    dense = sum(flops.training for flops in counted.values())
    return Cost(dense, sum(flops.training * weights.get(name, 1.0) for name, flops in counted.items()))


def _checked(architecture: Architecture, densities: Densities) -> dict[str, float]:
    names = prunable(architecture)
    checked = dict(densities) if isinstance(densities, Mapping) else dict.fromkeys(names, float(densities))
    for name in checked:
        if name not in names:
            raise unknown(f"tensor of {architecture.name!r}", name, names)
    for name in names:
        if name not in checked:
            raise InputError(f"no density for tensor {name!r} of {architecture.name!r}")
        if not 0 <= checked[name] <= 1:
            raise InputError(f"density {checked[name]!r} of {name!r} is not in [0, 1]")
    return checked


def training_cost(
    architecture: Architecture,
    recipe: Recipe,
    examples: int,
    densities: Densities = 1.0,
    *,
    start_step: int = 0,
    stop_step: int | None = None,
) -> Cost:
    """Training under one mask from `start_step` to `stop_step`, on `examples` training images an epoch."""
    seen = examples_seen(recipe, examples, start_step, stop_step)
    each = flops_per_example(architecture, densities)
    return Cost(seen * each.dense, seen * each.sparse)


# --------------------------------------------------------------------------------------------------------- the routes


def imp_cost(
    architecture: Architecture, recipe: Recipe, examples: int, levels: Sequence[Densities], *, rewind_step: int = 0
) -> Cost:
    """Iterative magnitude pruning: the dense training, then one from `rewind_step` for the masks of each level."""
    chain = [training_cost(architecture, recipe, examples, mask, start_step=rewind_step) for mask in levels]
    return training_cost(architecture, recipe, examples) + total(chain)


def initialization_cost(
    architecture: Architecture,
    recipe: Recipe,
    examples: int,
    densities: Densities,
    *,
    rewind_step: int = 0,
    scored_examples: int = 0,
) -> Cost:
    """Pruning at initialization, or at a rewinding point: dense up to there, scores, and the sparse training.

    `scored_examples` is how many passes of one example, forward and backward, the scores take in all.
    """
    before = training_cost(architecture, recipe, examples, stop_step=rewind_step)
    each = flops_per_example(architecture).dense * scored_examples
    after = training_cost(architecture, recipe, examples, densities, start_step=rewind_step)
    return before + Cost(each, each) + after


def drop_and_grow_cost(
    architecture: Architecture,
    recipe: Recipe,
    examples: int,
    densities: Densities,
    rule: DropAndGrow,
    *,
    start_step: int = 0,
) -> Cost:
    """SET or RigL, whose layers keep their densities throughout; RigL pays for gradients of all weights at updates.

    `sparse` then adds the missing part of the weights' gradients (RigL's own count: 2 f_S + f_D at an update instead
    of 3 f_S); `dense` adds the second pass that `training.train` makes there.
    """
    plain = training_cost(architecture, recipe, examples, densities, start_step=start_step)
    if not rule.reads_gradients:
        return plain
    steps = recipe.steps(examples)
    updates = [step for step in range(start_step + 1, steps + 1) if rule.due(step, steps)]
    seen = sum(examples_seen(recipe, examples, step - 1, step) for step in updates)
    weights = _checked(architecture, densities)
    missing = sum(flops.weights * (1 - weights.get(name, 1.0)) for name, flops in dense_flops(architecture).items())
    return plain + Cost(seen * flops_per_example(architecture).dense, seen * missing)


def phased_cost(
    architecture: Architecture, recipe: Recipe, examples: int, phases: Mapping[int, Densities], *, start_step: int = 0
) -> Cost:
    """Training under masks that change: `phases` maps a step to the densities from there on (gradual pruning).

    Raises InputError unless the first phase starts at `start_step`.
    """
    if not phases or min(phases) != start_step:
        raise InputError(f"the first phase must start at step {start_step}, found phases at {sorted(phases)}")
    bounds = [*sorted(phases), recipe.steps(examples)]
    return total(
        training_cost(architecture, recipe, examples, phases[low], start_step=low, stop_step=high)
        for low, high in pairwise(bounds)
    )


def phases_of(trained: Trained) -> dict[int, Densities]:
    """The phases of a training that kept snapshots at its start and at each update, for `phased_cost`."""
    return {step: ticket.layer_densities() for step, ticket in sorted(trained.snapshots.items())}


# -------------------------------------------------------------------------------------------------- many targets


def cumulated(source: Cost, each: Mapping[str, Cost]) -> list[Cost]:
    """The cost of a route for 0, 1, 2, ... targets: what it needs once, and `each` target's own, in their order."""
    return list(accumulate(each.values(), initial=source))


def route_rows(routes: Mapping[str, tuple[Cost, Mapping[str, Cost]]]) -> list[dict[str, object]]:
    """Tidy rows (route, targets, last_target, dense, sparse) of cumulated costs, in FLOPs.

    A route is what it needs once (an elastic ticket's source IMP; nothing for IMP on each target) and the cost of each
    target. Raises InputError where routes have other targets.
    """
    rows: list[dict[str, object]] = []
    wanted: list[str] | None = None
    for route, (source, each) in routes.items():
        if wanted is not None and list(each) != wanted:
            raise InputError(f"route {route!r} has targets {list(each)}, where others have {wanted}")
        wanted = list(each)
        for number, cost in enumerate(cumulated(source, each)):
            last = wanted[number - 1] if number else ""
            rows.append({"route": route, "targets": number, "last_target": last, **vars(cost)})
    return rows


def break_even(source: float, with_source: float, alone: float) -> float:
    """How many targets make a route that costs `source` once and `with_source` each as cheap as `alone` each.

    A positive real number of targets, infinite where the route never pays. All in the same unit.
    Raises InputError for negative or infinite costs.
    """
    for value in (source, with_source, alone):
        if not 0 <= value < math.inf:
            raise InputError(f"a cost must be at least 0 and finite, found {value!r}")
    return source / (alone - with_source) if alone > with_source else math.inf
