"""Results at an address: whole or not there, taken from there before anything is made, kept inside their folder."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from lthlib.errors import InputError
from lthlib.evidence.results import save_claims, save_metrics
from lthlib.workbook import cli, manifest, remote
from lthlib.workbook import run as runner
from lthlib.workbook.run import Outcome, run_notebook, run_task

OK = Path(__file__).parents[1] / "fixtures" / "notebooks" / "ok.ipynb"


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path / "shared").as_uri()
        return
    yield "memory://shared"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of runs that were made; they execute nothing and leave a table, a hidden file and a store."""
    folders: list[Path] = []

    def run(notebook: Any, values: dict[str, Any], folder: Path, wanted: str, *_: object) -> Outcome:
        folders.append(folder)
        (folder / "store").mkdir(parents=True, exist_ok=True)
        (folder / "store" / "x").touch()
        (folder / ".hidden").touch()
        save_metrics(pd.DataFrame({"seed": [0], "value": [values["density"]]}), folder)
        save_claims([], folder)
        facts = {"status": "finished", "key": wanted, "seconds": 2.0, "verdicts": {}}
        manifest.write(folder, facts)
        return Outcome(notebook.name, "done", 2.0)

    monkeypatch.setattr(runner, "_run", run)
    real = runner.progress
    monkeypatch.setattr(runner, "progress", lambda tasks, force, **_: real(tasks, force=force))
    return folders


def files_of(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def test_a_finished_run_is_taken_from_its_address(url: str, made: list[Path], tmp_path: Path) -> None:
    assert run_notebook(OK, {}, str(tmp_path / "a"), shared=url).status == "done"
    assert files_of(url).keys() == {"metrics.parquet", "claims.json", "manifest.json"}
    assert run_notebook(OK, {}, str(tmp_path / "b"), shared=url).status == "skipped"
    assert made == [tmp_path / "a"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == files_of(url)
    # Another run is another run.
    assert run_notebook(OK, {"density": 0.25}, str(tmp_path / "c"), shared=url).status == "done"
    assert run_notebook(OK, {"density": 0.25}, str(tmp_path / "b"), shared=url, force=True).status == "done"


def test_what_is_damaged_or_half_there_is_made_anew_and_mended(url: str, made: list[Path], tmp_path: Path) -> None:
    run_notebook(OK, {}, str(tmp_path / "a"), shared=url)
    whole = files_of(url)
    files, root = fsspec.core.url_to_fs(url)
    for number, name in enumerate(("metrics.parquet", "manifest.json", "claims.json")):
        files.pipe_file(f"{root}/{name}", whole[name][:-3])
        run_notebook(OK, {}, str(tmp_path / str(number)), shared=url)
        assert made[-1] == tmp_path / str(number)
        assert files_of(url) == whole
    files.rm_file(f"{root}/claims.json")
    assert run_notebook(OK, {}, str(tmp_path / "d"), shared=url).status == "done"
    assert files_of(url) == whole


def test_a_copy_cut_off_half_way_is_not_there_and_goes_on(
    url: str, made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sent = remote.send_file, []

    def broken(path: Path, to: str) -> None:
        sent.append(path.name)
        if len(sent) == 2:
            raise InputError("cannot use it: line is down")
        real(path, to)

    monkeypatch.setattr(remote, "send_file", broken)
    task = runner.Task(OK, {}, str(tmp_path / "a"), url)
    outcome = run_task(task)
    assert (outcome.status, outcome.reason) == ("failed", "InputError: cannot use it: line is down")
    assert "manifest.json" not in files_of(url)
    assert not remote.holds(url, task.key)
    assert run_task(task).status == "skipped"
    assert made == [tmp_path / "a"]
    assert remote.holds(url, task.key)


def test_a_sweep_goes_on_in_another_folder(
    url: str, made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lth(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lth", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(str(caught.value.code)), captured.out + captured.err

    tables = []
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        Path("g.yaml").write_text(f"notebooks: ['{OK}']\nset: {{density: [0.1, 0.2]}}\n")
        assert lth("sweep", "g.yaml", "--share", url)[0] == 0
        tables.append(Path("results/g/sweep.parquet").read_bytes())
    assert len(made) == 2
    assert tables[0] == tables[1] == files_of(url)["g/sweep.parquet"]
    code, out = lth("status", f"{url}/g")
    assert code == 0
    assert "done     density=0.1/ok  (2 s)" in out
    assert "2 done, 0 running, 0 failed, 0 left, of 2" in out
    code, out = lth("sweep", "g.yaml", "--share", "nowhere")
    assert (code, out) == (
        2,
        "error: 'nowhere/g' is no address (valid: such as s3://bucket/folder or file:///folder)\n",
    )


def test_runs_made_elsewhere_are_gathered(url: str, made: list[Path], tmp_path: Path) -> None:
    run_notebook(OK, {}, str(tmp_path / "a"), shared=url)
    here = runner.Task(OK, {}, str(tmp_path / "point" / "b"), url)
    runner.bring(here)
    assert manifest.finished(here.folder, here.key)
    runner.bring(runner.Task(OK, {}, str(tmp_path / "c")))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", ".hidden", "manifest.json/../../outside"])
def test_no_name_leads_out_of_the_folder(name: str, url: str, tmp_path: Path) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(root, exist_ok=True)
    facts = {"status": "finished", "key": "k", "files": {name: "0"}}
    files.pipe_file(f"{root}/manifest.json", json.dumps(facts).encode())
    assert remote.fetch(url, tmp_path / "in" / "run", "k") is None
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("bad", ["nosuch://x", "file:///dev/null/x", "http://127.0.0.1:9/x"])
def test_an_address_that_cannot_be_used_is_named(bad: str) -> None:
    with pytest.raises(InputError, match=rf"cannot use '{bad}': .* \(valid: an address that fsspec can write\)"):
        remote.check(bad)
