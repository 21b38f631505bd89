"""Architectures by name: their modules, their initial states, and which of their weights are prunable."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor, nn

from lthlib.errors import InputError, unknown
from lthlib.models.networks import CONVOLUTIONS_PER_STAGE, VGG, Conv, ResNet, _lenet
from lthlib.randomness import stream_seed

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
