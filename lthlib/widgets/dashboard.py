"""All explorers on one page, for `./run_all.sh app` (Voila); each is made when its tab is first opened."""

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as controls

from lthlib.widgets.bases import BasisExplorer
from lthlib.widgets.claims_board import ClaimsBoard
from lthlib.widgets.elastic import ElasticExplorer
from lthlib.widgets.explorer import Explorer, one_line
from lthlib.widgets.sketch import SketchExplorer
from lthlib.widgets.subset_sums import SubsetSumExplorer
from lthlib.widgets.tickets import TicketExplorer
from lthlib.widgets.universal import UniversalExplorer

PAGES: dict[str, Callable[[], Explorer]] = {
    "Claims": ClaimsBoard,
    "Tickets": TicketExplorer,
    "Bases": BasisExplorer,
    "Sketches": SketchExplorer,
    "Elastic": ElasticExplorer,
    "Universal": UniversalExplorer,
    "Subset sums": SubsetSumExplorer,
}


def dashboard(pages: Mapping[str, Callable[[], Explorer]] = PAGES) -> controls.Tab:
    """Tabs with one explorer each; a page that cannot be made says why in one line."""
    places = [controls.VBox([controls.HTML("⏳ …")]) for _ in pages]
    tabs = controls.Tab(places, titles=tuple(pages))
    shown: set[int] = set()

    def show(index: int) -> None:
        if index in shown:
            return
        shown.add(index)
        try:
            places[index].children = (list(pages.values())[index]().box,)
        except Exception as error:
            places[index].children = (controls.HTML(f"<p role='alert'>{html.escape(one_line(error))}</p>"),)

    def opened(change: Any) -> None:
        if change["new"] is not None:
            show(change["new"])

    tabs.observe(opened, "selected_index")
    show(0)
    return tabs
