"""Arms of pruning at initialization as tables."""

import pytest
from replicates import of_seeds

from lthlib import data
from lthlib.errors import InputError
from lthlib.evidence.measure import difference_to
from lthlib.finders import pruning_data as sanity
from lthlib.finders.find import tickets_of
from lthlib.finders.imp import after_training, train_dense
from lthlib.masks.counts import counts_of
from lthlib.models import architecture as models
from lthlib.studies import saliency as tables
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe

DIGITS = data.load("digits", device="cpu")
SEEDS = [0, 1]
RECIPE = Recipe(epochs=1, evaluations=1, learning_rate=0.05, output_layer="pruned")
INITIAL = initial_tickets(models.architecture("lenet-20-12", DIGITS.input_shape, 10), SEEDS)


def test_arms_train_together_as_they_train_alone() -> None:
    arms = {name: tickets_of(name, INITIAL, 0.3, DIGITS) for name in ("magnitude", "snip")}
    both = tables.connected_rows(arms, RECIPE, DIGITS, column="method")
    alone = tables.connected_rows({"snip": arms["snip"]}, RECIPE, DIGITS, column="method")
    part = both[both["method"] == "snip"].reset_index(drop=True)
    assert part.equals(alone)
    assert (both["effective_density"] <= both["density"]).all()
    assert list(both["seed"]) == [0, 1, 0, 1]


def test_arms_may_have_other_replicates() -> None:
    rows = tables.connected_rows({"both": INITIAL, "short": INITIAL[1:]}, RECIPE, DIGITS)
    assert rows[["arm", "seed"]].values.tolist() == [["both", 0], ["both", 1], ["short", 1]]


def test_noise_needs_no_data_and_finds_another_mask() -> None:
    noise = tickets_of("snip, noise", INITIAL, 0.2, DIGITS)
    data_driven = tickets_of("snip", INITIAL, 0.2, DIGITS)
    assert [one.kept for one in noise] == [one.kept for one in data_driven]
    assert any((noise[0].masks[name] != mask).any() for name, mask in data_driven[0].masks.items())


def test_method_rows_have_every_method_arm_density_and_seed() -> None:
    rows = tables.method_rows({"magnitude": tables.SAMPLED}, [0.5, 0.2], INITIAL, RECIPE, DIGITS)
    assert len(rows) == 3 * 2 * 2
    assert (rows.groupby("target")["density"].nunique() == 1).all()
    gain = difference_to(rows, "arm", "top-k", ("method", "target", "seed"))
    assert (gain[rows["arm"] == "top-k"] == 0).all()
    with pytest.raises(InputError, match="several rows"):
        difference_to(rows, "arm", "top-k", ("method", "seed"))


def test_sanity_arms_keep_the_count_and_corruptions_belong_to_methods_with_data() -> None:
    snip = tables.sanity_arms("snip", INITIAL, 0.2, DIGITS)
    magnitude = tables.sanity_arms("magnitude", INITIAL, 0.2, DIGITS)
    assert set(tables.SANITY_CHECKS) | {"original", "inverted"} == set(magnitude)
    assert set(snip) - set(magnitude) == set(sanity.CORRUPTIONS[1:])
    assert {ticket.kept for arms in (snip, magnitude) for tickets in arms.values() for ticket in tickets} == {
        INITIAL[0].prunable // 5 + (INITIAL[0].prunable % 5 > 2)
    }
    original, shuffled = snip["original"][0], snip["layerwise shuffle"][0]
    assert counts_of(original.masks) == counts_of(shuffled.masks)


def test_after_training_keeps_initial_values_where_training_grew_them() -> None:
    dense = train_dense(of_seeds(INITIAL, SEEDS), RECIPE, DIGITS)
    for ticket, run, start in zip(after_training(dense, 0.1), dense, INITIAL, strict=True):
        assert ticket.kept == round(0.1 * ticket.prunable)
        smallest = min(float(run.ticket.coefficients[n].abs()[m].min()) for n, m in ticket.masks.items() if m.any())
        largest = max(float(run.ticket.coefficients[n].abs()[~m].max()) for n, m in ticket.masks.items())
        assert smallest >= largest
        assert all((ticket.coefficients[n] == c).all() for n, c in start.coefficients.items())


def test_scores_agree_with_themselves_and_their_table_is_symmetric() -> None:
    rows = tables.score_rows(INITIAL, DIGITS, 0.2).set_index(["seed", "score", "other"])
    for seed, first, other in rows.index:
        here, there = rows.loc[(seed, first, other)], rows.loc[(seed, other, first)]
        assert here["spearman"] == pytest.approx(there["spearman"])
        if first == other:
            assert here["spearman"] == pytest.approx(1) and here["overlap"] == 1


def test_magnitude_collapses_where_synflow_does_not() -> None:
    rows = tables.collapse_rows("conv-2-w8", DIGITS, SEEDS, ["magnitude", "synflow"], [0.2, 0.002])
    critical = tables.critical_density(rows).set_index(["method", "seed"])["density"]
    assert (critical["magnitude"] > critical["synflow"]).all()


def test_small_dense_has_as_many_weights() -> None:
    rows = tables.small_dense_rows(INITIAL[0], RECIPE, DIGITS, SEEDS)
    assert rows["n_free"].nunique() == 1
