"""The theory that the notebooks check: sketching, subset sums, strong and universal tickets."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
