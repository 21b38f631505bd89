r"""SynFlow: its score, and its many rounds of global top-k at the cost of its forward and backward passes.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (arXiv 2006.05467).
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lthlib.finders.from_scores import nonzero
from lthlib.finders.scores import gradients_of
from lthlib.masks.topk import check_scores, keep_top
from lthlib.ticket import State, Ticket, structure

SAMPLED = 2**16
SHARE = 0.5


def _others(ticket: Ticket) -> State:
    """All but the weights as R takes them: by absolute value, float64.

    BatchNorm has statistics 0 and 1 whatever the ticket's: in training mode one such image has zero variance.
    """
    others = {}
    for name, tensor in ticket.rest.items():
        others[name] = tensor.double().abs() if tensor.is_floating_point() else tensor
    for name, layer in structure(ticket.architecture).named_modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            for buffer, value in (("running_mean", 0.0), ("running_var", 1.0)):
                others[f"{name}.{buffer}"] = torch.full_like(others[f"{name}.{buffer}"], value)
    return others


def _ones(ticket: Ticket) -> Tensor:
    device = next(iter(ticket.masks.values())).device
    return torch.ones(1, *ticket.architecture.input_shape, dtype=torch.float64, device=device)


def _holding(module: nn.Module, state: State) -> nn.Module:
    """A copy of the module that holds these tensors themselves, where swapping them in each time takes its time."""
    copied = deepcopy(module)
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        layer = copied.get_submodule(path)
        held = attribute in layer._parameters and not isinstance(tensor, nn.Parameter)
        setattr(layer, attribute, nn.Parameter(tensor, requires_grad=False) if held else tensor)
    return copied


def synflow_scores(ticket: Ticket) -> State:
    r"""$|c\,\partial R/\partial c|$ with $R=\sum f_{|\theta|}(\mathbf 1)$, float64; no data.

    All parameters enter by absolute value, the input is one image of ones, BatchNorm is in evaluation mode with mean 0
    and variance 1 whatever the ticket's statistics (one image in training mode would give zero scores). In a bias-free
    network of ReLU-like layers every layer's scores then have the same sum, R (their Theorem 1).
    """
    leaves = {name: c.detach().double().requires_grad_() for name, c in ticket.effective_coefficients().items()}
    weights = {name: ticket.bases[name].synthesise(leaf).abs() for name, leaf in leaves.items()}
    flow = functional_call(structure(ticket.architecture), {**weights, **_others(ticket)}, (_ones(ticket),)).sum()
    gradients = gradients_of(flow, leaves)
    return {name: gradient.mul_(leaves[name].detach()).abs_() for name, gradient in gradients.items()}


def synflow_masks(ticket: Ticket, counts: Sequence[int]) -> State:
    """The masks after one round of scoring and global top-k for each of `counts`, of a canonical ticket.

    The same masks as `sampling.prune_by(synflow_scores, ...)` gives, ties included. A round removes few weights, and
    only those that a sample of the scores shows to be near or below the threshold are ranked; pruned weights are
    zeroed in place in one float64 copy, and skipped once they are many. So a round costs little beyond its gradient.
    """
    values = {name: c.detach().double().abs().contiguous() for name, c in ticket.effective_coefficients().items()}
    pools = {name: _Pool(None, mask.reshape(-1).clone(), values[name].view(-1)) for name, mask in ticket.masks.items()}
    # Leaves that share memory with `values`, which may then be written to.
    leaves: State = {name: nn.Parameter(value.detach()) for name, value in values.items()}
    module, ones = _holding(structure(ticket.architecture), {**leaves, **_others(ticket)}), _ones(ticket)
    left = ticket.kept
    for number, count in enumerate(counts):
        gradients = gradients_of(module(ones).sum(), leaves)
        scores = {name: pools[name].scores(gradient.reshape(-1)) for name, gradient in gradients.items()}
        alive = {name: pool.alive for name, pool in pools.items()}
        if number == 0:
            check_scores("synflow", scores, among=None if left == ticket.prunable else alive)
        for name, lost in _lowest(scores, alive, left - count, left).items():
            places = pools[name].places
            alive[name].index_fill_(0, lost, False)
            values[name].view(-1).index_fill_(0, lost if places is None else places.index_select(0, lost).long(), 0)
        left = count
        if left < SHARE * sum(map(len, alive.values())):
            pools = {name: pool.compacted() for name, pool in pools.items()}
    masks = {name: torch.zeros_like(mask) for name, mask in ticket.masks.items()}
    for name, pool in pools.items():
        flat = masks[name].view(-1)
        flat.copy_(pool.alive) if pool.places is None else flat.index_copy_(0, pool.places.long(), pool.alive)
    return masks


@dataclass(frozen=True)
class _Pool:
    """The part of a tensor still looked at: flat indices (None: all), which of them are kept, and their values."""

    places: Tensor | None
    alive: Tensor
    values: Tensor

    def scores(self, gradient: Tensor) -> Tensor:
        if self.places is None:
            return gradient.mul_(self.values)
        return gradient.index_select(0, self.places).mul_(self.values)

    def compacted(self) -> "_Pool":
        kept = nonzero(self.alive)
        # Half the indices' memory to read in every round.
        kept = kept.int() if len(self.alive) < 2**31 else kept
        places = kept if self.places is None else self.places.index_select(0, kept)
        return _Pool(places, self.alive.index_select(0, kept), self.values.index_select(0, kept))


def _lowest(scores: State, alive: State, lost: int, left: int) -> State:
    """Indices of the `lost` lowest of `left` living scores, of ties the last; a few vectors of float64."""
    share, stride = lost / max(left, 1), max(1, left // SAMPLED)
    sampled = torch.cat([score[::stride][alive[name][::stride]] for name, score in scores.items()])
    rank = math.ceil(len(sampled) * share + 4 * math.sqrt(len(sampled) * share * (1 - share))) + 1
    bound = sampled.kthvalue(rank).values if rank < len(sampled) else math.inf
    near = {name: nonzero((score <= bound).logical_and_(alive[name])) for name, score in scores.items()}
    if sum(map(len, near.values())) < lost:
        near = {name: nonzero(living) for name, living in alive.items()}
    candidates = {name: scores[name].index_select(0, index) for name, index in near.items()}
    kept = keep_top(candidates, sum(map(len, near.values())) - lost)
    return {name: index[~kept[name]] for name, index in near.items()}
