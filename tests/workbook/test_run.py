"""Runs of tiny notebooks: what they leave, when they are skipped, how they fail, and the pages that show them."""

import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from lthlib.errors import InputError
from lthlib.store import project_path, project_root
from lthlib.workbook import execution, manifest
from lthlib.workbook import run as runner
from lthlib.workbook.html import latex_html, markdown_html, mathml
from lthlib.workbook.kernel import peak_memory
from lthlib.workbook.report import profile_folders, run_folders, write_index
from lthlib.workbook.run import Outcome, Task, check_device, run_all, run_notebook

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notebooks"


def run(name: str, folder: Path, force: bool = False, **parameters: object) -> Outcome:
    return run_notebook(FIXTURES / f"{name}.ipynb", parameters, str(folder / name), force=force)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile in which `ok` was run."""
    folder = tmp_path_factory.mktemp("results") / "quick"
    outcome = run("ok", folder, density=1, dataset='folder:a "b"\\c', rates=[1e-9], widths={"a b": 3})
    assert (outcome.status, outcome.reason, outcome.verdicts) == ("done", "", {"supported": 1})
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to damage."""
    return Path(shutil.copytree(done, tmp_path / "quick"))


def again(folder: Path, **parameters: object) -> str:
    """The status of the same run again, without executing anything."""
    values = {"density": 1, "dataset": 'folder:a "b"\\c', "rates": [1e-9], "widths": {"a b": 3}, **parameters}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run", lambda notebook, *_: Outcome(notebook.name, "executed", 0.0))
        return run("ok", folder, **values).status


def test_a_run_leaves_everything_and_only_that(done: Path) -> None:
    left = {path.name for path in (done / "ok").iterdir()}
    assert left == {
        "ok.ipynb",
        "ok.html",
        "metrics.parquet",
        "claims.json",
        "curve.png",
        "curve.svg",
        "values.json",
        "manifest.json",
    }


def test_the_notebook_receives_each_value_as_it_was_given(done: Path) -> None:
    values = json.loads((done / "ok" / "values.json").read_text())
    assert values[:7] == ['folder:a "b"\\c', 2, 1.0, False, ["canonical"], [1e-9], {"a b": 3}]
    assert type(values[2]) is float
    injected = [cell for cell in json.loads((done / "ok" / "ok.ipynb").read_text())["cells"] if injects(cell)]
    assert len(injected) == 1


def injects(cell: dict[str, Any]) -> bool:
    return "injected-parameters" in cell["metadata"].get("tags", [])


def test_the_manifest_says_what_was_run_on_what(done: Path) -> None:
    facts = json.loads((done / "ok" / "manifest.json").read_text())
    assert facts["status"] == "finished"
    assert facts["parameters"]["density"] == 1.0
    assert facts["parameters"]["seeds"] == 2
    assert "out_dir" not in facts["parameters"]
    assert facts["seconds"] > 0
    assert 20e6 < facts["peak_memory_bytes"] < 4e9
    assert facts["device"]
    assert {"python", "torch", "papermill"} <= facts["versions"].keys()
    assert facts["code"].keys() == {"commit", "dirty", "library", "notebook"}
    assert facts["files"].keys() == {path.name for path in (done / "ok").iterdir()} - {"manifest.json"}


def test_the_manifest_and_the_notebook_s_metadata_name_no_folder_of_this_machine(done: Path) -> None:
    metadata = json.loads((done / "ok" / "ok.ipynb").read_text())["metadata"]["papermill"]
    assert metadata["input_path"] == metadata["output_path"] == "ok.ipynb"
    text = (done / "ok" / "manifest.json").read_text()
    assert str(done) not in text
    assert str(project_root()) not in text
    assert manifest.portable({"a": ["/home/me/data", "folder:/home/me/cats", "data", 3]}) == {
        "a": [".../data", "folder:.../cats", "data", 3]
    }


