"""What a folder of results holds: done, running, failed, left, for runs and sweeps; read from manifests and locks."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lthlib.errors import InputError
from lthlib.workbook import manifest, sweep
from lthlib.workbook.report import run_folders
from lthlib.workbook.run import Outcome, Task, lock_path

STATES = ("done", "running", "failed", "left")


@dataclass(frozen=True)
class State:
    """One run: its name within the folder asked about, one of STATES, and what there is to say about it."""

    name: str
    state: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.state:<7}  {self.name}" + (f"  ({self.detail})" if self.detail else "")


def status(folder: Path) -> list[State]:
    """Every run at or below `folder`: those of sweeps in the order of their plans, then the others by path.

    Done is a run with every file as its manifest says; left is one that was planned or begun and has no result.
    Raises InputError where there is none.
    """
    plans = {path.parent: sweep.read_plan(path.parent) for path in sorted(folder.rglob(sweep.PLAN))}
    planned = [where / point / notebook for where, runs in plans.items() for point, notebook in runs]
    paths = list(dict.fromkeys([*planned, *_runs(folder)]))
    if not paths:
        raise InputError(f"{str(folder)!r} holds no runs (make some with `lth run` or `lth sweep`)")
    return [_state(path, folder) for path in paths]


def summary(states: Sequence[State]) -> str:
    """All of them in one line."""
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[state]} {state}" for state in STATES) + f", of {len(states)}"


def _runs(folder: Path) -> Iterator[Path]:
    if manifest.read(folder):
        yield folder
        return
    for place in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        # What a sweep of another grid left is no part of this one's plan.
        if not any((above / sweep.PLAN).exists() for above in (place, place.parent)):
            yield from run_folders(place)


def _state(path: Path, folder: Path) -> State:
    name = path.relative_to(folder).as_posix() if path != folder else path.name
    facts = manifest.read(path)
    if facts is None:
        return State(name, "running") if running(path) else State(name, "left", "begun" if path.is_dir() else "")
    if facts["status"] != "finished":
        return State(name, "failed", str(facts.get("reason", "")))
    if wrong := manifest.fault(path, facts):
        return State(name, "left", f"{wrong}: the next run makes it anew")
    seconds, verdicts = facts.get("seconds"), facts.get("verdicts")
    said = [f"{seconds:.0f} s"] if isinstance(seconds, int | float) else []
    said += [f"{count} {verdict}" for verdict, count in verdicts.items()] if isinstance(verdicts, dict) else []
    if "seal" not in facts:
        said.append("of an earlier version: its manifest has no checksum of its own")
    return State(name, "done", ", ".join(said))


def running(folder: Path) -> bool:
    """Whether a process, here or on another node that honours the lock, has a run into `folder` under way."""
    try:
        if lock_path(folder).exists():
            FileLock(lock_path(folder)).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    except OSError:  # a folder that may only be read: nothing runs there by this user
        pass
    return False


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

    def __rich__(self) -> Table:
        now = monotonic()
        fresh, unended = self.count("done", "failed"), self.total - len(self.ended)
        rest = f", about {_clock((now - self.start) / fresh * unended)} left" if fresh and unended else ""
        title = f"{self.summary()}; {_clock(now - self.start)}{rest}"
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


def watch(
    events: Generator[tuple[Task, Outcome | None], None, None], board: Board, names: Mapping[str, str]
) -> Iterator[Board]:
    """Notes the events on the board as they come, shows it on standard error, and yields it after each.

    `names` are what runs are called, by their `out_dir`. Ctrl-C, too, closes `events`, which ends what runs.
    """
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
