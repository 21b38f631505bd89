"""Constructed tickets: real masked sources, equal to their effective networks, within their error budgets."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lthlib.errors import InputError
from lthlib.models import architecture as models
from lthlib.models import layers
from lthlib.models.initial import initial_state
from lthlib.theory.strong import construct as strong
from lthlib.theory.strong import equivariant as strong_equivariant
from lthlib.theory.strong import search as strong_search
from lthlib.theory.strong import sources as strong_sources
from lthlib.theory.strong.construct import construct
from lthlib.theory.strong.error_bounds import error_bound, error_budget
from lthlib.theory.strong.search import SubsetSearch, choose, draw_weights, greedy
from lthlib.ticket import Ticket, dense_ticket

INPUTS = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(7))
SEARCH = SubsetSearch(candidates=18, eps=1e-3, redraws=4)


def target(name, seed=0, shape=(1, 8, 8), classes=10):
    """A random network with biases and normalisations that do something."""
    custom = "-" in name and name.split("-")[0] not in ("lenet", "conv", "resnet", "vgg")
    architecture = (strong_sources.source if custom else models.architecture)(name, shape, classes)
    state, source = initial_state(architecture, seed), torch.Generator().manual_seed(seed)
    for key, tensor in state.items():
        if key.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.2, generator=source)
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=source)
    return dense_ticket(architecture, state)


def module_outputs(ticket, inputs):
    module = models.build(ticket.architecture).double().eval()
    module.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in ticket.state().items()})
    with torch.no_grad():
        return module(inputs.double())


# --- reading targets ---


@pytest.mark.parametrize(
    "name",
    ["lenet-24-16", "conv-2-w2", "vgg-11-w1", "resnet-8-w2", "conv3k3x3s2-leaky-pool-flatten-linear10",
     "cyclic4k3x3-tanh-sets3-sigmoid-mean-linear10", "conv2k3x3-(-conv2k3x3-relu-conv2k1x1-|-)-relu-mean-linear10"],
)  # fmt: skip
def test_layers_read_from_a_ticket_compute_its_function(name):
    shape = (1, 8, 1) if "sets" in name else (1, 8, 8)
    ticket = target(name, shape=shape)
    inputs = INPUTS[..., : shape[2]]
    nodes = strong_sources.read(ticket)
    torch.testing.assert_close(
        strong_sources.run(nodes, inputs.double()), module_outputs(ticket, inputs), rtol=0, atol=1e-12
    )
    names = [layer.name for layer in strong_sources.affines(nodes)]
    assert sorted(names) == sorted(models.prunable(ticket.architecture))
    for layer in strong_sources.affines(nodes):
        assert layer.weight.shape == ticket.masks[layer.name].shape


# --- constructions ---


@pytest.mark.parametrize(
    ("name", "scale"),
    [("lenet-24-16", 0.02), ("conv-2-w2", 0.02), ("resnet-8-w2", 0.02), ("vgg-11-w1", 0.02),
     ("flatten-linear12-leaky-linear10", 0.02), ("flatten-linear12-tanh-linear10", 0.02)],
)  # fmt: skip
def test_two_layers_a_layer(name, scale):
    ticket = target(name)
    construction = construct(ticket, SEARCH)
    assert construction.unreached == 0
    assert construction.layers["largest_error"].max() <= SEARCH.eps
    # the masked source itself, forwards, is the network of the effective weights, for inputs of both signs
    with torch.no_grad():
        difference = (construction.outputs(INPUTS) - construction.effective_outputs(INPUTS)).abs().max()
    assert difference < 1e-12
    assert construction.sup_error(INPUTS) < scale
    assert (
        construction.sup_error(INPUTS)
        <= error_bound(construction.nodes, list(construction.layers["largest_error"]), INPUTS) + 1e-12
    )
    for layer in strong_sources.affines(construction.nodes):
        weights = construction.effective[layer.name]
        assert (weights.positive - layer.weight).abs().max() <= SEARCH.eps
        assert layer.bias is None or (weights.bias - layer.bias).abs().max() <= SEARCH.eps


@pytest.mark.parametrize(
    ("name", "most"),
    [("lenet-24-16", 0.3), ("conv-2-w2", 0.6), ("flatten-linear12-leaky-linear10", 0.05),
     ("flatten-linear12-tanh-linear10", 0.05)],
)  # fmt: skip
def test_one_layer_more_than_the_target(name, most):
    ticket = target(name)
    construction = construct(ticket, SubsetSearch(candidates=22, eps=1e-3, redraws=4), kind="depth-plus-one")
    assert construction.unreached <= 5
    assert construction.sup_error(INPUTS) < most
    assert len(construction.ticket.masks) == len(ticket.masks) + 1
    # every replica that is kept is used: no kept weight leads to a neuron that nothing reads
    masks = list(construction.ticket.masks.values())
    for before, after in pairwise(masks):
        rows = before.flatten(1).any(1)
        columns = after.transpose(0, 1).flatten(1).any(1).view(len(rows), -1).any(1)
        assert not (rows & ~columns).any()


@pytest.mark.parametrize("kind", strong.KINDS)
def test_a_ticket_is_a_masked_draw_of_its_source(kind, tmp_path):
    construction = construct(target("lenet-12"), SEARCH, kind=kind, seed=3)
    again = construct(target("lenet-12"), SEARCH, kind=kind, seed=3)
    other = construct(target("lenet-12", seed=1), SubsetSearch(candidates=18), kind=kind, seed=3)
    assert construction.ticket.digest() == again.ticket.digest()
    # the source does not look at the target: where no redraw widened it, another target prunes the same numbers
    for name, weights in other.ticket.coefficients.items():
        drawn = construction.ticket.coefficients[name]
        if drawn.shape == weights.shape:
            torch.testing.assert_close(drawn, weights, rtol=0, atol=0)
    state = construction.ticket.state()
    for name, bias in construction.source_biases.items():
        torch.testing.assert_close(state[name], bias * construction.bias_masks[name], rtol=0, atol=0)
    construction.ticket.save(tmp_path / "ticket.safetensors")
    loaded = Ticket.load(tmp_path / "ticket.safetensors")
    torch.testing.assert_close(module_outputs(loaded, INPUTS), construction.outputs(INPUTS), rtol=0, atol=0)
    counts = construction.counts
    kept = sum(int((state[name] != 0).sum()) for name in state)
    assert counts["ticket"] == kept
    assert counts["source"] == sum(tensor.numel() for tensor in state.values())
    assert counts["density"] == pytest.approx(kept / counts["source"])


def test_hidden_neurons_keep_one_input_and_only_if_used():
    construction = construct(target("lenet-12"), SEARCH)
    inner, outer, *_ = construction.ticket.masks.values()
    assert (inner.sum(1) <= 1).all()
    alive = inner.any(1) | construction.bias_masks["1.bias"]
    np.testing.assert_array_equal(alive, outer.any(0))


def test_inputs_without_negative_values_need_half_the_sums():
    ticket, inputs = target("lenet-12"), INPUTS.abs()
    search = SubsetSearch(candidates=22, eps=1e-3)
    both, half = construct(ticket, search), construct(ticket, search, signed_inputs=False)
    assert both.layers["solves"][0] == 64 * 12 * 2 + 12
    assert half.layers["solves"][0] == 64 * 12 + 12
    assert half.sup_error(inputs) < 0.02
    assert half.sup_error(-inputs) > 0.1


def test_fixed_sizes_keep_exactly_that_many():
    construction = construct(target("lenet-12"), SubsetSearch(candidates=20, method="fixed", size=6, eps=0.01))
    outer = construction.ticket.masks["3.weight"]
    block = outer.view(12, 65, 40)[:, :64]
    sizes = block.sum(2)
    assert ((sizes == 12) | (sizes < 12)).all()
    assert (sizes == 12).float().mean() > 0.95  # two sides of six; a side may have had fewer than six candidates


def test_malach_needs_many_neurons_and_pensia_few():
    errors = {}
    for method, n in (("nearest", 20), ("nearest", 400), ("best", 20), ("sparsest", 20)):
        construction = construct(target("lenet-8"), SubsetSearch(candidates=n, method=method, eps=0.01))
        errors[method, n] = construction.layers["mean_error"].mean()
        if method == "nearest":
            # one candidate a weight and sign
            assert construction.ticket.masks["3.weight"].sum() == 2 * 8 * 64 + 8
    assert errors["nearest", 400] < errors["nearest", 20] / 5
    assert errors["best", 20] < errors["nearest", 400] / 5
    assert errors["sparsest", 20] < 0.01


def test_greedy_digits_need_few_hyperbolic_candidates():
    generator = torch.Generator().manual_seed(0)
    goals = np.random.default_rng(0).uniform(-1, 1, 2000)
    candidates = draw_weights("hyperbolic", (2000, 120), generator).astype(float)
    low, high = strong_search.HYPERBOLIC
    assert np.abs(candidates).min() >= low * 0.999
    assert np.abs(candidates).max() <= high * 1.001
    kept = greedy(candidates, goals, 0.01)
    left = goals - (candidates * kept).sum(1)
    assert (left * np.sign(goals) >= -1e-12).all()
    assert np.mean(np.abs(left) <= low) > 0.97
    assert kept.sum(1).max() < 12
    # the greedy choice is never better than the best subset
    few = candidates[:, :14]
    assert (
        choose(few, goals, SubsetSearch(14, "greedy"), 1e-3)[1] >= choose(few, goals, SubsetSearch(14), 1e-3)[1] - 1e-12
    ).all()


def test_redraws_widen_the_source_and_are_counted():
    ticket = target("lenet-12")
    plain, redrawn = (construct(ticket, SubsetSearch(candidates=14, eps=1e-3, redraws=r)) for r in (0, 6))
    assert plain.unreached > 20
    assert redrawn.unreached < plain.unreached / 4
    assert redrawn.layers["redrawn"].sum() >= plain.unreached - redrawn.unreached
    assert redrawn.counts["source"] > plain.counts["source"]
    with torch.no_grad():
        assert (redrawn.outputs(INPUTS) - redrawn.effective_outputs(INPUTS)).abs().max() < 1e-12


def test_neurons_of_their_own_cost_width():
    ticket = target("lenet-6")
    shared, separate = (
        construct(ticket, SubsetSearch(candidates=12, eps=0.01, shared=shared)) for shared in (True, False)
    )
    assert separate.counts["source"] > 5 * shared.counts["source"]
    with torch.no_grad():
        assert (separate.outputs(INPUTS) - separate.effective_outputs(INPUTS)).abs().max() < 1e-12
    assert separate.unreached < 1.3 * shared.unreached


def test_small_weights_can_be_rounded_away():
    ticket = target("lenet-12")
    small = sum(
        int((layer.weight.abs() <= 0.05).sum()) for layer in strong_sources.affines(strong_sources.read(ticket))
    )
    construction = construct(ticket, SubsetSearch(candidates=16, method="sparsest", eps=0.05, round_small=True))
    every = construct(ticket, SubsetSearch(candidates=16, method="sparsest", eps=0.05, allow_empty=False))
    assert every.solves - construction.solves >= small
    assert construction.ticket.kept < every.ticket.kept
    # an unreachable target comes back with its error
    assert construct(ticket, SubsetSearch(candidates=2, eps=1e-3)).unreached > 100


# --- the error budget ---


def test_weights_within_the_budget_keep_the_outputs_within_eps():
    for name in ("lenet-24-16", "conv-2-w2", "resnet-8-w2"):
        ticket = target(name)
        budget = error_budget(ticket, 0.1, INPUTS)
        nodes = strong_sources.read(ticket)
        assert error_bound(nodes, budget, INPUTS) == pytest.approx(0.1, rel=0.01)
        exact = strong_sources.run(nodes, INPUTS.double())
        sizes = dict(zip([layer.name for layer in strong_sources.affines(nodes)], budget, strict=True))
        for seed in range(5):
            source = torch.Generator().manual_seed(seed)

            def moved(layer, x, source=source, sizes=sizes):
                size = sizes[layer.name]
                sign = torch.randint(0, 2, layer.weight.shape, generator=source) * 2.0 - 1
                bias = None if layer.bias is None else layer.bias + size
                return layer.apply(x, layer.weight + size * sign, bias)

            worst = (strong_sources.run(nodes, INPUTS.double(), moved) - exact).abs().max()
            assert 0 < worst <= 0.1


def test_a_construction_within_the_budget_is_within_eps_end_to_end():
    ticket = target("lenet-8")
    budget = error_budget(ticket, 0.2, INPUTS)
    construction = construct(ticket, SubsetSearch(candidates=22, redraws=4), eps=budget)
    assert construction.unreached == 0
    assert construction.sup_error(INPUTS) <= 0.2


# --- equivariance ---


def test_pruning_in_the_basis_stays_equivariant_and_raw_pruning_does_not():
    rows = strong_equivariant.equivariance_rows([0, 1], SEARCH)
    assert set(rows["group"]) == set(strong_equivariant.GROUPS)
    worst = rows.groupby("arm")["error"].max()
    assert worst["ticket"] < 1e-5
    assert worst["target"] < 1e-5
    assert rows.groupby("arm")["error"].min()["raw pruning"] > 0.05
    assert rows["sup_error"].max() < 0.05
    assert (rows["unreached"] == 0).all()


# --- bad input ---


def uncovered(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, classes))


def grouped(shape, classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Flatten(),
                         nn.Linear(256, classes))  # fmt: skip


def broken(value):
    ticket = target("lenet-12")
    ticket.coefficients["1.weight"][0, 0] = value
    return ticket


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: construct(target("lenet-12"), kind="three-layer"), "unknown construction 'three-layer'"),
        (lambda: construct(target("lenet-12"), SubsetSearch(33)), r"33 candidates .*32 bits \(valid: 1 to 32"),
        (lambda: SubsetSearch(0, "greedy"), "valid: 1 to 100000"),
        (lambda: SubsetSearch(method="gurobi"), "unknown method 'gurobi'"),
        (lambda: SubsetSearch(law="cauchy"), "unknown law 'cauchy'"),
        (lambda: SubsetSearch(eps=math.nan), "eps is nan"),
        (lambda: SubsetSearch(redraws=-1), "-1 redraws"),
        (lambda: SubsetSearch(method="fixed"), "size is None"),
        (lambda: construct(broken(math.nan)), "target tensor '1.weight' holds 1 values that are NaN or infinite"),
        (lambda: construct(broken(math.inf)), "NaN or infinite"),
        (lambda: construct(target("lenet-12"), eps=[0.1]), "1 tolerances for a target of 2 layers"),
        (lambda: construct(target(f"{__name__}:uncovered")), r"layer '2' \(GELU.*is covered by no construction"),
        (lambda: construct(target(f"{__name__}:grouped")), r"layer '1' \(Conv2d.*groups=2.*is covered by no"),
        (lambda: construct(target("resnet-8-w2"), kind="depth-plus-one"), "residual blocks are not covered"),
        (lambda: construct(target("flatten-linear3-sigmoid-linear10"), kind="depth-plus-one"), "'sigmoid' is not"),
        (lambda: construct(target("lenet-12"), SubsetSearch(90_000, "nearest")), "does not fit"),
        (lambda: error_budget(target("lenet-12"), 0.0, INPUTS), "eps is 0.0"),
        (lambda: layers.module_of("linear3-gelu", (64, 1, 1), 10), "no layer 'gelu'"),
        (lambda: layers.module_of("flatten-linear3", (1, 8, 8), 10), "ends in shape"),
        (lambda: strong_equivariant.equivariant_target("rotations", 4, 2, [3], 3, 0), "unknown group 'rotations'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
