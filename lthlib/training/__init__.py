"""Tickets trained: the recipe, the loop, the stored results."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
