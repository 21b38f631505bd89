"""Iterative magnitude pruning is the textbook's where the basis is the identity, and as exact in every other."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicates import of_seed, of_seeds
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from lthlib.data import Dataset, load
from lthlib.errors import InputError
from lthlib.finders.controls import CONTROLS, inverted, layerwise_shuffled, random_mask, reinitialised
from lthlib.finders.imp import Level, Pruning, in_basis, iterative_magnitude_pruning, magnitudes, prune, train_dense
from lthlib.masks.counts import counts_of
from lthlib.models.architecture import Architecture, architecture, build, output_layer
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.store import Store
from lthlib.ticket import Ticket, bases_for, initial_tickets, shapes_of
from lthlib.training.loop import Trained, _Job
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

DIGITS = (1, 8, 8)
LENET, CONV = architecture("lenet-24-16", DIGITS, 10), architecture("conv-2-w4", DIGITS, 10)
RESNET, WIDE = architecture("resnet-8-w2", DIGITS, 10), architecture("conv-2-w10", DIGITS, 10)
RECIPE = Recipe(learning_rate=0.05, weight_decay=1e-3, batch_size=32, epochs=1, evaluations=1)
STEPS = 5  # an epoch of 150 images


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train_size=150, validation_size=40, device="cpu")


def dense(
    digits: Dataset, of: Architecture = LENET, seeds: tuple[int, ...] = (0, 1), recipe: Recipe = RECIPE, rewind: int = 0
) -> list[Trained]:
    return train_dense(of_seeds(initial_tickets(of, seeds), seeds), recipe, digits, rewind_step=rewind)


def levels(
    digits: Dataset, runs: list[Trained], pruning: Pruning, recipe: Recipe = RECIPE, **more: object
) -> list[Level]:
    return list(iterative_magnitude_pruning(runs, recipe, digits, pruning, **more))  # type: ignore[arg-type]


def same(first: list[Level], second: list[Level]) -> None:
    assert [level.number for level in first] == [level.number for level in second]
    for a, b in zip(first, second, strict=True):
        assert [ticket.digest() for ticket in a.tickets] == [ticket.digest() for ticket in b.tickets]
        assert [(run.ticket.digest(), run.history) for run in a.trained] == [
            (run.ticket.digest(), run.history) for run in b.trained
        ]


# ---------------------------------------------------------------------------------------- the ordinary lottery ticket


def textbook(
    of: Architecture, seed: int, recipe: Recipe, data: Dataset, pruning: Pruning
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Frankle & Carbin by hand: train, drop the smallest survivors, reset to the values of step k, repeat.

    A plain module, a plain optimizer and boolean masks: (masks, final state) of each level.
    """
    module = build(of).to(memory_format=torch.channels_last)
    parameters = dict(module.named_parameters())
    state = initial_state(of, seed)
    weights = [key for key, value in state.items() if value.dim() > 1]
    masks = {key: torch.ones_like(state[key], dtype=torch.bool) for key in weights}
    images, labels = data.normalised("train"), data.train.labels
    per_epoch = math.ceil(len(images) / recipe.batch_size)
    total, start, results = round(recipe.epochs * per_epoch), 0, []
    rewound = state
    for level in range(pruning.levels + 1):
        module.load_state_dict(state)
        with torch.no_grad():
            for key, mask in masks.items():
                parameters[key].mul_(mask)
        optimizer = torch.optim.SGD(
            module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        for step in range(start, total):
            if level == 0 and step == pruning.rewind_step:
                rewound = {key: value.clone() for key, value in module.state_dict().items()}
            epoch, place = divmod(step, per_epoch)
            order = torch.randperm(len(images), generator=generator(seed, "order", epoch))
            batch = order[place * recipe.batch_size :][: recipe.batch_size]
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (0.5 * (1 + math.cos(math.pi * step / total)))
            module.train()
            loss = F.cross_entropy(
                module(images[batch].contiguous(memory_format=torch.channels_last)), labels[batch], reduction="none"
            )
            optimizer.zero_grad()
            loss.double().mean().to(loss.dtype).backward()
            for key, mask in masks.items():
                parameters[key].grad *= mask
            optimizer.step()
        results.append((dict(masks), {key: value.clone() for key, value in module.state_dict().items()}))
        values = torch.cat([parameters[key].detach().abs().flatten() for key in masks])
        alive = torch.cat([mask.flatten() for mask in masks.values()])
        order = torch.argsort(values.where(alive, -1.0), descending=True, stable=True)
        kept = torch.zeros_like(alive)
        kept[order[: round(pruning.keep ** (level + 1) * len(values))]] = True
        pieces = kept.split([mask.numel() for mask in masks.values()])
        masks = {key: piece.view(masks[key].shape) for key, piece in zip(masks, pieces, strict=True)}
        state, start = rewound, pruning.rewind_step
    return results


@pytest.mark.parametrize("rewind", [0, 3])
@pytest.mark.parametrize("of", [WIDE, RESNET], ids=lambda of: of.name)
def test_in_the_canonical_basis_it_is_the_textbooks_bit_for_bit(of: Architecture, rewind: int, digits: Dataset) -> None:
    recipe = replace(RECIPE, output_layer="pruned")
    pruning = Pruning(levels=3, keep=0.7, rewind_step=rewind)
    found = levels(digits, dense(digits, of, (0, 1), recipe, rewind), pruning, recipe)
    for index, seed in enumerate((0, 1)):
        for level, (masks, state) in zip(found, textbook(of, seed, recipe, digits, pruning), strict=True):
            assert all(torch.equal(level.tickets[index].masks[key], mask) for key, mask in masks.items())
            assert all(torch.equal(value, state[key]) for key, value in level.trained[index].ticket.state().items())


@pytest.mark.parametrize("rewind", [0, 3])
@pytest.mark.parametrize("of", [LENET, CONV], ids=lambda of: of.name)
def test_a_stack_finds_the_textbooks_masks(of: Architecture, rewind: int, digits: Dataset) -> None:
    # Batched products and grouped convolutions round otherwise: masks are the same, weights to single precision.
    recipe = replace(RECIPE, output_layer="pruned")
    pruning = Pruning(levels=3, keep=0.7, rewind_step=rewind)
    found = levels(digits, dense(digits, of, (0, 1, 2), recipe, rewind), pruning, recipe)
    for index, seed in enumerate((0, 1, 2)):
        for level, (masks, state) in zip(found, textbook(of, seed, recipe, digits, pruning), strict=True):
            assert all(torch.equal(level.tickets[index].masks[key], mask) for key, mask in masks.items())
            for key, value in level.trained[index].ticket.state().items():
                torch.testing.assert_close(value, state[key], rtol=0, atol=1e-5)


def test_one_global_level_is_that_of_torch(digits: Dataset) -> None:
    [run] = dense(digits, CONV, (0,))
    [pruned] = prune([run.snapshots[0]], magnitudes([run]), Pruning(keep=0.37), 1, "pruned")
    module = build(CONV)
    module.load_state_dict(run.ticket.state())
    layers = [(module.get_submodule(key.removesuffix(".weight")), "weight") for key in pruned.masks]
    total = pruned.prunable
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=total - round(0.37 * total))
    for (layer, _), mask in zip(layers, pruned.masks.values(), strict=True):
        assert torch.equal(layer.weight_mask.bool(), mask)


