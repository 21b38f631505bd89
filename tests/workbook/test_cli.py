"""The `lth` command: exit codes, one line for each mistake, nothing run before all is checked, a table at the end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lthlib import store as paths
from lthlib.workbook import cli
from lthlib.workbook import run as runner
from lthlib.workbook.run import Outcome

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notebooks"
Lth = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lth:
    """Runs `lth` in an empty folder, beside which `notebooks/` holds two notebooks and an empty quick profile."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "profiles").mkdir(parents=True)
    (notebooks / "profiles" / "quick.yaml").touch()
    for number, name in enumerate(("ok", "slow", "broken")):
        (notebooks / f"{number:02}_{name}.ipynb").write_bytes((FIXTURES / f"{name}.ipynb").read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lth", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return code, out, err

    return call


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Executes nothing: a notebook called broken fails; gives the names in the order they were asked for."""
    asked: list[str] = []

    def run(notebook: object, values: dict[str, object], folder: Path, *_: object) -> Outcome:
        name = notebook.name  # type: ignore[attr-defined]
        asked.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.ipynb").touch()
        if "broken" in name:
            return Outcome(name, "failed", 1.0, "ValueError: [red]no[/red]")
        return Outcome(name, "done", 61.26, verdicts={"supported": 2, "inconclusive": 1})

    monkeypatch.setattr(runner, "_run", run)
    return asked


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, lthlib.workbook.cli; print(*(sys.modules.keys() & {'torch', 'pandas', 'papermill', 'jinja2'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_lists_the_commands(lth: Lth) -> None:
    code, out, _ = lth("--help")
    assert code == 0
    assert all(name in out for name in ("run", "notebooks", "report"))


def test_a_run_ends_in_a_table_a_report_and_its_exit_code(lth: Lth, stub: list[str]) -> None:
    code, out, _ = lth("run", "0", "01_slow")
    assert (code, stub) == (0, ["00_ok", "01_slow"])
    assert "61.3" in out
    assert "2 supported, 1 inconclusive" in out
    assert "Report: results/quick/index.html" in out
    assert Path("results/quick/index.html").exists()


def test_a_failure_gives_one_and_its_reason_and_the_others_run(lth: Lth, stub: list[str]) -> None:
    code, out, _ = lth("run", "2", "0")
    assert (code, stub) == (1, ["02_broken", "00_ok"])
    assert "ValueError: [red]no[/red]" in out


def test_what_nobody_foresaw_keeps_its_traceback_and_the_others_run(
    lth: Lth, stub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner._run

    def run(notebook: object, *rest: object) -> Outcome:
        if "ok" in notebook.name:  # type: ignore[attr-defined]
            raise ZeroDivisionError("surprise")
        return real(notebook, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_run", run)
    code, out, err = lth("run", "0", "1")
    assert (code, stub) == (1, ["01_slow"])
    assert "ZeroDivisionError: surprise" in out
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "07"], "unknown notebook '07'"),
        (["run", "nothing.ipynb"], "unknown notebook 'nothing.ipynb'"),
        (["run", "--profile", "quik"], "unknown profile 'quik', did you mean 'quick'?"),
        (["run", "--profile", "none.yaml"], "cannot read the profile 'none.yaml'"),
        (["run", "--set", "sedes=3"], "unknown parameter 'sedes', did you mean 'seeds'?"),
        (["run", "--set", "seeds=3.5"], "00_ok: seeds: 3.5 is a float (valid: int, such as 2)"),
        (["run", "--set", "seeds=0"], "00_ok: seeds: 0 is out of range (valid: x >= 1)"),
        (["run", "--set", "dataset=mnst"], "00_ok: dataset: 'mnst' is out of range (valid: digits, mnist, folder:*)"),
        (["run", "1", "--set", "seeds=3"], "unknown parameter 'seeds'"),
        (["run", "--set", "device=cuda:99"], "device 'cuda:99' is not here"),
        (["run", "--out", "/dev/null/x"], "cannot write '/dev/null/x/quick'"),
        (["report"], "'results' holds no results"),
        (["run", "--jobs", "0"], "--jobs"),
        (["run", "--jobs", "many"], "--jobs"),
        (["walk"], "walk"),
    ],
)
def test_bad_input_is_two_before_anything_runs(lth: Lth, stub: list[str], arguments: list[str], message: str) -> None:
    code, out, err = lth(*arguments)
    assert (code, stub) == (2, [])
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert "Report" not in out


def test_every_mistake_gets_one_line(lth: Lth, stub: list[str]) -> None:
    code, _, err = lth("run", "--set", "seeds=x", "--set", "nothing=1", "--set", "seconds=-1")
    assert (code, stub) == (2, [])
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


def test_a_second_run_skips_what_is_finished_and_force_does_not(
    lth: Lth, stub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"seconds": 1.5, "verdicts": {"supported": 1}}
    monkeypatch.setattr(runner.manifest, "finished", lambda folder, key: facts if folder.name == "00_ok" else None)
    code, out, _ = lth("run", "0", "1")
    assert (code, stub) == (0, ["01_slow"])
    assert "skipped" in out
    assert lth("run", "0", "1", "--force")[0] == 0
    assert stub == ["01_slow", "00_ok", "01_slow"]


def test_interrupting_is_130_and_leaves_a_report(lth: Lth, stub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = runner._run

    def run(notebook: object, *rest: object) -> Outcome:
        real(notebook, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_run", run)
    code, _, err = lth("run")
    assert (code, stub) == (130, ["00_ok"])
    assert "the same command goes on from here" in err
    assert "unfinished" in Path("results/quick/index.html").read_text()


def test_notebooks_lists_parameters_with_types_defaults_help_and_limits(lth: Lth) -> None:
    code, out, _ = lth("notebooks")
    assert code == 0
    assert "00_ok: A notebook <that> works" in out
    assert "density: float = 0.5" in out
    assert "kept / prunable [0 < x <= 1]" in out
    assert "replicates [x >= 1]" in out
    assert "out_dir" not in out


def test_report_writes_the_index_of_each_profile_anew(lth: Lth, stub: list[str]) -> None:
    lth("run", "0", "--out", "elsewhere")
    index = Path("elsewhere/quick/index.html")
    index.unlink()
    code, out, _ = lth("report", "--out", "elsewhere")
    assert (code, out.strip()) == (0, str(index))
    assert index.exists()


def test_a_real_run_from_the_shell(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").touch()
    command = [sys.executable, "-m", "lthlib.workbook.cli", "run", str(FIXTURES / "broken.ipynb")]
    done = subprocess.run(
        [*command, "--profile", "tiny.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ValueError: no <such> thing" in done.stdout
    assert "Traceback" not in done.stderr
    assert (tmp_path / "results" / "tiny" / "broken" / "broken.html").exists()
    assert (tmp_path / "results" / "tiny" / "index.html").exists()
