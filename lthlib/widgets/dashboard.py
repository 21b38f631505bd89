"""All explorers on one page, for `./run_all.sh app` (Voila); each is made when its tab is first opened."""

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as controls

from lthlib import widgets
from lthlib.widgets.explorer import Explorer, one_line

PAGES: dict[str, Callable[[], Explorer]] = {
    "Claims": widgets.ClaimsBoard,
    "Tickets": widgets.TicketExplorer,
    "Bases": widgets.BasisExplorer,
    "Sketches": widgets.SketchExplorer,
    "Elastic": widgets.ElasticExplorer,
    "Universal": widgets.UniversalExplorer,
    "Subset sums": widgets.SubsetSumExplorer,
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
