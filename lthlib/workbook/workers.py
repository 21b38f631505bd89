"""Worker processes that do one thing at a time each, and are replaced when they die.

`concurrent.futures` gives up all that waits when one of its processes is killed; a sweep of three days cannot.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

ATTEMPTS = 2  # a killed worker is often the machine's doing (memory), and one that kills twice the item's


@dataclass(frozen=True)
class Event(Generic[Value]):
    """What became of item `index`: begun (neither field), done (`value`), or given up (`died` says how)."""

    index: int
    value: Value | None = None
    died: str = ""


def in_workers(
    work: Callable[[Item], Value],
    items: Sequence[Item],
    environments: Sequence[Mapping[str, str]],
) -> Generator[Event[Value], None, None]:
    """Does `work` on each item, in as many processes as there are `environments`, and yields events as they come.

    Each process is a new Python with its environment's variables over this one's; work, items and values are pickled.
    An item whose worker dies gets one more. Workers leave Ctrl-C to this process and end with it; what still runs is
    killed when the iterator is closed.
    """
    waiting = deque(range(len(items)))
    attempts = [0] * len(items)
    workers = [_Worker(work, environment) for environment in environments[: len(items)]]
    try:
        while waiting or any(worker.busy is not None for worker in workers):
            for worker in workers:
                if worker.busy is None and waiting:
                    index = waiting.popleft()
                    attempts[index] += 1
                    worker.give(index, items[index])
                    yield Event(index)
            busy = {worker.connection: worker for worker in workers if worker.busy is not None}
            # A dead process closes its end, so that its connection is ready too.
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                index, value, died = worker.take()
                if not died:
                    yield Event(index, value)
                elif attempts[index] < ATTEMPTS:
                    waiting.appendleft(index)
                else:
                    yield Event(index, died=died)
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """One process, started when it first gets an item; `busy` is the index of the item it has."""

    def __init__(self, work: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
        self.work, self.environment = work, dict(environment)
        self.busy: int | None = None
        self.process: BaseProcess | None = None
        self.connection: Connection

    def give(self, index: int, item: object) -> None:
        self.busy = index
        for _ in range(2):
            if self.process is None:
                context = get_context("spawn")
                self.connection, theirs = context.Pipe()
                self.process = context.Process(target=_serve, args=(theirs, self.work, self.environment))
                self.process.start()
                # Only the worker holds its end now: its death closes it.
                theirs.close()
            try:
                self.connection.send(item)
                return
            except OSError:
                # It was killed while it had nothing to do.
                self.kill()

    def take(self) -> tuple[int, Any, str]:
        """The index it had, the value, and how it died where it did instead."""
        index, self.busy = self.busy, None
        assert index is not None and self.process is not None
        try:
            return index, self.connection.recv(), ""
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.kill()
            return index, None, f"its worker died{ending(code)}"

    def kill(self) -> None:
        """Ends the process at once, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process.close()
            self.connection.close()
            self.process = None


def ending(code: int | None) -> str:
    """How a process ended, to follow "it died": " of signal 9 (out of memory?)", " with exit code 1", or nothing."""
    if code is None:
        return ""
    if code < 0:
        return f" of signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return f" with exit code {code}"


def _serve(connection: Connection, work: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    # A runner killed outright cannot stop its workers; they, and with them their kernels, end by themselves.
    Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(work(item))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
