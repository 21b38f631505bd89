"""Architectures: their modules, with values and without, and which of their weights are prunable."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from lthlib.errors import InputError, unknown
from lthlib.models.layers import module_of
from lthlib.models.networks import CONVOLUTIONS_PER_STAGE, VGG, Conv, ResNet, _lenet
from lthlib.models.own import Factory, import_factory, name_of, source_digest
from lthlib.models.reconstructed import fourier, polynomial
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
    "linear",
    "reconstructed-polynomial",
    "reconstructed-fourier",
    "layers-TEXT (such as layers-conv8k3x3-relu-flatten-linear10)",
    "package.module:function",
    "a function or class of (input_shape, classes)",
)
# What saved tickets called our own builders before these had names.
_ALIASES = {
    "lthlib.theory.reconstructed:polynomial": "reconstructed-polynomial",
    "lthlib.theory.reconstructed:fourier": "reconstructed-fourier",
    "lthlib.models.reconstructed:polynomial": "reconstructed-polynomial",
    "lthlib.models.reconstructed:fourier": "reconstructed-fourier",
    "lthlib.evidence.sketching_tables:one_linear_layer": "linear",
    "lthlib.studies.sketching:one_linear_layer": "linear",
    "lthlib.theory.strong_sources:": "layers-",
    "lthlib.theory.strong.sources:": "layers-",
}
_BUILDERS: dict[str, Factory] = {
    "linear": lambda shape, classes: _lenet([], shape, classes),
    "reconstructed-polynomial": polynomial,
    "reconstructed-fourier": fourier,
}
_GLOBAL_GENERATOR = Lock()


@dataclass(frozen=True)
class Architecture:
    """A network's structure: `name`, and the data's shape and classes. Make one with `architecture`, which checks it.

    A user's own model is what its source is: `factory` makes it, and `source` digests the text that `factory` is made
    from, so that one redefined under its old name is another architecture, in every comparison and cache.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    factory: Factory | None = field(default=None, compare=False, repr=False)
    source: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own model, not one of those that are known by name."""
        return ":" in self.name

    def to_json(self) -> dict[str, Any]:
        """A description for `from_json`."""
        described = {"name": self.name, "input_shape": list(self.input_shape), "classes": self.classes}
        return described | ({"source": self.source} if self.source else {})

    @staticmethod
    def from_json(described: Mapping[str, Any]) -> "Architecture":
        """What `to_json` described, unchecked; imports nothing: an own model is looked up when its module is needed."""
        name = described["name"]
        for old, new in _ALIASES.items():
            if name == old or (old.endswith(":") and name.startswith(old)):
                name = new + name[len(old) :]
        return Architecture(
            name, tuple(described["input_shape"]), described["classes"], source=described.get("source", "")
        )


def architecture(model: str | Factory, input_shape: tuple[int, int, int], classes: int) -> Architecture:
    """The architecture `model` for images of `input_shape` (channels, height, width) and `classes` classes.

    Names: `linear`, `lenet-W1-W2-...` (`lenet` is `lenet-300-100`; LeCun et al. 1998), `conv-2|4|6[-wWIDTH]` (Frankle &
    Carbin, arXiv 1803.03635, Figure 2), `resnet-D[-wWIDTH]` with D = 6n + 2 (He et al., arXiv 1512.03385, section 4.2),
    `vgg-11|13|16|19[-fcLAYERS][-wWIDTH]` with BatchNorm (arXiv 1409.1556; LAYERS linear layers after pooling, by
    default one, as in arXiv 2103.16547), `reconstructed-polynomial|fourier` (see `reconstructed`), `layers-TEXT` (see
    `layers.module_of`). A user's own model is a function or class of (input_shape, classes) that gives an nn.Module, or
    where it is imported from, `package.module:function`.
    Default widths are left out of the name, so that equal structures compare equal. Raises InputError.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise InputError(f"input_shape {input_shape!r} is not three positive integers (channels, height, width)")
    if not isinstance(classes, int) or classes < 2:
        raise InputError(f"classes {classes!r} is not an integer of at least 2")
    if isinstance(model, nn.Module) or not (isinstance(model, str) or callable(model)):
        raise InputError(
            f"model is a {type(model).__name__} (valid: a name, or a function or class of (input_shape, classes) that "
            "makes a torch.nn.Module)"
        )
    if isinstance(model, str) and ":" not in model:
        checked = Architecture(_canonical(model), shape, classes)
        if checked.name.startswith("layers-"):
            skeleton(checked)
        return checked
    if isinstance(model, str):
        named = Architecture.from_json({"name": model, "input_shape": shape, "classes": classes})
        checked = with_factory(named) if named.is_own else architecture(named.name, shape, classes)
    else:
        checked = Architecture(name_of(model), shape, classes, model, source_digest(model))
    _layout(checked)
    return checked


