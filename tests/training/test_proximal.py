"""Proximal operators minimise what they say, in every basis; structured tickets have the rank and cost they claim."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lthlib.basis import bases, canonical, row_reflection, svd
from lthlib.errors import InputError
from lthlib.randomness import generator
from lthlib.training.proximal import (
    LOW_RANK_FORMS,
    POWERS,
    Penalty,
    break_even_rank,
    factorised_numbers,
    group_lp_threshold,
    group_soft_threshold,
    hard_threshold,
    low_rank_mask,
    lp_threshold,
    nuclear_threshold,
    proximal_in_basis,
    rank,
    rank_truncation,
    row_norms,
    singular_lp_threshold,
    soft_threshold,
    sparse_group_threshold,
    stable_rank,
)

Operator = Callable[[torch.Tensor], torch.Tensor]
STRENGTH, GROUP = 0.35, 0.15
ROWS, COLUMNS = 5, 4


def gaussian(shape: tuple[int, ...], *purpose: str | int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test", *purpose))


def power_sum(values: torch.Tensor, p: float) -> torch.Tensor:
    # A singular value of a rank-deficient matrix is zero only up to rounding.
    return (values > 1e-10).double().sum() if p == 0 else values.pow(p).sum()


def lp(p: float) -> tuple[Operator, Operator]:
    return lambda c: lp_threshold(c, STRENGTH, p), lambda c: STRENGTH * power_sum(c.abs(), p)


def group_lp(p: float) -> tuple[Operator, Operator]:
    return (
        lambda c: group_lp_threshold(c, STRENGTH, p),
        lambda c: STRENGTH * math.sqrt(COLUMNS) * power_sum(row_norms(c), p),
    )


def singular_lp(p: float) -> tuple[Operator, Operator]:
    return (
        lambda c: singular_lp_threshold(c, STRENGTH, p),
        lambda c: STRENGTH * power_sum(torch.linalg.svdvals(c), p),
    )


# name -> (operator, strength * h); those with p = 1 are convex.
PENALTIES: dict[str, tuple[Operator, Operator]] = {
    **{f"lp {p:.2f}": lp(p) for p in POWERS},
    **{f"group lp {p:.2f}": group_lp(p) for p in POWERS},
    **{f"singular lp {p:.2f}": singular_lp(p) for p in POWERS},
    "sparse group 1.00": (
        lambda c: sparse_group_threshold(c, STRENGTH, GROUP),
        lambda c: STRENGTH * c.abs().sum() + GROUP * math.sqrt(COLUMNS) * row_norms(c).sum(),
    ),
}
CONVEX = [name for name in PENALTIES if name.endswith("1.00")]


def objective(x: torch.Tensor, c: torch.Tensor, penalty: Operator) -> float:
    return (0.5 * (x - c).square().sum() + penalty(x)).item()


# ------------------------------------------------------------------------------------------------------ known answers


def test_known_answers():
    c = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0])
    assert soft_threshold(c, 0.5).tolist() == [-1.5, 0, 0, 0, 2.5]
    assert hard_threshold(c, 0.5).tolist() == [-2, 0, 0, 0, 3], "kept above sqrt(2 * 0.5) = 1"
    # |c_1| = 5, |g| = 4: factor 1 - 0.5 * 2 / 5; |c_2| = 1: gone.
    rows = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert group_soft_threshold(rows, 0.5).tolist() == [pytest.approx([2.4, 3.2, 0, 0]), [0, 0, 0, 0]]
    assert group_soft_threshold(torch.tensor([3.0, -0.2]), 0.5).tolist() == pytest.approx([2.5, 0]), (
        "units of one number"
    )
    diagonal = torch.diag(torch.tensor([3.0, 1.0, 0.25]))
    assert torch.allclose(nuclear_threshold(diagonal, 0.5), torch.diag(torch.tensor([2.5, 0.5, 0.0])), atol=1e-6)
    assert torch.allclose(rank_truncation(diagonal, 1), torch.diag(torch.tensor([3.0, 0.0, 0.0])), atol=1e-6)


@pytest.mark.parametrize("p", POWERS)
def test_no_strength_changes_nothing_and_much_leaves_nothing(p):
    c = torch.cat([gaussian((50,), "none"), torch.zeros(3, dtype=torch.float64)])
    assert torch.allclose(lp_threshold(c, 0.0, p), c, atol=1e-12)
    assert lp_threshold(c, 1e6, p).count_nonzero() == 0
    assert torch.allclose(group_lp_threshold(c.view(-1, 1), 0.0, p), c.view(-1, 1), atol=1e-12)
    assert singular_lp_threshold(gaussian((4, 3), "much"), 1e6, p).count_nonzero() == 0


@settings(max_examples=60, deadline=None)
@given(
    p=st.sampled_from(POWERS),
    strength=st.floats(1e-6, 10),
    c=st.lists(st.floats(-20, 20), min_size=1, max_size=20),
)
def test_scalar_operators_beat_every_grid_point(p, strength, c):
    values = torch.tensor(c, dtype=torch.float64)
    found = lp_threshold(values, strength, p)
    assert (found.sign() * values.sign() >= 0).all() and (found.abs() <= values.abs() + 1e-12).all()

    def cost(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - values).square() + strength * ((x != 0).double() if p == 0 else x.abs().pow(p))

    grid = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None] * values.abs().clamp(min=1e-3)
    assert (cost(found) <= cost(grid).min(dim=0).values + 1e-9).all()


@pytest.mark.parametrize("p", POWERS[:3])
def test_jump_of_the_lp_operator_is_where_the_formula_puts_it(p):
    strength = 0.7
    jump = (2 - p) / (2 - 2 * p) * (2 * (1 - p) * strength) ** (1 / (2 - p))
    below, above = lp_threshold(torch.tensor([jump - 1e-9, jump + 1e-9], dtype=torch.float64), strength, p)
    assert below == 0 and above.item() == pytest.approx((2 * (1 - p) * strength) ** (1 / (2 - p)), rel=1e-6)


def test_float32_stays_float32_and_exact_over_magnitudes():
    c = torch.logspace(-6, 6, 200)
    for p in POWERS:
        for strength in (1e-30, 1e-12, 1e-4, 1.0):
            found = lp_threshold(c, strength, p)
            assert found.dtype == torch.float32 and found.isfinite().all()
            assert torch.allclose(found, lp_threshold(c.double(), strength, p).float(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- every penalty, in every basis


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("rule", ["canonical", "dct", "random", "svd", "units"])
def test_operator_in_a_basis_minimises_the_penalty_of_the_coefficients(rule, name):
    operator, penalty = PENALTIES[name]
    weight = gaussian((ROWS, COLUMNS), "weight")
    basis = bases(rule, {"w": (ROWS, COLUMNS)}, seed=2, weights={"w": gaussian((ROWS, COLUMNS), "other")})["w"]
    found = proximal_in_basis(operator, basis, weight)
    # The objective in weight space, h(B x): coefficients are made exactly sparse, for p = 0 counts them.
    best = objective(operator(basis.analyse(weight)), basis.analyse(weight), penalty)
    assert torch.allclose(basis.analyse(found), operator(basis.analyse(weight)), atol=1e-12)
    directions = gaussian((60, ROWS, COLUMNS), "directions")
    for size in (1e-4, 1e-2, 0.3, 2.0):
        for direction in directions:
            assert objective(basis.analyse(found + size * direction), basis.analyse(weight), penalty) >= best - 1e-9
    for rival in (weight, torch.zeros_like(weight), 0.5 * weight, 0.9 * found, 1.1 * found):
        assert objective(basis.analyse(rival), basis.analyse(weight), penalty) >= best - 1e-9


@pytest.mark.parametrize("name", PENALTIES)
def test_operator_beats_rivals_of_its_own_structure(name):
    # Perturbations of a dense kind say little about p = 0: these keep entries, rows or singular values away.
    operator, penalty = PENALTIES[name]
    c = gaussian((ROWS, COLUMNS), "structure")
    best = objective(operator(c), c, penalty)
    u, sigma, vh = torch.linalg.svd(c, full_matrices=False)
    for draw in range(300):
        keep = torch.rand(ROWS, COLUMNS, generator=generator(draw, "keep"), dtype=torch.float64)
        scale = 1 if draw % 2 else keep
        rivals = [c * (keep > 0.4) * scale, c * (keep[:, :1] > 0.4) * (scale if draw % 2 else keep[:, :1])]
        rivals.append(u * (sigma * (keep[0] > 0.4) * (1 if draw % 2 else keep[1])) @ vh)
        assert all(objective(rival, c, penalty) >= best - 1e-9 for rival in rivals)


@pytest.mark.parametrize("name", CONVEX)
def test_convex_operators_pass_the_certificate_of_strong_convexity(name):
    # F(x) >= F(x*) + 1/2 |x - x*|^2 for every x, so any x that is better, or too good for its distance, refutes x*.
    operator, penalty = PENALTIES[name]
    c = gaussian((ROWS, COLUMNS), "convex")
    found = operator(c)
    best = objective(found, c, penalty)

    def excess(x: torch.Tensor) -> float:
        return objective(x, c, penalty) - best - 0.5 * (x - found).square().sum().item()

    for size in (1e-3, 0.1, 1.0, 10.0):
        assert min(excess(found + size * d) for d in gaussian((200, ROWS, COLUMNS), "x")) >= -1e-9
    result = minimize(
        lambda x: objective(torch.from_numpy(x).reshape(ROWS, COLUMNS), c, penalty),
        c.flatten().numpy(),
        method="Powell",
    )
    assert excess(torch.from_numpy(result.x).reshape(ROWS, COLUMNS)) >= -1e-9


def test_operators_treat_leading_axes_one_by_one():
    stack = gaussian((3, 6, 2, 2, 2), "stack")
    for operator in (group_soft_threshold, nuclear_threshold):
        assert torch.allclose(
            operator(stack, 0.4, leading=1), torch.stack([operator(w, 0.4) for w in stack]), atol=1e-12
        )
    truncated = torch.stack([rank_truncation(w, 2) for w in stack])
    assert torch.allclose(rank_truncation(stack, 2, leading=1), truncated, atol=1e-12)
    both = torch.stack([sparse_group_threshold(w, 0.2, 0.1) for w in stack])
    assert torch.allclose(sparse_group_threshold(stack, 0.2, 0.1, leading=1), both, atol=1e-12)


def test_strength_per_coordinate_is_the_metric_of_adam():
    c, metric = gaussian((6, 3), "adam"), gaussian((6, 3), "metric").abs() + 0.1
    for p in POWERS:
        each = [lp_threshold(x, 0.3 / m.item(), p) for x, m in zip(c.flatten(), metric.flatten(), strict=True)]
        assert torch.allclose(lp_threshold(c, 0.3 / metric, p).flatten(), torch.stack(each))
    per_row = torch.linspace(0, 1, 6, dtype=torch.float64)
    rows = torch.stack([group_soft_threshold(c[j : j + 1], s.item())[0] for j, s in enumerate(per_row)])
    assert torch.allclose(group_soft_threshold(c, per_row), rows)


# --------------------------------------------------------------------------------------------------- units and low rank


def test_row_norms_ignore_bases_of_the_other_axes_but_not_of_the_rows():
    for shape in ((12, 16), (12, 4, 3, 3)):
        weight = gaussian(shape, "norms")
        for rule in ("dct@in", "random@in", "hadamard@in"):
            basis = bases(rule, {"w": shape}, weights={"w": weight})["w"]
            assert torch.allclose(row_norms(basis.analyse(weight)), row_norms(weight), atol=1e-12)
            shrunk = proximal_in_basis(lambda c: group_soft_threshold(c, 0.3), basis, weight)
            assert torch.allclose(shrunk, group_soft_threshold(weight, 0.3), atol=1e-12), "unit pruning commutes"
        mixed = bases("random@out", {"w": shape})["w"].analyse(weight)
        assert (row_norms(mixed) - row_norms(weight)).abs().max() > 0.1
        assert torch.allclose(row_reflection(weight).analyse(weight).flatten(1)[:, 0], row_norms(weight))


@pytest.mark.parametrize("shape", [(9, 14), (6, 3, 2, 2)])
def test_truncated_svd_is_one_shot_magnitude_pruning_in_the_svd_basis(shape):
    weight = gaussian(shape, "truncate")
    basis = svd(weight)
    coefficients = basis.analyse(weight)
    for kept in (0, 1, 4):
        mask = torch.zeros(coefficients.numel(), dtype=torch.bool)
        mask[coefficients.flatten().abs().topk(kept).indices] = True
        assert torch.equal(mask.view(shape), low_rank_mask(shape, kept, "diagonal"))
        pruned = basis.synthesise(coefficients * mask.view(shape))
        assert torch.allclose(pruned, rank_truncation(weight, kept), atol=1e-11)
        hard = proximal_in_basis(lambda c, k=kept: rank_truncation(c, k), canonical(len(shape)), weight)
        assert torch.allclose(pruned, hard, atol=1e-11)


@pytest.mark.parametrize("form", LOW_RANK_FORMS)
@pytest.mark.parametrize("r", [0, 1, 3, 8])
def test_low_rank_tickets_have_at_most_that_rank_whatever_is_trained(form, r):
    basis = svd(gaussian((8, 11), "init"))
    mask = low_rank_mask((8, 11), r, form)
    assert mask.sum() == {"diagonal": r, "block": r * r, "row": 11 * r}[form]
    trained = gaussian((8, 11), "trained")
    weight = basis.synthesise(trained * mask)
    assert rank(weight) == r
    pairs = {"diagonal": r * (8 + 11), "block": r * (8 + 11), "row": 8 * r + (121 if r else 0)}[form]
    assert basis.stored_for(mask) == pairs
    assert stable_rank(weight) <= r + 1e-9


def test_rank_and_stable_rank_known_answers():
    assert rank(torch.eye(6)) == 6 and stable_rank(torch.eye(6)) == pytest.approx(6)
    outer = torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 8))
    assert rank(outer) == 1 and stable_rank(outer) == pytest.approx(1)
    assert stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(1.5)
    assert rank(torch.zeros(3, 4)) == 0 and stable_rank(torch.zeros(3, 4)) == 0
    assert rank(gaussian((6, 3, 2, 2), "conv")) == 6


def test_stored_numbers_of_factors():
    sizes = [(300, 784), (100, 300), (10, 100)]
    assert [break_even_rank(*size) for size in sizes] == [216, 75, 9]
    assert factorised_numbers(300, 784, 20) == 21_680
    assert factorised_numbers(300, 784, 20) / (300 * 784) == pytest.approx(0.092, abs=5e-4)
    for n, m in sizes:
        r = break_even_rank(n, m)
        assert factorised_numbers(n, m, r) <= n * m < factorised_numbers(n, m, r + 1)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_bad_input_says_what_is_valid():
    matrix = torch.ones(3, 4)
    with pytest.raises(InputError, match=r"unknown penalty power p 0\.3.*valid: 0, 1/2, 2/3, 1"):
        lp_threshold(matrix, 1.0, 0.3)
    for operator in (soft_threshold, hard_threshold, group_soft_threshold, nuclear_threshold):
        with pytest.raises(InputError, match="at least 0, not -1"):
            operator(matrix, -1.0)
    with pytest.raises(InputError, match="at least 0, not nan"):
        soft_threshold(matrix, math.nan)
    with pytest.raises(InputError, match=r"rank of a 3 x 4 matrix lies in 0\.\.3, not at 4"):
        rank_truncation(matrix, 4)
    with pytest.raises(InputError, match=r"lies in 0\.\.3, not at -1"):
        low_rank_mask((3, 4), -1, "row")
    with pytest.raises(InputError, match="not at 5"):
        factorised_numbers(3, 4, 5)
    with pytest.raises(InputError, match="unknown low-rank form 'rows', did you mean 'row'"):
        low_rank_mask((3, 4), 1, "rows")
    with pytest.raises(InputError, match=r"a matrix is needed after 0 batch axes, not a tensor of shape \(3,\)"):
        nuclear_threshold(torch.ones(3), 0.1)


# ------------------------------------------------------------------------------------------------ penalised training

APPLIED: dict[str, tuple[Penalty, Operator]] = {
    "l1": (Penalty("l1", 0.6), lambda c: soft_threshold(c, 0.3)),
    "l1/2": (Penalty("l1", 0.6, p=0.5), lambda c: lp_threshold(c, 0.3, 0.5)),
    "group": (Penalty("group", 0.2), lambda c: group_soft_threshold(c, 0.1)),
    "group l0": (Penalty("group", 0.2, p=0), lambda c: group_lp_threshold(c, 0.1, 0)),
    "sparse-group": (Penalty("sparse-group", 0.2, 0.4), lambda c: sparse_group_threshold(c, 0.1, 0.2)),
    "nuclear": (Penalty("nuclear", 0.8), lambda c: nuclear_threshold(c, 0.4)),
    "rank": (Penalty("rank", rank=2), lambda c: rank_truncation(c, 2)),
}


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 3, 3)])
def test_a_penalty_is_its_operator_at_step_size_times_weight(name: str, shape: tuple[int, ...]) -> None:
    penalty, operator = APPLIED[name]
    stack = gaussian((3, *shape), "penalty")
    torch.testing.assert_close(penalty.apply(stack[0], 0.5), operator(stack[0]), rtol=0, atol=1e-14)
    # Replicates of a stack are treated each by itself, to the last bit.
    together = penalty.apply(stack, 0.5, leading=1)
    for one, alone in zip(together, stack, strict=True):
        assert torch.equal(one, penalty.apply(alone.unsqueeze(0), 0.5, leading=1)[0])
        torch.testing.assert_close(one, operator(alone), rtol=0, atol=1e-14)


def test_a_rank_above_a_tensors_own_leaves_it_as_it_is() -> None:
    weight = gaussian((3, 5), "full rank")
    torch.testing.assert_close(Penalty("rank", rank=4).apply(weight, 0.1), weight, rtol=0, atol=1e-14)


@pytest.mark.parametrize("penalty", [Penalty("nuclear", 1.0), Penalty("rank", rank=1)])
def test_penalties_on_singular_values_leave_divergence_to_be_reported(penalty: Penalty) -> None:
    weight = gaussian((3, 5), "diverged")
    weight[1, 2] = math.nan
    assert penalty.apply(weight, 0.1).isnan().sum() == 1


def test_a_penalty_chooses_its_tensors() -> None:
    names = ("1.weight", "3.weight", "5.weight")
    assert Penalty("l1", 1.0).chosen(names) == names[:2]
    assert Penalty("l1", 1.0, tensors="all").chosen(names) == names
    assert Penalty("l1", 1.0, tensors=("3.weight",)).chosen(names) == ("3.weight",)
    with pytest.raises(InputError, match=r"unknown penalised tensor .7.weight.*valid: 1.weight"):
        Penalty("l1", 1.0, tensors=("7.weight",)).chosen(names)


def test_a_penalty_has_a_repr_that_tells_every_field_for_the_stores_key() -> None:
    # Two penalties with one repr would share a stored training.
    different = [penalty for penalty, _ in APPLIED.values()] + [Penalty("l1", 0.6, tensors="all")]
    assert len({repr(penalty) for penalty in different}) == len(different)
    assert eval(repr(different[1])) == different[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "lasso"}, "unknown penalty 'lasso'"),
        ({"kind": "l1", "weight": -1.0}, "weight is finite and at least 0, not -1"),
        ({"kind": "l1", "weight": math.nan}, "weight is finite and at least 0, not nan"),
        ({"kind": "sparse-group", "group_weight": math.inf}, "group_weight is finite and at least 0, not inf"),
        ({"kind": "rank"}, "a rank to train at is at least 1, not 0"),
        ({"kind": "l1", "p": 0.7}, "unknown penalty power p 0.7"),
        ({"kind": "sparse-group", "p": 0.5}, "'sparse-group' has no power p=0.5"),
        ({"kind": "l1", "tensors": "hidden"}, "unknown choice of tensors 'hidden'"),
    ],
)
def test_a_penalty_that_means_nothing_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Penalty(**fields)
