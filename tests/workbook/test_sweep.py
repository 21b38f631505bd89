"""Sweeps: a grid becomes runs with folders of their own, all is checked first, and what is finished stays finished."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock

from lthlib.errors import InputError
from lthlib.evidence.results import save_claims, save_metrics
from lthlib.workbook import cli, manifest, sweep
from lthlib.workbook import run as runner
from lthlib.workbook.run import Outcome
from lthlib.workbook.status import Board, failures, status, summary, watch

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notebooks"
OK, SLOW, BROKEN = (str(FIXTURES / f"{name}.ipynb") for name in ("ok", "slow", "broken"))


def planned(out: str = "results", **said: object) -> list[sweep.PlannedRun]:
    return sweep.runs(sweep.grid_from({"notebooks": [OK], "profile": "quick", **said}, "g"), out)


def test_a_grid_is_every_combination_the_last_parameter_fastest() -> None:
    found = planned(set={"density": [1, 0.5], "bases": [["dct", "haar"], []], "seeds": [3]})
    assert [run.values["density"] for run in found] == [1.0, 1.0, 0.5, 0.5]
    assert found[0].point == "density=1.0,bases=dct+haar,seeds=3"
    assert (
        found[0].task.out_dir
        == "results/g/density=1.0,bases=dct+haar,seeds=3/ok"
        == found[0].task.parameters["out_dir"]
    )
    assert found[0].task.parameters == {**found[0].task.parameters, **found[0].values, "profile": "quick"}
    assert len({run.task.out_dir for run in found}) == 4


def test_a_notebook_is_combined_over_the_parameters_that_it_has() -> None:
    found = planned(notebooks=[OK, SLOW], set={"density": [0.1, 0.2], "seconds": [1]}, seeds=[2, 3])
    assert [run.name for run in found] == [
        "density=0.1,seeds=2/ok",
        "density=0.1,seeds=3/ok",
        "density=0.2,seeds=2/ok",
        "density=0.2,seeds=3/ok",
        "seconds=1.0/slow",
    ]
    assert [run.point for run in planned()] == ["all"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sets": {}}, "grid g: unknown key 'sets', did you mean 'set'?"),
        ({"notebooks": OK}, "notebooks: .* is no list of notebooks"),
        ({"notebooks": []}, "is no list of notebooks"),
        ({"notebooks": ["07_none"]}, "unknown notebook '07_none'"),
        ({"profile": "quik"}, "unknown profile 'quik', did you mean 'quick'?"),
        ({"profile": 3}, "profile: 3 is no name"),
        ({"set": [1]}, r"set: \[1\] is no mapping"),
        ({"set": {"density": 0.5}}, "set: density: 0.5 is no list of values"),
        ({"set": {"density": []}}, "is no list of values"),
        ({"set": {"densty": [1]}}, "unknown parameter 'densty', did you mean 'density'?"),
        ({"set": {"density": [0.5, "a"]}}, "ok: density: 'a' is a str"),
        ({"set": {"density": [0]}}, "ok: density: 0.0 is out of range"),
        ({"set": {"density": [1, 1.0]}}, "ok: density: 1.0 is given twice"),
        ({"set": {"out_dir": ["x"]}}, "out_dir is filled by the runner"),
        ({"set": {"seeds": [1]}, "seeds": 2}, "seeds are given twice"),
        ({"set": {"density": [n / 101 for n in range(1, 102)], "seeds": [*range(1, 101)]}}, "10,100 runs are too many"),
    ],
)
def test_a_grid_that_says_more_or_less_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**said)


def test_a_grid_s_file_is_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("notebooks: [00, 1]\nset: {keep: [0.5]}\nseeds: 3\n")
    assert sweep.read_grid(tmp_path / "g.yaml") == sweep.Grid("g", ("00", "1"), values={"keep": [0.5], "seeds": [3]})
    for name, text, message in (
        ("a.txt", "", "is no grid"),
        (".yaml.yaml", "", "is no grid"),
        ("b.yaml", "", "expected a mapping"),
        ("c.yaml", "notebooks: [", "not valid YAML"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            sweep.read_grid(tmp_path / name)
    with pytest.raises(InputError, match="cannot read the grid"):
        sweep.read_grid(tmp_path / "none.yaml")


def test_names_of_points_are_plain_stable_and_never_the_same_for_two() -> None:
    name = sweep.point_name
    assert name({"model": "conv-2", "final": True, "rate": 1e-05}) == "model=conv-2,final=true,rate=1e-05"
    values = ["a/b", "a-b", "A-b", "../x", "", None, ["a+b"], ["a", "b"], [1, 2], {"a": 1}, "x" * 200, "x" * 201, "é"]
    names = [name({"v": value}) for value in values]
    assert len({text.lower() for text in names}) == len(values)
    assert all(Path(text).name == text and text.isascii() and len(text) <= sweep.LONGEST for text in names)
    assert name({"v": "a/b"}) == "v=a-b-dbcda7bb3f2dded0"


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def lth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `lth` in an empty folder with runs that execute nothing: `broken` fails, `ok` leaves its table."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def run(notebook: Any, values: dict[str, Any], folder: Path, wanted: str, *_: object) -> Outcome:
        asked.append(folder.parent.name)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"status": "finished", "reason": "", "key": wanted, "seconds": 2.0, "verdicts": {"supported": 1}}
        if notebook.name == "broken":
            manifest.write(folder, {**facts, "status": "failed", "reason": "ValueError: no"})
            return Outcome("broken", "failed", 1.0, "ValueError: no")
        if values.get("seeds") == 99:
            raise KeyboardInterrupt
        save_metrics(pd.DataFrame({"seed": range(values.get("seeds", 1)), "value": values.get("density")}), folder)
        save_claims([], folder)
        manifest.write(folder, facts)
        return Outcome(notebook.name, "done", 2.0, verdicts={"supported": 1})

    monkeypatch.setattr(runner, "_run", run)
    # Here instead of in workers, which know nothing of the stand-in.
    real = runner.progress
    monkeypatch.setattr(runner, "progress", lambda tasks, force, **_: real(tasks, force=force))

    def call(*arguments: str, grid: str = "") -> tuple[int, str, str, list[str]]:
        asked.clear()
        if grid:
            Path("g.yaml").write_text(grid)
        monkeypatch.setattr(sys, "argv", ["lth", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err, list(asked)

    return call


GRID = f"notebooks: [{OK}, {BROKEN}]\nset: {{density: [0.1, 0.2]}}\nseeds: 2\n"


def test_a_sweep_runs_all_names_what_fails_and_gathers_one_table(lth: Any) -> None:
    code, out, err, asked = lth("sweep", "g.yaml", grid=GRID)
    assert (code, asked) == (1, ["density=0.1,seeds=2", "density=0.2,seeds=2", "all"])
    assert "failed all/broken: ValueError: no" in out
    assert "2 done, 0 running, 1 failed, 0 left, of 3" in out
    assert "1/3 done density=0.1,seeds=2/ok (2.0 s)" in err
    table = pd.read_parquet("results/g/sweep.parquet")
    assert list(table.columns) == ["point", "profile", "notebook", "set_density", "set_seeds", "seed", "value"]
    assert table["set_density"].tolist() == table["value"].tolist() == [0.1, 0.1, 0.2, 0.2]
    assert table["profile"].unique().tolist() == ["quick"]
    assert Path("results/g/density=0.1,seeds=2/index.html").exists()


def test_the_same_command_goes_on_and_ends_with_the_same_table(lth: Any) -> None:
    grid = GRID.replace(f", {BROKEN}", "")
    assert lth("sweep", "g.yaml", grid=grid)[0] == 0
    first = Path("results/g/sweep.parquet").read_bytes()
    assert lth("sweep", "g.yaml")[3] == []
    Path("results/g/density=0.2,seeds=2/ok/metrics.parquet").write_bytes(b"x")
    assert lth("sweep", "g.yaml")[3] == ["density=0.2,seeds=2"]
    assert Path("results/g/sweep.parquet").read_bytes() == first
    assert len(lth("sweep", "g.yaml", "--force")[3]) == 2


def test_what_another_sweep_has_under_way_waits_till_the_others_are_done(lth: Any) -> None:
    tasks = [run.task for run in planned(set={"density": [0.1, 0.2, 0.3]})]
    tasks[0].folder.parent.mkdir(parents=True)
    other, ended = FileLock(runner.lock_path(tasks[0].folder)), []
    other.acquire()
    for task, outcome in runner.progress(tasks, force=False):
        if outcome is not None:
            ended.append((task.parameters["density"], outcome.status))
        if len(ended) == 2:
            other.release()
    assert ended == [(0.2, "done"), (0.3, "done"), (0.1, "done")]


def test_notebooks_of_other_parameters_share_the_table(lth: Any) -> None:
    grid = f"notebooks: [{OK}, {SLOW}]\nset: {{density: [0.1], seconds: [0, 1], bases: [[dct]]}}\n"
    assert lth("sweep", "g.yaml", grid=grid)[0] == 0
    table = pd.read_parquet("results/g/sweep.parquet")
    assert table["set_bases"].tolist()[0] == '["dct"]'
    assert table["set_seconds"].isna().tolist() == [True, True, False, False]


def test_interrupting_is_130_in_one_line_and_the_rest_is_left(lth: Any) -> None:
    grid = f"notebooks: [{OK}]\nset: {{seeds: [1, 99, 2]}}\n"
    code, out, err, _ = lth("sweep", "g.yaml", grid=grid)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        "interrupted: 1 done, 1 running, 0 failed, 1 left, of 3; the same command goes on from here"
    )
    code, out, _, _ = lth("status", "results/g")
    assert code == 0
    assert out.splitlines() == [
        "done     seeds=1/ok  (2 s, 1 supported)",
        "left     seeds=99/ok  (begun)",
        "left     seeds=2/ok",
        "1 done, 0 running, 0 failed, 2 left, of 3",
    ]


@pytest.mark.parametrize(
    ("grid", "arguments", "message"),
    [
        ("notebooks: [07]", [], "unknown notebook '07'"),
        (f"notebooks: [{OK}]\nset: {{device: ['cuda:99']}}", [], "device 'cuda:99' is not here"),
        (f"notebooks: [{OK}]", ["--engine", "dask"], "unknown engine 'dask' (valid: local, ray)"),
        (f"notebooks: [{OK}]", ["--out", "/dev/null/x"], "cannot write '/dev/null/x/g'"),
        (f"notebooks: [{OK}]", ["--jobs", "0"], "--jobs"),
    ],
)
def test_bad_input_is_two_before_anything_runs(lth: Any, grid: str, arguments: list[str], message: str) -> None:
    code, _, err, asked = lth("sweep", "g.yaml", *arguments, grid=grid)
    assert (code, asked) == (2, [])
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert not Path("results/g/sweep.json").exists()


# -------------------------------------------------------------------------------------------------- status


def test_status_tells_done_running_failed_left_and_damaged(lth: Any) -> None:
    lth("sweep", "g.yaml", grid=GRID)
    Path("results/g/density=0.1,seeds=2/ok/claims.json").write_text("[ ]")
    with FileLock("results/g/density=0.2,seeds=2/.ok.lock"):
        Path("results/g/density=0.2,seeds=2/ok/manifest.json").unlink()
        code, out, _, _ = lth("status", "results")
    assert code == 1
    assert out.splitlines() == [
        "left     g/density=0.1,seeds=2/ok  (claims.json is damaged: the next run makes it anew)",
        "running  g/density=0.2,seeds=2/ok",
        "failed   g/all/broken  (ValueError: no)",
        "0 done, 1 running, 1 failed, 1 left, of 3",
    ]


def test_status_tells_an_earlier_version_from_damage(lth: Any) -> None:
    lth("sweep", "g.yaml", grid=GRID.replace(f", {BROKEN}", ""))
    folder = Path("results/g/density=0.1,seeds=2/ok")
    facts = manifest.read(folder)
    assert facts is not None
    seal = facts.pop("seal")
    (folder / "manifest.json").write_text(json.dumps(facts))
    (state,) = status(folder)
    assert (state.state, state.detail.split(", ")[-1]) == (
        "done",
        "of an earlier version: its manifest has no checksum of its own",
    )
    # Whether it is whole cannot be known, so that a run never takes it for finished.
    assert not manifest.whole(folder, facts)
    (folder / "manifest.json").write_text(json.dumps({**facts, "seal": seal}))
    assert status(folder)[0].detail == "manifest.json is damaged: the next run makes it anew"
    (folder / "claims.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert str(status(folder)[0]) == "left     ok  (claims.json is missing: the next run makes it anew)"


def test_status_of_runs_of_one_run_and_of_nothing(lth: Any) -> None:
    lth("sweep", "g.yaml", grid=GRID)
    Path("results/quick").mkdir()
    Path("results/g/density=0.1,seeds=2/ok").rename("results/quick/ok")
    assert [str(state) for state in status(Path("results/quick"))] == ["done     ok  (2 s, 1 supported)"]
    assert summary(status(Path("results/quick/ok"))) == "1 done, 0 running, 0 failed, 0 left, of 1"
    assert "1 left" in summary(status(Path("results")))
    code, _, err, _ = lth("status", "nothing")
    assert (code, "holds no runs" in err) == (2, True)
    Path("results/g/sweep.json").write_text('{"runs": [{"point": "../..", "notebook": "x"}]}')
    assert lth("status", "results")[0] == 2


# --------------------------------------------------------------------------------------------------- board


def test_the_board_counts_shows_and_closes_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    tasks = [run.task for run in planned(set={"density": [n / 100 for n in range(1, 31)]})]
    closed = []

    def events() -> Any:
        try:
            for task in tasks[:20]:
                yield task, None
                yield task, Outcome("ok", "failed" if task is tasks[0] else "done", 3.0, "[red]no" * (task is tasks[0]))
            yield tasks[20], None
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    board = Board(30)
    with pytest.raises(KeyboardInterrupt):
        list(watch(events(), board, {task.out_dir: task.out_dir for task in tasks}))
    assert closed == [True]
    assert board.summary() == "19 done, 1 running, 1 failed, 9 left, of 30"
    assert failures(board) == [f"failed {tasks[0].out_dir}: [red]no"]
    Console(width=200).print(board)
    shown = capsys.readouterr().out
    assert "[red]no" in shown
    assert len(shown.splitlines()) < 24


def test_gpus_go_to_the_workers_where_runs_may_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert runner.visible_gpus(["auto"]) == ["2", "3"]
    assert runner.visible_gpus(["cpu"]) == runner.visible_gpus(["auto", "cuda:1"]) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert runner.visible_gpus(["cuda"]) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(runner.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="0\n1\n"))
    assert runner.visible_gpus(["auto"]) == ["0", "1"]


def test_ctrl_c_on_a_real_sweep_ends_all_that_runs(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(f"notebooks: [{SLOW}]\nset: {{seconds: [100, 200]}}\n")
    command = [sys.executable, "-m", "lthlib.workbook.cli", "sweep", "g.yaml", "--jobs", "2"]
    # Where a shell runs the tests in the background, Ctrl-C is ignored, which the command would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    parts = [tmp_path / f"results/g/seconds={n}.0/slow" / manifest.PARTIAL.format("slow") for n in (100, 200)]
    while not all(part.exists() for part in parts):
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err.strip().splitlines() == [
        "interrupted: 0 done, 2 running, 0 failed, 0 left, of 2; the same command goes on from here"
    ]
    assert [state.state for state in status(tmp_path / "results")] == ["left", "left"]
