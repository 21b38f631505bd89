"""Tickets trained: the recipe, the loop, the stored results."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
