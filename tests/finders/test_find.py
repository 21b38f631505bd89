"""Every method through `find`: exact counts, untouched tickets, data where it is needed, any basis, clear errors."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from replicates import of_seed
from torch import nn

from lthlib.data import Dataset, load
from lthlib.errors import InputError
from lthlib.finders.find import METHODS, NEEDS_DATA, find
from lthlib.finders.paths import collapsed_layers, layer_report
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import force_scores, grasp_scores, ntk_sketch_scores, random_scores, snip_scores
from lthlib.masks.controls import jaccard
from lthlib.masks.counts import counts_of
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, bases_for, dense_ticket

# Little work for the methods that iterate; the defaults are the papers'.
QUICK = {
    "synflow": {"iterations": 5},
    "ntk-sap": {"iterations": 2, "redraws": 1, "examples": 8},
    "iterative-snip": {"iterations": 3, "examples_per_class": 2},
    "force": {"iterations": 3, "examples_per_class": 2},
    "ntk-sketch": {"probes": 2, "examples_per_class": 2},
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", device="cpu")


def dense(name: str = "conv-2-w2", shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> Ticket:
    model = architecture(name, shape, classes)
    return dense_ticket(model, initial_state(model, 0))


def same(first: Ticket, second: Ticket) -> bool:
    return all(torch.equal(first.masks[name], mask) for name, mask in second.masks.items())


class Own(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.hidden, self.output = nn.Linear(4, 6), nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = torch.tanh(self.norm(self.conv(images))).mean((2, 3))
        return self.output(nn.functional.gelu(self.hidden(pooled)))


def own(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Own(input_shape[0], classes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["conv-2-w2", "resnet-8-w2", "lenet-20-10", f"{__name__}:own"])
def test_every_method_finds_an_exact_count_among_survivors(method, name, digits):
    ticket = dense(name)
    # A layer that such a rule wants whole must be whole.
    start = 1 if method in ("er", "erk", "smart-ratio") else 0.9
    ticket = ticket.with_masks(keep_top(random_scores(ticket, generator(0, "t")), round(start * ticket.prunable)))
    digest, state = ticket.digest(), torch.random.get_rng_state()
    data = digits if method in NEEDS_DATA else None
    if (method, name) == ("phew", f"{__name__}:own"):
        with pytest.raises(InputError, match="which layer reads which units"):
            find(ticket, 0.1, method)
        return
    found, again = (find(of_seed(ticket, 3), 0.1, method, data, **QUICK.get(method, {})) for _ in range(2))
    assert found.kept == round(0.1 * ticket.prunable) and same(found, again)
    assert all(not (mask & ~ticket.masks[name]).any() for name, mask in found.masks.items())
    assert all(torch.equal(found.coefficients[name], c) for name, c in ticket.coefficients.items())
    assert all(torch.equal(found.rest[name], tensor) for name, tensor in ticket.rest.items())
    assert ticket.digest() == digest and torch.equal(torch.random.get_rng_state(), state)
    other = find(of_seed(ticket, 4), 0.1, method, data, **QUICK.get(method, {}))
    assert same(found, other) == (method in ("magnitude", "synflow"))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"phew"}))
def test_every_score_can_be_drawn_from_in_any_basis(method, digits):
    ticket = dense("lenet-20-10")
    rotated = ticket.in_bases(bases_for(ticket, "random", 1))
    quick = QUICK.get(method, {})
    found = find(rotated, 0.1, method, digits, draw="gumbel", temperature=2.0, keep_one=True, **quick)
    assert found.kept == round(0.1 * ticket.prunable) and found.bases is not ticket.bases
    assert min(counts_of(found.masks).values()) >= 1


def test_methods_are_their_scores_highest(digits):
    ticket = dense()
    images, labels = pruning_data(of_seed(ticket, 7), digits)
    count = ticket.prunable // 20
    density = count / ticket.prunable
    exact = ntk_sketch_scores(ticket, images)
    grasp = grasp_scores(ticket, images, labels)
    for method, scores, options in (
        ("snip", snip_scores(ticket, images, labels), {}),
        ("grasp", grasp, {}),
        ("grasp-abs", {name: score.abs() for name, score in grasp.items()}, {}),
        ("force", force_scores(ticket, images, labels), {"iterations": 1}),
        ("ntk-sketch", exact, {"probes": None}),
    ):
        masks = keep_top(scores, count)
        found = find(of_seed(ticket, 7), density, method, digits, **options)
        assert all(torch.equal(found.masks[name], mask) for name, mask in masks.items()), method
    inverted = find(of_seed(ticket, 7), density, "snip", digits, invert=True)
    assert jaccard(inverted.masks, find(of_seed(ticket, 7), density, "snip", digits).masks) < 0.01
    signed = find(of_seed(ticket, 7), 0.5, "grasp", digits)
    assert not same(signed, find(of_seed(ticket, 7), 0.5, "grasp-abs", digits))


def test_iterations_and_revival_change_the_mask(digits):
    ticket = dense("lenet-20-10")
    once, often, force = (find(of_seed(ticket, 0), 0.03, name, digits) for name in ("snip", "iterative-snip", "force"))
    assert not same(once, often) and not same(often, force)
    assert find(of_seed(ticket, 0), 0.03, "grasp", digits, iterations=4).kept == once.kept


def test_random_methods_have_their_layer_counts():
    ticket = dense("resnet-20", (3, 32, 32))
    assert ticket.prunable == 270_896
    densities = {method: find(ticket, 0.05, method).layer_densities() for method in ("erk", "uniform", "random")}
    assert densities["erk"]["stem.0.weight"] == pytest.approx(0.47, abs=0.005)
    assert densities["erk"]["stages.2.1.conv1.weight"] == pytest.approx(0.030, abs=0.0005)
    assert densities["erk"]["output.weight"] == pytest.approx(0.95, abs=0.005)
    assert all(value == pytest.approx(0.05, abs=0.002) for value in densities["uniform"].values())
    assert densities["random"]["stages.2.1.conv1.weight"] == pytest.approx(0.05, abs=0.005)
    tenth = find(ticket, 0.1, "erk").layer_densities()
    assert (round(tenth["stem.0.weight"], 2), tenth["output.weight"]) == (0.98, 1.0)
    smart = find(dense("vgg-11-w4"), 0.05, "smart-ratio").layer_densities()
    assert smart["output.weight"] == pytest.approx(0.3, abs=0.01)


def test_data_free_methods_need_none_and_others_say_so(digits):
    ticket = dense()
    for method in METHODS:
        quick = QUICK.get(method, {})
        if method in NEEDS_DATA:
            with pytest.raises(InputError, match=f"method '{method}' needs data: pass a data set"):
                find(ticket, 0.1, method, **quick)
            assert find(ticket, 0.1, method, corruption="gaussian", **quick).kept == round(0.1 * ticket.prunable)
        else:
            assert find(ticket, 0.1, method, **quick).kept == round(0.1 * ticket.prunable)
    clean = find(ticket, 0.1, "snip", digits)
    for corruption in ("gaussian", "random labels", "shuffled pixels", "half data"):
        assert not same(clean, find(ticket, 0.1, "snip", digits, corruption=corruption))


def test_less_than_a_weight_a_layer_runs_and_reports_collapse(digits):
    ticket = dense("lenet-20-10")
    for method in METHODS:
        found = find(ticket, 2 / ticket.prunable, method, digits, **QUICK.get(method, {}))
        assert found.kept == 2 and collapsed_layers(found)
        assert sum(row.empty for row in layer_report(found)) == len(collapsed_layers(found))
    whole = find(ticket, 3 / ticket.prunable, "magnitude", keep_one=True)
    assert counts_of(whole.masks) == dict.fromkeys(whole.masks, 1)
    nothing = find(ticket, 0.1 / ticket.prunable, "snip", digits)
    assert nothing.kept == 0 and len(collapsed_layers(nothing)) == 3


def test_bad_scores_name_the_method_and_the_layer(digits):
    ticket = dense("lenet-20-10")
    nan = {name: c.clone() for name, c in ticket.coefficients.items()}
    nan["3.weight"][0, 0] = math.nan
    dead = {name: c * (name != "5.weight") for name, c in ticket.coefficients.items()}
    for method, message in (("magnitude", "magnitude"), ("snip", "snip"), ("grasp", "grasp"), ("synflow", "synflow")):
        with pytest.raises(InputError, match=f"{message} gave NaN scores in layer"):
            find(replace(ticket, coefficients=nan), 0.1, method, digits)
        with pytest.raises(InputError, match=f"{message} gave only zero scores in layer"):
            find(replace(ticket, coefficients=dead), 0.1, method, digits)


def test_wrong_names_and_densities_are_refused(digits):
    ticket = dense()
    with pytest.raises(InputError, match="unknown method 'sinp', did you mean 'snip'"):
        find(ticket, 0.1, "sinp")
    with pytest.raises(InputError, match="unknown option of method 'magnitude' 'iterations'"):
        find(ticket, 0.1, "magnitude", iterations=3)
    with pytest.raises(InputError, match="unknown corruption 'blur'"):
        find(ticket, 0.1, "snip", digits, corruption="blur")
    with pytest.raises(InputError, match=r"density 1\.5 is not in"):
        find(ticket, 1.5, "magnitude")
    with pytest.raises(InputError, match="takes no sampling options"):
        find(ticket, 0.1, "phew", draw="gumbel")
    with pytest.raises(InputError, match="layer counts by both 'erk' and 'uniform'"):
        find(ticket, 0.1, "erk", scope="uniform")
    with pytest.raises(InputError, match="where the ticket has"):
        find(find(ticket, 0.1, "magnitude"), 0.2, "snip", digits)


def test_the_table_of_methods_lists_each_function_s_own_options():
    for name, method in METHODS.items():
        keywords = [p.name for p in inspect.signature(method.prune).parameters.values() if p.kind is p.KEYWORD_ONLY]
        # Which layer counts a random mask has is an option of every sampling.
        assert set(method.options) == set(keywords) - {"scope"}, name
        assert set(method.fixed) <= set(keywords), name
