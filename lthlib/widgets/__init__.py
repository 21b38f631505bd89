"""Explorers: sliders over the workbook's pure functions, for JupyterLab and Voila; each also draws static figures."""

from lthlib.widgets.bases import BasisExplorer
from lthlib.widgets.claims_board import ClaimsBoard
from lthlib.widgets.elastic import ElasticExplorer
from lthlib.widgets.sketch import SketchExplorer
from lthlib.widgets.subset_sums import SubsetSumExplorer
from lthlib.widgets.tickets import TicketExplorer
from lthlib.widgets.universal import UniversalExplorer

__all__ = [
    "BasisExplorer",
    "ClaimsBoard",
    "ElasticExplorer",
    "SketchExplorer",
    "SubsetSumExplorer",
    "TicketExplorer",
    "UniversalExplorer",
]
