"""What one notebook needs: its arms, rows and figures."""

import lthlib

__getattr__ = lthlib.files_of(__name__)
