r"""Pruning at initialization: scores at the start (or at a rewinding point), and a mask of an exact count from them.

`find` is one call for every method; `METHODS` is the table behind it. A method is a score (in `finders.scores`), a
number of iterations, and whether pruned coefficients may come back; how scores become a mask is a `Sampling`, the same
for all: the highest, or drawn in proportion to the scores, which is how the sketching view would have it (Bar & Giryes,
arXiv 2305.17559). Everything here works in any basis of the ticket in which the score makes sense.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.finders.from_scores import TOP, Sampling, pruned, wanted_counts
from lthlib.finders.paths import phew_masks
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import (
    force_scores,
    grasp_scores,
    magnitude_scores,
    ntk_sap_scores,
    ntk_sketch_scores,
    random_scores,
    snip_scores,
)
from lthlib.finders.synflow import synflow_masks, synflow_score
from lthlib.randomness import generator, stream_seed
from lthlib.ticket import State, Ticket


@dataclass(frozen=True)
class Method:
    """A row of METHODS: a function of (ticket, density, data, sampling, **options), the options that make it this
    method, those that are the caller's, and whether it reads data."""

    prune: Callable[..., Ticket]
    fixed: Mapping[str, object] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    needs_data: bool = False


def find(ticket: Ticket, density: float, method: str, data: Dataset | None = None, **options: object) -> Ticket:
    """The ticket with a mask of exactly round(density x prunable) coefficients found by `method`.

    `method` is a name in METHODS; `data`, on whose device the scores are computed, is needed by those in NEEDS_DATA
    (unless `corruption="gaussian"`). All draws are the ticket's seed's. `options` are fields of `Sampling` and the
    method's own (see its function). Only survivors of the ticket's own mask are kept. Raises InputError for unknown
    names and options, a density out of (0, 1] or above the ticket's, missing data, and scores that are NaN, or zero
    for a whole layer.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    row = METHODS[method]
    sampler = {option.name for option in fields(Sampling)}
    valid = sampler | set(row.options)
    for name in options:
        if name not in valid:
            raise unknown(f"option of method {method!r}", name, sorted(valid))
    sampling = Sampling(**{name: value for name, value in options.items() if name in sampler})  # type: ignore[arg-type]
    rest = {name: value for name, value in options.items() if name not in sampler}
    home = next(iter(ticket.masks.values())).device
    scored = ticket if data is None else ticket.to(data.device)
    return row.prune(scored, density, data, sampling, **{**row.fixed, **rest}).to(home)


# ------------------------------------------------------------------------------------------------------- the methods


def random(
    ticket: Ticket,
    density: float,
    data: Dataset | None = None,
    sampling: Sampling = TOP,
    *,
    scope: str = "global",
) -> Ticket:
    """A random mask with layer counts by `scope`, one of Sampling's: global, uniform, er, erk, smart-ratio."""
    if scope != "global" and sampling.scope not in ("global", scope):
        raise InputError(f"a random mask cannot have layer counts by both {scope!r} and {sampling.scope!r}")
    scope = sampling.scope if scope == "global" else scope
    source = generator(ticket.seed, "saliency", "random")
    chosen = replace(sampling, scope=scope, draw="topk", invert=False, reweight=False)
    return pruned("random", lambda t: random_scores(t, source), ticket, density, chosen)


def magnitude(ticket: Ticket, density: float, data: Dataset | None = None, sampling: Sampling = TOP) -> Ticket:
    """The largest coefficients as they stand, |c|; no data."""
    return pruned("magnitude", magnitude_scores, ticket, density, sampling)


def snip(
    ticket: Ticket,
    density: float,
    data: Dataset | None = None,
    sampling: Sampling = TOP,
    *,
    iterations: int = 1,
    revive: bool = False,
    norm: str = "eval",
    examples_per_class: int = 10,
    corruption: str = "none",
) -> Ticket:
    """SNIP (`snip_scores`); several `iterations` are iterative SNIP, and with `revive` FORCE (`force_scores`).

    All iterations score the same balanced examples (see `pruning_data`). De Jorge et al. (arXiv 2006.09081).
    """
    name = "force" if revive else "snip" if iterations == 1 else "iterative-snip"
    images, labels = pruning_data(ticket, data, name=name, examples_per_class=examples_per_class, corruption=corruption)

    def score(current: Ticket) -> State:
        return (force_scores if revive else snip_scores)(current, images, labels, norm=norm)

    return pruned(name, score, ticket, density, sampling, iterations, revive)


def grasp(
    ticket: Ticket,
    density: float,
    data: Dataset | None = None,
    sampling: Sampling = TOP,
    *,
    absolute: bool = False,
    iterations: int = 1,
    norm: str = "eval",
    divide_logits: float = 200.0,
    examples_per_class: int = 10,
    corruption: str = "none",
) -> Ticket:
    """GraSP (`grasp_scores`); `absolute` keeps the largest magnitudes of its scores instead, another method."""
    name = "grasp-abs" if absolute else "grasp"
    images, labels = pruning_data(ticket, data, name=name, examples_per_class=examples_per_class, corruption=corruption)

    def score(current: Ticket) -> State:
        scores = grasp_scores(current, images, labels, norm=norm, divide_logits=divide_logits)
        return {tensor: value.abs_() for tensor, value in scores.items()} if absolute else scores

    return pruned(name, score, ticket, density, sampling, iterations)


