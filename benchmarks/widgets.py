"""From a control's event to the finished picture in the kernel, for every explorer: median and 95th percentile.

An event is a new value of the control as the browser sends it; the time ends when picture and read-out are set, which
is when they go to the browser. The pause that gathers events (20 ms) and the browser's own drawing are not in it.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reporting import Row, parser, report

from lthlib import data
from lthlib.finders.imp import train_dense
from lthlib.models import architecture as models
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.widgets import (
    BasisExplorer,
    ClaimsBoard,
    ElasticExplorer,
    SketchExplorer,
    SubsetSumExplorer,
    TicketExplorer,
    UniversalExplorer,
    loaded,
)
from lthlib.widgets.explorer import Explorer

# Each explorer with the control that is moved and the values that it takes in turn.
EVENTS: dict[str, tuple[Callable[[], Explorer], str, Sequence[Any]]] = {
    "tickets, density": (TicketExplorer, "density", [10 ** (-0.05 * step) for step in range(1, 41)]),
    "sketches, density": (SketchExplorer, "density", [0.05 + 0.02 * step for step in range(40)]),
    "sketches, tau": (SketchExplorer, "tau", [0.1 * step for step in range(30)]),
    "bases, turn": (BasisExplorer, "turn", [0.05 * step for step in range(20)]),
    "elastic, density": (ElasticExplorer, "density", [10 ** (-0.05 * step) for step in range(1, 31)]),
    "elastic, target": (
        ElasticExplorer,
        "target",
        [f"resnet-{depth}-w8" for depth in (14, 20, 26, 32, 44, 56)] * 4,
    ),
    "subset sums, n": (SubsetSumExplorer, "n", list(range(2, 21))),
    "subset sums, target": (SubsetSumExplorer, "target", [-1 + 0.05 * step for step in range(40)]),
    "universal, knots": (UniversalExplorer, "knots", list(range(2, 21))),
    "claims, verdict": (ClaimsBoard, "verdict", ["supported", "not supported", "inconclusive", "all"] * 6),
}


def event_times(explorer: Explorer, control: str, values: Sequence[Any]) -> list[float]:
    """Milliseconds from each event to the finished redraw; one more event before warms compiled code up."""
    assert explorer.box is not None
    widget = explorer.controls[control]
    times = []
    for value in [values[-1], *values]:
        done = explorer.redraws
        start = time.perf_counter()
        widget.value = value
        if explorer.redraws > done:
            times.append(1000 * (time.perf_counter() - start))
        if explorer.problem.value:
            raise RuntimeError(explorer.problem.value)
    explorer.close()
    return times[1:]


def mnist(data_dir: Path, epochs: float) -> TicketExplorer:
    """LeNet-300-100 on MNIST with its 5,000 validation images; trained for `epochs`, which changes no time."""
    images = data.load("mnist", data_dir, download=False)
    net = models.architecture("lenet-300-100", images.input_shape, images.classes)
    recipe = Recipe(epochs=epochs, batch_size=128, evaluations=1)
    dense = train_dense(initial_tickets(net, [0]), recipe, images)
    return TicketExplorer(dense, images, recipe)


def rows_of(name: str, times: Sequence[float]) -> list[Row]:
    """Median and 95th percentile with their goals."""
    worst = statistics.quantiles(times, n=20)[-1]
    return [
        Row(f"{name}: median of {len(times)}", statistics.median(times), "ms", goal="<= 50"),
        Row(f"{name}: 95th percentile", worst, "ms", goal="<= 100"),
    ]


def main() -> None:
    """Prints the times of all explorers; MNIST where --data-dir holds it."""
    arguments: argparse.ArgumentParser = parser(__doc__ or "")
    arguments.add_argument("--data-dir", type=Path, help="where MNIST lies; without it that row is left out")
    arguments.add_argument("--tiny", action="store_true", help="a few events each, to see that it runs")
    chosen = arguments.parse_args()
    rows = []
    for name, (make, control, values) in EVENTS.items():
        rows += rows_of(name, event_times(make(), control, values[:4] if chosen.tiny else values))
    if chosen.data_dir:
        explorer = mnist(chosen.data_dir, 0.05 if chosen.tiny else 1.0)
        values = EVENTS["tickets, density"][2]
        rows += rows_of("Prune live, 5,000 MNIST images", event_times(explorer, "density", values))
    digits = loaded.example()
    own = TicketExplorer(source=replace(digits, dense=digits.dense[:1]))
    rows += rows_of("tickets, basis (first time)", event_times(own, "basis", ["dct", "random", "haar", "svd"]))
    report([replace(row, goal=None) if "first time" in row.name else row for row in rows], chosen.json)


if __name__ == "__main__":
    main()
