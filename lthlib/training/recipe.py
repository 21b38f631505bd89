"""How a ticket is trained: the recipe, and points of training in steps."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch

from lthlib.errors import InputError, unknown

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
# Torch's own, but for Muon, which `lthlib.muon` fits to stacks.
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
VALID_OPTIMIZERS = (*OPTIMIZERS, "muon")


@dataclass(frozen=True)
class Recipe:
    """How a ticket is trained; the same for every method compared in one figure.

    - `optimizer`: one of sgd, adam, adamw, rmsprop, muon; `momentum` and `nesterov` are SGD's and Muon's.
    - `schedule`: `constant`, `cosine` (to zero at the last step) or `step` (times `decay` at each of `milestones`,
      given as fractions of all steps); `warmup_epochs` rise linearly from zero before it.
    - `epochs` may be fractional; the last batch of an epoch may be smaller.
    - `precision`: fp32, bf16 (autocast, fp32 master weights) or fp64.
    - `state_in`: where the optimizer keeps parameters and moments: in the basis's `coefficients`, or in the
      `weights`, projected onto the mask's subspace. SGD does not tell them apart, Adam does.
    - `output_layer`: how pruning treats the classifier: `pruned` like any layer, at `half` the rate, or `kept`.
    - `evaluations`: at how many evenly spaced steps validation loss is read (early stopping looks at these).
    """

    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    warmup_epochs: float = 0.0
    batch_size: int = 64
    epochs: float = 25.0
    precision: str = "fp32"
    state_in: Literal["coefficients", "weights"] = "coefficients"
    output_layer: Literal["pruned", "half", "kept"] = "half"
    evaluations: int = 20

    def __post_init__(self) -> None:
        for kind, value, valid in (
            ("optimizer", self.optimizer, VALID_OPTIMIZERS),
            ("schedule", self.schedule, ("constant", "cosine", "step")),
            ("precision", self.precision, DTYPES),
            ("state_in", self.state_in, ("coefficients", "weights")),
            ("output_layer", self.output_layer, ("pruned", "half", "kept")),
        ):
            if value not in valid:
                raise unknown(kind, value, valid)
        for name in ("learning_rate", "batch_size", "epochs", "evaluations"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, found {getattr(self, name)!r}")
        for name in ("momentum", "weight_decay", "decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0 and finite, found {getattr(self, name)!r}")
        for name in ("batch_size", "evaluations"):
            if int(getattr(self, name)) != getattr(self, name):
                raise InputError(f"{name} must be a whole number, found {getattr(self, name)!r}")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0, found 0")

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps in one pass over `examples` training images."""
        return math.ceil(examples / self.batch_size)

    def steps(self, examples: int) -> int:
        """Optimizer steps of the whole training, at least 1."""
        return max(1, round(self.epochs * self.steps_per_epoch(examples)))

    def learning_rate_at(self, step: int, examples: int) -> float:
        """The learning rate of step `step` (0 is the first) of the whole schedule."""
        total, warmup = self.steps(examples), self.warmup_epochs * self.steps_per_epoch(examples)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "cosine":
            progress = (step - warmup) / max(1, total - warmup)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "step":
            return self.learning_rate * self.decay ** sum(step >= fraction * total for fraction in self.milestones)
        return self.learning_rate


def parse_step(text: str | int, steps_per_epoch: int) -> int:
    """A point of training in steps: `"2ep"`, `"1000it"` or `0`; a bare number other than 0 is refused as ambiguous."""
    value = str(text).strip()
    unit = {"it": 1, "ep": steps_per_epoch}.get(value[-2:])
    try:
        # Exact, unlike floats: 1.1 epochs of 10 steps are 11 steps.
        number = Fraction(value[:-2] if unit else value) * (unit or 1)
        if number == 0 or (unit and number > 0 and number.denominator == 1):
            return int(number)
    except (ValueError, ZeroDivisionError):
        pass
    raise InputError(f"unknown training step {text!r} (valid: 0, a number of steps such as '1000it', of epochs '2ep')")
