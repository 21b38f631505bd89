r"""Random source networks and the masks on them: drawn from a seed, counted on live paths, run, saved by seed and mask.

A ticket here is untrained: all its weights and biases are those of a random network with non-zero biases, and the mask
is what was found. So `UniversalTicket.save` writes the seed and the mask alone, and `load` draws the source anew.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lthlib.errors import InputError, unknown
from lthlib.randomness import generator
from lthlib.store import write_atomically
from lthlib.theory.arrays import Array

LAWS = ("uniform", "normal", "mixture")
WEIGHT_SPREAD = 2.0  # weights U[-2, 2], biases U[-1, 1]: the draws of RelationalML/UniversalLT


@dataclass(frozen=True)
class Layer:
    """A source layer, `weight` (out, in) and `bias` (out,), float64, and which of them are kept (bool, same shapes)."""

    weight: Array
    bias: Array
    keep: Array
    keep_bias: Array

    @property
    def parameters(self) -> int:
        """All weights and biases of the source layer."""
        return int(self.weight.size + self.bias.size)

    def masked(self, kept: Array) -> "Layer":
        """The layer with what is kept (parameters,), bool: weights row by row, then biases."""
        size = self.weight.size
        return replace(self, keep=kept[:size].reshape(self.keep.shape), keep_bias=kept[size:])

    def preactivation(self, inputs: Array) -> Array:
        """The masked layer on inputs (points, in): (points, out)."""
        return inputs @ np.where(self.keep, self.weight, 0.0).T + np.where(self.keep_bias, self.bias, 0.0)


Chain = tuple[Layer, ...]


def draw_chain(seed: int, purpose: str, widths: Sequence[int], law: str = "uniform") -> Chain:
    """A random ReLU chain with layers widths[0] -> widths[1] -> ..., nothing kept yet; one generator a layer.

    Laws: "uniform" (weights U[-2, 2], biases U[-1, 1], as released), "normal" (N(0, 4/3) and N(0, 1/3), the same
    variances), "mixture" (each number from either with probability 1/2: the law only has to contain a uniform, Lueker
    1998, Corollary 3.3). Raises InputError for an unknown law or widths below 1.
    """
    if law not in LAWS:
        raise unknown("candidate law", law, LAWS)
    if len(widths) < 2 or min(widths) < 1:
        raise InputError(f"widths {tuple(widths)} make no network (valid: two or more numbers from 1)")

    def numbers(spread: float, shape: tuple[int, ...], source: torch.Generator) -> Array:
        uniform = (2 * torch.rand(shape, dtype=torch.float64, generator=source) - 1) * spread
        if law == "uniform":
            return uniform.numpy()
        normal = torch.randn(shape, dtype=torch.float64, generator=source) * (spread / math.sqrt(3))
        if law == "normal":
            return normal.numpy()
        return torch.where(torch.rand(shape, dtype=torch.float64, generator=source) < 0.5, uniform, normal).numpy()

    layers = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        source = generator(seed, "universal source", purpose, number)
        weight, bias = numbers(WEIGHT_SPREAD, (outputs, inputs), source), numbers(1.0, (outputs,), source)
        layers.append(Layer(weight, bias, np.zeros(weight.shape, bool), np.zeros(bias.shape, bool)))
    return tuple(layers)


def run_chain(chain: Chain, inputs: Array, rectified: bool = False) -> Array:
    """The masked chain on inputs (points, in), ReLU between layers and, if `rectified`, after the last."""
    values = inputs
    for number, layer in enumerate(chain):
        values = layer.preactivation(values)
        if rectified or number < len(chain) - 1:
            values = np.maximum(values, 0.0)
    return values


def live_units(chain: Chain) -> list[Array]:
    """For each level, inputs first, the units (bool) that carry something and whose value reaches an output."""
    carries: list[Array] = [np.ones(chain[0].weight.shape[1], bool)]
    for layer in chain:
        carries.append(np.asarray((layer.keep & carries[-1]).any(axis=1) | layer.keep_bias))
    reaches: list[Array] = [np.ones(chain[-1].weight.shape[0], bool)]
    for layer in reversed(chain):
        reaches.append(np.asarray((layer.keep & reaches[-1][:, None]).any(axis=0)))
    return [carrying & reaching for carrying, reaching in zip(carries, reversed(reaches), strict=True)]


def live_masks(chain: Chain) -> list[tuple[Array, Array]]:
    """The kept weights and biases of each layer that lie on a live path: what a ticket's parameters are counted by."""
    units = live_units(chain)
    return [
        (layer.keep & units[number + 1][:, None] & units[number], layer.keep_bias & units[number + 1])
        for number, layer in enumerate(chain)
    ]