# ------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("rule", ["canonical", "dct", "haar", "random", "svd", "units", "dct@input"])
@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_masks_are_nested_and_keep_exactly_what_the_rule_says(rule: str, scope: str, digits: Dataset) -> None:
    pruning = Pruning(levels=4, keep=0.6, scope=scope)  # type: ignore[arg-type]
    recipe = replace(RECIPE, output_layer="half")
    found = levels(digits, in_basis(dense(digits), rule), pruning, recipe)
    sizes = {name: mask.numel() for name, mask in found[0].tickets[0].masks.items()}
    hidden = [name for name in sizes if name != "5.weight"]
    for before, after in pairwise(found):
        for old, new in zip(before.tickets, after.tickets, strict=True):
            assert not any((new.masks[name] & ~old.masks[name]).any() for name in sizes)
            kept = counts_of(new.masks)
            assert kept["5.weight"] == round(0.8**after.number * sizes["5.weight"])
            if scope == "global":
                assert kept[hidden[0]] + kept[hidden[1]] == round(0.6**after.number * sum(sizes[n] for n in hidden))
            else:
                assert all(kept[name] == round(0.6**after.number * sizes[name]) for name in hidden)
    for level in found[1:]:
        for ticket, run in zip(level.tickets, level.trained, strict=True):
            assert all(torch.equal(run.ticket.masks[name], mask) for name, mask in ticket.masks.items())
            assert not any(run.ticket.coefficients[name][~mask].any() for name, mask in ticket.masks.items())
            assert level.density == pytest.approx(ticket.density)


