"""A sweep of small runs beside the same runs one by one, each with a kernel of its own.

The runs differ in learning rate and have one seed; half of those one by one come before the sweeps, half after. All
must leave the same tables. `python benchmarks/sweeps.py [--json FILE] [--runs N] [--tiny]`.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from reporting import Row, parser, report

from lthlib.store import checksum, notebooks_folder
from lthlib.workbook.machine import cores
from lthlib.workbook.profiles import plan
from lthlib.workbook.run import run_notebook

NAME = "00_start_here"
TABLES = ("metrics.parquet", "claims.json", "ticket.safetensors")


def one_by_one(rates: Sequence[float], profile: str, folder: Path) -> float:
    """Seconds of a run for each rate, this process's imports left out."""
    (task,) = plan(["00"], profile, [], str(folder))
    start = time.perf_counter()
    for rate in rates:
        parameters = {**task.parameters, "learning_rate": rate, "seeds": 1}
        outcome = run_notebook(notebooks_folder() / f"{NAME}.ipynb", parameters, str(folder / point(rate) / NAME))
        if outcome.status != "done":
            sys.exit(f"a run failed: {outcome.reason}")
    return time.perf_counter() - start


def swept(rates: Sequence[float], profile: str, folder: Path, jobs: int) -> float:
    """Seconds of one sweep over the rates, `folder`/rates, from the shell."""
    folder.mkdir()
    grid = folder / "rates.yaml"
    grid.write_text(f"notebooks: [00]\nprofile: {profile}\nset: {{learning_rate: {list(rates)}}}\nseeds: 1\n")
    command = [sys.executable, "-m", "lthlib.workbook.cli", "sweep", str(grid), "--jobs", str(jobs)]
    start = time.perf_counter()
    subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)
    return time.perf_counter() - start


def point(rate: float) -> str:
    """The name of a run's folder in a sweep."""
    return f"learning_rate={rate},seeds=1"


def main() -> None:
    """Prints the seconds of the runs one by one and of sweeps of them."""
    arguments = parser((__doc__ or "").splitlines()[0])
    arguments.add_argument("--runs", type=int, default=32, help="an even number")
    arguments.add_argument("--tiny", action="store_true", help="two runs of the smoke profile")
    options = arguments.parse_args()
    runs, profile = (2, "smoke") if options.tiny else (options.runs, "quick")
    rates = [round(0.02 + 0.001 * number, 3) for number in range(runs)]
    numbers = sorted({1, cores()}, reverse=True)
    with TemporaryDirectory(prefix="lth-") as name:
        folder = Path(name)
        # What the first run fills, for this process and on the disk, is no part of the others.
        one_by_one(rates[:1], "smoke", folder / "first")
        alone = one_by_one(rates[::2], profile, folder / "alone")
        sweeps = {jobs: swept(rates, profile, folder / str(jobs), jobs) for jobs in numbers}
        alone += one_by_one(rates[1::2], profile, folder / "alone")
        for results in (folder / str(jobs) / "rates" for jobs in numbers):
            for table in (Path(point(rate), NAME, table) for rate in rates for table in TABLES):
                if checksum(results / table) != checksum(folder / "alone" / table):
                    sys.exit(f"the sweep's {table} is another one")
    rows = [Row(f"{runs} runs of notebook 00, one by one", alone, "s")]
    for jobs in numbers:
        goal = "<= 0.5" if jobs > 1 and not options.tiny else None
        rows.append(Row(f"{runs} runs of notebook 00, swept {jobs} at a time", sweeps[jobs], "s", alone, goal))
    report(rows, options.json)


if __name__ == "__main__":
    main()
