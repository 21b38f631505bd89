"""Replicates beside each other: one thread a share, each computing on one core.

Threads that work on shares of their own never wait for each other, as those inside one matrix product must at its
every end: on a busy machine that waiting costs tenfold. And one core a product means that no result depends on how
many cores there are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from threading import Event
from typing import TypeVar

import torch

Value = TypeVar("Value")


class StoppedError(RuntimeError):
    """Raised by a task that saw its stop event set, because another task failed or the user interrupted."""


def shares(count: int, workers: int, highest: int | None = None) -> list[range]:
    """`count` items in contiguous shares, sizes within one of each other.

    As many shares as workers; where they would be larger than `highest`, twice as many, and so on.
    """
    rounds = 1 if highest is None else max(1, math.ceil(count / (highest * workers)))
    parts = max(1, min(count, rounds * workers))
    bounds = [round(part * count / parts) for part in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(bounds)]


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Meanwhile torch computes on so many cores in this thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(tasks: Sequence[Callable[[Event], Value]]) -> Iterator[Value]:
    """Runs the tasks, as many at a time as torch may use threads, each on one core; yields their values in order.

    A task looks at its event now and then and raises `StoppedError` once it is set. The first failure (or Ctrl-C)
    stops the others and is raised, after the values before it.
    """
    if not tasks:
        return
    stop, threads = Event(), torch.get_num_threads()

    def on_one_core(task: Callable[[Event], Value]) -> Value:
        torch.set_num_threads(1)
        try:
            return task(stop)
        except BaseException:
            stop.set()
            raise

    try:
        with ThreadPoolExecutor(min(len(tasks), threads)) as pool:
            futures = [pool.submit(on_one_core, task) for task in tasks]
            try:
                for future in futures:
                    yield future.result()
            except StoppedError:
                raise next(_failures(futures)) from None
            finally:
                stop.set()
    finally:
        # The number of threads is a setting of the whole process as well as of each thread.
        torch.set_num_threads(threads)


def values_of(tasks: Sequence[Callable[[Event], Value]], device: torch.device) -> Iterator[Value]:
    """The tasks' values in order: from the CPU's cores side by side, from one other device in turn."""
    return side_by_side(tasks) if device.type == "cpu" else (task(Event()) for task in tasks)


def _failures(futures: Sequence[Future[Value]]) -> Iterator[BaseException]:
    """What failed by itself; waits for all."""
    errors = [future.exception() for future in futures]
    yield from (error for error in errors if error is not None and not isinstance(error, StoppedError))