@settings(max_examples=80, deadline=None)
@given(
    keep=st.floats(0.05, 1),
    level=st.integers(0, 30),
    scope=st.sampled_from(["global", "layerwise"]),
    rule=st.sampled_from(["pruned", "half", "kept"]),
    convolution=st.none() | st.floats(0.05, 1),
)
def test_counts_cover_every_tensor_once(
    keep: float, level: int, scope: str, rule: str, convolution: float | None
) -> None:
    pruning = Pruning(keep=keep, keep_convolution=convolution, scope=scope)  # type: ignore[arg-type]
    [ticket] = initial_tickets(CONV, [0])
    output = output_layer(CONV)
    groups = pruning.counts(level, ticket.masks, output, rule)
    assert sorted(name for names, _ in groups for name in names) == sorted(ticket.masks)
    for names, count in groups:
        total = sum(ticket.masks[name].numel() for name in names)
        [rate] = {convolution if convolution is not None and ticket.masks[name].dim() == 4 else keep for name in names}
        if output in names and rule != "pruned":
            assert names == [output]
            rate = 1.0 if rule == "kept" else 1 - (1 - rate) / 2
        assert count == max(1, round(rate**level * total))
        assert scope == "global" or len(names) == 1


def test_ties_go_by_layer_and_index(digits: Dataset) -> None:
    [run] = dense(digits, LENET, (0,))
    flat = [{name: torch.ones_like(c) for name, c in run.ticket.coefficients.items()}]
    [pruned] = prune([run.snapshots[0]], flat, Pruning(keep=0.5), 1, "pruned")
    kept = torch.cat([mask.flatten() for mask in pruned.masks.values()])
    assert kept[: pruned.kept].all()
    assert pruned.kept == round(0.5 * pruned.prunable)


def test_the_largest_trained_coefficients_stay_with_the_rewound_values(digits: Dataset) -> None:
    runs = in_basis(dense(digits, rewind=2), "dct")
    [_, level] = levels(
        digits, runs, Pruning(levels=1, keep=0.3, rewind_step=2), replace(RECIPE, output_layer="pruned")
    )
    for run, ticket in zip(runs, level.tickets, strict=True):
        scores = {name: c.abs() for name, c in run.ticket.coefficients.items()}
        smallest = min(float(scores[name][mask].min()) for name, mask in ticket.masks.items() if mask.any())
        assert all(scores[name][~mask].max() <= smallest for name, mask in ticket.masks.items())
        assert all(torch.equal(ticket.coefficients[name], c) for name, c in run.snapshots[2].coefficients.items())
        assert all(torch.equal(ticket.rest[name], value) for name, value in run.snapshots[2].rest.items())


# -------------------------------------------------------------------------------------------- where a level starts from


def test_retraining_modes_start_where_they_say(digits: Dataset) -> None:
    recipe = replace(RECIPE, epochs=2, warmup_epochs=0.6)
    runs = dense(digits, recipe=recipe, rewind=3)
    found = {
        mode: levels(digits, runs, Pruning(levels=2, keep=0.5, rewind_step=3, retrain=mode), recipe)
        for mode in ("weight_rewind", "lr_rewind", "finetune", "one_shot")
    }
    for index, run in enumerate(runs):
        rewound = run.snapshots[3]
        for mode, chain in found.items():
            before, last = chain[1].trained[index], chain[2].tickets[index]
            source = rewound if mode in ("weight_rewind", "one_shot") else before.ticket
            for name, c in last.effective_coefficients().items():
                assert torch.equal(c, source.coefficients[name] * last.masks[name]), mode
            assert all(torch.equal(value, source.rest[name]) for name, value in last.rest.items())
        # One shot looks at the dense training at every level, the others at the one before.
        shots = prune([rewound], magnitudes([run]), Pruning(keep=0.5), 2, recipe.output_layer)
        assert all(torch.equal(found["one_shot"][2].tickets[index].masks[n], m) for n, m in shots[0].masks.items())
        again = prune(
            [found["lr_rewind"][1].tickets[index]], magnitudes([found["lr_rewind"][1].trained[index]]),
            Pruning(keep=0.5), 2, recipe.output_layer,
        )  # fmt: skip
        assert all(torch.equal(found["lr_rewind"][2].tickets[index].masks[n], m) for n, m in again[0].masks.items())


