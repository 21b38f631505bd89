"""Architectures: what a network is, its modules and its initial states."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
