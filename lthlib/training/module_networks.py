"""Networks that run their module, whose parameters are leaves; weights in a basis are synthesised at each step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lthlib.basis import Basis, Kronecker
from lthlib.ticket import Ticket
from lthlib.training.network import Network, Transform
from lthlib.training.stacked_layers import stack_layers


class ModuleNetwork(Network):
    """One network of any kind, or several whose module's layers are stacked; images and kernels in channels_last."""

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

    def prepare(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    @property
    def reads(self) -> str:
        return "channels last"

    def _outputs(self, inputs: Tensor, training: bool) -> Tensor:
        if self.module.training != training:
            self.module.train(training)
        if not self.synthesised:
            return self.module(inputs)
        # Synthesised weights come in rows; a convolution of channels_last images wants them in that layout too.
        weights = {name: self._layout(self.bases[name].synthesise(self.leaves[name])) for name in self.synthesised}
        return functional_call(self.module, weights, (inputs,))


class SingleNetwork(ModuleNetwork):
    """One network of any kind."""

    def _join(self, tensors: list[Tensor]) -> Tensor:
        (tensor,) = tensors
        return tensor

    def _part(self, tensor: Tensor, index: int) -> Tensor:
        return tensor

    def _layout(self, tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)

    def forward(self, inputs: Tensor, training: bool) -> Tensor:
        return self._outputs(inputs.squeeze(0), training).unsqueeze(0)


@dataclass(frozen=True)
class BasesOfEach:
    """Each replicate's own basis of one tensor, for tensors (replicates, *tensor shape)."""

    each: tuple[Basis, ...]

    @property
    def is_identity(self) -> bool:
        """True where coefficients are the weights themselves."""
        return all(basis.is_identity for basis in self.each)

    def analyse(self, weight: Tensor) -> Tensor:
        """Coefficients B w."""
        return torch.stack([basis.analyse(part) for basis, part in zip(self.each, weight, strict=True)])

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Weight B^T c."""
        return torch.stack([basis.synthesise(part) for basis, part in zip(self.each, coefficients, strict=True)])


def is_common(basis: Basis) -> bool:
    """Whether all replicates have this basis: by its rule alone it depends on no seed and no weights."""
    return isinstance(basis, Kronecker) and all(
        axis is None or axis.kind not in ("given", "random") for axis in basis.axes
    )


class ConvolutionStack(ModuleNetwork):
    """Replicates of one of our convolutional networks, two or more: convolutions in groups (see `stacked_layers`).

    A basis that all replicates have in common synthesises their weights in one product; others each their own.
    """

    leading = 1

    def __init__(self, tickets: Sequence[Ticket], module: nn.Module, *arguments: object) -> None:
        if len(tickets) < 2:
            raise ValueError("a stack of convolutional networks has two replicates or more")
        stack_layers(module, len(tickets))
        super().__init__(tickets, module, *arguments)

    def _transform(self, name: str) -> Transform:
        bases = [ticket.bases[name] for ticket in self.sources]
        return bases[0] if is_common(bases[0]) else BasesOfEach(tuple(bases))

    def _join(self, tensors: list[Tensor]) -> Tensor:
        return self._layout(torch.stack(tensors))

    def _part(self, tensor: Tensor, index: int) -> Tensor:
        return tensor[index]

    def _layout(self, tensor: Tensor) -> Tensor:
        if tensor.dim() != 5:
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor.flatten(0, 1).clone(memory_format=torch.channels_last).unflatten(0, tensor.shape[:2])

    def forward(self, inputs: Tensor, training: bool) -> Tensor:
        count, batch, _, *sides = inputs.shape
        # Side by side in one batch's channels, which lie last in memory.
        images = inputs.permute(1, 3, 4, 0, 2).reshape(batch, *sides, -1).permute(0, 3, 1, 2)
        return self._outputs(images, training).unflatten(1, (count, -1)).transpose(0, 1)
