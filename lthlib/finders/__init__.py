"""Ways to find a mask: by training and pruning, from scores at initialization, while training, or in a random net."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
