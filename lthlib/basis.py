"""Orthonormal bases of weight tensors: coefficients c = B w, weights w = B^T c.

Only orthonormal bases: then top-k |c| is the best k-term approximation (Parseval), weight decay and gradient norms do
not depend on the basis, and a Gaussian initialisation has the same law in every basis. A basis fitted to weights
(`svd`, `units`) makes sparsity trivial unless its own description is counted: see `stored_numbers`.
Source: Alabdulmohsin et al., A Generalized Lottery Ticket Hypothesis, arXiv 2107.06825.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lthlib.axes import FIXED, Axis, fixed_axis, given_axis
from lthlib.errors import InputError, unknown
from lthlib.rounding import rows_times

SCOPES = ("all", "input", "kernel", "in", "out")
_RULES: dict[str, tuple[str, ...]] = {
    "canonical": ("all",),
    **dict.fromkeys(FIXED, SCOPES),
    "svd": ("all", "in", "out"),
    "units": ("all",),
}


class Basis(Protocol):
    """What every basis of one weight tensor offers; leading batch axes are allowed before the tensor's own."""

    @property
    def name(self) -> str:
        """The rule it came from, such as "dct@input"."""

    @property
    def is_identity(self) -> bool:
        """True where coefficients are the weights themselves."""

    @property
    def stored_numbers(self) -> int:
        """Numbers that describe the basis beyond (rule, shape, seed): 0 unless it was fitted to weights."""

    def stored_for(self, mask: Tensor) -> int:
        """The part of `stored_numbers` that a ticket with this boolean mask over coefficients needs."""

    def analyse(self, weight: Tensor) -> Tensor:
        """Coefficients B w."""

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Weight B^T c."""

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs beside `tensors()`."""

    def tensors(self) -> dict[str, Tensor]:
        """The stored numbers by name; empty unless fitted."""


@dataclass(frozen=True, eq=False)
class Kronecker:
    """One orthonormal matrix or the identity (None) per axis of a tensor: C = B_out W B_in^T for a matrix.

    The spans of `axes` add up to the tensor's number of axes; None spans one. On row-major vec(W) this is
    B_out (x) B_in. Identity axes cost nothing.
    """

    name: str
    axes: tuple[Axis | None, ...]

    @property
    def is_identity(self) -> bool:
        """True where every axis is the identity."""
        return all(axis is None for axis in self.axes)

    @property
    def stored_numbers(self) -> int:
        """n^2 for every fitted axis of length n; 0 for the others."""
        return sum(len(axis.given) ** 2 for axis in self.axes if axis is not None and axis.given is not None)

    def stored_for(self, mask: Tensor) -> int:
        """Numbers in those rows of the fitted matrices that a kept coefficient uses; `mask` has the tensor's shape."""
        mask, total = mask.reshape(self._grouped(mask)), 0
        for i, axis in enumerate(self.axes):
            if axis is not None and axis.given is not None:
                used = mask.movedim(i, 0).flatten(1).any(dim=1).sum().item()
                total += int(used) * len(axis.given)
        return total

    @property
    def out_matrix(self) -> Tensor | None:
        """The matrix of axis 0 (float64, CPU), None for the identity: y = B_out^T (C (B_in x)) for a matrix W."""
        return None if self.axes[0] is None else self.axes[0].matrix()

    @property
    def in_matrix(self) -> Tensor | None:
        """The matrix of axis 1 (float64, CPU), None for the identity."""
        return None if self.axes[1] is None else self.axes[1].matrix()

    def matrix_like(self, axis: int, like: Tensor) -> Tensor | None:
        """The matrix of entry `axis` of `axes` in the dtype and on the device of `like`, cast once; None: identity."""
        entry = self.axes[axis]
        return None if entry is None else entry.matrix(like.dtype, like.device)

    def analyse(self, weight: Tensor) -> Tensor:
        """Coefficients of `weight` (..., *tensor shape), floating; same shape, dtype and device; differentiable."""
        return self._apply(weight, transpose=False)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The weight with these coefficients (..., *tensor shape): the adjoint, and the inverse, of `analyse`."""
        return self._apply(coefficients, transpose=True)

    def _grouped(self, tensor: Tensor) -> tuple[int, ...]:
        spans = [1 if axis is None else axis.span for axis in self.axes]
        own = tensor.shape[tensor.ndim - sum(spans) :]
        ends = [sum(spans[: i + 1]) for i in range(len(spans))]
        return tuple(math.prod(own[end - span : end]) for span, end in zip(spans, ends, strict=True))

    def _apply(self, tensor: Tensor, transpose: bool) -> Tensor:
        if self.is_identity:
            return tensor
        sizes, value = self._grouped(tensor), tensor
        # Autocast would round the coefficients themselves to 8 bits of mantissa, not only the products.
        with torch.autocast(tensor.device.type, enabled=False):
            for i, axis in enumerate(self.axes):
                if axis is None:
                    continue
                matrix, trailing = axis.matrix(tensor.dtype, tensor.device), math.prod(sizes[i + 1 :])
                if trailing == 1:
                    value = rows_times(value.reshape(-1, sizes[i]), matrix if transpose else matrix.T)
                else:
                    value = (matrix.T if transpose else matrix) @ value.reshape(-1, sizes[i], trailing)
        return value.reshape(tensor.shape)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record; `from_json(record, self.tensors())` gives the basis back."""
        recipes: list[dict[str, Any] | None] = []
        for axis in self.axes:
            if axis is None:
                recipes.append(None)
            else:
                recipe = {"kind": axis.kind, "sizes": list(axis.sizes), "span": axis.span}
                recipes.append(recipe | ({"seed": axis.seed, "stream": axis.stream} if axis.kind == "random" else {}))
        return {"type": "kronecker", "name": self.name, "axes": recipes}

    def tensors(self) -> dict[str, Tensor]:
        """The fitted matrices, float64, under "axis0", "axis1", ..."""
        return {f"axis{i}": a.given for i, a in enumerate(self.axes) if a is not None and a.given is not None}


