"""Every control of a ticket: it keeps the count and lacks one thing, so that one sees what mattered."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lthlib.errors import unknown
from lthlib.masks.controls import layerwise_shuffle, random_masks
from lthlib.masks.counts import counts_of, erdos_renyi_counts, smart_ratio_counts
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator
from lthlib.ticket import Ticket, initial_tickets, shapes_of
from lthlib.training.loop import Trained


def reinitialised(ticket: Ticket, scheme: str = "kaiming_normal") -> Ticket:
    """The same mask in the same bases over a fresh initialization (Frankle & Carbin, arXiv 1803.03635)."""
    (fresh,) = initial_tickets(ticket.architecture, [ticket.seed], scheme, "reinit")
    fresh = fresh.in_bases(ticket.bases)
    return replace(ticket, coefficients=fresh.coefficients, rest=fresh.rest)


def random_mask(ticket: Ticket) -> Ticket:
    """The same values under a uniformly random mask of the same total count, drawn in the same bases."""
    return ticket.with_masks(random_masks(shapes_of(ticket), ticket.kept, generator(ticket.seed, "random mask")))


def layerwise_shuffled(ticket: Ticket) -> Ticket:
    """The same values under a mask shuffled within each layer: per-layer counts kept, positions lost."""
    return ticket.with_masks(layerwise_shuffle(ticket.masks, generator(ticket.seed, "layerwise shuffle")))


def inverted(ticket: Ticket, dense: Trained) -> Ticket:
    """The same per-layer counts, keeping the coefficients that the dense training left smallest."""
    scores = {name: -c.abs() for name, c in dense.ticket.coefficients.items()}
    return ticket.with_masks(keep_top(scores, counts_of(ticket.masks)))


def reinitialised_and_shuffled(ticket: Ticket) -> Ticket:
    """A fresh initialization under a mask shuffled within each layer: only the layers' counts are left."""
    return layerwise_shuffled(reinitialised(ticket))


def values_shuffled(ticket: Ticket) -> Ticket:
    """The same mask with the kept coefficients' values permuted within each layer (arXiv 2009.08576)."""
    return _changed(ticket, lambda name, kept: kept[_order(ticket, "value shuffle", name, kept)])


def erk_masked(ticket: Ticket) -> Ticket:
    """A random mask of the same total with Erdos-Renyi-kernel counts (`masks.counts.erdos_renyi_counts`)."""
    shapes = shapes_of(ticket)
    counts = erdos_renyi_counts(shapes, ticket.kept)
    return ticket.with_masks(random_masks(shapes, counts, generator(ticket.seed, "random mask", "erk")))


def smart_ratio_masked(ticket: Ticket) -> Ticket:
    """A random mask of the same total with smart-ratio counts (`masks.counts.smart_ratio_counts`, arXiv 2009.11094)."""
    shapes, vgg = shapes_of(ticket), ticket.architecture.name.startswith("vgg")
    counts = smart_ratio_counts(shapes, ticket.kept, divide_by_position=vgg)
    return ticket.with_masks(random_masks(shapes, counts, generator(ticket.seed, "random mask", "smart-ratio")))


def signs_alone(ticket: Ticket) -> Ticket:
    """Every kept coefficient with the root mean square of its tensor's kept ones as magnitude, and its own sign.

    So that a tensor's norm stays. Zhou et al. (arXiv 1905.01067, section 4), as the next two.
    """
    return _changed(ticket, lambda name, kept: kept.sign() * kept.square().mean().sqrt())


def magnitudes_permuted(ticket: Ticket) -> Ticket:
    """Magnitudes permuted among the kept coefficients of a tensor; signs stay."""
    return _changed(
        ticket, lambda name, kept: kept.sign() * kept.abs()[_order(ticket, "magnitudes permuted", name, kept)]
    )


def signs_drawn(ticket: Ticket) -> Ticket:
    """Each kept coefficient with a sign drawn anew; magnitudes stay."""

    def drawn(name: str, kept: Tensor) -> Tensor:
        coins = torch.rand(len(kept), generator=generator(ticket.seed, "signs drawn", name)).to(kept.device)
        return torch.where(coins < 0.5, -kept, kept)

    return _changed(ticket, drawn)


CONTROLS: dict[str, Callable[[Ticket], Ticket]] = {
    "reinit": reinitialised,
    "random mask": random_mask,
    "layerwise shuffle": layerwise_shuffled,
    "reinit and shuffle": reinitialised_and_shuffled,
    "value shuffle": values_shuffled,
    "erk": erk_masked,
    "smart-ratio": smart_ratio_masked,
    "signs alone": signs_alone,
    "magnitudes permuted": magnitudes_permuted,
    "signs drawn": signs_drawn,
}


def control(ticket: Ticket, name: str) -> Ticket:
    """The control `name` of a ticket, a key of CONTROLS, drawn by the ticket's seed. Raises InputError for others."""
    if name not in CONTROLS:
        raise unknown("control", name, CONTROLS)
    return CONTROLS[name](ticket)


def _order(ticket: Ticket, purpose: str, name: str, kept: Tensor) -> Tensor:
    return torch.randperm(len(kept), generator=generator(ticket.seed, purpose, name)).to(kept.device)


def _changed(ticket: Ticket, change: Callable[[str, Tensor], Tensor]) -> Ticket:
    """The ticket with `change(tensor's name, its kept coefficients (n,))` for its kept coefficients."""
    values = {}
    for name, c in ticket.coefficients.items():
        values[name] = c.clone()
        if len(kept := c[ticket.masks[name]]):
            values[name][ticket.masks[name]] = change(name, kept)
    return replace(ticket, coefficients=values)
