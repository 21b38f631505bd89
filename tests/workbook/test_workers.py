"""A pool that loses a worker loses nothing else: what it had is done again, and only what kills twice is given up."""

import os
import signal
import time
from pathlib import Path

import pytest

from lthlib.workbook.workers import Event, ending, in_workers

NOTHING: dict[str, str] = {}


def square(number: int) -> int:
    return number**2


def die(text: str) -> str:
    """Dies as `text` says: `always`, or once, which the file that it names remembers."""
    if text == "always":
        os._exit(3)
    if text.startswith("once ") and not Path(text[5:]).exists():
        Path(text[5:]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return text


def variable(name: str) -> tuple[str | None, int]:
    time.sleep(0.3)
    return os.environ.get(name), os.getpid()


def values(events: list[Event[object]]) -> dict[int, object]:
    return {event.index: event.value for event in events if event.value is not None}


def test_every_item_is_begun_once_and_done_once() -> None:
    events = list(in_workers(square, range(1, 8), [NOTHING, NOTHING]))
    assert sorted(event.index for event in events if event.value is None) == list(range(7))
    assert values(events) == {index: (index + 1) ** 2 for index in range(7)}
    assert list(in_workers(square, [], [NOTHING])) == []


def test_a_killed_worker_s_item_is_done_by_the_next_and_one_that_kills_twice_is_named(tmp_path: Path) -> None:
    items = ["a", "always", f"once {tmp_path / 'x'}", "b"]
    events = list(in_workers(die, items, [NOTHING, NOTHING]))
    assert values(events) == {0: "a", 2: items[2], 3: "b"}
    assert [(event.index, event.died) for event in events if event.died] == [(1, "its worker died with exit code 3")]


def test_each_worker_has_its_own_environment() -> None:
    events = list(in_workers(variable, ["LTH_PROBE"] * 2, [{"LTH_PROBE": "0"}, {"LTH_PROBE": "1"}]))
    assert {value[0] for value in values(events).values()} == {"0", "1"}  # type: ignore[index]


def test_closing_ends_the_workers() -> None:
    events = in_workers(variable, ["LTH_PROBE"] * 3, [NOTHING])
    pids = [event.value[1] for event in (next(events), next(events), next(events)) if event.value]
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_how_a_process_ended_is_said() -> None:
    assert ending(None) == ""
    assert ending(2) == " with exit code 2"
    assert ending(-9) == " of signal 9 (out of memory?)"
    assert ending(-15) == " of signal 15"