def kept(chain: Chain) -> int:
    """Ones in the mask on live input-output paths, weights and biases, every factor of a product counted."""
    return sum(int(weights.sum() + biases.sum()) for weights, biases in live_masks(chain))


def live_part(chain: Chain) -> Chain:
    """The same function without its dead units: small enough to be run many times. Inputs and outputs all stay."""
    units = live_units(chain)
    units[0], units[-1] = np.ones_like(units[0]), np.ones_like(units[-1])
    return tuple(
        Layer(
            layer.weight[np.ix_(units[number + 1], units[number])],
            layer.bias[units[number + 1]],
            layer.keep[np.ix_(units[number + 1], units[number])],
            layer.keep_bias[units[number + 1]],
        )
        for number, layer in enumerate(chain)
    )


def rescaled(chain: Chain, scales: Sequence[float]) -> Chain:
    r"""The source as drawn with scales s_l: weights times $s_l$, biases times $\prod_{m\le l}s_m$, masks unchanged.

    By homogeneity of ReLU its output is $\prod_l s_l$ times that of the chain, which is why constructions may assume
    s_l = 1 and multiply the output by `scale_back`. Raises InputError for scales that are not positive, one a layer.
    """
    if len(scales) != len(chain) or not all(s > 0 and math.isfinite(s) for s in scales):
        raise InputError(f"scales {tuple(scales)} do not fit {len(chain)} layers (valid: one positive number a layer)")
    products = np.cumprod(scales)
    return tuple(
        replace(layer, weight=layer.weight * s, bias=layer.bias * product)
        for layer, s, product in zip(chain, scales, products, strict=True)
    )


def scale_back(scales: Sequence[float]) -> float:
    r"""$\lambda=\prod_l 1/s_l$: the factor that undoes `rescaled` at the output."""
    return 1 / math.prod(scales)


def chain_error_budget(chain: Chain, eps: float, largest_inputs: Sequence[float]) -> Array:
    r"""How far each parameter of layer l may be off, so that the output stays within `eps`, one number a layer.

    $\varepsilon_l=\frac{\varepsilon}{Ln_L}[(1+B_{l-1})(1+\frac\varepsilon L)\prod_{k>l}(\lVert W_k\rVert_\infty+
    \frac\varepsilon L)]^{-1}$ with $B_{l-1}$ = `largest_inputs[l-1]`, the largest 1-norm of layer l's input (the form
    of Burkholz et al. 2022 as far as it could be read). Raises InputError unless eps is positive and B given for all.
    """
    if not eps > 0 or len(largest_inputs) != len(chain):
        raise InputError(
            f"eps {eps} with {len(largest_inputs)} bounds is no budget (valid: above 0, one bound a layer)"
        )
    depth, outputs = len(chain), chain[-1].weight.shape[0]
    norms = [float(np.abs(np.where(layer.keep, layer.weight, 0.0)).sum(axis=1).max()) for layer in chain]
    later = [math.prod(norm + eps / depth for norm in norms[number + 1 :]) for number in range(depth)]
    return np.array(
        [
            eps / (depth * outputs) / ((1 + bound) * (1 + eps / depth) * gain)
            for bound, gain in zip(largest_inputs, later, strict=True)
        ]
    )


# --- stages and tickets ---