@dataclass(frozen=True, eq=False)
class RowReflection:
    """Unit-aligned: each row (unit, filter) has the Householder reflection that maps a reference row w onto |w| e_1.

    In its own basis the reference tensor has one nonzero coefficient a row, |w_j| in the row's first place, so that
    magnitude pruning there is pruning by row norm. `reflectors` has the tensor's shape, float64, rows of unit length
    or zero (no reflection). Make one with `row_reflection`.
    """

    name: str
    reflectors: Tensor
    _casts: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_identity(self) -> bool:
        """False: even where no row needs a reflection the basis is a fitted one."""
        return False

    @property
    def stored_numbers(self) -> int:
        """One number for each entry of each nonzero reflector."""
        return self._stored(torch.ones(len(self.reflectors), dtype=torch.bool))

    def stored_for(self, mask: Tensor) -> int:
        """The reflectors of rows in which `mask` (the tensor's shape) keeps a coefficient."""
        return self._stored(mask.cpu().flatten(1).any(dim=1))

    def _stored(self, rows: Tensor) -> int:
        reflectors = self.reflectors.flatten(1)
        return int((rows & reflectors.ne(0).any(dim=1)).sum()) * reflectors.shape[1]

    def analyse(self, weight: Tensor) -> Tensor:
        """Coefficients of `weight` (..., *tensor shape), floating; same shape, dtype and device; differentiable."""
        key = (weight.dtype, weight.device)
        if key not in self._casts:
            with torch.inference_mode(False), torch.no_grad():
                self._casts[key] = self.reflectors.to(device=weight.device, dtype=weight.dtype)
        return reflect(weight, self._casts[key])

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The weight with these coefficients: a reflection is its own inverse."""
        return self.analyse(coefficients)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record; `from_json(record, self.tensors())` gives the basis back."""
        return {"type": "row_reflection", "name": self.name}

    def tensors(self) -> dict[str, Tensor]:
        """The reflectors, float64."""
        return {"reflectors": self.reflectors}


def reflect(weight: Tensor, reflectors: Tensor) -> Tensor:
    """w_j - 2 v_j (v_j . w_j) for each row: `reflectors` (rows, ...) unit or zero, `weight` (..., rows, ...)."""
    own = tuple(range(1 - reflectors.ndim, 0))
    return weight - 2 * reflectors * (reflectors * weight).sum(dim=own, keepdim=True)


