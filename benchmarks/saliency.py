"""Seconds and memory of the scores on VGG-16 at 32x32, and of the sampler at 15 and 50 million weights.

The limits are plain PyTorch: forward and backward passes of the same module, and top-k without a draw.
`python benchmarks/saliency.py [--json FILE] [--tiny]`; `--tiny` only shows that everything runs.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from reporting import Row, parser, report, timing
from torch.nn import functional as F

from lthlib.finders import find as saliency
from lthlib.finders.pruning_data import pruning_data
from lthlib.finders.scores import grasp_scores, ntk_sketch_scores, snip_scores
from lthlib.finders.synflow import synflow_scores
from lthlib.masks.draws import sample
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture, build
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import dense_ticket

MEGABYTE = 2**20


def peak_megabytes(work: Callable[[], object]) -> float | None:
    """How far `work` raises this process's resident memory above where it stood; None where Linux does not tell."""
    status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    marks.write_text("5")
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) / 1024


def gradient_pass(name: str, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """Forward and backward of the plain module in the images' dtype, evaluation mode."""
    classes = int(labels.max()) + 1
    module = build(architecture(name, tuple(images.shape[1:]), classes)).to(images.dtype).eval()

    def work() -> object:
        loss = F.cross_entropy(module(images), labels)
        return torch.autograd.grad(loss, list(module.parameters()))

    return work


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--tiny", action="store_true", help="a small network and few weights, for correctness only")
    options = arguments.parse_args()
    tiny = options.tiny
    name, per_class, iterations, repeats = ("vgg-11-w8", 2, 4, 1) if tiny else ("vgg-16", 10, 100, 3)
    model = architecture(name, (3, 32, 32), 10)
    ticket = dense_ticket(model, initial_state(model, 0))
    images, labels = pruning_data(ticket, None, examples_per_class=per_class, corruption="gaussian")
    plain = gradient_pass(name, images, labels)
    one = gradient_pass(name, torch.ones(1, 3, 32, 32, dtype=torch.float64), labels[:1] * 0 + 9)
    scores = {
        "SNIP": lambda: snip_scores(ticket, images, labels),
        "GraSP": lambda: grasp_scores(ticket, images, labels),
        "NTK sketch, 6 probes": lambda: ntk_sketch_scores(ticket, images, probes=6, source=generator(0, "benchmark")),
    }
    rows = []
    plain()
    limit, goal = timing(plain, repeats).wall, None
    for label, work in scores.items():
        seconds = timing(work, repeats).wall
        rows.append(Row(f"{label}, {name}, {len(images)} examples", seconds, "s", limit, goal))
        # The first is SNIP, beside which the issue wants the sketch; GraSP has no goal.
        limit, goal = rows[0].value, "<= 6" if label == "GraSP" else None
    one()
    # On a machine that others use too, passes before and after are what the rounds between them can be held to.
    before = timing(one, 9).wall
    synflow = timing(lambda: saliency.synflow(ticket, 0.01, iterations=iterations), 1).wall
    limit = iterations * (before + timing(one, 9).wall) / 2
    rows.append(Row(f"SynFlow, {iterations} iterations, {name}", synflow, "s", limit, "<= 1.3"))
    rows += memory_rows(name, ticket.prunable, scores | {"SynFlow": lambda: synflow_scores(ticket)}, plain, one)
    for size in (100_000, 300_000) if tiny else (15_000_000, 50_000_000):
        weights = {"weights": torch.randn(size, generator=generator(0, "benchmark"))}
        values, count, source = {"weights": weights["weights"].abs_()}, size // 20, generator(0, "draw")
        limit = timing(lambda v=values, k=count: keep_top(v, k), repeats).wall
        draw = timing(lambda v=values, k=count, s=source: sample(v, k, generator=s), repeats).wall
        rows.append(Row(f"top-k, {size:,} weights", limit, "s"))
        rows.append(Row(f"Gumbel-top-k, {size:,} weights", draw, "s", limit, "<= 3"))
    report(rows, options.json)


def memory_rows(
    name: str,
    prunable: int,
    scores: dict[str, Callable[[], object]],
    plain: Callable[[], object],
    one: Callable[[], object],
) -> list[Row]:
    """Peak memory of one call of each score beside 4 times the parameters in its dtype plus activations."""
    rows = []
    for label, work in scores.items():
        megabytes = prunable * (8 if label == "SynFlow" else 4) / MEGABYTE
        reference, peak = peak_megabytes(one if label == "SynFlow" else plain), peak_megabytes(work)
        if reference is None or peak is None:
            continue
        # A gradient pass holds one gradient for each parameter; the rest of its memory is activations.
        limit = 4 * megabytes + max(0.0, reference - megabytes)
        rows.append(Row(f"memory of {label}, {name}", peak, "MB", limit, "<= 1"))
    return rows


if __name__ == "__main__":
    main()
