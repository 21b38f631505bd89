"""Strong lottery tickets: a random network pruned into a given one."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
