"""Which tickets train together, as what kind of network, and how many at a time."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from threading import Event

import torch
from torch import nn

from lthlib.models.architecture import Architecture, skeleton, with_factory
from lthlib.ticket import Ticket
from lthlib.training.linear_stack import LinearStack, is_linear_sequence
from lthlib.training.module_networks import ConvolutionStack, SingleNetwork, is_common
from lthlib.training.network import Network
from lthlib.training.parallel import Value, shares, values_of
from lthlib.training.stacked_layers import REGISTER, can_stack

# On the CPU, wider convolutions fill its registers by themselves, and a stack only takes more of its caches.
NARROW = 8
# A bias of a convolution is added, and its gradient summed, by passes of their own, which cost more on larger images.
LARGEST_WITH_BIAS = 14 * 14
# How many networks fill a register at most for stacks to pay.
MOST_TWINS = 4
# Bytes of a stack's widest activation that a core's caches hold beside all else.
CACHE = 2**22
# Networks of convolutions in a stack, at most: more gains nothing that was measured.
HIGHEST, HIGHEST_ON_GPU = 8, 16


def network(
    tickets: Sequence[Ticket], device: torch.device, dtype: torch.dtype, state_in: str = "coefficients"
) -> Network:
    """The trainable form of tickets of one of the `groups`."""
    kind = _kind(tickets[0], device)
    return kind(tickets, skeleton(tickets[0].architecture), device, dtype, state_in)


def is_linear(ticket: Ticket) -> bool:
    """Whether the ticket's network is a plain sequence of linear layers."""
    return _is_linear(with_factory(ticket.architecture))


@lru_cache(maxsize=256)
def _is_linear(architecture: Architecture) -> bool:
    return is_linear_sequence(skeleton(architecture))


@lru_cache(maxsize=256)
def _channels(architecture: Architecture) -> tuple[int, ...]:
    """The channels of all convolutions of a network that can stack; none of one that cannot.

    A user's forward pass may do what only one network's activations allow.
    """
    module = skeleton(architecture)
    if architecture.is_own or not can_stack(module):
        return ()
    return tuple(layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))


@lru_cache(maxsize=256)
def _has_biases(architecture: Architecture) -> bool:
    return any(isinstance(layer, nn.Conv2d) and layer.bias is not None for layer in skeleton(architecture).modules())


def _twins(channels: Sequence[int]) -> int:
    """What the height of a stack must be a multiple of, so that its channels fill whole registers.

    Torch's sums over what is left of a register's width round otherwise than those inside. And one group alone is
    another kernel's.
    """
    return max(2, REGISTER // math.gcd(REGISTER, *channels))


def _kind(ticket: Ticket, device: torch.device) -> type[Network]:
    """By the architecture and the device alone: the same replicate rounds otherwise in another kind of network."""
    if is_linear(ticket):
        return LinearStack
    architecture = with_factory(ticket.architecture)
    channels, (_, *sides) = _channels(architecture), architecture.input_shape
    if not channels:
        return SingleNetwork
    pays = min(channels) <= NARROW and _twins(channels) <= MOST_TWINS
    pays &= math.prod(sides) <= LARGEST_WITH_BIAS or not _has_biases(architecture)
    return ConvolutionStack if pays or device.type != "cpu" else SingleNetwork


def stack_key(ticket: Ticket, device: torch.device, state_in: str = "coefficients") -> object | None:
    """What tickets share that train as one stack; None for a ticket that must be trained alone.

    Where masks are more than a product with 0 or 1, all tickets of a stack prune the same layers: a projection onto
    the mask of a dense layer would be no more than rounding, but rounding that its neighbours decide.
    """
    kind = _kind(ticket, device)
    if kind is SingleNetwork or (kind is LinearStack and any(basis.stored_numbers for basis in ticket.bases.values())):
        return None
    own = kind is ConvolutionStack
    bases = {name: "own" if own and not is_common(b) else b.to_json() for name, b in ticket.bases.items()}
    pruned = []
    if kind is LinearStack or state_in == "weights":
        pruned = [name for name, mask in ticket.masks.items() if not bool(mask.all())]
    return json.dumps([ticket.architecture.to_json(), ticket.off, bases, pruned], sort_keys=True)


def groups(
    tickets: Sequence[Ticket], device: torch.device, batch: int, state_in: str, asked: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Indices of tickets that are one network: those beside each other on the CPU's cores, and those in turn on all.

    Linear and narrow convolutional networks stack. Another has a core for itself, unless fewer than the cores were
    `asked` for: then each has all cores in its turn. What a store already holds must not decide it, because the sums
    inside a convolution depend on the number of cores in their last bits. `batch` is the size of a step's.
    """
    together: dict[object, list[int]] = {}
    for index, ticket in enumerate(tickets):
        together.setdefault(stack_key(ticket, device, state_in) or index, []).append(index)
    beside: list[list[int]] = []
    in_turn: list[list[int]] = []
    for group in together.values():
        kind, on_cpu = _kind(tickets[group[0]], device), device.type == "cpu"
        highest, whole = None if kind is LinearStack else 1, 1
        if kind is ConvolutionStack:
            whole = _twins(_channels(tickets[group[0]].architecture))
            highest = (_height(tickets[group[0]], batch) if on_cpu else HIGHEST_ON_GPU) // whole
        parts = shares(math.ceil(len(group) / whole), torch.get_num_threads() if on_cpu else 1, highest)
        alone = kind is SingleNetwork and not (on_cpu and asked >= torch.get_num_threads())
        (in_turn if alone else beside).extend(group[part.start * whole : part.stop * whole] for part in parts)
    return beside, in_turn


def _height(ticket: Ticket, batch: int) -> int:
    """How many convolutional networks one core trains at once: as many as its caches hold, some at least."""
    channels, (_, *sides) = _channels(ticket.architecture), ticket.architecture.input_shape
    return min(HIGHEST, max(_twins(channels), CACHE // (4 * batch * min(channels) * math.prod(sides))))


def in_stacks(
    tickets: Sequence[Ticket],
    device: torch.device,
    work: Callable[[list[Ticket], Event], list[Value]],
    *,
    batch: int,
    state_in: str = "coefficients",
    asked: int,
) -> Iterator[Value]:
    """A value for each ticket, in their order and as soon as it is there, from `work(stack, stop)` on their `groups`.

    A stack of convolutions is filled up with twins, whose values are dropped.
    """
    beside, in_turn = groups(tickets, device, batch, state_in, asked)

    def run(stack: list[int], stop: Event) -> list[Value]:
        members = [tickets[i] for i in stack]
        missing = 0
        if _kind(members[0], device) is ConvolutionStack:
            missing = -len(members) % _twins(_channels(members[0].architecture))
        return work(members + members[:1] * missing, stop)[: len(members)]

    values: dict[int, Value] = {}
    pending = list(range(len(tickets)))
    together = zip(beside, values_of([partial(run, stack) for stack in beside], device), strict=True)
    for stack, given in chain(together, ((stack, run(stack, Event())) for stack in in_turn)):
        values |= zip(stack, given, strict=True)
        while pending and pending[0] in values:
            yield values.pop(pending.pop(0))
