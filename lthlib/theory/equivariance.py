r"""Which optimizers see the basis: train one network twice, as weights and as coefficients, and compare the weights.

SGD with momentum and weight decay commutes with every orthonormal basis; optimizers that treat coordinates one by one
(Adam, AdamW, RMSprop) do not (Maes et al., arXiv 2410.19964). Muon commutes with bases of rows and columns, since the
nearest orthogonal matrix to $B_{out}GB_{in}^\top$ is the turned one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lthlib.data import Dataset
from lthlib.finders.magnitude import bases_for
from lthlib.recipe import Recipe
from lthlib.ticket import Ticket
from lthlib.training import train


def relative_difference(
    tickets: Sequence[Ticket], recipe: Recipe, dataset: Dataset, seeds: Sequence[int], rule: str, *, device: str = "cpu"
) -> list[float]:
    r"""$\lVert\theta_B-\theta\rVert/\lVert\theta\rVert$ of each replicate's weights, trained in the bases of `rule`
    and canonically, with the same data order, in float64. `tickets` are dense and canonical."""
    exact = replace(recipe, precision="fp64", evaluations=1)
    double = [
        replace(ticket, coefficients={name: c.double() for name, c in ticket.coefficients.items()})
        for ticket in tickets
    ]
    turned = [ticket.in_bases(bases_for(ticket, rule)) for ticket in double]
    plain = train(double, exact, dataset, seeds, device=device)
    other = train(turned, exact, dataset, seeds, device=device)
    return [_relative(one.ticket, two.ticket) for one, two in zip(plain, other, strict=True)]


def _relative(reference: Ticket, other: Ticket) -> float:
    first, second = (torch.cat([w.flatten() for w in ticket.weights().values()]) for ticket in (reference, other))
    return float((second - first).norm() / first.norm())
