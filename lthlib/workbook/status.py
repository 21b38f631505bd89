"""What a folder of results holds: done, running, failed, left, for runs and sweeps; read from manifests and locks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lthlib.errors import InputError
from lthlib.workbook import manifest, sweep
from lthlib.workbook.report import run_folders
from lthlib.workbook.runner import lock_path

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
    found = list(dict.fromkeys([*planned, *_runs(folder)]))
    if not found:
        raise InputError(f"{str(folder)!r} holds no runs (make some with `lth run` or `lth sweep`)")
    return [_state(path, folder) for path in found]


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
    seconds = facts.get("seconds")
    took = f"{seconds:.0f} s" if isinstance(seconds, int | float) else ""
    if facts["status"] != "finished":
        return State(name, "failed", str(facts.get("reason", "")))
    if wrong := manifest.fault(path, facts):
        return State(name, "left", f"{wrong}: the next run makes it anew")
    verdicts = facts.get("verdicts")
    said = [f"{count} {verdict}" for verdict, count in verdicts.items()] if isinstance(verdicts, dict) else []
    if "seal" not in facts:
        said.append("of an earlier version: its manifest has no checksum of its own")
    return State(name, "done", ", ".join([*([took] if took else []), *said]))


def running(folder: Path) -> bool:
    """Whether a process, here or on another node that honours the lock, has a run into `folder` under way."""
    path = lock_path(folder)
    if not path.exists():
        return False
    try:
        FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    except OSError:
        # A folder that may only be read: nothing runs there by this user.
        return False
    return False
