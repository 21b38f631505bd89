"""Masks that change while training: exact at every step, faithful to the papers' schedules, and no step is lost."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from replicates import of_seeds
from torch import Tensor
from torch.nn import functional as F

from lthlib.data import Dataset, load
from lthlib.errors import InputError
from lthlib.finders.dynamic import METHODS, DropAndGrow, GradualPruning, rule_for, starting_tickets, train_dynamic
from lthlib.masks.counts import counts_of, erdos_renyi_counts
from lthlib.models.architecture import architecture, build
from lthlib.randomness import generator
from lthlib.store import Store
from lthlib.ticket import State, Ticket, bases_for, initial_tickets, shapes_of
from lthlib.training import loop, mask_updates
from lthlib.training.loop import Trained, _Job
from lthlib.training.recipe import Recipe
from lthlib.training.stacks import network
from lthlib.training.train import train

LENET, CONV, RESNET, VGG = "lenet-24-16", "conv-2-w4", "resnet-8-w2", "vgg-11-w4"
# 5 batches an epoch: 20 steps, the last update of "end 0.75" after 14 of them.
RECIPE = Recipe(learning_rate=0.05, weight_decay=1e-2, batch_size=32, epochs=4, evaluations=2)
OFTEN = {"interval": 2}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train_size=150, validation_size=40, device="cpu")


def dense(name: str = LENET, seeds: tuple[int, ...] = (0,), rule: str = "canonical") -> list[Ticket]:
    tickets = initial_tickets(architecture(name, (1, 8, 8), 10), seeds)
    return [ticket.in_bases(bases_for(ticket, rule)) for ticket in tickets]


def identical(a: Trained, b: Trained) -> None:
    assert a.history == b.history
    assert a.ticket.digest() == b.ticket.digest()


# ------------------------------------------------------------------------------------------------ density at every step


@pytest.mark.parametrize("method", ["set", "rigl"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (LENET, {}), (LENET, {"optimizer": "adam", "learning_rate": 0.01}),
        (RESNET, {"optimizer": "adamw", "learning_rate": 0.01}), (RESNET, {}), (VGG, {"precision": "bf16"}),
    ],
)  # fmt: skip
def test_density_is_exact_in_every_layer_after_every_step(
    name: str, fields: dict, method: str, digits: Dataset
) -> None:
    tickets, recipe = dense(name), replace(RECIPE, **fields)
    steps = recipe.steps(len(digits.train.labels))
    [run] = train_dynamic(of_seeds(tickets, [0]), 0.2, method, recipe, digits, snapshots=range(steps + 1), **OFTEN)
    expected = erdos_renyi_counts(shapes_of(tickets[0]), round(0.2 * tickets[0].prunable))
    rule = rule_for(method, 0.2, **OFTEN)
    changed = 0
    for step in range(steps + 1):
        ticket = run.snapshots[step]
        assert counts_of(ticket.masks) == expected
        assert not any(c[~ticket.masks[key]].any() for key, c in ticket.coefficients.items())
        if step:
            moved = any(not torch.equal(ticket.masks[k], run.snapshots[step - 1].masks[k]) for k in ticket.masks)
            assert not moved or rule.due(step, steps)
            changed += moved
    assert changed >= 6, "updates change masks"
    assert run.ticket.digest() == run.snapshots[steps].digest()
    assert run.ticket.kept == round(0.2 * run.ticket.prunable)


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("name", [LENET, RESNET])
def test_gradual_pruning_follows_the_cubic_schedule_and_ends_exactly(name: str, scope: str, digits: Dataset) -> None:
    [ticket] = dense(name)
    [run] = train_dynamic(
        of_seeds([ticket], [0]), 0.1, "gmp", RECIPE, digits, snapshots=range(21), interval=4, begin=0.1, scope=scope
    )
    # t0 = 2, T = 15: updates after 6, 10, 14 and, at the end, 15.
    expected, kept = 1.0, []
    for step in range(21):
        if step in (6, 10, 14, 15):
            expected = 1 - 0.9 * (1 - (1 - (step - 2) / 13) ** 3)
        found = run.snapshots[step]
        kept.append(found.kept)
        if scope == "global":
            assert found.kept == round(expected * ticket.prunable)
        else:
            assert counts_of(found.masks) == {k: round(expected * m.numel()) for k, m in ticket.masks.items()}
        assert not any(c[~found.masks[key]].any() for key, c in found.coefficients.items())
    assert kept == sorted(kept, reverse=True)
    for before, after in zip(range(20), range(1, 21), strict=True):
        for key, mask in run.snapshots[after].masks.items():
            assert not (mask & ~run.snapshots[before].masks[key]).any(), "pruned weights never return"


def test_gradual_pruning_keeps_the_largest(digits: Dataset) -> None:
    # One update, at the end: one-shot magnitude pruning of the dense training at that step.
    [ticket] = dense()
    [run] = train_dynamic(of_seeds([ticket], [0]), 0.3, "gmp", RECIPE, digits, snapshots=(15,), interval=100, end=0.75)
    [plain] = train(of_seeds([ticket], [0]), RECIPE, digits, snapshots=(15,))
    found, full = run.snapshots[15], plain.snapshots[15]
    scores = torch.cat([c.abs().flatten() for c in full.coefficients.values()])
    threshold = scores.sort(descending=True).values[round(0.3 * ticket.prunable) - 1]
    for key, c in full.coefficients.items():
        assert torch.equal(found.masks[key], c.abs() >= threshold)
        assert torch.equal(found.coefficients[key], c * found.masks[key])


# ---------------------------------------------------------------------------------------------------- no step is lost


@pytest.mark.parametrize(("name", "optimizer"), [(LENET, "sgd"), (LENET, "adam"), (RESNET, "sgd")])
@pytest.mark.parametrize("method", ["set", "rigl", "gmp"])
def test_without_an_update_it_is_static_training_bit_for_bit(
    method: str, name: str, optimizer: str, digits: Dataset
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=0.01)
    # Gradual pruning always prunes at its end, here the last step; a density of 1 then keeps everything.
    density, options = (1.0, {"end": 1.0}) if method == "gmp" else (0.3, {})
    start = starting_tickets(of_seeds(dense(name), [0]), density, method)
    [updated] = train_dynamic(of_seeds(dense(name), [0]), density, method, recipe, digits, interval=1000, **options)
    [static] = train(of_seeds(start, [0]), recipe, digits)
    identical(updated, static)


@pytest.mark.parametrize("name", [LENET, RESNET])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_a_drop_fraction_of_zero_reads_gradients_and_changes_nothing(method: str, name: str, digits: Dataset) -> None:
    # The pass for the gradients must leave no trace, not even in the statistics of normalisation.
    [updated] = train_dynamic(of_seeds(dense(name), [0]), 0.3, method, RECIPE, digits, drop_fraction=0.0, interval=1)
    [static] = train(of_seeds(starting_tickets(of_seeds(dense(name), [0]), 0.3, method), [0]), RECIPE, digits)
    identical(updated, static)


def by_hand(ticket: Ticket, recipe: Recipe, data: Dataset, seed: int, rule: DropAndGrow) -> tuple[State, State]:
    """RigL on a plain module: step first, then drop by |w| and grow by the batch's dense gradient, in double."""
    module = build(ticket.architecture).double().train()
    module.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in ticket.state().items()})
    parameters, masks = dict(module.named_parameters()), dict(ticket.masks)
    velocity = {key: torch.zeros_like(p) for key, p in parameters.items()}
    images, total = data.normalised("train").double(), recipe.steps(len(data.train.labels))
    for step in range(total):
        order = torch.randperm(len(images), generator=generator(seed, "order", step // 5))
        batch = order[step % 5 * 32 : (step % 5 + 1) * 32]
        module.zero_grad()
        F.cross_entropy(module(images[batch]), data.train.labels[batch]).backward()
        dense_gradient = {key: parameters[key].grad.clone() for key in masks}  # type: ignore[union-attr]
        rate = recipe.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
        with torch.no_grad():
            for key, p in parameters.items():
                mask = masks.get(key, torch.ones_like(p, dtype=torch.bool))
                velocity[key] = 0.9 * velocity[key] + (p.grad + recipe.weight_decay * p) * mask
                p.sub_(rate * velocity[key] * mask)
            if (step + 1) % rule.interval == 0 and step + 1 < 0.75 * total:
                fraction = 0.3 / 2 * (1 + math.cos(math.pi * (step + 1) / (0.75 * total)))
                for key, mask in masks.items():
                    w, gradient = parameters[key].flatten(), dense_gradient[key].abs().flatten()
                    alive = mask.flatten().nonzero().squeeze(1)
                    drop = alive[w[alive].abs().argsort()[: int(fraction * len(alive))]]
                    kept = mask.flatten().clone()
                    kept[drop] = False
                    grow = gradient.masked_fill(kept, -1).argsort(descending=True)[: len(drop)]
                    new = kept.clone()
                    new[grow] = True
                    masks[key] = new.view_as(mask)
                    stays = masks[key] & mask
                    parameters[key].mul_(stays)
                    velocity[key].mul_(stays)
    return {key: p.detach() for key, p in parameters.items()}, masks


@pytest.mark.parametrize("name", [LENET, CONV, RESNET])
def test_rigl_is_the_textbooks(name: str, digits: Dataset) -> None:
    # Pixels that never change would give equal gradients, a tie that rounding decides.
    noise = torch.randint(0, 4, digits.train.images.shape, generator=generator(0, "noise"), dtype=torch.uint8)
    digits = replace(digits, train=replace(digits.train, images=digits.train.images + noise))
    recipe = replace(RECIPE, precision="fp64")
    [start] = starting_tickets(of_seeds(dense(name), [7]), 0.3, "rigl")
    [run] = train_dynamic(of_seeds(dense(name), [7]), 0.3, "rigl", recipe, digits, **OFTEN)
    expected, masks = by_hand(start, recipe, digits, 7, DropAndGrow("gradient", **OFTEN))
    for key, mask in masks.items():
        assert torch.equal(run.ticket.masks[key], mask)
    for key, value in run.ticket.state().items():
        if key in expected:
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------- what is grown, and where


class Spy:
    """A rule that also keeps what it saw, and looks at the moments right after an update."""

    def __init__(self, rule: DropAndGrow) -> None:
        self.rule, self.seen, self.stayed = rule, [], []

    def __getattr__(self, name: str) -> object:
        return getattr(self.rule, name)

    def masks(self, masks: State, coefficients: State, gradients: State | None, *times: int) -> State:
        after = self.rule.masks(masks, coefficients, gradients, *times)
        self.seen.append({key: (m.clone(), coefficients[key].clone(), after[key].clone()) for key, m in masks.items()})
        return after


def moments(move: object, net: object, name: str) -> list[Tensor]:
    if hasattr(move, "velocity"):
        return [move.velocity[name]]
    found = move.optimizer.moments[net.leaves[name]]  # type: ignore[attr-defined]
    return [value for value in found if value.shape == net.leaves[name].shape]  # type: ignore[attr-defined]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("name", [LENET, RESNET])
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_new_weights_start_at_zero_with_moments_of_zero(
    grow: str, name: str, optimizer: str, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, original, looked = Spy(DropAndGrow(grow, interval=3, drop_fraction=0.5)), mask_updates.update_masks, []  # type: ignore[arg-type]

    def watched(net: object, move: object, *others: object) -> None:
        before = {key: [m.clone() for m in moments(move, net, key)] for key in net.leaves}  # type: ignore[attr-defined]
        original(net, move, *others)  # type: ignore[arg-type]
        for key, (was, c, now) in spy.seen[-1].items():
            leaf = net.leaves[key].detach().view(now.shape)  # type: ignore[attr-defined]
            stays = was & now
            assert torch.equal(leaf[stays], c[stays])
            assert not leaf[~stays].any()
            for old, moment in zip(before[key], moments(move, net, key), strict=True):
                assert torch.equal(moment.view(now.shape)[stays], old.view(now.shape)[stays])
                assert not moment.view(now.shape)[~stays].any()
            looked.append(int((now & ~was).sum()))

    monkeypatch.setattr(loop, "update_masks", watched)
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=0.01)
    start = starting_tickets(of_seeds(dense(name), [0]), 0.3, "set")
    train(of_seeds(start, [0]), recipe, digits, mask_updates=spy)  # type: ignore[arg-type]
    assert sum(looked) > 50


def test_rigl_grows_where_the_dense_gradient_is_largest_on_a_net_by_hand() -> None:
    masks = {"w": torch.tensor([[True, True, False], [False, True, True]])}
    coefficients = {"w": torch.tensor([[0.5, -0.1, 0.0], [0.0, 2.0, -0.3]])}
    gradients = {"w": torch.tensor([[9.0, 0.2, -0.4], [0.1, 7.0, 8.0]])}
    # A quarter of four is one: -0.1 goes; of the free three, -0.4 is the steepest.
    rule = DropAndGrow("gradient", drop_fraction=0.25, decay="constant")
    after = rule.masks(masks, coefficients, gradients, 100, 1000, 0)
    assert after["w"].tolist() == [[True, False, True], [False, True, True]]
    # Where what was dropped is itself the steepest, nothing changes.
    gradients["w"][0, 1] = 5.0
    assert torch.equal(rule.masks(masks, coefficients, gradients, 100, 1000, 0)["w"], masks["w"])


def test_the_gradients_read_are_those_of_pruned_weights_too(digits: Dataset) -> None:
    for name in (LENET, RESNET):
        [ticket] = starting_tickets(of_seeds(dense(name), [0]), 0.3, "rigl")
        net = network([ticket], torch.device("cpu"), torch.float64)
        images, labels = digits.normalised("train")[:20].double(), digits.train.labels[:20]
        inputs = net.prepare(images).unsqueeze(0)

        def losses(net=net, inputs=inputs, labels=labels) -> Tensor:
            return F.cross_entropy(net.forward(inputs, training=True)[0], labels, reduction="none").unsqueeze(0)

        buffers = {key: value.clone() for key, value in net.buffers.items()}
        found = mask_updates.dense_gradients(net, losses)
        assert all(torch.equal(net.buffers[key], value) for key, value in buffers.items())
        module = build(ticket.architecture).double().train()
        module.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in ticket.state().items()})
        F.cross_entropy(module(images), labels).backward()
        for key, parameter in module.named_parameters():
            if key in found:
                torch.testing.assert_close(found[key].view_as(parameter), parameter.grad, rtol=1e-9, atol=1e-12)
                mask = ticket.masks[key]
                assert bool(mask.all()) or found[key].view_as(parameter)[~mask].any()


