"""Bases: orthonormality, round trips and the laws that make an orthonormal basis the right one."""

import copy
import json
import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from scipy.stats import kstest

from lthlib.axes import FIXED, axis_matrix, fixed_axis, given_axis
from lthlib.basis import (
    Kronecker,
    bases,
    canonical,
    energy_curve,
    energy_share,
    from_json,
    reflect,
    row_reflection,
    svd,
    valid_rules,
)
from lthlib.errors import InputError
from lthlib.randomness import generator

LINEAR = {"1.weight": (30, 64), "3.weight": (12, 30), "5.weight": (10, 12)}
CONVOLUTIONAL = {"conv.weight": (8, 3, 3, 3), "shortcut.weight": (4, 8, 1, 1), "wide.weight": (6, 4, 4, 2)}
IMAGES = {"linear": (1, 8, 8), "convolutional": (3, 8, 8)}
SHAPES = {"linear": LINEAR, "convolutional": CONVOLUTIONAL}
# Every rule that fits, on both kinds of network.
FITTING = [
    (rule, net)
    for net in SHAPES
    for rule in valid_rules()
    if not (net == "linear" and rule.endswith("@kernel")) and not (net == "convolutional" and rule.endswith("@input"))
]


def gaussian(shape: tuple[int, ...], *purpose: str | int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test", *purpose))


def assigned(rule: str, net: str, seed: int = 0) -> tuple[dict, dict[str, torch.Tensor]]:
    weights = {name: gaussian(shape, name) for name, shape in SHAPES[net].items()}
    return bases(rule, SHAPES[net], IMAGES[net], seed, weights), weights


# ------------------------------------------------------------------------------------------- matrices of one axis


@pytest.mark.parametrize("n", [3, 10, 16, 100, 300, 784])
@pytest.mark.parametrize("kind", FIXED)
def test_rows_are_orthonormal(kind, n):
    matrix = axis_matrix(kind, (n,), seed=1, stream="layer/0")
    assert matrix.dtype == torch.float64 and matrix.shape == (n, n)
    assert (matrix @ matrix.T - torch.eye(n, dtype=torch.float64)).abs().max() < 1e-12


def test_known_matrices():
    n = 8
    k, i = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    cosines = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)).double() * math.sqrt(2 / n)
    cosines[0] /= math.sqrt(2)
    assert torch.allclose(axis_matrix("dct", (n,)), cosines, atol=1e-6)
    half = math.sqrt(0.5)
    haar4 = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [half, -half, 0, 0], [0, 0, half, -half]]
    assert torch.allclose(axis_matrix("haar", (4,)).abs(), torch.tensor(haar4, dtype=torch.float64).abs())
    hadamard = axis_matrix("hadamard", (784,))
    # 784 = 512 + 256 + 16: three blocks, flat inside, nothing outside.
    assert hadamard[:512, :512].abs().allclose(torch.tensor(512**-0.5, dtype=torch.float64))
    assert hadamard[768:, 768:].abs().allclose(torch.tensor(0.25, dtype=torch.float64))
    assert hadamard.count_nonzero() == 512**2 + 256**2 + 16**2


def test_constants_fall_on_one_coefficient_of_dct_and_haar():
    for kind in ("dct", "haar"):
        constant = axis_matrix(kind, (16,)) @ torch.ones(16, dtype=torch.float64)
        assert constant[0].item() == pytest.approx(4) and constant[1:].abs().max() < 1e-12


def test_random_matrix_has_the_haar_law():
    # Haar measure: every entry has variance 1/n and mean 0, the diagonal too (LAPACK's signs alone would bias it).
    n, draws = 12, 400
    entries = torch.stack([axis_matrix("random", (n,), seed, "law") for seed in range(draws)])
    assert entries.diagonal(dim1=1, dim2=2).mean().abs() < 4 / math.sqrt(n * n * draws)
    assert entries.square().mean(dim=0).sub(1 / n).abs().max() < 6 * math.sqrt(2 / draws) / n
    axis_matrix.cache_clear()


def test_random_is_fixed_by_seed_and_stream_alone():
    first = axis_matrix("random", (20,), 3, "a/0")
    axis_matrix.cache_clear()
    assert torch.equal(first, axis_matrix("random", (20,), 3, "a/0"))
    assert not torch.equal(first, axis_matrix("random", (20,), 4, "a/0"))
    assert not torch.equal(first, axis_matrix("random", (20,), 3, "a/1"))
    chosen, _ = assigned("random", "linear")
    square = bases("random", {"a": (16, 16), "b": (16, 16)}, (1, 4, 4))
    matrices = [square["a"].out_matrix, square["a"].in_matrix, square["b"].out_matrix, square["b"].in_matrix]
    assert all(not torch.equal(x, y) for i, x in enumerate(matrices) for y in matrices[:i])
    assert chosen["1.weight"].in_matrix.shape == (64, 64)


