"""lthlib: the lottery-ticket workbook's library. A ticket is architecture, bases, coefficients and mask."""

__version__ = "0.1.0"
