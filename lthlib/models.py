"""Architectures by name: their modules, their initial states, and which of their weights are prunable."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from lthlib.errors import InputError, unknown
from lthlib.randomness import generator, stream_seed

VALID_MODELS = (
    "lenet",
    "lenet-W1-W2-... (hidden widths)",
    "conv-2",
    "conv-4",
    "conv-6",
    "conv-D-wWIDTH",
    "resnet-D (D = 8, 14, 20, ...)",
    "resnet-D-wWIDTH",
    "vgg-11",
    "vgg-13",
    "vgg-16",
    "vgg-19",
    "vgg-D-wWIDTH",
    "vgg-D-fcLAYERS[-wWIDTH]",
    "package.module:function",
)
SCHEMES = ("kaiming_normal", "kaiming_uniform", "glorot_normal", "signed_constant", "open_lth")
CONVOLUTIONS_PER_STAGE = {
    "conv-2": (2,),
    "conv-4": (2, 2),
    "conv-6": (2, 2, 2),
    "vgg-11": (1, 1, 2, 2, 2),
    "vgg-13": (2, 2, 2, 2, 2),
    "vgg-16": (2, 2, 3, 3, 3),
    "vgg-19": (2, 2, 4, 4, 4),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class Architecture:
    """A network's structure: `name` and the data's shape and classes. Make one with `architecture`, which checks it."""

    name: str
    input_shape: tuple[int, int, int]
    classes: int


def architecture(name: str, input_shape: tuple[int, int, int], classes: int) -> Architecture:
    """The architecture called `name` for images of `input_shape` (channels, height, width) and `classes` classes.

    Names: `lenet-W1-W2-...` (`lenet` is `lenet-300-100`; LeCun et al. 1998), `conv-2|4|6[-wWIDTH]` (Frankle & Carbin,
    arXiv 1803.03635, Figure 2), `resnet-D[-wWIDTH]` with D = 6n + 2 (He et al., arXiv 1512.03385, section 4.2),
    `vgg-11|13|16|19[-fcLAYERS][-wWIDTH]` with BatchNorm (arXiv 1409.1556; LAYERS linear layers after pooling, by
    default one, as in arXiv 2103.16547), or `package.module:function`, a user's own factory
    `function(input_shape, classes) -> nn.Module`.
    Default widths are left out of the name, so that equal structures compare equal. Raises InputError.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise InputError(f"input_shape {input_shape!r} is not three positive integers (channels, height, width)")
    if not isinstance(classes, int) or classes < 2:
        raise InputError(f"classes {classes!r} is not an integer of at least 2")
    checked = Architecture(_canonical(name), shape, classes)
    if ":" in name:
        _layout(checked)
    return checked


def _canonical(name: str) -> str:
    if ":" in name:
        return name
    if name == "lenet":
        return "lenet-300-100"
    if name == "lenet-5":
        raise InputError(
            "model 'lenet-5' is LeCun's convolutional LeNet, which is not offered "
            "(use conv-2, or lenet-W1-W2-... with hidden widths, such as lenet-300-100)"
        )
    if re.fullmatch(r"lenet(-[1-9]\d*)+", name):
        return name
    if match := re.fullmatch(r"(resnet|vgg|conv)-(\d+)((?<=vgg-\d\d)-fc[1-9]\d*)?(?:-w([1-9]\d*))?", name):
        family, depth, layers, width = match[1], int(match[2]), match[3] or "", match[4]
        if family == "resnet" and (depth < 8 or depth % 6 != 2):
            raise InputError(f"model {name!r}: a CIFAR ResNet has depth 6n + 2 (valid: 8, 14, 20, 32, 44, 56, ...)")
        plain = f"{family}-{depth}"
        if family == "resnet" or plain in CONVOLUTIONS_PER_STAGE:
            default = 16 if family == "resnet" else 64
            plain += "" if layers == "-fc1" else layers
            return plain if width is None or int(width) == default else f"{plain}-w{width}"
    raise unknown("model", name, VALID_MODELS)


def build(architecture: Architecture) -> nn.Module:
    """The architecture's module, with PyTorch's default parameters; `initial_state` gives those of a replicate."""
    return _construct(architecture, 0)


def _construct(architecture: Architecture, seed: int) -> nn.Module:
    # Module constructors draw from PyTorch's global generator; forking keeps that invisible and reproducible.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "init", "module"))
        return _make(architecture)


