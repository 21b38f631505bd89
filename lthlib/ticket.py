r"""The one noun of the workbook.

A **ticket** is an architecture, an orthonormal basis per weight tensor, the coefficients in that basis and a boolean
mask over them; its weights are $\theta=B^\top(m\odot c)$.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lthlib import basis as bases_room
from lthlib.basis import Basis, bases
from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.models.architecture import Architecture, build, prunable, skeleton
from lthlib.models.architecture import architecture as named_architecture
from lthlib.models.initial import initial_state
from lthlib.models.own import Factory
from lthlib.randomness import generator
from lthlib.store import write_atomically

State = dict[str, Tensor]
PARTS = {"digest", "shapes", "bases", "architecture", "off"}  # of the description in a ticket's file


@dataclass(frozen=True)
class Ticket:
    """A network described in bases, with a mask over its coefficients.

    - `bases`, `coefficients`, `masks`: one entry per prunable tensor (weights of convolution and linear layers), in
      the network's order; coefficients are floating point, masks boolean, both of the tensor's own shape.
    - `rest`: all other state (biases, normalisation, buffers), never pruned.
    - `seed`: the replicate that it is of, which fixes its data order, its controls and all else that is drawn for it;
      not part of its content, so outside its digest.
    - `off`: what a pruned coefficient is: `"zero"`, or `"init"`, held at its value in `coefficients`
      (random subspaces of Li et al. 2018, intrinsic dimension).
    """

    architecture: Architecture
    bases: Mapping[str, Basis]
    coefficients: State
    masks: State
    rest: State = field(default_factory=dict)
    off: Literal["zero", "init"] = "zero"
    seed: int = 0

    @property
    def kept(self) -> int:
        """How many coefficients the mask keeps."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def prunable(self) -> int:
        """How many coefficients could be pruned: all weights of convolution and linear layers."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def density(self) -> float:
        """Kept / prunable, in [0, 1]."""
        return self.kept / self.prunable

    def layer_densities(self) -> dict[str, float]:
        """Density of each prunable tensor."""
        return {name: float(mask.float().mean()) for name, mask in self.masks.items()}

    def effective_coefficients(self) -> State:
        """The coefficients as the network sees them: zero (or held at init) where pruned."""
        if self.off == "init":
            return dict(self.coefficients)
        return {name: c * self.masks[name] for name, c in self.coefficients.items()}

    def weights(self) -> State:
        """The weight tensors, $B^\\top(m\\odot c)$."""
        return {name: self.bases[name].synthesise(c) for name, c in self.effective_coefficients().items()}

    def state(self) -> State:
        """A full `state_dict` for `models.build(ticket.architecture)`."""
        return {**self.weights(), **self.rest}

    def module(self) -> nn.Module:
        """The network as a plain `nn.Module` with the ticket's weights, in evaluation mode."""
        module = build(self.architecture)
        module.load_state_dict(self.state())
        return module.eval()

    @property
    def free_numbers(self) -> int:
        """Trainable numbers among the prunable: one per kept coefficient."""
        return self.kept

    @property
    def stored_numbers(self) -> int:
        """32-bit numbers that describe the prunable part: kept coefficients, mask bits, adaptive bases.

        Fixed bases cost nothing: name and seed rebuild them. A dense mask costs nothing either. With `off="init"`
        the held coefficients are rebuilt from the initial seed, so they are not counted.
        """
        mask = 0 if self.kept == self.prunable else math.ceil(self.prunable / 32)
        return self.kept + mask + sum(self.bases[name].stored_for(bits) for name, bits in self.masks.items())

    def to(self, device: torch.device | str) -> "Ticket":
        """The same ticket on another device."""

        def moved(state: State) -> State:
            return {name: tensor.to(device) for name, tensor in state.items()}

        return replace(self, coefficients=moved(self.coefficients), masks=moved(self.masks), rest=moved(self.rest))

    def with_masks(self, masks: State) -> "Ticket":
        """The same network under other masks; raises InputError where names, shapes or types do not fit."""
        for name, c in self.coefficients.items():
            if name not in masks or masks[name].shape != c.shape or masks[name].dtype != torch.bool:
                given = f"{masks[name].dtype} {tuple(masks[name].shape)}" if name in masks else "nothing"
                raise InputError(f"mask of {name!r} must be boolean of shape {tuple(c.shape)}, found {given}")
        return replace(self, masks={name: masks[name] for name in self.coefficients})

    def in_bases(self, bases: Mapping[str, Basis]) -> "Ticket":
        """The same dense network, its weights analysed in other bases; a mask cannot follow, so it must be dense."""
        if self.kept != self.prunable:
            raise InputError(f"a ticket of density {self.density:.4g} cannot change its basis (only density 1 can)")
        weights = self.weights()
        return replace(
            self, bases=dict(bases), coefficients={name: bases[name].analyse(weights[name]) for name in weights}
        )

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file whose header holds the JSON description; never pickle.

        Of pruned coefficients nothing is stored where they are zero anyway (`off="zero"`).
        """
        from safetensors.torch import save_file

        description, tensors = self._described()
        # In the order of the layers, which breaks ties and orders random draws: a loaded ticket must have the same.
        marks = {"digest": _digest(tensors, description), "seed": self.seed}
        header = {"ticket": json.dumps(description | marks)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))

    def digest(self) -> str:
        """A name for the ticket's content: equal for tickets with the same survivors, bases and other state."""
        description, tensors = self._described()
        return _digest(tensors, description)

    def _described(self) -> tuple[dict, State]:
        tensors: State = {f"rest/{name}": tensor.contiguous() for name, tensor in self.rest.items()}
        for name, c in self.coefficients.items():
            mask = self.masks[name]
            tensors[f"mask/{name}"] = _pack(mask)
            tensors[f"coefficients/{name}"] = (c[mask] if self.off == "zero" else c).contiguous()
            for part, tensor in self.bases[name].tensors().items():
                tensors[f"basis/{name}/{part}"] = tensor.contiguous()
        # Modules may share storage (tied weights, views), which safetensors refuses.
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        description = {
            "architecture": self.architecture.to_json(),
            "off": self.off,
            "shapes": {name: list(c.shape) for name, c in self.coefficients.items()},
            "bases": {name: basis.to_json() for name, basis in self.bases.items()},
        }
        return description, tensors

    @staticmethod
    def load(path: Path | str) -> "Ticket":
        """Reads what `save` wrote; raises InputError when the file is missing, truncated, altered or no ticket."""
        from safetensors import SafetensorError, safe_open

        damaged = f"ticket file {str(path)!r} is truncated or damaged"
        try:
            with safe_open(str(path), framework="pt") as file:
                header = (file.metadata() or {}).get("ticket")
                # Copied, because a file's tensors lie anywhere, and sums may round by where they do.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError as error:
            raise InputError(f"no ticket file {str(path)!r}") from error
        except (SafetensorError, OSError) as error:
            raise InputError(f"{damaged} ({error})") from error
        if header is None:
            raise InputError(f"{str(path)!r} holds tensors but no ticket (write one with Ticket.save)")
        try:
            description = json.loads(header)
        except ValueError as error:
            raise InputError(f"{damaged} ({error})") from error
        if not isinstance(description, dict) or not description.keys() >= PARTS:
            raise InputError(f"{damaged} (its header is not a ticket's)")
        seed = description.pop("seed", 0)
        if description.pop("digest") != _digest(tensors, description):
            raise InputError(f"ticket file {str(path)!r} is damaged: its content differs from its digest")
        try:
            ticket = replace(_assemble(description, tensors), seed=seed)
            _refuse_misfit(ticket)
        except InputError:
            raise
        except (KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            # Its digest agrees: another version's, made up, or a mistake of ours, which the cause tells.
            raise InputError(f"ticket file {str(path)!r} is whole but describes no ticket ({error!r})") from error
        return ticket


def dense_ticket(
    architecture: Architecture, state: State, bases: Mapping[str, Basis] | None = None, seed: int = 0
) -> Ticket:
    """The ticket of density 1 with the weights of a full `state_dict`, analysed in `bases` (default: canonical).

    `seed` is the replicate that the state is of.
    """
    names = prunable(architecture)
    weights = {name: state[name] for name in names}
    if bases is None:
        bases = bases_room.bases("canonical", {name: tuple(w.shape) for name, w in weights.items()}, ())
    return Ticket(
        architecture=architecture,
        bases=dict(bases),
        coefficients={name: bases[name].analyse(weight) for name, weight in weights.items()},
        masks={name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()},
        rest={name: tensor for name, tensor in state.items() if name not in weights},
        seed=seed,
    )


def _assemble(description: dict, tensors: State) -> Ticket:
    coefficients, masks, bases = {}, {}, {}
    for name, shape in description["shapes"].items():
        masks[name] = _unpack(tensors[f"mask/{name}"], shape)
        values = tensors[f"coefficients/{name}"]
        if description["off"] == "zero":
            coefficients[name] = torch.zeros(shape, dtype=values.dtype)
            coefficients[name][masks[name]] = values
        else:
            coefficients[name] = values
        prefix = f"basis/{name}/"
        parts = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        bases[name] = bases_room.from_json(description["bases"][name], parts)
    return Ticket(
        architecture=Architecture.from_json(description["architecture"]),
        bases=bases,
        coefficients=coefficients,
        masks=masks,
        rest={key[len("rest/") :]: tensor for key, tensor in tensors.items() if key.startswith("rest/")},
        off=description["off"],
    )


def _refuse_misfit(ticket: Ticket) -> None:
    """Raises InputError where masks are not those of the architecture: a file that nothing here has written.

    A user's own model is not asked: a file must not choose what is imported.
    """
    if ticket.architecture.is_own:
        return
    shapes = {name: tuple(mask.shape) for name, mask in ticket.masks.items()}
    if list(shapes.items()) != list(_prunable_shapes(ticket.architecture).items()):
        raise InputError(f"its tensors are not those of {ticket.architecture.name!r}")


@lru_cache(maxsize=256)
def _prunable_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    checked = named_architecture(architecture.name, architecture.input_shape, architecture.classes)
    module = skeleton(checked)  # without memory: the name may ask for any
    shapes = module.state_dict()
    return {name: tuple(shapes[name].shape) for name in prunable(module)}


def _pack(mask: Tensor) -> Tensor:
    """The mask as bits, eight to a byte, the first entry highest."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy())[: math.prod(shape)]).view(shape).bool()


def _digest(tensors: State, description: dict) -> str:
    digest = blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def in_bases_of(own: Ticket, other: Ticket) -> Ticket:
    """`own` in the bases of `other`, so that a mask of one has the same meaning in the other.

    Raises InputError, with both shapes, for another architecture, and for a sparse ticket in another basis.
    """
    if own.kept == own.prunable and own.architecture == other.architecture:
        return own if _other_basis(own, other) is None else own.in_bases(other.bases)
    check_same_bases(own, other)
    return own


def check_same_bases(first: Ticket, second: Ticket) -> None:
    """Raises InputError, naming the tensor and both shapes, unless both tickets are of one architecture and basis."""
    for name in dict.fromkeys([*second.coefficients, *first.coefficients]):
        shapes = [tuple(t.coefficients[name].shape) if name in t.coefficients else None for t in (first, second)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{name!r} has shape {shapes[0]} in {first.architecture.name!r} and {shapes[1]} in "
                f"{second.architecture.name!r}: tickets of one architecture are needed"
            )
    odd = _other_basis(first, second)
    if odd is not None:
        shape, rules = tuple(first.coefficients[odd].shape), [t.bases[odd].name for t in (first, second)]
        raise InputError(
            f"{odd!r} of shape {shape} is in the basis {rules[0]!r}, and of shape {shape} in {rules[1]!r} in the other "
            "ticket: their masks mean different things"
        )


def _other_basis(first: Ticket, second: Ticket) -> str | None:
    """The first tensor whose bases differ."""
    for name, mine in first.bases.items():
        other = second.bases[name]
        given = mine.tensors(), other.tensors()
        if mine.to_json() != other.to_json() or any(not torch.equal(given[0][key], given[1][key]) for key in given[0]):
            return name
    return None


def initial_tickets(
    architecture: Architecture, seeds: Sequence[int], scheme: str = "kaiming_normal", stream: str = ""
) -> list[Ticket]:
    """The dense canonical ticket of each seed's initial weights; `stream` names a draw other than the first."""
    return [
        dense_ticket(architecture, initial_state(architecture, _redrawn(seed, stream), scheme), seed=seed)
        for seed in seeds
    ]


def tickets(
    model: str | Factory | Architecture, data: Dataset, seeds: int | Sequence[int] = 5, scheme: str = "kaiming_normal"
) -> list[Ticket]:
    """The dense tickets of a model for a data set, one a replicate: `seeds` are their number, or the seeds themselves.

    `model` is a name, such as "lenet-300-100", a function or class of (input_shape, classes), or an `architecture` of
    the data's shape and classes.
    """
    if not isinstance(model, Architecture):
        model = named_architecture(model, data.input_shape, data.classes)
    return initial_tickets(model, range(seeds) if isinstance(seeds, int) else seeds, scheme)


def _redrawn(seed: int, stream: str) -> int:
    return int(torch.randint(2**62, (), generator=generator(seed, stream))) if stream else seed


def shapes_of(ticket: Ticket) -> dict[str, tuple[int, ...]]:
    """The shape of each prunable tensor, in the network's order."""
    return {name: tuple(c.shape) for name, c in ticket.coefficients.items()}


def bases_for(ticket: Ticket, rule: str, seed: int = 0, fit_to: State | None = None) -> dict[str, Basis]:
    """The bases of `rule` (see `basis.bases`) for a ticket's tensors; adaptive ones are fitted to weights `fit_to`."""
    return bases(rule, shapes_of(ticket), ticket.architecture.input_shape, seed, fit_to)


NORMS = ("eval", "batch")


def forward_of(ticket: Ticket, *, norm: str = "eval") -> Callable[[State, Tensor], Tensor]:
    """f(coefficients, images) = logits (N, classes) of the ticket's network; the ticket's own mask is not applied.

    `norm` says what BatchNorm uses: the ticket's statistics ("eval", as the original SNIP), or those of the images
    ("batch"). Coefficients are a dictionary like `ticket.coefficients`. Raises InputError for another `norm`.
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    module = structure(ticket.architecture, norm)

    def forward(coefficients: State, images: Tensor) -> Tensor:
        weights = {name: ticket.bases[name].synthesise(c) for name, c in coefficients.items()}
        # In training mode BatchNorm writes into the buffers that it is given.
        rest = {name: tensor.clone() for name, tensor in ticket.rest.items()} if norm == "batch" else ticket.rest
        return functional_call(module, {**weights, **rest}, (images,))

    return forward


def structure(architecture: Architecture, norm: str = "eval") -> nn.Module:
    """A module without values, in evaluation mode; BatchNorm uses, with "reset" also stores, those of the batch."""
    module = skeleton(architecture).eval()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.train(norm != "eval")
            if norm == "reset":
                layer.momentum = 1.0
    return module
