"""What a run leaves behind and how it is judged: tables, claims, plots, widgets."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