def test_image_axis_is_the_two_dimensional_transform_of_each_channel():
    images = gaussian((5, 3, 8, 4), "images")
    matrix = bases("dct@input", {"fc": (7, 96)}, (3, 8, 4))["fc"].in_matrix
    expected = torch.from_numpy(dctn(images.numpy(), axes=(2, 3), norm="ortho"))
    assert torch.allclose((images.flatten(1) @ matrix.T).reshape(5, 3, 8, 4), expected, atol=1e-12)


def test_identity_axes_are_none():
    assert fixed_axis("haar", (7,)) is None and fixed_axis("dct", (1, 1), span=2) is None
    assert fixed_axis("haar", (-3, 7, 9)) is None and fixed_axis("haar", (-3, 7, 8)) is not None
    assert fixed_axis("dct", (8,)) is fixed_axis("dct", (8,)), "equal recipes share one cast"


def test_bad_matrices_are_refused():
    with pytest.raises(InputError, match="unknown basis matrix 'dtc', did you mean 'dct'"):
        axis_matrix("dtc", (8,))
    with pytest.raises(InputError, match="sizes of at least 1"):
        axis_matrix("dct", (0,))
    with pytest.raises(InputError, match="orthonormal rows"):
        given_axis(torch.ones(3, 3))
    with pytest.raises(InputError, match=r"square, not of shape \(2, 3\)"):
        given_axis(torch.ones(2, 3))


# ------------------------------------------------------------------------------------------------ every rule that fits


@pytest.mark.parametrize(("rule", "net"), [pair for pair in FITTING if pair != ("haar@kernel", "convolutional")])
def test_round_trip_parseval_adjoint_and_batches(rule, net):
    chosen, weights = assigned(rule, net)
    assert list(chosen) == list(weights)
    for name, weight in weights.items():
        basis, other = chosen[name], gaussian(tuple(weight.shape), name, "other")
        coefficients = basis.analyse(weight)
        assert coefficients.shape == weight.shape and coefficients.dtype == weight.dtype
        assert (basis.synthesise(coefficients) - weight).abs().max() < 1e-12
        assert (basis.analyse(basis.synthesise(other)) - other).abs().max() < 1e-12
        assert abs(coefficients.norm() - weight.norm()) < 1e-11
        assert abs((coefficients * other).sum() - (weight * basis.synthesise(other)).sum()) < 1e-10
        stack = torch.stack([weight, -2 * weight, other])
        # A view as tensors come from training: leading axes in the middle of memory.
        for batch in (stack, stack.movedim(0, -1).contiguous().movedim(-1, 0)):
            assert torch.allclose(basis.analyse(batch), torch.stack([basis.analyse(w) for w in batch]), atol=1e-12)
        twice = basis.analyse(stack[None].expand(2, -1, *weight.shape))
        assert torch.allclose(twice[1, 2], basis.analyse(other), atol=1e-12)


@pytest.mark.parametrize(("rule", "net"), [("dct", "linear"), ("random", "convolutional"), ("units", "convolutional")])
def test_gradient_of_the_coefficients_is_the_analysed_gradient(rule, net):
    chosen, weights = assigned(rule, net)
    for name, weight in weights.items():
        leaf = chosen[name].analyse(weight).requires_grad_()
        target = gaussian(tuple(weight.shape), name, "target")
        (chosen[name].synthesise(leaf) - target).square().sum().mul(0.5).backward()
        assert torch.allclose(leaf.grad, chosen[name].analyse(weight - target), atol=1e-11)


@pytest.mark.parametrize("rule", valid_rules())
def test_saved_record_gives_the_same_basis(rule):
    net = "convolutional" if rule.endswith("@kernel") else "linear"
    if rule == "haar@kernel":
        chosen = bases(rule, {"c": (2, 2, 4, 4)}, (2, 4, 4))
        weights = {"c": gaussian((2, 2, 4, 4), "c")}
    else:
        chosen, weights = assigned(rule, net, seed=5)
    for name, basis in chosen.items():
        again = from_json(json.loads(json.dumps(basis.to_json())), basis.tensors())
        assert torch.equal(again.analyse(weights[name]), basis.analyse(weights[name]))
        assert (again.name, again.stored_numbers) == (basis.name, basis.stored_numbers)
        assert bool(basis.tensors()) == bool(basis.stored_numbers), "only fitted bases are written out"
        assert torch.equal(copy.deepcopy(basis).analyse(weights[name]), basis.analyse(weights[name]))