@given(
    st.integers(1, 40), st.integers(0, 40), st.floats(0, 1), st.integers(0, 3), st.sampled_from(["random", "gradient"])
)
def test_an_update_keeps_counts_and_drops_no_more_than_its_fraction(
    size: int, kept: int, fraction: float, seed: int, grow: str
) -> None:
    source = generator(seed, "test")
    mask = (torch.arange(size) < min(kept, size))[torch.randperm(size, generator=source)]
    c = torch.randn(size, generator=source) * mask
    gradients = {"w": torch.randn(size, generator=source)} if grow == "gradient" else None
    rule = DropAndGrow(grow, drop_fraction=fraction, decay="constant")  # type: ignore[arg-type]
    after = rule.masks({"w": mask}, {"w": c}, gradients, 10, 100, seed)["w"]
    count, gone = int(mask.sum()), mask & ~after
    assert int(after.sum()) == count
    assert int(gone.sum()) <= int(fraction * count)
    if gone.any() and (mask & after).any() and fraction < 0.5:
        survivors = (mask & after).sum()
        # At most the dropped, grown again, lie below what is gone.
        assert int((c.abs()[mask & after] >= c.abs()[gone].max()).sum()) >= survivors - int(fraction * count)


# ---------------------------------------------------------------------------------------------------------- schedules