@dataclass(frozen=True)
class ChainStage:
    """A step of a ticket: one chain for every coordinate alike ("shared", a 1 x 1 convolution over coordinates), a
    chain of its own for each ("copied"), or one chain over all coordinates at once ("dense").

    `purpose` names the draws (with the number of the copy), `rectified` whether a ReLU follows.
    """

    purpose: str
    kind: str
    chains: tuple[Chain, ...]
    rectified: bool = True

    def run(self, inputs: Array) -> Array:
        """Inputs (points, coordinates) through the masked chains."""
        if self.kind == "dense":
            return run_chain(self.chains[0], inputs, self.rectified)
        columns = [inputs.reshape(-1, 1)] if self.kind == "shared" else [column[:, None] for column in inputs.T]
        outputs = [run_chain(chain, column, self.rectified) for chain, column in zip(self.chains, columns, strict=True)]
        return outputs[0].reshape(inputs.shape) if self.kind == "shared" else np.concatenate(outputs, axis=1)


@dataclass(frozen=True)
class UniversalTicket:
    """A mask on a random source: `seed` and `law` draw the source, the stages hold masks; `inputs` coordinates go in.

    `failures` names the parts whose tolerance was not reached, with the error they have.
    """

    seed: int
    law: str
    inputs: int
    stages: tuple[ChainStage, ...]
    failures: tuple[str, ...] = ()

    def features(self, x: Array) -> Array:
        """The ticket's features (points, k) for x (points, inputs), float64, from the masked source.

        Dead units are left out of the computation. Raises InputError for another number of coordinates.
        """
        return self.live().features_in_full(x)

    def features_in_full(self, x: Array) -> Array:
        """The same through every unit of the source, dead ones included: slow, and what `features` is checked by."""
        values = np.asarray(x, float)
        if values.ndim != 2 or values.shape[1] != self.inputs:
            raise InputError(f"inputs of shape {values.shape} do not fit the ticket (valid: (points, {self.inputs}))")
        for stage in self.stages:
            values = stage.run(values)
        return values

    def live(self) -> "UniversalTicket":
        """The ticket without its dead units: the same function, no longer tied to its seed."""
        stages = (replace(stage, chains=tuple(map(live_part, stage.chains))) for stage in self.stages)
        return replace(self, stages=tuple(stages))

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """All layers by name, in order."""
        for stage in self.stages:
            for copy, chain in enumerate(stage.chains):
                for number, layer in enumerate(chain):
                    yield f"{stage.purpose}/{copy}/{number}", layer

    @property
    def kept(self) -> int:
        """Ones in the mask on live paths, weights and biases of all stages."""
        return sum(kept(chain) for stage in self.stages for chain in stage.chains)

    def kept_by_stage(self) -> dict[str, int]:
        """The same for each stage."""
        return {stage.purpose: sum(map(kept, stage.chains)) for stage in self.stages}

    @property
    def source_parameters(self) -> int:
        """All weights and biases of the random source."""
        return sum(layer.parameters for _, layer in self.layers())

    @property
    def density(self) -> float:
        """kept / source_parameters."""
        return self.kept / self.source_parameters

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file: seed, law, widths and the mask bits, and a digest of the numbers kept."""
        from safetensors.torch import save_file

        description: dict[str, Any] = {
            "seed": self.seed,
            "law": self.law,
            "inputs": self.inputs,
            "failures": list(self.failures),
            "digest": _digest(self),
            "stages": [
                {
                    "purpose": stage.purpose,
                    "kind": stage.kind,
                    "rectified": stage.rectified,
                    "widths": [_widths(chain) for chain in stage.chains],
                }
                for stage in self.stages
            ],
        }
        bits = {
            name: torch.from_numpy(np.packbits(np.concatenate([layer.keep.ravel(), layer.keep_bias])))
            for name, layer in self.layers()
        }
        header = {"universal ticket": json.dumps(description)}
        write_atomically(path, lambda temporary: save_file(bits, temporary, metadata=header))

    @staticmethod
    def load(path: Path | str) -> "UniversalTicket":
        """Reads what `save` wrote and draws the source anew.

        Raises InputError for a file that is missing or damaged, or where the draws are no longer what they were.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = (file.metadata() or {}).get("universal ticket")
                if header is None:
                    raise InputError(f"{str(path)!r} holds no universal ticket (write one with UniversalTicket.save)")
                description = json.loads(header)
                bits = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            ticket = _assemble(description, bits)
        except InputError:
            raise
        except FileNotFoundError as error:
            raise InputError(f"no ticket file {str(path)!r}") from error
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"ticket file {str(path)!r} is truncated or damaged ({error})") from error
        if _digest(ticket) != description["digest"]:
            raise InputError(f"ticket file {str(path)!r} does not fit the source drawn from its seed, or is damaged")
        return ticket

    def reloaded(self, path: Path | str) -> "UniversalTicket":
        """Saves the ticket and returns what the file gives: errors measured on it are those of the file's ticket.

        Raises RuntimeError where its features on a grid are not the ticket's to the last bit.
        """
        self.save(path)
        again = UniversalTicket.load(path)
        grid = np.linspace(0, 1, 101)[:, None].repeat(self.inputs, axis=1)
        if not np.array_equal(again.features(grid), self.features(grid)):
            raise RuntimeError(f"the ticket read from {str(path)!r} computes other features than the one written there")
        return again


