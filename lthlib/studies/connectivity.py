r"""Linear mode connectivity: accuracy along the straight line between two trained networks.

$B=\max_\alpha E(\alpha\theta_a+(1-\alpha)\theta_b)-\frac12(E(\theta_a)+E(\theta_b))$ is the error barrier (Frankle et
al., arXiv 1912.05671; as used in arXiv 2103.16547, Figure 8).
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from lthlib.data import Dataset
from lthlib.errors import InputError
from lthlib.models.architecture import build
from lthlib.ticket import State, Ticket, check_same_bases
from lthlib.training.train import evaluate


def between(first: Ticket, second: Ticket, alpha: float) -> Ticket:
    r"""$\alpha$ times `first` plus $(1-\alpha)$ times `second`, coefficients and running statistics alike.

    Its mask is the union. Both ends are exact. Raises InputError for another architecture or basis, and for an alpha
    outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha {alpha!r} is not in [0, 1]")
    check_same_bases(first, second)
    if alpha in (0, 1):
        return first if alpha else second
    ends = first.effective_coefficients(), second.effective_coefficients()

    def mixed(a: State, b: State) -> State:
        # Counters of batches are whole numbers and act on nothing.
        return {name: torch.lerp(b[name], a[name], alpha) if b[name].is_floating_point() else b[name] for name in b}

    return replace(
        second,
        coefficients=mixed(*ends),
        masks={name: mask | first.masks[name] for name, mask in second.masks.items()},
        rest=mixed(first.rest, second.rest),
    )


@torch.no_grad()
def with_statistics_of(ticket: Ticket, dataset: Dataset, *, examples: int = 512, batch_size: int = 128) -> Ticket:
    """The ticket with BatchNorm's running statistics averaged anew over the first `examples` training images.

    Interpolated statistics fit no network, so that barriers are read with these as well. A network without BatchNorm
    comes back unchanged.
    """
    module = build(ticket.architecture)
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    if not norms:
        return ticket
    module.load_state_dict(ticket.state())
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over the batches
    module.train()
    for images in dataset.normalise(dataset.train.images[:examples]).split(batch_size):
        if len(images) > 1:
            module(images)
    state = module.state_dict()
    return replace(ticket, rest={name: state[name].clone() for name in ticket.rest})


def path_rows(
    first: Ticket, second: Ticket, dataset: Dataset, points: int = 11, *, split: str = "validation"
) -> pd.DataFrame:
    """Accuracy (percent) at `points` (at least 2) values of alpha, evenly in [0, 1], with both kinds of statistics.

    Columns: alpha, statistics ("interpolated", "re-estimated"), accuracy, loss.
    """
    if points < 2:
        raise InputError(f"a path has 2 points or more, not {points}")
    alphas = [place / (points - 1) for place in range(points)]
    tickets = [between(first, second, alpha) for alpha in alphas]
    seen = [which for ticket in tickets for which in (ticket, with_statistics_of(ticket, dataset))]
    kinds = [(alpha, statistics) for alpha in alphas for statistics in ("interpolated", "re-estimated")]
    judged = evaluate(seen, dataset, split)
    return pd.DataFrame(
        [(*kind, test.accuracy, test.loss) for kind, test in zip(kinds, judged, strict=True)],
        columns=["alpha", "statistics", "accuracy", "loss"],
    )


def barrier(accuracies: Sequence[float]) -> float:
    """The error barrier in percentage points, from accuracies (percent) along a path; 0 or more at its ends' mean."""
    ends = (accuracies[0] + accuracies[-1]) / 2
    return ends - min(accuracies)
