"""The same family of networks with fewer weights."""

from bisect import bisect_left

from lthlib.errors import InputError
from lthlib.models import architecture as models
from lthlib.models.architecture import Architecture, prunable


def small_dense(architecture: Architecture, count: int) -> Architecture:
    """The same family with all widths scaled down by one factor, its prunable count as near to `count` as widths allow.

    For "small dense at equal parameters": compare `ticket.kept` with what the result has. Never wider than
    `architecture`. Raises InputError for a user's own module, and for a count below 1.
    """
    name, shape, classes = architecture.name, architecture.input_shape, architecture.classes
    family, *numbers = name.split("-")
    if family not in ("lenet", "conv", "vgg", "resnet") or count < 1:
        raise InputError(f"no model like {name!r} of {count} weights is known (valid: lenet, conv, vgg, resnet)")
    plain, _, own = name.partition("-w")

    def narrower(width: int) -> Architecture:
        if family == "lenet":
            hidden = [max(1, round(int(number) * width / widest)) for number in numbers]
            return models.architecture("-".join(map(str, (family, *hidden))), shape, classes)
        return models.architecture(f"{plain}-w{width}", shape, classes)

    default = 16 if family == "resnet" else 64
    widest = max(map(int, numbers)) if family == "lenet" else int(own) if own else default
    widths = range(1, widest + 1)
    place = min(bisect_left(widths, count, key=lambda width: _size(narrower(width))), widest - 1)
    return min((narrower(widths[i]) for i in {max(place - 1, 0), place}), key=lambda a: abs(_size(a) - count))


def _size(architecture: Architecture) -> int:
    state = models.skeleton(architecture).state_dict()
    return sum(state[name].numel() for name in prunable(architecture))
