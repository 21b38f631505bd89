"""Settings for all tests: no screen, few threads, the same examples every time, kernels compiled once."""

import os
from pathlib import Path

# Before any test imports torch, numba or matplotlib. Tiny tensors lose time on many threads.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kept between runs, and found by kernels that notebooks start.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba"))

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from smoke import smoke_folder

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("notebook", "browser", "nightly")):
            item.add_marker("unit")


@pytest.fixture(autouse=True)
def _number_of_threads() -> Iterator[None]:
    """Restores torch's, on which sums inside a convolution depend, after a test that pretends to have others."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's smoke passes, which `smoke.smoke_pass` fills when first asked."""
    return smoke_folder(tmp_path_factory.getbasetemp())
