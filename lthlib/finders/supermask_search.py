r"""Scores trained in place of weights: the settings of a finder of strong tickets and the loop that runs one.

One score per weight; at each step the scores give a mask, the loss of the masked random network gives the gradient of
every effective weight, pruned ones too, and the straight-through estimator hands it to the score unchanged:
$\partial s=\partial e\cdot w\cdot\partial m/\partial s$, as if the mask had been its smooth stand-in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from threading import Event
from typing import Literal

import torch
from torch import Tensor

from lthlib.data import Dataset, augment, augmentation_draws
from lthlib.errors import InputError, unknown
from lthlib.masks.counts import kept_count, uniform_counts
from lthlib.masks.topk import Count, keep_top
from lthlib.randomness import generator, stream_seed
from lthlib.ticket import State, Ticket
from lthlib.training.loop import CHUNK, counted_steps
from lthlib.training.optimizers import Optimizer
from lthlib.training.parallel import StoppedError
from lthlib.training.recipe import DTYPES, Recipe
from lthlib.training.stacks import network
from lthlib.training.steps import autocast, losses_of

METHODS = ("edge-popup", "supermask", "biprop", "gem-miner")


@dataclass(frozen=True)
class Supermask:
    """How a mask over random weights is found; the recipe says how its scores are trained.

    - `method`:
      `edge-popup` keeps the largest |s| (Ramanujan et al., arXiv 1911.13299);
      `supermask` draws each weight with probability sigmoid(s) and ends with the largest s (Zhou et al.,
      arXiv 1905.01067);
      `biprop` is edge-popup on alpha sign(w), alpha the mean |w| of the layer's kept weights (Diffenderfer &
      Kailkhura, arXiv 2103.09377);
      `gem-miner` keeps p above 1/2 of scores p in [0, 1], and removes the lowest for good, level by level
      (Sreenivasan et al., arXiv 2202.12002); at the last level the mask is exactly the highest. Before that rounding
      keeps about half of all at most, so that it suits densities below 1/2.
    - `density`: the fraction of weights kept, in (0, 1].
    - `scope`: one density in every layer (`layerwise`) or one ranking of all weights (`global`); None: the paper's,
      global for Gem-Miner, else layerwise.
    - `counts`: how many weights each prunable tensor keeps, in module order, in place of `scope`; together they must be
      `density` of all.
    - `levels`: how many steps the density takes from 1 down to `density`, level k keeping `density ** (k / levels)`,
      all for equal times; 0 keeps `density` throughout. None: 10 for Gem-Miner (fewer in a shorter search), else 0.
      `levels` = epochs is the annealing of Fischer & Burkholz (arXiv 2111.11153).
    - `rescale`: multiplies a layer by all / kept weights (`supermask` only: its dynamic weight rescaling).
    - `prune_biases`: biases have scores of their own, and every bias tensor keeps `density` of its entries.
    """

    method: str = "edge-popup"
    density: float = 0.5
    scope: Literal["layerwise", "global"] | None = None
    counts: tuple[int, ...] | None = None
    levels: int | None = None
    rescale: bool = False
    prune_biases: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("supermask method", self.method, METHODS)
        if self.scope not in (None, "layerwise", "global"):
            raise unknown("scope", self.scope, ("layerwise", "global"))
        kept_count(self.density, 1)
        if self.counts is not None and self.scope is not None:
            raise InputError(f"counts say what each layer keeps, so scope must be None, found {self.scope!r}")
        if self.levels is not None and self.levels < 0:
            raise InputError(f"levels cannot be negative, found {self.levels}")
        if self.rescale and self.method != "supermask":
            raise InputError(f"rescale is an option of method 'supermask' alone, not of {self.method!r}")

    def density_at(self, step: int, steps: int) -> float:
        """The density that is kept in step `step` (0 is the first) of `steps`."""
        levels = self.levels
        if levels is None:
            levels = min(10, steps - 1) if self.method == "gem-miner" else 0
        level = min(levels, step * (levels + 1) // steps)
        return self.density ** (level / levels) if levels else self.density

    def count(self, masks: State, density: float) -> Count:
        """How many of the prunable weights are kept at `density`: in all, or in each layer."""
        sizes = {name: mask.numel() for name, mask in masks.items()}
        total = kept_count(density, sum(sizes.values()))
        if self.counts is not None:
            # On the way down each layer keeps the same power of its last density.
            power = math.log(density) / math.log(self.density) if self.density < 1 else 1.0
            pairs = zip(sizes.items(), self.counts, strict=True)
            return {name: round(size * (count / size) ** power) for (name, size), count in pairs}
        if (self.scope or ("global" if self.method == "gem-miner" else "layerwise")) == "global":
            return total
        return uniform_counts({name: (size,) for name, size in sizes.items()}, total)


@dataclass(frozen=True)
class Task:
    """What scores are trained on and judged by.

    Inputs are (N, C, H, W); targets are classes (N,), int64, for cross-entropy, or values (N, outputs), floating, for
    the mean squared error. `prepare` turns a batch of inputs into what the network reads (normalisation of raw bytes,
    after `augmentation`).
    """

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    prepare: Callable[[Tensor], Tensor] | None = None
    augmentation: str = "none"

    @staticmethod
    def of(dataset: Dataset) -> "Task":
        """A data set's training and validation splits; its test split is not looked at."""
        train, validation = dataset.train, dataset.validation
        judged = dataset.normalised("validation")
        if dataset.augmentation == "none":
            return Task(dataset.normalised("train"), train.labels, judged, validation.labels)
        return Task(train.images, train.labels, judged, validation.labels, dataset.normalise, dataset.augmentation)

    def fingerprint(self) -> str:
        """A digest of all that fixes what training on the task gives."""
        digest = blake2b(self.augmentation.encode(), digest_size=16)
        for tensor in (self.inputs, self.targets, self.validation_inputs, self.validation_targets):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if self.prepare is not None:
            # Normalisation is affine: two prepared images tell its constants.
            prepared = self.prepare(torch.stack([torch.zeros_like(self.inputs[0]), self.inputs[0]]))
            digest.update(prepared.cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class SearchedMask:
    """What a finder gave.

    - `ticket`: the random source under the found mask, of exactly the density asked for. Its weights are the source's
      bit for bit, but for a gain per layer in biprop (alpha sign(w)) and with `rescale`. BatchNorm's statistics are
      those of the search; with `prune_biases` pruned biases are 0 in `ticket.rest`.
    - `history`: one row per evaluation of the ticket as it then stood: step, train_loss (mean since the last row),
      validation_loss, validation_accuracy (percent; not for values), density, changed (share of the mask's entries
      that differ from the last row's).
    """

    ticket: Ticket
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The replicate's."""
        return self.ticket.seed


def biases_of(source: Ticket) -> list[str]:
    """The biases of the prunable layers."""
    names = [name.removesuffix("weight") + "bias" for name in source.coefficients]
    return [name for name in names if name in source.rest]


class Scores:
    """One source's scores and the masks that they give. `find_supermasks` checks what it is given, and searches."""

    def __init__(self, source: Ticket, settings: Supermask, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.settings, self.seed, self.device, self.dtype = source, settings, source.seed, device, dtype
        self.weights = {name: w.to(device, dtype) for name, w in source.coefficients.items()}
        biases = biases_of(source) if settings.prune_biases else []
        self.biases = {name: source.rest[name].to(device, dtype) for name in biases}
        self.frozen = {**self.weights, **self.biases}
        self.scores = {name: self._initial(name, tensor) for name, tensor in self.frozen.items()}
        self.removed: State = {}
        self.draws = torch.Generator(self.device).manual_seed(stream_seed(self.seed, "supermask", "draws"))

    def _initial(self, name: str, tensor: Tensor) -> Tensor:
        draw = generator(self.seed, "supermask", "scores", name)
        if self.settings.method == "supermask":
            density = min(max(self.settings.density, 1e-6), 1 - 1e-6)
            scores = torch.full(tensor.shape, math.log(density / (1 - density)))
        elif self.settings.method == "gem-miner":
            scores = torch.rand(tensor.shape, generator=draw)
        else:
            # U[-b, b], b = 1/sqrt(fan_in): kaiming_uniform with a = sqrt(5). Biases take their layer's b: from zero,
            # as released, all of them would start tied.
            weight = name if name in self.weights else name.removesuffix("bias") + "weight"
            bound = self.weights[weight][0].numel() ** -0.5
            scores = bound * (2 * torch.rand(tensor.shape, generator=draw) - 1)
        return scores.to(self.device, self.dtype)

    # ------------------------------------------------------------------------------------------------- the mask

    def exact_masks(self, density: float) -> State:
        """The highest-ranked entries at `density`, exactly; ranks are |s| for edge-popup and biprop, else s."""
        ranks = {k: s.abs() for k, s in self.scores.items()} if self._by_magnitude else self.scores
        weights = {name: ranks[name] for name in self.weights}
        for name, removed in self.removed.items():
            # Not -inf: what was removed for good must still come before nothing at all when counts are rounded.
            weights[name] = weights[name].masked_fill(removed, -1.0)
        masks = keep_top(weights, self.settings.count(self.weights, density))
        biases = {name: ranks[name] for name in self.biases}
        if biases:
            masks |= keep_top(biases, {name: kept_count(density, b.numel()) for name, b in biases.items()})
        return masks

    @property
    def _by_magnitude(self) -> bool:
        return self.settings.method in ("edge-popup", "biprop")

    def training_masks(self, density: float, last: bool) -> State:
        """The mask of one training step: drawn for `supermask`, rounded for `gem-miner`, else the exact one."""
        if self.settings.method == "supermask":
            return {
                name: torch.rand(s.shape, generator=self.draws, device=self.device, dtype=self.dtype) < s.sigmoid()
                for name, s in self.scores.items()
            }
        if self.settings.method == "gem-miner" and not last:
            above = {name: s > 0.5 for name, s in self.scores.items()}
            return above | {name: above[name] & ~removed for name, removed in self.removed.items()}
        return self.exact_masks(density)

    def remove(self, density: float) -> None:
        """Gem-Miner's levels: what is not among the highest at `density` is gone for good."""
        masks = self.exact_masks(density)
        self.removed = {name: ~masks[name] for name in self.weights}

    def effective(self, masks: State) -> tuple[State, State]:
        """The masked weights (and biases), and what each was multiplied by beside its mask."""
        values, bases = {}, {}
        for name, tensor in self.frozen.items():
            bases[name] = tensor
            if name in self.weights and self.settings.method == "biprop":
                bases[name] = tensor.sign() * ((tensor.abs() * masks[name]).sum() / masks[name].sum().clamp(min=1))
            elif name in self.weights and self.settings.rescale:
                bases[name] = tensor * (masks[name].numel() / masks[name].sum().clamp(min=1))
            values[name] = bases[name] * masks[name]
        return values, bases

    def straight_through(self, name: str, gradient: Tensor, base: Tensor) -> Tensor:
        """The gradient of a score from that of its effective weight, written into the latter's place."""
        score = self.scores[name]
        if self._by_magnitude:
            # Through |s|, as released; biprop takes |w| for the slope of its binary weight, so that w remains in both.
            return gradient.mul_(self.frozen[name]).mul_(score.sign())
        if self.settings.method == "supermask":
            p = score.sigmoid()
            return gradient.mul_(base).mul_(p * (1 - p))
        return gradient.mul_(base)

    def ticket(self, masks: State, buffers: State) -> Ticket:
        """The source with the mask and these buffers; what a method multiplies weights by goes into coefficients."""
        _, bases = self.effective(masks)
        kept = {name: mask.cpu() for name, mask in masks.items() if name in self.weights}
        coefficients = dict(self.source.coefficients)
        if self.settings.method == "biprop" or self.settings.rescale:
            coefficients = {name: bases[name].to(c.dtype).cpu() for name, c in coefficients.items()}
        rest = dict(self.source.rest)
        for name, tensor in rest.items():
            if name in self.biases:
                rest[name] = tensor * masks[name].cpu()
            elif name in buffers:
                rest[name] = buffers[name].to(tensor.dtype).cpu().clone()
        return replace(self.source, coefficients=coefficients, rest=rest).with_masks(kept)


class Search:
    """Sources of one group of `training.stacks` and the loop that trains their scores, all in one network."""

    def __init__(self, sources: Sequence[Ticket], settings: Supermask, recipe: Recipe, task: Task) -> None:
        self.settings, self.recipe, self.task = settings, recipe, task
        self.device, self.dtype = task.inputs.device, DTYPES[recipe.precision]
        self.scores = [Scores(source, settings, self.device, self.dtype) for source in sources]
        self.net = network(sources, self.device, self.dtype)
        self.searched = {name: (self.net.leaves | self.net.affine)[name] for name in self.scores[0].frozen}

    def run(self, progress: str, stop: Event) -> list[SearchedMask]:
        """Trains the scores by the recipe's schedule; raises StoppedError once `stop` is set."""
        examples, recipe = len(self.task.targets), self.recipe
        total, each = recipe.steps(examples), recipe.steps_per_epoch(examples)
        marks = {round(total * (k + 1) / recipe.evaluations) for k in range(recipe.evaluations)} | {total}
        optimizer = Optimizer([score for own in self.scores for score in own.scores.values()], recipe)
        histories: list[list[dict[str, float]]] = [[] for _ in self.scores]
        losses: list[Tensor] = []
        density = self.settings.density_at(0, total)
        before = [own.exact_masks(density) for own in self.scores]
        for step in counted_steps(0, total, progress):
            if stop.is_set():
                raise StoppedError("another search failed")
            if (now := self.settings.density_at(step, total)) != density:
                # The last level ranks anew among the survivors of the one before, or its mask could never change.
                if self.settings.method == "gem-miner" and now != self.settings.density:
                    for own in self.scores:
                        own.remove(now)
                density = now
            if step % each == 0:
                self._start(step // each)
            losses.append(self._step(optimizer, step % each, recipe.learning_rate_at(step, examples), density))
            self._refuse_divergence(losses[-1], density, step)
            if step + 1 in marks:
                means = torch.stack(losses).mean(0).tolist()
                losses.clear()
                masks = [own.exact_masks(density) for own in self.scores]
                judged = self._judge(masks)
                for place, own in enumerate(self.scores):
                    entries = sum(weight.numel() for weight in own.weights.values())
                    changed = sum(int((masks[place][name] ^ before[place][name]).sum()) for name in own.weights)
                    kept = sum(int(masks[place][name].sum()) for name in own.weights)
                    shares = {"density": kept / entries, "changed": changed / entries}
                    row = {"step": step + 1, "train_loss": means[place]} | judged[place] | shares
                    histories[place].append(row)
                before = masks
        buffers = self.net.each(self.net.buffers)
        return [
            SearchedMask(own.ticket(own.exact_masks(self.settings.density), buffers[place]), histories[place])
            for place, own in enumerate(self.scores)
        ]

    def _refuse_divergence(self, losses: Tensor, density: float, step: int) -> None:
        for own, loss in zip(self.scores, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the search diverged: the loss of seed {own.seed} (density {density:.4g}) is "
                    f"{loss} at step {step} (a smaller learning rate may help)"
                )

    def _start(self, epoch: int) -> None:
        count, seeds = len(self.task.targets), [own.seed for own in self.scores]
        orders = [torch.randperm(count, generator=generator(seed, "order", epoch)) for seed in seeds]
        self.order = torch.stack(orders).to(self.device)
        if self.task.augmentation != "none":
            draws = [augmentation_draws(count, generator(seed, "augmentation", epoch)) for seed in seeds]
            self.flips = torch.stack([flips for flips, _ in draws]).to(self.device)
            self.offsets = torch.stack([offsets for _, offsets in draws]).to(self.device)

    def _batch(self, position: int) -> tuple[Tensor, Tensor]:
        """Inputs (sources, batch, ...) and targets (sources, batch, ...)."""
        place = slice(position * self.recipe.batch_size, (position + 1) * self.recipe.batch_size)
        chosen = self.order[:, place]
        inputs = self.task.inputs.index_select(0, chosen.reshape(-1))
        if self.task.augmentation != "none":
            flips, offsets = self.flips[:, place].reshape(-1), self.offsets[:, place].reshape(-1, 2)
            inputs = augment(inputs, self.task.augmentation, flips, offsets)
        inputs = inputs if self.task.prepare is None else self.task.prepare(inputs)
        return self.net.prepare(inputs.to(self.dtype)).unflatten(0, chosen.shape), self.task.targets[chosen]

    def _step(self, optimizer: Optimizer, position: int, rate: float, density: float) -> Tensor:
        inputs, targets = self._batch(position)
        masks = [own.training_masks(density, last=density == self.settings.density) for own in self.scores]
        effective = [own.effective(mask) for own, mask in zip(self.scores, masks, strict=True)]
        self.net.put([values for values, _ in effective])
        losses = self._losses(inputs, targets, training=True)[0]
        gradients = torch.autograd.grad(losses.mean(1).sum(), list(self.searched.values()))
        parts = self.net.each(dict(zip(self.searched, gradients, strict=True)))
        for own, (_, bases), part in zip(self.scores, effective, parts, strict=True):
            for name, score in own.scores.items():
                score.grad = own.straight_through(name, part[name].contiguous(), bases[name])
        optimizer.step(rate)
        if self.settings.method == "gem-miner":
            for own in self.scores:
                for score in own.scores.values():
                    score.clamp_(0, 1)
        return losses.detach().double().mean(1)

    def _losses(self, inputs: Tensor, targets: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """Losses (sources, batch) and outputs: cross-entropy for classes, for values the squared error's mean."""
        with autocast(self.recipe.precision, self.device):
            outputs = self.net.forward(inputs, training)
        if self.task.targets.dim() == 1:
            return losses_of(outputs, targets), outputs
        return (outputs.to(self.dtype) - targets).square().mean(-1), outputs

    @torch.no_grad()
    def _judge(self, masks: Sequence[State]) -> list[dict[str, float]]:
        self.net.put([own.effective(mask)[0] for own, mask in zip(self.scores, masks, strict=True)])
        count, right, losses = len(self.scores), [], []
        for images, targets in zip(
            self.task.validation_inputs.split(CHUNK), self.task.validation_targets.split(CHUNK), strict=True
        ):
            part = self.net.prepare(images.to(self.dtype))
            every = targets.expand(count, *targets.shape)
            # A real copy for each source: with stride 0 the products would round otherwise for one than for several.
            loss, outputs = self._losses(part.expand(count, *part.shape).contiguous(), every, training=False)
            losses.append(loss.double())
            right.append(outputs.argmax(-1) == every if targets.dim() == 1 else torch.zeros_like(loss))
        rows = [{"validation_loss": loss} for loss in torch.cat(losses, 1).mean(1).tolist()]
        if self.task.targets.dim() == 1:
            shares = torch.cat(right, 1).double().mean(1).tolist()
            rows = [row | {"validation_accuracy": 100 * share} for row, share in zip(rows, shares, strict=True)]
        return rows
