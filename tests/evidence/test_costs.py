"""Costs of training against hand counts, and against the published sizes of the networks."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from replicates import of_seeds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lthlib.data import load
from lthlib.errors import InputError
from lthlib.evidence import costs
from lthlib.evidence.costs import Cost
from lthlib.finders.dynamic import DropAndGrow, rule_for, train_dynamic
from lthlib.models.architecture import architecture, build, multiply_accumulates
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe

LENET = architecture("lenet-24-16", (1, 8, 8), 10)
# 150 images: batches of 32, 32, 32, 32 and 22.
RECIPE, EXAMPLES = Recipe(batch_size=32, epochs=4), 150
FIRST, SECOND, THIRD = 64 * 24, 24 * 16, 16 * 10


def test_a_lenet_by_hand() -> None:
    found = costs.dense_flops(LENET)
    assert [(f.forward, f.inputs, f.weights) for f in found.values()] == [
        (2 * FIRST, 0, 2 * FIRST), (2 * SECOND, 2 * SECOND, 2 * SECOND), (2 * THIRD, 2 * THIRD, 2 * THIRD)
    ]  # fmt: skip
    dense = 2 * (2 * FIRST + 3 * SECOND + 3 * THIRD)
    densities = {"1.weight": 0.1, "3.weight": 0.5, "5.weight": 1.0}
    each = costs.flops_per_example(LENET, densities)
    assert each == Cost(dense, pytest.approx(2 * (0.1 * 2 * FIRST + 0.5 * 3 * SECOND + 3 * THIRD)))
    assert costs.flops_per_example(LENET, 0.25) == Cost(dense, dense / 4)
    assert costs.training_cost(LENET, RECIPE, EXAMPLES) == Cost(600 * dense, 600 * dense)


@pytest.mark.parametrize("name", ["resnet-14-w4", "vgg-11-w4", "conv-4-w4", "lenet-30-20-10"])
def test_layers_add_up_to_what_torch_counts_and_to_the_ground_floors_products(name: str) -> None:
    chosen = architecture(name, (1, 8, 8), 10)
    found = costs.dense_flops(chosen)
    assert {key: flops.forward for key, flops in found.items()} == {
        key: 2 * count for key, count in multiply_accumulates(chosen).items()
    }
    with FlopCounterMode(display=False) as counter:
        build(chosen).train()(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert 2 * sum(flops.training for flops in found.values()) == counter.get_total_flops()
    assert [key for key, flops in found.items() if not flops.inputs] == [next(iter(found))], "only it reads images"


@pytest.mark.parametrize(("depth", "mmac", "petaflop"), [(8, 12.5, 0.60), (20, 40.8, 1.96), (56, 125.7, 6.04)])
def test_resnets_cost_what_the_specification_derives(depth: int, mmac: float, petaflop: float) -> None:
    # 160 epochs of 50,000 images, three passes of two operations a product (elastic_tickets.md, 2.6).
    chosen = architecture(f"resnet-{depth}", (3, 32, 32), 10)
    found = costs.dense_flops(chosen)
    assert sum(flops.forward for flops in found.values()) / 2e6 == pytest.approx(mmac, abs=0.06)
    cost = costs.training_cost(chosen, Recipe(batch_size=128, epochs=160), 50_000)
    stem = 2 * 3 * 16 * 9 * 1024
    assert (cost.dense + 8e6 * stem) / 1e15 == pytest.approx(petaflop, abs=0.006)


class Squares(nn.Module):
    """A linear layer and a product of activations that no prunable tensor explains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layer(images.flatten(1))
        return (hidden[:, :, None] @ hidden[:, None, :]).sum(2)


