"""What the ticket explorer shows: a dense network pruned at any density, evaluated on the spot, layer by layer."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase
from torch import Tensor

from lthlib.basis import valid_rules
from lthlib.errors import InputError, unknown
from lthlib.evidence.measure import input_share
from lthlib.evidence.style import BLUE, GREY, ORANGE, RED, looks
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import grasp_scores, magnitude_scores, random_scores, snip_scores
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator
from lthlib.ticket import State, Ticket, bases_for, forward_of
from lthlib.training.loop import Trained
from lthlib.widgets.loaded import Loaded, initial
from lthlib.widgets.scene import Move, coarse, log_percent, picture_axes, tiles

SIZE = (10.8, 3.7)
FOUND = "tickets of the run"
RULES = ("canonical", "dct@input", "haar@input", "dct", "haar", "hadamard", "random", "svd")
LIVE = np.geomspace(0.005, 1, 12)  # densities of the curve without training
UNITS = 12  # filters shown


@dataclass(frozen=True)
class Result:
    """A ticket that was trained from the explorer: its place in the settings, density, and validation accuracy."""

    place: tuple[int, str, str]
    density: float
    accuracy: float


@dataclass(frozen=True)
class TicketFacts:
    """One pruned network: accuracy in percent on validation images without any training, densities, pictures.

    `curve` (densities, accuracies) is live pruning at other densities, `measured` the table's means (density,
    accuracy, seeds) by arm, `nearest` the row of this seed nearest in density; `mask`, `dense`, `effective` are images.
    """

    readout: str
    background: Hashable
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


def _snip(run: Trained, start: Ticket, _: Ticket, source: Loaded) -> State:
    return snip_scores(start, *pruning_data(start, source.dataset))


def _grasp(run: Trained, start: Ticket, _: Ticket, source: Loaded) -> State:
    return grasp_scores(start, *pruning_data(start, source.dataset))


FINDERS: dict[str, Scores] = {
    "trained magnitude": lambda run, start, end, source: magnitude_scores(end),
    "initial magnitude": lambda run, start, end, source: magnitude_scores(start),
    "snip": _snip,
    "grasp": _grasp,
    "random": lambda run, start, end, source: random_scores(start, generator(run.seed, "explorer", "random")),
}


@dataclass
class Bench:
    """Loaded networks with what their settings share, computed once: bases, scores, normalised images."""

    source: Loaded
    results: tuple[Result, ...] = ()
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def _once(self, key: Hashable, work: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = work()
        return self._kept[key]

    @property
    def rules(self) -> list[str]:
        """The bases that fit these networks, and those of the table."""
        return self._once("rules", self._rules)

    def _rules(self) -> list[str]:
        table = self.source.table
        named = list(table["basis"].dropna().unique()) if table is not None and "basis" in table else []
        fit = []
        for rule in dict.fromkeys([*RULES, *(str(one) for one in named)]):
            try:
                if rule in valid_rules():
                    self.seen(self.source.seeds[0], rule)
                    fit.append(rule)
            except InputError:  # a basis that needs an image, or even sizes, where there are none
                continue
        return fit

    def _has(self, column: str) -> bool:
        return self.source.table is not None and column in self.source.table.columns

    @property
    def finders(self) -> list[str]:
        """What can find a mask here."""
        return [*FINDERS, *([FOUND] if self.source.found else [])]

    @property
    def layers(self) -> list[str]:
        """The prunable tensors."""
        return list(self.source.dense[0].ticket.masks)

    def seen(self, seed: int, basis: str) -> tuple[Ticket, Ticket]:
        """Initial and trained dense ticket of a replicate in a basis (fitted ones are fitted to the trained one)."""

        def work() -> tuple[Ticket, Ticket]:
            run = self.source.run(seed)
            chosen = bases_for(run.ticket, basis, seed, run.ticket.weights())
            return initial(run).in_bases(chosen), run.ticket.in_bases(chosen)

        return self._once(("seen", seed, basis), work)

    def masks(self, seed: int, basis: str, finder: str, density: float) -> State:
        """The masks at a density: the highest scores over all layers, exactly round(density x prunable) of them."""
        if finder not in FINDERS:
            raise unknown("finder", finder, self.finders)
        start, end = self.seen(seed, basis)
        key = ("scores", seed, basis, finder)
        scores = self._once(key, lambda: FINDERS[finder](self.source.run(seed), start, end, self.source))
        return keep_top(scores, max(1, round(density * end.prunable)))

    def ticket(self, seed: int, basis: str, finder: str, density: float) -> tuple[Ticket, Ticket]:
        """The pruned network with its trained values, and the ticket that would be trained (rewound values)."""
        if finder == FOUND:
            near = min(self.source.found, key=lambda one: abs(math.log(one.density / density)))
            run = self.source.run(seed)
            end = run.ticket if _canonical(near) else run.ticket.in_bases(near.bases)
            return end.with_masks(dict(near.masks)), near
        start, end = self.seen(seed, basis)
        masks = self.masks(seed, basis, finder, density)
        return end.with_masks(masks), start.with_masks(masks)

    @torch.inference_mode()
    def accuracy(self, ticket: Ticket) -> float:
        """Percent of the validation images that a network classifies as labelled, on the CPU."""
        images, labels = self._once("images", self._images)
        logits = forward_of(ticket)(ticket.effective_coefficients(), images)
        return 100 * float((logits.argmax(1) == labels).float().mean())

    def _images(self) -> tuple[Tensor, Tensor]:
        dataset = self.source.dataset
        return dataset.normalised("validation"), dataset.validation.labels

    def curve(self, seed: int, basis: str, finder: str) -> tuple[np.ndarray, np.ndarray]:
        """Validation accuracy of live pruning at some densities."""

        def work() -> tuple[np.ndarray, np.ndarray]:
            tickets = [self.ticket(seed, basis, finder, density)[0] for density in LIVE]
            if finder == FOUND:
                tickets = [self.ticket(seed, basis, finder, one.density)[0] for one in self.source.found]
            at = np.array([one.density for one in tickets])
            return at, np.array([self.accuracy(one) for one in tickets])

        return self._once(("curve", seed, basis, finder), work)

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
            return rows, _means(rows)

        return self._once(("measured", basis), work)

    def with_result(self, result: Result) -> None:
        """Adds a trained ticket to what is shown."""
        self.results = (*self.results, result)


def _canonical(ticket: Ticket) -> bool:
    return all(basis.is_identity for basis in ticket.bases.values())


def ticket_facts(
    bench: Bench, *, density: float, basis: str, finder: str, seed: int, layer: str, live: bool = True
) -> TicketFacts:
    """Everything the explorer shows at one setting; `live` evaluates the pruned network (without training it).

    Raises InputError for names and seeds that are not there, and a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise InputError(f"density {density} is not in (0, 1]")
    if layer not in bench.layers:
        raise unknown("layer", layer, bench.layers)
    pruned, _ = bench.ticket(seed, basis, finder, density)
    accuracy = bench.accuracy(pruned) if live else None
    rows, means = bench.measured(basis)
    place = (seed, basis, finder)
    results = tuple((one.density, one.accuracy) for one in bench.results if one.place == place)
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
        background=(seed, basis, finder, layer, live, len(results)),
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


