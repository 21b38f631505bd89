"""Seeds: one replicate number fixes every draw, through generators that are separate by purpose."""

from hashlib import blake2b

import torch


def stream_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of a replicate, such as `(seed, "order", epoch)`.

    Streams of different purposes are independent, so that adding a draw to one never moves another,
    and a run that resumes at epoch 7 needs no replay of epochs 0 to 6.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose of a replicate; draws are moved to the device afterwards."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))
