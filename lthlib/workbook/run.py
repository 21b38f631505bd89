"""Runs notebooks: each once, under a lock, skipped where it is finished, with its results whole or named as failed."""

import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout

from lthlib.errors import InputError
from lthlib.store import project_path
from lthlib.workbook import forks, manifest, remote
from lthlib.workbook.machine import cores
from lthlib.workbook.notebooks import Notebook, read
from lthlib.workbook.parameters import check_all
from lthlib.workbook.workers import in_workers

# What every notebook promises to leave in its folder, beside its figures.
PROMISED = ("metrics.parquet", "claims.json")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One run to make: a notebook, all its parameters, the folder for its results, and an address to share them at."""

    notebook: Path
    parameters: dict[str, Any]
    out_dir: str
    shared: str = ""

    @property
    def name(self) -> str:
        """The notebook's name."""
        return self.notebook.stem

    @property
    def folder(self) -> Path:
        """The folder for its results."""
        return project_path(self.out_dir)

    @property
    def key(self) -> str:
        """What the manifest of this run, once finished, has as its key."""
        notebook = read(self.notebook)
        return manifest.run_key(notebook, check_all(notebook.parameters, self.parameters))


@dataclass(frozen=True)
class Outcome:
    """What became of a task: `status` is done, skipped, failed, or busy where another process has it under way.

    `reason`, one line, says why it failed.
    """

    notebook: str
    status: str
    seconds: float
    reason: str = ""
    verdicts: dict[str, int] = field(default_factory=dict)


def run_notebook(
    notebook: Path | str,
    parameters: Mapping[str, Any],
    out_dir: str,
    *,
    shared: str = "",
    force: bool = False,
    patient: bool = True,
    forked: bool = False,
) -> Outcome:
    """Executes one notebook into the folder `out_dir`, unless the same run is finished there; needs no engine.

    `parameters` are checked against the notebook's own. The kernel starts in the current folder, and the notebook
    reads `out_dir` by `store.project_path`, as is done here. Leaves NAME.ipynb, NAME.html, what the notebook
    promised (`PROMISED` and figures) and manifest.json; a failed notebook leaves the first two, with its error, and a
    manifest that says so. Two processes with one `out_dir` run one after the other, or where not `patient` the second
    comes back at once, busy. A run that is finished at the address `shared` is taken from there, and one that is not is
    sent there (see `remote`). `forked`: the kernel comes from `forks`, which pays where more notebooks follow in this
    process. Raises InputError for parameters that do not fit and for a folder that cannot be written.
    """
    source = read(Path(notebook))
    values = check_all(source.parameters, parameters)
    if "out_dir" in source.parameters:
        values["out_dir"] = out_dir
    folder = project_path(out_dir)
    writable(folder.parent)
    with _alone(folder, patient) as alone:
        if not alone:
            return Outcome(source.name, "busy", 0.0)
        wanted = manifest.run_key(source, values)
        facts = None if force else manifest.finished(folder, wanted)
        if facts is None and shared and not force:
            facts = remote.fetch(shared, folder, wanted)
        if facts is None:
            manifest.clear(folder)
            outcome = _run(source, values, folder, wanted, forked)
        else:
            outcome = Outcome(source.name, "skipped", facts["seconds"], verdicts=facts["verdicts"])
        if shared and (outcome.status == "done" or (facts is not None and not remote.holds(shared, wanted))):
            remote.send(folder, shared)
        return outcome


def bring(task: Task) -> None:
    """Takes the finished run of a task from its address, if it has one, where its folder has not got it."""
    if not task.shared:
        return
    with _alone(task.folder, patient=False) as alone:
        if alone and manifest.finished(task.folder, task.key) is None:
            remote.fetch(task.shared, task.folder, task.key)


def run_all(tasks: Sequence[Task], *, jobs: int = 1, force: bool = False) -> Iterator[Outcome]:
    """Runs the tasks, `jobs` at a time, and yields each outcome as it comes; a failed task does not stop the others.

    One job runs in this process, more in worker processes that share the machine's cores.
    """
    return (outcome for _, outcome in progress(tasks, jobs=jobs, force=force) if outcome is not None)


def progress(
    tasks: Sequence[Task], *, jobs: int = 1, force: bool = False, gpus: Sequence[str] = (), apart: bool = False
) -> Generator[tuple[Task, Outcome | None], None, None]:
    """As `run_all`, and says too what begins: each task with None, later with its outcome.

    What another process has under way is left for last, so that two runs of the same tasks share them. `gpus` are
    values of CUDA_VISIBLE_DEVICES for the workers in turn; empty leaves that variable alone. `apart`: a single job
    runs in a worker too, so that Ctrl-C and a lack of memory hit it and not this process.
    """
    slots: list[dict[str, str]] = []
    if jobs > 1 or gpus or apart:
        workers = min(jobs, len(tasks)) or 1
        chosen = [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {} for slot in range(workers)]
        slots = [{**shared_cores(workers), **gpu} for gpu in chosen]
    busy = []
    # A process with one notebook to run would import all the same, and more than it needs.
    forked = len(tasks) > max(1, len(slots))
    for task, outcome in _each(tasks, partial(run_task, force=force, patient=False, forked=forked), slots):
        if outcome is not None and outcome.status == "busy":
            busy.append(task)
        else:
            yield task, outcome
    yield from _each(busy, partial(run_task, force=force, patient=True, forked=forked), slots)


