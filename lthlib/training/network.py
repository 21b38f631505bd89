"""Tickets made trainable: leaves in the basis, masks on their gradients, replicates of linear nets stacked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lthlib.basis import Kronecker
from lthlib.models.architecture import Architecture, skeleton, with_factory
from lthlib.rounding import rows_times
from lthlib.ticket import State, Ticket

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Identity)


def stack_key(ticket: Ticket) -> object | None:
    """What tickets must share to be trained as one stack; None for a ticket that must be trained alone.

    Stacks are for plain sequences of linear layers in fixed bases. Adaptive bases differ from replicate to replicate.
    All tickets of a stack prune the same layers: where one does, all go through its projection onto a mask, which for
    a dense layer would be no more than rounding, but rounding that its neighbours decide.
    """
    if not is_linear(ticket) or any(basis.stored_numbers for basis in ticket.bases.values()):
        return None
    bases = {name: basis.to_json() for name, basis in ticket.bases.items()}
    pruned = [name for name, mask in ticket.masks.items() if not bool(mask.all())]
    return json.dumps([ticket.architecture.to_json(), ticket.off, bases, pruned], sort_keys=True)


def is_linear(ticket: Ticket) -> bool:
    """Whether the ticket's network is a plain sequence of linear layers, and so trains as (part of) a stack."""
    return _is_linear(with_factory(ticket.architecture))


@lru_cache(maxsize=256)
def _is_linear(architecture: Architecture) -> bool:
    return _is_linear_sequence(skeleton(architecture))


def _is_linear_sequence(module: nn.Module) -> bool:
    if type(module) is not nn.Sequential or len(module) == 0:
        return False
    first, *layers = module
    whole = isinstance(first, nn.Flatten) and (first.start_dim, first.end_dim) == (1, -1)
    return whole and all(type(layer) is nn.Linear or isinstance(layer, ACTIVATIONS) for layer in layers)


def network(
    tickets: Sequence[Ticket], device: torch.device, dtype: torch.dtype, state_in: str = "coefficients"
) -> "Network":
    """The trainable form of tickets that share a `stack_key` (or of one ticket)."""
    module = skeleton(tickets[0].architecture)
    kind = LinearStack if _is_linear_sequence(module) else SingleNetwork
    return kind(tickets, module, device, dtype, state_in)


