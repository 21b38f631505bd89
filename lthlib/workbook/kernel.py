"""Runs inside the kernel: starts ipykernel and reports, after each cell, what the notebook has used so far.

The runner starts `python -m lthlib.workbook.kernel`; figures such as peak memory are known only here. After each cell,
because a kernel that ends slowly is killed before it could report at its end.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

from lthlib.workbook.machine import processor

REPORT = "LTH_KERNEL_REPORT"
# A backend set for the shell, such as agg, would leave the figures out of the notebook.
BACKEND = "module://matplotlib_inline.backend_inline"


def main() -> None:
    """Starts the kernel with the arguments of the command line; returns when it is shut down."""
    leave_current_folder()
    Thread(target=_end_with_parent, daemon=True).start()
    serve(sys.argv[1:])


def leave_current_folder() -> None:
    """`-m` puts the current folder first on the path, where a stray `random.py` would shadow the standard library's."""
    if sys.path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]


def serve(arguments: Sequence[str]) -> None:
    """Runs a kernel with these arguments until it is shut down."""
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance()
    # Kernels side by side would wait for each other's lock on the one history file.
    app.initialize([*arguments, "--HistoryManager.enabled=False"])
    if REPORT in os.environ and app.shell is not None:
        app.shell.events.register("post_run_cell", lambda _: write_report(Path(os.environ[REPORT])))
    app.start()


def _end_with_parent() -> None:
    """A runner killed outright cannot stop its kernel, which must not go on writing beside the next run's.

    ipykernel looks once a second, and for init alone where it started too late; init is not who adopts everywhere.
    """
    parent = int(os.environ.get("JPY_PARENT_PID", "0"))
    while parent > 1 and hasattr(os, "getppid"):
        if os.getppid() != parent:
            os._exit(1)
        sleep(0.1)


def write_report(path: Path) -> None:
    """Writes `usage()` as JSON, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(usage()), encoding="utf-8")
    part.replace(path)


def usage() -> dict[str, Any]:
    """Device, threads and peak memory of this process so far; memory in bytes, device memory as torch allocated it."""
    torch = sys.modules.get("torch")
    used: dict[str, Any] = {"device": processor(), "peak_memory_bytes": peak_memory()}
    if torch is None:
        return used
    from lthlib.rounding import mkl_mode, neighbours_leave_no_trace

    used["threads"] = torch.get_num_threads()
    used["mkl"] = mkl_mode()
    used["neighbours_leave_no_trace"] = neighbours_leave_no_trace()
    used["deterministic"] = torch.are_deterministic_algorithms_enabled()
    if torch.cuda.is_initialized():
        used["device"] = torch.cuda.get_device_name()
        used["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
        used["cuda"] = torch.version.cuda
        used["cudnn"] = torch.backends.cudnn.version()
        used["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return used


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a child starts with its parent's peak.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
