"""Elastic tickets: every map of the paper, exact round trips and density identities, copies apart, bad maps named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicates import of_seeds

from lthlib import elastic
from lthlib.data import Dataset, Split
from lthlib.elastic import append, carry, depth_map, drop, from_text, interpolate, to_text
from lthlib.errors import InputError
from lthlib.masks.controls import random_masks
from lthlib.models.architecture import architecture, prunable
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, bases_for, dense_ticket
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
PAIRS = [  # small nets whose depths the maps connect; the first is the source
    ("resnet-20-w2", "resnet-32-w2"),
    ("resnet-14-w2", "resnet-44-w2"),
    ("resnet-32-w2", "resnet-44-w2"),
    ("vgg-13-w2", "vgg-19-w2"),
    ("vgg-11-fc3-w2", "vgg-11-fc5-w2"),
    ("lenet-12-12-6", "lenet-12-12-12-12-6"),
    ("lenet-8-8-8", "lenet-8-8-8-8-8"),
]


def net(name, shape=DIGITS):
    return architecture(name, shape, 10)


def ticket(name, density=0.3, seed=0, shape=DIGITS, rule="canonical"):
    """A ticket with a random mask and BatchNorm state as after some training."""
    found = dense_ticket(net(name, shape), initial_state(net(name, shape), seed))
    source = generator(seed, "test")
    rest = {
        key: value + (3 if value.dtype == torch.int64 else torch.rand(value.shape, generator=source))
        for key, value in found.rest.items()
    }
    found = Ticket(found.architecture, found.bases, found.coefficients, found.masks, rest)
    if rule != "canonical":
        found = found.in_bases(bases_for(found, rule, seed, found.weights()))
    shapes = {key: tuple(value.shape) for key, value in found.masks.items()}
    return found.with_masks(random_masks(shapes, round(density * found.prunable), source))


def pair_id(pair):
    return " to ".join(pair)


def units(text):
    return tuple(int(one) for one in text.split())


# ---------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize(
    ("pair", "chosen", "appended", "interpolated"),
    [  # arXiv 2103.16547, section 3.2, Figures 3 to 5, with the workbook's placement
        ("20 32", None, "1 2 1 2", "1 1 2 2"),
        ("20 44", None, "1 2 1 2 1 2", "1 1 1 2 2 2"),
        ("32 56", None, "1 2 3 4 1 2 3 4", "1 1 2 2 3 3 4 4"),
        ("32 56", "1 2 3 4", "1 2 3 4 1 2 3 4", "1 1 2 2 3 3 4 4"),
        ("32 56", "1 2", "1 2 1 2 1 2 3 4", "1 1 1 2 2 2 3 4"),
        ("32 56", "1", "1 1 1 1 1 2 3 4", "1 1 1 1 1 2 3 4"),
        ("32 56", "2 3", "1 2 3 2 3 2 3 4", "1 2 2 2 3 3 3 4"),
        ("32 56", "3 4", "1 2 3 4 3 4 3 4", "1 2 3 3 3 4 4 4"),
        ("32 44", None, "1 2 1 2 3 4", "1 1 2 2 3 4"),
        ("44 56", None, "1 2 1 2 3 4 5 6", "1 1 2 2 3 4 5 6"),
    ],
)
def test_maps_of_the_paper(pair, chosen, appended, interpolated):
    source, target = (net(f"resnet-{depth}-w2") for depth in pair.split())
    chosen = None if chosen is None else units(chosen)
    for order, wanted in (("append", appended), ("interpolate", interpolated)):
        assert depth_map(source, target, order, chosen=chosen) == ((0, *units(wanted)),) * 3


def test_uneven_counts_and_the_end_of_the_stage():
    assert append((1, 2), 5) == units("1 1 2 1 2") and interpolate((1, 2), 5) == units("1 1 1 2 2")
    assert append((1, 2, 3, 4), 6, at_end=True) == units("1 2 3 4 1 2")
    assert append((1, 2, 3, 4), 8, (1, 2), at_end=True) == units("1 2 3 4 1 2 1 2")
    assert append((1, 2), 2) == interpolate((1, 2), 2) == (1, 2)


def test_squeezes():
    eight = tuple(range(1, 9))
    assert drop(eight, 4) == drop(eight, 4, "late") == units("1 2 3 4")
    assert drop(eight, 4, "early") == units("5 6 7 8")
    assert drop(eight, 4, "interval") == units("1 3 5 7")
    assert drop(eight, 4, "consecutive") == units("1 2 3 4")
    assert drop(eight, 4, "consecutive", start=2) == units("1 2 7 8")
    assert drop(units("1 2 3 4 5 6"), 4, "interval") == units("1 3 5 6")
    assert drop(units("1 2 3 4 5 6"), 4, "consecutive") == units("1 2 5 6")
    assert [drop((1, 2), 0, which) for which in elastic.DROPS] == [()] * 4


@pytest.mark.parametrize(
    ("text", "pair", "order"),
    [  # maps as VITA-Group/ElasticLTH writes them
        ("0:0;1:1,2;2:3,4;3:5,6;4:7,8", ("resnet-32-w2", "resnet-56-w2"), "interpolate"),
        ("0:0;1:1,5;2:2,6;3:3,7;4:4,8", ("resnet-32-w2", "resnet-56-w2"), "append"),
        ("0:0;1:1,3;2:2,4", ("resnet-20-w2", "resnet-32-w2"), "append"),
        ("0:0;1:1,2;2:3,4", ("resnet-20-w2", "resnet-32-w2"), "interpolate"),
        ("0:0;1:1,3,5;2:2,4,6", ("resnet-20-w2", "resnet-44-w2"), "append"),
        ("0:0;1:1,3;2:2,4;3:5;4:6", ("resnet-32-w2", "resnet-44-w2"), "append"),
        ("0:0;1:1,2;2:3", ("lenet-30-30-10", "lenet-30-30-30-10"), "append"),
        ("0:0;1:1,2,3;2:4", ("lenet-30-30-10", "lenet-30-30-30-30-10"), "interpolate"),
    ],
)
def test_text_of_maps(text, pair, order):
    source, target = map(net, pair)
    found = depth_map(source, target, order)
    assert found[0] == from_text(text)[0] and set(found) == set(from_text(text))
    assert to_text(found[:1]) == text
    assert from_text(to_text(found)) == found


def test_maps_of_vgg_and_its_linear_layers():
    found = depth_map(net("vgg-13-w2"), net("vgg-19-w2"))
    assert found == ((0, 1), (0, 1), (0, 1, 1, 1), (0, 1, 1, 1), (0, 1, 1, 1))
    # All linear layers of the stage are alike, and so the first may be copied: 0:0,4;2:2,6 counting the ReLUs.
    assert depth_map(net("vgg-13-fc3-w2"), net("vgg-13-fc5-w2"))[-1] == (0, 1, 0, 1)
    assert depth_map(net("vgg-13-fc3-w2"), net("vgg-13-fc5-w2"), "interpolate")[-1] == (0, 0, 1, 1)


def test_stages_of_an_mlp():
    assert elastic.stages(net("lenet-30-30-30-10")) == (elastic.Stage("hidden", ("1.", "3.", "5.", "7."), range(1, 3)),)
    assert list(elastic.stages(net("lenet-64-64"))[0].replicable) == [1]
    assert list(elastic.stages(net("lenet-30-10"))[0].replicable) == []


@given(st.integers(1, 6), st.integers(0, 9), st.data())
def test_stretched_lists_keep_every_unit_and_are_undone(count, extra, data):
    own = tuple(range(1, count + 1))
    chosen = data.draw(st.one_of(st.none(), st.sets(st.sampled_from(own), min_size=1)))
    for stretched in (
        append(own, count + extra, chosen),
        append(own, count + extra, chosen, at_end=True),
        interpolate(own, count + extra, chosen),
    ):
        assert len(stretched) == count + extra and set(stretched) == set(own)
        line = (0, *stretched)
        assert elastic.compose((line,), elastic.undo((line,))) == (tuple(range(count + 1)),)
        times = [stretched.count(unit) for unit in sorted(chosen or own)]
        assert max(times) - min(times) <= 1 and times == sorted(times, reverse=True)
        assert from_text(to_text((line,))) == (line,)
    assert drop(append(own, count + extra), count, "late") == own if extra % count == 0 else True
    assert drop(tuple(range(count + extra)), count, "interval") == tuple(
        interpolate(own, count + extra).index(unit) for unit in own
    )


@pytest.mark.parametrize("order", elastic.ORDERS)
def test_stretches_compose_for_whole_multiples(order):
    two, four, eight = (net(f"resnet-{depth}-w2") for depth in (20, 32, 56))
    steps = depth_map(two, four, order), depth_map(four, eight, order)
    assert elastic.compose(*steps) == depth_map(two, eight, order)
    start = ticket("resnet-20-w2")
    twice = carry(carry(start, four, steps[0]), eight, steps[1])
    assert twice.digest() == carry(start, eight, elastic.compose(*steps)).digest()


# --------------------------------------------------------------------------------------------------------- the tickets


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("order", elastic.ORDERS)
def test_round_trips_are_exact(pair, order):
    source, target = map(net, pair)
    start = ticket(pair[0])
    there = depth_map(source, target, order)
    stretched = carry(start, target, there)
    assert stretched.architecture == target and tuple(stretched.masks) == prunable(target)
    stretched.weights()
    assert carry(stretched, source, elastic.undo(there)).digest() == start.digest()
    assert carry(start, source, depth_map(source, source, order)).digest() == start.digest()
    assert depth_map(source, source, order) == elastic.identity(source)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["resnet", "lenet"]),
    st.integers(1, 3),
    st.integers(0, 4),
    st.sampled_from(elastic.ORDERS),
    st.integers(0, 2**16),
)
def test_round_trips_of_random_tickets(family, count, extra, order, seed):
    names = (
        [f"resnet-{8 + 6 * n}-w1" for n in (count, count + extra)]
        if family == "resnet"
        else ["lenet-5" + "-5" * n + "-3" for n in (count, count + extra)]
    )
    source, target = map(net, names)
    start = ticket(names[0], 0.5, seed)
    there = depth_map(source, target, order)
    stretched = carry(start, target, there)
    assert (stretched.kept, stretched.prunable) == elastic.kept_after(start, target, there)
    assert carry(stretched, source, elastic.undo(there)).digest() == start.digest()


@pytest.mark.parametrize("rule", ["dct", "hadamard", "random", "svd", "units"])
@pytest.mark.parametrize("pair", [("lenet-16-16-8", "lenet-16-16-16-8"), ("resnet-14-w4", "resnet-20-w4")], ids=pair_id)
def test_every_basis_moves_with_its_unit(rule, pair):
    if rule == "hadamard" and pair[0].startswith("resnet"):
        rule = "dct@kernel"
    start = ticket(pair[0], rule=rule)
    source, target = map(net, pair)
    there = depth_map(source, target)
    stretched = carry(start, target, there)
    before, after, origin = start.weights(), stretched.weights(), elastic.origins(source, target, there)
    assert all(torch.equal(after[name], before[origin[name]]) for name in after)
    assert carry(stretched, source, elastic.undo(there)).digest() == start.digest()


def test_a_target_by_hand():
    start = ticket("resnet-32-w2", shape=CIFAR)
    target = net("resnet-56-w2", CIFAR)
    state = start.state()
    by_hand = {key: value for key, value in state.items() if key.startswith(("stem", "output"))}
    for stage in range(3):
        for place, unit in enumerate((0, 1, 1, 2, 2, 3, 3, 4, 4)):
            prefix = f"stages.{stage}.{unit}."
            for key in [key for key in state if key.startswith(prefix)]:
                by_hand[f"stages.{stage}.{place}." + key[len(prefix) :]] = state[key]
    found = carry(start, target, depth_map(start.architecture, target, "interpolate")).state()
    assert found.keys() == by_hand.keys() and all(torch.equal(found[key], by_hand[key]) for key in found)


def test_copies_start_equal_and_train_apart():
    start = ticket("resnet-14-w2", 0.6)
    target = net("resnet-20-w2")
    there = depth_map(start.architecture, target)
    found = carry(start, target, there)
    first, second = "stages.1.1.", "stages.1.2."
    state = found.state()
    pairs = [(key, second + key[len(first) :]) for key in state if key.startswith(first)]
    assert {"norm1.running_mean", "norm2.num_batches_tracked"} <= {key[len(first) :] for key, _ in pairs}
    for one, other in pairs:
        assert torch.equal(state[one], state[other])
    everything = [*found.coefficients.values(), *found.masks.values(), *found.rest.values()]
    everything += [*start.coefficients.values(), *start.masks.values(), *start.rest.values()]
    pointers = [tensor.untyped_storage().data_ptr() for tensor in everything]
    assert len(set(pointers)) == len(pointers)
    images = torch.randint(0, 17, (64, 1, 8, 8), generator=generator(0, "test"), dtype=torch.uint8)
    split = Split(images, torch.arange(64) % 10)
    some = Dataset("random", split, split, split, 10, (8.0,), (5.0,), "none")
    (run,) = train(of_seeds([found], [0]), Recipe(batch_size=32, epochs=2, evaluations=1), some)
    name = "stages.1.{}.conv1.weight"
    one, other = (run.ticket.coefficients[name.format(place)] for place in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(one != 0, other != 0)
    assert elastic.copies(start.architecture, target, there) == tuple(
        f"stages.{stage}.2.conv{layer}.weight" for stage in range(3) for layer in (1, 2)
    )


@pytest.mark.parametrize(
    ("depths", "fixed"), [((14, 20), 77_360), ((20, 32), 77_360), ((32, 20), 77_360), ((32, 44), 77_360)]
)
@pytest.mark.parametrize("order", elastic.ORDERS)
def test_density_identity(depths, fixed, order):
    source, target = (net(f"resnet-{depth}", CIFAR) for depth in depths)
    start = ticket(source.name, 0.2, shape=CIFAR)
    there = depth_map(source, target, order)
    found = carry(start, target, there)
    normal = {
        (stage, unit): sum(int(start.masks[f"stages.{stage}.{unit}.conv{layer}.weight"].sum()) for layer in (1, 2))
        for stage in range(3)
        for unit in range(1, (depths[0] - 2) // 6)
    }
    copied_kept = sum(normal[stage, unit] for stage in range(3) for unit in there[stage][1:])
    kept = start.kept - sum(normal.values()) + copied_kept
    copied = sum((4608, 18432, 73728)) * ((depths[1] - 8) // 6)
    assert (found.kept, found.prunable) == (kept, fixed + copied) == elastic.kept_after(start, target, there)


@pytest.mark.parametrize("pair", [("resnet-20", "resnet-32"), ("resnet-14", "resnet-56"), ("resnet-20", "resnet-56")])
def test_drift_of_equal_copies(pair):
    source, target = (net(name, CIFAR) for name in pair)
    start = ticket(source.name, 0.1, shape=CIFAR)
    # The classifier kept whole, so that fixed and normal parts differ in density.
    start = start.with_masks({**start.masks, "output.weight": torch.ones(10, 64, dtype=torch.bool)})
    found = carry(start, target, depth_map(source, target))
    drift = elastic.drift_of_equal_copies(start, target)
    assert found.density - start.density == pytest.approx(drift, abs=1e-12)
    assert drift != 0


def test_permuting_copies_leaves_originals_alone():
    start = ticket("resnet-20-w4", 0.4)
    target = net("resnet-32-w4")
    there = depth_map(start.architecture, target)
    found = carry(start, target, there)
    shuffled = elastic.with_copies_permuted(found, start.architecture, there, 0)
    copied = elastic.copies(start.architecture, target, there)
    assert shuffled.layer_densities() == found.layer_densities()
    assert {name for name in found.masks if not torch.equal(found.masks[name], shuffled.masks[name])} == set(copied)
    assert all(torch.equal(found.coefficients[name], shuffled.coefficients[name]) for name in found.masks)


def test_permuted_order_keeps_the_units():
    source, target = net("resnet-32-w2"), net("resnet-56-w2")
    there = depth_map(source, target)
    for seed in range(3):
        moved = elastic.permuted(there, source, seed)
        elastic.validate(moved, source, target)
        assert [sorted(line) for line in moved] == [sorted(line) for line in there]
        assert moved != there
    assert elastic.permuted(there, source, 1) == elastic.permuted(there, source, 1)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((0, 1, 2, 1), r"'0:0;1:1,3;2:2\|.* leaves unit 4 of stage 0 without a source \(valid ids in stage 0: 0 to 2"),
        ((0, 1, 2, 1, 2, 1), "has 6 entries in stage 0"),
        ((1, 0, 2, 1, 2), "moves or copies unit 0 of stage 0"),
        ((0, 1, 0, 1, 2), r"moves or copies unit 0.*valid ids in stage 0: 0 to 2, for 5 units"),
        ((0, 1, 2, 3, 4), "names unit 3, which stage 0 does not have.*valid ids in stage 0: 0 to 2"),
        ((0, 1, 2, -1, 2), "names unit -1"),
    ],
)
def test_bad_maps(line, message):
    source, target = net("resnet-20-w2"), net("resnet-32-w2")
    good = depth_map(source, target)[0]
    with pytest.raises(InputError, match=message):
        carry(ticket("resnet-20-w2"), target, (line, good, good))


def test_bad_pairs():
    start = ticket("resnet-14-w2")
    good = depth_map(start.architecture, net("resnet-20-w2"))
    with pytest.raises(InputError, match=r"has 2 stages.*valid: 3"):
        carry(start, net("resnet-20-w2"), good[:2])
    with pytest.raises(InputError, match="another family, 'vgg-11-w2'"):
        depth_map(start.architecture, net("vgg-11-w2"))
    with pytest.raises(InputError, match="needs the same ones"):
        depth_map(net("vgg-11-w2"), net("vgg-11-fc2-w2"))
    with pytest.raises(InputError, match=r"unknown family.*'conv-2-w2'.*valid: resnet"):
        elastic.stages(net("conv-2-w2"))
    with pytest.raises(InputError, match="no unit to copy"):
        depth_map(net("resnet-8-w2"), net("resnet-14-w2"))
    with pytest.raises(InputError, match=r"\(4, 4, 3, 3\).*\(2, 2, 3, 3\)"):
        carry(ticket("resnet-14-w4"), net("resnet-20-w2"), good)
    with pytest.raises(InputError, match=r"'stem.0.weight' has shape \(2, 3, 3, 3\).*has shape \(2, 1, 3, 3\)"):
        carry(ticket("resnet-14-w2", shape=CIFAR), net("resnet-20-w2"), good)
    with pytest.raises(InputError, match=r"inputs \(1, 8, 8\) cannot be carried to inputs \(1, 4, 16\)"):
        carry(ticket("lenet-5-5"), net("lenet-5-5", (1, 4, 16)), ((0, 1),))
    with pytest.raises(InputError, match=r"shape \(6, 5\), at a place of shape \(5, 5\)"):
        carry(ticket("lenet-5-5-6"), net("lenet-5-5-5-6"), ((0, 1, 2, 2),))


def test_bad_lists_and_texts():
    with pytest.raises(InputError, match=r"unit 5 cannot be copied \(valid: 1, 2\)"):
        append((1, 2), 4, (5,))
    with pytest.raises(InputError, match="cannot be stretched to 1"):
        interpolate((1, 2), 1)
    with pytest.raises(InputError, match="cannot be squeezed to 3"):
        drop((1, 2), 3)
    with pytest.raises(InputError, match="unknown units to drop 'lates', did you mean 'late'"):
        drop((1, 2), 1, "lates")
    with pytest.raises(InputError, match=r"from position 2 \(valid: 0 to 1\)"):
        drop((1, 2), 1, "consecutive", start=2)
    with pytest.raises(InputError, match="unknown order of copies"):
        depth_map(net("resnet-14-w2"), net("resnet-20-w2"), "appended")
    with pytest.raises(InputError, match="unit 2 of stage 0 has no source"):
        from_text("0:0;1:1,3")
    with pytest.raises(InputError, match="unit 1 of stage 1 has two sources"):
        from_text("0:0|0:0;1:1;2:1")
    with pytest.raises(InputError, match="'1-1' is not SOURCE:TARGET"):
        from_text("0:0;1-1")
    with pytest.raises(InputError, match="drops units"):
        elastic.undo(((0, 2),))
    with pytest.raises(InputError, match="does not start where"):
        elastic.compose(((0, 1),), ((0, 1, 2),))
