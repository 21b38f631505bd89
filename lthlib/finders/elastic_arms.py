"""The arms beside an elastic ticket, all at exactly its count: what in it mattered, and what else one could have had.

Each takes a source ticket, the map to the target and the target's own dense ticket at the rewinding point. After
Chen et al., arXiv 2103.16547, section 4.1, with controls that the paper lacks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lthlib.data import Dataset
from lthlib.elastic import DepthMap, carry, copies, permuted, with_copies_permuted
from lthlib.errors import InputError, unknown
from lthlib.finders.controls import control
from lthlib.finders.find import find
from lthlib.finders.imp import Level
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import snip_scores
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import Architecture, output_layer
from lthlib.ticket import Ticket, in_bases_of

ELASTIC_ARMS = (
    "elastic",
    "reinit",
    "random mask",
    "both random",
    "copies permuted",
    "copies by snip",
    "order permuted",
    "mask only",
    "weights only",
    "dense stretch",
)
# The control that an arm's label stands for: here, as in kept tables, "random mask" has each layer's own count.
CONTROL_OF = {
    "reinit": "reinit",
    "random mask": "layerwise shuffle",
    "both random": "reinit and shuffle",
    "weights only": "erk",
}
AT_REWIND = ("magnitude", "snip", "grasp", "synflow", "erk")


def elastic_control(
    name: str,
    source: Ticket,
    target: Architecture,
    depths: DepthMap,
    own: Ticket,
    dataset: Dataset | None = None,
) -> Ticket:
    """The ticket of `target` that the arm `name` trains, with as many coefficients as the elastic ticket has.

    `elastic`; `reinit` and `random mask` (shuffled within each tensor) and `both random`; `copies permuted` (masks of
    the copies shuffled); `copies by snip` (masks of the copies by SNIP among the copies); `order permuted` (the map's
    units in random order); `mask only` (the elastic mask over `own` values); `weights only` (carried values under a
    random mask of ERK counts); `dense stretch` (carried values, density 1, the only other count); and AT_REWIND, found
    by `finders.find` on `own`, the target's dense ticket at
    the rewinding point, in the elastic ticket's bases. Raises InputError for unknown names, and for an `own` that does
    not fit.
    """
    if name not in ELASTIC_ARMS + AT_REWIND:
        raise unknown("arm", name, ELASTIC_ARMS + AT_REWIND)
    if name == "order permuted":
        return carry(source, target, permuted(depths, source.architecture, source.seed))
    carried = carry(source, target, depths)
    if name == "elastic":
        return carried
    if name == "copies permuted":
        return with_copies_permuted(carried, source.architecture, depths, source.seed)
    if name == "copies by snip":
        return _with_copies_by_snip(carried, source.architecture, depths, dataset)
    if name == "dense stretch":
        return carried.with_masks({key: torch.ones_like(mask) for key, mask in carried.masks.items()})
    if name == "mask only":
        return in_bases_of(own, carried).with_masks(carried.masks)
    if name in AT_REWIND:
        return find(in_bases_of(own, carried), carried.density, name, dataset)
    return control(carried, CONTROL_OF[name])


def _with_copies_by_snip(carried: Ticket, source: Architecture, depths: DepthMap, dataset: Dataset | None) -> Ticket:
    """The originals' masks kept, those of the copies by SNIP on the carried values; arXiv 2103.16547, section 4.2."""
    names = copies(source, carried.architecture, depths)
    whole = carried.with_masks({n: torch.ones_like(m) if n in names else m for n, m in carried.masks.items()})
    images, labels = pruning_data(whole, dataset, name="snip")
    scores = snip_scores(whole, images, labels)
    count = sum(int(carried.masks[name].sum()) for name in names)
    return carried.with_masks({**carried.masks, **keep_top({name: scores[name] for name in names}, count)})


def direct_at(levels: Sequence[Level], count: int, output_rule: str) -> Ticket:
    """The direct ticket of exactly `count` coefficients from a chain of one replicate: the achieved density's match.

    The last level of more coefficients than that is pruned by magnitude to `count`, as the chain's next would be.
    `output_rule` is the recipe's: `pruned`, or `kept` whole. Raises InputError for a count that no level reaches, or
    for `half`.
    """
    if output_rule not in ("pruned", "kept"):
        raise unknown("rule for the output layer here", output_rule, ("pruned", "kept"))
    above = [level for level in levels if level.tickets[0].kept >= count]
    if not above:
        raise InputError(f"no level has {count} coefficients or more (valid: up to {levels[0].tickets[0].kept})")
    level = above[-1]
    (ticket,), (run,) = level.tickets, level.trained
    if ticket.kept == count and level.number:
        return ticket
    output = output_layer(ticket.architecture)
    fixed = [output] if output_rule == "kept" else []
    masks = {name: mask for name, mask in ticket.masks.items() if name not in fixed}
    scores = {name: run.ticket.coefficients[name].abs() for name in masks}
    left = count - sum(int(ticket.masks[name].sum()) for name in fixed)
    kept = keep_top(scores, left, among=masks)
    return replace(ticket, masks={name: kept.get(name, mask) for name, mask in ticket.masks.items()})
