"""ElasticExplorer: a ticket of one depth laid over another, block by block, and the density that comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.figure import FigureBase

from lthlib.elastic import DROPS, FAMILIES, ORDERS, DepthMap, depth_map, kept_after, stages, to_text
from lthlib.errors import InputError, unknown
from lthlib.evidence.results import read_metrics
from lthlib.evidence.style import BLACK, BLUE, ORANGE, PALETTE
from lthlib.finders import find as saliency
from lthlib.models.architecture import architecture, prunable
from lthlib.models.initial import initial_state
from lthlib.ticket import Ticket, dense_ticket
from lthlib.widgets.explorer import Explorer, density_slider, dropdown, text_field
from lthlib.widgets.scene import Facts, Move

SIZE = (10.8, 3.8)
DEPTHS = ("resnet-8-w8", "resnet-14-w8", "resnet-20-w8", "resnet-26-w8", "resnet-32-w8", "resnet-44-w8", "resnet-56-w8")
INPUT, CLASSES = (3, 32, 32), 10
DENSITY = 10**-0.7  # a fifth, on the slider's grid
ALL = "all"


@dataclass(frozen=True)
class ElasticFacts(Facts):
    """One map: for each stage the source's units and the target's (ids of source units), and densities by stage."""

    names: tuple[str, ...]
    before: tuple[tuple[int, ...], ...]
    after: DepthMap
    source_density: tuple[float, ...]
    target_density: tuple[float, ...]
    total: tuple[float, float]
    longest: int


@lru_cache(maxsize=16)
def example_ticket(name: str, density: float) -> Ticket:
    """An untrained network under a random Erdos-Renyi-kernel mask: no winning ticket, but real counts."""
    return saliency.find(_untrained(name), density, "erk")


@cache
def _untrained(name: str) -> Ticket:
    net = architecture(name, INPUT, CLASSES)
    return dense_ticket(net, initial_state(net, 0))


def elastic_facts(
    ticket: Ticket,
    target: str,
    *,
    order: str = "append",
    chosen: str = ALL,
    dropped: str = "late",
    table: pd.DataFrame | None = None,
    longest: int = 0,
) -> ElasticFacts:
    """How `ticket` is carried to the architecture called `target`, by `elastic.depth_map`, and its predicted density.

    `chosen`: which units are copied, "all" or ids such as "1,2". `table`: rows with columns source, target, arm,
    accuracy (notebook 02's metrics), whose means are told where there are any. Raises InputError as `depth_map` does.
    """
    source = ticket.architecture
    goal = architecture(target, source.input_shape, source.classes)
    ids = None if chosen == ALL else _ids(chosen)
    depths = depth_map(source, goal, order, chosen=ids, which=dropped)
    kept, total = kept_after(ticket, goal, depths)
    parts = stages(source)
    units, names = tuple(tuple(range(len(stage.units))) for stage in parts), tuple(stage.name for stage in parts)
    carried = ([stage.units[unit] for unit in line] for stage, line in zip(parts, depths, strict=True))
    readout = (
        f"{source.name} to {target}: map {to_text(depths)}; density {100 * ticket.density:.3g} % becomes "
        f"{100 * kept / total:.3g} % ({kept:,} of {total:,} weights)"
    )
    return ElasticFacts(
        readout=readout + measured(table, source.name, target),
        background=(names, longest),
        held=(units, tuple(map(tuple, depths))),
        names=names,
        before=units,
        after=depths,
        source_density=tuple(_density(ticket, stage.units) for stage in parts),
        target_density=tuple(_density(ticket, prefixes) for prefixes in carried),
        total=(ticket.density, kept / total),
        longest=longest or max(*map(len, units), *map(len, depths)),
    )


def _ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"blocks {text!r} are no list of unit numbers (valid: all, or such as 1,2)")
    return [int(part) for part in parts]


def _density(ticket: Ticket, prefixes: Sequence[str]) -> float:
    """Density of units, each counted as often as it is listed."""
    kept = total = 0
    for prefix in prefixes:
        for name in prunable(ticket.architecture):
            if name.startswith(prefix):
                kept += int(ticket.masks[name].sum())
                total += ticket.masks[name].numel()
    return kept / total if total else float("nan")


def measured(table: pd.DataFrame | None, source: str, target: str) -> str:
    """Mean accuracies by arm of a table's rows for this pair; says so where there is a table without such rows."""
    if table is None:
        return ""
    for column in ("source", "target", "arm", "accuracy"):
        if column not in table.columns:
            raise unknown("column", column, map(str, table.columns))
    rows = table[(table["source"] == source) & (table["target"] == target)]
    if rows.empty:
        return "; nothing measured for this pair"
    arms = rows.groupby("arm", sort=False)["accuracy"].agg(["mean", "count"])
    return "; measured: " + ", ".join(
        f"{arm} {row['mean']:.1f} % (n = {row['count']:.0f})" for arm, row in arms.iterrows()
    )


def _colour(unit: int, again: bool) -> tuple[float, ...]:
    red, green, blue = to_rgb("#BBBBBB" if unit == 0 else PALETTE[(unit - 1) % (len(PALETTE) - 1)])
    share = 0.45 if again else 0.85
    return tuple(1 - share * (1 - value) for value in (red, green, blue))


def map_picture(facts: ElasticFacts) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    """The map as a picture: two rows a stage (source, target) and a blank one; a colour a source unit, copies paler."""
    sheet = np.ones((3 * len(facts.names) - 1, facts.longest, 3))
    labels = {}
    for stage, lines in enumerate(zip(facts.before, facts.after, strict=True)):
        for row, line in enumerate(lines):
            for place, unit in enumerate(line[: facts.longest]):
                sheet[3 * stage + row, place] = _colour(unit, unit in line[:place])
                labels[3 * stage + row, place] = str(unit)
    return sheet, labels


def draw_elastic(figure: FigureBase, facts: ElasticFacts) -> Sequence[Move]:
    """The map as coloured blocks, and the density of each stage before and after."""
    rows = 3 * len(facts.names) - 1
    axes = figure.add_axes((0.11, 0.15, 0.55, 0.71))
    # A hundred cells of one colour each: an image of so few pixels takes forty times as long to draw.
    across, down = (np.arange(count + 1) - 0.5 for count in (facts.longest, rows))
    blocks = axes.pcolormesh(across, down, np.ones((rows, facts.longest, 3)))
    axes.set(xlim=across[[0, -1]], ylim=down[[-1, 0]])
    names = [f"{name} {which}" for name in facts.names for which in ("source", "target")]
    axes.set_yticks([3 * (i // 2) + i % 2 for i in range(len(names))], names, fontsize=9)
    axes.set_xticks(range(facts.longest), [str(i) for i in range(facts.longest)])
    axes.set_xlabel("place in the stage")
    axes.set_title("Number and colour: the source's unit; pale: a copy. Unit 0 stays first.", fontsize=10)
    axes.set_xticks(across, minor=True)
    axes.set_yticks(down, minor=True)
    axes.grid(visible=False)
    texts = {
        (row, place): axes.text(place, row, "", ha="center", va="center", fontsize=10, color=BLACK, zorder=6)
        for row in range(rows)
        for place in range(facts.longest)
        if row % 3 != 2
    }
    # Lines between blocks, drawn over them.
    (gaps,) = axes.plot(
        np.column_stack([across, across, np.full(len(across), np.nan)]).ravel(),
        np.tile([-0.5, rows - 0.5, np.nan], len(across)),
        color="white", linewidth=3, zorder=5,
    )  # fmt: skip
    right = figure.add_axes((0.74, 0.17, 0.25, 0.66))
    places = np.arange(len(facts.names) + 1)
    right.set(ylim=(0, 105), ylabel="density, %", xlim=(-0.5, len(facts.names) + 0.5))
    right.set_xticks(places, [*facts.names, "all"], fontsize=8.5)
    right.set_title("Density")
    (source,) = right.plot(places - 0.1, np.zeros(len(places)), "o", color=BLUE, label="source")
    (target,) = right.plot(places + 0.1, np.zeros(len(places)), "D", color=ORANGE, label="target (predicted)")
    right.legend(loc="upper right", fontsize=8)

    def hold(now: ElasticFacts) -> Sequence[Artist]:
        sheet, labels = map_picture(now)
        blocks.set_array(sheet)
        for place, text in texts.items():
            text.set_text(labels.get(place, ""))
        return (blocks, gaps, *texts.values())

    def move(now: ElasticFacts) -> Sequence[Artist]:
        source.set_ydata(100 * np.array([*now.source_density, now.total[0]]))
        target.set_ydata(100 * np.array([*now.target_density, now.total[1]]))
        return (source, target)

    return (hold, move)


class ElasticExplorer(Explorer):
    """A ticket carried from one depth to another: the map as blocks, the predicted density, measured accuracy.

    `tickets`: pruned tickets of one family and width, any depths (with nothing given, untrained ResNets under a random
    mask of the slider's density); `targets`: names of architectures to carry them to; `table`: notebook 02's rows.
    """

    def __init__(
        self, tickets: Sequence[Ticket] = (), targets: Sequence[str] = DEPTHS, table: pd.DataFrame | None = None
    ) -> None:
        self.tickets = {ticket.architecture.name: ticket for ticket in tickets}
        self.sources = list(self.tickets) or list(DEPTHS)
        self.targets, self.table = list(targets), table
        like = next(iter(self.tickets.values()), None)
        shape, classes = (like.architecture.input_shape, like.architecture.classes) if like else (INPUT, CLASSES)
        every = [*self.sources, *self.targets]
        self.longest = max(len(stage.units) for name in every for stage in stages(architecture(name, shape, classes)))
        middle = self.targets[min(len(self.targets) - 1, len(self.targets) // 2 + 1)]
        rows = {
            "source": dropdown("source", self.sources, self.sources[len(self.sources) // 3]),
            "target": dropdown("target", self.targets, middle),
            "order": dropdown("order", ORDERS),
            "chosen": text_field("blocks to copy", ALL),
            "dropped": dropdown("dropped", DROPS),
        }
        if not self.tickets:
            rows["density"] = density_slider(0.01, DENSITY)
        variants: list[dict[str, str]] = [{}, {"order": "interpolate"}, {"target": self.targets[0]}]
        super().__init__("Elastic explorer", rows, self._facts, draw_elastic, SIZE, *variants)

    @classmethod
    def of_run(cls, folder: Path | str) -> "ElasticExplorer":
        """The explorer of a finished run of notebook 02: the tickets that it saved and what it measured of them.

        Raises InputError where the folder holds no pruned ticket of a network with stages, or no table.
        """
        saved = [Ticket.load(path) for path in sorted(Path(folder).glob("*.safetensors"))]
        staged = [ticket for ticket in saved if ticket.architecture.name.split("-")[0] in FAMILIES]
        pruned = [ticket for ticket in staged if ticket.kept < ticket.prunable]
        if not pruned:
            raise InputError(
                f"{str(folder)!r} holds no pruned ResNet, VGG or MLP (valid: a finished run of notebook 02)"
            )
        pruned.sort(key=lambda ticket: sum(len(stage.units) for stage in stages(ticket.architecture)))
        rows = read_metrics(folder)
        pairs = rows[rows["section"] == "matrix"]
        names = [ticket.architecture.name for ticket in pruned]
        return cls(pruned, names, pairs[pairs["round"] == pairs["round"].max()])

    def _facts(self, *, source: str, target: str, density: float = DENSITY, **settings: Any) -> ElasticFacts:
        if source not in self.sources:
            raise unknown("source", source, self.sources)
        ticket = self.tickets[source] if self.tickets else example_ticket(source, round(density, 6))
        return elastic_facts(ticket, target, table=self.table, longest=self.longest, **settings)