def with_factory(architecture: Architecture) -> Architecture:
    """The architecture as it is now: an own model of a loaded ticket with the factory that its name stands for.

    Warns where the source is another than the ticket's; raises InputError where there is none of that name.
    """
    if not architecture.is_own or architecture.factory is not None:
        return architecture
    factory = import_factory(architecture.name)
    source = source_digest(factory)
    if architecture.source not in ("", source):
        warnings.warn(f"model {architecture.name!r} has changed since its ticket was saved", stacklevel=3)
    return replace(architecture, factory=factory, source=source)


def _canonical(name: str) -> str:
    if name in _BUILDERS or name.startswith("layers-"):
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


def skeleton(architecture: Architecture) -> nn.Module:
    """The architecture's module without values, on the meta device: names, shapes and forward pass. It is the caller's.

    An own model is built on the CPU first, because its constructor may compute with tensors or read their values; what
    no state dict holds (plain attributes, buffers that are not persistent) keeps its values.
    """
    if architecture.is_own:
        return deepcopy(_emptied(with_factory(architecture)))
    with torch.device("meta"):
        return _make(architecture)


@lru_cache(maxsize=64)
def _emptied(architecture: Architecture) -> nn.Module:
    module = build(architecture)
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                layer._parameters[name] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for name, buffer in layer._buffers.items():
            if buffer is not None and name not in layer._non_persistent_buffers_set:
                layer._buffers[name] = buffer.to("meta")
    return module


def _construct(architecture: Architecture, seed: int) -> nn.Module:
    # Module constructors draw from PyTorch's global generator; forking keeps that invisible and reproducible, and one
    # at a time keeps it so where several threads build.
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "init", "module"))
        return _make(architecture)


def _make(architecture: Architecture) -> nn.Module:
    name, shape, classes = architecture.name, architecture.input_shape, architecture.classes
    if architecture.is_own:
        return _checked(architecture, with_factory(architecture).factory)
    if name in _BUILDERS:
        return _checked(architecture, _BUILDERS[name])
    if name.startswith("layers-"):
        return _checked(architecture, lambda shape, classes: module_of(name.removeprefix("layers-"), shape, classes))
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


def _checked(architecture: Architecture, factory: Factory | None) -> nn.Module:
    """The factory's module, run once on zeros: that sizes lazy layers and shows what does not fit."""
    name, shape, classes = architecture.name, architecture.input_shape, architecture.classes
    assert factory is not None
    try:
        module = factory(shape, classes)
    except InputError:
        raise
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
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"model {name!r} gives {given} for one image, not logits of shape (1, {classes})")
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


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """The convolution and linear layers in module order, each with its weight's name in the state dict."""
    seen: set[int] = set()
    for name, layer in module.named_modules():
        # Two layers may share one weight: it is one tensor, hence prunable once.
        if isinstance(layer, nn.Conv2d | nn.Linear) and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            yield f"{name}.weight" if name else "weight", layer


def _observe(
    module: nn.Module, shape: tuple[int, int, int], see: Callable[[str, nn.Conv2d | nn.Linear, Tensor], None]
) -> object:
    """Runs an image of zeros in evaluation mode; `see(weight_name, layer, output)` at each Conv2d and Linear layer."""
    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: see(name, layer, output))
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
        return _layout(with_factory(network))[0]
    return tuple(name for name, _ in _layers(network))


def output_layer(network: nn.Module | Architecture) -> str:
    """The prunable tensor of the classifier: the last one in module order."""
    return prunable(network)[-1]


def multiply_accumulates(architecture: Architecture) -> dict[str, int]:
    """Dense multiply-accumulates per example of each prunable tensor, in one forward pass.

    A ticket's count weighs each tensor's by its density.
    """
    return dict(_layout(with_factory(architecture))[1])