def _make(architecture: Architecture) -> nn.Module:
    name, shape, classes = architecture.name, architecture.input_shape, architecture.classes
    if ":" in name:
        return _own(architecture)
    family, *numbers = name.split("-")
    if family == "lenet":
        return _lenet([int(width) for width in numbers], shape, classes)
    sizes = {"w": 16 if family == "resnet" else 64, "fc": 1}
    sizes |= {number.rstrip("0123456789"): int(number.lstrip("wfc")) for number in numbers[1:]}
    width = sizes["w"]
    if family == "resnet":
        return ResNet((int(numbers[0]) - 2) // 6, width, shape[0], classes)
    stages = CONVOLUTIONS_PER_STAGE[f"{family}-{numbers[0]}"]
    if family == "conv":
        return Conv(stages, width, shape, classes)
    return VGG(stages, width, shape[0], classes, sizes["fc"])


def _lenet(hidden: list[int], shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    widths = [shape[0] * shape[1] * shape[2], *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _pool(images: Tensor) -> Tensor:
    """Halves height and width by the maximum; a side of 1 stays, so that small images pass any depth."""
    window = (min(2, images.shape[-2]), min(2, images.shape[-1]))
    return images if window == (1, 1) else functional.max_pool2d(images, window)


class Conv(nn.Module):
    """Conv-2, -4 and -6 (Frankle & Carbin, arXiv 1803.03635, Figure 2): pairs of 3x3 convolutions, then 256, 256.

    On CIFAR-10 Conv-2 has 4.3 M and Conv-4 2.4 M weights, as printed there; Conv-6 as described has 2.26 M (1.14 M in
    convolutions), where the paper prints 1.7 M (1.1 M).
    """

    def __init__(self, stages: tuple[int, ...], width: int, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, columns = shape
        self.stages = nn.ModuleList()
        for number, count in enumerate(stages):
            stage: list[nn.Module] = []
            for _ in range(count):
                stage += [nn.Conv2d(channels, width * 2**number, 3, padding=1), nn.ReLU()]
                channels = width * 2**number
            self.stages.append(nn.Sequential(*stage))
            height, columns = max(1, height // 2), max(1, columns // 2)
        self.hidden1 = nn.Linear(channels * height * columns, 4 * width)
        self.hidden2 = nn.Linear(4 * width, 4 * width)
        self.output = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = _pool(stage(images))
        hidden = torch.relu_(self.hidden1(images.flatten(1)))
        return self.output(torch.relu_(self.hidden2(hidden)))


class ConvolutionUnit(nn.Module):
    """A VGG layer: 3x3 convolution with bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        # In place: no later gradient reads what it overwrites, and a pass over memory is saved.
        return torch.relu_(self.norm(self.conv(images)))


class VGG(nn.Module):
    """VGG with BatchNorm for small images: `stages[s]` is the s-th stage's `Sequential` of convolution units.

    `layers` counts the linear layers after pooling; those before `output` are square, each with a ReLU, in `hidden`
    (arXiv 2103.16547, section 4.4).
    """

    def __init__(self, stages: tuple[int, ...], width: int, channels: int, classes: int, layers: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for number, count in enumerate(stages):
            outputs = width * 2 ** min(number, 3)
            inputs = [channels, *[outputs] * (count - 1)]
            self.stages.append(nn.Sequential(*(ConvolutionUnit(size, outputs) for size in inputs)))
            channels = outputs
        square = [part for _ in range(layers - 1) for part in (nn.Linear(channels, channels), nn.ReLU())]
        self.hidden = nn.Sequential(*square)
        self.output = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        for number, stage in enumerate(self.stages):
            images = stage(images if number == 0 else _pool(images))
        return self.output(self.hidden(images.mean((2, 3))))


class Block(nn.Module):
    """A residual block of two 3x3 convolutions; its shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(torch.relu_(self.norm1(self.conv1(images)))))
        return torch.relu_(residual + (images if self.shortcut is None else self.shortcut(images)))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2: `stages[s]` is the s-th stage's `Sequential` of n blocks (width, 2x, 4x)."""

    def __init__(self, blocks: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.stages = nn.ModuleList()
        channels = width
        for number in range(3):
            outputs = width * 2**number
            first = Block(channels, outputs, stride=1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            channels = outputs
        self.output = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        images = torch.relu_(self.stem(images))
        for stage in self.stages:
            images = stage(images)
        return self.output(images.mean((2, 3)))


def _own(architecture: Architecture) -> nn.Module:
    """A user's own module, run once on zeros: that sizes lazy layers and shows what does not fit."""
    name, shape, classes = architecture.name, architecture.input_shape, architecture.classes
    factory = _factory(name)
    try:
        module = factory(shape, classes)
    except Exception as error:
        raise InputError(f"model {name!r} failed for input_shape={shape}, classes={classes}: {error!r}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"model {name!r} returned a {type(module).__name__}, not a torch.nn.Module")
    if not any(True for _ in _layers(module)):
        raise InputError(f"model {name!r} has no Conv2d or Linear layer, so nothing to prune")
    called: list[str] = []
    try:
        output = _observe(module, shape, lambda layer, *_: called.append(layer))
    except Exception as error:
        raise InputError(f"model {name!r} failed on images of shape {shape}: {error!r}") from error
    if not isinstance(output, Tensor) or tuple(output.shape) != (1, classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"model {name!r} gives {found} for one image, not logits of shape (1, {classes})")
    named = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if shared := sorted(set(named) - {name for name, _ in module.named_parameters()}):
        raise InputError(
            f"model {name!r} uses {shared[0]!r} in more than one place, which a ticket cannot describe "
            "(give each layer parameters of its own)"
        )
    last = output_layer(module)
    if not called:
        raise InputError(
            f"model {name!r} never calls its Conv2d and Linear layers, so their weights cannot be followed"
        )
    if called[-1] != last:
        raise InputError(
            f"model {name!r} ends in {called[-1]!r} but defines {last!r} last: define the output layer last"
        )
    return module


def _factory(name: str) -> Callable[[tuple[int, int, int], int], object]:
    path, _, function = name.partition(":")
    try:
        module = import_module(path)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{path}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"model {name!r}: no module {path!r} can be imported (write package.module:function, and have the "
            f"package's folder in PYTHONPATH or installed)"
        ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function in module {path!r},", function, callables or ["none"])
    return factory


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """The convolution and linear layers in module order, each with its weight's name in the state dict."""
    seen: set[int] = set()
    for name, layer in module.named_modules():
        # Two layers may share one weight: it is one tensor, hence prunable once.
        if isinstance(layer, nn.Conv2d | nn.Linear) and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            yield f"{name}.weight" if name else "weight", layer


def _observe(
    module: nn.Module, shape: tuple[int, int, int], see: Callable[[str, nn.Conv2d | nn.Linear, Tensor], object]
) -> object:
    """Runs an image of zeros in evaluation mode; `see(weight_name, layer, output)` at each Conv2d and Linear layer."""
    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: _ignore(see(name, layer, output)))
        for name, layer in _layers(module)
    ]
    training = module.training
    try:
        with torch.no_grad():
            return module.eval()(torch.zeros(1, *shape))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()


def _ignore(_: object) -> None:
    return None


@lru_cache(maxsize=256)
def _layout(architecture: Architecture) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Names of the prunable tensors and their multiply-accumulates per example."""
    module = build(architecture)
    names = prunable(module)
    counts = dict.fromkeys(names, 0)

    def count(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> None:
        # Every weight is used once per output position: height x width, or tokens for a linear layer.
        counts[name] += layer.weight.numel() * (output.numel() // layer.weight.shape[0])

    _observe(module, architecture.input_shape, count)
    return names, tuple(counts.items())


def prunable(network: nn.Module | Architecture) -> tuple[str, ...]:
    """State-dict names of the prunable tensors, in module order: the weights of Conv2d and Linear layers.

    Biases and normalisation never are; 1x1 shortcuts and the output layer are (arXiv 2103.16547 as released).
    """
    if isinstance(network, Architecture):
        return _layout(network)[0]
    return tuple(name for name, _ in _layers(network))


def output_layer(network: nn.Module | Architecture) -> str:
    """The prunable tensor of the classifier: the last one in module order."""
    return prunable(network)[-1]


def multiply_accumulates(architecture: Architecture) -> dict[str, int]:
    """Dense multiply-accumulates per example of each prunable tensor, in one forward pass.

    A ticket's count weighs each tensor's by its density.
    """
    return dict(_layout(architecture)[1])


def initial_state(architecture: Architecture, seed: int, scheme: str = "kaiming_normal") -> dict[str, Tensor]:
    """A replicate's complete initial state dict (parameters and buffers), float32 on the CPU.

    Convolution and linear weights follow `scheme`; biases are 0, normalisation weights 1 and biases 0:

    - `kaiming_normal`: N(0, 2 / fan_in) (He et al., arXiv 1502.01852, eq. 10); `kaiming_uniform`: the same variance.
    - `glorot_normal`: N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010), used in arXiv 1803.03635.
    - `signed_constant`: the sign of the `kaiming_normal` draw times its standard deviation (arXiv 1905.01067, 4.2).
    - `open_lth`: `kaiming_normal` with normalisation weights ~ U(0, 1) (facebookresearch/open_lth).

    Each tensor has a generator of its own, so its draw depends on `seed`, its name and its shape alone. Parameters
    of any other layer of a user's own module keep what its constructor drew. Raises InputError for unknown schemes.
    """
    if scheme not in SCHEMES:
        raise unknown("initialisation scheme", scheme, SCHEMES)
    module = _construct(architecture, seed)
    with torch.no_grad():
        for name, layer in _layers(module):
            _draw(layer.weight, scheme, generator(seed, "init", name))
            if layer.bias is not None:
                layer.bias.zero_()
        for name, norm in module.named_modules():
            if isinstance(norm, _NORMS) and norm.weight is not None:
                norm.weight.fill_(1)
                if scheme == "open_lth":
                    norm.weight.uniform_(0, 1, generator=generator(seed, "init", f"{name}.weight"))
                if norm.bias is not None:
                    norm.bias.zero_()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _draw(weight: Tensor, scheme: str, source: torch.Generator) -> None:
    if scheme == "glorot_normal":
        nn.init.xavier_normal_(weight, generator=source)
    elif scheme == "kaiming_uniform":
        nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=source)
    else:
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=source)
    if scheme == "signed_constant":
        deviation = (2 / weight[0].numel()) ** 0.5
        weight.copy_(torch.where(weight >= 0, deviation, -deviation))
