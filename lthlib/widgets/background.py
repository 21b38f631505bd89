"""One training in a thread of its own, with progress and a cancel that leaves nothing behind."""

import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread

import torch

from lthlib.data import Dataset
from lthlib.ticket import State, Ticket
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

BETWEEN = 0.15  # seconds between two reports of progress


class Cancelled(Exception):
    """Raised inside a training that its owner no longer wants."""


class Watch:
    """Masks that never change: `train` asks after every step whether they are due, which tells how far it is."""

    reads_gradients = False

    def __init__(self, progress: Callable[[int, int], None], stop: Event) -> None:
        self.progress, self.stop = progress, stop
        self._told = 0.0

    def due(self, done: int, total: int) -> bool:
        """False always; raises Cancelled once `stop` is set."""
        if self.stop.is_set():
            raise Cancelled
        now = time.monotonic()
        if now - self._told > BETWEEN or done == total:
            self._told = now
            self.progress(done, total)
        return False

    def masks(
        self, masks: State, coefficients: State, gradients: State | None, done: int, total: int, seed: int
    ) -> State:
        """The masks as they are."""
        return masks

    def key(self) -> object:
        """Nothing that fixes a result."""
        return "watch"


def train_watched(
    ticket: Ticket, recipe: Recipe, dataset: Dataset, seed: int, progress: Callable[[int, int], None], stop: Event
) -> Trained:
    """`train` for one ticket on the CPU, bit for bit the same, telling (steps done, all steps) as it goes.

    Raises Cancelled once `stop` is set.
    """
    (trained,) = train([replace(ticket, seed=seed)], recipe, dataset, mask_updates=Watch(progress, stop))
    return trained


class Background:
    """At most one job at a time in a daemon thread; `cancel` waits until it is over."""

    def __init__(self) -> None:
        self._stop = Event()
        self._thread: Thread | None = None

    @property
    def running(self) -> bool:
        """Whether a job is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[Event], object], ended: Callable[[object, BaseException | None], None]) -> bool:
        """Runs `work(stop)`, then `ended(value, None)` or `ended(None, error)`; False where a job is under way."""
        if self.running:
            return False
        stop, threads = Event(), torch.get_num_threads()
        self._stop = stop

        def run() -> None:
            # A new thread would take over the one core of a redraw that is under way.
            torch.set_num_threads(threads)
            value: object = None
            error: BaseException | None = None
            try:
                value = work(stop)
            except BaseException as failure:
                error = failure
            ended(value, error)

        self._thread = Thread(target=run, name="lth-explorer", daemon=True)
        self._thread.start()
        return True

    def cancel(self, wait: float = 30.0) -> None:
        """Asks the job to stop and waits for its thread's end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(wait)
