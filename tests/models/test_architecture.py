"""Models: published weight counts, seeds separate per tensor, prunable tensors, MACs, users' own modules, bad names."""

import pytest
import torch
from torch import nn

from lthlib.errors import InputError
from lthlib.models.architecture import architecture, build, multiply_accumulates, output_layer, prunable
from lthlib.models.initial import SCHEMES, initial_state
from lthlib.randomness import generator

CIFAR = (3, 32, 32)


def prunable_total(name, shape=CIFAR):
    network = architecture(name, shape, 10)
    state = build(network).state_dict()
    return sum(state[tensor].numel() for tensor in prunable(network))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # arXiv 2103.16547, ResNets of Table 4, and VGGs with the 5,120 weights of the output layer
        ("resnet-8", 77_360),
        ("resnet-14", 174_128),
        ("resnet-20", 270_896),
        ("resnet-32", 464_432),
        ("resnet-44", 657_968),
        ("resnet-56", 851_504),
        ("resnet-110", 1_722_416),
        ("vgg-13", 9_407_168),
        ("vgg-16", 14_715_584),
        ("vgg-19", 20_024_000),
        ("vgg-13-fc3", 9_407_168 + 2 * 512 * 512),
        # arXiv 1803.03635, Figure 2: 4.3 M and 2.4 M (Conv-6: see the docstring of Conv)
        ("conv-2", 4_300_992),
        ("conv-4", 2_425_024),
        ("conv-6", 2_261_184),
    ],
)
def test_prunable_totals_on_cifar(name, total):
    assert prunable_total(name) == total


@pytest.mark.parametrize(
    ("name", "total"),
    [("lenet", 266_200), ("lenet-300-300-100", 356_200), ("lenet-300-300-300-300-100", 536_200)],
)
def test_prunable_totals_of_mlps_on_mnist(name, total):
    assert prunable_total(name, (1, 28, 28)) == total


@pytest.mark.parametrize(("depth", "millions"), [(8, 12.5), (20, 40.8), (32, 69.1), (110, 253)])
def test_resnet_macs_follow_the_closed_form(depth, millions):
    counts = multiply_accumulates(architecture(f"resnet-{depth}", CIFAR, 10))
    total = sum(counts.values()) / 1e6
    assert total == pytest.approx(14.156 * (depth - 2) / 6 - 1.654, rel=1e-4)
    assert total == pytest.approx(millions, rel=2e-3)
    assert counts["stages.0.0.conv1.weight"] == 16 * 16 * 9 * 32 * 32
    assert counts["output.weight"] == 640


def test_macs_of_linear_layers_are_their_weights():
    network = architecture("lenet-12-7", (1, 8, 8), 10)
    assert multiply_accumulates(network) == {"1.weight": 64 * 12, "3.weight": 12 * 7, "5.weight": 70}


