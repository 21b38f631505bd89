"""16 seeds of digits-sized networks as one call, stacked, beside 16 calls one after the other, at batch 64.

The limit is the time of the same arithmetic at the rate of a large matrix product; what small matrices, gathering and
the update cost comes on top of it.
"""

import statistics
import time
from collections.abc import Callable

from limits import gemm_rate
from reporting import Row, parser, report

from lthlib import data
from lthlib.models.architecture import architecture
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import train

GOALS = {"lenet-64-32": ">= 6", "lenet-300-100": ">= 2.2"}


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Prints one row a network."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="a fraction of an epoch, for correctness only")
    arguments.add_argument("--seeds", type=int, default=16)
    arguments.add_argument("--epochs", type=float, default=10)
    options = arguments.parse_args()
    epochs, repeats, size = (0.1, 1, 256) if options.tiny else (options.epochs, 3, 2048)
    images, seeds = data.load("digits"), list(range(options.seeds))
    recipe = Recipe(learning_rate=0.05, batch_size=64, epochs=epochs, evaluations=1)
    rows = []
    for name, goal in GOALS.items():
        model = architecture(name, images.input_shape, images.classes)
        tickets = initial_tickets(model, seeds)
        first, *others = (mask.numel() for mask in tickets[0].masks.values())
        examples = recipe.steps(len(images.train.labels)) * recipe.batch_size
        work = len(seeds) * examples * (4 * first + 6 * sum(others)) / 1e9

        def together(tickets: list = tickets) -> object:
            return train(tickets, recipe, images)

        def in_turn(tickets: list = tickets) -> object:
            return [train([ticket], recipe, images) for ticket in tickets]

        together()
        # In turn, so that a drift of the machine's speed touches both alike.
        taken = [(seconds(together), seconds(in_turn)) for _ in range(repeats)]
        stacked, single = (statistics.median(times) for times in zip(*taken, strict=True))
        label = f"{images.input_shape[1] ** 2}-{name.removeprefix('lenet-')}-10, {len(seeds)} seeds stacked"
        rows.append(
            Row(
                f"{label}: {recipe.steps(len(images.train.labels))} steps",
                stacked,
                "s",
                work / gemm_rate(size),
                None,
                single,
                None if options.tiny else goal,
            )
        )
    report(rows, options.json)


if __name__ == "__main__":
    main()
