"""All benchmarks, one after the other, each in a process of its own: one table, and one file with the machine stated.

Each figure stands beside the limit that the same run measured on the same machine, and beside the same work as users
would write it. `results/reference/benchmarks.json` takes the rows unless --json names another file; parts that are not
measured this time stay in the file if the machine is the same. benchmarks/README.md's table is made from it.

`python benchmarks/run_all.py [--only PART ...] [--full] [--data-dir DIR] [--tiny] [--json FILE]`; a quarter of an
hour on two cores, with --full more. Exit codes: 0 done, 1 a part failed, 2 bad input.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from reporting import Row, machine, report

from lthlib.errors import InputError, unknown
from lthlib.store import write_json
from lthlib.workbook.performance import FILE, write_pages

FOLDER = Path(__file__).resolve().parent
REFERENCE = FOLDER.parent / FILE


@dataclass(frozen=True)
class Part:
    """A script and how it is called.

    `arguments` fit it into a run of minutes, which `--full` leaves out; `heavy` ones only run then. `data` ones take
    `--data-dir`, and `needs_data` ones are left out without it. `why` says what keeps its rows from their goals, shown
    where one is missed.
    """

    title: str
    arguments: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ("--tiny",)
    heavy: bool = False
    data: bool = False
    needs_data: bool = False
    why: str = ""


TINY_LENET = ("--examples", "256", "--epochs", "1", "--replicates", "2")
TINY_BASES = ("--lenet-examples", "256", "--resnet-examples", "128", "--epochs", "1", "--repeats", "1")

PARTS = {
    "start_up": Part("Start-up"),
    "train_lenet": Part(
        "LeNet-300-100 against matrix products",
        why="batches gathered and masked updates move memory that the count of products leaves out; on Intel the "
        "forward product alone reached about 60 % of a large one's rate",
    ),
    "plain_loops": Part("Training steps beside DataLoader loops"),
    "train_resnet": Part(
        "ResNet-20, fp32 and bf16",
        ("--steps", "3", "--repeats", "2"),
        why="about a third of a step is BatchNorm, ReLU and additions, passes over memory that torch does not join "
        "with the convolutions; these by themselves have their own row",
    ),
    "stacks": Part("Small networks stacked", why="where the arithmetic is the limit, stacking saves only calls"),
    "pruning": Part("Iterative magnitude pruning", data=True),
    "basis_overhead": Part(
        "Training in a basis",
        ("--repeats", "2", "--epochs", "3"),
        TINY_BASES,
        why="the bases take turns here, so that the images are turned anew each time, which is as much work as an "
        "epoch; in a pruning chain they are turned once for all levels",
    ),
    "saliency": Part(
        "Pruning at initialization and samplers",
        why="SynFlow's ranking takes 20 ms a round whatever the threads, its pass 94 ms on one and 54 ms on two",
    ),
    "searches": Part("Edge-popup"),
    "tensors": Part("Masks, transforms, subset sums"),
    "subset_sum": Part("Subset sums, Pensia's task", ("--repeats", "1", "--skip-rates"), data=True, needs_data=True),
    "universal": Part("Universal tickets", heavy=True),
    "widgets": Part(
        "Explorers",
        heavy=True,
        data=True,
        why="an event on 5,000 images takes one core for as long as its products do",
    ),
    "dense_baselines": Part("Dense baselines, accuracy", tiny=(), heavy=True, data=True, needs_data=True),
    "sweeps": Part("Sweeps", heavy=True),
    "quick_profile": Part(
        "Quick profile, end to end",
        heavy=True,
        why="what is left is training, whose products run near the machine's rate, searches, figures and start-up",
    ),
}


def measured(name: str, *, tiny: bool, full: bool, more: Sequence[str] = ()) -> dict[str, Any]:
    """Runs one part; its record: title, command, date, load before it, seconds, rows, or why it failed.

    `more` are arguments that name folders of this machine, which no record tells.
    """
    part = PARTS[name]
    arguments = [*(part.tiny if tiny else () if full else part.arguments)]
    record: dict[str, Any] = {"title": part.title, "command": " ".join(["python", f"benchmarks/{name}.py", *arguments])}
    record |= {"why": part.why, "date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": [], "failed": ""}
    record["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    start = time.perf_counter()
    with TemporaryDirectory(prefix="lth-") as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments, *more, "--json", str(file)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            record["rows"] = json.loads(file.read_text(encoding="utf-8"))
        else:
            record["failed"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    record["seconds"] = round(time.perf_counter() - start, 1)
    return record


def this_machine() -> dict[str, Any]:
    """What figures depend on beside the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"torch": torch.__version__, "python": python_version()}
    return {"processor": machine(), "threads": torch.get_num_threads(), "gpu": gpu, **versions}


def before(file: Path) -> dict[str, Any]:
    """The parts that `file` holds already; InputError where they are another machine's."""
    if not file.exists():
        return {}
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["machine"] != this_machine():
        raise InputError(
            f"{file.name!r} was measured on {record['machine']} (choose another --json FILE, or delete it)"
        )
    return dict(record["parts"])


def chosen(only: Sequence[str], full: bool) -> list[str]:
    """The parts to run, in their order; InputError for names that are none."""
    for name in only:
        if name not in PARTS:
            raise unknown("benchmark", name, PARTS)
    return [name for name, part in PARTS.items() if name in only or (not only and (full or not part.heavy))]


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--full", action="store_true", help="more repeats, and the parts that take long")
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies; parts that can do without take the digits")
    parser.add_argument("--before", type=Path, help="an older checkout, beside which the quick profile is timed")
    parser.add_argument("--tiny", action="store_true", help="to see that everything runs; its figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="in place of the project's own record")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the parts and returns the exit code."""
    options = parsed(words)
    names = chosen(options.only, options.full)
    if options.data_dir is None and not options.tiny:
        for name in [name for name in names if PARTS[name].needs_data]:
            print(f"{name} is left out: it needs MNIST (--data-dir DIR)", file=sys.stderr)
            names.remove(name)
    file = options.json or (None if options.tiny else REFERENCE)
    parts = before(file) if file else {}
    ran = {}
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name} ...", end=" ", flush=True, file=sys.stderr)
        more = ["--data-dir", options.data_dir] if PARTS[name].data and options.data_dir else []
        more += ["--before", options.before] if name == "quick_profile" and options.before else []
        ran[name] = measured(name, tiny=options.tiny, full=options.full, more=[str(word) for word in more])
        print(ran[name]["failed"] or f"{ran[name]['seconds']:.0f} s", file=sys.stderr)
        merged = parts | ran
        if file:
            # After each part, so that an interrupted run keeps what it has.
            ordered = {name: merged[name] for name in PARTS if name in merged}
            write_json(file, {"machine": this_machine(), "tiny": options.tiny, "parts": ordered})
    rows = [
        Row(**{field.name: row[field.name] for field in fields(Row)}) for one in ran.values() for row in one["rows"]
    ]
    if rows:
        report(rows)
    if file and file.resolve() == REFERENCE.resolve():
        write_pages(FOLDER.parent)
    return int(any(one["failed"] for one in ran.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
