"""All notebooks with the quick profile, end to end, two at a time: seconds and memory.

The limit is what an older checkout takes, right before, where one is named.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reporting import Row, parser, report


def timed_run(checkout: Path, chosen: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a run by that checkout's code, and the manifests that it leaves."""
    with TemporaryDirectory(prefix="lth-") as folder:
        command = [sys.executable, "-m", "lthlib.workbook.cli", "run", *chosen, "--jobs", "2", "--out", folder]
        start = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, check=True, capture_output=True, cwd=checkout, env=environment)
        seconds = time.perf_counter() - start
        return seconds, [
            json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*/*/manifest.json")
        ]


def main() -> None:
    """Prints the seconds of the run and the memory of its two largest kernels together."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--before", type=Path, help="a checkout of an older commit, which runs first: the limit")
    arguments.add_argument("--tiny", action="store_true", help="notebook 00 alone with the smoke profile")
    tiny = (options := arguments.parse_args()).tiny
    chosen = ["00", "--profile", "smoke"] if tiny else ["--profile", "quick"]
    before = None if options.before is None else timed_run(options.before.resolve(), chosen)[0]
    seconds, facts = timed_run(Path(__file__).resolve().parents[1], chosen)
    memory = sorted((fact["peak_memory_bytes"] for fact in facts), reverse=True)
    label = f"{'smoke' if tiny else 'quick'} profile, {len(facts)} notebooks, 2 at a time"
    goal = "<= 360" if before is None else "<= 0.55"
    rows = [
        Row(label, seconds, "s", limit=before, goal=None if tiny else goal),
        Row("peak memory of the two largest kernels, summed", sum(memory[:2]) / 2**30, "GiB", goal="<= 4"),
    ]
    report(rows, options.json)


if __name__ == "__main__":
    main()