class Network:
    """Leaf tensors, masks and state of `count` tickets; subclasses say how a batch flows through them.

    `leaves` are the coefficients (or, with `state_in="weights"`, the weights) that the optimizer moves, `affine` the
    other trained parameters, `buffers` what is not trained. Pruned entries start at zero (or at their held value) and
    get no gradient, so that momentum and weight decay leave them there exactly. `leading` counts the axes of
    replicates before a tensor's own.
    """

    leading = 0

    def __init__(
        self, tickets: Sequence[Ticket], module: nn.Module, device: torch.device, dtype: torch.dtype, state_in: str
    ) -> None:
        self.sources = list(tickets)
        self.module = module
        self.bases = dict(tickets[0].bases)
        self.in_weights = state_in == "weights" and any(not basis.is_identity for basis in self.bases.values())
        trained = {name for name, _ in module.named_parameters()}

        def joined(states: list[State], name: str) -> Tensor:
            tensor = self._join([state[name] for state in states]).to(device)
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        effective = [ticket.effective_coefficients() for ticket in tickets]
        self.leaves, self.masks, self.held = {}, {}, {}
        for name, basis in self.bases.items():
            value = joined(effective, name)
            if any(not bool(ticket.masks[name].all()) for ticket in tickets):
                self.masks[name] = joined([ticket.masks for ticket in tickets], name)
                self.held[name] = value.clone()
            self.leaves[name] = self._layout(basis.synthesise(value) if self.in_weights else value)
        rest = [dict(ticket.rest) for ticket in tickets]
        self.affine = {name: joined(rest, name).clone() for name in rest[0] if name in trained}
        self.buffers = {name: joined(rest, name).clone() for name in rest[0] if name not in trained}
        for tensor in self.parameters():
            tensor.requires_grad_()

    def _join(self, tensors: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def _part(self, tensor: Tensor, index: int) -> Tensor:
        raise NotImplementedError

    def _layout(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def prepare(self, images: Tensor) -> Tensor:
        """Normalised images as this network reads them; done once per data set where nothing is augmented."""
        return images

    @property
    def reads(self) -> str:
        """What `prepare` depends on: networks with the same one read the same."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, training: bool) -> Tensor:
        """Logits (count, batch, classes) from inputs with a leading axis of length `count`."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """How many tickets flow through this network at once."""
        return len(self.sources)

    def parameters(self) -> list[Tensor]:
        """All leaf tensors that the optimizer moves."""
        return [*self.leaves.values(), *self.affine.values()]

    def mask_gradients(self) -> None:
        """Takes from each gradient what would move a pruned coefficient."""
        for name, mask in self.masks.items():
            gradient = self.leaves[name].grad
            if gradient is None:
                continue
            if self.in_weights:
                basis = self.bases[name]
                gradient.copy_(basis.synthesise(basis.analyse(gradient) * mask))
            else:
                gradient.mul_(mask)

    @torch.no_grad()
    def change(self, update: Callable[[str, Tensor], Tensor], names: Sequence[str] | None = None) -> None:
        """Replaces the coefficients of `names` (None: all) by `update(name, coefficients)`; pruned ones stay held."""
        for name in self.leaves if names is None else names:
            value = update(name, self._coefficients(name))
            if name in self.masks:
                value = torch.where(self.masks[name], value, self.held[name])
            self.leaves[name].copy_(self._from_coefficients(name, value))

    def each(self, state: State) -> list[State]:
        """Tensors with this network's leading axes as one state (of views) for each ticket."""
        return [{name: self._part(tensor, index) for name, tensor in state.items()} for index in range(self.count)]

    @torch.no_grad()
    def remask(self, masks: Sequence[State]) -> State:
        """From here on each ticket prunes by its own of `masks` (boolean, for all prunable tensors).

        Returns which coefficients stay kept, with leading axes: all others are zero now, new ones too. For leaves
        that are coefficients and `off="zero"`.
        """
        stays = {}
        for name, leaf in self.leaves.items():
            mask = self._join([state[name] for state in masks]).to(leaf.device)
            stays[name] = mask & self.masks.get(name, mask)
            leaf.masked_fill_(~stays[name], 0)
            if name in self.masks:
                # In place, because a captured step reads these very tensors.
                self.masks[name].copy_(mask)
                self.held[name].zero_()
            else:
                self.masks[name], self.held[name] = mask, torch.zeros_like(leaf)
        return stays

    @torch.no_grad()
    def hold(self, everywhere: bool = False) -> None:
        """Puts pruned coefficients back where they are held, after a step that may have moved them.

        Only needed where masked gradients are not enough: weight decay on held values that are not zero, optimizer
        state kept in weights, and (`everywhere`) optimizers whose steps mix coordinates.
        """
        for name, mask in self.masks.items():
            if everywhere or self.in_weights or self.sources[0].off == "init":
                held = torch.where(mask, self._coefficients(name), self.held[name])
                self.leaves[name].copy_(self._from_coefficients(name, held))

    def _coefficients(self, name: str) -> Tensor:
        return self.bases[name].analyse(self.leaves[name]) if self.in_weights else self.leaves[name]

    def _from_coefficients(self, name: str, value: Tensor) -> Tensor:
        return self.bases[name].synthesise(value) if self.in_weights else value

    @torch.no_grad()
    def tickets(self) -> list[Ticket]:
        """The tickets as they now stand, on the CPU."""
        coefficients = {name: self._coefficients(name).detach() for name in self.leaves}
        if self.in_weights:
            # The round trip through weights leaves rounding errors where a coefficient is held.
            for name, mask in self.masks.items():
                coefficients[name] = torch.where(mask, coefficients[name], self.held[name])
        rest = {**self.affine, **self.buffers}

        def part(state: State, index: int) -> State:
            return {
                name: self._part(tensor.detach(), index).cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in state.items()
            }

        return [
            replace(
                source,
                coefficients=part(coefficients, index),
                masks={**source.masks, **part(self.masks, index)},
                rest=part(rest, index),
            )
            for index, source in enumerate(self.sources)
        ]


class LinearStack(Network):
    """Replicates of one sequence of linear layers, as batched products.

    A basis acts on activations, $y=B_{out}^\\top(C(B_{in}x))$, which for batches is cheaper than synthesising
    weights, and costs nothing on the inputs: those are transformed once.
    """

    leading = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        # Not named_children(), which lists an activation that is used twice only once.
        layers = self.module._modules.items()
        self.layers = [(name, layer) for name, layer in layers if layer is not None and type(layer) is not nn.Flatten]
        self.matrices = {name: self._matrices(name) for name in self.leaves}
        self.first = next(f"{name}.weight" for name, layer in self.layers if isinstance(layer, nn.Linear))

    def _join(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors)

    def _part(self, tensor: Tensor, index: int) -> Tensor:
        return tensor[index]

    def _matrices(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        basis = self.bases[name]
        if self.in_weights or not isinstance(basis, Kronecker):
            return None, None
        out, into = (basis.matrix_like(axis, self.leaves[name]) for axis in (0, 1))
        # The transposed copy makes the product on activations a plain row-major one.
        return None if into is None else into.mT.contiguous(), out

    def prepare(self, images: Tensor) -> Tensor:
        inputs = images.flatten(1)
        into = self.matrices[self.first][0]
        return inputs if into is None else inputs @ into.to(inputs.dtype)

    @property
    def reads(self) -> str:
        into = self.matrices[self.first][0]
        return "rows" if into is None else blake2b(into.cpu().numpy().data, digest_size=16).hexdigest()

    @property
    def on_activations(self) -> bool:
        """Whether the leaves are coefficients and every basis acts on activations, so that no weight is synthesised."""
        return not self.in_weights and all(isinstance(basis, Kronecker) for basis in self.bases.values())

    def forward(self, inputs: Tensor, training: bool) -> Tensor:
        x = inputs
        for prefix, layer in self.layers:
            if isinstance(layer, nn.Linear):
                name = f"{prefix}.weight"
                x = self.product(self.into_basis(x, name), name, self.affine.get(f"{prefix}.bias"))
            else:
                x = layer(x)
        return x

    def into_basis(self, x: Tensor, name: str) -> Tensor:
        """$B_{in}x$ for a layer's inputs; those of the first layer are transformed already."""
        into = self.matrices[name][0]
        return x if into is None or name == self.first else rows_times(x, into)

    def product(self, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
        """$B_{out}^\\top C x$ plus bias, for inputs that `into_basis` gave."""
        leaf, out = self.leaves[name], self.matrices[name][1]
        if not self.in_weights and not isinstance(self.bases[name], Kronecker):
            leaf = self.bases[name].synthesise(leaf)
        if out is None and bias is not None:
            return torch.baddbmm(bias.unsqueeze(1), x, leaf.mT)
        y = torch.bmm(x, leaf.mT)
        if out is not None:
            y = rows_times(y, out)
        return y if bias is None else y + bias.unsqueeze(1)


class SingleNetwork(Network):
    """One network of any kind, convolutions in channels_last; weights in a basis are synthesised at each step."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        plain = {name for name in self.leaves if self.in_weights or self.bases[name].is_identity}
        self.synthesised = [name for name in self.leaves if name not in plain]
        # Swapped in at each step, they would take as long as small layers do.
        self.leaves |= {name: nn.Parameter(leaf) for name, leaf in self.leaves.items() if name in plain}
        self.affine = {name: nn.Parameter(tensor) for name, tensor in self.affine.items()}
        for name, tensor in ({name: self.leaves[name] for name in plain} | self.affine | self.buffers).items():
            path, _, attribute = name.rpartition(".")
            setattr(self.module.get_submodule(path), attribute, tensor)

    def _join(self, tensors: list[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor

    def _part(self, tensor: Tensor, index: int) -> Tensor:
        return tensor

    def _layout(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone(memory_format=_memory_format(tensor))

    def prepare(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    @property
    def reads(self) -> str:
        return "channels last"

    def forward(self, inputs: Tensor, training: bool) -> Tensor:
        if self.module.training != training:
            self.module.train(training)
        if not self.synthesised:
            return self.module(inputs.squeeze(0)).unsqueeze(0)
        weights = {name: self.bases[name].synthesise(self.leaves[name]) for name in self.synthesised}
        # Synthesised weights come in rows; a convolution of channels_last images wants them in that layout too.
        weights = {name: weight.contiguous(memory_format=_memory_format(weight)) for name, weight in weights.items()}
        return functional_call(self.module, weights, (inputs.squeeze(0),)).unsqueeze(0)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
