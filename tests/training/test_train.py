"""Training is the textbook's, in every basis, and a replicate's result depends on nothing but its own description."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from replicates import of_seeds
from torch import Tensor
from torch.nn import functional as F

from lthlib.basis import bases
from lthlib.data import Dataset, load, pick_device
from lthlib.errors import InputError
from lthlib.masks.controls import random_masks
from lthlib.models.architecture import architecture, build
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.store import Store
from lthlib.ticket import Ticket, dense_ticket
from lthlib.training.loop import Trained, _Job
from lthlib.training.proximal import Penalty, rank, row_norms
from lthlib.training.recipe import Recipe, parse_step
from lthlib.training.train import evaluate, train

DIGITS = (1, 8, 8)
LENET, CONV, RESNET, WIDE = "lenet-24-16", "conv-2-w4", "resnet-8-w2", "conv-2-w10"
SHORT = Recipe(learning_rate=0.05, weight_decay=1e-2, batch_size=32, epochs=1, evaluations=2)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    # 5 batches an epoch, the last of 22.
    return load("digits", train_size=150, validation_size=40, device="cpu")


def make(name: str = LENET, rule: str = "canonical", density: float = 1.0, off: str = "zero", seed: int = 0) -> Ticket:
    arch = architecture(name, DIGITS, 10)
    ticket = dense_ticket(arch, initial_state(arch, seed))
    shapes = {key: tuple(c.shape) for key, c in ticket.coefficients.items()}
    ticket = ticket.in_bases(bases(rule, shapes, DIGITS, 0, ticket.weights()))
    if density < 1:
        ticket = ticket.with_masks(random_masks(shapes, round(density * ticket.prunable), generator(seed, "masks")))
    return replace(ticket, off=off)  # type: ignore[arg-type]


def same(a: Trained, b: Trained) -> None:
    """Equal to the last bit, history and snapshots included."""
    assert (a.seed, a.history, a.early_stopping_step) == (b.seed, b.history, b.early_stopping_step)
    assert a.ticket.digest() == b.ticket.digest()
    assert a.snapshots.keys() == b.snapshots.keys()
    assert all(ticket.digest() == b.snapshots[step].digest() for step, ticket in a.snapshots.items())


def difference(a: Ticket, b: Ticket) -> float:
    """Relative difference of all weights together."""
    first, second = (torch.cat([w.double().flatten() for w in t.weights().values()]) for t in (a, b))
    return ((first - second).norm() / second.norm()).item()


# ------------------------------------------------------------------------------------- against a loop written by hand


def by_hand(ticket: Ticket, recipe: Recipe, data: Dataset, seed: int) -> dict[str, Tensor]:
    """Masked training of a plain module: cosine schedule, batches in the seed's order, masked gradients."""
    dtype = torch.float64 if recipe.precision == "fp64" else torch.float32
    module = build(ticket.architecture).to(dtype=dtype, memory_format=torch.channels_last).train()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in ticket.state().items()}
    module.load_state_dict(state)
    masks = ticket.masks
    optimizer = torch.optim.SGD(
        module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    images = data.normalised("train").to(dtype)
    per_epoch = math.ceil(len(images) / recipe.batch_size)
    total = round(recipe.epochs * per_epoch)
    for step in range(total):
        order = torch.randperm(len(images), generator=generator(seed, "order", step // per_epoch))
        place = step % per_epoch * recipe.batch_size
        batch = order[place : place + recipe.batch_size]
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
        inputs = images[batch].contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(module(inputs), data.train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        for key, parameter in module.named_parameters():
            if key in masks and parameter.grad is not None:
                parameter.grad.mul_(masks[key])
        optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("name", [LENET, CONV, RESNET])
def test_training_is_the_plain_loop_with_masked_gradients(name: str, density: float, digits: Dataset) -> None:
    ticket, recipe = make(name, density=density), replace(SHORT, epochs=2, precision="fp64")
    [run] = train(of_seeds([ticket], [7]), recipe, digits)
    expected = by_hand(ticket, recipe, digits, 7)
    for key, value in run.ticket.state().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-12)
    assert difference(run.ticket, ticket) > 1e-3


def test_statistics_of_batch_normalisation_are_used_in_evaluation(digits: Dataset) -> None:
    [run] = train(of_seeds([make(RESNET)], [0]), SHORT, digits)
    module = build(run.ticket.architecture).eval()
    module.load_state_dict(run.ticket.state())
    assert int(run.ticket.rest["stem.1.num_batches_tracked"]) == 5
    images, labels = digits.normalised("validation"), digits.validation.labels
    with torch.no_grad():
        logits = module(images)
    [found] = evaluate([run.ticket], digits, "validation")
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert run.history[-1]["validation_loss"] == pytest.approx(found.loss, rel=1e-6)
    # Statistics of the batch would give something else.
    with torch.no_grad():
        assert not torch.allclose(module.train()(images), logits, atol=1e-2)


@pytest.mark.parametrize("name", [LENET, RESNET])
def test_looking_at_the_validation_loss_changes_nothing(name: str, digits: Dataset) -> None:
    ticket = make(name, "dct", 0.5)
    [often] = train(of_seeds([ticket], [0]), replace(SHORT, evaluations=5), digits)
    [once] = train(of_seeds([ticket], [0]), replace(SHORT, evaluations=1), digits)
    assert often.ticket.digest() == once.ticket.digest()
    assert often.history[-1] | {"train_loss": 0} == once.history[-1] | {"train_loss": 0}


def test_history_is_evenly_spaced_and_ends_with_the_final_ticket(digits: Dataset) -> None:
    recipe = replace(SHORT, epochs=4, evaluations=4, learning_rate=0.2)
    runs = train(of_seeds([make(), make(seed=1)], [0, 1]), recipe, digits)
    for run in runs:
        assert [row["step"] for row in run.history] == [5, 10, 15, 20]
        [found] = evaluate([run.ticket], digits, "validation")
        assert run.history[-1]["validation_accuracy"] == found.accuracy
        assert run.history[-1]["validation_loss"] == pytest.approx(found.loss, rel=1e-6)
        losses = {row["step"]: row["validation_loss"] for row in run.history}
        assert run.early_stopping_step == min(losses, key=losses.__getitem__)
    assert runs[0].history[-1]["train_loss"] < runs[0].history[0]["train_loss"]


@pytest.mark.parametrize("name", [CONV, RESNET, "vgg-11-w4", LENET])
def test_small_networks_learn_digits(name: str) -> None:
    data = load("digits", train_size=400, validation_size=100, device="cpu")
    recipe = Recipe(learning_rate=0.05, batch_size=32, epochs=6, evaluations=1)
    [run] = train(of_seeds([make(name, density=0.7)], [0]), recipe, data)
    assert run.history[-1]["validation_accuracy"] > 60


# -------------------------------------------------------------------------------------------------- pruned stays pruned

OPTIMIZERS = ["sgd", "adam", "adamw", "rmsprop"]


@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["canonical", "dct", "haar", "hadamard", "random", "svd", "units", "dct@input"])
def test_pruned_coefficients_are_exactly_zero_after_training(
    rule: str, optimizer: str, state_in: str, digits: Dataset
) -> None:
    recipe = replace(SHORT, optimizer=optimizer, state_in=state_in, learning_rate=0.01)  # type: ignore[arg-type]
    pruned_stay(make(LENET, rule, 0.3), recipe, digits)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", [CONV, RESNET])
@pytest.mark.parametrize("rule", ["canonical", "dct", "random@kernel", "units"])
def test_pruned_coefficients_of_convolutions_are_exactly_zero(
    rule: str, name: str, optimizer: str, digits: Dataset
) -> None:
    pruned_stay(make(name, rule, 0.3), replace(SHORT, optimizer=optimizer, learning_rate=0.01), digits)


@pytest.mark.parametrize("state_in", ["coefficients", "weights"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "rule"), [(LENET, "canonical"), (LENET, "random"), (CONV, "dct")])
def test_pruned_coefficients_are_held_at_their_initial_values(
    name: str, rule: str, optimizer: str, state_in: str, digits: Dataset
) -> None:
    recipe = replace(SHORT, optimizer=optimizer, state_in=state_in, learning_rate=0.01)  # type: ignore[arg-type]
    pruned_stay(make(name, rule, 0.3, off="init"), recipe, digits)


def pruned_stay(ticket: Ticket, recipe: Recipe, data: Dataset) -> None:
    [run] = train(of_seeds([ticket], [0]), recipe, data, snapshots=(3,))
    for trained in (run.ticket, run.snapshots[3]):
        for key, mask in ticket.masks.items():
            assert torch.equal(trained.masks[key], mask)
            held = ticket.effective_coefficients()[key][~mask]
            assert torch.equal(trained.coefficients[key][~mask], held)
            assert ticket.off == "init" or not trained.coefficients[key][~mask].any()
        assert difference(trained, ticket) > 1e-4
    assert run.history[-1]["train_loss"] < 10


PENALTIES = [
    Penalty("l1", 0.05), Penalty("group", 0.05), Penalty("sparse-group", 0.05, 0.02), Penalty("nuclear", 0.2),
    Penalty("rank", rank=3),
]  # fmt: skip


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: penalty.kind)
@pytest.mark.parametrize(("name", "rule", "off", "state_in"), [
    (LENET, "canonical", "zero", "coefficients"), (LENET, "dct", "init", "coefficients"),
    (LENET, "random", "zero", "weights"), (CONV, "dct", "zero", "coefficients"),
])  # fmt: skip
def test_penalties_leave_pruned_coefficients_where_they_are(
    name: str, rule: str, off: str, state_in: str, penalty: Penalty, digits: Dataset
) -> None:
    ticket = make(name, rule, 0.5, off)
    recipe = replace(SHORT, state_in=state_in)  # type: ignore[arg-type]
    [run] = train(of_seeds([ticket], [0]), recipe, digits, penalty=penalty)
    [free] = train(of_seeds([ticket], [0]), recipe, digits)
    assert run.ticket.digest() != free.ticket.digest()
    for key, mask in ticket.masks.items():
        assert torch.equal(run.ticket.coefficients[key][~mask], ticket.effective_coefficients()[key][~mask])


def test_penalties_give_the_structure_that_they_are_for(digits: Dataset) -> None:
    recipe = Recipe(learning_rate=0.05, batch_size=32, epochs=6, evaluations=1)
    tickets, seeds = [make(), make(seed=1)], [0, 1]

    def weights(penalty: Penalty) -> list[Tensor]:
        runs = train(of_seeds(tickets, seeds), recipe, digits, penalty=penalty)
        assert all(run.ticket.coefficients["5.weight"].all() for run in runs), "not on the output layer"
        return [run.ticket.weights()["1.weight"] for run in runs]

    for weight in weights(Penalty("l1", 0.15)):
        assert 0.2 < (weight == 0).float().mean() < 1
    for weight in weights(Penalty("group", 0.25)):
        assert 0 < int((row_norms(weight) == 0).sum()) < 24
    for weight in weights(Penalty("rank", rank=5)):
        assert torch.linalg.svdvals(weight.double())[5] < 1e-6
    plain = [rank(run.ticket.weights()["1.weight"]) for run in train(of_seeds(tickets, seeds), recipe, digits)]
    assert min(plain) > 5
    for weight in weights(Penalty("nuclear", 2.5)):
        values = torch.linalg.svdvals(weight.double())
        assert values[8] < 1e-6
        assert values[0] > 0.1


def test_a_strength_of_zero_is_no_penalty(digits: Dataset) -> None:
    ticket = make("lenet-24-16", "dct", 0.5)
    [free] = train(of_seeds([ticket], [0]), SHORT, digits)
    for penalty in (Penalty("l1"), Penalty("group")):
        [run] = train(of_seeds([ticket], [0]), SHORT, digits, penalty=penalty)
        same(run, free)


# --------------------------------------------------------------------------------------- what optimisers see of a basis

EQUIVARIANCE = Recipe(learning_rate=0.05, batch_size=32, epochs=40, evaluations=1, precision="fp64")


@pytest.mark.parametrize(
    "fields",
    [{"momentum": 0.0}, {"nesterov": True, "weight_decay": 5e-4}],
    ids=["plain", "momentum, Nesterov, weight decay"],
)
@pytest.mark.parametrize("rule", ["random", "dct", "svd", "units"])
def test_sgd_is_blind_to_the_basis(rule: str, fields: dict, digits: Dataset) -> None:
    recipe = replace(EQUIVARIANCE, **fields)
    assert recipe.steps(len(digits.train.labels)) == 200
    exact = [in_double(make("lenet-48", "canonical"), chosen) for chosen in ("canonical", rule)]
    canonical, turned = (train(of_seeds([ticket], [0]), recipe, digits)[0] for ticket in exact)
    assert difference(turned.ticket, canonical.ticket) < 1e-12


def in_double(ticket: Ticket, rule: str) -> Ticket:
    ticket = dense_ticket(ticket.architecture, {key: value.double() for key, value in ticket.state().items()})
    shapes = {key: tuple(c.shape) for key, c in ticket.coefficients.items()}
    return ticket.in_bases(bases(rule, shapes, DIGITS, 0, ticket.weights()))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_adaptive_optimisers_see_the_basis(optimizer: str, digits: Dataset) -> None:
    recipe = replace(EQUIVARIANCE, optimizer=optimizer, learning_rate=1e-2)
    tickets = [in_double(make("lenet-48"), rule) for rule in ("canonical", "random")]
    canonical, turned = train(of_seeds(tickets, [0, 0]), recipe, digits)
    assert difference(turned.ticket, canonical.ticket) > 1e-2


def test_state_in_weights_is_state_in_coefficients_for_sgd_and_not_for_adam(digits: Dataset) -> None:
    dense = in_double(make("lenet-16"), "dct")
    masks = random_masks({key: tuple(c.shape) for key, c in dense.coefficients.items()}, 350, generator(0, "masks"))
    ticket = dense.with_masks(masks)
    recipe = replace(EQUIVARIANCE, epochs=200, weight_decay=1e-3)
    assert recipe.steps(len(digits.train.labels)) == 1000

    def apart(recipe: Recipe) -> float:
        first, second = (
            train(of_seeds([ticket], [0]), replace(recipe, state_in=where), digits)[0]
            for where in ("coefficients", "weights")
        )
        assert not any(second.ticket.coefficients[key][~mask].any() for key, mask in masks.items())
        return difference(second.ticket, first.ticket)

    assert apart(recipe) < 1e-12
    assert apart(replace(recipe, optimizer="adam", learning_rate=1e-2, epochs=20)) > 1e-2


def test_in_the_canonical_basis_there_is_one_place_for_the_state(digits: Dataset) -> None:
    recipe = replace(SHORT, optimizer="adam", learning_rate=1e-2)
    both = [
        train(of_seeds([make(density=0.5)], [0]), replace(recipe, state_in=where), digits)[0]
        for where in ("coefficients", "weights")
    ]
    same(*both)


# ------------------------------------------------------------------------------------------ what a result depends on


@pytest.mark.parametrize("penalty", [None, Penalty("group", 0.02), Penalty("nuclear", 0.02)])
@pytest.mark.parametrize("name", ["lenet-37-23"])
@pytest.mark.parametrize(
    ("rule", "optimizer", "state_in"),
    [
        ("canonical", "sgd", "coefficients"), ("dct", "adam", "coefficients"), ("random", "sgd", "weights"),
        ("dct@input", "adamw", "weights"), ("haar", "rmsprop", "coefficients"),
    ],
)  # fmt: skip
def test_a_replicate_does_not_see_its_neighbours(
    rule: str, optimizer: str, state_in: str, name: str, penalty: Penalty | None, digits: Dataset
) -> None:
    # Some dense, some pruned: neither may change the rounding of the other.
    densities = [1.0, 0.5, 0.5, 0.2, 1.0]
    tickets = [make(name, rule, density, seed=seed) for seed, density in enumerate(densities)]
    rate = 0.05 if optimizer == "sgd" else 1e-3
    recipe = replace(SHORT, optimizer=optimizer, state_in=state_in, learning_rate=rate)  # type: ignore[arg-type]

    def runs(chosen: list[int]) -> list[Trained]:
        return train(of_seeds([tickets[i] for i in chosen], chosen), recipe, digits, penalty=penalty, snapshots=(2,))

    whole = runs([0, 1, 2, 3, 4])
    for chosen in ([0], [3], [4, 1], [3, 2, 1]):
        for index, run in zip(chosen, runs(chosen), strict=True):
            same(run, whole[index])


@pytest.mark.parametrize("rest", [1, 2, 3, 4])
@pytest.mark.parametrize("rule", ["canonical", "dct", "haar", "svd"])
@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam", "learning_rate": 1e-3, "state_in": "weights"}])
def test_nor_where_the_last_batch_is_small(rest: int, rule: str, fields: dict[str, Any]) -> None:
    data = load("digits", train_size=64 + rest, validation_size=40 + rest, device="cpu")
    tickets = [make("lenet-37-3", rule, density, seed=seed) for seed, density in enumerate([1.0, 0.5, 0.2])]
    recipe = replace(SHORT, **fields)
    whole = train(of_seeds(tickets, [0, 1, 2]), recipe, data)
    for index, ticket in enumerate(tickets):
        (alone,) = train(of_seeds([ticket], [index]), recipe, data)
        same(alone, whole[index])


def test_evaluation_does_not_see_neighbours_either(digits: Dataset) -> None:
    tickets = [make("lenet-37-23", "dct", density, seed=seed) for seed, density in enumerate([1.0, 0.5, 0.3])]
    tickets.insert(1, make(CONV))
    together = evaluate(tickets, digits, "test")
    assert together == [evaluate([ticket], digits, "test")[0] for ticket in tickets]


def test_seeds_give_the_order_and_nothing_else_does(digits: Dataset) -> None:
    ticket = make()
    first, again, other = train(of_seeds([ticket] * 3, [0, 0, 1]), SHORT, digits)
    same(first, again)
    assert first.ticket.digest() != other.ticket.digest()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    [shaken] = train(of_seeds([ticket], [0]), SHORT, digits)
    same(shaken, first)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("name", [LENET, RESNET])
def test_training_goes_on_from_a_step_in_schedule_and_order(
    name: str, schedule: str, augmentation: str, digits: Dataset
) -> None:
    data = replace(digits, augmentation=augmentation)
    # Without momentum nothing but the ticket carries over.
    recipe = replace(SHORT, momentum=0.0, schedule=schedule, epochs=3, evaluations=15, warmup_epochs=0.5)
    ticket = make(name, "dct", 0.5)
    [whole] = train(of_seeds([ticket], [4]), recipe, data, snapshots=(0, 5, 7, 15))
    for start in (5, 7):
        [rest] = train(of_seeds([whole.snapshots[start]], [4]), recipe, data, start_step=start, snapshots=(15,))
        assert rest.ticket.digest() == whole.ticket.digest()
        assert rest.history == whole.history[start:]
    assert whole.snapshots[0].digest() == ticket.digest()
    assert whole.snapshots[15].digest() == whole.ticket.digest()
    [nothing] = train(of_seeds([whole.ticket], [4]), recipe, data, start_step=15)
    assert nothing.ticket.digest() == whole.ticket.digest()
    assert (nothing.history, nothing.early_stopping_step) == ([], 15)


def test_a_snapshot_is_the_end_of_a_shorter_training(digits: Dataset) -> None:
    recipe = replace(SHORT, schedule="constant", epochs=3)
    [long] = train(of_seeds([make(CONV, density=0.5)], [0]), recipe, digits, snapshots=(5, 10))
    for epochs in (1, 2):
        [short] = train(of_seeds([make(CONV, density=0.5)], [0]), replace(recipe, epochs=epochs), digits)
        assert short.ticket.digest() == long.snapshots[5 * epochs].digest()


def test_augmentation_changes_the_images_by_seed(digits: Dataset) -> None:
    crops = replace(digits, augmentation="crop-flip")
    runs = [train(of_seeds([make(CONV)], [seed]), SHORT, data)[0] for data, seed in ((digits, 0), (crops, 0))]
    assert runs[0].ticket.digest() != runs[1].ticket.digest()
    same(train(of_seeds([make(CONV)], [0]), SHORT, crops)[0], runs[1])
    stacked = train(of_seeds([make(), make()], [0, 1]), SHORT, crops)
    same(train(of_seeds([make()], [1]), SHORT, crops)[0], stacked[1])


# ------------------------------------------------------------------------------------------------------------- store


class Counter:
    """Which seeds were trained, as the room itself would tell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[int] = []
        self.dies_at: int | None = None
        original = _Job.run

        def counted(job: object, tickets: list[Ticket], *others: object) -> list[Trained]:
            seeds = list(dict.fromkeys(ticket.seed for ticket in tickets))  # a twin is trained for its kernels alone
            if self.dies_at in seeds:
                raise KeyboardInterrupt
            self.trained += seeds
            return original(job, tickets, *others)  # type: ignore[arg-type]

        monkeypatch.setattr(_Job, "run", counted)


@pytest.mark.parametrize(("name", "rule"), [(LENET, "dct"), (LENET, "svd"), (CONV, "random")])
def test_a_store_gives_back_what_was_trained(
    name: str, rule: str, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets = [make(name, rule, 0.5, seed=seed) for seed in range(4)]
    fresh = train(of_seeds(tickets, range(4)), SHORT, digits, snapshots=(0, 3))
    counter, store = Counter(monkeypatch), Store(tmp_path)

    def stored(seeds: list[int]) -> list[Trained]:
        chosen = [tickets[seed] for seed in seeds]
        return train(of_seeds(chosen, seeds), SHORT, digits, snapshots=(3, 0), store=store)

    for seeds, computed in (([2, 0], [2, 0]), ([0, 1, 2, 3], [1, 3]), ([3, 2, 1, 0], [])):
        counter.trained.clear()
        for seed, run in zip(seeds, stored(seeds), strict=True):
            same(run, fresh[seed])
            # The order of layers breaks ties and orders random draws later on.
            assert list(run.ticket.masks) == list(fresh[seed].ticket.masks)
        assert sorted(counter.trained) == sorted(computed)  # beside each other, none need begin first


def test_networks_trained_in_turn_are_kept_in_turn(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets, store, counter = [make(WIDE, seed=seed) for seed in range(4)], Store(tmp_path), Counter(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)  # more than networks, so that each gets all of them
    counter.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        train(of_seeds(tickets, range(4)), SHORT, digits, store=store)
    assert counter.trained == [0, 1]
    counter.dies_at = None
    resumed = train(of_seeds(tickets, range(4)), SHORT, digits, store=store)
    assert counter.trained == [0, 1, 2, 3]
    for run, fresh in zip(resumed, train(of_seeds(tickets, range(4)), SHORT, digits), strict=True):
        same(run, fresh)


def test_networks_trained_beside_each_other_are_kept_and_do_not_depend_on_what_was_kept(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets, store, counter = [make(WIDE, seed=seed) for seed in range(4)], Store(tmp_path), Counter(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    counter.dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        train(of_seeds(tickets, range(4)), SHORT, digits, store=store)
    assert sorted(counter.trained) == [0, 1, 2]
    counter.dies_at = None
    resumed = train(of_seeds(tickets, range(4)), SHORT, digits, store=store)
    assert {3} <= set(counter.trained[3:]) <= {2, 3}  # what ran beside the one that died may be lost
    for run, fresh in zip(resumed, train(of_seeds(tickets, range(4)), SHORT, digits), strict=True):
        same(run, fresh)


@pytest.mark.parametrize("name", ["ticket.safetensors", "snapshot-3.safetensors", "training.json"])
def test_a_damaged_training_is_done_again(
    name: str, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets, store, counter = [make(density=0.5, seed=seed) for seed in range(3)], Store(tmp_path), Counter(monkeypatch)
    runs = train(of_seeds(tickets, range(3)), SHORT, digits, snapshots=(3,), store=store)
    [entry] = [
        path.parent for path in tmp_path.glob("*/parameters.json") if f'"seed": {1}' in path.read_text(encoding="utf-8")
    ]
    content = bytearray((entry / name).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / name).write_bytes(content)
    counter.trained.clear()
    with pytest.warns(UserWarning, match=r"is damaged .* computed anew"):
        again = train(of_seeds(tickets, range(3)), SHORT, digits, snapshots=(3,), store=store)
    assert counter.trained == [1]
    for run, expected in zip(again, runs, strict=True):
        same(run, expected)


def test_a_key_is_all_that_fixes_a_result(tmp_path: Path, digits: Dataset) -> None:
    def entries() -> int:
        return len(list(tmp_path.glob("*/checksums.json")))

    def once(ticket: Ticket | None = None, recipe: Recipe = SHORT, data: Dataset = digits, **more: object) -> int:
        before = entries()
        seed = more.pop("seed", 0)
        train(of_seeds([ticket or make()], [seed]), recipe, data, store=Store(tmp_path), **more)  # type: ignore
        return entries() - before

    assert once() == 1
    assert once() == once(progress="a bar") == 0
    fewer = replace(digits, validation=replace(digits.test))
    for fields in (
        {"ticket": make(seed=1)}, {"ticket": make(density=0.5)}, {"ticket": make(rule="dct")},
        {"recipe": replace(SHORT, learning_rate=0.04)}, {"recipe": replace(SHORT, evaluations=3)},
        {"data": fewer}, {"data": replace(digits, augmentation="crop")}, {"seed": 1}, {"start_step": 1},
        {"snapshots": (1,)}, {"penalty": Penalty("l1", 0.1)}, {"penalty": Penalty("l1", 0.2)},
    ):  # fmt: skip
        assert once(**fields) == 1, fields  # type: ignore[arg-type]
        assert once(**fields) == 0, fields  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- recipes, steps, devices


def test_schedules_are_the_textbooks() -> None:
    base = Recipe(learning_rate=0.8, batch_size=10, epochs=10)
    rates = [base.learning_rate_at(step, 100) for step in range(100)]
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for rate in rates:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()
    steps = replace(base, schedule="step", milestones=(0.5, 0.75), decay=0.1)
    assert [steps.learning_rate_at(step, 100) for step in (0, 49, 50, 74, 75, 99)] == pytest.approx(
        [0.8, 0.8, 0.08, 0.08, 0.008, 0.008]
    )
    warm = replace(base, schedule="constant", warmup_epochs=0.4)
    assert [warm.learning_rate_at(step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    warm_cosine = replace(base, warmup_epochs=2)
    assert warm_cosine.learning_rate_at(20, 100) == pytest.approx(0.8)
    assert warm_cosine.learning_rate_at(60, 100) == pytest.approx(0.4)


def test_steps_of_a_training() -> None:
    assert Recipe(batch_size=64).steps_per_epoch(1200) == 19
    assert Recipe(batch_size=60).steps_per_epoch(1200) == 20
    assert Recipe(batch_size=64, epochs=1.5).steps(1200) == 28
    assert Recipe(batch_size=64, epochs=0.001).steps(1200) == 1
    assert Recipe(batch_size=5000, epochs=3).steps(1200) == 3


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (0, 0), ("0", 0), ("0it", 0), ("0ep", 0), ("1000it", 1000), ("2ep", 20), (" 3it ", 3), ("0.5ep", 5),
        ("1.1ep", 11), ("2.3ep", 23), ("1e3it", 1000), ("1/2ep", 5), ("7 it", 7),
    ],
)  # fmt: skip
def test_steps_from_text(text: str | int, steps: int) -> None:
    assert parse_step(text, 10) == steps


@pytest.mark.parametrize(
    "text",
    ["5", 5, "", "it", "ep", "1.5it", "0.33ep", "-1it", "-2ep", "nanit", "infep", "two ep", "5 steps",
     "1/0it", "1it2ep", None, True, 0.5],
)  # fmt: skip
def test_text_that_is_no_step(text: object) -> None:
    with pytest.raises(InputError, match=r"unknown training step .*valid: 0, a number of steps such as '1000it'"):
        parse_step(text, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg', did you mean 'sgd'"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"state_in": "weight"}, "unknown state_in 'weight', did you mean 'weights'"),
        ({"output_layer": "free"}, "unknown output_layer 'free'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, found 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, found nan"),
        ({"epochs": -1}, "epochs must be above 0 and finite, found -1"),
        ({"epochs": math.inf}, "epochs must be above 0 and finite, found inf"),
        ({"batch_size": 0}, "batch_size must be above 0 and finite, found 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, found 2.5"),
        ({"evaluations": 0}, "evaluations must be above 0"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0 and finite"),
        ({"momentum": math.nan}, "momentum must be at least 0 and finite, found nan"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"),
    ],
)
def test_a_recipe_that_means_nothing_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**fields)


def test_several_architectures_train_in_one_call(digits: Dataset) -> None:
    tickets = [make(), make(CONV, seed=1), make(LENET, seed=2), make(RESNET, seed=3), make(CONV, seed=4)]
    for ticket, run in zip(tickets, train(tickets, SHORT, digits), strict=True):
        same(run, train([ticket], SHORT, digits)[0])


def test_a_call_that_does_not_fit_is_refused(digits: Dataset) -> None:
    with pytest.raises(InputError, match=r"start_step 6 is outside the training \(valid: 0 to 5\)"):
        train(of_seeds([make()], [0]), SHORT, digits, start_step=6)
    with pytest.raises(InputError, match=r"snapshot at step 2 is outside the training \(valid: 3 to 5\)"):
        train(of_seeds([make()], [0]), SHORT, digits, start_step=3, snapshots=(4, 2))
    with pytest.raises(InputError, match="unknown split 'tset', did you mean 'test'"):
        evaluate([make()], digits, "tset")
    with pytest.raises(InputError, match="unknown precision 'half'"):
        evaluate([make()], digits, "test", precision="half")
    arch = architecture("lenet-9", (1, 4, 4), 10)
    other = dense_ticket(arch, initial_state(arch, 0))
    for call in (lambda: train(of_seeds([other], [0]), SHORT, digits), lambda: evaluate([other], digits, "test")):
        with pytest.raises(InputError, match=r"inputs \(1, 4, 4\) .* does not fit data set 'digits' .*\(1, 8, 8\)"):
            call()
    assert train([], SHORT, digits) == []


def test_divergence_names_ticket_and_step(digits: Dataset) -> None:
    wild = make(seed=1, density=0.5)
    wild = replace(wild, coefficients={key: c * 1e18 for key, c in wild.coefficients.items()})
    tickets = [make(density=0.5), wild, make(density=0.5, seed=2)]
    with pytest.raises(FloatingPointError, match=r"ticket of seed 8 \(density 0.5\) is nan at step 0"):
        train(of_seeds(tickets, [7, 8, 9]), SHORT, digits)
    for penalty in (None, Penalty("nuclear", 0.1)):
        with pytest.raises(FloatingPointError, match=r"ticket of seed 3 \(density 1\) is (nan|inf) at step 1"):
            train(of_seeds([make()], [3]), replace(SHORT, learning_rate=1e25), digits, penalty=penalty)


def test_divergence_in_the_very_last_step_is_noticed(digits: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=0.2, learning_rate=1e38, momentum=0.0)
    assert recipe.steps(len(digits.train.labels)) == 1
    with pytest.raises(FloatingPointError, match=r"ticket of seed 0 .* at step 0"):
        train(of_seeds([make()], [0]), recipe, digits, store=Store(tmp_path))
    assert not list(tmp_path.glob("*/checksums.json"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(InputError, match=rf"device '{name}' is not there: 0 CUDA devices \(valid: auto, cpu\)"):
            pick_device(name)
    for name in ("gpu", "cpu:x", "meta", "mps"):
        with pytest.raises(InputError, match=rf"unknown device '{name}'.*valid: auto, cpu, cuda"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"2 CUDA devices \(valid: auto, cpu, cuda:0, cuda:1\)"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("name", "rule"), [(LENET, "dct"), (CONV, "canonical")])
def test_half_precision_keeps_single_precision_weights(name: str, rule: str, digits: Dataset) -> None:
    recipe = replace(SHORT, epochs=6, weight_decay=0.0)
    ticket = make(name, rule, 0.8)
    [full] = train(of_seeds([ticket], [0]), recipe, digits)
    [half] = train(of_seeds([ticket], [0]), replace(recipe, precision="bf16"), digits)
    assert {c.dtype for c in half.ticket.coefficients.values()} == {torch.float32}
    assert half.history[-1]["train_loss"] < 0.9 * half.history[0]["train_loss"]
    assert 1e-5 < difference(half.ticket, full.ticket) < 0.2
    for key, mask in ticket.masks.items():
        assert not half.ticket.coefficients[key][~mask].any()
    one, other = (
        evaluate([full.ticket], digits, "validation", precision=precision)[0] for precision in ("fp32", "bf16")
    )
    assert other.loss == pytest.approx(one.loss, rel=0.05)


def test_a_progress_bar_shows_and_changes_nothing(digits: Dataset, capsys: pytest.CaptureFixture) -> None:
    [quiet] = train(of_seeds([make()], [0]), SHORT, digits)
    assert capsys.readouterr().err == ""
    [shown] = train(of_seeds([make()], [0]), SHORT, digits, progress="dense")
    assert "dense" in capsys.readouterr().err
    same(quiet, shown)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "rule"), [(LENET, "dct"), (LENET, "units"), (CONV, "random"), (RESNET, "canonical")])
def test_cuda_gives_what_the_cpu_gives(name: str, rule: str, optimizer: str, digits: Dataset) -> None:
    data = replace(digits, augmentation="crop-flip")
    recipe = replace(SHORT, optimizer=optimizer, precision="fp64", learning_rate=0.01)
    ticket = make(name, rule, 0.5)
    runs = [train(of_seeds([ticket], [0]), recipe, data, snapshots=(3,))[0] for device in ("cpu", "cuda")]
    assert difference(runs[1].ticket, runs[0].ticket) < 1e-6
    for key, mask in ticket.masks.items():
        assert not runs[1].ticket.coefficients[key][~mask].any()
        assert runs[1].ticket.coefficients[key].device.type == "cpu"
    for precision in ("fp32", "bf16"):
        [run] = train(of_seeds([ticket], [0]), replace(recipe, precision=precision), data)
        assert math.isfinite(run.history[-1]["train_loss"])
        [again] = train(of_seeds([ticket], [0]), replace(recipe, precision=precision), data)
        assert difference(again.ticket, run.ticket) < 0.05
