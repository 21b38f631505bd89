"""What the rooms of theory call an array."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
