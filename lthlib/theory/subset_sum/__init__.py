"""Which of n random numbers add up to a target, and how many are needed."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
