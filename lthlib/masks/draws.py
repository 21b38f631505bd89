"""Masks drawn in proportion to scores: Gumbel, multinomial and Poisson draws."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lthlib.errors import InputError, unknown
from lthlib.masks.topk import Count, _flat, _groups, _raise_best, _select, _sizes, _unflatten, keep_top

DRAWS = ("topk", "gumbel", "multinomial", "poisson")
# Elementwise work on pieces that fit a cache spares the time and memory of more full-length vectors.
PIECE = 2**16
# Powers of two that scores may span, and their largest be above 1, for products in single precision to stay in range.
SPREAD = 100
# So many scores tell when as many as are wanted will have come.
SAMPLED = 2**16


def sample(
    scores: Mapping[str, Tensor],
    count: Count,
    *,
    draw: str = "gumbel",
    temperature: float = 1.0,
    among: Mapping[str, Tensor] | None = None,
    keep_one: bool = False,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Masks drawn with p proportional to scores ** temperature, globally or (with counts per tensor) layer by layer.

    `draw` is "gumbel" (drawn one by one without replacement: exactly `count`), "multinomial" (with replacement,
    duplicates merged) or "poisson" (independently), both of which meet `count` in expectation, or "topk" (no draw).
    Scores are >= 0, or -inf for entries never to be kept; zero scores are never drawn. temperature 0 draws uniformly
    from all entries but -inf, infinity is "topk". `keep_one` gives each layer with a positive score one entry: within
    the count for "gumbel" and "topk", on top of it for the other two. Randomness comes from `generator` alone.
    Raises InputError for bad names, scores and counts, also where fewer scores are positive than `count`.
    Source: Bar & Giryes (arXiv 2305.17559) for sampling a mask by score; Gumbel-top-k is successive sampling
    (Yellott 1977; Kool et al., arXiv 1903.06059).
    """
    return _sample(scores, count, draw, temperature, among, keep_one, generator, reweight=False)[0]


