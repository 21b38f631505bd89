"""BasisExplorer: turn a layer's weights from the canonical basis into another and watch their energy gather."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from lthlib.axes import given_axis
from lthlib.basis import Kronecker, energy_curve
from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.evidence.style import BLACK, BLUE, GREY, RED
from lthlib.masks.topk import keep_top
from lthlib.ticket import bases_for
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.widgets import loaded
from lthlib.widgets.explorer import Explorer, density_slider, dropdown, slider
from lthlib.widgets.loaded import RULES, Loaded, Worked, fitting, initial
from lthlib.widgets.scene import SIGNED, Facts, Move, coarse, filters, kernels_beside, picture, scale_about_zero

SIZE = (10.8, 3.6)
WEIGHTS = ("trained", "initial", "training delta")
POINTS = 80  # of an energy curve


# ---------------------------------------------------------- paths of orthonormal matrices, from the identity to a basis

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rotation:
    r"""A path from the identity to an orthonormal matrix of determinant 1, $B=Q\,\mathrm{diag}(R(\varphi_k))\,Q^\top$
    (real Schur form): $B(t)=Q\,\mathrm{diag}(R(t\varphi_k))\,Q^\top$, the shortest from $I$ to $B$.

    Planes (columns `first[k]`, `second[k]` of `q`, (n, n) float64) that turn by `angles[k]` radians.
    """

    q: Array
    first: Array
    second: Array
    angles: Array

    def at(self, t: float) -> Array:
        """The orthonormal matrix (n, n) at t: the identity at 0, the basis at 1."""
        cosine, sine = np.cos(t * self.angles)[:, None], np.sin(t * self.angles)[:, None]
        turned = self.q.T.copy()
        x, y = self.q.T[self.first], self.q.T[self.second]
        turned[self.first], turned[self.second] = cosine * x + sine * y, cosine * y - sine * x
        # torch's product, not numpy's: it keeps to the cores that torch is given.
        return (torch.from_numpy(self.q) @ torch.from_numpy(turned)).numpy()


def rotation(matrix: Array) -> Rotation:
    """The shortest path from the identity to an orthonormal matrix (n, n).

    A matrix of determinant -1 cannot be reached: its last row is taken with the other sign, which changes the sign of
    one coefficient and no mask. Raises InputError where the matrix is not orthonormal to 1e-9.
    """
    from scipy.linalg import schur

    matrix = np.array(matrix, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"a rotation is a square matrix, not one of shape {matrix.shape}")
    error = float(np.abs(matrix @ matrix.T - np.eye(len(matrix))).max())
    if not error < 1e-9:
        raise InputError(f"a rotation has orthonormal rows, but its B B^T is off the identity by {error:.1e}")
    if np.linalg.slogdet(matrix)[0] < 0:
        matrix[-1] *= -1
    blocks, q = schur(matrix, output="real")
    first, second, angles, reflected = [], [], [], []
    place = 0
    while place < len(matrix):
        if place + 1 < len(matrix) and abs(blocks[place + 1, place]) > 1e-10:
            first.append(place)
            second.append(place + 1)
            angles.append(np.arctan2(blocks[place, place + 1], blocks[place, place]))
            place += 2
        else:
            # Eigenvalues -1 come in pairs, and a pair is half a turn.
            if blocks[place, place] < 0:
                reflected.append(place)
            place += 1
    first += reflected[0::2]
    second += reflected[1::2]
    angles += [np.pi] * (len(reflected) // 2)
    return Rotation(q, np.array(first, int), np.array(second, int), np.array(angles, float))


def rotations(basis: Kronecker) -> list[Rotation | None]:
    """The path of each axis of a basis; None where the axis stays as it is."""
    return [None if axis is None else rotation(axis.matrix(torch.float64).numpy()) for axis in basis.axes]


def partway(basis: Kronecker, along: list[Rotation | None], t: float) -> Kronecker:
    """The basis at t of the way from canonical (0) to `basis` (1), `along` the paths of its axes."""
    axes = tuple(
        None if axis is None or way is None else given_axis(torch.from_numpy(way.at(t)), axis.span)
        for axis, way in zip(basis.axes, along, strict=True)
    )
    return Kronecker(f"{basis.name} at {t:g}", axes)


def largest(coefficients: Tensor, share: float) -> Tensor:
    """Coefficients with all but the round(share n) largest set to 0 (at least one stays); ties go to the lower index.

    Raises InputError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"a share of coefficients lies in (0, 1], not at {share}")
    kept = keep_top({"layer": coefficients.abs()}, max(1, round(share * coefficients.numel())))
    return coefficients * kept["layer"]


