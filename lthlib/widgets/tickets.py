"""TicketExplorer: how far can this network be pruned, where, and does the ticket train?

A dense network is pruned at any density, evaluated on the spot, and shown layer by layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

import ipywidgets as controls
import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase
from torch import Tensor

from lthlib.basis import valid_rules
from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.evidence.measure import input_share
from lthlib.evidence.style import BLUE, GREY, ORANGE, RED, looks
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import grasp_scores, magnitude_scores, random_scores, snip_scores
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator
from lthlib.ticket import State, Ticket, bases_for, forward_of
from lthlib.training.loop import Trained
from lthlib.training.parallel import on_cores, side_by_side
from lthlib.training.recipe import Recipe
from lthlib.widgets import loaded
from lthlib.widgets.background import Background, Cancelled, train_watched
from lthlib.widgets.explorer import Explorer, Row, density_slider, dropdown, labelled, one_line
from lthlib.widgets.loaded import RULES, Loaded, Worked, fitting, initial
from lthlib.widgets.scene import (
    SIGNED,
    Facts,
    Move,
    coarse,
    filters,
    kernels_beside,
    log_percent,
    picture,
    scale_about_zero,
)

SIZE = (10.8, 3.7)
OF_RUN = "tickets of the run"
SHARE = 1_250  # images that are evaluated at a time: fewer cost more to hand over than another core saves
LIVE = np.geomspace(0.005, 1, 12)  # densities of the curve without training


@dataclass(frozen=True)
class Result:
    """A ticket that was trained from the explorer: its place in the settings, density, and validation accuracy."""

    place: tuple[int, str, str]
    density: float
    accuracy: float


@dataclass(frozen=True)
class TicketFacts(Facts):
    """One pruned network: accuracy in percent on validation images without any training, densities, pictures.

    `curve` (densities, accuracies) is live pruning at other densities, `measured` the table's means (density,
    accuracy, seeds) by arm, `nearest` the row of this seed nearest in density; `mask`, `dense`, `effective` are images.
    """

    density: float
    accuracy: float | None
    curve: tuple[np.ndarray, np.ndarray]
    measured: dict[str, np.ndarray]
    nearest: tuple[float, float] | None
    layers: dict[str, float]
    layer: str
    mask: np.ndarray
    dense: np.ndarray
    effective: np.ndarray
    results: tuple[tuple[float, float], ...]
    label: str


Scores = Callable[[Trained, Ticket, Ticket, Loaded], State]


FINDERS: dict[str, Scores] = {
    "trained magnitude": lambda run, start, end, source: magnitude_scores(end),
    "initial magnitude": lambda run, start, end, source: magnitude_scores(start),
    "snip": lambda run, start, end, source: snip_scores(start, *pruning_data(start, source.dataset)),
    "grasp": lambda run, start, end, source: grasp_scores(start, *pruning_data(start, source.dataset)),
    "random": lambda run, start, end, source: random_scores(start, generator(run.seed, "explorer", "random")),
}


@dataclass
class Bench(Worked):
    """Loaded networks with what their settings share: bases, scores, normalised images."""

    results: tuple[Result, ...] = ()
    cores: int = field(default_factory=torch.get_num_threads)

    @property
    def rules(self) -> list[str]:
        """The bases that fit these networks, and those of the table."""
        table = self.source.table
        named = table["basis"].dropna().astype(str).unique() if table is not None and "basis" in table else []
        known = [rule for rule in dict.fromkeys([*RULES, *named]) if rule in valid_rules()]
        return self.once("rules", lambda: fitting(known, lambda rule: self.seen(self.source.seeds[0], rule)))

    def _has(self, column: str) -> bool:
        return self.source.table is not None and column in self.source.table.columns

    @property
    def finders(self) -> list[str]:
        """What can find a mask here."""
        return [*FINDERS, *([OF_RUN] if self.source.pruned else [])]

    def seen(self, seed: int, basis: str) -> tuple[Ticket, Ticket]:
        """Initial and trained dense ticket of a replicate in a basis (fitted ones are fitted to the trained one)."""

        def work() -> tuple[Ticket, Ticket]:
            run = self.source.run(seed)
            chosen = bases_for(run.ticket, basis, seed, run.ticket.weights())
            return initial(run).in_bases(chosen), run.ticket.in_bases(chosen)

        return self.once(("seen", seed, basis), work)

    def masks(self, seed: int, basis: str, finder: str, density: float) -> State:
        """The masks at a density: the highest scores over all layers, exactly round(density x prunable) of them."""
        if finder not in FINDERS:
            raise unknown("finder", finder, self.finders)
        start, end = self.seen(seed, basis)
        key = ("scores", seed, basis, finder)
        scores = self.once(key, lambda: FINDERS[finder](self.source.run(seed), start, end, self.source))
        return keep_top(scores, max(1, round(density * end.prunable)))

    def ticket(self, seed: int, basis: str, finder: str, density: float) -> tuple[Ticket, Ticket]:
        """The pruned network with its trained values, and the ticket that would be trained (rewound values)."""
        if finder == OF_RUN:
            near = min(self.source.pruned, key=lambda ticket: abs(math.log(ticket.density / density)))
            run = self.source.run(seed)
            canonical = all(basis.is_identity for basis in near.bases.values())
            end = run.ticket if canonical else run.ticket.in_bases(near.bases)
            return end.with_masks(dict(near.masks)), near
        start, end = self.seen(seed, basis)
        masks = self.masks(seed, basis, finder, density)
        return end.with_masks(masks), start.with_masks(masks)

    def accuracy(self, ticket: Ticket) -> float:
        """Percent of the validation images that a network classifies as labelled, on the CPU."""
        dataset = self.source.dataset
        images = self.once("images", lambda: dataset.normalised("validation"))
        labels, coefficients = dataset.validation.labels, ticket.effective_coefficients()

        @torch.inference_mode()
        def right(x: Tensor, y: Tensor, stop: Event | None = None) -> int:
            return int((forward_of(ticket)(coefficients, x).argmax(1) == y).sum())

        parts = list(zip(images.split(SHARE), labels.split(SHARE), strict=True))
        if len(parts) == 1 or self.cores == 1:
            return 100 * sum(right(*part) for part in parts) / len(labels)
        with on_cores(self.cores):
            return 100 * sum(side_by_side([partial(right, *part) for part in parts])) / len(labels)

    def curve(self, seed: int, basis: str, finder: str) -> tuple[np.ndarray, np.ndarray]:
        """Validation accuracy of live pruning at some densities."""

        def work() -> tuple[np.ndarray, np.ndarray]:
            tickets = [self.ticket(seed, basis, finder, density)[0] for density in LIVE]
            if finder == OF_RUN:
                tickets = [self.ticket(seed, basis, finder, pruned.density)[0] for pruned in self.source.pruned]
            at = np.array([ticket.density for ticket in tickets])
            return at, np.array([self.accuracy(ticket) for ticket in tickets])

        return self.once(("curve", seed, basis, finder), work)

    def measured(self, basis: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
        """The table's rows for a basis (arm, seed, density, accuracy, on validation data if known); means by arm."""

        def work() -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
            table = self.source.table
            if table is None or "density" not in table:
                return pd.DataFrame(columns=["arm", "seed", "density", "accuracy", "round"]), {}
            rows = table[table["basis"].isin([basis])] if self._has("basis") else table
            value = "validation_accuracy" if self._has("validation_accuracy") else "accuracy"
            rows = rows.assign(accuracy=rows[value], arm=rows["arm"] if self._has("arm") else "measured")
            rows = rows.assign(round=rows["round"] if self._has("round") else rows["density"].round(6))
            rows = rows.dropna(subset=["density", "accuracy"])
            means = rows.groupby(["arm", "round"], sort=False)[["density", "accuracy"]].mean().sort_values("density")
            return rows, {str(arm): means.loc[[arm]].to_numpy(float) for arm in rows["arm"].unique()}

        return self.once(("measured", basis), work)


