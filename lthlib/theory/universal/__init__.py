"""Universal lottery tickets: functions as masks on random networks."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