def test_figures_are_in_the_notebook_whatever_the_shell_s_backend(done: Path) -> None:
    notebook = json.loads((done / "ok" / "ok.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_page_needs_no_network(done: Path) -> None:
    page = (done / "ok" / "ok.html").read_text()
    assert "<script" not in page
    loads = re.findall(r"""(?:src|href)=["']([^"']+)|url\(["']?([^)"']+)""", page)
    outside = [one or two for one, two in loads if not (one or two).startswith(("data:", "#", "../index.html"))]
    assert outside == []
    assert 'src="data:image/png;base64' in page
    assert page.count("<math") == 2
    assert "$" not in re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)


def test_a_finished_run_is_skipped_until_something_changes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert again(copy) == "skipped"
    assert again(copy, density=0.5) == "executed"
    assert again(copy) == "executed"


@pytest.mark.parametrize(
    "name", ["metrics.parquet", "claims.json", "curve.svg", "ok.html", "ok.ipynb", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_run_is_not_skipped(copy: Path, name: str, damage: str) -> None:
    path = copy / "ok" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert again(copy) == "executed"


def test_a_manifest_of_any_form_is_no_obstacle(copy: Path) -> None:
    for text in ("", "null", "[]", "{}", '{"files": [], "status": "finished"}', '{"files": {"../x": 1}, "status": 3}'):
        (copy / "ok" / "manifest.json").write_text(text)
        assert again(copy) == "executed"


def test_the_same_run_elsewhere_or_by_another_profile_s_name_has_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from lthlib.workbook.notebooks import read

    notebook = read(FIXTURES / "ok.ipynb")
    key = manifest.run_key(notebook, {"seeds": 2, "out_dir": "a", "profile": "b"})
    assert key == manifest.run_key(notebook, {"out_dir": "c", "profile": "d", "seeds": 2})
    assert key != manifest.run_key(notebook, {"seeds": 3})
    monkeypatch.setattr(manifest, "library_digest", lambda: "another")
    assert key != manifest.run_key(notebook, {"seeds": 2})


def test_outputs_do_not_change_a_notebook_s_digest_but_sources_and_claims_do(tmp_path: Path) -> None:
    from lthlib.workbook.notebooks import read

    path = tmp_path / "ok.ipynb"
    content = json.loads((FIXTURES / "ok.ipynb").read_text())

    def digest() -> str:
        path.write_text(json.dumps(content))
        return read(path).digest

    first = digest()
    content["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    content["cells"][2]["execution_count"] = 3
    content["cells"][1]["source"] = "".join(content["cells"][1]["source"])
    assert digest() == first
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "ok.yaml").write_text("- id: A")
    second = digest()
    content["cells"][2]["source"] = "pass"
    assert len({first, second, digest()}) == 3


def test_a_new_run_removes_the_old_one_s_files_but_not_the_store(copy: Path) -> None:
    (copy / "ok" / "store").mkdir()
    (copy / "ok" / "store" / "level").touch()
    (copy / "ok" / "old.svg").touch()
    manifest.clear(copy / "ok")
    assert [path.name for path in (copy / "ok").iterdir()] == ["store"]
    assert (copy / "ok" / "store" / "level").exists()


def test_a_failed_notebook_stays_with_its_error_and_runs_again(tmp_path: Path) -> None:
    outcome = run("broken", tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "ValueError: no <such> thing")
    notebook = json.loads((tmp_path / "broken" / "broken.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["exception"] is True
    assert any("papermill-error-cell-tag" in cell["metadata"].get("tags", []) for cell in notebook["cells"])
    assert (tmp_path / "broken" / "broken.html").exists()
    assert manifest.read(tmp_path / "broken")["status"] == "failed"  # type: ignore[index]
    page = write_index(tmp_path).read_text()
    assert "ValueError: no &lt;such&gt; thing" in page
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run", lambda notebook, *_: Outcome(notebook.name, "executed", 0.0))
        assert run("broken", tmp_path).status == "executed"


def test_a_killed_kernel_leaves_a_notebook_that_says_so(tmp_path: Path) -> None:
    outcome = run("dies", tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "the kernel died of signal 9 (out of memory?)")
    notebook = json.loads((tmp_path / "dies" / "dies.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["exception"] is True
    assert "the kernel died" in json.dumps(notebook["cells"])


def test_a_notebook_that_leaves_no_results_has_failed(tmp_path: Path) -> None:
    outcome = run("silent", tmp_path)
    assert outcome.status == "failed"
    assert outcome.reason == "it did not leave metrics.parquet and claims.json in its out_dir"


def failing_kernel(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the next kernels fail as they start; the list grows with each start."""
    starts: list[int] = []
    real = execution.ThisPython.kernel_spec.fget
    assert real is not None

    def spec(self: execution.ThisPython) -> KernelSpec:
        if not hasattr(self, "chosen"):
            starts.append(1)
            self.chosen = real(self)  # type: ignore[attr-defined]
            if len(starts) <= times:
                self.chosen.argv = [sys.executable, "-c", "raise SystemExit('no kernel today')"]  # type: ignore[attr-defined]
        return self.chosen  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(execution.ThisPython, "kernel_spec", property(spec))
    return starts


def test_a_kernel_that_does_not_start_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = failing_kernel(1, monkeypatch)
    assert run("slow", tmp_path).status == "done"
    assert len(starts) == 2
    # It is this Python, whatever kernels are installed.
    assert sys.executable in (tmp_path / "slow" / "slow.ipynb").read_text()


def test_a_kernel_that_never_starts_fails_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = failing_kernel(9, monkeypatch)
    outcome = run("slow", tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "the kernel did not start: no kernel today")
    assert len(starts) == 2
    assert (tmp_path / "slow" / "slow.ipynb").exists()


def test_a_widget_becomes_a_note_and_latex_a_formula(tmp_path: Path) -> None:
    assert run("widget", tmp_path).status == "done"
    page = (tmp_path / "widget" / "widget.html").read_text()
    assert "An interactive control" in page
    assert "<script" not in page
    assert "<math" in page


def test_bad_parameters_stop_a_run_before_it_leaves_anything(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown parameter 'sedes'"):
        run("ok", tmp_path, sedes=3)
    with pytest.raises(InputError, match="seeds: True is a bool"):
        run("ok", tmp_path, seeds=True)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write '.*file'"):
        run("ok", tmp_path / "file")


def test_two_runs_of_one_folder_take_turns(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        with runner._alone(copy / "ok"):
            second = pool.submit(again, copy)
            while "another run of it is under way" not in capsys.readouterr().err:
                assert not second.done()
                time.sleep(0.01)
        assert second.result() == "skipped"


def test_workers_share_the_cores_and_one_failure_stops_nobody(tmp_path: Path) -> None:
    tasks = [Task(FIXTURES / f"{name}.ipynb", {}, str(tmp_path / name)) for name in ("two_tags", "slow")]
    outcomes = {outcome.notebook: outcome for outcome in run_all(tasks, jobs=2)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"two_tags": "failed", "slow": "done"}
    assert "2 cells have the tag" in outcomes["two_tags"].reason


def test_threads_are_shared_unless_the_user_said_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in runner.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    assert runner.shared_cores(10_000) == dict.fromkeys((*runner.THREADS[:1], *runner.THREADS[2:]), "1")


def test_a_cuda_device_that_is_not_here_is_refused() -> None:
    for device in ("auto", "cpu"):
        check_device(device)
    with pytest.raises(InputError, match="device 'cuda:99' is not here"):
        check_device("cuda:99")


def test_relative_paths_mean_the_same_in_the_shell_and_inside_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    root = project_root()
    monkeypatch.chdir(root)
    assert project_path("data") == Path("data")
    monkeypatch.chdir(root / "notebooks")
    assert project_path("data") == Path("../data")
    assert project_path("../shared") == Path("../../shared")
    assert project_path("/data") == Path("/data")
    monkeypatch.chdir(root / "notebooks" / "profiles")
    assert project_path("data") == Path("../../data")
    monkeypatch.chdir("/")
    assert project_path("data") == Path("data")


def test_the_index_shows_every_run_and_escapes_what_they_say(copy: Path, tmp_path: Path) -> None:
    (copy / "begun").mkdir()
    (copy / "begun" / ".begun.part.ipynb").touch()
    (copy / "other").mkdir()
    shutil.copytree(copy / "ok", copy / "dam<aged")
    (copy / "dam<aged" / "claims.json").write_text("[")
    page = write_index(copy).read_text()
    assert [path.name for path in run_folders(copy)] == ["begun", "dam<aged", "ok"]
    assert profile_folders(tmp_path) == [copy]
    assert "A notebook &lt;that&gt; works" in page
    assert "density &lt; 2 &amp; &lt;b&gt;bold&lt;/b&gt;" in page
    assert "unfinished" in page
    assert "is no readable ledger" in page
    assert 'href="ok/ok.html"' in page
    assert 'src="dam%3Caged/curve.png"' in page
    assert 'href="ok/curve.svg"' in page
    assert "<script" not in page
    assert re.findall(r"https?:", page) == []
    with pytest.raises(InputError, match="holds no results"):
        write_index(copy / "other")


@pytest.mark.parametrize(
    "latex",
    [
        r"\theta = B^\top (m \odot c_0)",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{cases} a & x > 0 \\ b & \text{otherwise} \end{cases}",
        r"\underset{m}{\arg\min}\ \mathbb{E}\left[\lVert x \rVert_2^2\right] < \tfrac12",
        r"\hat{\boldsymbol{\theta}}^{(l)} \in \{0, 1\}^{n \times k}, \quad \lfloor d\,n \rceil",
        r"P(X \ge k) \le \binom{n}{k} p^k, \operatorname{round}(x), \widetilde{W}, \overline{x}",
    ],
)
def test_formulas_become_mathml(latex: str) -> None:
    assert mathml(latex).startswith("<math")
    assert latex_html(f"$$\n{latex}\n$$").startswith("<math")


def test_what_is_no_formula_is_shown_as_it_is() -> None:
    assert mathml(r"\foo{a<b}") == r'<code class="untranslated-latex">\foo{a&lt;b}</code>'
    assert "untranslated-latex" in mathml(r"\frac{")
    assert "untranslated-latex" in mathml("a & b")


def test_markdown_links_lead_to_the_pages_of_other_notebooks() -> None:
    page = markdown_html("[next](01_basis.ipynb#basis), [there](https://a.b/c.ipynb), $a_1$ and \\$5")
    assert 'href="../01_basis/01_basis.html#basis"' in page
    assert 'href="https://a.b/c.ipynb"' in page
    assert page.count("<math") == 1


def test_peak_memory_grows_with_what_is_used() -> None:
    before = peak_memory()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory() >= before > 1e6
