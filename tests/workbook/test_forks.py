"""Kernels forked from a process with their imports: the same results, each run for itself, and nobody left behind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lthlib.store import checksum
from lthlib.workbook import forks, manifest
from lthlib.workbook.run import Task, run_all, run_notebook

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notebooks"
pytestmark = pytest.mark.skipif(not forks.available(), reason="this system does not fork")


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    forks.end()


def task(name: str, folder: Path, **parameters: Any) -> Task:
    return Task(FIXTURES / f"{name}.ipynb", parameters, str(folder / name))


def with_last_cell(code: str, path: Path) -> Path:
    """The notebook `ok` with more code in its last cell."""
    notebook = json.loads((FIXTURES / "ok.ipynb").read_text())
    notebook["cells"][-1]["source"] = "".join(notebook["cells"][-1]["source"]) + "\n" + code
    path.write_text(json.dumps(notebook))
    return path


def test_forked_runs_leave_what_runs_with_kernels_of_their_own_leave(tmp_path: Path) -> None:
    alone, forked = tmp_path / "alone", tmp_path / "forked"
    # Libraries ask where they are when they are imported: how figures are shown, how many columns of a table.
    wide = with_last_cell("pd.DataFrame({f'column {i}': [i / 3] for i in range(40)})", tmp_path / "wide.ipynb")
    notebooks = {"wide": wide, "train": FIXTURES / "train.ipynb"}
    outcomes = [run_notebook(path, {}, str(alone / name)) for name, path in notebooks.items()]
    again = list(run_all([Task(path, {}, str(forked / name)) for name, path in notebooks.items()]))
    assert {outcome.status for outcome in outcomes + again} == {"done"} and not forks._started
    trained = [
        {path.relative_to(folder).as_posix(): checksum(path) for path in folder.rglob("store/**/*.safetensors")}
        for folder in (alone, forked)
    ]
    assert trained[0] == trained[1] != {}
    for name in notebooks:
        ours, theirs = manifest.read(forked / name), manifest.read(alone / name)
        assert ours is not None and theirs is not None and ours.keys() == theirs.keys()
        assert ours["files"].keys() == theirs["files"].keys()
        for file, digest in theirs["files"].items():
            # Executed notebooks say when each cell ran, and `ok` writes down its folder.
            assert ours["files"][file] == digest or file in (f"{name}.ipynb", f"{name}.html", "values.json"), file
        for key in ("key", "threads", "mkl", "verdicts", "deterministic"):
            assert ours.get(key) == theirs.get(key)
        texts = [(folder / name / f"{name}.ipynb").read_text().replace(str(folder), "") for folder in (alone, forked)]
        outputs = [[cell.get("outputs") for cell in json.loads(text)["cells"]] for text in texts]
        assert outputs[0] == outputs[1]


def test_a_killed_fork_and_a_failed_one_stop_nobody(tmp_path: Path) -> None:
    names = ["dies", "broken", "ok"]
    outcomes = list(run_all([task(name, tmp_path) for name in names]))
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "done"]
    assert outcomes[0].reason == "the kernel died of signal 9 (out of memory?)"


def test_without_the_process_to_fork_from_kernels_start_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "MODULE", "lthlib.no_such_room")
    assert run_notebook(FIXTURES / "ok.ipynb", {}, str(tmp_path / "ok"), forked=True).status == "done"


def test_a_new_one_is_started_where_it_was_killed(tmp_path: Path) -> None:
    first = forks.start()
    first.process.kill()
    first.process.wait()
    assert run_notebook(FIXTURES / "ok.ipynb", {}, str(tmp_path / "ok"), forked=True).status == "done"
    assert forks.start() is not first


def test_a_fork_that_cannot_be_a_kernel_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    fork = forks.start().fork(["--no-such-option=1", "--help"], {"LTH_PROBE": "1"}, log)
    assert fork.wait(60) is not None and fork.poll() == fork.returncode


def test_a_killed_runner_takes_its_forks_with_it(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(f"notebooks: [{FIXTURES / 'slow.ipynb'}]\nset: {{seconds: [100, 200]}}\n")
    command = [sys.executable, "-m", "lthlib.workbook.cli", "sweep", "g.yaml"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    part = tmp_path / "results/g/seconds=100.0/slow" / manifest.PARTIAL.format("slow")
    while not part.exists() or "start_time" not in part.read_text():
        assert run.poll() is None
        time.sleep(0.1)
    below = psutil.Process(run.pid).children(recursive=True)
    # The worker, the process that kernels are forked from, and the kernel.
    assert len([process for process in below if process.is_running()]) >= 3
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert psutil.wait_procs(below, timeout=20)[1] == []


def test_what_is_imported_before_forks_looks_for_no_gpu_and_shows_no_figures() -> None:
    code = """
import torch
torch.cuda.is_available = torch.cuda.device_count = None
from lthlib.workbook.preloaded import preload
preload()
assert not torch.cuda.is_initialized()
import sys
assert not {"matplotlib.pyplot", "matplotlib_inline.backend_inline"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_forks_draw_other_numbers_than_each_other(tmp_path: Path) -> None:
    code = "import random, numpy; (folder / 'drawn.txt').write_text(f'{random.random()} {numpy.random.rand()}')"
    path = with_last_cell(code, tmp_path / "draws.ipynb")
    list(run_all([Task(path, {}, str(tmp_path / name)) for name in ("a", "b")]))
    drawn = [(tmp_path / name / "drawn.txt").read_text().split() for name in ("a", "b")]
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
