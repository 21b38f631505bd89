"""What `faults.py` does to sweeps and files: kills processes, damages bytes, fills disks."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import psutil

TRAIN = Path(__file__).parents[1] / "tests" / "fixtures" / "notebooks" / "train.ipynb"
SLOW = TRAIN.with_name("slow.ipynb")
GRID = f"notebooks: ['{TRAIN}']\nset: {{keep: [0.3, 0.5, 0.7]}}\n"


@dataclass(frozen=True)
class Command:
    """A running `lth` and what it has printed; a file, because a pipe that nobody reads would stop it."""

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]


def lth(folder: Path, *arguments: str) -> Command:
    """Starts `lth` in `folder`."""
    command = [sys.executable, "-m", "lthlib.workbook.cli", *arguments]
    log = TemporaryFile()  # noqa: SIM115 (read by `ended`)
    return Command(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT), log)


def ended(command: Command, seconds: float = 900) -> tuple[int, str]:
    """The exit code and what was printed, when it has ended."""
    code = command.process.wait(timeout=seconds)
    command.log.seek(0)
    return code, command.log.read().decode()


def ends_within(command: Command, seconds: float) -> bool:
    """Waits until the command has ended, or for so many seconds; whether it has ended."""
    try:
        command.process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def sweep(folder: Path, grid: str = GRID, jobs: int = 2) -> tuple[int, str]:
    """Writes the grid into `folder` and sweeps it to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "g.yaml").write_text(grid, encoding="utf-8")
    return ended(lth(folder, "sweep", "g.yaml", "--jobs", str(jobs)))


def tables(folder: Path) -> dict[str, bytes]:
    """What must be the same, bit by bit: the sweep's table, and each run's metrics, claims and ticket."""
    root = folder / "results" / "g"
    names = [root / "sweep.parquet", *root.glob("*/*/metrics.parquet"), *root.glob("*/*/claims.json")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in [*names, *root.glob("*/*/*.safetensors")]}


def kill_one(runner: Command, choice: random.Random) -> str:
    """Kills (signal 9) the runner or one of its workers or kernels; says which kind, or nothing where it had ended."""
    try:
        root = psutil.Process(runner.process.pid)
        kinds: dict[str, list[psutil.Process]] = {"runner": [root], "worker": [], "kernel": []}
        for child in root.children(recursive=True):
            line = " ".join(child.cmdline())
            kind = "kernel" if "lthlib.workbook.kernel" in line else "worker" if "spawn_main" in line else ""
            if kind:
                kinds[kind].append(child)
        kind = choice.choice([kind for kind, there in kinds.items() if there])
        if runner.process.poll() is not None:
            return ""
        choice.choice(kinds[kind]).kill()
        return kind
    except psutil.Error:
        return ""


def damages(content: bytes, count: int, choice: random.Random) -> Iterator[bytes]:
    """Copies of a file's content, each with one bit flipped or, every fourth, cut short."""
    for number in range(count):
        place = choice.randrange(len(content))
        if number % 4 == 3:
            yield content[:place]
        else:
            changed = bytearray(content)
            changed[place] ^= 1 << choice.randrange(8)
            yield bytes(changed)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of that size at `folder`, in memory; PermissionError where this user may not mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError("a small disk needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Changes a mounted disk's size or makes it read-only."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def date_files(folder: Path, when: float) -> None:
    """Gives every file below `folder` that time of change (seconds since 1970)."""
    for path in folder.rglob("*"):
        os.utime(path, (when, when))


def watched(runner: Command, every: float = 0.5) -> list[int]:
    """The runner's own resident bytes over time while it has workers: not as it starts, nor as it makes the table."""
    process, samples = psutil.Process(runner.process.pid), []
    while runner.process.poll() is None:
        try:
            if any("spawn_main" in " ".join(child.cmdline()) for child in process.children()):
                samples.append(int(process.memory_info().rss))
        except psutil.Error:
            pass
        time.sleep(every)
    return samples
