"""What training in a basis costs over training canonically: seconds of the same steps, in turn, as ratios.

LeNet-300-100 on MNIST-shaped data with a basis on the images only and on both axes of every layer; ResNet-20 on
CIFAR-shaped data with a basis on every axis of every kernel. Batch 128, float32.
"""

import statistics
import time
from collections.abc import Callable

from images import CIFAR, MNIST, random_images
from reporting import Row, parser, report

from lthlib.data import Dataset
from lthlib.models.architecture import architecture
from lthlib.ticket import Ticket, bases_for, initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import train


def step_seconds(tickets: list[Ticket], dataset: Dataset, epochs: int) -> Callable[[], float]:
    """Seconds a step at batch 128, anew at each call; the set-up around the steps (turning the data) included."""
    recipe = Recipe(batch_size=128, epochs=epochs, evaluations=1)

    def measure() -> float:
        start = time.perf_counter()
        train(tickets, recipe, dataset)
        return (time.perf_counter() - start) / recipe.steps(len(dataset.train.labels))

    measure()
    return measure


def overhead(
    model: str, replicates: int, dataset: Dataset, goals: dict[str, str], repeats: int, epochs: int
) -> list[Row]:
    """One row a basis rule: median seconds a step beside the canonical ones, measured in turn."""
    initial = initial_tickets(architecture(model, dataset.input_shape, 10), list(range(replicates)))
    turned = {rule: [ticket.in_bases(bases_for(ticket, rule)) for ticket in initial] for rule in goals}
    measures = {
        rule: step_seconds(tickets, dataset, epochs) for rule, tickets in ({"canonical": initial} | turned).items()
    }
    # In turn, so that a drift of the machine's speed touches all alike.
    taken: dict[str, list[float]] = {rule: [] for rule in measures}
    for _ in range(repeats):
        for rule, measure in measures.items():
            taken[rule].append(measure())
    limit = statistics.median(taken["canonical"])
    return [
        Row(f"{model}, {replicates} stacked, {rule}: a step", statistics.median(taken[rule]), "s", limit, goal)
        for rule, goal in goals.items()
    ]


def main() -> None:
    """Prints one row a basis."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--lenet-examples", type=int, default=12_800)
    arguments.add_argument("--epochs", type=int, default=5, help="of a LeNet training, whose data are turned once")
    arguments.add_argument("--resnet-examples", type=int, default=512)
    chosen = arguments.parse_args()
    inputs, both = "<= 1.1", "<= 1.8"
    lenet = {"dct@input": inputs, "haar@input": inputs, "random@input": inputs} | dict.fromkeys(
        ("dct", "haar", "hadamard", "random"), both
    )
    resnet = dict.fromkeys(("dct@kernel", "dct", "hadamard", "random"), "<= 1.15")
    rows = overhead(
        "lenet-300-100", 4, random_images(MNIST, chosen.lenet_examples), lenet, chosen.repeats, chosen.epochs
    )
    rows += overhead("resnet-20", 1, random_images(CIFAR, chosen.resnet_examples, 16), resnet, chosen.repeats, 1)
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
