"""The process that kernels are forked from: it imports what notebooks use, and forks a kernel for each line it is sent.

The runner starts `python -m lthlib.workbook.preloaded` with a socket as its standard input (see `forks`). A line is
JSON: the kernel's arguments, environment, folder, and the file for its errors. The answer is a line with the kernel's
process number, and one with its exit code when it has ended.
"""

import builtins
import gc
import json
import os
import socket
import sys
import warnings
from importlib import import_module
from pathlib import Path
from threading import Thread
from time import sleep
from types import SimpleNamespace
from typing import Any

from lthlib.workbook import kernel

# None of them may start a thread, compute with torch or touch a GPU when it is imported: a fork would have none of it.
# Nor pyplot or matplotlib_inline: who shows their figures is settled in the kernel that first imports them.
MODULES = (
    "ipykernel.ipkernel", "ipykernel.kernelapp", "pyarrow.parquet", "torch",
    "lthlib.evidence.curves", "lthlib.evidence.grids", "lthlib.evidence.measure", "lthlib.evidence.results",
    "lthlib.studies.basis", "lthlib.studies.beyond", "lthlib.studies.elastic", "lthlib.studies.saliency",
    "lthlib.studies.strong", "lthlib.studies.universal", "lthlib.widgets.tickets",
)  # fmt: skip


def main() -> None:
    """Serves until the runner closes its end of the socket or dies."""
    kernel.leave_current_folder()
    # Of kernels too; matplotlib reads it when it is imported.
    os.environ["MPLBACKEND"] = kernel.BACKEND
    preload()
    # What is shared stays shared: the collector would write into every page.
    gc.collect()
    gc.freeze()
    runner = socket.socket(fileno=os.dup(0))
    for line in runner.makefile("r", encoding="utf-8"):
        with warnings.catch_warnings():
            # Of threads that idle here: those of numpy's and pyarrow's, which see to forks themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            number = os.fork()
        if number == 0:
            _become_kernel(runner, json.loads(line))
        runner.sendall(f"{number}\n".encode())
        _, status = os.waitpid(number, 0)
        runner.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def preload() -> None:
    """Imports `MODULES`, as they are imported in a kernel."""
    # pandas asks, when it is imported, whether it is in a kernel, and shows more columns there.
    builtins.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    import_module("pandas")
    del builtins.get_ipython  # type: ignore[attr-defined]
    for module in MODULES:
        import_module(module)


def _become_kernel(runner: socket.socket, wanted: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        for file, target, mode in ((os.devnull, 0, os.O_RDONLY), (wanted["log"], 2, os.O_WRONLY | os.O_APPEND)):
            opened = os.open(file, mode)
            os.dup2(opened, target)
            os.close(opened)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["folder"])
        import numpy as np

        # Python's own generator sees to itself.
        np.random.seed()  # noqa: NPY002
        sys.argv = [str(Path(kernel.__file__)), *wanted["arguments"]]
        Thread(target=_end_with, args=(runner,), daemon=True).start()
        # 1: the runner is not the parent, so ipykernel cannot look after it, and need not tell how to connect to it.
        kernel.serve([*wanted["arguments"], "--IPKernelApp.parent_handle=1"])
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with(runner: socket.socket) -> None:
    """A runner killed outright closes its end; nothing else comes while this kernel runs."""
    while runner.recv(1, socket.MSG_PEEK):
        sleep(0.1)
    os._exit(1)


if __name__ == "__main__":
    main()