def sample_reweighted(
    scores: Mapping[str, Tensor],
    count: Count,
    *,
    draw: str = "gumbel",
    temperature: float = 1.0,
    among: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`sample`, with the factors (float64, 0 off the mask) that make the mask unbiased: E[factor] = 1 where p > 0.

    c / (s p) for "multinomial" (c draws of an entry out of s), 1 / inclusion probability for "poisson", and for
    "gumbel" 1 / P(key above the (k+1)-th key), as in Duffield et al. 2007 and Kool et al. (arXiv 1903.06059,
    section 4.2); 1 for "topk", which is not unbiased.
    """
    return _sample(scores, count, draw, temperature, among, False, generator, reweight=True)


def inclusion_probabilities(log_p: Tensor, count: int) -> Tensor:
    """min(1, a p) with a such that they sum to `count`; log_p is a float64 vector, of any common offset, -inf for p=0.

    Works in logarithms, so that p may span any number of decades. Raises InputError where fewer than `count` are > 0.
    """
    _need_positive(int(torch.count_nonzero(log_p > -math.inf)), count, "")
    if count == 0:
        return torch.zeros_like(log_p)
    chosen = _select(log_p, count)
    top = log_p[chosen].sort(descending=True).values
    rest = log_p[~chosen].logsumexp(0, keepdim=True)
    # With the j largest capped at 1, log a = log(count - j) - log(sum of all others): the first j that holds is it.
    tails = torch.cat([rest, top.flip(0)]).logcumsumexp(0)[1:].flip(0)
    log_a = torch.arange(count, 0, -1, dtype=log_p.dtype, device=log_p.device).log() - tails
    capped = int(torch.count_nonzero(log_a + top > 1e-12))
    return (log_p + log_a[min(capped, count - 1)]).exp().clamp(max=1)


def draws_for(p: Tensor, count: float) -> int:
    """Number s of draws with replacement whose expected number of distinct entries, sum(1 - (1-p)^s), is `count`.

    p is a float64 vector that sums to 1. Raises InputError where no s up to 2^53 reaches `count`.
    """
    from scipy.optimize import brentq

    log_miss = torch.log1p(-p)
    buffer = torch.empty_like(p)

    def excess(log_s: float) -> float:
        return -float(torch.mul(log_miss, math.exp(log_s), out=buffer).expm1_().sum()) - count

    low, high, limit = math.log(max(count, 1)), math.log(max(count, 1)) + 1, 53 * math.log(2)
    if excess(low) >= 0:
        return round(math.exp(low))
    while (above := excess(high)) < 0 and high < limit:
        low, high = high, min(2 * high - low, limit)
    if above < 0:
        raise InputError(f"no number of draws gives {count} distinct entries of these scores (choose draw 'gumbel')")
    # The expected count moves by less than `count` per unit of log s.
    return round(math.exp(brentq(excess, low, high, xtol=0.1 / count)))


def multinomial_counts(p: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """How often each entry comes up in `draws` draws with replacement; float64 vector p sums to 1 (CPU).

    Splits the draws down a binary tree by binomials: exact, without torch.multinomial's limit of 2^24 categories and
    at a cost that does not grow with `draws` (up to 2^53).
    """
    levels = [p]
    while levels[-1].numel() > 1:
        level = levels[-1]
        if level.numel() % 2:
            level = levels[-1] = torch.cat([level, level.new_zeros(1)])
        levels.append(level[0::2] + level[1::2])
    counts = torch.tensor([float(draws)], dtype=torch.float64)
    for level, total in zip(levels[-2::-1], levels[:0:-1], strict=True):
        pairs = level.numel() // 2
        counts = counts[:pairs]
        left = torch.binomial(counts, (level[0::2] / total[:pairs]).nan_to_num(0), generator=generator)
        counts = torch.stack([left, counts - left], dim=1).view(-1)
    return counts[: p.numel()]


def _sample(
    scores: Mapping[str, Tensor],
    count: Count,
    draw: str,
    temperature: float,
    among: Mapping[str, Tensor] | None,
    keep_one: bool,
    generator: torch.Generator | None,
    *,
    reweight: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if draw not in DRAWS:
        raise unknown("draw", draw, DRAWS)
    if not temperature >= 0:
        raise InputError(f"temperature {temperature} is not in [0, infinity]")
    if draw == "topk" or temperature == math.inf:
        top = keep_top(scores, count, among=among, keep_one=keep_one)
        return top, {name: mask.double() for name, mask in top.items()} if reweight else {}
    if generator is None:
        raise InputError(f"draw {draw!r} needs a generator (see lthlib.randomness.generator)")
    masks: dict[str, Tensor] = {}
    factors: dict[str, Tensor] = {}
    for names, kept in _groups(scores, count, among):
        where = f" in {names[0]!r}" if isinstance(count, Mapping) else ""
        values = _flat(scores, among, names)
        if values.numel() and (values.max() == math.inf or _signed(values)):
            raise InputError(
                f"scores of {', '.join(names)} are negative or infinite (map them to >= 0, such as by abs)"
            )
        sizes = _sizes(scores, among, names) if keep_one and len(names) > 1 else []
        factor = None
        if draw == "gumbel" and temperature == 1 and not reweight and not sizes and _narrow(values, kept, where):
            chosen = _earliest(values, kept, generator)
        else:
            log_p = _log_p(values, temperature)
            _need_positive(int(torch.count_nonzero(log_p > -math.inf)), kept, where)
            chosen, factor = _draw(log_p, kept, draw, generator, sizes=sizes, reweight=reweight)
        masks |= _unflatten(chosen, scores, among, names)
        if factor is not None:
            factors |= _unflatten(factor, scores, among, names)
    return masks, factors


def _log_p(values: Tensor, temperature: float) -> Tensor:
    """Logarithms of unnormalised probabilities, float64."""
    if temperature == 0:
        return torch.where(values > -math.inf, 0.0, -math.inf).double()
    log_p = torch.empty_like(values, dtype=torch.float64)
    for source, piece in zip(values.split(PIECE), log_p.split(PIECE), strict=True):
        piece.copy_(source).clamp_(min=0).log_().mul_(temperature)
    return log_p


def _signed(values: Tensor) -> bool:
    """Whether some value other than -inf is negative."""
    return bool(values.min() < 0) and bool(((values < 0) & (values > -math.inf)).any())


def _narrow(values: Tensor, count: int, where: str) -> bool:
    """Whether the positive scores, of which there must be `count`, lie within `SPREAD`."""
    most = float(values.max()) if values.numel() else 1.0
    positive = within = 0
    for piece in values.split(PIECE):
        positive += int(torch.count_nonzero(piece > 0))
        within += int(torch.count_nonzero(piece > math.ldexp(most, -SPREAD)))
    _need_positive(positive, count, where)
    return positive == within and most <= math.ldexp(1, SPREAD)


def _need_positive(positive: int, count: int, where: str) -> None:
    if positive < count:
        raise InputError(
            f"count {count}{where} is more than the {positive} positive scores, and zero scores are never drawn "
            "(choose a smaller count, draw 'topk' or temperature 0)"
        )


def _draw(
    log_p: Tensor, count: int, draw: str, generator: torch.Generator, *, sizes: list[int], reweight: bool
) -> tuple[Tensor, Tensor | None]:
    factor = None
    if draw == "gumbel":
        keys = _gumbel_keys_(log_p.clone() if reweight else log_p, generator)
        if sizes:
            keys = _raise_best(keys, sizes, count)
        chosen = _select(keys, count)
        if reweight:
            below = torch.where(chosen, -math.inf, keys)
            next_key = below.max() if below.numel() else keys.new_tensor(-math.inf)
            factor = torch.where(chosen, -1 / torch.expm1(-(log_p - next_key).exp()), 0.0)
        return chosen, factor
    if draw == "poisson":
        pi = inclusion_probabilities(log_p, count)
        noise = torch.rand(pi.shape, generator=generator, dtype=torch.float64, device=generator.device)
        chosen = noise.to(pi.device) < pi
        if reweight:
            factor = torch.where(chosen, 1 / pi, 0.0)
    elif count in (0, int(torch.count_nonzero(log_p > -math.inf))):
        # Infinitely many draws reach every entry of positive probability.
        chosen = (log_p > -math.inf) & (count > 0)
        factor = chosen.double() if reweight else None
    else:
        p = log_p.softmax(0).cpu()
        draws = draws_for(p, count)
        drawn = multinomial_counts(p, draws, generator)
        chosen = (drawn > 0).to(log_p.device)
        if reweight:
            factor = torch.where(drawn > 0, drawn / (draws * p), 0.0).to(log_p.device)
    if sizes:
        for part, mask in zip(log_p.split(sizes), chosen.split(sizes), strict=True):
            if not mask.any() and part.numel() and part.max() > -math.inf:
                mask[_gumbel_keys_(part.clone(), generator).argmax()] = True
    return chosen, factor


def _earliest(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Gumbel-top-k: marks the first `count` of arrivals at times exponential / score.

    Their order is that of log score + Gumbel noise. They have no memory: those that have not come by some time come
    after it as if they had started then. So only those that may come before a time by which `count` probably have need
    more than a few bits of noise.
    """
    noise, device, values = _noise(generator), values.device, values.cpu()
    chosen = np.zeros(values.numel(), dtype=np.bool_)
    missing = count
    while missing:
        places, times = _arrivals(values, _time_of(values, missing, noise), noise)
        if len(places) > missing:
            places = places[times <= np.partition(times, missing - 1)[missing - 1]][:missing]
        chosen[places] = True
        missing -= len(places)
        if missing:
            values = values.masked_fill(torch.from_numpy(chosen), 0)
    return torch.from_numpy(chosen).to(device)


def _time_of(values: Tensor, count: int, noise: np.random.Generator) -> float:
    """A time by which `count` have probably come, from a sample; where that cannot tell, one by which all have."""
    share = count / values.numel()
    rank = math.ceil(SAMPLED * share + 4 * math.sqrt(SAMPLED * share * (1 - share)))
    if values.numel() > SAMPLED > rank:
        sampled = values[torch.from_numpy(noise.integers(0, values.numel(), SAMPLED))].double().clamp_(min=0).numpy()
        with np.errstate(divide="ignore"):
            time = float(np.partition(noise.standard_exponential(SAMPLED) / sampled, rank)[rank])
        if time < math.inf:
            return time
    return math.ldexp(1 / float(values.max()), SPREAD + 10)


def _arrivals(values: Tensor, time: float, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices and times of those that come up to `time`."""
    half, places, times = 2**15, [], []
    for number, piece in enumerate(values.split(PIECE)):
        # u = 1 - exp(-score * t), uniform for its time t, is at most score * time for those that come. Its first 16
        # bits rule most others out.
        bits = noise.integers(0, 2**64, PIECE // 4, dtype=np.uint64).view(np.int16)[: piece.numel()]
        bound = torch.mul(piece, time * 2 * half).sub_(half - 1)
        near = np.flatnonzero((torch.from_numpy(bits) <= bound).numpy())
        uniform = noise.random(len(near))
        uniform += bits[near].astype(np.int32) + half
        uniform *= -0.5 / half
        with np.errstate(divide="ignore", invalid="ignore"):
            came = np.log1p(uniform, out=uniform)
            came /= -piece.numpy()[near]
        early = np.flatnonzero(came <= time)
        places.append(near[early] + number * PIECE)
        times.append(came[early])
    return np.concatenate(places), np.concatenate(times)


def _noise(generator: torch.Generator) -> np.random.Generator:
    """numpy's: its exponentials are exact in the tails that decide among millions, and it is faster than torch's."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device)))


def _gumbel_keys_(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """Adds standard Gumbel noise in place, as -log(exponential); -inf stays where p is 0."""
    noise = _noise(generator)
    for piece in log_p.split(PIECE):
        exponential = torch.from_numpy(noise.standard_exponential(piece.numel()))
        piece.sub_(exponential.clamp_(min=torch.finfo(torch.float64).tiny).log_().to(piece.device))
    return log_p


def positive(scores: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    """Signed scores (such as GraSP's) mapped to float64 scores >= 0 that `sample` accepts; -inf stays -inf.

    "abs" is |z|; "shift" is z - min z; "softmax" is exp((z - max z) / std z); min, max and std over all tensors.
    """
    if how not in ("abs", "shift", "softmax"):
        raise unknown("positive map", how, ("abs", "shift", "softmax"))
    values = _flat(scores, None, tuple(scores)).double()
    live = values[values > -math.inf]
    if how == "abs":
        mapped = values.abs()
    elif how == "shift":
        mapped = values - live.min()
    else:
        mapped = ((values - live.max()) / live.std(correction=0).clamp(min=torch.finfo(torch.float64).tiny)).exp()
    return _unflatten(torch.where(values > -math.inf, mapped, -math.inf), scores, None, tuple(scores))