def synflow(
    ticket: Ticket,
    density: float,
    data: Dataset | None = None,
    sampling: Sampling = TOP,
    *,
    iterations: int = 100,
) -> Ticket:
    """SynFlow (`synflow_scores`), density rho^(i / iterations) after iteration i; no data."""
    if sampling == TOP and ticket.off == "zero" and all(basis.is_identity for basis in ticket.bases.values()):
        return ticket.with_masks(synflow_masks(ticket, wanted_counts(ticket, density, iterations)))
    # Converted once: the scores are in float64, and float32 values come back from it unchanged.
    double = replace(ticket, coefficients={name: c.double() for name, c in ticket.coefficients.items()})
    last = pruned("synflow", synflow_score(double), double, density, sampling, iterations)
    back = {name: last.coefficients[name].to(c.dtype) for name, c in ticket.coefficients.items()}
    return replace(last, coefficients=back)


def ntk_sap(
    ticket: Ticket,
    density: float,
    data: Dataset | None = None,
    sampling: Sampling = TOP,
    *,
    iterations: int = 20,
    redraws: int = 5,
    examples: int = 128,
    perturbation: float = 0.01,
    scheme: str = "kaiming_normal",
) -> Ticket:
    """NTK-SAP (`ntk_sap_scores`): Gaussian images and fresh weights and noise at each iteration; no data."""

    def score(current: Ticket) -> State:
        # The survivors' count names the iteration, so that "matched" sees the same draws in both of its runs.
        seed = stream_seed(ticket.seed, "ntk-sap", current.kept)
        return ntk_sap_scores(
            current, seed, redraws=redraws, examples=examples, perturbation=perturbation, scheme=scheme
        )

    return pruned("ntk-sap", score, ticket, density, sampling, iterations)


def ntk_sketch(
    ticket: Ticket,
    density: float,
    data: Dataset | None = None,
    sampling: Sampling = TOP,
    *,
    probes: int | None = 6,
    norm: str = "eval",
    examples_per_class: int = 10,
    corruption: str = "none",
) -> Ticket:
    """The sketch score of the linearised network (`ntk_sketch_scores`); `probes=None` is exact, for small networks."""
    images, _ = pruning_data(
        ticket, data, name="ntk-sketch", examples_per_class=examples_per_class, corruption=corruption
    )

    def score(current: Ticket) -> State:
        source = generator(ticket.seed, "saliency", "probes")
        return ntk_sketch_scores(current, images, probes=probes, source=source, norm=norm)

    return pruned("ntk-sketch", score, ticket, density, sampling)


def phew(ticket: Ticket, density: float, data: Dataset | None = None, sampling: Sampling = TOP) -> Ticket:
    """Paths of higher edge weights (`paths.phew_masks`); no data. It is a draw itself, so `sampling` must be TOP."""
    if sampling != TOP:
        raise InputError("method 'phew' draws its mask by walks and takes no sampling options")
    source = generator(ticket.seed, "saliency", "phew")
    (count,) = wanted_counts(ticket, density)
    return ticket.with_masks(phew_masks(ticket, count, source))


SCORED = ("norm", "examples_per_class", "corruption")
METHODS: dict[str, Method] = {
    "random": Method(random),
    "uniform": Method(random, {"scope": "uniform"}),
    "er": Method(random, {"scope": "er"}),
    "erk": Method(random, {"scope": "erk"}),
    "smart-ratio": Method(random, {"scope": "smart-ratio"}),
    "magnitude": Method(magnitude),
    "snip": Method(snip, options=("iterations", "revive", *SCORED), needs_data=True),
    "iterative-snip": Method(snip, {"iterations": 10}, ("iterations", "revive", *SCORED), needs_data=True),
    "force": Method(snip, {"iterations": 10, "revive": True}, ("iterations", "revive", *SCORED), needs_data=True),
    "grasp": Method(grasp, options=("absolute", "iterations", "divide_logits", *SCORED), needs_data=True),
    "grasp-abs": Method(
        grasp, {"absolute": True}, ("absolute", "iterations", "divide_logits", *SCORED), needs_data=True
    ),
    "synflow": Method(synflow, options=("iterations",)),
    "phew": Method(phew),
    "ntk-sap": Method(ntk_sap, options=("iterations", "redraws", "examples", "perturbation", "scheme")),
    "ntk-sketch": Method(ntk_sketch, options=("probes", *SCORED), needs_data=True),
}
NEEDS_DATA = tuple(name for name, method in METHODS.items() if method.needs_data)

# Data-driven methods that are called "METHOD, noise" take Gaussian images and arbitrary labels: no data.
NOISE = ", noise"


def tickets_of(
    method: str,
    initial: Sequence[Ticket],
    density: float,
    dataset: Dataset,
    **options: Any,
) -> list[Ticket]:
    """`finders.find` for each replicate; a `method` that ends in ", noise" is scored on N(0, 1) images."""
    name = method.removesuffix(NOISE)
    if name != method:
        options = {"corruption": "gaussian"} | options
    return [find(ticket, density, name, dataset, **options) for ticket in initial]
