"""Masks as plain tensors: exact top-k, draws, counts, controls."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
