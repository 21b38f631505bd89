"""Runs notebooks: each once, under a lock, skipped where it is finished, with its results whole or named as failed."""

import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout

from lthlib.errors import InputError
from lthlib.workbook import manifest
from lthlib.workbook.notebooks import Notebook, read
from lthlib.workbook.parameters import check_all
from lthlib.workbook.paths import project_path

# What every notebook promises to leave in its folder, beside its figures.
PROMISED = ("metrics.parquet", "claims.json")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One run to make: a notebook, all its parameters, and the folder for its results."""

    notebook: Path
    parameters: dict[str, Any]
    out_dir: str

    @property
    def name(self) -> str:
        """The notebook's name."""
        return self.notebook.stem

    @property
    def folder(self) -> Path:
        """The folder for its results."""
        return project_path(self.out_dir)


@dataclass(frozen=True)
class Outcome:
    """What became of a task: `status` is done, skipped or failed; `reason`, one line, says why it failed."""

    notebook: str
    status: str
    seconds: float
    reason: str = ""
    verdicts: dict[str, int] = field(default_factory=dict)


def run_notebook(notebook: Path | str, parameters: Mapping[str, Any], out_dir: str, *, force: bool = False) -> Outcome:
    """Executes one notebook into the folder `out_dir`, unless the same run is finished there; needs no engine.

    `parameters` are checked against the notebook's own. The kernel starts in the current folder, and the notebook
    reads `out_dir` by `paths.project_path`, as is done here. Leaves NAME.ipynb, NAME.html, what the notebook
    promised (`PROMISED` and figures) and manifest.json; a failed notebook leaves the first two, with its error, and a
    manifest that says so. Two processes with one `out_dir` run one after the other. Raises InputError for parameters
    that do not fit and for a folder that cannot be written.
    """
    found = read(Path(notebook))
    values = check_all(found.parameters, parameters)
    if "out_dir" in found.parameters:
        values["out_dir"] = out_dir
    folder = project_path(out_dir)
    writable(folder.parent)
    with _alone(folder):
        wanted = manifest.run_key(found, values)
        facts = None if force else manifest.finished(folder, wanted)
        if facts is not None:
            return Outcome(found.name, "skipped", facts["seconds"], verdicts=facts["verdicts"])
        manifest.clear(folder)
        return _run(found, values, folder, wanted)


def run_all(tasks: Sequence[Task], *, jobs: int = 1, force: bool = False) -> Iterator[Outcome]:
    """Runs the tasks, `jobs` at a time, and yields each outcome as it comes; a failed task does not stop the others.

    One job runs in this process, more in worker processes that share the machine's cores.
    """
    if jobs == 1:
        for task in tasks:
            yield _run_task(task, force)
        return
    workers = min(jobs, len(tasks)) or 1
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(workers,)
    ) as pool:
        waiting = {pool.submit(_run_task, task, force): task for task in tasks}
        try:
            for done in as_completed(waiting):
                error = done.exception()
                task = waiting[done]
                yield done.result() if error is None else Outcome(task.name, "failed", 0.0, f"its worker died: {error}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def share_cores(workers: int) -> None:
    """Gives this process and its kernels an equal share of the cores, where the user has not said how many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in THREADS:
        os.environ.setdefault(name, str(max(1, cores // workers)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the operating system frees if its holder dies."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: another run of it is under way; waiting for that to end", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _begin_worker(workers: int) -> None:
    share_cores(workers)
    # A runner killed outright cannot stop its workers; they, and with them their kernels, end by themselves.
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def check_device(device: str) -> None:
    """Raises InputError if `device` is a CUDA device that this machine has not."""
    if not device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = int(device[5:]) if device[5:].isdecimal() else 0
    if wanted >= count:
        raise InputError(f"device {device!r} is not here: torch sees {count} CUDA devices (valid: 'auto', 'cpu')")


def writable(folder: Path) -> None:
    """Makes the folder; InputError unless a file can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write {str(folder)!r}: {error.strerror or error} (choose a writable folder)"
        ) from error


def _run_task(task: Task, force: bool) -> Outcome:
    start = perf_counter()
    try:
        return run_notebook(task.notebook, task.parameters, task.out_dir, force=force)
    except Exception as error:
        # The other notebooks go on; what nobody foresaw keeps its traceback.
        if not isinstance(error, InputError):
            traceback.print_exc(file=sys.stderr)
        return Outcome(task.name, "failed", perf_counter() - start, f"{type(error).__name__}: {error}")


def _run(notebook: Notebook, values: dict[str, Any], folder: Path, wanted: str) -> Outcome:
    # Here and not above: papermill and nbconvert take seconds, which a skipped notebook need not wait for.
    from lthlib.workbook.execution import execute
    from lthlib.workbook.export import write_html

    writable(folder)
    started, start = datetime.now(UTC), perf_counter()
    changed = {name: value for name, value in values.items() if value != notebook.parameters[name].default}
    partial = folder / f".{notebook.name}.part.ipynb"
    execution = execute(notebook.path, changed, partial)
    partial.replace(folder / f"{notebook.name}.ipynb")
    write_html(folder / f"{notebook.name}.html", folder / f"{notebook.name}.ipynb", images=notebook.path.parent)
    reason, verdicts = (execution.reason, {}) if execution.reason else _judge(folder)
    outcome = Outcome(notebook.name, "failed" if reason else "done", perf_counter() - start, reason, verdicts)
    usage = {"device": None, "peak_memory_bytes": None, **execution.usage}
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
        **usage,
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
