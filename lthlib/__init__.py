"""lthlib: the lottery-ticket workbook's library. A ticket is architecture, bases, coefficients and mask."""

import os

# MKL reads it once, at its first product; see lthlib.rounding.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = "0.1.0"
