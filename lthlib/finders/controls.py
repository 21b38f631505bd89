"""Every control of a ticket: it keeps the count and lacks one thing, so that one sees what mattered."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lthlib.masks.controls import layerwise_shuffle, random_masks
from lthlib.masks.counts import counts_of, erdos_renyi_counts, smart_ratio_counts
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator
from lthlib.ticket import Ticket, initial_tickets, shapes_of
from lthlib.training.loop import Trained


def reinitialised(ticket: Ticket, seed: int, scheme: str = "kaiming_normal") -> Ticket:
    """The same mask in the same bases over a fresh initialization."""
    (fresh,) = initial_tickets(ticket.architecture, [seed], scheme, "reinit")
    fresh = fresh.in_bases(ticket.bases)
    return replace(ticket, coefficients=fresh.coefficients, rest=fresh.rest)


def randomly_masked(ticket: Ticket, seed: int) -> Ticket:
    """The same values under a uniformly random mask of the same total count, drawn in the same bases."""
    return ticket.with_masks(random_masks(shapes_of(ticket), ticket.kept, generator(seed, "random mask")))


def layerwise_shuffled(ticket: Ticket, seed: int) -> Ticket:
    """The same values under a mask shuffled within each layer: per-layer counts kept, positions lost."""
    return ticket.with_masks(layerwise_shuffle(ticket.masks, generator(seed, "layerwise shuffle")))


def inverted(ticket: Ticket, dense: Trained) -> Ticket:
    """The same per-layer counts, keeping the coefficients that the dense training left smallest."""
    scores = {name: -c.abs() for name, c in dense.ticket.coefficients.items()}
    return ticket.with_masks(keep_top(scores, counts_of(ticket.masks)))


CONTROLS = {"reinit": reinitialised, "random mask": randomly_masked, "layerwise shuffle": layerwise_shuffled}


def reinitialised_and_shuffled(ticket: Ticket, seed: int) -> Ticket:
    """A fresh initialization under a mask shuffled within each layer: only the layers' counts are left."""
    return layerwise_shuffled(reinitialised(ticket, seed), seed)


def values_shuffled(ticket: Ticket, seed: int) -> Ticket:
    """The same mask with the kept coefficients' values permuted within each layer."""
    values = {}
    for name, c in ticket.coefficients.items():
        mask = ticket.masks[name]
        order = torch.randperm(int(mask.sum()), generator=generator(seed, "value shuffle", name)).to(c.device)
        values[name] = c.clone()
        values[name][mask] = c[mask][order]
    return replace(ticket, coefficients=values)


def erk_masked(ticket: Ticket, seed: int) -> Ticket:
    """A random mask of the same total with Erdos-Renyi-kernel counts (`allocation.erdos_renyi_counts`)."""
    shapes = shapes_of(ticket)
    counts = erdos_renyi_counts(shapes, ticket.kept)
    return ticket.with_masks(random_masks(shapes, counts, generator(seed, "random mask", "erk")))


def smart_ratio_masked(ticket: Ticket, seed: int) -> Ticket:
    """A random mask of the same total with smart-ratio counts (`allocation.smart_ratio_counts`, their rule for VGG)."""
    shapes, vgg = shapes_of(ticket), ticket.architecture.name.startswith("vgg")
    counts = smart_ratio_counts(shapes, ticket.kept, divide_by_position=vgg)
    return ticket.with_masks(random_masks(shapes, counts, generator(seed, "random mask", "smart-ratio")))


SANITY_CHECKS: dict[str, Callable[[Ticket, int], Ticket]] = {
    "layerwise shuffle": layerwise_shuffled,
    "reinit": reinitialised,
    "reinit and shuffle": reinitialised_and_shuffled,
    "global shuffle": randomly_masked,
    "value shuffle": values_shuffled,
    "erk": erk_masked,
    "smart-ratio": smart_ratio_masked,
}


def signs_alone(ticket: Ticket, seed: int = 0) -> Ticket:
    """Every kept coefficient with the root mean square of its tensor's kept ones as magnitude, and its own sign.

    So that a tensor's norm stays. `seed` plays no part.
    """
    return _changed(ticket, lambda name, kept: kept.sign() * kept.square().mean().sqrt())


def magnitudes_permuted(ticket: Ticket, seed: int) -> Ticket:
    """Magnitudes permuted among the kept coefficients of a tensor; signs stay."""

    def permuted(name: str, kept: Tensor) -> Tensor:
        order = torch.randperm(len(kept), generator=generator(seed, "magnitudes permuted", name)).to(kept.device)
        return kept.sign() * kept.abs()[order]

    return _changed(ticket, permuted)


def signs_drawn(ticket: Ticket, seed: int) -> Ticket:
    """Each kept coefficient with a sign drawn anew; magnitudes stay."""

    def drawn(name: str, kept: Tensor) -> Tensor:
        coins = torch.rand(len(kept), generator=generator(seed, "signs drawn", name)).to(kept.device)
        return torch.where(coins < 0.5, -kept, kept)

    return _changed(ticket, drawn)


SIGN_CHECKS: dict[str, Callable[[Ticket, int], Ticket]] = {
    "signs alone": signs_alone,
    "magnitudes permuted": magnitudes_permuted,
    "signs drawn": signs_drawn,
    "reinit": reinitialised,
    "random mask": layerwise_shuffled,
}


def _changed(ticket: Ticket, change: Callable[[str, Tensor], Tensor]) -> Ticket:
    values = {}
    for name, c in ticket.coefficients.items():
        values[name] = c.clone()
        if len(kept := c[ticket.masks[name]]):
            values[name][ticket.masks[name]] = change(name, kept)
    return replace(ticket, coefficients=values)