def _each(
    tasks: Sequence[Task], work: "partial[Outcome]", slots: Sequence[Mapping[str, str]]
) -> Generator[tuple[Task, Outcome | None], None, None]:
    """Each task's beginning and outcome: in workers with the environments `slots`, or here where there are none."""
    if not slots:
        try:
            for task in tasks:
                yield task, None
                yield task, work(task)
        finally:
            forks.end()
        return
    with closing(in_workers(work, tasks, slots)) as events:
        for event in events:
            task = tasks[event.index]
            yield task, Outcome(task.name, "failed", 0.0, event.died) if event.died else event.value


def shared_cores(workers: int) -> dict[str, str]:
    """Variables that give each of so many workers, and its kernels, an equal share of the cores.

    A variable that the user has set is left alone.
    """
    return {name: str(max(1, cores() // workers)) for name in THREADS if name not in os.environ}


@contextmanager
def _alone(folder: Path, patient: bool = True) -> Iterator[bool]:
    """Holds the folder's lock, which the operating system frees if its holder dies.

    Gives False, without it, where another process has it and this one is not `patient`.
    """
    lock = FileLock(lock_path(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not patient:
            yield False
            return
        print(f"{folder.name}: another run of it is under way; waiting for that to end", file=sys.stderr)
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


def lock_path(folder: Path) -> Path:
    """The file that a run into `folder` holds locked."""
    return folder.parent / f".{folder.name}.lock"


def check_device(device: str) -> None:
    """Raises InputError if `device` is a CUDA device that this machine has not."""
    if not device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = int(device[5:]) if device[5:].isdecimal() else 0
    if wanted >= count:
        raise InputError(f"device {device!r} is not here: torch sees {count} CUDA devices (valid: 'auto', 'cpu')")


def visible_gpus(devices: Iterable[str]) -> list[str]:
    """This machine's GPUs as values of CUDA_VISIBLE_DEVICES, to give each worker one; none where no run may use them.

    `devices` are what the runs ask for. A run that names its GPU (`cuda:1`) is left to find it among all.
    """
    asked = set(devices)
    if asked <= {"cpu"} or any(":" in device for device in asked):
        return []
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [gpu.strip() for gpu in said.split(",") if gpu.strip() not in ("", "-1")]
    try:
        # Not by torch, which takes seconds and holds hundreds of megabytes in a process that only waits.
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.split()


def writable(folder: Path) -> None:
    """Makes the folder; InputError unless a file can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {str(folder)!r}: {reason} (choose a writable folder)") from error


def run_task(task: Task, force: bool = False, patient: bool = True, forked: bool = False) -> Outcome:
    """`run_notebook` for a task; what goes wrong is an outcome too, with one line that says why."""
    start = perf_counter()
    try:
        return run_notebook(
            task.notebook,
            task.parameters,
            task.out_dir,
            shared=task.shared,
            force=force,
            patient=patient,
            forked=forked,
        )
    except Exception as error:
        # The other notebooks go on; what nobody foresaw keeps its traceback. A full disk says enough in one line.
        if not isinstance(error, InputError | OSError):
            traceback.print_exc(file=sys.stderr)
        return Outcome(task.name, "failed", perf_counter() - start, f"{type(error).__name__}: {error}")


def _run(notebook: Notebook, values: dict[str, Any], folder: Path, wanted: str, forked: bool) -> Outcome:
    if forked and forks.available():
        # Its imports and those of this process go side by side.
        forks.start()
    # Here and not above: papermill and nbconvert take seconds, which a skipped notebook need not wait for.
    from lthlib.workbook.execution import execute
    from lthlib.workbook.html import write_html

    writable(folder)
    started, start = datetime.now(UTC), perf_counter()
    changed = {name: value for name, value in values.items() if value != notebook.parameters[name].default}
    executed = folder / manifest.PARTIAL.format(notebook.name)
    execution = execute(notebook.path, changed, executed, forked=forked)
    executed.replace(folder / f"{notebook.name}.ipynb")
    write_html(folder / f"{notebook.name}.html", folder / f"{notebook.name}.ipynb", images=notebook.path.parent)
    reason, verdicts = (execution.reason, {}) if execution.reason else _judge(folder)
    outcome = Outcome(notebook.name, "failed" if reason else "done", perf_counter() - start, reason, verdicts)
    facts = {
        "notebook": notebook.name,
        "title": notebook.title,
        "status": "failed" if reason else "finished",
        "reason": reason,
        "profile": values.get("profile", ""),
        "parameters": {name: manifest.portable(value) for name, value in values.items() if name != "out_dir"},
        "key": wanted,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 2),
        "verdicts": verdicts,
        **{"device": None, "peak_memory_bytes": None, **execution.usage},
        "code": {**manifest.git_state(), "library": manifest.library_digest(), "notebook": notebook.digest},
        "versions": manifest.versions(),
    }
    manifest.write(folder, facts)
    return outcome


def _judge(folder: Path) -> tuple[str, dict[str, int]]:
    """Why a notebook whose cells all ran still failed, or nothing; and how many claims got each verdict."""
    missing = [name for name in PROMISED if not (folder / name).is_file()]
    if missing:
        return f"it did not leave {' and '.join(missing)} in its out_dir", {}
    from lthlib.evidence.results import read_claims

    try:
        return "", dict(Counter(claim["verdict"] for claim in read_claims(folder)))
    except InputError as error:
        return str(error), {}
