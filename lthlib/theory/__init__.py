"""The theory that the notebooks check: sketching, subset sums, strong and universal tickets."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
