"""Tickets made trainable: leaves in the basis, masks on their gradients, one or more replicates at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from lthlib.ticket import State, Ticket


class Transform(Protocol):
    """From a tensor's weights to its coefficients and back, leading axes of replicates included."""

    @property
    def is_identity(self) -> bool:
        """True where coefficients are the weights themselves."""

    def analyse(self, weight: Tensor) -> Tensor:
        """Coefficients B w."""

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Weight B^T c."""


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
        self.bases = {name: self._transform(name) for name in tickets[0].bases}
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
            self.leaves[name] = self._layout(basis.synthesise(value) if self.in_weights else value).detach()
        rest = [dict(ticket.rest) for ticket in tickets]
        self.affine = {name: joined(rest, name).clone() for name in rest[0] if name in trained}
        self.buffers = {name: joined(rest, name).clone() for name in rest[0] if name not in trained}
        for tensor in self.parameters():
            tensor.requires_grad_()

    def _transform(self, name: str) -> Transform:
        return self.sources[0].bases[name]

    def _join(self, tensors: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def _part(self, tensor: Tensor, index: int) -> Tensor:
        raise NotImplementedError

    def _layout(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor that lies in memory as its layer reads it best."""
        return tensor.clone()

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

    @torch.no_grad()
    def put(self, states: Sequence[State]) -> None:
        """Gives each ticket the values of its own state, for the leaves and other trained parameters that it names."""
        trained = self.leaves | self.affine
        for name in states[0]:
            trained[name].copy_(self._join([state[name] for state in states]))

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