@pytest.mark.parametrize("rewind", [0, 3])
def test_finetuning_goes_on_at_the_last_learning_rate(
    rewind: int, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, schedule="step", milestones=(0.5,), warmup_epochs=0.8)
    runs, seen = dense(digits, recipe=recipe, rewind=rewind), []
    original = Recipe.learning_rate_at

    def noted(self: Recipe, step: int, examples: int) -> float:
        rate = original(self, step, examples)
        seen.append((step, rate))
        return rate

    monkeypatch.setattr(Recipe, "learning_rate_at", noted)
    levels(digits, runs, Pruning(levels=1, rewind_step=rewind, retrain="finetune"), recipe)
    assert [rate for _, rate in seen] == pytest.approx([0.005] * (1 + STEPS - rewind))
    seen.clear()
    levels(digits, runs, Pruning(levels=1, rewind_step=rewind, retrain="lr_rewind"), recipe)
    assert [step for step, _ in seen[1:]] == list(range(rewind, STEPS))
    assert [rate for _, rate in seen[1:]] == [original(recipe, step, 150) for step in range(rewind, STEPS)]


@pytest.mark.parametrize("retrain", ["weight_rewind", "lr_rewind", "finetune", "one_shot"])
@pytest.mark.parametrize("rule", ["canonical", "random"])
def test_held_coefficients_stay_at_the_rewinding_point(rule: str, retrain: str, digits: Dataset) -> None:
    runs = in_basis(dense(digits, rewind=2), rule)
    found = levels(digits, runs, Pruning(levels=2, keep=0.5, rewind_step=2, retrain=retrain, off="init"))
    for level in found[1:]:
        for run, ticket, trained in zip(runs, level.tickets, level.trained, strict=True):
            for name, mask in ticket.masks.items():
                held = run.snapshots[2].coefficients[name][~mask]
                assert held.any()
                for state in (ticket, trained.ticket):
                    assert torch.equal(state.effective_coefficients()[name][~mask], held)
                assert not torch.equal(trained.ticket.coefficients[name][mask], ticket.coefficients[name][mask])


def test_a_missing_rewinding_point_is_named(digits: Dataset) -> None:
    with pytest.raises(InputError, match=r"no snapshot at rewind_step 4 \(the dense training kept \[2\]\)"):
        levels(digits, dense(digits, rewind=2), Pruning(rewind_step=4))


# ---------------------------------------------------------------------------------------------------- bases and sharing


@pytest.mark.parametrize("rule", ["dct", "random", "svd", "units"])
def test_a_dense_training_seen_in_a_basis_is_the_same_training(rule: str, digits: Dataset) -> None:
    runs = dense(digits)
    for run, seen in zip(runs, in_basis(runs, rule), strict=True):
        assert (seen.history, seen.seed) == (run.history, run.seed)
        for ticket, original in ((seen.ticket, run.ticket), (seen.snapshots[0], run.snapshots[0])):
            for name, weight in ticket.weights().items():
                torch.testing.assert_close(weight, original.weights()[name], rtol=0, atol=1e-5)
    assert in_basis(runs, "canonical") == runs


def off_diagonal(matrix: Tensor) -> float:
    return matrix.diagonal_scatter(torch.zeros(min(matrix.shape))).abs().max().item()


def test_adaptive_bases_are_fitted_to_the_weights_that_were_asked_for(digits: Dataset) -> None:
    runs = dense(digits)
    for fit_to in ("trained", "init"):
        for run in in_basis(runs, "svd", fit_to=fit_to):
            fitted, other = (run.ticket, run.snapshots[0]) if fit_to == "trained" else (run.snapshots[0], run.ticket)
            for name in ("1.weight", "3.weight"):
                assert off_diagonal(fitted.coefficients[name]) < 1e-5
                assert off_diagonal(other.coefficients[name]) > 1e-3
    with pytest.raises(InputError, match="unknown fit_to 'final'"):
        in_basis(runs, "svd", fit_to="final")


def test_replicates_share_a_fixed_basis_and_have_adaptive_ones_of_their_own(digits: Dataset) -> None:
    runs = dense(digits)
    fixed = in_basis(runs, "random", seed=3)
    assert fixed[0].ticket.bases["1.weight"].to_json() == fixed[1].ticket.bases["1.weight"].to_json()
    fitted = in_basis(runs, "svd")
    first, second = (run.ticket.bases["1.weight"].tensors()["axis0"] for run in fitted)
    assert not torch.allclose(first, second)


# ------------------------------------------------------------------------------------------------------------- resuming


