"""Networks as lists of layers: targets read from tickets, and sources built from one line of text.

A construction needs a network's weights layer by layer, not its module. `read` gives them, with normalisations folded
into the convolutions before them; `run` computes the same function from the list, in float64. A source network is the
architecture `layers-TEXT`: TEXT joins layers with dashes, such as `conv8k3x3-relu-pool-flatten-linear20-tanh-linear10`,
so that a ticket of a source is saved and loaded like any other.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lthlib.errors import InputError
from lthlib.models.architecture import Architecture, architecture, build
from lthlib.models.layers import LEAK, MODULES, Function, ResidualModule, SetLayer, plain, with_mean
from lthlib.models.networks import VGG, Conv, ResNet
from lthlib.ticket import Ticket

COVERED = ("Linear", "Conv2d", "BatchNorm2d after a convolution", "ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Flatten",
           "2x2 max pooling", "mean over positions", "residual blocks")  # fmt: skip
KINDS = ("linear", "conv", "cyclic", "sets")


@dataclass(frozen=True)
class Affine:
    """A layer with weights: `weight` (outputs, inputs, *taps) and `bias` (outputs,), float64, or None.

    `kind`: "linear"; "conv", zero-padded to keep the size at `stride` 1; "cyclic", the same with circular padding,
    which commutes with shifts; "sets", the layer x -> A x + B mean(x) over the members of a set, which commutes with
    permutations (Zaheer et al. 2017), its weight (outputs, inputs, 1, 2) holding A and B.
    """

    name: str
    kind: str
    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1

    @property
    def identity(self) -> tuple[int, ...]:
        """The tap at which a channel is passed on as it is: the kernel's centre, a set's own member."""
        taps = self.weight.shape[2:]
        return (0,) * len(taps) if self.kind == "sets" else tuple(size // 2 for size in taps)

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x, self.weight, self.bias)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with other weights of the same shape."""
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        if self.kind == "sets":
            return F.conv2d(with_mean(x), weight, bias)
        padding = [size // 2 for size in weight.shape[2:]]
        if self.kind == "cyclic":
            wrapped = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), mode="circular")
            return F.conv2d(wrapped, weight, bias, self.stride)
        return F.conv2d(x, weight, bias, self.stride, padding)

    def text(self, outputs: int, taps: tuple[int, ...] | None = None, stride: int | None = None) -> str:
        """The layer in a source's name, with that many outputs."""
        if self.kind in ("linear", "sets"):
            return f"{self.kind}{outputs}"
        height, width = taps or tuple(self.weight.shape[2:])
        stride = self.stride if stride is None else stride
        return f"{self.kind}{outputs}k{height}x{width}" + (f"s{stride}" if stride > 1 else "")


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x); an empty shortcut is the identity."""

    body: tuple["Node", ...]
    shortcut: tuple["Node", ...] = ()


Node = Affine | Residual | str  # the strings: activations, "pool", "mean", "flatten"


def run(
    nodes: Sequence[Node], x: Tensor, layer: Callable[[Affine, Tensor], Tensor] = lambda affine, x: affine(x)
) -> Tensor:
    """The function that a list of layers computes, on x (batch, ...) in the weights' dtype (float64).

    `layer` stands in for each layer with weights: it sees the layer and its inputs, and returns its outputs.
    """
    for node in nodes:
        if isinstance(node, Affine):
            x = layer(node, x)
        elif isinstance(node, Residual):
            x = run(node.body, x, layer) + run(node.shortcut, x, layer)
        else:
            x = plain(node)(x)
    return x


def flattened(nodes: Sequence[Node]) -> Iterator[Node]:
    """All nodes; after a residual block those of its body and of its shortcut: the order of a source's tensors."""
    for node in nodes:
        yield node
        if isinstance(node, Residual):
            yield from flattened(node.body + node.shortcut)


def affines(nodes: Sequence[Node]) -> Iterator[Affine]:
    """The layers with weights, in the order of `flattened`."""
    return (node for node in flattened(nodes) if isinstance(node, Affine))


# --- targets ---


def read(target: Ticket) -> tuple[Node, ...]:
    """The layers of a target network, float64: those of LeNets, Conv-N, VGG, ResNets and sequences of such layers.

    Normalisations are folded into the convolution before them, as evaluation mode applies them. Raises InputError
    that names a layer which no construction covers, or a tensor that is not finite.
    """
    module = build(target.architecture).double().eval()
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in target.state().items()}
    for name, tensor in state.items():
        wrong = int((~tensor.isfinite()).sum())
        if wrong:
            raise InputError(f"target tensor {name!r} holds {wrong} values that are NaN or infinite (valid: finite)")
    module.load_state_dict(state)
    return tuple(_named(_read(module, ""), module))


