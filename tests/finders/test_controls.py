"""Arms of signs and magnitudes keep what they say they keep, in every basis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicates import of_seed

from lthlib.finders.controls import control
from lthlib.finders.find import find
from lthlib.models.architecture import architecture
from lthlib.studies.beyond import VALUE_CHECKS
from lthlib.ticket import Ticket, bases_for, initial_tickets

NETWORK = architecture("lenet-10-6", (1, 4, 4), 3)


def sparse(rule: str, seed: int, density: float = 0.3) -> Ticket:
    (whole,) = initial_tickets(NETWORK, [seed])
    return find(of_seed(whole.in_bases(bases_for(whole, rule)), seed), density, "random")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 50), rule=st.sampled_from(["canonical", "dct", "random"]))
def test_each_arm_changes_only_what_it_says(seed: int, rule: str) -> None:
    ticket = sparse(rule, seed)
    made = {label: control(of_seed(ticket, seed), name) for label, name in VALUE_CHECKS.items()}
    for name, mask in ticket.masks.items():
        kept = ticket.coefficients[name][mask]
        alone, permuted, drawn = (
            made[arm].coefficients[name][mask] for arm in ("signs alone", "magnitudes permuted", "signs drawn")
        )
        assert torch.equal(alone.sign(), kept.sign())
        assert alone.abs().unique().numel() <= 1
        assert torch.allclose(alone.norm(), kept.norm())
        assert torch.equal(permuted.sign(), kept.sign())
        assert torch.equal(permuted.abs().sort().values, kept.abs().sort().values)
        assert torch.equal(drawn.abs(), kept.abs())
        for arm in ("signs alone", "magnitudes permuted", "signs drawn", "reinit"):
            assert torch.equal(made[arm].masks[name], mask)
        assert made["random mask"].masks[name].sum() == mask.sum()
        assert torch.equal(made["random mask"].coefficients[name], ticket.coefficients[name])
    assert any((made["signs drawn"].coefficients[n] != ticket.coefficients[n]).any() for n in ticket.masks)


@pytest.mark.parametrize("arm", VALUE_CHECKS)
def test_an_empty_layer_stays_empty(arm: str) -> None:
    ticket = sparse("canonical", 0)
    first = next(iter(ticket.masks))
    empty = ticket.with_masks({**ticket.masks, first: torch.zeros_like(ticket.masks[first])})
    assert not control(of_seed(empty, 1), VALUE_CHECKS[arm]).masks[first].any()


def test_draws_are_the_seed_s() -> None:
    ticket = sparse("dct", 3)
    for name in ("magnitudes permuted", "signs drawn"):
        first, again, other = (control(of_seed(ticket, seed), name).digest() for seed in (1, 1, 2))
        assert first == again != other