def ticket_facts(
    bench: Bench, *, density: float, basis: str, finder: str, seed: int, layer: str, live: bool = True
) -> TicketFacts:
    """Everything the explorer shows at one setting; `live` evaluates the pruned network (without training it).

    Raises InputError for names and seeds that are not there, and a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise InputError(f"density {density} is not in (0, 1]")
    if layer not in bench.source.layers:
        raise unknown("layer", layer, bench.source.layers)
    pruned, _ = bench.ticket(seed, basis, finder, density)
    accuracy = bench.accuracy(pruned) if live else None
    rows, means = bench.measured(basis)
    place = (seed, basis, finder)
    results = tuple((result.density, result.accuracy) for result in bench.results if result.place == place)
    nearest = _nearest(rows, seed, pruned.density)
    parts = [
        f"density {100 * pruned.density:.3g} % (sparsity {100 * (1 - pruned.density):.4g} %)",
        f"{pruned.kept:,} of {pruned.prunable:,} weights",
        f"{layer}: {100 * pruned.layer_densities()[layer]:.3g} %",
    ]
    if accuracy is not None:
        parts.append(f"pruned live, not trained: {accuracy:.1f} % of validation images")
    if nearest is not None:
        parts.append(f"measured nearest, ticket of {100 * nearest[0]:.3g} %, trained: {nearest[1]:.1f} %")
    if results:
        parts.append(f"trained here at {100 * results[-1][0]:.3g} %: {results[-1][1]:.1f} %")
    weights = pruned.weights()[layer].numpy()
    dense = bench.seen(seed, "canonical")[1].weights()[layer].numpy()
    shape = tuple(pruned.architecture.input_shape)
    return TicketFacts(
        readout="; ".join(parts),
        background=layer,
        held=(seed, basis, finder, live, len(results)),
        density=pruned.density,
        accuracy=accuracy,
        curve=bench.curve(seed, basis, finder) if live else (np.zeros(0), np.zeros(0)),
        measured=means,
        nearest=nearest,
        layers=pruned.layer_densities(),
        layer=layer,
        mask=mask_picture(pruned, layer),
        dense=filters(dense, shape),
        effective=filters(weights, shape),
        results=results,
        label=bench.source.dataset.label,
    )


def _nearest(rows: pd.DataFrame, seed: int, density: float) -> tuple[float, float] | None:
    tickets = rows[(rows["seed"] == seed) & (rows["arm"].isin(["ticket", "measured"]))] if len(rows) else rows
    if tickets.empty:
        return None
    place = np.abs(np.log(tickets["density"].to_numpy(float) / density)).argmin()
    return float(tickets["density"].iloc[place]), float(tickets["accuracy"].iloc[place])


def mask_picture(ticket: Ticket, layer: str) -> np.ndarray:
    """The share kept, in [0, 1], as an image.

    First layer over an image: by input coordinate, as in `tables.input_share`; else the mask itself, kernels side by
    side, coarse where it is large.
    """
    mask = ticket.masks[layer]
    first = next(iter(ticket.masks)) == layer
    if first and mask.dim() == 2 and mask.shape[1] == math.prod(ticket.architecture.input_shape):
        return input_share([ticket])
    return coarse(kernels_beside(mask.float().numpy()))


def draw_ticket(figure: FigureBase, facts: TicketFacts) -> Sequence[Move]:
    """Accuracy against density, density of each layer, mask, dense and effective filters."""
    axes = figure.add_axes((0.055, 0.17, 0.275, 0.66))
    log_percent(axes, (1, 0.1, 0.01))
    axes.set(xlim=(1.15, 0.004), ylim=(0, 103), xlabel="density, % (log scale)", ylabel="validation accuracy, %")
    axes.set_title(f"Accuracy, {facts.label}")
    (mark,) = axes.plot([0.1, 0.1], [0, 103], color=RED, linewidth=1, zorder=5)
    (point,) = axes.plot([], [], marker="o", ms=9, mfc="none", mec=RED, mew=2, linestyle="", zorder=6)
    (near,) = axes.plot([], [], marker="s", ms=9, mfc="none", mec=BLUE, mew=2, linestyle="", zorder=6)

    names = list(facts.layers)
    bars = figure.add_axes((0.44, 0.17, 0.145, 0.66))
    shown = range(0, len(names), max(1, math.ceil(len(names) / 8)))
    bars.set_yticks(list(shown), [names[i].removesuffix(".weight") for i in shown], fontsize=8.5)
    bars.set_ylim(len(names) - 0.5, -0.5)
    log_percent(bars, (0.001, 0.01, 0.1, 1), falling=False)
    bars.set(xlim=(0.0008, 1.3), xlabel="density, % (log)")
    bars.axhspan(names.index(facts.layer) - 0.4, names.index(facts.layer) + 0.4, color=ORANGE, alpha=0.18)
    bars.set_title("By layer")
    (dots,) = bars.plot(np.ones(len(names)), range(len(names)), "o", color=BLUE, zorder=5)

    top = max(float(facts.mask.max()), 1e-9)
    mask = picture(figure, (0.605, 0.1, 0.12, 0.72), "kept (black: most)", facts.mask, vmin=0, vmax=top)
    dense = picture(figure, (0.74, 0.1, 0.12, 0.72), "dense weights", facts.dense, cmap=SIGNED)
    effective = picture(figure, (0.875, 0.1, 0.12, 0.72), "effective weights", facts.effective, cmap=SIGNED)
    curves: list[Artist] = []

    def hold(now: TicketFacts) -> Sequence[Artist]:
        while curves:
            curves.pop().remove()
        look = looks([*now.measured])
        for arm, points in now.measured.items():
            colour, marker, line = look[arm]
            curves.extend(axes.plot(*points.T, color=colour, marker=marker, linestyle=line, ms=4, label=arm))
        if len(now.curve[0]):
            curves.extend(axes.plot(*now.curve, color=GREY, linestyle="--", marker=".", label="pruned live, untrained"))
        for at, accuracy in now.results:
            curves.extend(axes.plot(at, accuracy, marker="*", ms=13, color=ORANGE, linestyle=""))
        if axes.get_legend_handles_labels()[1]:
            curves.append(axes.legend(loc="lower left", fontsize=8))
        dense.set_data(now.dense)
        scale_about_zero(dense, now.dense)
        return (*curves, dense)

    def move(now: TicketFacts) -> Sequence[Artist]:
        mark.set_xdata([now.density, now.density])
        point.set_data(*(([], []) if now.accuracy is None else ([now.density], [now.accuracy])))
        near.set_data(*(([now.nearest[0]], [now.nearest[1]]) if now.nearest else ([], [])))
        dots.set_xdata(np.maximum(list(now.layers.values()), 0.00085))
        mask.set_data(now.mask)
        mask.set_clim(0, max(float(now.mask.max()), 1e-9))
        effective.set_data(now.effective)
        scale_about_zero(effective, now.dense)
        return (mark, point, near, dots, mask, effective)

    return (hold, move)


class TicketExplorer(Explorer):
    """A dense network under a mask of any density: accuracy, density of each layer, mask and effective filters.

    `dense`: what `magnitude.train_dense` returned, with its `dataset` and `recipe`; `table`: measured rows, drawn as
    curves; `pruned`: tickets of the first replicate. With nothing given, small networks are trained first.
    'Prune live' masks the trained network and evaluates it on at most 5,000 validation images without training.
    """

    def __init__(
        self,
        dense: Sequence[Trained] | None = None,
        dataset: Dataset | None = None,
        recipe: Recipe | None = None,
        table: pd.DataFrame | None = None,
        pruned: Sequence[Ticket] = (),
        source: Loaded | None = None,
    ) -> None:
        self.bench = Bench(source or loaded.loaded(dense, dataset, recipe, table, pruned))
        self.background = Background()
        rows = {
            "density": density_slider(),
            # The bases that fit take a while to try.
            "basis": Row("canonical", lambda: dropdown("basis", self.bench.rules).make()),
            "finder": dropdown("finder", self.bench.finders),
            "seed": dropdown("seed", self.bench.source.seeds),
            "layer": dropdown("layer", self.bench.source.layers),
            "live": Row(True, lambda: controls.Checkbox(value=True, description="Prune live", indent=True)),
        }
        variants = ({"density": density} for density in (0.5, 0.1, 0.02))
        super().__init__("Ticket explorer", rows, partial(ticket_facts, self.bench), draw_ticket, SIZE, *variants)

    @classmethod
    def of_run(cls, folder: Path | str, data_dir: Path | str = "data") -> "TicketExplorer":
        """The explorer of a finished run's folder, results/<profile>/<notebook>; see `loaded.of_run`."""
        return cls(source=loaded.of_run(folder, data_dir))

    def extras(self) -> list[controls.Widget]:
        """Train, its progress, and Cancel."""
        self.train_button = controls.Button(description="Train this ticket", button_style="primary", icon="play")
        self.cancel_button = controls.Button(description="Cancel", icon="stop", disabled=True)
        self.progress = controls.IntProgress(value=0, min=0, max=1, **labelled("training"))
        self.state = controls.HTML("")
        self.train_button.on_click(lambda _: self.train())
        self.cancel_button.on_click(lambda _: self.cancel())
        return [controls.HBox([self.train_button, self.cancel_button, self.progress, self.state])]

    def train(self) -> None:
        """Trains the ticket of the present settings from its rewound values, in the background."""
        seed, basis, finder = (self.settings[name] for name in ("seed", "basis", "finder"))
        place = (seed, basis, finder)
        try:
            # What is trained are rewound values under the mask.
            ticket = replace(self.bench.ticket(*place, self.settings["density"])[1], off="zero")
        except Exception as error:
            self.tell(one_line(error))
            return
        source = self.bench.source

        def work(stop: Event) -> Result:
            run = train_watched(ticket, source.recipe, source.dataset, seed, self._report, stop)
            return Result(place, ticket.density, self.bench.accuracy(run.ticket))

        if self.background.start(work, self._ended):
            self.train_button.disabled, self.cancel_button.disabled = True, False
            self.state.value = f"training a ticket of density {100 * ticket.density:.3g} %"
            self.tell("")

    def cancel(self) -> None:
        """Ends the training that is under way; nothing of it is kept."""
        self.background.cancel()

    def close(self) -> None:
        """Cancels a training and ends the widget."""
        self.background.cancel()
        super().close()

    def _report(self, done: int, total: int) -> None:
        self.progress.max, self.progress.value = total, done

    def _ended(self, result: object, error: BaseException | None) -> None:
        # The picture first: who waits for the word finds the point.
        if isinstance(result, Result):
            self.bench.results = (*self.bench.results, result)
            if self._box is not None:
                self.redraw()
            self.state.value = f"trained: {result.accuracy:.1f} % at density {100 * result.density:.3g} %"
        else:
            self.state.value = "cancelled" if isinstance(error, Cancelled) else "failed"
            if error is not None and not isinstance(error, Cancelled):
                self.tell(one_line(error))
            self.progress.value = 0
        self.train_button.disabled, self.cancel_button.disabled = False, True
