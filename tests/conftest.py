"""Settings for all tests: figures without a screen, few threads, the same examples every time."""

import os

# Before any test imports torch or matplotlib. Tiny tensors lose time on many threads.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")