class Count:
    """How many tickets were trained, and a training after which the run dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained, self.dies_after = 0, math.inf
        original = _Job.run

        def counted(job: object, tickets: list[Ticket], *others: object) -> list[Trained]:
            if self.trained >= self.dies_after:
                raise KeyboardInterrupt
            self.trained += len({ticket.seed for ticket in tickets})  # a twin is trained for its kernels alone
            return original(job, tickets, *others)  # type: ignore[arg-type]

        monkeypatch.setattr(_Job, "run", counted)


@pytest.mark.parametrize(("of", "rule"), [(LENET, "canonical"), (LENET, "dct"), (LENET, "svd"), (CONV, "random")])
def test_a_killed_run_goes_on_where_it_was(
    of: Architecture, rule: str, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruning, seeds = Pruning(levels=3, keep=0.5), (0, 1)

    def run(store: Store | None) -> list[Level]:
        tickets = initial_tickets(of, seeds)
        start = train_dense(of_seeds(tickets, seeds), RECIPE, digits, store=store)
        return levels(digits, in_basis(start, rule), pruning, store=store)

    whole, count = run(None), Count(monkeypatch)
    for killed in (1, 5):
        store = Store(tmp_path / str(killed))
        count.trained, count.dies_after = 0, killed
        with pytest.raises(KeyboardInterrupt):
            run(store)
        done = count.trained
        count.dies_after = math.inf
        same(run(store), whole)
        # 2 seeds at 4 levels, none of them twice.
        assert count.trained == 8
        assert done >= killed
        same(run(store), whole)
        assert count.trained == 8


def test_any_lost_seed_of_any_level_is_found_again(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, store = (0, 1, 2), Store(tmp_path)

    def run() -> list[Level]:
        start = train_dense(of_seeds(initial_tickets(LENET, seeds), seeds), RECIPE, digits, store=store)
        return levels(digits, in_basis(start, "dct"), Pruning(levels=2, keep=0.5), store=store)

    whole, count = run(), Count(monkeypatch)
    entries = sorted(path.parent for path in tmp_path.glob("*/checksums.json"))
    assert len(entries) == 9
    for entry in entries:
        shutil.rmtree(entry)
        count.trained = 0
        same(run(), whole)
        assert count.trained == 1


def test_what_others_run_beside_it_does_not_matter(digits: Dataset) -> None:
    pruning = Pruning(levels=2, keep=0.4)
    every = levels(digits, in_basis(dense(digits, seeds=(0, 1, 2)), "random"), pruning)
    for index in (0, 2):
        alone = levels(digits, in_basis(dense(digits, seeds=(index,)), "random"), pruning)
        for level, one in zip(every, alone, strict=True):
            assert level.tickets[index].digest() == one.tickets[0].digest()
            assert level.trained[index].ticket.digest() == one.trained[0].ticket.digest()
            assert level.trained[index].history == one.trained[0].history


# ------------------------------------------------------------------------------------------------------------- controls


@pytest.mark.parametrize("rule", ["canonical", "dct", "svd"])
def test_controls_change_one_thing_each(rule: str, digits: Dataset) -> None:
    runs = in_basis(dense(digits), rule)
    [_, level] = levels(digits, runs, Pruning(levels=1, keep=0.3))
    ticket = of_seed(level.tickets[1], 1)
    fresh, random, shuffled = (
        reinitialised(ticket),
        random_mask(ticket),
        layerwise_shuffled(ticket),
    )
    for control in (fresh, random, shuffled):
        assert control.bases is ticket.bases or all(control.bases[n] is b for n, b in ticket.bases.items())
        assert control.kept == ticket.kept
    assert all(torch.equal(fresh.masks[n], mask) for n, mask in ticket.masks.items())
    assert not any(torch.allclose(fresh.weights()[n], w) for n, w in ticket.weights().items())
    for control in (random, shuffled):
        assert control.coefficients is ticket.coefficients
        assert not any(torch.equal(control.masks[n], m) for n, m in ticket.masks.items())
    assert counts_of(shuffled.masks) == counts_of(ticket.masks)
    densities = random_mask(ticket).layer_densities()
    assert densities["1.weight"] == pytest.approx(ticket.density, abs=0.05)
    for name in ("reinit", "random mask", "layerwise shuffle"):
        first, again, other = (CONTROLS[name](of_seed(ticket, seed)) for seed in (1, 1, 2))
        assert first.digest() == again.digest() != other.digest()


def test_a_fresh_start_has_the_law_of_the_first_and_not_its_draw() -> None:
    wide = architecture("lenet-300", DIGITS, 10)
    [ticket] = initial_tickets(wide, [0])
    fresh = reinitialised(of_seed(ticket, 0))
    first, second = ticket.weights()["1.weight"], fresh.weights()["1.weight"]
    assert float(second.std()) == pytest.approx(float(first.std()), rel=0.03)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.03
    assert torch.equal(initial_tickets(wide, [0], stream="other")[0].weights()["1.weight"],
                       initial_tickets(wide, [0], stream="other")[0].weights()["1.weight"])  # fmt: skip
    assert not torch.equal(second, initial_tickets(wide, [0], stream="other")[0].weights()["1.weight"])


def test_the_inverted_ticket_keeps_what_the_other_drops(digits: Dataset) -> None:
    [run] = dense(digits, seeds=(0,))
    [_, level] = levels(
        digits, [run], Pruning(levels=1, keep=0.5, scope="layerwise"), replace(RECIPE, output_layer="pruned")
    )
    [ticket] = level.tickets
    opposite = inverted(ticket, run)
    assert counts_of(opposite.masks) == counts_of(ticket.masks)
    assert not any((opposite.masks[n] & mask).any() for n, mask in ticket.masks.items())


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scope": "globally"}, "unknown scope 'globally', did you mean 'global'"),
        ({"retrain": "rewind"}, r"unknown retrain 'rewind'"),
        ({"off": "one"}, "unknown off 'one'"),
        ({"keep": 0.0}, r"keep is a density a level and must be in \(0, 1\], found 0.0"),
        ({"keep": 1.2}, r"keep is a density a level and must be in \(0, 1\], found 1.2"),
        ({"keep": math.nan}, r"must be in \(0, 1\], found nan"),
        ({"keep_convolution": -1.0}, r"keep_convolution is a density a level"),
        ({"levels": -1}, "levels and rewind_step cannot be negative, found -1, 0"),
        ({"rewind_step": -3}, "cannot be negative, found 10, -3"),
    ],
)  # fmt: skip
def test_pruning_that_means_nothing_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pruning(**fields)


def test_a_collapsed_network_still_ends(digits: Dataset) -> None:
    # At the lowest densities a layer may have nothing left: at least one coefficient a group stays.
    found = levels(digits, dense(digits), Pruning(levels=3, keep=0.05))
    assert [level.tickets[0].kept for level in found] == sorted((t.tickets[0].kept for t in found), reverse=True)
    assert found[-1].tickets[0].kept >= 2
    assert all(math.isfinite(run.history[-1]["validation_loss"]) for run in found[-1].trained)


def test_shapes_and_bases_follow_the_network() -> None:
    [ticket] = initial_tickets(LENET, [0])
    assert shapes_of(ticket) == {"1.weight": (24, 64), "3.weight": (16, 24), "5.weight": (10, 16)}
    assert list(bases_for(ticket, "dct@input")) == list(ticket.masks)
    with pytest.raises(InputError, match="unknown basis rule 'dtc', did you mean 'dct'"):
        bases_for(ticket, "dtc")


def test_nothing_of_an_earlier_level_is_written_to(digits: Dataset) -> None:
    runs = dense(digits)
    names = [run.ticket.digest() for run in runs] + [run.snapshots[0].digest() for run in runs]
    levels(digits, runs, Pruning(levels=2))
    assert names == [run.ticket.digest() for run in runs] + [run.snapshots[0].digest() for run in runs]


def test_random_subspaces_are_trained_through_their_start(digits: Dataset) -> None:
    # Li et al. 2018: pruned coefficients of a random basis held at init, mask at random.
    [ticket] = initial_tickets(LENET, [0])
    ticket = ticket.in_bases(bases_for(ticket, "random"))
    subspace = replace(random_mask(of_seed(ticket.with_masks(prune_randomly(ticket, 200)), 0)), off="init")
    [run] = train(of_seeds([subspace], [0]), RECIPE, digits)
    moved = {n: run.ticket.coefficients[n] - ticket.coefficients[n] for n in ticket.coefficients}
    assert sum(int(delta.count_nonzero()) for delta in moved.values()) <= 200
    for name, weight in run.ticket.weights().items():
        expected = ticket.weights()[name] + ticket.bases[name].synthesise(moved[name])
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


def prune_randomly(ticket: Ticket, count: int) -> dict[str, Tensor]:
    masks = {name: torch.zeros_like(mask) for name, mask in ticket.masks.items()}
    masks["1.weight"].view(-1)[:count] = True
    return masks
