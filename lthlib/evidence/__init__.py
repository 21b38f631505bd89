"""What a run leaves behind and how it is judged: tables, claims, plots, widgets."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
