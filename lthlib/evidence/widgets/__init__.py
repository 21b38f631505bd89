"""Explorers: sliders over the workbook's pure functions, for JupyterLab and Voila; each also draws static figures."""

from lthlib.evidence.widgets.bases import BasisExplorer
from lthlib.evidence.widgets.claims_board import ClaimsBoard
from lthlib.evidence.widgets.elastic import ElasticExplorer
from lthlib.evidence.widgets.sketch import SketchExplorer
from lthlib.evidence.widgets.subset_sums import SubsetSumExplorer
from lthlib.evidence.widgets.tickets import TicketExplorer
from lthlib.evidence.widgets.universal import UniversalExplorer

__all__ = [
    "BasisExplorer",
    "ClaimsBoard",
    "ElasticExplorer",
    "SketchExplorer",
    "SubsetSumExplorer",
    "TicketExplorer",
    "UniversalExplorer",
]