def test_damaged_records_are_refused():
    with pytest.raises(InputError, match="lacks 'axes'"):
        from_json({"type": "kronecker", "name": "dct"}, {})
    with pytest.raises(InputError, match="lacks 'reflectors'"):
        from_json({"type": "row_reflection", "name": "units"}, {})
    with pytest.raises(InputError, match="unknown basis type 'kroneker', did you mean 'kronecker'"):
        from_json({"type": "kroneker", "name": "dct", "axes": []}, {})


def test_canonical_is_a_no_op():
    chosen, weights = assigned("canonical", "convolutional")
    for name, basis in chosen.items():
        assert basis.is_identity and basis.stored_numbers == 0 and basis.name == "canonical"
        assert basis.analyse(weights[name]) is weights[name] and basis.synthesise(weights[name]) is weights[name]
    matrix = canonical(2)
    assert matrix.out_matrix is None and matrix.in_matrix is None and matrix.matrix_like(1, torch.ones(1)) is None


# -------------------------------------------------------------------------------------------------------- the formula


def test_kronecker_formula_on_matrices_and_kernels():
    chosen, weights = assigned("random", "linear")
    basis, weight = chosen["3.weight"], weights["3.weight"]
    b_out, b_in = basis.out_matrix, basis.in_matrix
    coefficients = basis.analyse(weight)
    assert torch.allclose(coefficients, b_out @ weight @ b_in.T, atol=1e-12)
    assert torch.allclose(coefficients.flatten(), torch.kron(b_out, b_in) @ weight.flatten(), atol=1e-12)
    x = gaussian((30,), "activation")
    assert torch.allclose(b_out.T @ (coefficients @ (b_in @ x)), weight @ x, atol=1e-12)

    chosen, weights = assigned("dct", "convolutional")
    weight, factors = weights["wide.weight"], [axis_matrix("dct", (n,)) for n in (6, 4, 4, 2)]
    expected = torch.einsum("ai,bj,ck,dl,ijkl->abcd", *factors, weight)
    assert torch.allclose(chosen["wide.weight"].analyse(weight), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(1, 40), kind=st.sampled_from(FIXED), seed=st.integers(0, 99))
def test_any_size_round_trips(n, m, kind, seed):
    basis = Kronecker(kind, (fixed_axis(kind, (n,), 1, seed, "o"), fixed_axis(kind, (m,), 1, seed, "i")))
    weight = gaussian((n, m), "any", n, m)
    assert torch.allclose(basis.synthesise(basis.analyse(weight)), weight, atol=1e-12)
    assert basis.analyse(weight).norm().item() == pytest.approx(weight.norm().item())


# ------------------------------------------------------------------------------------------------- scopes of the rules


def test_scopes_choose_the_axes():
    def names(rule, net):
        return {tensor: basis.name for tensor, basis in assigned(rule, net)[0].items()}

    def axes(rule, net, tensor):
        return [None if axis is None else axis.sizes for axis in assigned(rule, net)[0][tensor].axes]

    only_first = {"1.weight": "dct@input", "3.weight": "canonical", "5.weight": "canonical"}
    assert names("dct@input", "linear") == only_first
    assert axes("dct@input", "linear", "1.weight") == [None, (-1, 8, 8)]
    assert axes("dct", "linear", "1.weight") == [(30,), (-1, 8, 8)] and axes("dct", "linear", "3.weight")[1] == (30,)
    assert axes("random@input", "linear", "1.weight") == [None, (64,)], "the control mixes the whole axis"
    assert axes("dct@out", "linear", "5.weight") == [(10,), None]
    assert axes("hadamard@in", "convolutional", "conv.weight") == [None, (3,), None, None]
    assert axes("dct@kernel", "convolutional", "conv.weight") == [None, None, (3, 3)]
    assert names("dct@kernel", "convolutional")["shortcut.weight"] == "canonical", "1x1 kernels have one basis"
    assert assigned("dct@all", "linear")[0]["1.weight"].name == "dct"


