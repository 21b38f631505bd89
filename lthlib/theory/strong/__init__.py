"""Strong lottery tickets: a random network pruned into a given one."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
