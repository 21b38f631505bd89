"""Replicates of one sequence of linear layers, as batched products."""

from hashlib import blake2b

import torch
from torch import Tensor, nn

from lthlib.basis import Kronecker
from lthlib.rounding import rows_times
from lthlib.training.network import Network

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Identity)


def is_linear_sequence(module: nn.Module) -> bool:
    """Whether the module is a flattening, then linear layers and activations, in a plain sequence."""
    if type(module) is not nn.Sequential or len(module) == 0:
        return False
    first, *layers = module
    whole = isinstance(first, nn.Flatten) and (first.start_dim, first.end_dim) == (1, -1)
    return whole and all(type(layer) is nn.Linear or isinstance(layer, ACTIVATIONS) for layer in layers)


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
