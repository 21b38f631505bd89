"""What of a ticket's values matters: arms that keep the mask and take away signs, magnitudes, or both.

After Zhou et al. (arXiv 1905.01067, section 4), who find that signs do; in any basis of the ticket, where a sign is
that of a coefficient. Each takes a ticket and a replicate's seed and keeps mask and all other state.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lthlib.finders.magnitude import layerwise_shuffled, reinitialised
from lthlib.randomness import generator
from lthlib.ticket import Ticket


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


ARMS: dict[str, Callable[[Ticket, int], Ticket]] = {
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
