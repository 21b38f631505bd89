"""What every benchmark script shares: timing as medians, one row format, one table, one JSON file."""

import argparse
import json
import operator
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lthlib.workbook.machine import cores, processor


@dataclass(frozen=True)
class Timing:
    """Median wall seconds and median process CPU seconds (all threads) of one piece of work."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One measured figure.

    `limit` is what the same run measured beside it (the best that this machine could do, or what it is compared with),
    in the row's own unit. `goal` is a readable bound, such as ">= 0.7" or "<= 15": on the ratio value / limit where
    there is a limit, on the value otherwise. `plain` is the same work as users would write it, in the same unit, and
    `plain_goal` a bound on `times`. A figure without a goal misses none.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    goal: str | None = None
    plain: float | None = None
    plain_goal: str | None = None

    @property
    def ratio(self) -> float | None:
        """value / limit; None without a limit."""
        return None if self.limit is None else self.value / self.limit

    @property
    def times(self) -> float | None:
        """How many times faster than the plain way: plain / value of times, value / plain of rates."""
        if self.plain is None:
            return None
        return self.plain / self.value if self.unit in ("s", "ms") else self.value / self.plain

    @property
    def met(self) -> bool:
        """Whether the goals hold."""
        measured = self.value if self.ratio is None else self.ratio
        return _holds(measured, self.goal) and _holds(self.times, self.plain_goal)

    def record(self) -> dict[str, object]:
        """The row as it stands in the JSON file."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "limit": self.limit,
            "ratio": self.ratio,
            "goal": self.goal,
            "plain": self.plain,
            "times": self.times,
            "plain_goal": self.plain_goal,
            "met": self.met,
        }


def timing(work: Callable[[], object], repeats: int = 5) -> Timing:
    """Runs `work` `repeats` times and takes the medians; warm it up (compile, caches) before."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return Timing(statistics.median(wall), statistics.median(cpu))


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser that has `--json FILE`."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    return arguments


def machine() -> str:
    """The machine in one line: processor and number of cores this process may use."""
    return f"{processor()}, {cores()} cores"


def report(rows: Iterable[Row], json_file: Path | None = None) -> None:
    """Prints the machine and the rows as a table and, if a file is named, writes the list of rows to it."""
    rows = list(rows)
    columns = ["name", "value", "unit", "limit", "ratio", "goal"]
    if any(row.plain is not None for row in rows):
        columns += ["plain", "times", "plain_goal"]
    columns.append("met")
    table = [columns, *([_cell(row.record()[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(machine())
    for line in table:
        cells = (c.ljust(w) if i in {0, 2} else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(cells).rstrip())
    if json_file is not None:
        json_file.write_text(json.dumps([row.record() for row in rows], indent=1) + "\n")


def _holds(measured: float | None, goal: str | None) -> bool:
    if goal is None or measured is None:
        return True
    sign, bound = goal.split()
    return {">=": operator.ge, "<=": operator.le}[sign](measured, float(bound))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)
