r"""Elastic tickets: a ticket of one depth carried to another depth of its family by copying or dropping whole units.

A **depth map** says it as plain data: for each stage of the target, in order, the ids of the source's units. With one
map coefficients, mask, basis and BatchNorm state of a unit move together; copies start identical.
Source: Chen et al., The Elastic Lottery Ticket Hypothesis, arXiv 2103.16547 (Elastic Ticket Transformations).

A *unit* is a residual block (ResNet), a convolution with its BatchNorm (VGG), or a linear layer. The first unit of a
stage stays first and is never copied, except in VGG's linear stage, whose layers are all alike; stem and output layer
are carried as they are. Units that may be copied or dropped are *replicable*.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from lthlib.errors import InputError, unknown
from lthlib.masks.controls import layerwise_shuffle
from lthlib.models.architecture import Architecture, prunable, skeleton
from lthlib.randomness import generator
from lthlib.ticket import State, Ticket

FAMILIES = ("resnet", "vgg", "lenet")
ORDERS = ("append", "interpolate")
DROPS = ("late", "early", "interval", "consecutive")

StageMap = tuple[int, ...]
DepthMap = tuple[StageMap, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of a network: the state-dict prefix of each unit, and the range of ids that are replicable."""

    name: str
    units: tuple[str, ...]
    replicable: range

    @property
    def first_fixed(self) -> bool:
        """Whether unit 0 must stay the first one, and the only one of its kind."""
        return 0 not in self.replicable


@lru_cache(maxsize=256)
def stages(architecture: Architecture) -> tuple[Stage, ...]:
    """The stages of a ResNet, VGG or MLP (`lenet-...`), in order; the output layer and a ResNet's stem are in none.

    An MLP is one stage of hidden layers; replicable is its first run of square ones after the first layer. Raises
    InputError for another family.
    """
    family = architecture.name.split("-")[0]
    if architecture.is_own or family not in FAMILIES:
        raise unknown("family of an elastic ticket, model", architecture.name, (f"{one}-..." for one in FAMILIES))
    weights = [name.removesuffix(".weight") for name in prunable(architecture)]
    if family == "lenet":
        shapes, hidden = _shapes(architecture), weights[:-1]
        square = [i for i, name in enumerate(hidden) if i and len(set(shapes[f"{name}.weight"])) == 1]
        run = [i for place, i in enumerate(square) if i == square[0] + place]
        return (Stage("hidden", tuple(f"{name}." for name in hidden), range(run[0], run[-1] + 1) if run else range(0)),)
    found: dict[str, list[str]] = {}
    for name in weights:
        stage, _, unit = name.rpartition(".") if name.startswith("hidden.") else ("", "", "")
        if name.startswith("stages."):
            head, number, unit = name.split(".")[:3]
            stage = f"{head}.{number}"
        if stage and f"{stage}.{unit}." not in found.setdefault(stage, []):
            found[stage].append(f"{stage}.{unit}.")
    return tuple(Stage(name, tuple(u), range(0 if name == "hidden" else 1, len(u))) for name, u in found.items())


@lru_cache(maxsize=256)
def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in skeleton(architecture).state_dict().items()}


# ------------------------------------------------------------------------------------------- lists of one stage's units


def append(units: Sequence[int], length: int, chosen: Sequence[int] | None = None, *, at_end: bool = False) -> StageMap:
    """`units` with `chosen` ones (default: all) repeated as a whole, pass after pass, up to `length` entries.

    Passes follow the last chosen unit (`at_end`: the last unit). A length that is no whole number of passes repeats the
    first few chosen once more; that pass follows the last of those. arXiv 2103.16547, section 3.2; uneven counts are
    the workbook's reading of it. Raises InputError for no unit to copy, unknown ids or a length below `len(units)`.
    """
    copied, passes, more = _copies(units, length, chosen)
    found = []
    for unit in units:
        found.append(unit)
        if more and unit == copied[more - 1] and not at_end:
            found += copied[:more]
        if passes and unit == copied[-1] and not at_end:
            found += copied * passes
    return tuple(found + (copied * passes + copied[:more] if at_end else []))


def interpolate(units: Sequence[int], length: int, chosen: Sequence[int] | None = None) -> StageMap:
    """`units` with `chosen` ones (default: all) repeated in place, up to `length` entries; early ones once more first.

    Raises InputError as `append` does.
    """
    copied, passes, more = _copies(units, length, chosen)
    times = {unit: 1 + passes + (place < more) for place, unit in enumerate(copied)}
    return tuple(unit for unit in units for _ in range(times.get(unit, 1)))


