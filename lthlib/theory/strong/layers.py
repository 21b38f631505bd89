"""One target layer as one or two layers of a random source: draws, and the choice of what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lthlib.errors import InputError
from lthlib.randomness import generator
from lthlib.theory.arrays import Array
from lthlib.theory.strong.search import SubsetSearch, choose, draw_weights
from lthlib.theory.strong.sources import LEAK, Affine

LARGEST_SOURCE = 200_000_000  # weights a layer: 0.8 GB, and their masks
LINEAR_SCALE = 0.01  # of inner weights and biases of tanh's first block, where tanh is nearly the identity
_CHUNK = 1 << 20  # candidates in memory at once


@dataclass
class SourceLayer:
    """One layer of the random source: its draws, and which of them the ticket keeps (all of the weight's shape)."""

    weight: Array
    mask: Array
    bias: Array
    bias_mask: Array


@dataclass
class Account:
    """What solving one layer cost, and how near it came: one row of `Construction.layers`."""

    layer: str
    weights: int
    eps: float
    solves: int = 0
    redrawn: int = 0
    unreached: int = 0
    kept: int = 0
    largest_error: float = 0.0
    mean_error: float = 0.0

    def judge(self, errors: Array, mask: Array) -> None:
        """Notes the errors that the layer's weights are left with, and how many candidates are kept for them."""
        self.unreached, self.kept = int((errors > self.eps).sum()), int(mask.sum())
        self.largest_error, self.mean_error = float(errors.max(initial=0)), float(errors.sum()) / max(1, self.weights)


def _choose(
    outer: Array,
    mask: Array,
    columns: Sequence[Array],
    gains: Sequence[Array],
    wanted: Array,
    where: Array,
    search: SubsetSearch,
    account: Account,
    skip: bool,
) -> Array:
    """Chooses outer weights for the places (o, i, t) in `where` (P, 3): of input i, among `columns[i]`, whose products
    with `gains[i]` shall sum to `wanted` (P,). Sets `mask` (O, N, T) and returns what is left of `wanted` (P,). With
    `skip`, what is within the tolerance of 0 is left as it is."""
    left = wanted.copy()
    lengths = np.array([len(column) for column in columns])
    open_places = (np.abs(wanted) > account.eps) if skip else np.ones(len(wanted), bool)
    for length in np.unique(lengths):
        group = np.flatnonzero((lengths == length)[where[:, 1]] & open_places)
        if length == 0 or not len(group):
            continue
        table = np.zeros((len(columns), length), np.int64)
        gain = np.zeros((len(columns), length))
        for i in np.flatnonzero(lengths == length).tolist():
            table[i], gain[i] = columns[i], gains[i]
        step = max(1, _CHUNK // length)
        for start in range(0, len(group), step):
            part = group[start : start + step]
            o, i, t = where[part].T
            at = table[i]
            candidates = gain[i] * outer[o[:, None], at, t[:, None]].astype(np.float64)
            kept, _ = choose(candidates, wanted[part], search, account.eps)
            left[part] -= (candidates * kept).sum(axis=1)
            mask[o[:, None], at, t[:, None]] |= kept
        account.solves += len(group)
    return left


def _goals(affine: Affine, copies: int, alive: Array | None) -> tuple[Array, Array, Array]:
    """What a layer shall be: `copies` of each output (O, inputs, taps), the outputs that are wanted, and the places
    (P, 3) to be chosen for. A bias is one input more, at the centre tap, its hidden neurons passing on their bias."""
    goals = affine.weight.numpy().reshape(*affine.weight.shape[:2], -1)
    outputs, inputs, taps = goals.shape
    centre = int(np.ravel_multi_index(affine.identity, affine.weight.shape[2:])) if affine.weight.dim() > 2 else 0
    if affine.bias is not None:
        constant = np.zeros((outputs, 1, taps))
        constant[:, 0, centre] = affine.bias.numpy()
        goals = np.concatenate([goals, constant], axis=1)
    goals = np.repeat(goals, copies, axis=0)
    rows = np.arange(len(goals)) if alive is None else np.flatnonzero(alive)
    grid = np.meshgrid(rows, np.arange(goals.shape[1]), np.arange(taps), indexing="ij")
    where = np.stack([axis.ravel() for axis in grid], axis=1)
    return goals, rows, where[(where[:, 1] < inputs) | (where[:, 2] == centre)]


def two_layer(
    affine: Affine,
    search: SubsetSearch,
    eps: float,
    seed: int,
    *,
    signed: bool,
    activation: str,
    copies: int = 1,
    alive: Array | None = None,
    constants: int = 0,
) -> tuple[SourceLayer, SourceLayer, Account]:
    """Two source layers for one target layer: hidden neurons of one input each, and products of two weights.

    `signed`: inputs of either sign, two sums a weight. `activation` of the hidden neurons: relu, leaky or tanh. Each
    output is built `copies` times, where `alive` (outputs * copies,) says so, and followed by `constants` neurons
    without inputs. Raises InputError for more weights than fit.
    """
    goals, rows, where = _goals(affine, copies, alive)
    taps = goals.shape[2]
    account = Account(affine.name, len(where), eps)
    block = 2 * search.candidates if activation != "tanh" else search.candidates
    separate = 1 if search.shared else len(goals)
    state = _Blocks(affine, search, seed, len(goals) + constants, taps, activation)
    _refuse_large(goals.shape[1] * block * separate * (state.outputs * taps + state.inputs * state.inner_taps))
    errors = np.zeros(len(where))
    parts = [np.arange(len(where))] if search.shared else [np.flatnonzero(where[:, 0] == row) for row in rows]
    for part in parts:
        todo = part
        for attempt in range(search.redraws + 1):
            account.redrawn += len(todo) if attempt else 0
            errors[todo] = state.attempt(goals, where[todo], signed, account, block, attempt > 0)
            todo = todo[errors[todo] > eps]
            if not len(todo):
                break
    inner, outer = state.layers()
    account.judge(errors, outer.mask)
    outer.bias_mask[len(goals) :] = True
    return inner, outer, account


def _refuse_large(total: int) -> None:
    if total > LARGEST_SOURCE:
        raise InputError(
            f"a source layer of {total:,} weights does not fit (valid: up to {LARGEST_SOURCE:,}; take fewer "
            "candidates or a narrower target)"
        )


class _Blocks:
    """Hidden neurons of one target layer, drawn a block an input; a redraw adds blocks."""

    def __init__(
        self,
        affine: Affine,
        search: SubsetSearch,
        seed: int,
        outputs: int,
        taps: int,
        kind: str,
    ) -> None:
        self.affine, self.search, self.outputs, self.taps, self.kind = affine, search, outputs, taps, kind
        self.inputs, self.inner_taps = affine.weight.shape[1], 2 if affine.kind == "sets" else 1
        self.purpose = (seed, "strong", affine.name)
        self.parts: list[tuple[Array, Array, Array, Array, Array]] = []  # owner, inner, bias, outer, mask
        self.left: dict[int, Array] = {}  # by side: what is still wanted

    def attempt(self, goals: Array, where: Array, signed: bool, account: Account, block: int, again: bool) -> Array:
        """Draws a block for every input in `where` and chooses among it; returns the errors.

        `again`: what an earlier attempt left is made up from the new block. Methods that keep a given number of
        candidates start afresh instead.
        """
        search, number = self.search, len(self.parts)
        sides = (1, -1) if signed and self.kind != "tanh" else (1,)
        if not self.left:
            # a leaky neuron passes a share of the other side too: P + leak N = leak P + N = w
            scaled = goals.copy()
            scaled[:, : self.inputs] /= 1 + LEAK if self.kind == "leaky" and signed else 1
            self.left = {side: scaled.copy() for side in sides}
            self.goals = scaled
        if again and search.method in ("fixed", "nearest"):
            for owners, _, _, _, chosen in self.parts:
                for o, i, t in where.tolist():
                    chosen[o, owners == i, t] = False
            for left in self.left.values():
                left[tuple(where.T)] = self.goals[tuple(where.T)]
        used = np.unique(where[:, 1])
        owner = np.repeat(used, block)
        shapes = {
            "inner": (len(owner), self.inputs, self.inner_taps),
            "bias": (len(owner),),
            "outer": (self.outputs, len(owner), self.taps),
        }
        inner, bias, outer = (
            draw_weights(search.law, shape, generator(*self.purpose, part, number)) for part, shape in shapes.items()
        )
        if self.kind == "tanh":
            inner, bias = inner * np.float32(LINEAR_SCALE), bias * np.float32(LINEAR_SCALE)
            outer = outer * np.float32(1 / LINEAR_SCALE)
        mask = np.zeros(outer.shape, bool)
        self.parts.append((owner, inner, bias, outer, mask))
        weights = inner[np.arange(len(owner)), np.minimum(owner, self.inputs - 1), 0].astype(np.float64)
        gain = np.where(owner < self.inputs, weights, bias.astype(np.float64))
        errors = np.zeros(len(where))
        for side in sides:
            columns, gains = [], []
            for i in range(self.inputs + 1):
                neurons = np.arange(*np.searchsorted(owner, [i, i + 1]))
                if self.kind != "tanh":
                    neurons = neurons[(side if i < self.inputs else 1) * gain[neurons] > 0]
                # constants are no inputs: they serve one side only
                fitting = neurons[: search.candidates if i < self.inputs or side > 0 else 0]
                columns.append(fitting)
                gains.append(gain[fitting] if i < self.inputs else activated(gain[fitting], self.kind))
            here = np.flatnonzero((where[:, 1] < self.inputs) | (side > 0))
            wanted = self.left[side][tuple(where[here].T)]
            skip = again or search.round_small
            rest = _choose(outer, mask, columns, gains, wanted, where[here], search, account, skip)
            self.left[side][tuple(where[here].T)] = rest
            errors[here] = np.maximum(errors[here], np.abs(rest))
        return errors

    def layers(self) -> tuple[SourceLayer, SourceLayer]:
        """The source's two layers, with an inner weight or bias kept where an outer weight uses its neuron."""
        owner, inner, bias = (np.concatenate([part[k] for part in self.parts]) for k in range(3))
        outer, mask = (np.concatenate([part[k] for part in self.parts], axis=1) for k in (3, 4))
        used = mask.any(axis=(0, 2))
        inner_mask = np.zeros(inner.shape, bool)
        weighted = np.flatnonzero(used & (owner < self.inputs))
        inner_mask[weighted, owner[weighted], 0] = True
        taps = tuple(self.affine.weight.shape[2:])
        inner_shape = (*inner.shape[:2], *((1, self.inner_taps) if taps else ()))
        outer_shape = (*outer.shape[:2], *taps)
        plain = draw_weights(self.search.law, (self.outputs,), generator(*self.purpose, "outer bias"))
        return (
            SourceLayer(inner.reshape(inner_shape), inner_mask.reshape(inner_shape), bias,
                        used & (owner == self.inputs)),
            SourceLayer(outer.reshape(outer_shape), mask.reshape(outer_shape), plain, np.zeros(self.outputs, bool)),
        )  # fmt: skip


def activated(value: Array, kind: str) -> Array:
    """What a neuron without inputs passes on, by its bias: `kind` is relu, leaky or tanh."""
    if kind == "tanh":
        return np.tanh(value)
    return np.where(value > 0, value, (LEAK if kind == "leaky" else 0.0) * value)


def single(
    affine: Affine,
    search: SubsetSearch,
    eps: float,
    seed: int,
    bias: Array,
    positions: int,
    copies: int,
    alive: Array | None,
    constants: int,
) -> tuple[SourceLayer, Account, Array, Array]:
    """One source layer that chooses among equal neurons: the layer, its account, and which copies and which constant
    neurons before it it uses (bool each).

    `bias`: what the neurons before pass on with no input. `positions`: inputs a channel, after a flattening.
    """
    goals, _, where = _goals(affine, copies, alive)
    inputs, taps = affine.weight.shape[1], goals.shape[2]
    n, channels = search.candidates, inputs // positions
    spare = 2 * n
    columns = [(np.arange(n) + (i // positions) * n) * positions + i % positions for i in range(inputs)]
    gains: list[Array] = [np.ones(n)] * inputs
    held = np.arange(spare) + channels * n
    strongest = held[np.argsort(-np.abs(bias[held]), kind="stable")][:n]  # a neuron at nearly 0 reaches nothing
    usable = strongest[bias[strongest] != 0]
    columns.append(usable * positions)
    gains.append(bias[usable].astype(np.float64))
    total = len(goals) + constants
    fan_in = (channels * n + spare) * positions
    _refuse_large(total * fan_in * taps)
    purpose = (seed, "strong", affine.name)
    outer = draw_weights(search.law, (total, fan_in, taps), generator(*purpose, "single"))
    mask = np.zeros(outer.shape, bool)
    account = Account(affine.name, len(where), eps)
    wanted = goals[tuple(where.T)]
    errors = np.abs(_choose(outer, mask, columns, gains, wanted, where, search, account, search.round_small))
    account.judge(errors, mask)
    used = np.asarray(mask.any(axis=(0, 2)).reshape(-1, positions).any(axis=1))
    shape = (total, fan_in, *affine.weight.shape[2:])
    biases = draw_weights(search.law, (total,), generator(*purpose, "outer bias"))
    layer = SourceLayer(outer.reshape(shape), mask.reshape(shape), biases, np.zeros(total, bool))
    return layer, account, used[: channels * n], used[channels * n :]