# ---------------------------------------------------------------------------------------------------- the explorer


@dataclass(frozen=True)
class BasisFacts(Facts):
    """One layer's energy curves: `canonical`, `now` (on the way) and `target` (in the basis) at `fractions`; pictures.

    `share` is the energy in the largest `density` of the coefficients now; both in [0, 1].
    """

    density: float
    fractions: np.ndarray
    canonical: np.ndarray
    now: np.ndarray
    target: np.ndarray
    share: float
    coefficients: np.ndarray
    weights: np.ndarray
    rebuilt: np.ndarray
    title: str


class Turns(Worked):
    """Loaded networks with the paths to their bases."""

    def rules(self) -> list[str]:
        """Bases of these networks that act axis by axis, so that they can be turned to."""
        return fitting(RULES[1:], lambda rule: self.chosen(self.source.seeds[0], rule, self.source.layers[0]))

    def weight(self, seed: int, kind: str, layer: str) -> Tensor:
        """One layer's weights, float64: trained, initial, or what training changed."""
        if kind not in WEIGHTS:
            raise unknown("kind of weights", kind, WEIGHTS)
        if layer not in self.source.layers:
            raise unknown("layer", layer, self.source.layers)
        run = self.source.run(seed)
        trained, start = (ticket.coefficients[layer].double() for ticket in (run.ticket, initial(run)))
        return {"trained": trained, "initial": start, "training delta": trained - start}[kind]

    def chosen(self, seed: int, rule: str, layer: str) -> Kronecker:
        """A layer's basis. Raises InputError for one that is no product over axes."""
        run = self.source.run(seed)
        basis = self.once((seed, rule), lambda: bases_for(run.ticket, rule, seed, run.ticket.weights()))[layer]
        if not isinstance(basis, Kronecker):
            raise InputError(f"basis {rule!r} is no product over axes, so that nothing turns into it by degrees")
        return basis

    def basis(self, seed: int, rule: str, layer: str) -> tuple[Kronecker, list[Rotation | None]]:
        """A layer's basis and the paths of its axes."""
        target = self.chosen(seed, rule, layer)
        return target, self.once((seed, rule, layer), lambda: rotations(target))


def curve_of(coefficients: Tensor) -> tuple[Array, Array]:
    """The energy curve at `POINTS` fractions, evenly spaced on a log scale."""
    fractions, energy = energy_curve([coefficients])
    chosen = np.unique(np.geomspace(1, len(energy), POINTS).round().astype(int)) - 1
    return fractions.numpy()[chosen], energy.numpy()[chosen]


def basis_facts(
    turns: Turns, *, basis: str, turn: float, layer: str, weights: str, density: float, seed: int
) -> BasisFacts:
    """Energy of one layer's coefficients `turn` (0 to 1) of the way from canonical to `basis`.

    `density` is the share of largest coefficients that is kept in the rebuilt weights. Raises InputError for a turn or
    density out of range and for unknown names.
    """
    if not 0 <= turn <= 1:
        raise InputError(f"turn {turn} is not between 0 (canonical) and 1 (the basis)")
    weight = turns.weight(seed, weights, layer)
    target, along = turns.basis(seed, basis, layer)
    half = partway(target, along, turn)
    coefficients = half.analyse(weight)
    rebuilt = half.synthesise(largest(coefficients, density))
    fractions, now = curve_of(coefficients)
    canonical, wanted = turns.once(
        ("curves", seed, basis, layer, weights), lambda: (curve_of(weight)[1], curve_of(target.analyse(weight))[1])
    )
    shares = [float(np.interp(density, fractions, curve)) for curve in (canonical, now, wanted)]
    readout = (
        f"{layer}, {weights}: the largest {100 * density:.3g} % of coefficients hold {100 * shares[1]:.1f} % of the "
        f"energy at {100 * turn:.0f} % of the way to {basis}; canonical {100 * shares[0]:.1f} %, "
        f"{basis} {100 * shares[2]:.1f} %"
        + (" (a basis fitted to the trained weights)" if basis.startswith("svd") else "")
    )
    shape = tuple(turns.source.dataset.input_shape)
    return BasisFacts(
        readout=readout,
        background=layer,
        held=(basis, weights, seed),
        density=density,
        fractions=fractions,
        canonical=canonical,
        now=now,
        target=wanted,
        share=shares[1],
        coefficients=coarse(kernels_beside(coefficients.abs().numpy()), 100),
        weights=filters(weight.numpy(), shape),
        rebuilt=filters(rebuilt.numpy(), shape),
        title=basis,
    )


