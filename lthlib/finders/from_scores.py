r"""A ticket from scores: the highest or drawn, over all layers or with counts for each, at once or in iterations.

Sampling by score instead of top-k is the generic improvement that the sketching view suggests for pruning at
initialization (Bar & Giryes, arXiv 2305.17559): every score can be used with every `Sampling`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lthlib.errors import InputError, unknown
from lthlib.masks import counts as allocation
from lthlib.masks.controls import invert as inverted
from lthlib.masks.controls import random_masks
from lthlib.masks.counts import counts_of, kept_count
from lthlib.masks.draws import DRAWS, sample, sample_reweighted
from lthlib.masks.draws import positive as made_positive
from lthlib.masks.topk import Count, check_scores, keep_top
from lthlib.models.architecture import output_layer
from lthlib.randomness import generator
from lthlib.ticket import State, Ticket

Score = Callable[[Ticket], State]
SCOPES = ("global", "matched", "uniform", "er", "erk", "smart-ratio")


@dataclass(frozen=True)
class Sampling:
    """How scores become a mask of a given count.

    - `draw`: "topk"; or "gumbel" (exact count), "multinomial", "poisson" (exact in expectation), drawn with
      probability ~ score ** `temperature` (infinity is top-k, 0 uniform).
    - `scope`: all layers together ("global"); with the per-layer counts that this method's top-k has ("matched", which
      tells *which* weights from *how many* a layer); or with counts by rule: "uniform", "er", "erk", "smart-ratio".
    - `at`: iterative methods draw at each iteration among the survivors ("each"), or top-k up to a last draw ("end",
      which has little left to draw: the last of 100 iterations removes 1 to 7 percent).
    - `keep_one`: every layer keeps at least one weight.
    - `reweight`: kept coefficients are divided by their probability, so that the mask is unbiased.
    - `signed`: how signed scores (GraSP) become positive before a draw: "clamp" (negative ones to 0), or a map of
      `selection.positive`: "softmax", "shift" (both nearly uniform where a few scores are far above the rest), "abs".
    - `invert`: keep the lowest scores instead, the inversion control.
    - `output_layer`: "pruned" with all others, or "kept" whole (the count over all layers is met by the others).

    A draw never takes zero scores unless positive ones run out; then all of these stay and zeros are drawn uniformly.
    """

    draw: str = "topk"
    temperature: float = 1.0
    scope: str = "global"
    at: str = "each"
    keep_one: bool = False
    reweight: bool = False
    signed: str = "clamp"
    invert: bool = False
    output_layer: str = "pruned"

    def __post_init__(self) -> None:
        for kind, value, valid in (
            ("draw", self.draw, DRAWS),
            ("scope", self.scope, SCOPES),
            ("at", self.at, ("each", "end")),
            ("signed", self.signed, ("clamp", "softmax", "shift", "abs")),
            ("output_layer", self.output_layer, ("pruned", "kept")),
        ):
            if value not in valid:
                raise unknown(kind, value, valid)
        if self.reweight and self.keep_one:
            raise InputError("reweight and keep_one exclude each other (a weight kept by force has no probability)")
        if self.scope == "smart-ratio" and self.output_layer == "kept":
            raise InputError("scope 'smart-ratio' has its own rule for the output layer (choose output_layer 'pruned')")


TOP = Sampling()


def exponential_counts(start: int, end: float, iterations: int) -> list[int]:
    """Kept counts round(start (end / start)^(i / iterations)) of iterations i = 1, ..., the last of them round(end).

    From a dense ticket, with `end` = rho x prunable, that is density rho^(i / iterations) to within one weight.
    Tanaka et al. (arXiv 2006.05467), algorithm 1. Raises InputError for less than one iteration.
    """
    if iterations < 1:
        raise InputError(f"iterations {iterations} is not 1 or more")
    ratio = end / max(start, 1)
    return [*(round(start * ratio ** (i / iterations)) for i in range(1, iterations)), round(end)]


def prune_by(
    score: Score,
    ticket: Ticket,
    counts: Sequence[Count],
    sampling: Sampling = TOP,
    source: torch.Generator | None = None,
    *,
    name: str = "score",
    revive: bool = False,
) -> Iterator[Ticket]:
    """Yields the ticket after each iteration: scored as it stands, and pruned to the next of `counts`.

    Pruned coefficients never return, unless `revive`: then each iteration chooses among all survivors of `ticket`.
    The first scores are checked for NaN, infinity and layers of zeros; `name` names the method in the message.
    """
    current = ticket
    for number, wanted in enumerate(counts):
        scores = score(current)
        among = ticket if revive else current
        if number == 0:
            check_scores(name, scores, among=among.masks)
        # Multinomial and Poisson counts are random, and may have fallen below the next one.
        random_count = sampling.draw in ("multinomial", "poisson")
        count = _at_most(wanted, counts_of(among.masks)) if random_count else wanted
        draws = sampling.at == "each" or number == len(counts) - 1
        current = select(among, scores, count, sampling if draws else replace(sampling, draw="topk"), source)
        yield current


def _at_most(count: Count, available: dict[str, int]) -> Count:
    if isinstance(count, Mapping):
        return {name: min(number, available[name]) for name, number in count.items()}
    return min(count, sum(available.values()))


def select(
    ticket: Ticket,
    scores: State,
    count: Count,
    sampling: Sampling = TOP,
    source: torch.Generator | None = None,
) -> Ticket:
    """The ticket with a mask of `count` of its survivors, by scores of any origin (such as those of another draw).

    `count` is over all prunable coefficients, or one for each tensor. Raises InputError where it cannot be met.
    """
    whole, head = {}, output_layer(ticket.architecture)
    if sampling.output_layer == "kept":
        whole[head] = ticket.masks[head]
        size = int(torch.count_nonzero(whole[head]))
        if isinstance(count, Mapping):
            count = {name: number for name, number in count.items() if name != head}
        elif count < size:
            raise InputError(f"count {count} is less than the {size} weights of the kept output layer {head!r}")
        else:
            count -= size
    # Vectors of survivors: ranking them alone is several times as fast as ranking under a mask.
    places = {
        name: None if bool(mask.all()) else nonzero(mask) for name, mask in ticket.masks.items() if name not in whole
    }
    live = {name: _gathered(scores[name].detach(), place) for name, place in places.items()}
    if sampling.invert:
        live = inverted(live)
    count = _layer_counts(ticket, live, count, sampling)
    factors: State = {}
    if sampling.draw == "topk":
        kept = keep_top(live, count, keep_one=sampling.keep_one)
    else:
        kept, factors = _drawn(live, count, sampling, source)
    masks = {name: _spread(part, places[name], ticket.masks[name].shape) for name, part in kept.items()}
    if factors:
        scaled = dict(ticket.coefficients)
        for name, factor in factors.items():
            c = scaled[name]
            scaled[name] = torch.where(masks[name], c * _spread(factor, places[name], c.shape).to(c.dtype), c)
        ticket = replace(ticket, coefficients=scaled)
    return ticket.with_masks(masks | whole)


def nonzero(mask: Tensor) -> Tensor:
    """Flat indices of the true entries of a boolean tensor, ascending, int64."""
    if mask.device.type == "cpu":
        # Several times as fast as torch's on a CPU.
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero().squeeze(1)


def _gathered(values: Tensor, places: Tensor | None) -> Tensor:
    values = values.reshape(-1)
    return values if places is None else values.index_select(0, places)


def _spread(values: Tensor, places: Tensor | None, shape: torch.Size) -> Tensor:
    """The tensor of `shape` with `values` at flat indices `places` and zeros elsewhere."""
    if places is None:
        return values.view(shape)
    return values.new_zeros(shape.numel()).index_copy_(0, places, values).view(shape)


def _layer_counts(ticket: Ticket, live: State, count: Count, sampling: Sampling) -> Count:
    """The count as the scope has it: one number, or one for each tensor."""
    if sampling.scope == "matched" and not isinstance(count, Mapping) and sampling.draw != "topk":
        return counts_of(keep_top(live, count, keep_one=sampling.keep_one))
    if sampling.scope in ("global", "matched"):
        return count
    total = sum(count.values()) if isinstance(count, Mapping) else count
    shapes = {name: tuple(ticket.masks[name].shape) for name in live}
    if sampling.scope == "smart-ratio":
        vgg = ticket.architecture.name.startswith("vgg")
        counts = allocation.smart_ratio_counts(shapes, total, divide_by_position=vgg)
    elif sampling.scope == "uniform":
        counts = allocation.uniform_counts(shapes, total)
    else:
        counts = allocation.erdos_renyi_counts(shapes, total, kernel=sampling.scope == "erk")
    if sampling.keep_one:
        for empty in [name for name, number in counts.items() if number == 0]:
            counts[max(counts, key=counts.__getitem__)] -= 1
            counts[empty] = 1
    return counts


def _drawn(live: State, count: Count, sampling: Sampling, source: torch.Generator | None) -> tuple[State, State]:
    """What is kept of each vector and, with `reweight`, factors of the kept coefficients."""
    if any(bool((score < 0).any()) for score in live.values()):
        if sampling.signed == "clamp":
            live = {name: score.clamp(min=0) for name, score in live.items()}
        else:
            live = made_positive(live, sampling.signed)
    kept = _exhausted(live, count, source) if 0 < sampling.temperature < torch.inf else {}
    rest = {name: score for name, score in live.items() if name not in kept}
    if not rest:
        return kept, {}
    if isinstance(count, Mapping):
        count = {name: count[name] for name in rest}
    draw, temperature = sampling.draw, sampling.temperature
    if sampling.reweight:
        drawn, factors = sample_reweighted(rest, count, draw=draw, temperature=temperature, generator=source)
        return kept | drawn, factors
    keep_one = sampling.keep_one
    drawn = sample(rest, count, draw=draw, temperature=temperature, keep_one=keep_one, generator=source)
    return kept | drawn, {}


def _exhausted(live: State, count: Count, source: torch.Generator | None) -> State:
    """For groups in which fewer scores are positive than must stay: all of these, and zeros at random."""
    kept: State = {}
    groups = [([name], count[name]) for name in live] if isinstance(count, Mapping) else [(list(live), count)]
    for names, wanted in groups:
        positive = {name: live[name] > 0 for name in names}
        missing = wanted - sum(counts_of(positive).values())
        if missing > 0 and source is not None:
            shapes = {name: tuple(live[name].shape) for name in names}
            zeros = random_masks(shapes, missing, source, among={name: ~mask for name, mask in positive.items()})
            kept |= {name: positive[name] | zeros[name] for name in names}
    return kept


def wanted_counts(ticket: Ticket, density: float, iterations: int = 1) -> list[int]:
    """`exponential_counts` from the ticket down to round(density x prunable) coefficients.

    Raises InputError for a density outside (0, 1] or above the ticket's.
    """
    total = kept_count(density, ticket.prunable)
    if total > ticket.kept:
        raise InputError(f"density {density} asks for {total} coefficients, where the ticket has {ticket.kept}")
    return exponential_counts(ticket.kept, min(density * ticket.prunable, ticket.kept), iterations)


def pruned(
    name: str,
    score: Score,
    ticket: Ticket,
    density: float,
    sampling: Sampling = TOP,
    iterations: int = 1,
    revive: bool = False,
) -> Ticket:
    """The last ticket of `prune_by` on the exponential schedule, of exactly round(density x prunable) coefficients.

    `name` is the method's, for messages and for its stream of draws from the ticket's seed. "matched" first runs the
    method's own top-k, and draws with its counts at each iteration.
    """
    counts: Sequence[Count] = wanted_counts(ticket, density, iterations)
    run = partial(prune_by, score, ticket, name=name, revive=revive)
    if sampling.scope == "matched" and sampling.draw != "topk":
        plain = replace(sampling, draw="topk", scope="global", reweight=False)
        counts = [counts_of(step.masks) for step in run(counts, plain)]
    *_, last = run(counts, sampling, generator(ticket.seed, "saliency", name, "draw"))
    return last