def test_drop_fraction_follows_the_cosine() -> None:
    rule = DropAndGrow("gradient", interval=100, drop_fraction=0.3, end=0.75)
    values = [rule.fraction_at(done, 1000) for done in (0, 250, 375, 500, 750, 900)]
    assert values == pytest.approx([0.3, 0.225, 0.15, 0.075, 0.0, 0.0])
    assert replace(rule, decay="constant").fraction_at(700, 1000) == 0.3
    assert [done for done in range(1, 1001) if rule.due(done, 1000)] == [100, 200, 300, 400, 500, 600, 700]


def test_gradual_schedule_by_hand() -> None:
    rule = GradualPruning(0.1, interval=100, begin=0.1, end=0.5)
    assert [done for done in range(1, 1001) if rule.due(done, 1000)] == [200, 300, 400, 500]
    values = [rule.density_at(done, 1000) for done in (0, 100, 300, 500, 900)]
    assert values == pytest.approx([1.0, 1.0, 1 - 0.9 * 0.875, 0.1, 0.1])


# ------------------------------------------------------------------------------------------ what a result depends on


@pytest.mark.parametrize("method", list(METHODS))
def test_a_replicate_does_not_see_its_neighbours(method: str, digits: Dataset) -> None:
    seeds = [3, 4, 5, 6, 8]
    together = train_dynamic(of_seeds(dense("lenet-37-23", tuple(seeds)), seeds), 0.2, method, RECIPE, digits, **OFTEN)
    for index, seed in enumerate(seeds):
        [alone] = train_dynamic(of_seeds(dense("lenet-37-23", (seed,)), [seed]), 0.2, method, RECIPE, digits, **OFTEN)
        identical(alone, together[index])
    assert len({run.ticket.digest() for run in together}) == len(seeds)


