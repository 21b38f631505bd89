"""Seconds until `lth --help` has answered, lthlib is imported, and a kernel of the runner has answered its first cell.

Each is a process of its own. Beside them stand an empty Python, `import torch`, and a kernel of ipykernel itself.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from jupyter_client.manager import start_new_kernel
from reporting import Row, parser, report, timing

ROOMS = "import torch; import lthlib.training, lthlib.finders.magnitude, lthlib.finders.saliency"


def process(*arguments: str) -> Callable[[], object]:
    """Runs Python with the arguments to its end."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def kernel(*module: str) -> float:
    """Seconds from the start of a kernel to the answer of its first cell."""
    with TemporaryDirectory(prefix="lth-") as folder:
        start = time.perf_counter()
        manager, client = start_new_kernel(
            startup_timeout=120,
            kernel_cmd=[sys.executable, "-m", *module, "-f", "{connection_file}"],
            connection_file=str(Path(folder) / "kernel.json"),
        )
        try:
            client.execute_interactive("1 + 1", timeout=120, output_hook=lambda _: None)
            return time.perf_counter() - start
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def main() -> None:
    """Prints one row a start."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="once each")
    repeats = 1 if (options := arguments.parse_args()).tiny else 5
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
        start()
        seconds[name] = timing(start, repeats).wall
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
