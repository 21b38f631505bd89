"""What is exported computes what the ticket computes, and says where sparsity brings nothing."""

from pathlib import Path

import pytest
import torch

from lthlib import deployment
from lthlib.basis import svd
from lthlib.errors import InputError
from lthlib.models.architecture import architecture, build
from lthlib.models.initial import initial_state
from lthlib.ticket import Ticket, dense_ticket
from lthlib.training.proximal import low_rank_mask
from lthlib.workbook import export as deploying
from lthlib.workbook.export import Measured, export, honest

SHAPE = (1, 8, 8)


def network(name: str = "lenet-24-16") -> Ticket:
    """A dense ticket whose biases and normalisation are not trivial."""
    net = architecture(name, SHAPE, 10)
    state = initial_state(net, 0)
    source = torch.Generator().manual_seed(1)
    for key, tensor in state.items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            state[key] = tensor + 0.1 + torch.rand(tensor.shape, generator=source)
    return dense_ticket(net, state)


def pruned(ticket: Ticket, density: float = 0.2) -> Ticket:
    source = torch.Generator().manual_seed(2)
    return ticket.with_masks(
        {n: torch.rand(c.shape, generator=source) < density for n, c in ticket.coefficients.items()}
    )


def without_units(ticket: Ticket) -> Ticket:
    """Two units of layer 1 without inputs, three others that nobody reads, and none of layer 2 reads unit 7."""
    masks = {name: mask.clone() for name, mask in ticket.masks.items()}
    first, second, third = masks.values()
    first[:2] = False
    second[:, 4:7] = False
    second[3] = False
    third[:, 5] = False
    return ticket.with_masks(masks)


def low_rank(ticket: Ticket, rank: int) -> Ticket:
    weights = ticket.weights()
    chosen = [name for name in weights if min(weights[name].flatten(1).shape) > 10]
    bases = {**ticket.bases, **{name: svd(weights[name], "out") for name in chosen}}
    masks = {name: low_rank_mask(tuple(weights[name].shape), rank, "row") for name in chosen}
    return ticket.in_bases(bases).with_masks({**ticket.masks, **masks})


def outputs(module: torch.nn.Module, batch: int = 5) -> torch.Tensor:
    images = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return module(images)


def expected(ticket: Ticket) -> torch.Tensor:
    module = build(ticket.architecture)
    module.load_state_dict(ticket.state())
    return outputs(module.eval())


FORMS = {"units": deployment.without_dead_units, "factored": deployment.factored, "csr": deployment.sparse_rows}
TICKETS = {
    "dense": network(),
    "scattered": pruned(network()),
    "units": without_units(pruned(network(), 0.5)),
    "low rank": low_rank(network(), 3),
    "convolutions": pruned(network("conv-2-w4")),
    "convolutions of low rank": low_rank(network("conv-2-w16"), 2),
    "residual": pruned(network("resnet-8-w4")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TICKETS)
def test_every_form_computes_what_the_ticket_computes_and_survives_the_disk(
    form: str, kind: str, tmp_path: Path
) -> None:
    ticket = TICKETS[kind]
    found = FORMS[form](ticket)
    torch.testing.assert_close(outputs(found.module), expected(ticket), rtol=1e-4, atol=1e-4)
    deployment.save(found, tmp_path / "network.safetensors")
    assert torch.equal(outputs(deployment.load(tmp_path / "network.safetensors")), outputs(found.module))


def test_dead_units_are_gone() -> None:
    found = deployment.without_dead_units(TICKETS["units"])
    sizes = [list(layer.weight.shape) for layer in found.module if isinstance(layer, torch.nn.Linear)]
    assert sizes == [[19, 64], [14, 19], [10, 14]]
    assert found.notes == ("Hidden units removed, by layer: 5 of 24, 2 of 16.",)
    whole = network()
    empty = deployment.without_dead_units(whole.with_masks({n: torch.zeros_like(m) for n, m in whole.masks.items()}))
    assert [layer.out_features for layer in empty.module if isinstance(layer, torch.nn.Linear)] == [1, 1, 10]
    assert "linear layers only" in deployment.without_dead_units(TICKETS["convolutions"]).notes[0]


def test_low_rank_layers_become_two() -> None:
    found = deployment.factored(TICKETS["low rank"])
    assert set(found.description["factors"].values()) == {3}
    before, after = (
        sum(p.numel() for p in m.parameters()) for m in (build(TICKETS["dense"].architecture), found.module)
    )
    assert after < before
    assert "low enough" in deployment.factored(TICKETS["dense"]).notes[-1]
    shapes = [m.weight.shape[2:] for m in deployment.factored(TICKETS["convolutions of low rank"]).module.modules()
              if isinstance(m, torch.nn.Conv2d)]  # fmt: skip
    assert (1, 1) in shapes


def test_sparse_rows_are_the_survivors() -> None:
    ticket = TICKETS["scattered"]
    found = deployment.sparse_rows(ticket)
    assert sum(found.description["sparse"].values()) <= ticket.kept
    assert "leave the weights dense" in deployment.sparse_rows(TICKETS["dense"]).notes[-1]


def test_two_of_each_four() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 0.0, 0.0, -1.0]])
    mask = deployment.two_four_mask(weight)
    assert mask.tolist()[0][:4] == [False, True, True, False]
    assert mask.sum() == 4
    assert mask[0, 7]
    with pytest.raises(InputError, match=r"multiple of 4, not \(2, 6\)"):
        deployment.two_four_mask(torch.zeros(2, 6))
    ticket = network("lenet-64-32")
    found = deployment.two_four(ticket)
    fours = found.module.get_submodule("1").weight.unflatten(1, (-1, 4))  # type: ignore[union-attr,operator]
    assert int((fours != 0).sum(-1).max()) == 2
    assert "of its norm taken away" in found.notes[0]
    assert "stays dense, as (10, 32)" in found.notes[-1]
    again = deployment.two_four(ticket.with_masks({
        name: deployment.two_four_mask(c) for name, c in ticket.coefficients.items()
    }))  # fmt: skip
    assert "2:4, as it was" in again.notes[0]


