"""Users' own models: what they are is their source, so a redefined one is another, in every cache and every file."""

import importlib
import json
import linecache
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from lthlib.errors import InputError
from lthlib.evidence.costs import dense_flops
from lthlib.finders.scores import magnitude_scores, snip_scores
from lthlib.models.architecture import (
    VALID_MODELS,
    Architecture,
    architecture,
    build,
    multiply_accumulates,
    prunable,
    skeleton,
)
from lthlib.models.own import source_digest
from lthlib.ticket import Ticket, forward_of, initial_tickets, structure
from lthlib.training.stacks import is_linear, stack_key

SHAPE = (1, 8, 8)


def small(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, classes))


class Net(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.hidden = nn.Linear(64, 6)
        self.output = nn.Linear(6, classes)

    def forward(self, images):
        return self.output(self.hidden(images.flatten(1)).relu())


class Computed(nn.Module):
    """Cannot be built on the meta device: it reads values, and holds a numpy buffer and a tensor of its own."""

    def __init__(self, input_shape, classes):
        super().__init__()
        self.width = int(torch.tensor([3.0, 4.0]).sum().item())
        self.scale = torch.tensor(2.0)
        self.register_buffer("window", torch.from_numpy(np.hanning(8).astype("float32")))
        self.register_buffer("shift", torch.ones(1), persistent=False)
        self.hidden = nn.Linear(64, self.width)
        self.output = nn.Linear(self.width, classes)

    def forward(self, images):
        if float(self.scale.item()) != 2.0:
            raise ValueError
        return self.output(self.hidden((images * self.window + self.shift).flatten(1)).relu() * self.scale)


@pytest.fixture
def kernel(monkeypatch):
    """A module whose cells are run one by one, each with source of its own, as a notebook's kernel does."""
    module = ModuleType("a_kernel")
    monkeypatch.setitem(sys.modules, "a_kernel", module)
    cells = []

    def run(text):
        name = f"<cell {len(cells)}>"
        cells.append(name)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), vars(module))
        return module

    yield run
    for name in cells:
        linecache.cache.pop(name)


SHALLOW = (
    "from torch import nn\n"
    "def make(s, k): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, k))\n"
)
DEEP = SHALLOW.replace("nn.Linear(8, k)", "nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, k)")


def test_a_function_or_class_is_a_model():
    assert architecture(small, SHAPE, 10).name == f"{__name__}:small"
    network = architecture(Net, list(SHAPE), 10)
    assert network.name == f"{__name__}:Net" and prunable(network) == ("hidden.weight", "output.weight")
    assert type(build(network)) is Net and type(skeleton(network)) is Net
    [ticket] = initial_tickets(network, [0])
    logits = forward_of(ticket)(ticket.coefficients, torch.ones(2, *SHAPE))
    module = build(network)
    module.load_state_dict(ticket.state())
    assert torch.equal(logits, module(torch.ones(2, *SHAPE)))


def test_a_model_by_its_name_equals_the_model_itself():
    by_name, itself = architecture(f"{__name__}:small", SHAPE, 10), architecture(small, SHAPE, 10)
    assert by_name == itself and hash(by_name) == hash(itself) and by_name.source == itself.source != ""
    assert architecture(Net, SHAPE, 10) != itself != architecture(small, SHAPE, 9)
    assert architecture("lenet", SHAPE, 10).source == "" and architecture("lenet", SHAPE, 10).factory is None


def test_named_architectures_are_described_as_ever():
    described = architecture("lenet-6-4", SHAPE, 10).to_json()
    assert described == {"name": "lenet-6-4", "input_shape": [1, 8, 8], "classes": 10}
    assert Architecture.from_json(described) == architecture("lenet-6-4", SHAPE, 10)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_model_redefined_under_its_name_is_another(kernel, by_name):
    def defined(text):
        module = kernel(text)
        network = architecture("a_kernel:make" if by_name else module.make, SHAPE, 10)
        [ticket] = initial_tickets(network, [0])
        forward_of(ticket)(ticket.coefficients, torch.ones(1, *SHAPE))
        assert is_linear(ticket)
        return network, ticket

    before, first = defined(SHALLOW)
    assert prunable(before) == ("1.weight", "3.weight") and len(dense_flops(before)) == 2
    after, second = defined(DEEP)
    assert before.name == after.name == "a_kernel:make" and before != after
    assert prunable(after) == tuple(second.masks) == ("1.weight", "3.weight", "5.weight")
    assert list(multiply_accumulates(after)) == list(dense_flops(after)) == list(second.masks)
    assert len(structure(after)) == len(skeleton(after)) == 6
    cpu = torch.device("cpu")
    assert first.digest() != second.digest() and stack_key(first, cpu) != stack_key(second, cpu)
    assert prunable(before) == ("1.weight", "3.weight") and len(build(before)) == 4
    assert defined(SHALLOW)[0] == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # a helper class, its base class, a constant, a method of a class, a default
        ("class Helper(nn.Linear): scale = 1", "class Helper(nn.Linear): scale = 2"),
        ("class Base(nn.Linear):\n    def extra_repr(self): return 'a'\nclass Helper(Base): pass",
         "class Base(nn.Linear):\n    def extra_repr(self): return 'b'\nclass Helper(Base): pass"),
        ("WIDTH = 8\nHelper = nn.Linear", "WIDTH = 9\nHelper = nn.Linear"),
        ("class Helper(nn.Linear):\n    @property\n    def half(self): return 1",
         "class Helper(nn.Linear):\n    @property\n    def half(self): return 2"),
        ("def Helper(i, o, bias=True): return nn.Linear(i, o, bias)",
         "def Helper(i, o, bias=False): return nn.Linear(i, o, bias)"),
    ],
)  # fmt: skip
def test_what_a_model_uses_is_part_of_it(kernel, first, second):
    make = "def make(s, k): return nn.Sequential(nn.Flatten(), Helper(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, k))\n"
    module = kernel(f"from torch import nn\nWIDTH = 8\n{make}")
    digests = []
    for text in (first, second, first):
        kernel(text)
        digests.append(source_digest(module.make))
    assert digests[0] == digests[2] != digests[1]