def draw_basis(figure: FigureBase, facts: BasisFacts) -> Sequence[Move]:
    """Energy curves, magnitudes of the coefficients, weights, and weights rebuilt from the largest coefficients."""
    axes = figure.add_axes((0.06, 0.17, 0.33, 0.66))
    axes.set(xscale="log", xlim=(facts.fractions[0], 1), ylim=(0, 1.02), title="Energy compaction")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.minorticks_off()
    (canonical,) = axes.plot([], [], color=BLACK, linestyle="--", label="canonical")
    (target,) = axes.plot([], [], color=GREY, linestyle=":")
    axes.set(xlabel="largest coefficients, % of all (log)", ylabel="energy they hold, %")
    (curve,) = axes.plot([], [], color=BLUE, linewidth=2.2, label="on the way")
    (mark,) = axes.plot([], [], "o", mfc="none", mec=RED, mew=2, ms=9)
    magnitudes = picture(
        figure, (0.42, 0.08, 0.18, 0.74), "magnitude of coefficients", facts.coefficients, aspect="auto", vmin=0
    )
    weights = picture(figure, (0.63, 0.08, 0.17, 0.74), "weights", facts.weights, cmap=SIGNED)
    rebuilt = picture(figure, (0.82, 0.08, 0.17, 0.74), "from the largest", facts.rebuilt, cmap=SIGNED)

    def hold(now: BasisFacts) -> Sequence[Artist]:
        canonical.set_data(now.fractions, now.canonical)
        target.set_data(now.fractions, now.target)
        target.set_label(now.title)
        weights.set_data(now.weights)
        scale_about_zero(weights, now.weights)
        return (canonical, target, axes.legend(loc="upper left", fontsize=8), weights)

    def move(now: BasisFacts) -> Sequence[Artist]:
        curve.set_data(now.fractions, now.now)
        mark.set_data([now.density], [now.share])
        magnitudes.set_data(now.coefficients)
        magnitudes.set_clim(0, float(now.coefficients.max()) or 1.0)
        rebuilt.set_data(now.rebuilt)
        scale_about_zero(rebuilt, now.weights)
        return (curve, mark, magnitudes, rebuilt)

    return (hold, move)


class BasisExplorer(Explorer):
    """A layer's weights turned by degrees from the canonical basis into any other that acts axis by axis.

    Arguments as in `TicketExplorer`; with nothing given, small networks are trained first.
    """

    def __init__(
        self,
        dense: Sequence[Trained] | None = None,
        dataset: Dataset | None = None,
        recipe: Recipe | None = None,
        source: Loaded | None = None,
    ) -> None:
        self.turns = Turns(source or loaded.loaded(dense, dataset, recipe))
        rules = self.turns.rules()
        if not rules:
            raise InputError(f"no basis but the canonical one fits {self.turns.source.dense[0].ticket.architecture}")
        rows = {
            "turn": slider("turn to basis", 0, 1, 1, 0.05),
            "basis": dropdown("basis", rules, "svd" if "svd" in rules else rules[0]),
            "density": density_slider(),
            "layer": dropdown("layer", self.turns.source.layers),
            "weights": dropdown("weights", WEIGHTS),
            "seed": dropdown("seed", self.turns.source.seeds),
        }
        variants = ({"turn": turn} for turn in (0.0, 0.5, 1.0))
        super().__init__("Basis explorer", rows, partial(basis_facts, self.turns), draw_basis, SIZE, *variants)

    @classmethod
    def of_run(cls, folder: Path | str, data_dir: Path | str = "data") -> "BasisExplorer":
        """The explorer of a finished run's folder; see `loaded.of_run`."""
        return cls(source=loaded.of_run(folder, data_dir))
