r"""SynFlow: its score, and its many rounds of global top-k at the cost of its forward and backward passes.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (arXiv 2006.05467).
"""

import math
from collections.abc import Callable, Sequence
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
PIECE = 2**16
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
    return synflow_score(ticket)(ticket)


def synflow_score(start: Ticket) -> Callable[[Ticket], State]:
    """`synflow_scores` of tickets that have all but coefficients and masks from `start`, set up once for all."""
    module, others, ones = structure(start.architecture), _others(start), _ones(start)

    def scores(ticket: Ticket) -> State:
        leaves = {name: c.detach().double().requires_grad_() for name, c in ticket.effective_coefficients().items()}
        weights = {name: ticket.bases[name].synthesise(leaf).abs() for name, leaf in leaves.items()}
        gradients = gradients_of(functional_call(module, {**weights, **others}, (ones,)).sum(), leaves)
        return {name: gradient.mul_(leaves[name].detach()).abs_() for name, gradient in gradients.items()}

    return scores


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
        gradients = [gradient.reshape(-1) for gradient in gradients_of(module(ones).sum(), leaves).values()]
        if number == 0:
            scores = {
                name: pool.scores(gradient) for (name, pool), gradient in zip(pools.items(), gradients, strict=True)
            }
            alive = None if left == ticket.prunable else {name: pool.alive for name, pool in pools.items()}
            check_scores("synflow", scores, among=alive)
            del scores, alive
        lowest = _lowest(list(pools.values()), gradients, left - count, left)
        # The next round's gradients go where these were, in memory that is at hand already.
        del gradients
        for (name, pool), lost in zip(pools.items(), lowest, strict=True):
            pool.alive.index_fill_(0, lost, False)
            places = lost if pool.places is None else pool.places.index_select(0, lost).long()
            values[name].view(-1).index_fill_(0, places, 0)
        left = count
        if left < SHARE * sum(len(pool.alive) for pool in pools.values()):
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

    def scores(self, gradient: Tensor, part: slice = slice(None)) -> Tensor:
        """The scores of part of it, pruned ones in the way."""
        if self.places is None:
            return gradient[part] * self.values[part]
        return gradient.index_select(0, self.places[part]).mul_(self.values[part])

    def compacted(self) -> "_Pool":
        kept = nonzero(self.alive)
        # Half the indices' memory to read in every round.
        kept = kept.int() if len(self.alive) < 2**31 else kept
        places = kept if self.places is None else self.places.index_select(0, kept)
        return _Pool(places, self.alive.index_select(0, kept), self.values.index_select(0, kept))


def _lowest(pools: Sequence[_Pool], gradients: Sequence[Tensor], lost: int, left: int) -> list[Tensor]:
    """Indices in each pool of the `lost` lowest of `left` living scores, of ties the last."""
    step = max(1, left // SAMPLED)
    # A step with a divisor of a tensor's widths would see the same few channels and places of a kernel again and again.
    while math.gcd(step, 2 * 3 * 5 * 7) > 1:
        step += 1
    share, stride = lost / max(left, 1), slice(None, None, step)
    pairs = list(zip(pools, gradients, strict=True))
    sampled = torch.cat([pool.scores(gradient, stride)[pool.alive[stride]] for pool, gradient in pairs])
    rank = math.ceil(len(sampled) * share + 4 * math.sqrt(len(sampled) * share * (1 - share))) + 1
    bound = float(sampled.kthvalue(rank).values) if rank < len(sampled) else math.inf
    indices, scores, sizes = _up_to(bound, pairs)
    if len(scores) < lost:
        indices, scores, sizes = _up_to(math.inf, pairs)
    chosen = ~keep_top({"near": scores}, len(scores) - lost)["near"]
    return [index[part] for index, part in zip(indices.split(sizes), chosen.split(sizes), strict=True)]


def _up_to(bound: float, pairs: Sequence[tuple[_Pool, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    """Indices in each pool and scores of all that live and score up to `bound`, and how many a pool has.

    Piece by piece, so that scores are made, looked at and forgotten within the cache.
    """
    indices, scores, sizes = [], [], []
    for pool, gradient in pairs:
        size = 0
        for start in range(0, len(pool.alive), PIECE):
            part = slice(start, start + PIECE)
            score = pool.scores(gradient, part)
            near = nonzero((score <= bound).logical_and_(pool.alive[part]))
            indices.append(near + start)
            scores.append(score.index_select(0, near))
            size += len(near)
        sizes.append(size)
    return torch.cat(indices), torch.cat(scores), sizes
