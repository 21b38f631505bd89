"""All notebooks with the quick profile, end to end, two at a time: seconds and memory."""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from reporting import Row, parser, report


def main() -> None:
    """Prints the seconds of the run and the memory of its two largest kernels together."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="notebook 00 alone with the smoke profile")
    tiny = (options := arguments.parse_args()).tiny
    with TemporaryDirectory(prefix="lth-") as folder:
        chosen = ["00", "--profile", "smoke"] if tiny else ["--profile", "quick"]
        start = time.perf_counter()
        command = [sys.executable, "-m", "lthlib.workbook.cli", "run", *chosen, "--jobs", "2", "--out", folder]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        facts = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*/*/manifest.json")]
    memory = sorted((one["peak_memory_bytes"] for one in facts), reverse=True)
    label = f"{'smoke' if tiny else 'quick'} profile, {len(facts)} notebooks, 2 at a time"
    rows = [
        Row(label, seconds, "s", goal=None if tiny else "<= 360"),
        Row("peak memory of the two largest kernels, summed", sum(memory[:2]) / 2**30, "GiB", goal="<= 4"),
    ]
    report(rows, options.json)


if __name__ == "__main__":
    main()
