"""Seconds until `lth --help` has answered, lthlib is imported, and a kernel of the runner has answered its first cell.

Each is a process of its own. Beside them stand an empty Python, `import torch`, and a kernel of ipykernel itself.
"""

import subprocess
import sys
import time
from collections.abc import Callable

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from reporting import Row, parser, report, timing

ROOMS = "import torch; import lthlib.training, lthlib.finders.imp, lthlib.finders.find"


def process(*arguments: str) -> Callable[[], object]:
    """Runs Python with the arguments to its end."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def kernel(module: str) -> float:
    """Seconds from the start of a kernel to the answer of its first cell."""

    class Chosen(KernelManager):
        kernel_spec = KernelSpec(argv=[sys.executable, "-m", module, "-f", "{connection_file}"], language="python")

    start = time.perf_counter()
    manager = Chosen()
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        client.execute_interactive("1 + 1", timeout=120, output_hook=lambda _: None)
        return time.perf_counter() - start
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main() -> None:
    """Prints one row a start."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="once each")
    options = arguments.parse_args()
    starts = {
        "empty": process("-c", ""),
        "help": process("-m", "lthlib.workbook.cli", "--help"),
        "torch": process("-c", "import torch"),
        "lthlib": process("-c", "import torch, lthlib"),
        "rooms": process("-c", ROOMS),
        "plain kernel": lambda: kernel("ipykernel_launcher"),
        "kernel": lambda: kernel("lthlib.workbook.kernel"),
    }
    seconds: dict[str, float] = {}
    for name, start in starts.items():
        if not options.tiny:
            # The first of each fills the disk's cache.
            start()
        seconds[name] = timing(start, 1 if options.tiny else 5).wall
    rows = [
        Row("lth --help", seconds["help"], "s", goal="<= 0.5"),
        Row("an empty Python, for scale", seconds["empty"], "s"),
        Row("import torch, for scale", seconds["torch"], "s"),
        Row("import lthlib, beyond torch", seconds["lthlib"] - seconds["torch"], "s", goal="<= 0.3"),
        Row("training and finders imported, beyond torch", seconds["rooms"] - seconds["torch"], "s", goal="<= 0.3"),
        Row("the runner's kernel: first cell answered", seconds["kernel"], "s", seconds["plain kernel"]),
    ]
    report(rows, options.json)


if __name__ == "__main__":
    main()
