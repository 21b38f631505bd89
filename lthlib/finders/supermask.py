"""Strong tickets found by training scores, never weights: edge-popup, Zhou's supermask, biprop and Gem-Miner.

`random_source` draws a network, `find_supermasks` finds a mask for it; how, is a `Supermask` and a `Recipe`. `density`
is the fraction of weights KEPT, the same for all methods and exact in the ticket that they return. (In released code
of edge-popup and biprop it is called `prune_rate`, and is the fraction kept all the same.)
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event

import torch

from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.finders.supermask_search import METHODS, Search, SearchedMask, Supermask, Task, biases_of
from lthlib.masks.counts import kept_count
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import Architecture, prunable
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.store import Store, sources_digest, write_json
from lthlib.ticket import Ticket, dense_ticket
from lthlib.training.recipe import OPTIMIZERS, Recipe
from lthlib.training.stacks import in_stacks
from lthlib.training.train import ROOMS

__all__ = [
    "METHODS",
    "RECIPES",
    "SearchedMask",
    "Supermask",
    "Task",
    "find_supermasks",
    "large_final_same_sign",
    "random_source",
]

# The papers' settings for scores; give the epochs that you can afford with `dataclasses.replace`.
RECIPES = {
    # CIFAR-10 with Conv-2 to -8 (allenai/hidden-networks).
    "edge-popup": Recipe(learning_rate=0.1, momentum=0.9, weight_decay=1e-4, batch_size=128, epochs=100),
    # Gradients of scores are tiny behind the sigmoid; hence the rate of 100 (Zhou et al., arXiv 1905.01067).
    "supermask": Recipe(learning_rate=100.0, momentum=0.9, schedule="constant", batch_size=128, epochs=2000),
    "biprop": Recipe(learning_rate=0.1, momentum=0.9, weight_decay=1e-4, batch_size=128, epochs=100),
    # Decay 2e-4 is the gradient of the paper's penalty, 1e-4 times the sum of squared scores. Scores must cross
    # [0, 1] on their way: a search of a few hundred steps wants rates of 1 to 5.
    "gem-miner": Recipe(learning_rate=0.1, momentum=0.9, weight_decay=2e-4, batch_size=128, epochs=150),
}


def random_source(
    architecture: Architecture,
    seed: int,
    scheme: str = "kaiming_normal",
    *,
    scale_fan: float = 1.0,
    bias_scale: float = 0.0,
) -> Ticket:
    r"""A dense random ticket to be searched for a subnetwork.

    `scheme` is one of `models.initial_state`'s; `signed_constant` is sign(w) sqrt(2 / fan_in). `scale_fan` is the
    density for which fan_in is counted: weights are divided by its square root (arXiv 1911.13299); 1 switches it off.
    With `bias_scale` g > 0 the biases of layer l are drawn from N(0, b^2) with
    $b=g\prod_{m\le l}\sqrt{2/\mathrm{fan\_in}_m}$ (Fischer et al., arXiv 2110.11150), layers counted in module
    order; else they are 0, which is as good as none. Raises InputError for unknown schemes, a `scale_fan` out of
    (0, 1], a negative `bias_scale`, and biases asked of a network without any.
    """
    if not 0 < scale_fan <= 1:
        raise InputError(f"scale_fan is the density that fan_in counts and must be in (0, 1], found {scale_fan!r}")
    if not 0 <= bias_scale < math.inf:
        raise InputError(f"bias_scale must be at least 0 and finite, found {bias_scale!r}")
    state = initial_state(architecture, seed, scheme)
    deviation, biased = bias_scale, 0
    for name in prunable(architecture):
        deviation *= (2 / state[name][0].numel()) ** 0.5
        state[name] = state[name] / scale_fan**0.5
        bias = name.removesuffix("weight") + "bias"
        if bias_scale and bias in state:
            state[bias] = deviation * torch.randn(state[bias].shape, generator=generator(seed, "init", bias))
            biased += 1
    if bias_scale and not biased:
        raise InputError(f"model {architecture.name!r} has no biases to draw (bias_scale must be 0)")
    return dense_ticket(architecture, state, seed=seed)


def large_final_same_sign(source: Ticket, trained: Ticket, density: float) -> Ticket:
    """The source under Zhou's one-shot mask: each layer's largest trained weights of unchanged sign.

    Ranks w_final sign(w_initial), so that weights that changed sign come last (arXiv 1905.01067).
    `trained` is the source after dense training. Exactly round(density x prunable) are kept, one density a layer.
    """
    scores = {name: trained.coefficients[name] * w.sign() for name, w in source.coefficients.items()}
    return source.with_masks(keep_top(scores, Supermask(density=density).count(source.masks, density)))


def find_supermasks(
    sources: Sequence[Ticket],
    settings: Supermask,
    recipe: Recipe,
    data: Dataset | Task,
    *,
    store: Store | None = None,
    progress: str = "",
) -> list[SearchedMask]:
    """A strong ticket of each random source: a mask of `settings.density`, found by training scores with `recipe`.

    `sources` are dense tickets in the canonical basis (`random_source`); their seeds fix the initial scores, the order
    of the data (that of `train`) and, for `supermask`, its draws. Replicates are searched in stacks, as they train, on
    the CPU one stack a core; no result depends on the others or on the cores. Of the recipe, `state_in`
    and `output_layer` play no part; weight decay acts on scores. With a `store`, searches that it holds are read.
    Raises InputError for masked sources or other bases, data that do not fit and `prune_biases` where there are none;
    FloatingPointError where a loss is no longer finite.
    """
    task = data if isinstance(data, Task) else Task.of(data)
    if recipe.optimizer not in OPTIMIZERS:
        raise unknown("optimizer of a mask's scores", recipe.optimizer, OPTIMIZERS)
    if (settings.levels or 0) >= (steps := recipe.steps(len(task.targets))):
        raise InputError(f"levels {settings.levels} need more steps than that, found {steps} (valid: 0 to {steps - 1})")
    for source in sources:
        _refuse(source, settings, task)
    device = task.inputs.device

    def search(stack: list[Ticket], stop: Event) -> list[SearchedMask]:
        return Search(stack, settings, recipe, task).run(progress, stop)

    def work(indices: list[int]) -> Iterator[SearchedMask]:
        # As if many were asked for: a core each, even where they could have all cores and wait for each other there.
        asked = max(len(sources), torch.get_num_threads())
        return in_stacks([sources[i] for i in indices], device, search, batch=recipe.batch_size, asked=asked)

    if store is None:
        return list(work(list(range(len(sources)))))
    common = {
        "finder": asdict(settings),
        "recipe": asdict(recipe),
        "data": task.fingerprint(),
        "device": device.type,
        "code": sources_digest(*ROOMS, "masks", "finders/supermask", "finders/supermask_search"),
        "torch": torch.__version__,
    }
    keys = [{**common, "source": source.digest(), "seed": source.seed} for source in sources]
    return store.compute(keys, work, _save, _load)


def _refuse(source: Ticket, settings: Supermask, task: Task) -> None:
    if source.kept != source.prunable or not all(basis.is_identity for basis in source.bases.values()):
        raise InputError(
            f"a supermask is sought in a dense source in the canonical basis, found density {source.density:.4g}"
        )
    shape = tuple(source.architecture.input_shape)
    outputs = int(task.targets.max()) + 1 if task.targets.dim() == 1 else task.targets.shape[1]
    fits = outputs <= source.architecture.classes if task.targets.dim() == 1 else outputs == source.architecture.classes
    if tuple(task.inputs.shape[1:]) != shape or not fits:
        raise InputError(
            f"model {source.architecture.name!r} for inputs {shape} and {source.architecture.classes} outputs does not "
            f"fit data of inputs {tuple(task.inputs.shape[1:])} and {outputs} outputs"
        )
    if settings.counts is not None:
        sizes, wanted = [mask.numel() for mask in source.masks.values()], kept_count(settings.density, source.prunable)
        fitting = len(sizes) == len(settings.counts) and all(
            0 <= k <= n for k, n in zip(settings.counts, sizes, strict=False)
        )
        if not fitting or sum(settings.counts) != wanted:
            raise InputError(
                f"counts {settings.counts} do not keep {wanted} weights (density {settings.density:.4g}) "
                f"of layers of {sizes}"
            )
    if settings.prune_biases and not biases_of(source):
        raise InputError(f"model {source.architecture.name!r} has no biases to prune (set prune_biases=False)")


def _save(found: SearchedMask, folder: Path) -> None:
    found.ticket.save(folder / "ticket.safetensors")
    write_json(folder / "search.json", {"history": found.history})


def _load(folder: Path) -> SearchedMask:
    record = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    return SearchedMask(ticket=Ticket.load(folder / "ticket.safetensors"), **record)


@dataclass(frozen=True)
class FinderArm:
    """One finder of a table: its settings (density is the table's), its recipe and the source that it searches.

    `scale_fan` scales the source's weights for each density; see `random_source` for `scheme` and `bias_scale`.
    """

    settings: Supermask
    recipe: Recipe
    scheme: str = "kaiming_normal"
    scale_fan: bool = False
    bias_scale: float = 0.0

    def source(self, architecture: Architecture, seed: int, density: float) -> Ticket:
        """The random network of one replicate."""
        fan = density if self.scale_fan else 1.0
        return random_source(architecture, seed, self.scheme, scale_fan=fan, bias_scale=self.bias_scale)


def finder_arms(epochs: float, batch_size: int = 64, evaluations: int = 10) -> dict[str, FinderArm]:
    """The finders of the notebook with their papers' settings, for searches of `epochs`.

    Gem-Miner's rate is 5 instead of 0.1: its scores start all over [0, 1], and must cross it in so few steps.
    """
    recipes = {
        name: replace(recipe, epochs=epochs, batch_size=batch_size, evaluations=evaluations)
        for name, recipe in RECIPES.items()
    }
    popup, gem = recipes["edge-popup"], replace(recipes["gem-miner"], learning_rate=5.0)
    return {
        "edge-popup": FinderArm(Supermask("edge-popup"), popup),
        "edge-popup, signed constant": FinderArm(Supermask("edge-popup"), popup, "signed_constant", scale_fan=True),
        "edge-popup, biases": FinderArm(Supermask("edge-popup", prune_biases=True), popup, bias_scale=1.0),
        "supermask": FinderArm(Supermask("supermask"), recipes["supermask"]),
        "biprop": FinderArm(Supermask("biprop"), recipes["biprop"]),
        "gem-miner": FinderArm(Supermask("gem-miner"), gem, "signed_constant"),
    }