def test_two_four_is_refused_in_one_sentence_without_its_kernels(tmp_path: Path) -> None:
    network().save(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"compute capability 8\.0 or later, not 'cpu' \(valid here: onnx"):
        export(str(tmp_path / "t.safetensors"), "torch-2:4", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_semi_structured_layers_compute_the_same() -> None:
    found = deployment.two_four(network("lenet-64-32"))
    images = torch.rand(64, *SHAPE).half().cuda()
    with torch.inference_mode():
        wanted = found.module.cuda()(images)
        torch.testing.assert_close(
            deployment.semi_structured(found.module, "cuda")(images), wanted, rtol=1e-2, atol=1e-2
        )


def test_onnx_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    ticket = TICKETS["convolutions"]
    ticket.save(tmp_path / "t.safetensors")
    said = export(str(tmp_path / "t.safetensors"), "onnx", str(tmp_path / "net.onnx"))
    assert "saves neither bytes nor time" in said
    run = deploying.onnx_run(str(tmp_path / "net.onnx"))
    assert ("not run" in said) == (run is None)
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(3))
    (found,) = reference.ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected(ticket), rtol=1e-4, atol=1e-4)
    if run is not None:
        torch.testing.assert_close(torch.from_numpy(run(images)[0]), expected(ticket), rtol=1e-4, atol=1e-4)


def test_an_export_says_sizes_and_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "REPEATS", 3)
    TICKETS["low rank"].save(tmp_path / "t.safetensors")
    said = export(str(tmp_path / "t.safetensors"), "factored", str(tmp_path / "net.safetensors"))
    assert "rank 3, two layers." in said
    assert f"{(tmp_path / 'net.safetensors').stat().st_size:,}" in said
    assert all(f"ms, batch {batch}" in said for batch in (1, 128))
    with pytest.raises(InputError, match="unknown form 'onx', did you mean 'onnx'"):
        export(str(tmp_path / "t.safetensors"), "onx", "x")
    with pytest.raises(InputError, match="no ticket file"):
        export(str(tmp_path / "none"), "csr", "x")
    with pytest.raises(InputError, match="is no network written by"):
        deployment.load(tmp_path / "t.safetensors")


def test_where_sparsity_brings_nothing_it_is_said() -> None:
    before = Measured(100, {1: 1.0, 128: 1.0})
    assert honest("csr", before, Measured(50, {1: 0.5, 128: 0.5})) == []
    smaller, slower = honest("csr", before, Measured(120, {1: 3.0, 128: 0.9}))
    assert "saves no storage" in smaller
    assert slower == "Batch 1: 3.0 times slower than dense; this sparsity brings no speed here."
    assert "as fast as dense" in honest("csr", before, Measured(50, {1: 1.0, 128: 0.5}))[0]
