"""Shares and threads: every item once, one core each, the first failure stops the rest and is the one raised."""

from functools import partial
from threading import Event

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lthlib.training.parallel import StoppedError, on_cores, shares, side_by_side


@given(st.integers(1, 200), st.integers(1, 9), st.none() | st.integers(1, 9))
def test_shares_hold_every_item_once_and_are_even(count: int, workers: int, highest: int | None) -> None:
    parts = shares(count, workers, highest)
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if highest is None:
        assert len(parts) == min(count, workers)
    else:
        assert max(map(len, parts)) <= highest
        assert len(parts) % workers == 0 or len(parts) == count


def test_values_come_in_order_and_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    seen = side_by_side([partial(lambda value, _: (value, torch.get_num_threads()), value) for value in range(5)])
    assert list(seen) == [(value, 1) for value in range(5)]
    assert torch.get_num_threads() == before


def test_a_number_of_cores_holds_meanwhile_and_a_failure_ends_it() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), on_cores(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_failure_stops_the_others_and_is_raised() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    noticed = []

    def waits(stop: Event) -> None:
        noticed.append(stop.wait(timeout=30))
        raise StoppedError("stopped")

    def fails(_: Event) -> None:
        raise FloatingPointError("diverged")

    try:
        with pytest.raises(FloatingPointError, match="diverged"):
            list(side_by_side([waits, fails]))
    finally:
        torch.set_num_threads(threads)
    assert noticed == [True]
