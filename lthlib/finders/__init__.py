"""Ways to find a mask: by training and pruning, from scores at initialization, while training, or in a random net."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