def test_bad_rules_say_what_fits():
    with pytest.raises(InputError, match=r"unknown basis rule 'dtc', did you mean 'dct'\? \(valid: canonical, dct"):
        bases("dtc", LINEAR, (1, 8, 8))
    with pytest.raises(InputError, match="unknown basis rule 'units@in'"):
        bases("units@in", LINEAR, (1, 8, 8))
    with pytest.raises(InputError, match=r"'dct@input' needs a linear first layer.*\(8, 3, 3, 3\)"):
        bases("dct@input", CONVOLUTIONAL, (3, 8, 8))
    with pytest.raises(InputError, match=r"'dct@input' needs a linear first layer.*\(3, 8, 8\).*\(30, 64\)"):
        bases("dct@input", LINEAR, (3, 8, 8))
    with pytest.raises(InputError, match=r"'dct@kernel' leaves every tensor as it is.*\(30, 64\)"):
        bases("dct@kernel", LINEAR, (1, 8, 8))
    with pytest.raises(InputError, match=r"'haar@kernel' leaves every tensor as it is.*\(8, 3, 3, 3\)"):
        bases("haar@kernel", {"conv": (8, 3, 3, 3)}, (3, 8, 8))
    with pytest.raises(InputError, match=r"'dct' does not fit 'a' of shape \(4, 4, 4\)"):
        bases("dct", {"a": (4, 4, 4)}, (1, 8, 8))
    with pytest.raises(InputError, match=r"'svd' is fitted to weights, and none were given for '1.weight'"):
        bases("svd", LINEAR, (1, 8, 8))
    with pytest.raises(InputError, match=r"needs weights of shape \(30, 64\) for '1.weight', not \(3,\)"):
        bases("units", LINEAR, (1, 8, 8), weights={"1.weight": torch.ones(3)})
    with pytest.raises(InputError, match="has nan or infinity"):
        bases("svd", {"a": (2, 2)}, (1, 2, 1), weights={"a": torch.full((2, 2), math.nan)})


# ------------------------------------------------------------------------------------------------- bases of the weights


def test_svd_basis_is_diagonal_and_counted():
    weight = gaussian((12, 30), "svd")
    basis = svd(weight)
    coefficients = basis.analyse(weight)
    diagonal = coefficients.diagonal()
    assert torch.allclose(diagonal, torch.linalg.svdvals(weight), atol=1e-11)
    assert coefficients.square().sum().item() == pytest.approx(diagonal.square().sum().item()), "nothing off it"
    assert basis.stored_numbers == 12**2 + 30**2
    mask = torch.zeros(12, 30, dtype=torch.bool)
    mask[range(5), range(5)] = True
    assert basis.stored_for(mask) == 5 * (12 + 30), "a rank-5 ticket needs five singular pairs"
    assert svd(weight, "in").stored_numbers == 30**2 and svd(weight, "out").out_matrix.shape == (12, 12)


def test_svd_basis_of_a_convolution_is_that_of_its_matrix():
    weight = gaussian((6, 4, 3, 3), "svd-conv")
    coefficients = svd(weight).analyse(weight).flatten(1)
    assert torch.allclose(coefficients.diagonal(), torch.linalg.svdvals(weight.flatten(1)), atol=1e-11)
    assert coefficients.square().sum().item() == pytest.approx(coefficients.diagonal().square().sum().item())


@pytest.mark.parametrize("shape", [(12, 30), (6, 4, 3, 3)])
def test_unit_basis_has_one_coefficient_a_row(shape):
    weight = gaussian(shape, "units")
    weight[2] = 0
    weight[3] = 0
    weight[3].view(-1)[0] = 2.5  # already on the first axis
    weight[4] = 0
    weight[4].view(-1)[0] = -2.5
    weight[5].view(-1)[0] = 1e9  # close to the first axis: 1 - w_1/|w| would cancel
    basis = row_reflection(weight)
    coefficients = basis.analyse(weight).flatten(1)
    norms = weight.flatten(1).norm(dim=1)
    assert torch.allclose(coefficients[:, 0], norms, rtol=1e-12)
    assert (coefficients[:, 1:].abs() <= 1e-12 * norms[:, None]).all()
    rows = weight[0].numel()
    assert basis.stored_numbers == rows * (shape[0] - 2), "no reflector for the zero row and the aligned one"
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[0].view(-1)[0] = mask[2].view(-1)[0] = True
    assert basis.stored_for(mask) == rows
    mask[:] = False
    mask[(0,) * len(shape)] = True
    kept = basis.synthesise(basis.analyse(weight) * mask)
    assert torch.allclose(kept[0], weight[0], atol=1e-12) and kept[1:].count_nonzero() == 0, "one number, one unit"