def row_reflection(weight: Tensor, name: str = "units") -> RowReflection:
    """The unit-aligned basis of `weight` (rows, ...), floating; rows of zeros get the identity."""
    rows = weight.detach().to("cpu", torch.float64).flatten(1)
    norms = rows.norm(dim=1, keepdim=True)
    unit = rows / norms.where(norms > 0, 1.0)
    rest = unit[:, 1:].square().sum(dim=1)
    vectors = unit.clone()
    # u_1 - 1 cancels where u is close to e_1; there it equals -(u_2^2 + ...) / (1 + u_1).
    vectors[:, 0] = torch.where(unit[:, 0] > 0, -rest / (1 + unit[:, 0].clamp(min=0)), unit[:, 0] - 1)
    vectors[norms[:, 0] == 0] = 0
    return RowReflection(name, torch.nn.functional.normalize(vectors, dim=1, eps=1e-300).reshape(weight.shape))


def canonical(axes: int) -> Kronecker:
    """The identity on a tensor of that many axes: the ordinary lottery ticket."""
    return Kronecker("canonical", (None,) * axes)


def svd(weight: Tensor, scope: str = "all") -> Kronecker:
    """The singular basis U^T, V^T of `weight` (rows, ...), its trailing axes flattened: coefficients are diag(sigma).

    `scope` "out" takes U^T only, "in" V^T only.
    """
    u, _, vh = torch.linalg.svd(weight.detach().to("cpu", torch.float64).flatten(1), full_matrices=True)
    rest = weight.ndim - 1
    out_axis = given_axis(u.T) if scope != "in" else None
    in_axes = (given_axis(vh, span=rest),) if scope != "out" else (None,) * rest
    return Kronecker("svd" if scope == "all" else f"svd@{scope}", (out_axis, *in_axes))


