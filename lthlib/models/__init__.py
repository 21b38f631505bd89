"""Architectures: what a network is, its modules and its initial states."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
