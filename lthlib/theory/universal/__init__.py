"""Universal lottery tickets: functions as masks on random networks."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
