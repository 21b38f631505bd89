"""Iterative magnitude pruning of LeNet-300-100: a whole run of 10 levels x 5 seeds, and bases that share its start.

The plain way is a DataLoader loop with torch.nn.utils.prune: one of its trainings is timed and counted as often as the
run trains. The limit is the arithmetic of all trainings at the rate of a large matrix product. Several bases are held
against single-basis runs that train the dense level each for itself: k bases may cost (1 + 0.95 (k - 1)) of their mean.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from limits import gemm_rate
from plain import masked, step_seconds
from reporting import Row, parser, report

from lthlib import data
from lthlib.finders.find import find
from lthlib.finders.imp import Pruning, in_basis, iterative_magnitude_pruning, train_dense
from lthlib.models.architecture import Architecture, architecture, build
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe

BASES = ("canonical", "dct@input", "haar@input")


def seconds(
    model: Architecture,
    rules: Sequence[str],
    recipe: Recipe,
    images: data.Dataset,
    seeds: Sequence[int],
    pruning: Pruning,
) -> float:
    """Wall seconds of one dense training and, from it, all levels in the bases of each rule."""
    start = time.perf_counter()
    dense = train_dense(initial_tickets(model, seeds), recipe, images)
    for rule in rules:
        for _ in iterative_magnitude_pruning(in_basis(dense, rule), recipe, images, pruning):
            pass
    return time.perf_counter() - start


def main() -> None:
    """Prints a row of the whole run and one of the bases."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="few images, levels and seeds, for correctness only")
    arguments.add_argument("--data-dir", type=Path, help="where MNIST lies; without it the digits are taken")
    arguments.add_argument("--epochs", type=float, default=1, help="of each training of the whole run")
    arguments.add_argument("--examples", type=int, default=10_000, help="images that the bases are compared on")
    tiny = (options := arguments.parse_args()).tiny
    if options.data_dir and not tiny:
        images = data.load("mnist", options.data_dir, download=False)
    else:
        images = data.load("digits", train_size=128 if tiny else None)
    model = architecture("lenet-24-16" if tiny else "lenet-300-100", images.input_shape, images.classes)
    pruning, seeds = Pruning(levels=2 if tiny else 10), list(range(2 if tiny else 5))
    recipe = Recipe(batch_size=64, epochs=options.epochs, evaluations=5)
    ours = seconds(model, ["canonical"], recipe, images, seeds, pruning)
    (ticket,) = initial_tickets(model, [0])
    first, *others = (mask.numel() for mask in ticket.masks.values())
    steps = recipe.steps(len(images.train.labels)) * len(seeds) * (pruning.levels + 1)
    work = steps * recipe.batch_size * (4 * first + 6 * sum(others)) / 1e9
    torch.manual_seed(0)  # of the plain loop's shuffling alone
    loop = step_seconds(masked(build(model), find(ticket, 0.1, "erk")), images, recipe.batch_size)
    name = (
        f"IMP, {model.name} on {images.name}, {pruning.levels} levels x {len(seeds)} seeds x {recipe.epochs:g} epochs"
    )
    rows = [Row(name, ours, "s", work / gemm_rate(256 if tiny else 2048), None, steps * loop)]
    part = images
    if not tiny and options.data_dir:
        part = data.load("mnist", options.data_dir, train_size=options.examples, validation_size=1000, download=False)
    one = statistics.mean(seconds(model, [rule], recipe, part, seeds, pruning) for rule in BASES)
    several = seconds(model, BASES, recipe, part, seeds, pruning)
    most = (1 + 0.95 * (len(BASES) - 1)) * one
    name = f"IMP in {len(BASES)} bases ({', '.join(BASES)}), dense level shared, against (1 + 0.95 (k - 1)) single runs"
    rows.append(Row(name, several, "s", most, None if tiny else "<= 1", len(BASES) * one))
    report(rows, options.json)


if __name__ == "__main__":
    main()
