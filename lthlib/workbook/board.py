"""What a sweep is doing, as a live table on a terminal or as a line for each end in a log file."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from lthlib.workbook.runner import Outcome, Task

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 12  # runs under way and ended ones, so that the table fits a screen


@dataclass
class Board:
    """How far a sweep of `total` runs is: what runs since when, and what has ended how."""

    total: int
    begun: dict[str, float] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    start: float = field(default_factory=monotonic)

    def note(self, name: str, outcome: Outcome | None) -> None:
        """Takes in one event of `runner.progress`."""
        if outcome is None:
            self.begun[name] = monotonic()
        else:
            self.begun.pop(name, None)
            self.ended[name] = outcome

    def count(self, *statuses: str) -> int:
        """How many runs have ended in one of these ways."""
        return sum(outcome.status in statuses for outcome in self.ended.values())

    def summary(self) -> str:
        """All runs in one line."""
        left = self.total - len(self.ended) - len(self.begun)
        parts = [f"{self.count('done', 'skipped')} done", f"{len(self.begun)} running"]
        return ", ".join([*parts, f"{self.count('failed')} failed", f"{left} left", f"of {self.total}"])

    def __rich__(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        now = monotonic()
        title = f"{self.summary()}; {_clock(now - self.start)}{self._remaining(now)}"
        table = Table("run", "status", "seconds", "why", title=title, title_justify="left")
        table.columns[2].justify = "right"
        rows = [(name, "running", now - since, "") for name, since in list(self.begun.items())[:SHOWN]]
        # Failures stay in sight; of the rest the latest.
        failed = [(name, outcome) for name, outcome in self.ended.items() if outcome.status == "failed"]
        other = [(name, outcome) for name, outcome in self.ended.items() if outcome.status != "failed"]
        ended = [*failed[-SHOWN // 2 :], *other[len(other) - max(0, SHOWN - len(rows) - len(failed)) :]]
        rows += [(name, outcome.status, outcome.seconds, outcome.reason) for name, outcome in ended]
        for name, status, seconds, reason in rows:
            # Text: a message in brackets is no markup.
            table.add_row(Text(name), status, f"{seconds:.0f}", Text(reason))
        return table

    def _remaining(self, now: float) -> str:
        fresh = self.count("done", "failed")
        open_ = self.total - len(self.ended)
        return f", about {_clock((now - self.start) / fresh * open_)} left" if fresh and open_ else ""


def watch(
    events: Generator[tuple[Task, Outcome | None], None, None], board: Board, names: Mapping[str, str]
) -> Iterator[Board]:
    """Notes the events on the board as they come, shows it on standard error, and yields it after each.

    `names` are what runs are called, by their `out_dir`. Ctrl-C, too, closes `events`, which ends what runs.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    live = Live(board, console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
    try:
        if live:
            live.start()
        for task, outcome in events:
            name = names[task.out_dir]
            board.note(name, outcome)
            if outcome is not None and not live:
                why = f": {outcome.reason}" if outcome.reason else ""
                place = f"{len(board.ended)}/{board.total}"
                print(f"{place} {outcome.status} {name} ({outcome.seconds:.1f} s){why}", file=console.file, flush=True)
            yield board
    finally:
        events.close()
        if live:
            live.stop()


def failures(board: Board) -> list[str]:
    """A line for each run that failed: which, and why."""
    return [f"failed {name}: {outcome.reason}" for name, outcome in board.ended.items() if outcome.status == "failed"]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