def _copies(units: Sequence[int], length: int, chosen: Sequence[int] | None) -> tuple[list[int], int, int]:
    copied = list(units) if chosen is None else sorted(set(chosen))
    if missing := [unit for unit in copied if unit not in units]:
        raise InputError(f"unit {missing[0]} cannot be copied (valid: {_ids(units)})")
    extra = length - len(units)
    if extra < 0:
        raise InputError(f"{len(units)} units cannot be stretched to {length} (squeeze them)")
    if extra and not copied:
        raise InputError(f"there is no unit to copy for {extra} more (a stage's first unit is never copied)")
    return copied, *(divmod(extra, len(copied)) if copied else (0, 0))


def drop(units: Sequence[int], length: int, which: str = "late", *, start: int | None = None) -> StageMap:
    """`units` without some, `length` of them left in ascending order: a squeeze.

    `late` drops the last ones; `early` the first; `interval` evenly (what undoes `interpolate`); `consecutive` a run
    from position `start` on (default: what undoes `append`). Raises InputError for a length above `len(units)`.
    """
    if which not in DROPS:
        raise unknown("units to drop", which, DROPS)
    gone = len(units) - length
    if not 0 <= length <= len(units):
        raise InputError(f"{len(units)} units cannot be squeezed to {length}")
    if which in ("late", "early"):
        return tuple(units[:length] if which == "late" else units[gone:])
    if start is not None:
        if which != "consecutive" or not 0 <= start <= length:
            raise InputError(f"{gone} consecutive units cannot be dropped from position {start} (valid: 0 to {length})")
        return tuple([*units[:start], *units[start + gone :]])
    if not length:
        return ()
    stretched = (interpolate if which == "interval" else append)(range(length), len(units))
    return tuple(units[stretched.index(unit)] for unit in range(length))


def _ids(units: Sequence[object]) -> str:
    return ", ".join(map(str, units)) or "none"


# ----------------------------------------------------------------------------------------------------- maps of networks


def depth_map(
    source: Architecture,
    target: Architecture,
    order: str = "append",
    *,
    chosen: Sequence[int] | None = None,
    which: str = "late",
    start: int | None = None,
    at_end: bool = False,
) -> DepthMap:
    """The map from `source` to `target`, stage by stage: stretched by `order`, or squeezed by dropping `which` units.

    `chosen`: ids of the units to copy (default: all replicable). Stages of equal length are carried as they are.
    Raises InputError for networks of different families or stages, and as `append`, `interpolate` and `drop` do.
    """
    if order not in ORDERS:
        raise unknown("order of copies", order, ORDERS)
    found = []
    for before, after in zip(*_both(source, target), strict=True):
        own, length = list(before.replicable), len(before.replicable) + len(after.units) - len(before.units)
        if length == len(own):
            middle: Sequence[int] = own
        elif length < len(own):
            middle = drop(own, max(0, length), which, start=start)
        elif order == "append":
            middle = append(own, length, chosen, at_end=at_end)
        else:
            middle = interpolate(own, length, chosen)
        low, high = (own[0], own[-1] + 1) if own else (len(before.units), len(before.units))
        found.append((*range(low), *middle, *range(high, len(before.units))))
    checked = tuple(found)
    validate(checked, source, target)
    return checked


def identity(architecture: Architecture) -> DepthMap:
    """The map that carries every unit to its own place."""
    return tuple(tuple(range(len(stage.units))) for stage in stages(architecture))


def undo(stretched: DepthMap) -> DepthMap:
    """The squeeze that keeps the first occurrence of every unit: it takes a stretched ticket back, bit for bit.

    Raises InputError for a map that drops units, which nothing brings back.
    """
    for stage in stretched:
        if sorted(set(stage)) != list(range(len(set(stage)))):
            raise InputError(f"map {to_text(stretched)!r} drops units, so that nothing undoes it")
    return tuple(tuple(stage.index(unit) for unit in range(len(set(stage)))) for stage in stretched)


def compose(first: DepthMap, second: DepthMap) -> DepthMap:
    """One map that does what `first` and then `second` do."""
    if len(first) != len(second) or any(max(b, default=0) >= len(a) for a, b in zip(first, second, strict=True)):
        raise InputError(f"map {to_text(second)!r} does not start where map {to_text(first)!r} ends")
    return tuple(tuple(a[unit] for unit in b) for a, b in zip(first, second, strict=True))


def permuted(depths: DepthMap, source: Architecture, seed: int) -> DepthMap:
    """The same units in a random order within each stage, fixed ones staying in place: the order's control."""
    shuffled = []
    for number, (stage, line) in enumerate(zip(stages(source), depths, strict=True)):
        places = [place for place, unit in enumerate(line) if unit in stage.replicable]
        order = torch.randperm(len(places), generator=generator(seed, "block order", number)).tolist()
        moved = dict(zip(places, (line[places[i]] for i in order), strict=True))
        shuffled.append(tuple(moved.get(place, unit) for place, unit in enumerate(line)))
    return tuple(shuffled)


