"""A ticket's network as something to run: weights baked, dead units gone, low rank as two layers, sparse rows, 2:4.

Every form computes the ticket's outputs up to rounding, except 2:4, which has to move weights that do not fit it. A
form is written as one safetensors file whose header describes the modules; never pickle.
"""

import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lthlib.errors import InputError
from lthlib.models.architecture import Architecture, build, skeleton
from lthlib.store import write_atomically
from lthlib.ticket import Ticket
from lthlib.training.proximal import rank
from lthlib.training.stacks import is_linear

HEADER = "deployment"


@dataclass(frozen=True)
class Deployment:
    """A network in eval mode, what `construct` needs to build its modules, and what was done to it, in sentences."""

    module: nn.Module
    description: dict[str, Any]
    notes: tuple[str, ...] = field(default=())


class SparseLinear(nn.Module):
    """A linear layer whose weight (outputs, inputs) is kept as compressed sparse rows, with 32-bit indices."""

    rows: Tensor
    columns: Tensor

    def __init__(self, inputs: int, outputs: int, survivors: int, bias: bool) -> None:
        super().__init__()
        self.size = (outputs, inputs)
        self.register_buffer("rows", torch.zeros(outputs + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(survivors, dtype=torch.int32))
        self.values = nn.Parameter(torch.zeros(survivors))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that sparse rows are new in PyTorch
            weight = torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.size)
        outputs = (weight @ inputs.mT).mT
        return outputs if self.bias is None else outputs + self.bias


def dense(ticket: Ticket) -> Deployment:
    """The network with the ticket's weights baked in: dense layers, pruned weights as zeros."""
    module = build(ticket.architecture)
    module.load_state_dict(ticket.state())
    described = ticket.architecture.to_json()
    return Deployment(module.eval(), {"architecture": described, "linear": {}, "factors": {}, "sparse": {}})


@torch.no_grad()
def without_dead_units(ticket: Ticket) -> Deployment:
    """The network without the hidden units that do nothing, for plain sequences of linear layers; others stay whole.

    A unit without inputs gives a constant, which goes into the next layer's bias; a unit that nobody reads goes.
    """
    found = dense(ticket)
    if not is_linear(ticket):
        return replace(found, notes=("Units are removed in networks of linear layers only.",))
    layers = [(name, layer) for name, layer in found.module.named_children() if isinstance(layer, nn.Linear)]
    before = [layer.out_features for _, layer in layers]
    weights = [layer.weight.clone() for _, layer in layers]
    biases = [
        torch.zeros(len(w)) if layer.bias is None else layer.bias.clone()
        for (_, layer), w in zip(layers, weights, strict=True)
    ]
    for index in range(len(layers) - 1):
        constant = ~weights[index].any(1)
        given = _between(found.module, layers[index][0], layers[index + 1][0])(biases[index])
        biases[index + 1] += weights[index + 1][:, constant] @ given[constant]
        weights[index + 1][:, constant] = 0
    for index in reversed(range(len(layers) - 1)):
        read = weights[index + 1].any(0)
        read[0] |= not read.any()  # a layer keeps one unit
        weights[index], biases[index] = weights[index][read], biases[index][read]
        weights[index + 1] = weights[index + 1][:, read]
    for (name, _), weight, bias in zip(layers, weights, biases, strict=True):
        small = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        small.weight, small.bias = nn.Parameter(weight), nn.Parameter(bias)
        found.module.set_submodule(name, small)
    shapes = {name: [weight.shape[1], weight.shape[0]] for (name, _), weight in zip(layers, weights, strict=True)}
    gone = [f"{old - len(weight)} of {old}" for old, weight in zip(before, weights, strict=True)][:-1]
    note = (
        f"Hidden units removed, by layer: {', '.join(gone)}." if any(not one.startswith("0 ") for one in gone) else ""
    )
    return Deployment(found.module, {**found.description, "linear": shapes}, (note,) if note else ())


def _between(module: nn.Module, first: str, second: str) -> nn.Sequential:
    names = [name for name, _ in module.named_children()]
    chosen = names[names.index(first) + 1 : names.index(second)]
    return nn.Sequential(*(module.get_submodule(name) for name in chosen))


@torch.no_grad()
def factored(ticket: Ticket) -> Deployment:
    """Dead units gone, and each layer whose rank r makes r (n + m) less than n m as two layers, by its SVD.

    A convolution becomes one with r filters and one of 1 x 1.
    """
    found = without_dead_units(ticket)
    ranks = {}
    for name, layer in list(found.module.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) != 1:
            continue
        matrix = layer.weight.flatten(1)
        r = max(1, rank(matrix))
        if r * sum(matrix.shape) >= matrix.numel():
            continue
        u, sigma, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        pair = _pair(layer, r)
        root = sigma[:r].sqrt()  # shared, so that neither factor is much larger than the other
        values = {"0.weight": root[:, None] * vh[:r], "1.weight": u[:, :r] * root}
        values = {name: value.reshape(pair.state_dict()[name].shape) for name, value in values.items()}
        pair.load_state_dict(values if layer.bias is None else {**values, "1.bias": layer.bias})
        found.module.set_submodule(name, pair)
        ranks[name] = r
    notes = [f"{name}: rank {r}, two layers." for name, r in ranks.items()]
    if not ranks:
        notes = ["No layer has a rank low enough for two layers to be smaller than one."]
    return Deployment(found.module.eval(), {**found.description, "factors": ranks}, (*found.notes, *notes))