def _means(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    found = {}
    for arm, part in rows.groupby("arm", sort=False):
        one = part.groupby("round").agg(density=("density", "mean"), accuracy=("accuracy", "mean"))
        found[str(arm)] = one.sort_values("density")[["density", "accuracy"]].to_numpy(float)
    return found


def _nearest(rows: pd.DataFrame, seed: int, density: float) -> tuple[float, float] | None:
    own = rows[(rows["seed"] == seed) & (rows["arm"].isin(["ticket", "measured"]))] if len(rows) else rows
    if not len(own):
        return None
    place = np.abs(np.log(own["density"].to_numpy(float) / density)).argmin()
    return float(own["density"].iloc[place]), float(own["accuracy"].iloc[place])


def mask_picture(ticket: Ticket, layer: str) -> np.ndarray:
    """The share kept, in [0, 1], as an image.

    First layer over an image: by input coordinate, as in `tables.input_share`; else the mask itself, kernels side by
    side, coarse where it is large.
    """
    mask = ticket.masks[layer]
    first = next(iter(ticket.masks)) == layer
    if first and mask.dim() == 2 and mask.shape[1] == math.prod(ticket.architecture.input_shape):
        return input_share([ticket])
    values = mask.float().numpy()
    if mask.dim() == 4:
        out, into, height, width = values.shape
        values = values.transpose(0, 2, 1, 3).reshape(out * height, into * width)
    return coarse(values)


def filters(weight: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """The first weights of a layer as one image: units over the input image, kernels, or the whole matrix coarsely."""
    if weight.ndim == 4:
        return tiles(weight[:UNITS].mean(axis=1), 3)
    if weight.shape[1] == math.prod(input_shape):
        return tiles(weight[:UNITS].reshape(-1, *input_shape).mean(axis=1), 3)
    return coarse(weight)


def draw_ticket(figure: FigureBase, facts: TicketFacts) -> Move:
    """Accuracy against density, density of each layer, mask, dense and effective filters."""
    axes = figure.add_axes((0.055, 0.17, 0.275, 0.66))
    look = looks([*facts.measured])
    for arm, points in facts.measured.items():
        colour, marker, line = look[arm]
        axes.plot(points[:, 0], points[:, 1], color=colour, marker=marker, linestyle=line, ms=4, label=arm)
    if len(facts.curve[0]):
        axes.plot(*facts.curve, color=GREY, linestyle="--", marker=".", label="pruned live, untrained")
    for at, accuracy in facts.results:
        axes.plot(at, accuracy, marker="*", ms=13, color=ORANGE, linestyle="")
    log_percent(axes, (1, 0.1, 0.01))
    axes.set(xlim=(1.15, 0.004), ylim=(0, 103), xlabel="density, % (log scale)", ylabel="validation accuracy, %")
    axes.set_title(f"Accuracy, {facts.label}")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower left", fontsize=8)
    (mark,) = axes.plot([0.1, 0.1], [0, 103], color=RED, linewidth=1, zorder=5)
    (here,) = axes.plot([], [], marker="o", ms=9, mfc="none", mec=RED, mew=2, linestyle="", zorder=6)
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

    extent = float(np.nanmax(np.abs(facts.dense))) or 1.0
    scale: dict[str, Any] = {"cmap": "PuOr", "vmin": -extent, "vmax": extent, "interpolation": "nearest"}
    left = picture_axes(figure, (0.605, 0.1, 0.12, 0.72), "kept (black: most)")
    mask = left.imshow(facts.mask, cmap="gray_r", vmin=0, vmax=max(float(facts.mask.max()), 1e-9),
                       interpolation="nearest")  # fmt: skip
    middle = picture_axes(figure, (0.74, 0.1, 0.12, 0.72), "dense weights")
    middle.imshow(facts.dense, **scale)
    right = picture_axes(figure, (0.875, 0.1, 0.12, 0.72), "effective weights")
    effective = right.imshow(facts.effective, **scale)

    def move(now: TicketFacts) -> Sequence[Artist]:
        mark.set_xdata([now.density, now.density])
        here.set_data([now.density] if now.accuracy is not None else [], [] if now.accuracy is None else [now.accuracy])
        near.set_data(*(([now.nearest[0]], [now.nearest[1]]) if now.nearest else ([], [])))
        dots.set_xdata(np.maximum(list(now.layers.values()), 0.00085))
        mask.set_data(now.mask)
        mask.set_clim(0, max(float(now.mask.max()), 1e-9))
        effective.set_data(now.effective)
        return (mark, here, near, dots, mask, effective)

    return move


def rewound(bench: Bench, seed: int, basis: str, finder: str, density: float) -> Ticket:
    """The ticket that 'Train this ticket' trains: rewound values under the mask."""
    ticket = bench.ticket(seed, basis, finder, density)[1]
    return replace(ticket, off="zero")
