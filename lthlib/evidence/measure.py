"""From trained tickets to tidy rows: one row per ticket, with all that the figures and claims of a notebook read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lthlib.axes import Axis
from lthlib.basis import Kronecker
from lthlib.data import Dataset
from lthlib.errors import InputError, unknown
from lthlib.evidence.intervals import Interval, mean_interval
from lthlib.finders.imp import Level
from lthlib.finders.structured import multiply_accumulates_of, stored_numbers_of
from lthlib.models.architecture import multiply_accumulates
from lthlib.ticket import Ticket
from lthlib.training.loop import Trained
from lthlib.training.train import evaluate


def measure(tickets: Sequence[Ticket], trained: Sequence[Trained], dataset: Dataset, **columns: Any) -> pd.DataFrame:
    """One row per replicate: densities, costs, early stopping, validation accuracy and test accuracy (percent).

    `macs` counts dense products, `sparse_macs` ideal sparse ones (`ideal_multiply_accumulates`). This reads the test
    split, once per trained ticket. `columns` (basis, arm, round, ...) are added to each row.
    """
    tests = evaluate([run.ticket for run in trained], dataset, "test")
    rows = []
    for ticket, run, test in zip(tickets, trained, tests, strict=True):
        best = max((row["validation_accuracy"] for row in run.history), default=float("nan"))
        last = run.history[-1]["validation_accuracy"] if run.history else float("nan")
        row = {"model": ticket.architecture.name, "dataset": dataset.label, "seed": run.seed,
               "density": ticket.density, "n_free": ticket.free_numbers,
               "n_stored": sum(stored_numbers_of(ticket).values()),
               "macs": sum(multiply_accumulates_of(ticket).values()),
               "sparse_macs": ideal_multiply_accumulates(ticket), "accuracy": test.accuracy, "loss": test.loss,
               "validation_accuracy": last, "best_validation_accuracy": best,
               "early_stop_step": run.early_stopping_step}  # fmt: skip
        rows.append(row | columns)
    return pd.DataFrame(rows)


def accuracy(trained: Sequence[Trained], data: Dataset, split: str = "test") -> Interval:
    """Mean accuracy (percent) of trained tickets on a split, over replicates, with its 95 % interval.

    The test split is to be read once, at the end.
    """
    return mean_interval([result.accuracy for result in evaluate([run.ticket for run in trained], data, split)])


def measure_levels(levels: Sequence[Level], dataset: Dataset, **columns: Any) -> pd.DataFrame:
    """`measure` over all levels of one pruning chain, with the level as `round`."""
    parts = [measure(level.tickets, level.trained, dataset, round=level.number, **columns) for level in levels]
    return pd.concat(parts, ignore_index=True)


def ideal_multiply_accumulates(ticket: Ticket) -> int:
    r"""Multiply-accumulates per example if sparse products cost one a kept coefficient: $y=B_{out}^\top(C(B_{in}x))$.

    The basis matrices act on activations and are counted in full (an image transform separably, axis by axis). No
    tensor is counted above its dense products; convolutions in a basis of their channels or kernels are synthesised,
    hence dense.
    """
    dense = multiply_accumulates(ticket.architecture)
    total = 0
    for name, mask in ticket.masks.items():
        basis, sparse = ticket.bases[name], int(mask.sum()) * (dense[name] // mask.numel())
        if basis.is_identity:
            total += sparse
        elif mask.dim() == 2 and isinstance(basis, Kronecker):
            total += min(dense[name], sparse + sum(_transform(axis) for axis in basis.axes if axis is not None))
        else:
            total += dense[name]
    return total


def _transform(axis: Axis) -> int:
    length = abs(math.prod(axis.sizes))
    return length * sum(size for size in axis.sizes if size > 0)


def where(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns have the given values. Raises InputError for a column that the table lacks."""
    chosen = pd.Series(True, table.index)
    for column, value in values.items():
        if column not in table:
            raise unknown("column", column, map(str, table.columns))
        chosen &= table[column] == value
    return table[chosen]


def difference_to(
    table: pd.DataFrame, arm: str, reference: object, on: Sequence[str], value: str = "accuracy"
) -> pd.Series:
    """For each row `value` minus that of the row whose column `arm` is `reference` and which agrees in columns `on`.

    NaN where there is no such row. Raises InputError where there are several.
    """
    base = table.loc[table[arm] == reference, [*on, value]]
    if base.duplicated(list(on)).any():
        raise InputError(f"{arm} {reference!r} has several rows at one of {', '.join(on)}: name more columns")
    partner = table[list(on)].merge(base, on=list(on), how="left")[value]
    return table[value] - partner.set_axis(table.index)


def layer_rows(tickets: Sequence[Ticket], **columns: Any) -> pd.DataFrame:
    """One row per replicate and prunable tensor: its density."""
    return pd.DataFrame(
        {"seed": ticket.seed, "layer": layer, "density": density} | columns
        for ticket in tickets
        for layer, density in ticket.layer_densities().items()
    )


def input_share(tickets: Sequence[Ticket]) -> np.ndarray:
    """Share of the first layer's coefficients that masks keep, by input coordinate: a picture (rows, columns).

    A linear first layer over the image gives the first channel's (H, W), in the basis's order (pixels, frequencies); a
    convolution its first input channel's kernel; any other layer one row.
    """
    share = torch.stack([next(iter(ticket.masks.values())).float() for ticket in tickets]).mean((0, 1))
    shape = tickets[0].architecture.input_shape
    if share.dim() == 1 and share.numel() == math.prod(shape):
        share = share.view(shape)
    return np.atleast_2d(share[0].numpy() if share.dim() == 3 else share.numpy())