def test_magnitude_pruning_of_unit_coefficients_is_pruning_by_row_norm():
    weight = gaussian((20, 15), "prune") * torch.linspace(0.1, 3, 20, dtype=torch.float64)[:, None]
    coefficients = row_reflection(weight).analyse(weight)
    top = coefficients.abs().flatten().topk(8).indices
    assert set((top // 15).tolist()) == set(weight.norm(dim=1).topk(8).indices.tolist()) and (top % 15 == 0).all()


def test_reflection_is_an_involution():
    vectors = torch.nn.functional.normalize(gaussian((4, 5), "v"), dim=1)
    weight = gaussian((3, 4, 5), "w")
    assert torch.allclose(reflect(reflect(weight, vectors), vectors), weight, atol=1e-13)


# --------------------------------------------------------------------------------------------------- dtypes and devices


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("rule", ["dct", "svd", "units"])
def test_dtype_and_device_round_trip(rule, dtype, tolerance, device):
    chosen, weights = assigned(rule, "linear")
    weight = weights["1.weight"].to(device, dtype)
    coefficients = chosen["1.weight"].analyse(weight)
    assert coefficients.dtype == dtype and coefficients.device == weight.device
    assert (chosen["1.weight"].synthesise(coefficients) - weight).abs().max() < tolerance


def test_matrix_is_cast_once_and_outlives_inference_mode():
    basis = Kronecker("dct", (fixed_axis("dct", (6,)), fixed_axis("dct", (5,))))
    with torch.inference_mode():
        basis.analyse(torch.ones(6, 5))
    assert basis.matrix_like(0, torch.ones(1)) is basis.matrix_like(0, torch.ones(1))
    leaf = torch.ones(6, 5, requires_grad=True)
    basis.synthesise(leaf).square().sum().backward()
    assert leaf.grad is not None
    units = row_reflection(gaussian((6, 5), "inference"))
    with torch.inference_mode():
        units.analyse(torch.ones(6, 5))
    units.synthesise(leaf).square().sum().backward()


def test_autocast_leaves_coefficients_at_full_precision():
    chosen, weights = assigned("dct", "linear")
    weight = weights["1.weight"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coefficients = chosen["1.weight"].analyse(weight)
    assert coefficients.dtype == torch.float32 and torch.equal(coefficients, chosen["1.weight"].analyse(weight))


# ---------------------------------------------------------------------------------------------------- energy compaction


def normal_share(q: float) -> float:
    z = NormalDist().inv_cdf(1 - q / 2)
    return 2 * (z * NormalDist().pdf(z) + 1 - NormalDist().cdf(z))


@pytest.mark.parametrize("rule", ["canonical", "dct", "haar", "hadamard", "random"])
def test_gaussian_init_has_one_law_in_every_basis(rule):
    weight = torch.randn(300, 784, dtype=torch.float64, generator=generator(7, "energy"))
    coefficients = bases(rule, {"fc": (300, 784)}, (1, 28, 28))["fc"].analyse(weight)
    assert kstest(coefficients.flatten().numpy(), "norm").pvalue > 0.001
    assert normal_share(0.1) == pytest.approx(0.439, abs=5e-4)
    assert normal_share(0.01) == pytest.approx(0.0845, abs=5e-4)
    assert energy_share({"fc": coefficients}, 0.1) == pytest.approx(normal_share(0.1), abs=0.003)
    assert energy_share({"fc": coefficients}, 0.01) == pytest.approx(normal_share(0.01), abs=0.002)


def test_energy_curve_known_answers():
    fractions, energy = energy_curve([torch.tensor([[3.0, 0.0]]), torch.tensor([-4.0])])
    assert fractions.tolist() == pytest.approx([1 / 3, 2 / 3, 1]) and energy.tolist() == pytest.approx([0.64, 1, 1])
    assert energy_share([torch.tensor([3.0, 4.0])], 0.5) == pytest.approx(0.64)
    with pytest.raises(InputError, match="at least one nonzero"):
        energy_curve({"a": torch.zeros(3)})
    with pytest.raises(InputError, match=r"in \(0, 1\], not at 1.5"):
        energy_share([torch.ones(2)], 1.5)


def test_smooth_weights_are_compacted_by_dct_and_not_by_random():
    i, j = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    bumps = [torch.exp(-((i - a) ** 2 + (j - a) ** 2) * 3).flatten() for a in torch.linspace(0, 1, 20)]
    weight = torch.stack(bumps).double()
    share = {
        rule: energy_share([bases(rule, {"fc": (20, 64)}, (1, 8, 8))["fc"].analyse(weight)], 0.05)
        for rule in ("canonical", "dct@input", "random@input")
    }
    assert share["dct@input"] > 0.9 and share["random@input"] < 0.5 and share["canonical"] < 0.5