@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        "lenet-16",
        "conv-2-w8",
        "conv-6-w8",
        "resnet-8-w4",
        "resnet-20-w2",
        "vgg-11-w4",
        "vgg-19-w4",
        "vgg-11-fc3-w4",
    ],
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 3), (1, 1, 1)])
def test_every_architecture_takes_every_input(name, shape):
    network = architecture(name, shape, 7)
    module = build(network)
    logits = module(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_lenets_are_plain_sequentials():
    module = build(architecture("lenet-20-10", (1, 8, 8), 10))
    assert [type(layer) for layer in module] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_default_widths_give_equal_architectures():
    assert architecture("lenet", CIFAR, 10) == architecture("lenet-300-100", CIFAR, 10)
    assert architecture("resnet-20-w16", CIFAR, 10) == architecture("resnet-20", CIFAR, 10)
    assert architecture("vgg-11-w64", list(CIFAR), 10) == architecture("vgg-11", CIFAR, 10)
    assert architecture("vgg-11-fc1-w8", CIFAR, 10) == architecture("vgg-11-w8", CIFAR, 10)
    assert architecture("vgg-11-fc2-w64", CIFAR, 10) == architecture("vgg-11-fc2", CIFAR, 10)
    assert architecture("resnet-20-w8", CIFAR, 10) != architecture("resnet-20", CIFAR, 10)


def test_prunable_is_every_convolution_and_linear_weight_in_order():
    network = architecture("resnet-14-w4", CIFAR, 10)
    names = prunable(network)
    assert names == prunable(build(network))
    assert names[0] == "stem.0.weight" and names[-1] == output_layer(network) == "output.weight"
    assert "stages.1.0.shortcut.0.weight" in names and "stages.0.0.shortcut.0.weight" not in names
    assert not any("norm" in name or name.endswith("bias") for name in names)
    assert len(names) == 1 + 3 * 2 * 2 + 2 + 1


@pytest.mark.parametrize("name", ["lenet-30-20", "conv-2-w4", "resnet-8-w4", "vgg-11-w4"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_state_is_complete_and_repeats(name, scheme):
    network = architecture(name, (1, 8, 8), 10)
    state, again, other = (initial_state(network, seed, scheme) for seed in (3, 3, 4))
    module = build(network)
    module.load_state_dict(state)
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert all(not torch.equal(state[key], other[key]) for key in prunable(network))
    assert all(value.dtype in (torch.float32, torch.int64) and not value.requires_grad for value in state.values())
    norms = {key for key, value in module.named_modules() if isinstance(value, nn.BatchNorm2d)}
    for key, value in state.items():
        layer, kind = key.rsplit(".", 1)
        if kind in ("bias", "running_mean", "num_batches_tracked"):
            assert not value.any()
        elif layer in norms and scheme == "open_lth" and kind == "weight":
            assert 0 <= value.min() < value.max() <= 1
        elif layer in norms:
            assert (value == 1).all()


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("kaiming_normal", 2 / 300),
        ("kaiming_uniform", 2 / 300),
        ("signed_constant", 2 / 300),
        ("open_lth", 2 / 300),
        ("glorot_normal", 2 / 700),
    ],
)
def test_variance_of_each_scheme(scheme, variance):
    state = initial_state(architecture("lenet-300-400", (1, 8, 8), 10), 0, scheme)
    weight = state["3.weight"]
    assert weight.mean().item() == pytest.approx(0, abs=5 * (variance / weight.numel()) ** 0.5)
    assert weight.var().item() == pytest.approx(variance, rel=0.02)


def test_signed_constant_keeps_the_signs_of_the_normal_draw():
    network = architecture("conv-2-w8", (1, 8, 8), 10)
    normal, constant = initial_state(network, 1), initial_state(network, 1, "signed_constant")
    for name in prunable(network):
        assert torch.equal(normal[name].sign(), constant[name].sign())
        assert constant[name].abs().unique().numel() == 1


def test_a_tensor_is_drawn_from_its_own_name_alone():
    short = initial_state(architecture("resnet-8-w4", CIFAR, 10), 0)
    long = initial_state(architecture("resnet-20-w4", CIFAR, 100), 0)
    assert all(torch.equal(short[name], long[name]) for name in short if not name.startswith("output"))
    expected = torch.empty(4, 3, 3, 3).normal_(0, (2 / 27) ** 0.5, generator=generator(0, "init", "stem.0.weight"))
    assert torch.equal(short["stem.0.weight"], expected)


def test_no_draw_touches_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    initial_state(architecture("vgg-11-w4", (1, 8, 8), 10), 0)
    multiply_accumulates(architecture("conv-2-w4", (1, 8, 8), 11))
    assert torch.equal(before, torch.get_rng_state())


OWN = """
import torch
from torch import nn

def good(input_shape, classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.GroupNorm(2, 4), nn.PReLU(), nn.Flatten(), nn.LazyLinear(classes))

def single(input_shape, classes):
    class Only(nn.Linear):
        def forward(self, images):
            return super().forward(images.flatten(1))
    return Only(64, classes)

def random_extra(input_shape, classes):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(64))
            self.linear = nn.Linear(64, classes)
        def forward(self, images):
            return self.linear(images.flatten(1) * self.scale)
    return Scaled()

def empty(input_shape, classes):
    return nn.Flatten()

def wrong_output(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))

def first_is_last(input_shape, classes):
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Linear(5, classes)
            self.hidden = nn.Linear(64, 5)
        def forward(self, images):
            return self.output(self.hidden(images.flatten(1)))
    return Swapped()

def unused(input_shape, classes):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, classes)
        def forward(self, images):
            return images.flatten(1) @ self.linear.weight.T
    return Unused()

def too_small(input_shape, classes):
    return nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten(), nn.Linear(2, classes))

def other_signature(classes):
    return nn.Flatten()

def text(input_shape, classes):
    return "no module"

constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: architecture(name, (1, 8, 8), 10)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_own_module(own):
    network = own("own_models:good")
    assert prunable(network) == ("0.weight", "4.weight") and output_layer(network) == "4.weight"
    assert multiply_accumulates(network) == {"0.weight": 36 * 36, "4.weight": 1440}
    state = initial_state(network, 2)
    build(network).load_state_dict(state)
    assert state["0.weight"].std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.4)
    assert (state["1.weight"] == 1).all() and (state["2.weight"] == 0.25).all()
    assert prunable(own("own_models:single")) == ("weight",)
    assert initial_state(own("own_models:single"), 0)["weight"].shape == (10, 64)


def test_own_parameters_of_other_kinds_are_drawn_from_the_seed(own):
    first, again, other = (initial_state(own("own_models:random_extra"), seed)["scale"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_missing:good", "no module 'own_missing' can be imported"),
        (":good", "no module '' can be imported"),
        ("own_models:goood", "unknown function in module 'own_models', 'goood', did you mean 'good'"),
        ("own_models:constant", "unknown function in module 'own_models', 'constant'"),
        ("own_models:empty", "no Conv2d or Linear layer"),
        ("own_models:wrong_output", r"gives \(1, 11\) for one image, not logits of shape \(1, 10\)"),
        ("own_models:first_is_last", "ends in 'output.weight' but defines 'hidden.weight' last"),
        ("own_models:unused", "never calls its Conv2d and Linear layers"),
        ("own_models:too_small", r"failed on images of shape \(1, 8, 8\)"),
        ("own_models:other_signature", r"failed for input_shape=\(1, 8, 8\), classes=10: TypeError"),
        ("own_models:text", "returned a str, not a torch.nn.Module"),
    ],
)
def test_own_module_that_does_not_fit(own, name, message):
    with pytest.raises(InputError, match=message):
        own(name)


def test_an_error_inside_the_own_module_stays_itself(own):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        own("own_broken:good")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20", "unknown model 'resnet20'.*valid: lenet.*package.module:function"),
        ("resnet-18", "depth 6n \\+ 2"),
        ("resnet-2", "depth 6n \\+ 2"),
        ("resnet-20-w0", "unknown model 'resnet-20-w0'"),
        ("lenet-5", "convolutional LeNet"),
        ("lenet-300-0", "unknown model"),
        ("lenet-", "unknown model"),
        ("conv-3", "unknown model 'conv-3', did you mean 'conv-"),
        ("resnet-8-fc2", "unknown model 'resnet-8-fc2'"),
        ("vgg-11-fc0", "unknown model 'vgg-11-fc0'"),
        ("vgg-12", "unknown model 'vgg-12', did you mean 'vgg-"),
        ("", "unknown model ''"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(InputError, match=message):
        architecture(name, CIFAR, 10)


def test_bad_shapes_classes_and_schemes():
    with pytest.raises(InputError, match=r"input_shape \(32, 32\) is not three positive integers"):
        architecture("lenet", (32, 32), 10)
    with pytest.raises(InputError, match="input_shape"):
        architecture("lenet", (3, 0, 32), 10)
    with pytest.raises(InputError, match="classes 1 is not an integer of at least 2"):
        architecture("lenet", CIFAR, 1)
    with pytest.raises(InputError, match="unknown initialisation scheme 'kaiming', did you mean 'kaiming_"):
        initial_state(architecture("lenet", CIFAR, 10), 0, "kaiming")
