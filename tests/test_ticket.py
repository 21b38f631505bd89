"""A ticket is what it says it is, and a file of it comes back whole or not at all."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lthlib.basis import bases, valid_rules
from lthlib.errors import InputError
from lthlib.masks.controls import random_masks
from lthlib.models.architecture import Architecture, architecture, build
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, dense_ticket, initial_tickets

DIGITS = (1, 8, 8)
TINY = architecture("lenet-6-4", DIGITS, 10)
CONV = architecture("conv-2-w2", DIGITS, 10)
UNSUITED = ("haar@kernel", "hadamard@kernel", "dct@kernel", "random@kernel")


def make(
    rule: str = "canonical",
    density: float = 1.0,
    off: str = "zero",
    dtype: torch.dtype = torch.float32,
    of: Architecture = TINY,
    seed: int = 0,
) -> Ticket:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in initial_state(of, seed).items()}
    ticket = dense_ticket(of, state)
    shapes = {name: tuple(c.shape) for name, c in ticket.coefficients.items()}
    ticket = ticket.in_bases(bases(rule, shapes, of.input_shape, seed, ticket.weights()))
    masks = random_masks(shapes, round(density * ticket.prunable), generator(seed, "test masks"))
    return replace(ticket.with_masks(masks), off=off)  # type: ignore[arg-type]


def same(a: Ticket, b: Ticket) -> None:
    assert (a.architecture, a.off) == (b.architecture, b.off)
    assert list(a.coefficients) == list(b.coefficients) == list(b.masks) == list(b.bases)
    for name, value in a.effective_coefficients().items():
        assert torch.equal(value, b.effective_coefficients()[name])
        assert value.dtype == b.coefficients[name].dtype
        assert torch.equal(a.masks[name], b.masks[name])
        assert torch.equal(a.weights()[name], b.weights()[name])
        assert a.bases[name].to_json() == b.bases[name].to_json()
    assert a.rest.keys() == b.rest.keys()
    assert all(torch.equal(value, b.rest[name]) and value.dtype == b.rest[name].dtype for name, value in a.rest.items())
    assert a.digest() == b.digest()


# -------------------------------------------------------------------------------------------------------- the object


def test_the_dense_canonical_ticket_is_the_network() -> None:
    state = initial_state(CONV, 3)
    ticket = dense_ticket(CONV, state)
    assert (ticket.density, ticket.kept, ticket.free_numbers) == (1.0, ticket.prunable, ticket.prunable)
    assert ticket.stored_numbers == ticket.prunable == sum(c.numel() for c in ticket.coefficients.values())
    assert ticket.state().keys() == state.keys()
    assert all(torch.equal(ticket.state()[name], tensor) for name, tensor in state.items())
    build(CONV).load_state_dict(ticket.state())


@pytest.mark.parametrize("rule", ["canonical", "dct", "units", "svd"])
def test_weights_are_the_adjoint_of_masked_coefficients(rule: str) -> None:
    ticket = make(rule, 0.4, dtype=torch.float64)
    for name, weight in ticket.weights().items():
        masked = torch.where(ticket.masks[name], ticket.coefficients[name], 0.0)
        assert torch.equal(ticket.effective_coefficients()[name], masked)
        torch.testing.assert_close(ticket.bases[name].analyse(weight), masked, rtol=0, atol=1e-13)
    held = replace(ticket, off="init")
    assert all(torch.equal(c, ticket.coefficients[n]) for n, c in held.effective_coefficients().items())


def test_densities_count_every_prunable_coefficient() -> None:
    ticket = make(density=0.25)
    assert ticket.kept == round(0.25 * ticket.prunable)
    assert ticket.density == ticket.kept / ticket.prunable
    by_layer = ticket.layer_densities()
    total = sum(by_layer[name] * mask.numel() for name, mask in ticket.masks.items())
    assert total == pytest.approx(ticket.kept, abs=1e-3)


def test_stored_numbers_are_kept_coefficients_mask_bits_and_fitted_bases() -> None:
    # LeNet 64-6-4-10: 384 + 24 + 40 weights.
    assert make(density=0.5).stored_numbers == 224 + 448 // 32
    assert make("dct", 0.5).stored_numbers == 224 + 14
    assert make("random", 0.5).stored_numbers == 224 + 14
    assert make("svd").stored_numbers == 448 + (6**2 + 64**2) + (4**2 + 6**2) + (10**2 + 4**2)
    one = make("svd")
    masks = {name: torch.zeros_like(mask) for name, mask in one.masks.items()}
    masks["1.weight"][:2, :3] = True
    # Only the rows of U^T and V^T that a kept coefficient uses.
    assert one.with_masks(masks).stored_numbers == 6 + 14 + 2 * 6 + 3 * 64


def test_a_dense_ticket_changes_basis_and_a_pruned_one_cannot() -> None:
    ticket = make(dtype=torch.float64)
    turned = ticket.in_bases(make("dct").bases)
    for name, weight in turned.weights().items():
        torch.testing.assert_close(weight, ticket.weights()[name], rtol=0, atol=1e-13)
    with pytest.raises(InputError, match=r"a ticket of density 0.5 cannot change its basis"):
        make(density=0.5).in_bases(ticket.bases)


def test_masks_that_do_not_fit_are_refused() -> None:
    ticket = make()
    for wrong, found in (
        ({}, "found nothing"),
        ({"1.weight": ticket.masks["1.weight"].float()}, "found torch.float32"),
        ({"1.weight": ticket.masks["1.weight"].T}, r"shape \(6, 64\), found torch.bool \(64, 6\)"),
    ):
        others = {name: mask for name, mask in ticket.masks.items() if name != "1.weight"}
        with pytest.raises(InputError, match=found):
            ticket.with_masks({**others, **wrong})


def test_masks_given_in_another_order_keep_the_networks_order() -> None:
    ticket = make()
    assert list(ticket.with_masks(dict(reversed(ticket.masks.items()))).masks) == list(ticket.coefficients)


def test_a_digest_names_the_content() -> None:
    ticket = make(density=0.5)
    moved = {name: torch.where(ticket.masks[name], c, 9.0) for name, c in ticket.coefficients.items()}
    assert replace(ticket, coefficients=moved).digest() == ticket.digest(), "pruned values are no content"
    assert replace(ticket, coefficients=moved, off="init").digest() != replace(ticket, off="init").digest()
    changed = {**ticket.rest, "1.bias": ticket.rest["1.bias"] + 1}
    others = [
        make(density=0.5, seed=1), make(density=0.4), make("dct", 0.5), replace(ticket, off="init"),
        make(density=0.5, dtype=torch.float64), replace(ticket, rest=changed),
    ]  # fmt: skip
    assert len({ticket.digest(), *(other.digest() for other in others)}) == 7


# ---------------------------------------------------------------------------------------------------------- the file


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=st.sampled_from([rule for rule in valid_rules() if rule not in UNSUITED]),
    density=st.floats(0, 1),
    off=st.sampled_from(["zero", "init"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_a_ticket_comes_back_from_its_file(
    rule: str, density: float, off: str, dtype: torch.dtype, seed: int, tmp_path: Path
) -> None:
    ticket = make(rule, density, off, dtype, seed=seed)
    ticket.save(tmp_path / "ticket.safetensors")
    same(Ticket.load(tmp_path / "ticket.safetensors"), ticket)


@pytest.mark.parametrize("name", ["conv-2-w2", "resnet-8-w2", "vgg-11-w1", "lenet-5-5-5-5-5-5"])
@pytest.mark.parametrize("rule", ["dct", "svd", "units"])
def test_layers_come_back_in_the_networks_order(name: str, rule: str, tmp_path: Path) -> None:
    # The order breaks ties and orders random draws: "11.weight" must not come before "3.weight".
    ticket = make(rule, 0.3, of=architecture(name, DIGITS, 10))
    ticket.save(tmp_path / "t")
    back = Ticket.load(tmp_path / "t")
    same(back, ticket)
    build(ticket.architecture).load_state_dict(back.state())


def test_tied_tensors_and_views_are_saved_as_they_are(tmp_path: Path) -> None:
    ticket = make()
    shared = torch.arange(12.0)
    tied = replace(ticket, rest={**ticket.rest, "a": shared[::2], "b": shared[:6], "c": shared.view(3, 4).T})
    tied.save(tmp_path / "t")
    same(Ticket.load(tmp_path / "t"), tied)


def test_of_pruned_coefficients_nothing_is_stored(tmp_path: Path) -> None:
    wide = architecture("lenet-100-100", DIGITS, 10)
    make(of=wide).save(tmp_path / "dense")
    make(density=0.05, of=wide).save(tmp_path / "sparse")
    ratio = (tmp_path / "sparse").stat().st_size / (tmp_path / "dense").stat().st_size
    assert ratio < 0.05 + 1 / 32 + 0.06


SAVED = {"canonical": 0.5, "svd": 0.5, "units": 0.2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tickets")
    for rule, density in SAVED.items():
        make(rule, density).save(folder / rule)
    return {rule: (folder / rule).read_bytes() for rule in SAVED}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=st.sampled_from(sorted(SAVED)), place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_noticed(
    rule: str, place: float, bits: int, files: dict[str, bytes], tmp_path: Path
) -> None:
    content = bytearray(files[rule])
    content[int(place * len(content))] ^= bits
    (tmp_path / "t").write_bytes(content)
    refused_or_unchanged(tmp_path / "t", rule)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=st.sampled_from(sorted(SAVED)), place=st.integers(0, 3000), bits=st.integers(1, 255))
def test_one_changed_byte_in_the_header_is_noticed(
    rule: str, place: int, bits: int, files: dict[str, bytes], tmp_path: Path
) -> None:
    content = bytearray(files[rule])
    content[place % (8 + int.from_bytes(content[:8], "little"))] ^= bits
    (tmp_path / "t").write_bytes(content)
    refused_or_unchanged(tmp_path / "t", rule)


def refused_or_unchanged(path: Path, rule: str) -> None:
    """White space and the like may change without changing what is read; anything else must be refused."""
    try:
        loaded = Ticket.load(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        same(loaded, make(rule, SAVED[rule]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=st.sampled_from(sorted(SAVED)), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(rule: str, share: float, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(files[rule][: int(share * len(files[rule]))])
    with pytest.raises(InputError, match="is truncated or damaged"):
        Ticket.load(tmp_path / "t")


def test_what_is_no_ticket_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no ticket file '.*absent'"):
        Ticket.load(tmp_path / "absent")
    with pytest.raises(InputError, match="truncated or damaged"):
        Ticket.load(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(InputError, match="holds tensors but no ticket"):
        Ticket.load(tmp_path / "weights")


@pytest.mark.parametrize("header", ["[]", "3", "null", '{"digest": 1}', "{", '"text"', "{}"])
def test_a_header_that_is_no_description_is_refused(header: str, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "t", metadata={"ticket": header})
    with pytest.raises(InputError, match=r"truncated or damaged|is damaged"):
        Ticket.load(tmp_path / "t")


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_loading_runs_no_code_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    torch.save({"ticket": Bomb()}, tmp_path / "torch")
    for name in ("pickle", "torch"):
        with pytest.raises(InputError, match="truncated or damaged"):
            Ticket.load(tmp_path / name)
    # A module named as the architecture is imported when the network is built, not when its file is read.
    (tmp_path / "bomb_on_import.py").write_text("import pathlib; pathlib.Path('exploded').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    own = replace(make(), architecture=Architecture("bomb_on_import:make", DIGITS, 10))
    own.save(tmp_path / "own")
    assert Ticket.load(tmp_path / "own").architecture.name == "bomb_on_import:make"
    assert not (tmp_path / "exploded").exists()


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    from safetensors import safe_open

    make("svd", 0.5).save(tmp_path / "t")
    with safe_open(str(tmp_path / "t"), "pt") as file:
        description = json.loads(file.metadata()["ticket"])
    assert description["architecture"] == {"name": "lenet-6-4", "input_shape": [1, 8, 8], "classes": 10}
    assert description["shapes"] == {"1.weight": [6, 64], "3.weight": [4, 6], "5.weight": [10, 4]}


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file.*choose a writable folder"):
        make().save(tmp_path / "file" / "ticket")


def test_a_failed_save_leaves_the_old_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make(seed=1)
    old.save(tmp_path / "t")

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half a ticket")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match=r"No space left on device \(free some space"):
        make(seed=2).save(tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    same(Ticket.load(tmp_path / "t"), old)


def test_a_ticket_moves_between_devices() -> None:
    ticket = make("svd", 0.5).to("meta")
    assert {t.device.type for t in (*ticket.coefficients.values(), *ticket.masks.values(), *ticket.rest.values())} == {
        "meta"
    }
    if torch.cuda.is_available():
        original = make("dct", 0.5)
        same(original.to("cuda").to("cpu"), original)
        assert original.to("cuda").digest() == original.digest()


def test_nan_survives_a_file(tmp_path: Path) -> None:
    ticket = make()
    ticket.coefficients["1.weight"][0, 0] = math.nan
    ticket.save(tmp_path / "t")
    assert Ticket.load(tmp_path / "t").digest() == ticket.digest()


# ---------------------------------------------------------------------------------------------------- the replicate


def test_a_ticket_knows_its_replicate_and_its_content_does_not(tmp_path: Path) -> None:
    first, second = initial_tickets(TINY, [3, 8])
    assert (first.seed, second.seed) == (3, 8)
    moved = replace(first, seed=8)
    assert moved.digest() == first.digest() != second.digest()
    moved.save(tmp_path / "ticket")
    assert Ticket.load(tmp_path / "ticket").seed == 8
    shapes = {name: tuple(c.shape) for name, c in moved.coefficients.items()}
    turned = moved.in_bases(bases("dct", shapes, TINY.input_shape))
    assert {turned.seed, turned.with_masks(turned.masks).seed, turned.to("cpu").seed} == {8}


def test_a_file_from_before_tickets_knew_their_replicate_is_the_first_ones(tmp_path: Path) -> None:
    from safetensors import safe_open

    ticket = replace(make(density=0.5), seed=4)
    ticket.save(tmp_path / "ticket")
    with safe_open(str(tmp_path / "ticket"), framework="pt") as file:
        header = json.loads(file.metadata()["ticket"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    assert header.pop("seed") == 4
    save_file(tensors, tmp_path / "old", metadata={"ticket": json.dumps(header)})
    old = Ticket.load(tmp_path / "old")
    assert old.seed == 0
    assert old.digest() == ticket.digest()


def test_a_module_is_the_network_of_the_ticket() -> None:
    ticket = make("dct", density=0.5)
    module = ticket.module()
    assert not module.training
    for name, weight in ticket.weights().items():
        assert torch.equal(module.state_dict()[name], weight)
