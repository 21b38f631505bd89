"""The network's linearisation as a linear problem: the Jacobian in the place of the data matrix.

f(x; w) ~ f(x; w_0) + J (w - w_0), so that J^T plays X of `theory.sketching`: a mask of the weights sketches the product
J w, and the sketch score of a weight is |w_k| |J_k|. Bar & Giryes (arXiv 2305.17559) extend their bounds by the neural
tangent kernel; those bounds could not be read, and the exact statements of `theory.sketching` stand in for them.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jacrev

from lthlib.errors import InputError
from lthlib.ticket import State, Ticket, forward_of

LARGEST = 4e8


def jacobian(ticket: Ticket, images: Tensor) -> Tensor:
    """J^T (d, N C), float64: the gradient of each of C logits of N images by each of the d prunable coefficients.

    Images (N, ...) are normalised; BatchNorm is in eval. Coefficients lie in the order of `flat`. Raises InputError
    where d N C numbers are more than 4e8 (3.2 GB).
    """
    numbers = ticket.prunable * len(images) * ticket.architecture.classes
    if numbers > LARGEST:
        raise InputError(f"a Jacobian of {numbers:.1e} numbers is above the limit of {LARGEST:.0e}: take fewer images")
    rest = {name: t.double() if t.is_floating_point() else t for name, t in ticket.rest.items()}
    forward = forward_of(replace(ticket, rest=rest))
    values = {name: c.double() for name, c in ticket.effective_coefficients().items()}
    parts = jacrev(lambda state: forward(state, images.double()))(values)
    columns = len(images) * ticket.architecture.classes
    return torch.cat([part.reshape(columns, -1) for part in parts.values()], 1).T.contiguous()


def flat(coefficients: State) -> Tensor:
    """All tensors behind each other as one float64 vector (d,)."""
    return torch.cat([c.double().view(-1) for c in coefficients.values()])