def test_closures_partials_and_lambdas_are_told_apart():
    def of_width(width):
        return lambda s, k: nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, k))

    def sized(s, k, width):
        return of_width(width)(s, k)

    pair = [lambda s, k: small(s, int(k)), lambda s, k: Net(s, int(k))]
    factories = [of_width(3), of_width(4), partial(sized, width=3), partial(sized, width=4), *pair]
    networks = [architecture(factory, SHAPE, 10) for factory in factories]
    assert len(set(networks)) == len(networks)
    assert architecture(of_width(3), SHAPE, 10) == networks[0]
    namespace = {"nn": nn, "__name__": "typed"}
    for width in (3, 4):
        exec(f"f{width} = lambda s, k: nn.Sequential(nn.Flatten(), nn.Linear({width}, k))", namespace)
    assert source_digest(namespace["f3"]) != source_digest(namespace["f4"])


def test_the_source_of_a_package_counts_as_a_whole(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("WIDTH = 8\n")
    (package / "nets.py").write_text(
        "from torch import nn\nfrom own_package import parts\n"
        "def make(s, k): return nn.Sequential(nn.Flatten(), nn.Linear(64, parts.WIDTH), nn.Linear(parts.WIDTH, k))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = architecture("own_package.nets:make", SHAPE, 10)
    assert architecture("own_package.nets:make", SHAPE, 10) == before
    (package / "parts.py").write_text("WIDTH = 16  # wider\n")
    importlib.reload(sys.modules["own_package.parts"])
    after = architecture("own_package.nets:make", SHAPE, 10)
    assert after != before and sum(multiply_accumulates(after).values()) == 16 * 74


def test_a_skeleton_is_its_callers_own():
    for network in (architecture("resnet-8-w2", SHAPE, 10), architecture(Net, SHAPE, 10)):
        first, second = skeleton(network), skeleton(network)
        assert all(tensor.is_meta for tensor in first.state_dict().values())
        assert {id(module) for module in first.modules()}.isdisjoint(map(id, second.modules()))
        assert {id(tensor) for tensor in first.parameters()}.isdisjoint(map(id, second.parameters()))
        first.eval().requires_grad_(False)
        assert second.training and all(tensor.requires_grad for tensor in second.parameters())
    network = architecture("resnet-8-w2", SHAPE, 10)
    assert structure(network, "reset") is not structure(network, "reset")
    structure(network, "reset")
    assert all(layer.momentum != 1 for layer in structure(network).modules() if isinstance(layer, nn.BatchNorm2d))


def test_a_skeleton_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for model in ("vgg-11-w2", "layers-flatten-linear10", Computed):
        skeleton(architecture(model, SHAPE, 10))
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_computes_with_values_has_a_skeleton():
    network = architecture(Computed, SHAPE, 10)
    module = skeleton(network)
    assert module.hidden.weight.is_meta and module.window.is_meta and module.width == 7
    assert module.scale.item() == 2 and module.shift.item() == 1
    [ticket] = initial_tickets(network, [3])
    images, whole = torch.randn(4, *SHAPE), build(network)
    whole.load_state_dict(ticket.state())
    assert torch.equal(forward_of(ticket)(ticket.coefficients, images), whole(images))
    scores = snip_scores(ticket, images, torch.arange(4))
    assert scores.keys() == magnitude_scores(ticket).keys() and all(score.any() for score in scores.values())


def test_an_own_model_comes_back_from_its_file(tmp_path):
    network = architecture(small, SHAPE, 10)
    [ticket] = initial_tickets(network, [1])
    ticket.save(tmp_path / "ticket")
    loaded = Ticket.load(tmp_path / "ticket")
    assert loaded.architecture == network and loaded.architecture.factory is None
    assert loaded.digest() == ticket.digest()
    images = torch.ones(1, *SHAPE)
    assert torch.equal(*(forward_of(one)(one.coefficients, images) for one in (ticket, loaded)))


def test_a_model_that_changed_since_its_ticket_was_saved_is_named(kernel, tmp_path):
    kernel(SHALLOW)
    [ticket] = initial_tickets(architecture("a_kernel:make", SHAPE, 10), [0])
    ticket.save(tmp_path / "ticket")
    kernel(DEEP)
    loaded = Ticket.load(tmp_path / "ticket")
    with pytest.warns(UserWarning, match="'a_kernel:make' has changed since its ticket was saved"):
        assert len(prunable(loaded.architecture)) == 3


@pytest.mark.parametrize("nameless", [lambda s, k: small(s, int(k)), partial(small)])
def test_a_model_without_an_importable_name_cannot_be_looked_up(tmp_path, nameless):
    [ticket] = initial_tickets(architecture(nameless, SHAPE, 10), [0])
    ticket.save(tmp_path / "ticket")
    loaded = Ticket.load(tmp_path / "ticket")
    with pytest.raises(InputError, match="cannot be looked up again"):
        build(loaded.architecture)


def test_models_of_other_kinds_are_refused():
    for model, kind in ((nn.Flatten(), "Flatten"), (3, "int")):
        with pytest.raises(InputError, match=f"model is a {kind} \\(valid: a name, or a function or class"):
            architecture(model, SHAPE, 10)


OLD_NAMES = [
    ("lthlib.theory.reconstructed:polynomial", "reconstructed-polynomial"),
    ("lthlib.theory.reconstructed:fourier", "reconstructed-fourier"),
    ("lthlib.theory.strong_sources:conv2k3x3-relu-flatten-linear10", "layers-conv2k3x3-relu-flatten-linear10"),
    ("lthlib.evidence.sketching_tables:one_linear_layer", "linear"),
    ("lthlib.studies.sketching:one_linear_layer", "linear"),
]


@pytest.mark.parametrize(("old", "new"), OLD_NAMES)
def test_tickets_saved_under_old_names_load(tmp_path: Path, old, new):
    [ticket] = initial_tickets(architecture(new, SHAPE, 10), [0])
    # As it was written: the old name in the description, and a digest of that.
    replace(ticket, architecture=Architecture(old, SHAPE, 10)).save(tmp_path / "ticket")
    with safe_open(str(tmp_path / "ticket"), "pt") as file:
        assert json.loads(file.metadata()["ticket"])["architecture"]["name"] == old
    loaded = Ticket.load(tmp_path / "ticket")
    assert loaded.architecture == architecture(new, SHAPE, 10) == architecture(old, SHAPE, 10)
    assert loaded.digest() == ticket.digest()
    images = torch.ones(2, *SHAPE)
    assert torch.equal(*(forward_of(one)(one.coefficients, images) for one in (ticket, loaded)))


def test_an_old_name_of_no_network_is_refused(tmp_path: Path):
    [ticket] = initial_tickets(architecture("linear", SHAPE, 10), [0])
    replace(ticket, architecture=Architecture("lthlib.theory.strong_sources:gelu", SHAPE, 10)).save(tmp_path / "ticket")
    with pytest.raises(InputError, match="no layer 'gelu'"):
        Ticket.load(tmp_path / "ticket")


def test_a_file_of_a_known_model_must_have_its_tensors(tmp_path: Path):
    [ticket] = initial_tickets(architecture("linear", SHAPE, 10), [0])
    wrong = replace(ticket, architecture=architecture("layers-flatten-linear4-linear10", SHAPE, 10))
    wrong.save(tmp_path / "ticket")
    with pytest.raises(InputError, match="its tensors are not those of 'layers-flatten-linear4-linear10'"):
        Ticket.load(tmp_path / "ticket")


def test_the_named_builders_are_listed_and_checked():
    assert {"linear", "reconstructed-polynomial", "reconstructed-fourier"} < set(VALID_MODELS)
    assert [type(layer) for layer in build(architecture("linear", SHAPE, 10))] == [nn.Flatten, nn.Linear]
    with pytest.raises(InputError, match="ends in shape"):
        architecture("layers-flatten-linear9", SHAPE, 10)
    with pytest.raises(InputError, match="no layer 'gelu'"):
        architecture("layers-gelu", SHAPE, 10)
    with pytest.raises(InputError, match="no Conv2d or Linear layer"):
        architecture("layers-flatten", (1, 2, 5), 10)
