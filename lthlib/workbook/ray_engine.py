"""Runs on a Ray cluster, or on one that is started here for the while; what a lost node had is run on another.

Ray is an optional extra, imported when it is asked for. Notebooks and this Python's packages lie under one path on
every node. So do results, in a shared folder, or else tasks have an address to share them at (`remote`).
"""

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from lthlib.errors import InputError
from lthlib.workbook.manifest import PARTIAL
from lthlib.workbook.run import THREADS, Outcome, Task, run_task

RETRIES = 5  # of a run whose node or worker is lost, before it counts as failed
POLL = 1.0  # seconds between looks at what has begun


def progress_on_ray(
    tasks: Sequence[Task],
    *,
    address: str = "",
    gpus_per_run: float = 0.0,
    cpus_per_run: float = 1.0,
    force: bool = False,
) -> Generator[tuple[Task, Outcome | None], None, None]:
    """As `runner.progress`, on the cluster at `address` (`auto`, HOST:PORT or ray://...), or one of this machine.

    Raises InputError where Ray is not installed, the cluster cannot be reached, or no node has what a run asks for.
    """
    ray = _ray()
    mine = _join(ray, address)
    try:
        _refuse_what_no_node_has(ray, {"CPU": cpus_per_run, "GPU": gpus_per_run})
        yield from _events(ray, tasks, gpus_per_run, cpus_per_run, force)
    finally:
        if mine:
            ray.shutdown()


def _ray() -> Any:
    # Ray would report to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "engine 'ray' needs Ray, which is not installed (`pip install -c constraints.txt 'ray>=2.40'`, "
            "or --engine local)"
        ) from error
    return ray


def _join(ray: Any, address: str) -> bool:
    """Connects to the cluster; whether that was done here, so that it is ours to end."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            # A cluster of this machine alone, to be reached from this machine alone.
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except Exception as error:
        # Of many kinds, a plain Exception among them; all mean that there is no cluster.
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no Ray cluster at {address or 'this machine'!r}: {line} (valid: auto, HOST:PORT)") from error
    return True


def _refuse_what_no_node_has(ray: Any, wanted: dict[str, float]) -> None:
    """A run that fits on no node would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        asked = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
        has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes) or "no node"
        raise InputError(f"a run asks for {asked}, which no node of the cluster has (there: {has})")


def _events(
    ray: Any, tasks: Sequence[Task], gpus: float, cpus: float, force: bool
) -> Generator[tuple[Task, Outcome | None], None, None]:
    from ray.exceptions import RayError

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_on_a_node)
    waiting = {remote.remote(str(Path.cwd()), task, force, cpus): task for task in tasks}
    unseen = {task.out_dir: task for task in tasks}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=POLL)
            for task in [task for task in unseen.values() if (task.folder / PARTIAL.format(task.name)).exists()]:
                del unseen[task.out_dir]
                yield task, None
            for reference in ready:
                task = waiting.pop(reference)
                unseen.pop(task.out_dir, None)
                try:
                    yield task, ray.get(reference)
                except RayError as error:
                    line = str(error).strip().splitlines()[0]
                    yield task, Outcome(task.name, "failed", 0.0, f"its worker or node was lost: {line}")
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _on_a_node(here: str, task: Task, force: bool, cpus: float) -> Outcome:
    """One run, on whichever node this is; `here` is the folder that relative paths are relative to."""
    try:
        os.chdir(here)
    except OSError as error:
        return Outcome(task.name, "failed", 0.0, f"{here} is not on this node: {error.strerror} (share it with all)")
    os.environ.update(dict.fromkeys(THREADS, str(max(1, int(cpus)))))
    return run_task(task, force)