def from_json(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Basis:
    """The basis that gave this `to_json()` record and these `tensors()`.

    Raises InputError where something is missing or unknown.
    """
    try:
        if record["type"] == "row_reflection":
            return RowReflection(record["name"], tensors["reflectors"])
        if record["type"] != "kronecker":
            raise unknown("basis type", record["type"], ("kronecker", "row_reflection"))
        axes: list[Axis | None] = []
        for i, recipe in enumerate(record["axes"]):
            if recipe is None:
                axes.append(None)
            elif recipe["kind"] == "given":
                axes.append(given_axis(tensors[f"axis{i}"], recipe["span"]))
            else:
                more = {key: recipe[key] for key in ("seed", "stream") if key in recipe}
                axes.append(fixed_axis(recipe["kind"], tuple(recipe["sizes"]), recipe["span"], **more))
        return Kronecker(record["name"], tuple(axes))
    except (KeyError, TypeError) as error:
        raise InputError(f"a basis record lacks {error} (valid: what to_json and tensors gave)") from error


# -------------------------------------------------------------------------------------------------------- assignment


def valid_rules() -> tuple[str, ...]:
    """Every text that `bases` takes: NAME alone (every axis of every tensor) and NAME@SCOPE."""
    return tuple(name if scope == "all" else f"{name}@{scope}" for name, scopes in _RULES.items() for scope in scopes)


def bases(
    rule: str,
    shapes: Mapping[str, tuple[int, ...]],
    input_shape: tuple[int, ...] = (),
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Basis]:
    """The basis of each weight tensor under a text rule, NAME or NAME@SCOPE.

    NAME: canonical, dct, haar, hadamard, random (a matrix of its own for each seed, tensor and axis), svd and units
    (fitted to `weights`, the initial or the trained ones). SCOPE: all (default), input (the input axis of a linear
    first layer), kernel (the spatial axes of convolutions), in (axis 1), out (axis 0). `shapes` are those of the
    prunable tensors in the order of the forward pass, (out, in) or (out, in, kh, kw). `input_shape` is (C, H, W), or ()
    where no image is known: the first layer's input axis, if C H W long, gets the H x W transform of each channel, or
    for random one matrix over the whole axis.
    Raises InputError, naming rule and shape, where the rule is unknown or does not fit.
    """
    name, _, scope = rule.partition("@")
    scope = scope or "all"
    if name not in _RULES or scope not in _RULES[name]:
        raise unknown("basis rule", rule, valid_rules())
    rule = name if scope == "all" else rule
    for tensor, shape in shapes.items():
        if len(shape) not in (2, 4) or 0 in shape:
            raise InputError(
                f"basis rule {rule!r} does not fit {tensor!r} of shape {tuple(shape)}"
                " (valid: a linear (out, in) or a convolutional (out, in, kh, kw) weight)"
            )
    if name == "canonical":
        return {tensor: canonical(len(shape)) for tensor, shape in shapes.items()}
    if name in ("svd", "units"):
        fitted = _checked_weights(rule, shapes, weights or {})
        return {tensor: svd(w, scope) if name == "svd" else row_reflection(w) for tensor, w in fitted.items()}
    first = next(iter(shapes), None)
    if scope == "input" and first is not None and not _is_image(shapes[first], input_shape):
        raise InputError(
            f"basis rule {rule!r} needs a linear first layer whose input is the image, {tuple(input_shape)}, and"
            f" {first!r} has shape {tuple(shapes[first])} (valid otherwise: {name} or {name}@kernel, @in, @out)"
        )
    result: dict[str, Basis] = {}
    for tensor, shape in shapes.items():
        image = tuple(input_shape) if tensor == first else ()
        axes = _fixed_axes(name, scope, tensor=tensor, shape=tuple(shape), image=image, seed=seed)
        result[tensor] = canonical(len(shape)) if all(axis is None for axis in axes) else Kronecker(rule, axes)
    if all(basis.is_identity for basis in result.values()):
        raise InputError(
            f"basis rule {rule!r} leaves every tensor as it is, with shapes {', '.join(map(str, shapes.values()))}"
            " (a kernel rule needs kernels larger than 1x1, and haar an axis of even length)"
        )
    return result


def _is_image(shape: tuple[int, ...], image: tuple[int, ...]) -> bool:
    return len(shape) == 2 and len(image) == 3 and shape[1] == math.prod(image)


def _checked_weights(
    rule: str, shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    for tensor, shape in shapes.items():
        if tensor not in weights:
            raise InputError(f"basis rule {rule!r} is fitted to weights, and none were given for {tensor!r}")
        if tuple(weights[tensor].shape) != tuple(shape):
            raise InputError(
                f"basis rule {rule!r} needs weights of shape {tuple(shape)} for {tensor!r},"
                f" not {tuple(weights[tensor].shape)}"
            )
        if not weights[tensor].isfinite().all():
            raise InputError(f"basis rule {rule!r} needs finite weights, and {tensor!r} has nan or infinity")
    return {tensor: weights[tensor] for tensor in shapes}


def _fixed_axes(
    kind: str, scope: str, *, tensor: str, shape: tuple[int, ...], image: tuple[int, ...], seed: int
) -> tuple[Axis | None, ...]:
    """The axes of one tensor; `image` is (C, H, W) for the first one and () for the others."""

    def axis(index: int, sizes: tuple[int, ...], scopes: tuple[str, ...], span: int = 1) -> Axis | None:
        return fixed_axis(kind, sizes, span, seed, f"{tensor}/{index}") if scope in ("all", *scopes) else None

    in_sizes: tuple[int, ...] = (shape[1],)
    if _is_image(shape, image) and kind != "random":
        in_sizes = (-image[0], *image[1:])
    axes = (axis(0, (shape[0],), ("out",)), axis(1, in_sizes, ("in", "input") if image else ("in",)))
    # The two kernel axes as one small matrix: one matmul in place of two.
    kernel = axis(2, shape[2:], ("kernel",), span=2) if len(shape) == 4 else None
    return axes if len(shape) == 2 else (*axes, *((None, None) if kernel is None else (kernel,)))


# ------------------------------------------------------------------------------------------------- energy compaction


def energy_curve(coefficients: Mapping[str, Tensor] | Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Sorted cumulative energy: (fraction of coefficients kept, share of sum c^2 in the largest that many).

    Both float64 on the CPU, of length N = the number of all coefficients; the last entries are 1.
    Raises InputError where there are none or all are zero.
    """
    parts = list(coefficients.values() if isinstance(coefficients, Mapping) else coefficients)
    squares = [part.detach().to("cpu", torch.float64).flatten().square() for part in parts]
    energy = torch.cat(squares).sort(descending=True).values.cumsum(0) if squares else torch.zeros(0)
    if not energy.numel() or not energy[-1] > 0:
        raise InputError("an energy curve needs at least one nonzero coefficient, and there is none")
    return torch.arange(1, len(energy) + 1, dtype=torch.float64) / len(energy), energy / energy[-1]


def energy_share(coefficients: Mapping[str, Tensor] | Iterable[Tensor], fraction: float) -> float:
    """Share of sum c^2 in the round(fraction N) largest coefficients.

    Raises InputError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of coefficients lies in (0, 1], not at {fraction}")
    _, energy = energy_curve(coefficients)
    kept = round(fraction * len(energy))
    return energy[kept - 1].item() if kept else 0.0
