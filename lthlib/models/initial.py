"""Initial states of a replicate, by scheme."""

import torch
from torch import Tensor, nn

from lthlib.errors import unknown
from lthlib.models.architecture import Architecture, _construct, _layers
from lthlib.randomness import generator

SCHEMES = ("kaiming_normal", "kaiming_uniform", "glorot_normal", "signed_constant", "open_lth")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


def initial_state(architecture: Architecture, seed: int, scheme: str = "kaiming_normal") -> dict[str, Tensor]:
    """A replicate's complete initial state dict (parameters and buffers), float32 on the CPU.

    Convolution and linear weights follow `scheme`; biases are 0, normalisation weights 1 and biases 0:

    - `kaiming_normal`: N(0, 2 / fan_in) (He et al., arXiv 1502.01852, eq. 10); `kaiming_uniform`: the same variance.
    - `glorot_normal`: N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010), used in arXiv 1803.03635.
    - `signed_constant`: the sign of the `kaiming_normal` draw times its standard deviation (arXiv 1905.01067, 4.2).
    - `open_lth`: `kaiming_normal` with normalisation weights ~ U(0, 1) (facebookresearch/open_lth).

    Each tensor has a generator of its own, so its draw depends on `seed`, its name and its shape alone. Parameters
    of any other layer of a user's own module keep what its constructor drew. Raises InputError for unknown schemes.
    """
    if scheme not in SCHEMES:
        raise unknown("initialisation scheme", scheme, SCHEMES)
    module = _construct(architecture, seed)
    with torch.no_grad():
        for name, layer in _layers(module):
            _draw(layer.weight, scheme, generator(seed, "init", name))
            if layer.bias is not None:
                layer.bias.zero_()
        for name, norm in module.named_modules():
            if isinstance(norm, _NORMS) and norm.weight is not None:
                norm.weight.fill_(1)
                if scheme == "open_lth":
                    norm.weight.uniform_(0, 1, generator=generator(seed, "init", f"{name}.weight"))
                if norm.bias is not None:
                    norm.bias.zero_()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _draw(weight: Tensor, scheme: str, source: torch.Generator) -> None:
    if scheme == "glorot_normal":
        nn.init.xavier_normal_(weight, generator=source)
    elif scheme == "kaiming_uniform":
        nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=source)
    else:
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=source)
    if scheme == "signed_constant":
        deviation = (2 / weight[0].numel()) ** 0.5
        weight.copy_(torch.where(weight >= 0, deviation, -deviation))
