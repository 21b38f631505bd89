"""Rows of notebook 06: equal counts, what a draw and a moved mask keep, costs, and the frontier."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lthlib import data
from lthlib.elastic import carry, copies, depth_map
from lthlib.errors import InputError
from lthlib.evidence.costs import imp_cost, training_cost
from lthlib.finders.imp import Level, Pruning
from lthlib.masks.counts import counts_of
from lthlib.studies import beyond as tables
from lthlib.studies import beyond_figures as beyond_plots
from lthlib.studies import frontier as frontier_tables
from lthlib.studies.setting import Setting, train_arms
from lthlib.theory.strong.search import SubsetSearch
from lthlib.ticket import bases_for
from lthlib.training.recipe import Recipe

DIGITS = data.load("digits", train_size=80, validation_size=20, device="cpu")
RECIPE = Recipe(learning_rate=0.05, batch_size=40, epochs=1, output_layer="pruned", evaluations=1)
NET = "lenet-12-8"
MLPS = ("lenet-8-8-8", "lenet-8-8-8-8")


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(RECIPE, DIGITS, [0, 1], Pruning(levels=2, keep=0.4))


@pytest.fixture(scope="module")
def levels(setting: Setting) -> list[Level]:
    return tables.pruned_levels(NET, "canonical", setting)


@pytest.mark.parametrize("basis", ["canonical", "dct"])
def test_stretched_and_drawn_arms_have_one_count_and_the_source_s_bases(basis: str, setting: Setting) -> None:
    found = tables.stretchable(*MLPS, basis, setting)
    assert [len(chain) for chain in found[MLPS[0]]] == [3, 3]
    assert [len(chain) for chain in found[MLPS[1]]] == [2, 2]
    elastic, direct, *random = tables.stretched_arms(found, *MLPS, basis, setting)
    assert len(random) == (basis == "canonical")
    drawn, shared = tables.drawn_arms(found, *MLPS, setting, basis)
    for place in range(2):
        own = elastic.tickets[place]
        assert {arm.tickets[place].kept for arm in (direct, *random, drawn, shared)} == {own.kept}
        assert counts_of(own.masks) == counts_of(drawn.tickets[place].masks) == counts_of(shared.tickets[place].masks)
        assert all(one.name in (basis, "canonical") for one in direct.tickets[place].bases.values())
        for name, c in own.coefficients.items():
            assert torch.equal(drawn.tickets[place].coefficients[name], c)
    rows, _ = train_arms([elastic, direct], setting)
    assert list(rows["basis"].unique()) == [basis]
    assert (rows.groupby("seed")["density"].nunique() == 1).all()


def test_a_draw_stays_among_survivors_and_copies_share_it_only_where_asked(setting: Setting) -> None:
    found = tables.stretchable(*MLPS, "canonical", setting)
    drawn, shared = tables.drawn_arms(found, *MLPS, setting, "canonical")
    source, target = (setting.architecture(name) for name in MLPS)
    depths = depth_map(source, target)
    twin = copies(source, target, depths)
    for place, chain in enumerate(found[MLPS[0]]):
        before = carry(chain[1].tickets[0], target, depths).masks
        elastic = carry(chain[2].tickets[0], target, depths).masks
        for arm in (drawn, shared):
            masks = arm.tickets[place].masks
            assert all(not (mask & ~before[name]).any() for name, mask in masks.items())
            assert any((mask != elastic[name]).any() for name, mask in masks.items())
        first = "3.weight"
        assert all(torch.equal(shared.tickets[place].masks[name], shared.tickets[place].masks[first]) for name in twin)
        assert any((drawn.tickets[place].masks[name] != drawn.tickets[place].masks[first]).any() for name in twin)
    again = tables.drawn_arms(found, *MLPS, setting, "canonical")[0]
    assert [one.digest() for one in again.tickets] == [one.digest() for one in drawn.tickets]
    sharp = tables.drawn_arms(found, *MLPS, setting, "canonical", temperature=torch.inf)[0]
    for place, chain in enumerate(found[MLPS[0]]):
        top = carry(chain[2].tickets[0], target, depths).masks
        counts = counts_of(top)
        assert counts == counts_of(sharp.tickets[place].masks)
        assert all(torch.equal(mask, top[name]) for name, mask in sharp.tickets[place].masks.items())


def test_other_optimizers_train_the_dense_network_in_the_basis(setting: Setting, levels: list[Level]) -> None:
    dct = tables.pruned_levels(NET, "dct", setting)
    for one, two in zip(levels[0].trained, dct[0].trained, strict=True):
        for name, weight in one.ticket.weights().items():
            assert torch.allclose(weight, two.ticket.weights()[name], atol=1e-5)
    adam = replace(setting, recipe=replace(RECIPE, optimizer="adam", learning_rate=0.005))
    plain, turned = (tables.pruned_levels(NET, basis, adam)[0].trained[0].ticket for basis in ("canonical", "dct"))
    assert turned.bases["1.weight"].name == bases_for(turned, "dct")["1.weight"].name
    assert not torch.allclose(plain.weights()["1.weight"], turned.weights()["1.weight"], atol=1e-2)
    rows = tables.level_rows(levels, setting, basis="canonical")
    assert list(rows["arm"]) == ["dense"] * 2 + ["ticket"] * 4


def test_values_lose_parts_at_one_count(setting: Setting, levels: list[Level]) -> None:
    rows = tables.value_rows(levels, setting, basis="canonical")
    assert rows["arm"].nunique() == 5
    assert set(rows["n_free"]) == {levels[-1].tickets[0].kept}
    gap = tables.minus(rows, {"arm": "reinit"}, {"arm": "random mask"})
    assert list(gap.index) == [0, 1]


def test_gains_are_differences_of_differences() -> None:
    rows = pd.DataFrame(
        [
            {"seed": seed, "optimizer": optimizer, "basis": basis, "accuracy": 90 + seed + extra}
            for seed in (0, 1)
            for optimizer, basis, extra in [
                ("sgd", "canonical", 0), ("sgd", "dct", 2), ("adam", "canonical", 1), ("adam", "dct", -1),
            ]
        ]
    )  # fmt: skip
    found = tables.gains(rows, "optimizer", "sgd")
    assert list(found) == ["adam, dct"]
    assert found["adam, dct"].tolist() == [-4, -4]


def test_other_data_have_the_shape_and_the_labels() -> None:
    turned = {name: tables.other_data(DIGITS, name) for name in ("rotated", "flipped", "permuted")}
    for name, other in turned.items():
        assert other.label == f"digits {name}"
        assert other.input_shape == DIGITS.input_shape
        assert torch.equal(other.train.labels, DIGITS.train.labels)
        assert torch.equal(other.test.images.flatten(1).sort().values, DIGITS.test.images.flatten(1).sort().values)
        assert not torch.equal(other.train.images, DIGITS.train.images)
    assert torch.equal(turned["rotated"].train.images.rot90(-1, (-2, -1)), DIGITS.train.images)
    larger = tables.resized(DIGITS, (3, 12, 12))
    assert larger.input_shape == (3, 12, 12)
    assert larger.normalised("train").mean().abs() < 1e-3
    assert abs(float(larger.normalised("train").std()) - 1) < 1e-2
    assert len(tables.other_data(DIGITS, "digits", train_size=50).train.labels) == 50
    with pytest.raises(InputError, match="unknown other data set 'turned'"):
        tables.other_data(DIGITS, "turned")


def test_moved_masks_are_the_others_over_one_s_own_values(setting: Setting) -> None:
    worlds = {"digits": DIGITS, "rotated": tables.other_data(DIGITS, "rotated")}
    found = tables.levels_on(worlds, NET, "canonical", setting)
    rows = tables.moved_rows(found, setting, worlds)
    pairs = {(row["arm"], row["source"], row["target"]) for row in rows.to_dict("records")}
    assert pairs == {
        ("own", "digits", "digits"), ("random mask", "digits", "digits"), ("moved", "rotated", "digits"),
        ("own", "rotated", "rotated"), ("random mask", "rotated", "rotated"), ("moved", "digits", "rotated"),
    }  # fmt: skip
    assert rows["n_free"].nunique() == 1
    own = tables.minus(rows, {"arm": "own", "target": "digits"}, {"arm": "own", "target": "digits"})
    assert (own == 0).all()


def test_the_frontier_knows_costs_and_who_is_beaten(setting: Setting, levels: list[Level]) -> None:
    trained = frontier_tables.weights_trained(levels, setting)
    popup = frontier_tables.scores_trained(levels, 1.0, setting)
    strong = frontier_tables.constructed(levels, SubsetSearch(candidates=16, eps=0.01, method="sparsest"), setting)
    shape, count = levels[0].tickets[0].architecture, len(DIGITS.train.labels)
    whole = training_cost(shape, RECIPE, count).sparse
    spent = trained.set_index(["finder", "asked", "seed"])["flops"]
    assert spent["dense", 1.0, 0] == whole
    for number, level in enumerate(levels[1:], 1):
        masks = [one.tickets[0].layer_densities() for one in levels[1 : number + 1]]
        assert spent["IMP", level.density, 0] == imp_cost(shape, RECIPE, count, masks).sparse
        assert (("one-shot", level.density, 0) in spent) == (number > 1)
        assert spent["rigl", level.density, 0] < whole
        assert spent["snip", level.density, 0] - 100 * whole / count < whole
    assert set(trained["finder"]) == {"dense", "IMP", "one-shot", "snip", "synflow", "rigl", "small dense"}
    exact = trained[trained["finder"].isin(["IMP", "one-shot", "snip", "synflow", "rigl"])]
    assert (exact.groupby("asked")["kept"].nunique() == 1).all()
    # Scores of all weights train, pruned or not: more than a third of dense training, less than all.
    assert popup["flops"].between(whole / 3, whole).all()
    assert (strong["ratio"] > 1).all()
    assert strong["delta"].abs().max() <= 5
    everyone = pd.concat([trained, popup, strong], ignore_index=True)
    best = frontier_tables.frontier(everyone)
    assert len(best) == everyone.groupby(["finder", "asked"]).ngroups
    assert 0 < best["on_frontier"].sum() < len(best)
    late = levels[-1].density
    assert whole < spent["one-shot", late, 0] < spent["IMP", late, 0]
    ahead = frontier_tables.imp_minus_others(everyone, ["snip", "edge-popup", "one-shot"])
    assert len(ahead) == 5
    assert len(beyond_plots.frontier_panels(everyone, best, title="all").axes) == 2


def test_a_point_is_on_the_frontier_unless_another_beats_it() -> None:
    points = [
        ("a", 10, 5.0, 90.0),
        ("b", 10, 4.0, 90.0),
        ("c", 20, 9.0, 95.0),
        ("d", 5, 9.0, 80.0),
        ("e", 21, 9.0, 95.0),
    ]
    rows = pd.DataFrame(
        [
            {
                "finder": name,
                "asked": 0.1,
                "seed": 0,
                "kept": kept,
                "share": kept / 100,
                "flops": flops,
                "accuracy": accuracy,
            }
            for name, kept, flops, accuracy in points
        ]
    )
    best = frontier_tables.frontier(rows).set_index("finder")["on_frontier"]
    assert best.to_dict() == {"a": False, "b": True, "c": True, "d": True, "e": False}
    with pytest.raises(InputError, match="unknown column 'flops'"):
        beyond_plots.frontier_panels(rows.drop(columns="flops"), frontier_tables.frontier(rows))