@pytest.mark.parametrize("method", list(METHODS))
def test_works_in_another_basis(method: str, digits: Dataset) -> None:
    [run] = train_dynamic(of_seeds(dense(LENET, rule="dct"), [0]), 0.2, method, RECIPE, digits, **OFTEN)
    assert run.ticket.kept == round(0.2 * run.ticket.prunable)
    [canonical] = train_dynamic(of_seeds(dense(LENET), [0]), 0.2, method, RECIPE, digits, **OFTEN)
    assert run.ticket.digest() != canonical.ticket.digest()


def test_a_store_tells_rules_apart_and_gives_back_the_final_mask(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(method: str, **options: object) -> Trained:
        store, chosen = Store(tmp_path), OFTEN | options
        return train_dynamic(of_seeds(dense(), [0]), 0.2, method, RECIPE, digits, store=store, **chosen)[0]

    first = [run("set"), run("rigl"), run("rigl", drop_fraction=0.1), run("gmp"), run("gmp", scope="layerwise")]
    assert len({trained.ticket.digest() for trained in first}) == 5

    def dies(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(_Job, "run", dies)
    again = [run("set"), run("rigl"), run("rigl", drop_fraction=0.1), run("gmp"), run("gmp", scope="layerwise")]
    for one, other in zip(first, again, strict=True):
        identical(one, other)


def test_starting_late_goes_on_with_the_whole_schedule(digits: Dataset) -> None:
    [run] = train_dynamic(
        of_seeds(dense(), [0]), 0.2, "rigl", RECIPE, digits, start_step=9, snapshots=(9, 11, 12, 20), interval=4
    )
    same = [torch.equal(run.snapshots[9].masks[k], run.snapshots[11].masks[k]) for k in run.ticket.masks]
    assert all(same), "nothing is due before step 12"
    assert any(not torch.equal(run.snapshots[11].masks[k], run.snapshots[12].masks[k]) for k in run.ticket.masks)
    assert counts_of(run.snapshots[12].masks) == counts_of(run.snapshots[20].masks)


@pytest.mark.parametrize(("method", "least"), [("set", 60), ("rigl", 75), ("gmp", 75)])
def test_sparse_from_the_start_they_learn_digits(method: str, least: float) -> None:
    data = load("digits", train_size=600, validation_size=150, device="cpu")
    recipe = Recipe(learning_rate=0.05, batch_size=32, epochs=8, evaluations=1)
    [run] = train_dynamic(of_seeds(dense("lenet-100-50"), [0]), 0.1, method, recipe, data, interval=10)
    assert run.history[-1]["validation_accuracy"] > least


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rule_for("rig", 0.1), "did you mean 'rigl'"),
        (lambda: rule_for("rigl", 0.1, intervall=5), "option of method 'rigl' 'intervall', did you mean 'interval'"),
        (lambda: rule_for("rigl", 0.1, grow="random"), "unknown option of method 'rigl' 'grow'"),
        (lambda: rule_for("gmp", 0.0), r"density 0.0 is not in \(0, 1\]"),
        (lambda: rule_for("set", 1.5), r"density 1.5 is not in \(0, 1\]"),
        (lambda: rule_for("set", 0.5, interval=0), "interval 0 is not a whole number"),
        (lambda: rule_for("set", 0.5, interval=2.5), "interval 2.5 is not a whole number"),
        (lambda: rule_for("set", 0.5, drop_fraction=1.2), r"drop_fraction 1.2 is not in \[0, 1\]"),
        (lambda: rule_for("set", 0.5, decay="linear"), "unknown decay 'linear'"),
        (lambda: rule_for("set", 0.5, end=1.5), "end 1.5 are not fractions"),
        (lambda: rule_for("gmp", 0.5, begin=0.8), "begin 0.8 and end 0.75 are not fractions"),
        (lambda: rule_for("gmp", 0.5, scope="layer"), "unknown scope 'layer', did you mean 'layerwise'"),
        (lambda: DropAndGrow("gradients"), "unknown grow 'gradients', did you mean 'gradient'"),  # type: ignore[arg-type]
        (lambda: starting_tickets(of_seeds(dense(), [0]), 0.5, "set", allocation="ek"), "unknown allocation 'ek'"),
        (lambda: starting_tickets(of_seeds(dense(), [0]), 0.5, "dst"), "unknown method 'dst'"),
        (
            lambda: starting_tickets(of_seeds(starting_tickets(of_seeds(dense(), [0]), 0.5, "set"), [0]), 0.4, "rigl"),
            "'rigl' starts from dense tickets, found one of density 0.5",
        ),
    ],
)
def test_bad_rules_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_bad_trainings_are_refused(digits: Dataset) -> None:
    rule = rule_for("rigl", 0.5)
    with pytest.raises(InputError, match="gradual pruning ends at step 15, so it cannot start at start_step 15"):
        train_dynamic(of_seeds(dense(), [0]), 0.5, "gmp", RECIPE, digits, start_step=15)
    held = replace(dense()[0], off="init")
    with pytest.raises(InputError, match="need pruned coefficients of zero, found off='init'"):
        train(of_seeds([held], [0]), RECIPE, digits, mask_updates=rule)
    turned, recipe = dense(rule="dct"), replace(RECIPE, state_in="weights")
    with pytest.raises(InputError, match="need state_in 'coefficients'"):
        train(of_seeds(turned, [0]), recipe, digits, mask_updates=rule)


@pytest.mark.parametrize("method", list(METHODS))
def test_divergence_names_step_and_seed(method: str, digits: Dataset) -> None:
    recipe = replace(RECIPE, learning_rate=1e20)
    with pytest.raises(FloatingPointError, match=r"training diverged: .* of seed 5 is no longer finite at step 2"):
        train_dynamic(of_seeds(dense(), [5]), 0.5, method, recipe, digits, interval=1 if method == "gmp" else 2)