def squares(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Squares()


def test_products_without_a_prunable_tensor_are_counted_dense() -> None:
    found = costs.dense_flops(architecture(f"{__name__}:squares", (1, 2, 2), 3))
    assert (found["layer.weight"].forward, found["layer.weight"].inputs) == (24, 0)
    # 3x1 times 1x3: 18 forward, twice that backward.
    assert found[costs.OTHER].training == 3 * 18
    each = costs.flops_per_example(architecture(f"{__name__}:squares", (1, 2, 2), 3), 0.0)
    assert each == Cost(48 + 54, 54)


# ------------------------------------------------------------------------------------------------------ steps to images


def test_examples_are_counted_batch_by_batch() -> None:
    sizes = [32, 32, 32, 32, 22] * 4
    for start in range(21):
        for stop in range(start, 21):
            assert costs.examples_seen(RECIPE, EXAMPLES, start, stop) == sum(sizes[start:stop])
    assert costs.examples_seen(replace(RECIPE, epochs=0.4), EXAMPLES) == 64


# ---------------------------------------------------------------------------------------------------------- the routes


def test_imp_is_the_dense_training_and_one_for_each_level() -> None:
    dense = costs.training_cost(LENET, RECIPE, EXAMPLES).dense
    found = costs.imp_cost(LENET, RECIPE, EXAMPLES, [0.8, 0.64, 0.512])
    assert found == Cost(4 * dense, pytest.approx((1 + 0.8 + 0.64 + 0.512) * dense))
    late = costs.imp_cost(LENET, RECIPE, EXAMPLES, [0.5], rewind_step=5)
    assert late == Cost(dense * 1.75, dense * 1.375)


def test_pruning_at_initialization_pays_for_the_dense_steps_and_its_scores() -> None:
    each = costs.flops_per_example(LENET).dense
    found = costs.initialization_cost(LENET, RECIPE, EXAMPLES, 0.1, rewind_step=3, scored_examples=1000)
    assert found.dense == each * (600 + 1000)
    assert found.sparse == pytest.approx(each * (96 + 1000 + 0.1 * 504))


def test_rigl_pays_for_dense_gradients_at_updates_only() -> None:
    rule = DropAndGrow("gradient", interval=5)
    plain = costs.training_cost(LENET, RECIPE, EXAMPLES, 0.1)
    assert costs.drop_and_grow_cost(LENET, RECIPE, EXAMPLES, 0.1, replace(rule, grow="random")) == plain
    # Updates after steps 5 and 10 of 20 (15 is the end), both with the epoch's last batch of 22.
    found = costs.drop_and_grow_cost(LENET, RECIPE, EXAMPLES, 0.1, rule)
    assert found.dense - plain.dense == 44 * costs.flops_per_example(LENET).dense
    assert found.sparse - plain.sparse == pytest.approx(44 * 0.9 * 2 * (FIRST + SECOND + THIRD))
    late = costs.drop_and_grow_cost(LENET, RECIPE, EXAMPLES, 0.1, rule, start_step=5)
    assert late.dense == (450 + 22) * costs.flops_per_example(LENET).dense


def test_rigls_average_is_its_papers_formula() -> None:
    # (3 f_S dT + 2 f_S + f_D) / (dT + 1): here updates replace no step, so one in dT is (2 f_S + f_D).
    conv = architecture("conv-2-w4", (1, 8, 8), 10)
    recipe = Recipe(batch_size=10, epochs=100)
    found = costs.drop_and_grow_cost(conv, recipe, 100, 0.1, DropAndGrow("gradient", interval=10, end=1.0))
    forward = sum(flops.forward for flops in costs.dense_flops(conv).values())
    plain = costs.training_cost(conv, recipe, 100, 0.1)
    # The update after the last step of all is not made.
    assert found.sparse - plain.sparse == pytest.approx(99 * 10 * 0.9 * forward)


def test_gradual_pruning_from_a_trainings_own_snapshots() -> None:
    data = load("digits", train_size=EXAMPLES, validation_size=40, device="cpu")
    rule = rule_for("gmp", 0.1, interval=5)
    steps = [0, *(step for step in range(1, 21) if rule.due(step, 20))]
    [run] = train_dynamic(
        of_seeds(initial_tickets(LENET, [0]), [0]), 0.1, "gmp", RECIPE, data, snapshots=steps, interval=5
    )
    phases = costs.phases_of(run)
    assert list(phases) == steps == [0, 5, 10, 15]
    found = costs.phased_cost(LENET, RECIPE, EXAMPLES, phases)
    parts = [costs.flops_per_example(LENET, run.snapshots[step].layer_densities()).sparse for step in steps]
    assert found.sparse == pytest.approx(150 * sum(parts))
    assert found.dense == costs.training_cost(LENET, RECIPE, EXAMPLES).dense
    one = costs.phased_cost(LENET, RECIPE, EXAMPLES, {0: 0.3})
    assert one == costs.training_cost(LENET, RECIPE, EXAMPLES, 0.3)


def test_one_imp_amortises_over_targets() -> None:
    chain, ticket = Cost(100.0, 60.0), Cost(10.0, 2.0)
    targets = ["resnet-14", "resnet-32", "resnet-44"]
    rows = costs.route_rows(
        {
            "IMP on each": (Cost(), dict.fromkeys(targets, chain)),
            "one IMP, then tickets": (chain, dict.fromkeys(targets, ticket)),
        }
    )
    assert [row["dense"] for row in rows] == [0, 100, 200, 300, 100, 110, 120, 130]
    assert [row["sparse"] for row in rows[4:]] == [60, 62, 64, 66]
    assert [row["last_target"] for row in rows[:3]] == ["", "resnet-14", "resnet-32"]
    assert costs.break_even(100, 10, 100) == pytest.approx(100 / 90)
    assert costs.break_even(100, 10, 10) == math.inf
    assert costs.break_even(0, 1, 2) == 0


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: costs.flops_per_example(LENET, 1.5), r"density 1.5 of '1.weight' is not in \[0, 1\]"),
        (lambda: costs.flops_per_example(LENET, math.nan), r"density nan of '1.weight' is not in \[0, 1\]"),
        (
            lambda: costs.flops_per_example(LENET, {"1.weight": 0.5}),
            "no density for tensor '3.weight' of",
        ),
        (lambda: costs.flops_per_example(LENET, {"1.weights": 0.5}), "did you mean '1.weight'"),
        (lambda: costs.examples_seen(RECIPE, EXAMPLES, 3, 21), "steps 3 to 21 are not within the training"),
        (lambda: costs.examples_seen(RECIPE, EXAMPLES, 4, 3), "steps 4 to 3 are not within the training"),
        (lambda: costs.phased_cost(LENET, RECIPE, EXAMPLES, {5: 0.5}), "first phase must start at step 0"),
        (lambda: costs.phased_cost(LENET, RECIPE, EXAMPLES, {}), "first phase must start at step 0"),
        (
            lambda: costs.route_rows({"a": (Cost(), {"x": Cost()}), "b": (Cost(), {"y": Cost()})}),
            "route 'b' has targets",
        ),
        (lambda: costs.break_even(-1, 1, 2), "a cost must be at least 0 and finite, found -1"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