def _read(module: Any, path: str) -> list[Node]:
    nodes: list[Node] = []
    if isinstance(module, Conv):
        for stage in module.stages:
            nodes += [*_read(stage, path), "pool"]
        nodes += ["flatten", *_read(module.hidden1, path), "relu", *_read(module.hidden2, path), "relu"]
        return nodes + _read(module.output, path)
    if isinstance(module, VGG):
        for number, stage in enumerate(module.stages):
            nodes += ["pool"] if number else []
            for unit in stage.children():
                nodes += [_folded(_affine(unit.conv), unit.norm), "relu"]
        return [*nodes, "mean", *_read(module.output, path)]
    if isinstance(module, ResNet):
        nodes += [*_read(module.stem, path), "relu"]
        blocks: list[Any] = [block for stage in module.stages for block in stage.children()]
        for block in blocks:
            body = (_folded(_affine(block.conv1), block.norm1), "relu", _folded(_affine(block.conv2), block.norm2))
            shortcut = () if block.shortcut is None else tuple(_read(block.shortcut, path))
            nodes += [Residual(body, shortcut), "relu"]
        return [*nodes, "mean", *_read(module.output, path)]
    if isinstance(module, ResidualModule):
        return [Residual(tuple(_read(module.body, f"{path}body.")), tuple(_read(module.shortcut, f"{path}shortcut.")))]
    if isinstance(module, SetLayer):
        return [_affine(module.inner, "sets")]
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and nodes and isinstance(nodes[-1], Affine):
                nodes[-1] = _folded(nodes[-1], child)
            else:
                nodes += _read(child, f"{path}{name}.")
        return nodes
    if isinstance(module, nn.Linear | nn.Conv2d):
        return [_affine(module, path=path)]
    if isinstance(module, Function):
        return [module.name]
    if isinstance(module, nn.Identity | nn.Dropout):
        return []
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return ["flatten"]
    names: list[Node] = [name for name, kind in MODULES.items() if type(module) is kind]
    if not names or (isinstance(module, nn.LeakyReLU) and module.negative_slope != LEAK):
        raise _uncovered(path, module)
    return names


def _uncovered(path: str, module: nn.Module) -> InputError:
    where = f"layer {path.rstrip('.')!r}" if path else "the target network"
    return InputError(f"{where} ({module}) is covered by no construction (valid: {', '.join(COVERED)})")


def _affine(layer: Any, kind: str = "", path: str = "") -> Affine:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return Affine("", "linear", layer.weight.detach(), bias)
    if not kind:
        kept = tuple(size // 2 for size in layer.kernel_size)
        plain_kernel = layer.groups == 1 and layer.dilation == (1, 1) and layer.stride[0] == layer.stride[1]
        even = any(size % 2 == 0 for size in layer.kernel_size)
        if even or not plain_kernel or layer.padding != kept or layer.padding_mode not in ("zeros", "circular"):
            raise _uncovered(path, layer)
        kind = "conv" if layer.padding_mode == "zeros" else "cyclic"
    return Affine("", kind, layer.weight.detach(), bias, int(layer.stride[0]))


def _folded(node: Node, norm: Any) -> Affine:
    assert isinstance(node, Affine)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.detach() + norm.eps).rsqrt()
    shift = -norm.running_mean.detach() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach() + norm.bias.detach()
    bias = shift if node.bias is None else shift + scale * node.bias
    return replace(node, weight=node.weight * scale.view(-1, *[1] * (node.weight.dim() - 1)), bias=bias)


def _named(nodes: Sequence[Node], module: nn.Module) -> Iterator[Node]:
    """The nodes with the names that their weights have in the state dict."""
    names = iter([name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)])

    def renamed(node: Node) -> Node:
        if isinstance(node, Affine):
            return replace(node, name=f"{next(names)}.weight")
        if isinstance(node, Residual):
            body = tuple(map(renamed, node.body))
            return Residual(body, tuple(map(renamed, node.shortcut)))
        return node

    return map(renamed, nodes)


# --- sources ---


def source(text: str, input_shape: tuple[int, int, int], classes: int) -> Architecture:
    """The architecture of a text; a sequence of linear layers with ReLUs gets its ordinary name, lenet-W1-W2-..."""
    if match := re.fullmatch(r"flatten((?:-linear\d+-relu)+)-linear(\d+)", text):
        widths = re.findall(r"linear(\d+)", match[1])
        return architecture(f"lenet-{'-'.join(widths)}", input_shape, int(match[2]))
    return architecture(f"layers-{text}", input_shape, classes)