def _pair(layer: nn.Linear | nn.Conv2d, r: int) -> nn.Sequential:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Linear(layer.in_features, r, bias=False), nn.Linear(r, layer.out_features, bias=bias))
    first = nn.Conv2d(
        layer.in_channels,
        r,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return nn.Sequential(first, nn.Conv2d(r, layer.out_channels, 1, bias=bias))


@torch.no_grad()
def sparse_rows(ticket: Ticket) -> Deployment:
    """Dead units gone, and each linear layer with zeros in its weight as a `SparseLinear`; convolutions stay dense."""
    found = without_dead_units(ticket)
    kept = {}
    for name, layer in list(found.module.named_modules()):
        if not isinstance(layer, nn.Linear) or bool(layer.weight.all()):
            continue
        mask = layer.weight != 0
        sparse = SparseLinear(layer.in_features, layer.out_features, int(mask.sum()), layer.bias is not None)
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        values = {"rows": rows, "columns": mask.nonzero()[:, 1], "values": layer.weight[mask]}
        sparse.load_state_dict(values if layer.bias is None else {**values, "bias": layer.bias})
        found.module.set_submodule(name, sparse)
        kept[name] = len(sparse.values)
    notes = [f"{name}: {count} survivors as sparse rows." for name, count in kept.items()]
    if not kept:
        notes = ["No linear layer has zeros: in this basis pruned coefficients leave the weights dense."]
    return Deployment(found.module.eval(), {**found.description, "sparse": kept}, (*found.notes, *notes))


def two_four_mask(weight: Tensor) -> Tensor:
    """The two of each four neighbours along the input axis with largest magnitudes (Mishra et al., arXiv 2104.08378).

    weight: (outputs, inputs) with inputs a multiple of 4; boolean of the same shape. Raises InputError otherwise.
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        raise InputError(f"2:4 needs (outputs, inputs) with inputs a multiple of 4, not {tuple(weight.shape)}")
    fours = weight.abs().unflatten(1, (-1, 4))
    chosen = fours.topk(2, dim=-1).indices
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, chosen, True).flatten(1)


@torch.no_grad()
def two_four(ticket: Ticket) -> Deployment:
    """The network in half precision with 2:4 linear layers: what does not fit 2:4 is projected by magnitude.

    Layers whose sizes PyTorch's kernels do not take stay dense. `semi_structured` then makes them fast.
    """
    found, notes = dense(ticket), []
    for name, layer in found.module.named_modules():
        if isinstance(layer, nn.Linear) and _fits_kernels(layer):
            gone = layer.weight * ~two_four_mask(layer.weight)
            share = float(gone.norm() / layer.weight.norm().clamp_min(1e-12))
            layer.weight.sub_(gone)
            moved = f"{100 * share:.1f} % of its norm taken away" if share else "as it was"
            notes.append(f"{name}: 2:4, {moved}.")
        elif isinstance(layer, nn.Linear):
            notes.append(f"{name}: stays dense, as {tuple(layer.weight.shape)} is no multiple of (32, 64).")
    return Deployment(found.module.half(), found.description, tuple(notes))


@torch.no_grad()
def semi_structured(module: nn.Module, device: torch.device | str) -> nn.Module:
    """What `two_four` gives, on a CUDA device with PyTorch's semi-structured kernels, changed in place.

    Raises InputError where the device has no such kernels.
    """
    device = torch.device(device)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"2:4 layers need a CUDA device of compute capability 8.0 or later, not {str(device)!r} "
            "(valid here: onnx, factored, csr)"
        )
    from torch.sparse import to_sparse_semi_structured

    for layer in module.to(device).modules():
        if isinstance(layer, nn.Linear) and _fits_kernels(layer):
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight))
    return module


def _fits_kernels(layer: nn.Linear) -> bool:
    return layer.out_features % 32 == 0 and layer.in_features % 64 == 0


def empty_module(description: dict[str, Any]) -> nn.Module:
    """The modules of a description, with no values yet (on the meta device)."""
    module = skeleton(Architecture.from_json(description["architecture"]))
    with torch.device("meta"):
        for name, (inputs, outputs) in description["linear"].items():
            module.set_submodule(name, nn.Linear(inputs, outputs))
        for name, r in description["factors"].items():
            module.set_submodule(name, _pair(module.get_submodule(name), r))  # type: ignore[arg-type]
        for name, count in description["sparse"].items():
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            sparse = SparseLinear(layer.in_features, layer.out_features, count, layer.bias is not None)
            module.set_submodule(name, sparse)
    return module


def save(found: Deployment, path: Path | str) -> None:
    """Writes one safetensors file; `load` reads it."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.module.state_dict().items()}
    header = {HEADER: json.dumps(found.description)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load_network(path: Path | str) -> nn.Module:
    """The network that `save` wrote, in eval mode; InputError for a file that is missing or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {})[HEADER]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        module = empty_module(json.loads(header))
        module.load_state_dict(tensors, assign=True)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{str(path)!r} is no network written by `lth export` ({error})") from error
    return module.eval()
