"""TicketExplorer: how far can this network be pruned, where, and does the ticket train?"""

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import ipywidgets as controls
import pandas as pd

from lthlib.data import Dataset
from lthlib.ticket import Ticket
from lthlib.training.loop import Trained
from lthlib.training.recipe import Recipe
from lthlib.widgets import loaded
from lthlib.widgets.background import Background, Cancelled, train_watched
from lthlib.widgets.explorer import Explorer, density_slider, dropdown, labelled, one_line
from lthlib.widgets.loaded import Loaded
from lthlib.widgets.scene import shared
from lthlib.widgets.ticket_views import SIZE, Bench, Result, TicketFacts, draw_ticket, rewound, ticket_facts


class TicketExplorer(Explorer):
    """A dense network under a mask of any density: accuracy, density of each layer, mask and effective filters.

    `dense`: what `magnitude.train_dense` returned, with its `dataset` and `recipe`; `table`: measured rows, drawn as
    curves; `found`: pruned tickets of the first replicate. With nothing given, small networks are trained first.
    'Prune live' masks the trained network and evaluates it on at most 5,000 validation images without training.
    """

    def __init__(
        self,
        dense: Sequence[Trained] | None = None,
        dataset: Dataset | None = None,
        recipe: Recipe | None = None,
        table: pd.DataFrame | None = None,
        found: Sequence[Ticket] = (),
        source: Loaded | None = None,
    ) -> None:
        self.bench = Bench(source or loaded.loaded(dense, dataset, recipe, table, found))
        self.background = Background()
        first = {
            "density": 0.1,
            "basis": "canonical",
            "finder": "trained magnitude",
            "seed": self.bench.source.seeds[0],
            "layer": self.bench.layers[0],
            "live": True,
        }
        examples = shared(first, {"density": 0.5}, {"density": 0.1}, {"density": 0.02})
        super().__init__("Ticket explorer", self._controls, self._facts, draw_ticket, SIZE, examples)

    @classmethod
    def of_run(cls, folder: Path | str, data_dir: Path | str = "data") -> "TicketExplorer":
        """The explorer of a finished run's folder, results/<profile>/<notebook>; see `loaded.of_run`."""
        return cls(source=loaded.of_run(folder, data_dir))

    def _facts(self, **settings: Any) -> TicketFacts:
        return ticket_facts(self.bench, **settings)

    def _controls(self) -> dict[str, controls.Widget]:
        return {
            "density": density_slider(),
            "basis": dropdown("basis", self.bench.rules),
            "finder": dropdown("finder", self.bench.finders),
            "seed": dropdown("seed", self.bench.source.seeds),
            "layer": dropdown("layer", self.bench.layers),
            "live": controls.Checkbox(value=True, description="Prune live", indent=True),
        }

    def extras(self) -> list[controls.Widget]:
        """Train, its progress, and Cancel."""
        self.train_button = controls.Button(description="Train this ticket", button_style="primary", icon="play")
        self.cancel_button = controls.Button(description="Cancel", icon="stop", disabled=True)
        more = {name: one for name, one in labelled("training").items() if name != "continuous_update"}
        self.progress = controls.IntProgress(value=0, min=0, max=1, **more)
        self.state = controls.HTML("")
        self.train_button.on_click(lambda _: self.train())
        self.cancel_button.on_click(lambda _: self.cancel())
        return [controls.HBox([self.train_button, self.cancel_button, self.progress, self.state])]

    def train(self) -> None:
        """Trains the ticket of the present settings from its rewound values, in the background."""
        chosen = {name: self.settings[name] for name in ("seed", "basis", "finder")}
        place = (chosen["seed"], chosen["basis"], chosen["finder"])
        try:
            ticket = rewound(self.bench, density=self.settings["density"], **chosen)
        except Exception as error:
            self.tell(one_line(error))
            return
        source = self.bench.source

        def work(stop: Event) -> Result:
            run = train_watched(ticket, source.recipe, source.dataset, chosen["seed"], self._report, stop)
            return Result(place, ticket.density, self.bench.accuracy(run.ticket))

        if self.background.start(work, self._ended):
            self.train_button.disabled, self.cancel_button.disabled = True, False
            self.state.value = f"training a ticket of density {100 * ticket.density:.3g} %"
            self.tell("")

    def cancel(self) -> None:
        """Ends the training that is under way; nothing of it is kept."""
        self.background.cancel()

    def close(self) -> None:
        """Cancels a training and ends the widget."""
        self.background.cancel()
        super().close()

    def _report(self, done: int, total: int) -> None:
        self.progress.max, self.progress.value = total, done

    def _ended(self, result: object, error: BaseException | None) -> None:
        # The picture first: who waits for the word finds the point.
        if isinstance(result, Result):
            self.bench.with_result(result)
            if self._box is not None:
                self.redraw()
            self.state.value = f"trained: {result.accuracy:.1f} % at density {100 * result.density:.3g} %"
        else:
            self.state.value = "cancelled" if isinstance(error, Cancelled) else "failed"
            if error is not None and not isinstance(error, Cancelled):
                self.tell(one_line(error))
            self.progress.value = 0
        self.train_button.disabled, self.cancel_button.disabled = False, True
