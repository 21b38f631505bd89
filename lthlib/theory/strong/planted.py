r"""Planted tickets: random networks that hold a known small subnetwork which solves a task, to try finders on.

Fischer & Burkholz, "Plant 'n' Seek: Can You Find the Winning Ticket?" (arXiv 2111.11153). A `Target` is a hand-made
ReLU network for a task; `plant` hides it in a random source by moving as few and as near weights as it can, so that
the mask, the density and the loss of one good ticket are known. `compare` says how near a finder's ticket comes.

`depth` counts linear layers here (the released code counts the input too: its depth 3 is 2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lthlib.errors import InputError, unknown
from lthlib.ticket import Ticket, forward_of

TASKS = ("circle", "relu", "helix")
KNOTS = {"circle": 10, "relu": 0, "helix": 30}
INPUTS = {"circle": 2, "relu": 1, "helix": 1}
OUTPUTS = {"circle": 4, "relu": 2, "helix": 3}
BOUNDARIES = (0.2, 0.5, 0.7)


@dataclass(frozen=True)
class Target:
    """A ReLU network by its weights (out, in) and biases (out,) of each linear layer, float64; the last is linear."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Weights that are not zero."""
        return sum(int(torch.count_nonzero(weight)) for weight in self.weights)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs (N, out) for inputs (N, in)."""
        x = inputs.double()
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x.relu() if number else x, weight, bias)
        return x


@dataclass(frozen=True)
class Planted:
    """A random network with a ticket in it.

    - `task`, `target`: what it solves, and the hand-made network that does.
    - `source`: the dense random network, changed where the target was planted; `ticket`: the same under the planted
      mask. Its outputs are `output_scale` times the target's: one factor keeps planted weights as large as their
      neighbours.
    - `matched`: the share of hidden target neurons for which a source neuron with all signs right was free.
    """

    task: str
    target: Target
    source: Ticket
    ticket: Ticket
    output_scale: float
    matched: float


# -------------------------------------------------------------------------------------------------------- the targets


def target(task: str, depth: int, knots: int | None = None) -> Target:
    r"""The hand-made network of `depth` linear layers for a task; Plant 'n' Seek, section 3 and released code.

    `relu`: $\max(x,0)$ and $\max(-x,0)$, exactly (one output more than released: models here have two or more).
    `helix`: $(y\cos y, y\sin y, y)/8\pi$ with $y=5\pi+3\pi x$, interpolated at `knots` points. `circle`: class
    logits $a_js+c_j$ of $s=x_1^2+x_2^2$, $a_j=5\cdot2^j$, equal at the boundaries .2, .5, .7, with $x^2$ interpolated
    at `knots`. Layers beyond those needed carry values on, shifted to stay positive. Raises InputError for an unknown
    task, a depth below 2 and fewer than 2 knots.
    """
    if task not in TASKS:
        raise unknown("planted task", task, TASKS)
    if depth < 2:
        raise InputError(f"a planted target has depth 2 or more, found {depth}")
    knots = KNOTS[task] if knots is None else knots
    if task != "relu" and knots < 2:
        raise InputError(f"interpolation needs 2 knots or more, found {knots}")
    layers = {"relu": _relu, "helix": _helix, "circle": _circle}[task](depth, knots)
    return Target(tuple(weight for weight, _ in layers), tuple(bias for _, bias in layers))


Layers = list[tuple[Tensor, Tensor]]


def _carry(width: int, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    return torch.eye(width, dtype=torch.float64), torch.full((width,), bias, dtype=torch.float64)


def _relu(depth: int, knots: int) -> Layers:
    both = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return [(both, torch.zeros(2, dtype=torch.float64)), *[_carry(2)] * (depth - 1)]


def _helix(depth: int, knots: int) -> Layers:
    if depth == 2:
        return _interpolation(_curve, -1, 1, knots)
    # Shifted by 1 the input passes a ReLU as it is.
    inner, (weight, bias) = _interpolation(lambda x: _curve(x - 1), 0, 2, knots)
    first = [_carry(1, 1.0), inner]
    if depth == 3:
        return [*first, (weight, bias)]
    return [*first, (weight, bias + 1), *[_carry(3)] * (depth - 4), _carry(3, -1.0)]


def _curve(x: Tensor) -> Tensor:
    """The helix (3, N) at x (N,)."""
    y = math.pi * (5 + 3 * x)
    return torch.stack([y * y.cos(), y * y.sin(), y]) / (8 * math.pi)


def _circle(depth: int, knots: int) -> Layers:
    slopes, offsets = _lines()
    (inner, shift), (outer, constant) = _interpolation(torch.square, -1 if depth == 2 else 0, 1, knots)
    squares = torch.block_diag(inner, inner), shift.repeat(2)
    logits = (slopes[:, None] * outer).repeat(1, 2), 2 * slopes * constant + offsets
    if depth == 2:
        return [squares, logits]
    halves = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    split = halves, torch.zeros(4, dtype=torch.float64)
    if depth == 3:
        return [split, (squares[0] @ halves.abs().T, squares[1]), logits]
    absolute = halves.abs().T, torch.zeros(2, dtype=torch.float64)
    return [split, absolute, *[_carry(2)] * (depth - 4), squares, logits]


def _lines() -> tuple[Tensor, Tensor]:
    """Slopes and offsets of the circle's class logits as lines in the squared radius."""
    slopes = 5.0 * 2.0 ** torch.arange(len(BOUNDARIES) + 1, dtype=torch.float64)
    steps = (slopes[:-1] - slopes[1:]) * torch.tensor(BOUNDARIES, dtype=torch.float64)
    return slopes, F.pad(steps.cumsum(0), (1, 0))


