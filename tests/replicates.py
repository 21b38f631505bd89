"""Tickets of other replicates: the same content under another seed."""

from collections.abc import Sequence
from dataclasses import replace

from lthlib.ticket import Ticket


def of_seed(ticket: Ticket, seed: int) -> Ticket:
    """The ticket as replicate `seed` has it."""
    return replace(ticket, seed=seed)


def of_seeds(tickets: Sequence[Ticket], seeds: Sequence[int]) -> list[Ticket]:
    """Each ticket as the replicate of its seed has it."""
    return [of_seed(ticket, seed) for ticket, seed in zip(tickets, seeds, strict=True)]