def to_text(depths: DepthMap) -> str:
    """The map as `source:target[,target...];...`, stages apart by `|` (as in VITA-Group/ElasticLTH)."""
    parts = []
    for stage in depths:
        targets = {unit: [str(place) for place, one in enumerate(stage) if one == unit] for unit in sorted(set(stage))}
        parts.append(";".join(f"{unit}:{','.join(places)}" for unit, places in targets.items()))
    return "|".join(parts)


def from_text(text: str) -> DepthMap:
    """Reads what `to_text` writes. Raises InputError where it is no map, or a target unit has no source or two."""
    depths = []
    for number, part in enumerate(text.split("|")):
        places: dict[int, int] = {}
        for entry in filter(None, part.strip().split(";")):
            unit, _, targets = entry.partition(":")
            if not unit.strip().isdecimal() or not all(one.strip().isdecimal() for one in targets.split(",")):
                raise InputError(f"map {text!r}: {entry!r} is not SOURCE:TARGET[,TARGET...] (valid: 0:0;1:1,2)")
            if any(len(one.strip()) > 9 for one in (unit, *targets.split(","))):
                raise InputError(f"map {text[:60]!r}...: {entry[:20]!r} names a unit that no network has")
            for place in map(int, targets.split(",")):
                if place in places:
                    raise InputError(f"map {text!r}: unit {place} of stage {number} has two sources")
                places[place] = int(unit)
        # So many units are the first so many, or one of these has no source.
        if gaps := sorted(set(range(len(places))) - set(places)):
            raise InputError(f"map {text!r}: unit {gaps[0]} of stage {number} has no source")
        depths.append(tuple(places[place] for place in range(len(places))))
    return tuple(depths)


def _both(source: Architecture, target: Architecture) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    before, after = stages(source), stages(target)
    families = [one.name.split("-")[0] for one in (source, target)]
    if families[0] != families[1]:
        raise InputError(f"a ticket of {source.name!r} cannot be carried to another family, {target.name!r}")
    if [one.name for one in before] != [one.name for one in after]:
        raise InputError(
            f"{source.name!r} has the stages {_ids([one.name for one in before])}, "
            f"{target.name!r} the stages {_ids([one.name for one in after])}: a ticket needs the same ones"
        )
    return before, after


def validate(depths: DepthMap, source: Architecture, target: Architecture) -> None:
    """Raises InputError, printing map and valid ids, unless `depths` carries `source` to `target`.

    That is: the same stages, a source for each unit of the target, every first unit in its place and nowhere else, and
    equal shapes of each unit and its source.
    """
    before, after = _both(source, target)
    shown = f"map {to_text(depths)!r} from {source.name} to {target.name}"
    if len(depths) != len(after):
        raise InputError(f"{shown} has {len(depths)} stages (valid: {len(after)})")
    shapes = _shapes(source), _shapes(target)
    for number, (line, old, new) in enumerate(zip(depths, before, after, strict=True)):
        valid = f"valid ids in stage {number}: 0 to {len(old.units) - 1}, for {len(new.units)} units"
        if wrong := [unit for unit in line if not 0 <= unit < len(old.units)]:
            raise InputError(f"{shown} names unit {wrong[0]}, which stage {number} does not have ({valid})")
        if len(line) < len(new.units):
            raise InputError(f"{shown} leaves unit {len(line)} of stage {number} without a source ({valid})")
        if len(line) > len(new.units):
            raise InputError(f"{shown} has {len(line)} entries in stage {number} ({valid})")
        if old.first_fixed and (line[0] != 0 or line.count(0) > 1):
            raise InputError(
                f"{shown} moves or copies unit 0 of stage {number}, which stays first, once ({valid}, 0 in front)"
            )
        for unit, prefix in zip(line, new.units, strict=True):
            ours, theirs = (
                {name[len(p) :]: shape for name, shape in state.items() if name.startswith(p)}
                for state, p in zip(shapes, (old.units[unit], prefix), strict=True)
            )
            if ours != theirs:
                one = next(iter({**theirs, **ours}))
                raise InputError(
                    f"{shown} puts unit {unit} of stage {number}, whose {one!r} has shape {ours.get(one)}, at a place "
                    f"of shape {theirs.get(one)} ({valid})"
                )


# ---------------------------------------------------------------------------------------------------------- the tickets


