"""`lth export`: a ticket's network as a file for use elsewhere, with its size and speed beside the dense network's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import nn

from lthlib import deployment
from lthlib.deployment import Deployment
from lthlib.errors import InputError, unknown
from lthlib.store import write_atomically
from lthlib.ticket import Ticket

FORMS = ("onnx", "torch-2:4", "factored", "csr")
BATCHES = (1, 128)
REPEATS = 30
SAME = 0.05  # latencies nearer than this share are called equal
Run = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Measured:
    """Bytes of a network's file and median seconds of a forward pass by batch size (nothing where none was run)."""

    size: int
    seconds: dict[int, float]


def export(ticket_file: str, form: str, out: str, device: str = "cpu") -> str:
    """Writes the network of a ticket file in one of `FORMS` to `out`; returns what is there to say about it.

    Raises InputError for an unknown form, a file that is no ticket, and a form that this machine cannot make.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    ticket = Ticket.load(ticket_file)
    plain = deployment.dense(ticket)
    run: Run | None
    if form == "onnx":
        deployed = plain
        write_atomically(out, lambda path: write_onnx(plain.module, ticket, path))
        run = onnx_run(out)
    elif form == "torch-2:4":
        deployed = deployment.two_four(ticket)
        run = deployment.semi_structured(deployment.two_four(ticket).module, device)
        deployment.save(deployed, out)
    else:
        deployed = {"factored": deployment.factored, "csr": deployment.sparse_rows}[form](ticket)
        run = deployed.module.to(device)
        deployment.save(deployed, out)
    before, after = measure(plain, run, Path(out), device, half=form == "torch-2:4")
    head = f"{ticket_file}: {ticket.architecture.name}, density {ticket.density:.4g}, as {form} in {out}"
    return "\n".join([head, *deployed.notes, *_table(before, after), *honest(form, before, after)])


def measure(
    plain: Deployment, run: Run | None, written: Path, device: str, half: bool = False
) -> tuple[Measured, Measured]:
    """Bytes and latency of the dense network and of what `run` runs (None: not run here), whose file is `written`.

    The two run in turn, so that what else the machine does meanwhile falls on both.
    """
    with TemporaryDirectory(prefix="lth-") as private:
        path = Path(private) / "network.safetensors"
        deployment.save(plain, path)
        sizes = path.stat().st_size, written.stat().st_size
    before, after = {}, {}
    shape = plain.description["architecture"]["input_shape"]
    for batch in BATCHES:
        images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        runs: list[tuple[Run, torch.Tensor]] = [(plain.module.to(device), images)]
        if run is not None:
            runs.append((run, images.half() if half else images))
        before[batch], *rest = latencies(runs)
        if rest:
            after[batch] = rest[0]
    return Measured(sizes[0], before), Measured(sizes[1], after)


def latencies(runs: Sequence[tuple[Run, torch.Tensor]]) -> list[float]:
    """Median seconds of `REPEATS` forward passes of each network on its images, after three that are not counted."""
    seconds: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for _ in range(REPEATS + 3):
            for taken, (run, images) in zip(seconds, runs, strict=True):
                start = perf_counter()
                run(images)
                if images.is_cuda:
                    torch.cuda.synchronize()
                taken.append(perf_counter() - start)
    return [median(taken[3:]) for taken in seconds]


def write_onnx(module: nn.Module, ticket: Ticket, path: Path) -> None:
    """The network as one ONNX file, inputs `images` (batch, channels, height, width), outputs `logits`."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("onnx files need two more packages (pip install -e '.[export]')") from error
    images = torch.zeros(2, *ticket.architecture.input_shape)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        module, (images,), input_names=["images"], output_names=["logits"], dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(str(path), external_data=False)


def onnx_run(path: str) -> Run | None:
    """A forward pass of an ONNX file on the CPU, with as many threads as torch; None without ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.cpu().numpy()})


def honest(form: str, before: Measured, after: Measured) -> list[str]:
    """What the numbers say where sparsity brings nothing."""
    if form == "onnx":
        return [
            "ONNX stores and multiplies zeros like other weights: this sparsity saves neither bytes nor time in it; "
            "what is faster is so for dense weights too."
        ]
    lines = []
    if after.size >= before.size:
        lines.append("The file is no smaller than the dense network's: this sparsity saves no storage in this form.")
    for batch, seconds in after.seconds.items():
        ratio = seconds / before.seconds[batch]
        if ratio > 1 + SAME:
            lines.append(f"Batch {batch}: {ratio:.1f} times slower than dense; this sparsity brings no speed here.")
        elif ratio > 1 - SAME:
            lines.append(f"Batch {batch}: as fast as dense; this sparsity brings no speed here.")
    return lines


def _table(before: Measured, after: Measured) -> list[str]:
    rows = [("", "dense", "exported"), ("bytes", f"{before.size:,}", f"{after.size:,}")]
    for batch, seconds in before.seconds.items():
        new = f"{1e3 * after.seconds[batch]:.3f}" if batch in after.seconds else "not run"
        rows.append((f"ms, batch {batch}", f"{1e3 * seconds:.3f}", new))
    return [f"{name:<14}{dense:>14}{exported:>14}" for name, dense, exported in rows]
