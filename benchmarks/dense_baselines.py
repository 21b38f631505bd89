"""Recipe check: does each architecture, trained dense by the workbook's loop, reach its level in the literature?

The learning rate is picked among a few by validation accuracy in a short training of seed 0; then the longer training
of every seed reads the test split once. The levels hold for the literature's many epochs; where this machine trains
fewer, the row says so and has no goal.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from reporting import Row, parser, report

from lthlib import data
from lthlib.evidence.intervals import mean_interval
from lthlib.models.architecture import architecture
from lthlib.store import Store
from lthlib.ticket import initial_tickets
from lthlib.training.recipe import Recipe
from lthlib.training.train import evaluate, train


@dataclass(frozen=True)
class Baseline:
    """A dense network with its recipe; `short` are the epochs that the `rates` are compared over.

    `level` is test accuracy in the literature, in percent, and `goal` a readable bound for what `recipe` should reach.
    """

    model: str
    dataset: str
    recipe: Recipe
    rates: tuple[float, ...]
    short: float
    seeds: int
    level: float
    goal: str | None = None
    augmentation: str = "none"


# LeNet, its level and ResNet-20's: Frankle and Carbin 2019; Frankle et al. 2020. Conv-2 and Conv-4: the former,
# figure 5, read off to about a point. On CIFAR-10 the papers train 20 to 160 epochs on images without JPEG artefacts.
BASELINES = {
    "lenet": Baseline(
        "lenet-300-100", "mnist", Recipe(batch_size=128, epochs=20), (0.02, 0.05, 0.1, 0.2), 2, 5, 98.3, ">= 98.0"
    ),
    "conv-2": Baseline("conv-2", "cifar10", Recipe(batch_size=128, epochs=6), (0.01, 0.03, 0.1), 1, 2, 68),
    "conv-4": Baseline("conv-4", "cifar10", Recipe(batch_size=128, epochs=5), (0.01, 0.03, 0.1), 0.25, 1, 75),
    "resnet-20": Baseline(
        "resnet-20", "cifar10", Recipe(batch_size=128, epochs=6, weight_decay=1e-4), (0.05, 0.1, 0.2), 1, 1, 91.7,
        augmentation="crop-flip",
    ),
}  # fmt: skip


def rows_of(baseline: Baseline, dataset: data.Dataset, store: Store | None) -> list[Row]:
    """Validation accuracy by learning rate, then test accuracy of the best, in percent."""
    dataset = replace(dataset, augmentation=baseline.augmentation)
    net = architecture(baseline.model, dataset.input_shape, dataset.classes)
    name, rows, reached = f"{baseline.model}, {dataset.label}", [], {}
    for rate in baseline.rates:
        recipe = replace(baseline.recipe, epochs=baseline.short, learning_rate=rate, evaluations=1)
        told = f"{name}: validation, learning rate {rate:g}, {baseline.short:g} epochs"
        try:
            trained = train(initial_tickets(net, [0]), recipe, dataset, store=store, progress=f"{name}, rate {rate}")
        except FloatingPointError:
            rows.append(Row(f"{told}: diverged", 0, "%"))
            continue
        (found,) = evaluate([one.ticket for one in trained], dataset, "validation")
        reached[rate] = found.accuracy
        rows.append(Row(told, found.accuracy, "%"))
    if not reached:
        raise SystemExit(f"{name} diverged at each of the rates {baseline.rates}")
    best = max(reached, key=lambda rate: reached[rate])
    recipe = replace(baseline.recipe, learning_rate=best, evaluations=1)
    seeds = list(range(baseline.seeds))
    trained = train(initial_tickets(net, seeds), recipe, dataset, store=store, progress=f"{name}, dense")
    accuracies = [one.accuracy for one in evaluate([one.ticket for one in trained], dataset, "test")]
    spread = mean_interval(accuracies)
    told = f", 95 % interval {spread.low:.2f} to {spread.high:.2f}" if len(seeds) > 1 else ""
    told = f"{name}: test, rate {best:g}, {recipe.epochs:g} epochs, n = {len(seeds)}{told}; literature {baseline.level}"
    return [*rows, Row(told, spread.estimate, "%", goal=baseline.goal)]


def main() -> None:
    """Prints the rows of the baselines asked for; finished trainings are kept in `--store` and not repeated."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--only", nargs="+", default=["lenet"], choices=BASELINES, metavar="NAME")
    arguments.add_argument("--data-dir", type=Path, default=Path("data"))
    arguments.add_argument("--cifar", default="cifar10", help="what stands for CIFAR-10, such as folder:DIR")
    arguments.add_argument("--store", type=Path, help="folder for finished trainings")
    chosen = arguments.parse_args()
    rows = []
    for name in chosen.only:
        baseline = BASELINES[name]
        source = chosen.cifar if baseline.dataset == "cifar10" else baseline.dataset
        dataset = data.load(source, chosen.data_dir)
        rows += rows_of(baseline, dataset, Store(chosen.store) if chosen.store else None)
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