def carry(ticket: Ticket, target: Architecture, depths: DepthMap) -> Ticket:
    """The ticket of `target` that the map `depths` makes of `ticket`: an elastic ticket.

    Coefficients, masks, bases and the state of biases and BatchNorm (running statistics and `num_batches_tracked`
    included) of a unit move together, copied, so that copies train apart. Exact in every basis: weights of a copied
    unit are the source's, bit for bit. Raises InputError for an invalid map, and with both shapes for a ticket of
    another width, stem, input or output.
    """
    validate(depths, ticket.architecture, target)
    own = {name: tuple(tensor.shape) for name, tensor in {**ticket.rest, **ticket.coefficients}.items()}
    origin = origins(ticket.architecture, target, depths)
    for name, shape in _shapes(target).items():
        if own.get(origin[name]) != shape:
            raise InputError(
                f"a ticket of {ticket.architecture.name!r}, whose {origin[name]!r} has shape {own.get(origin[name])}, "
                f"cannot be carried to {target.name!r}, whose {name!r} has shape {shape}"
            )
    inputs = ticket.architecture.input_shape, target.input_shape
    if inputs[0] != inputs[1] and target.name.startswith("lenet"):
        raise InputError(f"an MLP's ticket for inputs {inputs[0]} cannot be carried to inputs {inputs[1]}")
    names = prunable(target)

    def moved(state: State, chosen: Sequence[str]) -> State:
        return {name: state[origin[name]].clone() for name in chosen}

    return replace(
        ticket,
        architecture=target,
        bases={name: ticket.bases[origin[name]] for name in names},
        coefficients=moved(ticket.coefficients, names),
        masks=moved(ticket.masks, names),
        rest=moved(ticket.rest, [name for name in _shapes(target) if name not in names]),
    )


def origins(source: Architecture, target: Architecture, depths: DepthMap) -> dict[str, str]:
    """For each tensor of the target, the source's tensor that it is made from; in the target's order."""
    prefixes = {
        prefix: old.units[unit]
        for line, old, new in zip(depths, *_both(source, target), strict=True)
        for unit, prefix in zip(line, new.units, strict=True)
    }
    last = [prunable(one)[-1].removesuffix("weight") for one in (source, target)]
    found = {}
    for name in _shapes(target):
        prefix = next((one for one in prefixes if name.startswith(one)), "")
        found[name] = prefixes[prefix] + name[len(prefix) :] if prefix else name
        if name.startswith(last[1]):
            # An MLP's output layer has another number at another depth.
            found[name] = last[0] + name[len(last[1]) :]
    return found


def copies(source: Architecture, target: Architecture, depths: DepthMap) -> tuple[str, ...]:
    """The target's prunable tensors that are second or later copies of a source tensor."""
    origin, seen, found = origins(source, target, depths), set[str](), []
    for name in prunable(target):
        if origin[name] in seen:
            found.append(name)
        seen.add(origin[name])
    return tuple(found)


def with_copies_permuted(ticket: Ticket, source: Architecture, depths: DepthMap, seed: int) -> Ticket:
    """An elastic ticket with the masks of its copies shuffled within each tensor: counts and originals stay.

    arXiv 2103.16547, "Interpolation 1234 - Random". The values stay where they are.
    """
    chosen = {name: ticket.masks[name] for name in copies(source, ticket.architecture, depths)}
    return ticket.with_masks({**ticket.masks, **layerwise_shuffle(chosen, generator(seed, "copies permuted"))})


def kept_after(ticket: Ticket, target: Architecture, depths: DepthMap) -> tuple[int, int]:
    r"""Kept and prunable coefficients of the elastic ticket, $K_{fix}+\sum c_{j,b}k_{j,b}$, without making it."""
    origin = origins(ticket.architecture, target, depths)
    masks = [ticket.masks[origin[name]] for name in prunable(target)]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def drift_of_equal_copies(ticket: Ticket, target: Architecture) -> float:
    r"""Density drift $d_t-d_s=(\varphi_s-\varphi_t)(D_{norm}-D_{fix})$ if every replicable unit occurs equally often.

    $\varphi$ is the share of fixed weights in source and target, $D$ the source's densities of both parts.
    """
    parts = []
    for architecture in (ticket.architecture, target):
        prefixes = tuple(stage.units[unit] for stage in stages(architecture) for unit in stage.replicable)
        shapes = {name: torch.Size(_shapes(architecture)[name]).numel() for name in prunable(architecture)}
        parts.append(sum(size for name, size in shapes.items() if not name.startswith(prefixes)) / sum(shapes.values()))
    prefixes = tuple(stage.units[unit] for stage in stages(ticket.architecture) for unit in stage.replicable)
    density = {}
    for normal in (True, False):
        masks = [mask for name, mask in ticket.masks.items() if name.startswith(prefixes) == normal]
        density[normal] = sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))
    return (parts[0] - parts[1]) * (density[True] - density[False])