def copy_purpose(purpose: str, copy: int) -> str:
    """The name of the draws of one copy of a stage's chain."""
    return purpose if copy == 0 else f"{purpose} {copy}"


def _widths(chain: Chain) -> list[int]:
    return [chain[0].weight.shape[1], *(layer.weight.shape[0] for layer in chain)]


def _assemble(description: dict[str, Any], bits: dict[str, Array]) -> UniversalTicket:
    stages = []
    for entry in description["stages"]:
        chains = []
        for copy, widths in enumerate(entry["widths"]):
            chain = draw_chain(description["seed"], copy_purpose(entry["purpose"], copy), widths, description["law"])
            kept = (
                np.unpackbits(bits[f"{entry['purpose']}/{copy}/{number}"], count=layer.parameters).astype(bool)
                for number, layer in enumerate(chain)
            )
            chains.append(tuple(layer.masked(flat) for layer, flat in zip(chain, kept, strict=True)))
        stages.append(ChainStage(entry["purpose"], entry["kind"], tuple(chains), entry["rectified"]))
    ticket = (description["seed"], description["law"], description["inputs"], tuple(stages))
    return UniversalTicket(*ticket, tuple(description["failures"]))


def _digest(ticket: UniversalTicket) -> str:
    digest = blake2b(digest_size=16)
    for name, layer in ticket.layers():
        digest.update(name.encode())
        for keep, numbers in ((layer.keep, layer.weight), (layer.keep_bias, layer.bias)):
            digest.update(np.flatnonzero(keep).tobytes() + numbers[keep].tobytes())
    return digest.hexdigest()


class Convolution(torch.nn.Module):
    """The masked source as a module in float64, (points, inputs) to (points, k): 1 x 1 convolutions over coordinates
    for shared chains, grouped ones for copied chains (a group a coordinate), linear layers for dense ones. Masks are
    buffers, pruned parameters stay."""

    def __init__(self, ticket: UniversalTicket) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleList(_Stage(stage) for stage in ticket.stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class _Stage(torch.nn.Module):
    def __init__(self, stage: ChainStage) -> None:
        super().__init__()
        self.kind, self.rectified = stage.kind, stage.rectified
        self.groups = len(stage.chains)
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        self.depth = len(stage.chains[0])
        for number in range(self.depth):
            layers = [chain[number] for chain in stage.chains]
            self.weights.append(torch.nn.Parameter(_joined([layer.weight for layer in layers]), requires_grad=False))
            self.biases.append(torch.nn.Parameter(_joined([layer.bias for layer in layers]), requires_grad=False))
            self.register_buffer(f"keep{number}", _joined([layer.keep for layer in layers]))
            self.register_buffer(f"keep_bias{number}", _joined([layer.keep_bias for layer in layers]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        if self.kind == "shared":
            x = x.unsqueeze(1)  # one channel, positions are coordinates
        elif self.kind == "copied":
            x = x.unsqueeze(2)  # a group of channels a coordinate
        for number in range(self.depth):
            weight = self.weights[number] * self.get_buffer(f"keep{number}")
            bias = self.biases[number] * self.get_buffer(f"keep_bias{number}")
            if self.kind == "dense":
                x = torch.nn.functional.linear(x, weight, bias)
            else:
                x = torch.nn.functional.conv1d(x, weight[:, :, None], bias, groups=self.groups)
            if self.rectified or number < self.depth - 1:
                x = torch.relu(x)
        return x if self.kind == "dense" else x.reshape(shape)


def _joined(arrays: list[Array]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays))
