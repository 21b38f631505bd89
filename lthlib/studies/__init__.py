"""What one notebook needs: its arms, rows and figures."""

from lthlib.rooms import files_of

__getattr__ = files_of(__name__)
