"""Arms beside an elastic ticket: exact counts, what each keeps and changes; lines between networks; its tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from replicates import of_seed

from lthlib import elastic
from lthlib.data import Dataset, Split
from lthlib.errors import InputError
from lthlib.finders.elastic_arms import AT_REWIND, ELASTIC_ARMS, direct_at, elastic_control
from lthlib.finders.imp import Pruning
from lthlib.masks.controls import random_masks
from lthlib.models.architecture import architecture, build
from lthlib.randomness import generator
from lthlib.studies import connectivity, elastic_measures
from lthlib.studies import elastic as rows_of
from lthlib.studies.setting import Setting, chain_rows, control_arms, elastic_arm, flipped, train_arms
from lthlib.studies.setting import chains as chains_
from lthlib.ticket import bases_for, check_same_bases, in_bases_of, initial_tickets
from lthlib.training.recipe import Recipe

DIGITS = (1, 8, 8)


def net(name):
    return architecture(name, DIGITS, 10)


def dense(name, seed=0):
    (ticket,) = initial_tickets(net(name), [seed])
    return ticket


def sparse(name, density=0.4, seed=0, rule="canonical"):
    ticket = dense(name, seed)
    if rule != "canonical":
        ticket = ticket.in_bases(bases_for(ticket, rule, seed))
    shapes = {key: tuple(mask.shape) for key, mask in ticket.masks.items()}
    return ticket.with_masks(random_masks(shapes, round(density * ticket.prunable), generator(seed, "test")))


def images(count=60):
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 8, (count, *DIGITS), generator=generator(0, "test"), dtype=torch.uint8)
    pixels[torch.arange(count), 0, labels % 8, labels // 2] = 60
    split = Split(pixels, labels)
    return Dataset("toy", split, split, split, 10, (6.0,), (10.0,), "none")


# ---------------------------------------------------------------------------------------------------------------- arms

SOURCE, TARGET = "resnet-14-w4", "resnet-20-w4"
MAP = elastic.depth_map(net(SOURCE), net(TARGET))


@pytest.mark.parametrize("name", [name for name in ELASTIC_ARMS + AT_REWIND if name != "dense stretch"])
def test_every_arm_has_exactly_the_elastic_count(name):
    source, own = sparse(SOURCE, 0.2), dense(TARGET)
    found = elastic.carry(source, net(TARGET), MAP)
    made = elastic_control(name, source, net(TARGET), MAP, own, images())
    assert made.kept == found.kept and made.architecture == net(TARGET)


def test_what_each_control_keeps():
    source, own = sparse(SOURCE), dense(TARGET, 5)
    found = elastic.carry(source, net(TARGET), MAP)
    made = {name: elastic_control(name, source, net(TARGET), MAP, own, images()) for name in ELASTIC_ARMS}

    def same(name, part, other=found):
        ours, theirs = getattr(made[name], part), getattr(other, part)
        return all(torch.equal(ours[key], theirs[key]) for key in theirs)

    assert made["elastic"].digest() == found.digest()
    values = {name for name in ELASTIC_ARMS if same(name, "coefficients")}
    masks = {name for name in ELASTIC_ARMS if same(name, "masks")}
    layers = {name for name in ELASTIC_ARMS if made[name].layer_densities() == found.layer_densities()}
    # With one unit to copy, permuting the order changes nothing.
    assert masks == {"elastic", "reinit", "mask only", "order permuted"}
    assert values == {
        "elastic",
        "random mask",
        "copies permuted",
        "copies by snip",
        "weights only",
        "dense stretch",
        "order permuted",
    }
    assert layers == set(ELASTIC_ARMS) - {"weights only", "dense stretch", "copies by snip"}
    copied = elastic.copies(net(SOURCE), net(TARGET), MAP)
    ours = made["copies by snip"].masks
    assert {key for key in ours if not torch.equal(ours[key], found.masks[key])} == set(copied)
    assert made["copies by snip"].kept == found.kept
    assert same("mask only", "coefficients", own) and same("mask only", "rest", own)
    assert made["dense stretch"].density == 1


def test_order_permuted_moves_masks_and_values_together():
    source = sparse("resnet-20-w4")
    target = net("resnet-32-w4")
    depths = elastic.depth_map(source.architecture, target)
    found = elastic.carry(source, target, depths)
    seeds = [
        elastic_control("order permuted", of_seed(source, seed), target, depths, dense("resnet-32-w4"))
        for seed in range(4)
    ]
    assert {one.kept for one in seeds} == {found.kept} and len({one.digest() for one in seeds}) > 1


def test_baselines_work_in_the_elastic_tickets_basis():
    source = sparse(SOURCE, rule="random")
    made = elastic_control("snip", source, net(TARGET), MAP, dense(TARGET), images())
    found = elastic.carry(source, net(TARGET), MAP)
    check_same_bases(made, found)
    own, weights = dense(TARGET).weights(), in_bases_of(dense(TARGET), found).weights()
    assert all(torch.allclose(weights[name], own[name], atol=1e-5) for name in own)


def test_bad_arms():
    source, own = sparse(SOURCE), dense(TARGET)
    with pytest.raises(InputError, match="unknown arm 'snap', did you mean 'snip'"):
        elastic_control("snap", source, net(TARGET), MAP, own)
    with pytest.raises(InputError, match=r"\(8, 1, 3, 3\) in 'resnet-20-w8' and \(4, 1, 3, 3\) in 'resnet-20-w4'"):
        elastic_control("mask only", source, net(TARGET), MAP, dense("resnet-20-w8"))
    turned = sparse(TARGET, rule="random")
    with pytest.raises(InputError, match=r"shape \(4, 1, 3, 3\) is in the basis 'canonical'.*'random' in the other"):
        in_bases_of(sparse(TARGET), turned)


# --------------------------------------------------------------------------------------------------------------- lines


def test_a_line_ends_in_both_networks():
    first, second = sparse(TARGET, seed=1), sparse(TARGET, seed=2)
    assert connectivity.between(first, second, 1) is first and connectivity.between(first, second, 0) is second
    middle = connectivity.between(first, second, 0.25)
    name = "stages.1.1.conv1.weight"
    wanted = 0.25 * first.weights()[name] + 0.75 * second.weights()[name]
    assert torch.allclose(middle.weights()[name], wanted, atol=1e-7)
    assert torch.equal(middle.masks[name], first.masks[name] | second.masks[name])
    rows = connectivity.path_rows(first, second, images(), 3)
    from lthlib.training.train import evaluate

    ends = evaluate([second, first], images(), "validation")
    raw = rows[rows["statistics"] == "interpolated"]["accuracy"].tolist()
    assert [raw[0], raw[-1]] == [one.accuracy for one in ends]


def test_barriers():
    assert connectivity.barrier([90, 80, 94]) == 12
    assert connectivity.barrier([90, 95, 94]) == 2  # the worse end lies below the ends' mean
    assert connectivity.barrier([90, 91, 90]) == 0
    same = sparse(TARGET)
    rows = connectivity.path_rows(same, same, images(), 3)
    found = elastic_measures.barriers(rows.assign(path="one", seed=0))
    assert found["barrier"].tolist() == [0]


def test_statistics_are_those_of_the_data():
    ticket = dense("resnet-8-w4")
    data = images(64)
    found = connectivity.with_statistics_of(ticket, data, examples=64, batch_size=64)
    module = build(ticket.architecture)
    module.load_state_dict(ticket.state())
    seen = module.stem[0](data.normalised("train"))
    assert torch.allclose(found.rest["stem.1.running_mean"], seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(found.rest["stem.1.running_var"], seen.var((0, 2, 3)), rtol=1e-3)
    mlp = dense("lenet-8")
    assert connectivity.with_statistics_of(mlp, data) is mlp


def test_bad_lines():
    with pytest.raises(InputError, match=r"alpha 1\.5 is not in"):
        connectivity.between(dense(TARGET), dense(TARGET), 1.5)
    with pytest.raises(InputError, match="one architecture"):
        connectivity.between(dense(TARGET), dense("resnet-20-w8"), 0.5)
    with pytest.raises(InputError, match="2 points or more"):
        connectivity.path_rows(dense(TARGET), dense(TARGET), images(), 1)


# -------------------------------------------------------------------------------------------------------------- tables

MLPS = ["lenet-8-8", "lenet-8-8-8", "lenet-8-8-8-8-8"]


@pytest.fixture(scope="module")
def setting():
    recipe = Recipe(batch_size=30, epochs=2, evaluations=1, output_layer="kept", learning_rate=0.05)
    return Setting(recipe, images(), range(2), Pruning(levels=2, keep=0.6, rewind_step=1))


@pytest.fixture(scope="module")
def chains(setting):
    return chains_(MLPS, setting)


def test_chains_are_those_of_magnitude_pruning(setting, chains):
    assert list(chains) == MLPS and [len(by_seed) for by_seed in chains.values()] == [2, 2, 2]
    rows = chain_rows(chains, setting)
    assert rows.groupby(["target", "seed"]).size().eq(3).all()
    assert rows.loc[rows["round"] == 0, "density"].eq(1).all()
    assert set(rows["arm"]) == {"dense", "direct"}


def test_direct_tickets_of_any_count(setting, chains):
    chain = chains["lenet-8-8-8"][0]
    kept = [level.tickets[0].kept for level in chain]
    assert direct_at(chain, kept[1], "kept").digest() == chain[1].tickets[0].digest()
    found = direct_at(chain, kept[1] - 20, "kept")
    assert found.kept == kept[1] - 20
    assert all(bool((found.masks[name] <= chain[1].tickets[0].masks[name]).all()) for name in found.masks)
    assert bool(found.masks["7.weight"].all())
    assert direct_at(chain, kept[2], "pruned").digest() == chain[2].tickets[0].digest()
    with pytest.raises(InputError, match="no level has"):
        direct_at(chain[1:], kept[0], "kept")
    with pytest.raises(InputError, match="unknown rule for the output layer here 'half'"):
        direct_at(chain, 5, "half")


def test_arms_train_to_their_rows(setting, chains):
    arms = control_arms(["direct", "reinit", "erk", "rigl", "gmp"], chains, MLPS[0], MLPS[1], 2, setting)
    arms.append(elastic_arm(chains, MLPS[0], MLPS[1], 2, setting))
    rows, runs = train_arms(arms, setting)
    assert rows["arm"].drop_duplicates().tolist() == ["direct", "reinit", "erk", "rigl", "gmp", "elastic"]
    assert rows.groupby("seed")["n_free"].nunique().eq(1).all() and len(runs) == 6
    again, _ = train_arms(arms, setting)
    pd.testing.assert_frame_equal(rows, again)
    shares = rows_of.recovered_share(rows, ["reinit", "erk"])
    assert len(shares) == 2
    table = rows_of.accuracy_table(rows, ["target", "round"])
    assert list(table.columns) == ["direct", "reinit", "erk", "rigl", "gmp", "elastic", "density"]


def test_pairs_and_gaps():
    names = ["resnet-8-w2", "resnet-14-w2", "resnet-20-w2"]
    assert rows_of.pairs_of(names) == [
        ("resnet-14-w2", "resnet-8-w2"),
        ("resnet-20-w2", "resnet-8-w2"),
        ("resnet-20-w2", "resnet-14-w2"),
        ("resnet-14-w2", "resnet-20-w2"),
    ]
    assert rows_of.pairs_of(["vgg-11-w2", "vgg-11-fc2-w2"]) == []
    assert rows_of.nearest_source("resnet-20-w2", names) == "resnet-14-w2"
    assert rows_of.nearest_source("resnet-8-w2", names) == "resnet-14-w2"
    assert rows_of.depth_gap("resnet-8-w2", "resnet-14-w2") == pytest.approx(np.log(2))
    with pytest.raises(InputError, match="can be carried to 'resnet-14-w2'"):
        rows_of.nearest_source("resnet-14-w2", names[:2])


def test_differences_are_to_the_direct_ticket_at_equal_density():
    direct = pd.DataFrame({"model": "m", "seed": 0, "density": [1.0, 0.1, 0.01], "accuracy": [90.0, 80.0, 40.0]})
    rows = pd.DataFrame({"model": "m", "seed": 0, "density": [0.1, 10**-1.5, 0.005], "accuracy": [81.0, 61.0, 41.0]})
    assert rows_of.against_direct(rows, direct)["delta"].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_costs_of_routes(setting, chains):
    carried = [elastic_arm(chains, MLPS[0], name, 2, setting) for name in MLPS[1:]]
    rigl = [control_arms(["rigl"], chains, MLPS[0], name, 2, setting)[0] for name in MLPS[1:]]
    rows = elastic_measures.cost_rows(chains, carried, rigl, setting)
    assert rows.groupby("route").size().eq(2 * 3).all() and rows["route"].nunique() == 3
    final = rows[(rows["targets"] == 2) & (rows["seed"] == 0)].set_index("route")["sparse"]
    assert final["one IMP, then elastic"] < final["IMP on each target"]
    trained, _ = train_arms(carried, setting)
    priced = elastic_measures.with_cost(trained, chains, 2, setting)
    assert (priced["flops"] > 0).all() and len(priced) == len(trained)


def test_dead_units_are_counted(setting, chains):
    ticket = dense("lenet-8-8")
    state = {**ticket.rest, "1.bias": torch.full((8,), -1e6), "3.bias": torch.ones(8)}
    assert rows_of.dead_units(replace(ticket, rest=state), images()) == 8
    carried = [elastic_arm(chains, MLPS[0], MLPS[2], 2, setting)]
    _, runs = train_arms(carried, setting)
    rows = rows_of.dead_unit_rows(chains, carried, runs, 2, images())
    assert len(rows) == 3 * 2 + 2 and len(rows_of.extra_dead_units(rows)) == 2


def test_drift_rows_and_another_data_set(setting, chains):
    arms = [elastic_arm(chains, MLPS[0], MLPS[2], level, setting) for level in (1, 2)]
    rows = rows_of.drift_rows(arms, chains, setting)
    assert rows["drift"].to_numpy() == pytest.approx(rows["predicted"].to_numpy(), abs=1e-12)
    turned = flipped(images())
    assert turned.name == "toy flipped" and torch.equal(turned.train.images.flip(-2), images().train.images)
