"""Tables of finders: one row for each finder, density and seed, and the baselines that they are read against."""

from dataclasses import replace

import pytest
from replicates import of_seeds

from lthlib.data import load
from lthlib.errors import InputError
from lthlib.finders.supermask import METHODS, find_supermasks, finder_arms
from lthlib.models.architecture import architecture
from lthlib.studies.supermask import DENSE, ONE_SHOT, RANDOM, curve_rows, finder_table
from lthlib.training.recipe import Recipe

DATA = load("digits", train_size=300, validation_size=100, device="cpu")
MODEL = architecture("lenet-60", DATA.input_shape, 10)


def test_a_table_has_every_finder_and_its_baselines_at_every_density():
    finders = finder_arms(3, 50, 2)
    assert {arm.settings.method for arm in finders.values()} == set(METHODS)
    dense = Recipe(learning_rate=0.1, batch_size=50, epochs=3, evaluations=1)
    table = finder_table(MODEL, DATA, finders, [0.2, 0.6], [0, 1], dense)
    assert not table.duplicated(["finder", "density", "seed"]).any() and not table.isna().any(axis=None)
    counts = table.groupby("finder").size().to_dict()
    assert counts == {label: 4 for label in finders} | {RANDOM: 6, DENSE: 2, ONE_SHOT: 4}
    assert sorted(table["density"].round(3).unique()) == [0.2, 0.6, 1.0]
    assert table.loc[table["trained"], "finder"].unique().tolist() == [DENSE]
    mean = table.groupby("finder")["accuracy"].mean()
    assert mean[RANDOM] < mean["edge-popup"] < mean[DENSE]
    again = finder_table(MODEL, DATA, finders, [0.2, 0.6], [0, 1], dense)
    assert again.equals(table)


def test_sources_are_scaled_for_the_density_where_asked():
    arm = finder_arms(1)["edge-popup, signed constant"]
    full, half = (arm.source(MODEL, 0, density).coefficients["1.weight"] for density in (1.0, 0.25))
    assert half[0, 0] == pytest.approx(2 * full[0, 0])
    plain = replace(arm, scale_fan=False)
    assert (plain.source(MODEL, 0, 0.25).coefficients["1.weight"] == full).all()


def test_histories_become_rows():
    arm = finder_arms(2, 50, 2)["edge-popup"]
    found = find_supermasks(of_seeds([arm.source(MODEL, 4, 0.5)], [4]), arm.settings, arm.recipe, DATA)
    rows = curve_rows(found, finder="edge-popup")
    assert rows["step"].tolist() == [6, 12] and rows["seed"].tolist() == [4, 4]
    assert set(rows.columns) >= {"train_loss", "validation_accuracy", "density", "changed", "finder"}


def test_a_table_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one density and one seed"):
        finder_table(MODEL, DATA, finder_arms(1), [], [0], Recipe())
