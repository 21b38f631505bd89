"""Whether a replicate's last digits depend on what is computed beside it; they must not, on any processor.

MKL takes other kernels for stacks of other heights on processors that are not Intel's, and for tensors that lie
otherwise in memory, unless its conditional numerical reproducibility is on. `AUTO` keeps the instruction set that MKL
would have chosen anyway, so it moves least; `STRICT` leaves where tensors lie out of it; neither costs time. The
package's first lines set them, since MKL reads `MKL_CBWR` once, at its first product.
"""

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

VARIABLE = "MKL_CBWR"
MODE = "AUTO,STRICT"
# What MKL's `cbwr_get` returns in its lower half (mkl_types.h); the upper half is the strict flag.
_MODES = {1: "OFF", 2: "AUTO", 3: "COMPATIBLE", 4: "SSE2", 5: "SSSE3", 6: "SSE4_1", 7: "SSE4_2", 8: "AVX", 9: "AVX2"}
_MODES |= {10: "AVX512_MIC", 11: "AVX512", 12: "AVX512_MIC_E1", 13: "AVX512_E1"}
_ALL = ctypes.c_int(-1)
# (examples, inputs, outputs) of layers that MKL rounds by the height of their stack where it may.
_LAYERS = ((22, 23, 10), (1, 37, 23), (30, 64, 37), (22, 100, 10))


# Below so many rows a product is another kernel's, whatever the mode.
_ROWS = 4


def rows_times(x: Tensor, matrix: Tensor) -> Tensor:
    """x (..., rows, n) times a matrix (n, m), rounded alike however many rows lie beside each other."""
    rows = x.shape[-2]
    if rows >= _ROWS:
        return x @ matrix
    return (torch.nn.functional.pad(x, (0, 0, 0, _ROWS - rows)) @ matrix)[..., :rows, :]


def mkl_mode() -> str:
    """MKL's mode of reproducibility in this process, such as `AUTO` or `AVX512,STRICT`; `none` without MKL."""
    if not torch.backends.mkl.is_available():
        return "none"
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for where, name in ((library, "mkl_serv_cbwr_get"), (None, "MKL_CBWR_Get")):
        try:
            mode = getattr(ctypes.CDLL(None if where is None else str(where)), name)(_ALL)
        except (OSError, AttributeError):
            continue
        return _MODES.get(mode & 0xFFFF, str(mode)) + (",STRICT" if mode & 0x10000 else "")
    return "unknown"


@cache
def neighbours_leave_no_trace() -> bool:
    """Whether linear layers of one replicate alone give the bits that they give in stacks of two to five (2 ms)."""
    source = torch.Generator().manual_seed(0)
    for examples, inputs, outputs in _LAYERS:
        x = torch.randn(5, examples, inputs, generator=source)
        weight = torch.randn(5, outputs, inputs, generator=source)
        alone = [torch.bmm(x[i : i + 1].clone(), weight[i : i + 1].clone().mT)[0] for i in range(5)]
        for height in range(2, 6):
            stacked = torch.bmm(x[:height].clone(), weight[:height].clone().mT)
            if not all(torch.equal(row, own) for row, own in zip(stacked, alone, strict=False)):
                return False
    return True


@cache
def warn_of_neighbours() -> None:
    """Warns, once in a process, where `neighbours_leave_no_trace` is false, and says what mends it."""
    if not neighbours_leave_no_trace():
        warnings.warn(
            f"a replicate's last digits depend here on how many train beside it: MKL's mode is {mkl_mode()} "
            f"(import lthlib before the first product of torch, and leave {VARIABLE} unset or {MODE})",
            stacklevel=3,
        )
