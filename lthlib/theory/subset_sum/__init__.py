"""Which of n random numbers add up to a target, and how many are needed."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
