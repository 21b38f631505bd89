"""A replicate's last digits do not depend on its neighbours, and where they do it is said."""

import os
import subprocess
import sys

import pytest

from lthlib import rounding

REPORT = "print(rounding.mkl_mode(), rounding.neighbours_leave_no_trace(), caught)"
LATE = f"""
import warnings
import torch
{{before}}
from lthlib import rounding
with warnings.catch_warnings(record=True) as every:
    warnings.simplefilter("always")
    rounding.warn_of_neighbours()
    rounding.warn_of_neighbours()
caught = len(every)
{REPORT}
"""


def report(before: str, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != rounding.VARIABLE} | variables
    command = [sys.executable, "-c", LATE.format(before=before)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_the_mode_is_set_before_the_first_product() -> None:
    assert os.environ[rounding.VARIABLE]
    assert rounding.neighbours_leave_no_trace()


@pytest.mark.parametrize("variables", [{}, {"MKL_CBWR": "AUTO"}, {"MKL_CBWR": "AVX2"}, {"MKL_CBWR": "AUTO,STRICT"}])
def test_importing_lthlib_is_enough_with_and_without_the_variable(variables: dict[str, str]) -> None:
    mode, alone, caught = report("", **variables)
    assert (alone, caught) == ("True", "0")
    assert mode != "OFF"


def test_too_late_is_said_once_where_it_matters() -> None:
    mode, alone, caught = report("torch.ones(64, 64) @ torch.ones(64, 64)")
    assert mode in ("OFF", "none")
    assert caught == ("0" if alone == "True" else "1")