def _interpolation(function: Callable[[Tensor], Tensor], low: float, high: float, knots: int) -> Layers:
    """Two layers that interpolate `function` linearly between `knots` equally spaced points of [low, high].

    Every second neuron looks the other way (weight -1), as released: $(x-s)_+=(x-s)+(s-x)_+$, where the linear part
    goes to the first neuron, which is active on the whole interval.
    """
    points = torch.linspace(low, high, knots, dtype=torch.float64)
    signs = torch.ones_like(points)
    signs[1::2] = -1
    # The last knot's own change of slope is outside the interval; taken from the function, as released.
    beyond = torch.cat([points, points[-1:] + (points[1] - points[0])])
    values = torch.atleast_2d(function(beyond))
    slopes = values.diff(dim=1) / beyond.diff()
    weight = torch.cat([slopes[:, :1], slopes.diff(dim=1)], 1)
    weight[:, 0] += weight[:, 1:][:, signs[1:] < 0].sum(1)
    shift = -points * signs
    start = (signs * points[0] + shift).relu()
    return [(signs[:, None], shift), (weight, values[:, 0] - weight @ start)]


# ----------------------------------------------------------------------------------------------------------- planting


def plant(
    source: Ticket,
    task: str,
    *,
    knots: int | None = None,
    output_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    r"""Hides the task's target in a random fully connected network, `source`, as deep as the target shall be.

    The source has biases that are not zero, `INPUTS[task]` inputs and `OUTPUTS[task]` outputs. Each hidden target
    neuron takes, of the free source neurons with the needed signs, the one whose needed weights and bias are nearest
    (in $\ell_1$) to a positive multiple c of the target's; these become c times the target's, and what reads the
    neuron is divided by c. Where no signs fit, the nearest free neuron in magnitude is overwritten. Output neurons
    keep their places and share one factor: `output_scale`, or what makes planted weights as large as their neighbours.
    (Those are so small a part of the source that outputs shrink by an order of magnitude a layer; hence losses are
    taken after the best rescaling, as in the paper.) Raises InputError for a width below what the target needs.
    """
    if output_scale is not None and not 0 < output_scale < math.inf:
        raise InputError(f"output_scale must be above 0 and finite, found {output_scale!r}")
    depth, width = len(source.coefficients), len(next(iter(source.coefficients.values())))
    wanted = target(task, depth, knots)
    needed = max(len(bias) for bias in wanted.biases[:-1])
    if width < needed:
        raise InputError(f"width {width} cannot hold the target of task {task!r}, which needs {needed} hidden neurons")
    coefficients, rest, masks = {}, dict(source.rest), {}
    inputs, scale, matched, hidden = torch.arange(INPUTS[task]), torch.ones(INPUTS[task]).double(), 0, 0
    for number, (name, weights) in enumerate(source.coefficients.items()):
        weight, bias = weights.double().clone(), rest[name.removesuffix("weight") + "bias"].double().clone()
        goal = torch.cat([wanted.biases[number][:, None], wanted.weights[number] / scale], 1)
        # Columns: the bias, then the weights from the source neurons that carry the target's inputs.
        drawn = torch.cat([bias[:, None], weight[:, inputs]], 1)
        if number == depth - 1:
            places = torch.arange(OUTPUTS[task])
            like = float((goal.abs() * drawn.abs()).sum() / goal.square().sum())
            scale = torch.full(places.shape, output_scale or like, dtype=torch.float64)
        else:
            places, scale, fitting = _places(goal, drawn)
            matched, hidden = matched + fitting, hidden + len(places)
        planted, live = goal * scale[:, None], wanted.weights[number] != 0
        bias[places] = planted[:, 0]
        rows, columns = live.nonzero(as_tuple=True)
        weight[places[rows], inputs[columns]] = planted[:, 1:][rows, columns]
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[places[rows], inputs[columns]] = True
        coefficients[name], masks[name] = weight.to(dtype), mask
        rest[name.removesuffix("weight") + "bias"] = bias.to(dtype)
        inputs = places
    source = replace(source, coefficients=coefficients, rest=rest)
    return Planted(task, wanted, source, source.with_masks(masks), float(scale[0]), matched / hidden)


def _places(goal: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, int]:
    """Source neurons (rows of `drawn`) for target neurons (rows of `goal`), their factors, and how many had fit."""
    free = torch.ones(len(drawn), dtype=torch.bool)
    places, scales, fitting = [], [], 0
    for wanted in goal:
        live = wanted != 0
        # What the target does not need is cut away, but for the bias, which is then set to zero.
        live[0] = True
        fits = free & ((drawn.sign() == wanted.sign()) | (wanted == 0)).all(1)
        candidates = fits if bool(fits.any()) else free
        values, wishes = drawn[:, live].abs(), wanted[live].abs()
        factors = values @ wishes / wishes.square().sum()
        distance = (values - factors[:, None] * wishes).abs().sum(1)
        place = int(distance.where(candidates & (factors > 0), math.inf).argmin())
        free[place] = False
        fitting += bool(fits.any())
        places.append(place)
        scales.append(factors[place])
    return torch.tensor(places), torch.stack(scales), fitting


# ----------------------------------------------------------------------------------------------------------- verdicts


def truth(task: str, x: Tensor) -> Tensor:
    """What the task's target stands for at inputs x (N, in), float64: values (relu, helix) or class logits (circle)."""
    if task == "circle":
        slopes, offsets = _lines()
        return x.square().sum(1, keepdim=True) * slopes + offsets
    return torch.cat([x, -x], 1).relu() if task == "relu" else _curve(x[:, 0]).T


def outputs_of(ticket: Ticket, inputs: Tensor) -> Tensor:
    """The ticket's outputs (N, out), with its mask."""
    dtype = next(iter(ticket.coefficients.values())).dtype
    with torch.no_grad():
        return forward_of(ticket)(ticket.effective_coefficients(), inputs.to(dtype))


def scaled_to_fit(outputs: Tensor, values: Tensor) -> Tensor:
    r"""Outputs (N, out) times the factors that fit `values` best, $\lambda_j=\sum yf/\sum f^2$ (1 where f is 0)."""
    power = outputs.square().sum(0)
    return outputs * torch.where(power > 0, (values * outputs).sum(0) / power.clamp(min=1e-300), 1.0)


def loss_of(ticket: Ticket, inputs: Tensor, targets: Tensor) -> float:
    """The share of wrong classes for targets (N,), or the mean squared error of (N, out) after the best rescaling."""
    outputs = outputs_of(ticket, inputs).double()
    if targets.dim() == 1:
        return float((outputs.argmax(1) != targets).double().mean())
    return float((scaled_to_fit(outputs, targets.double()) - targets).square().mean())


def compare(
    planted: Planted, ticket: Ticket, inputs: Tensor, targets: Tensor, tolerance: float = 0.05
) -> dict[str, float]:
    """How a finder's ticket does beside the planted one, on samples that neither has learnt from.

    - `loss`, `planted_loss`: see `loss_of`; `constant_loss`: of the best constant answer; `explained`: 1 -
      loss / constant_loss. `attained`: 1 if the loss is at most (1 + tolerance) times the planted one.
    - `density`, `planted_density`: fractions of weights kept.
    - `recall`: the share of planted weights that the mask keeps; `chance`: that share for a random mask of the same
      layer counts; `precision`: the share of kept weights that are planted.
    """
    if targets.dim() == 1:
        constant = 1 - float(targets.bincount().max()) / len(targets)
    else:
        constant = float((targets - targets.mean(0)).double().square().mean())
    hidden = planted.ticket.masks
    common = sum(int((mask & ticket.masks[name]).sum()) for name, mask in hidden.items())
    drawn = sum(int(mask.sum()) * float(ticket.masks[name].float().mean()) for name, mask in hidden.items())
    loss, best = loss_of(ticket, inputs, targets), loss_of(planted.ticket, inputs, targets)
    return {
        "loss": loss,
        "planted_loss": best,
        "constant_loss": constant,
        "explained": 1 - loss / constant,
        "attained": float(loss <= (1 + tolerance) * best),
        "density": ticket.density,
        "planted_density": planted.ticket.density,
        "recall": common / planted.ticket.kept,
        "chance": drawn / planted.ticket.kept,
        "precision": common / max(1, ticket.kept),
    }
