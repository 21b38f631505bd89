"""Explorers: sliders over the workbook's pure functions, for JupyterLab and Voila; each also draws static figures."""

from lthlib.evidence.widgets.tickets import TicketExplorer

__all__ = ["TicketExplorer"]
