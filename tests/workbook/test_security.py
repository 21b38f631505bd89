"""What comes from elsewhere is data: no file, value or name that is read runs anything or reaches out of its folder."""

import ast
import io
import json
import pickle
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch
from nbformat.v4 import new_markdown_cell, new_notebook
from torchvision.datasets.utils import extract_archive

from lthlib import data
from lthlib.errors import InputError
from lthlib.evidence.grids import verdict_table
from lthlib.evidence.statements import statement_table
from lthlib.ticket import Ticket, _digest
from lthlib.widgets.universal import expression
from lthlib.workbook import execution, ray_engine, sweep
from lthlib.workbook.html import to_html
from lthlib.workbook.plain_yaml import read_yaml

PACKAGE = Path(__file__).parents[2] / "lthlib"
RUNS_CODE = {"eval", "exec", "compile", "__import__", "system", "popen", "query", "run_path", "run_module"}
UNPICKLES = ("torch.jit.load", "torch.hub", "torch.package", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load")
READS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


class Harm:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            found.append((name, node))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_evaluates_text_or_unpickles(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & READS_CODE
    for name, call in calls(tree):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        text = ast.unparse(call)
        # A network's own `.eval()` takes nothing; `re.compile` and `torch.compile` compile no text of Python.
        assert name not in RUNS_CODE or not call.args or text.startswith(("re.compile", "torch.compile")), text
        assert "shell" not in keywords, text
        assert not text.startswith(UNPICKLES), text
        assert not text.startswith(("torch.load(", "np.load(", "numpy.load(")) or "weights_only=True" in text, text
        assert not text.startswith("yaml.load(") or "_PlainLoader" in text, text
        assert "extractall" not in name and "unpack_archive" not in name, text
        assert "allow_pickle" not in keywords, text


def test_a_harmful_pickle_in_place_of_data_is_not_read(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (batches / name).write_bytes(pickle.dumps(Harm(harmed)))
    (batches / "batches.meta").write_bytes(pickle.dumps(Harm(harmed)))
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save(Harm(harmed), processed / name)
    for name in ("cifar10", "mnist"):
        with pytest.raises(InputError):
            data.load(name, tmp_path, download=False)
    assert not harmed.exists()


def test_an_archive_is_unpacked_inside_its_folder_only(tmp_path: Path) -> None:
    tar_file, zip_file = tmp_path / "a.tar", tmp_path / "a.zip"
    for name in ("../outside", str(tmp_path / "absolute"), "link/outside"):
        with tarfile.open(tar_file, "w") as tar:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            member = tarfile.TarInfo(name)
            member.size = 1
            for one in (link, member) if name.startswith("link") else (member,):
                tar.addfile(one, io.BytesIO(b"x"))
        with zipfile.ZipFile(zip_file, "w") as packed:
            packed.writestr(name, b"x")
        # An absolute path loses its slash and lands inside; what climbs out is refused.
        with suppress(tarfile.FilterError):
            extract_archive(str(tar_file), str(tmp_path / "in"))
        extract_archive(str(zip_file), str(tmp_path / "in"))
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tar", "a.zip", "in"}


def test_loading_a_ticket_imports_no_module_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    from safetensors.torch import save_file

    architecture = {"name": "harmful:net", "input_shape": [1, 2, 2], "classes": 2}
    description = {"architecture": architecture, "off": "zero", "shapes": {}, "bases": {}}
    header = json.dumps(description | {"digest": _digest({}, description)})
    save_file({}, tmp_path / "t.safetensors", metadata={"ticket": header})
    with suppress(InputError):
        Ticket.load(tmp_path / "t.safetensors")
    assert "harmful" not in sys.modules
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch harmed')",
        "x.__class__",
        "(lambda: x)()",
        "[x for x in (1,)]",
        "open('harmed', 'w')",
        "exec('x')",
        "f'{x}'",
        "x if x else 0",
        "9**9**9**9**9",
    ],
)
def test_typed_functions_are_arithmetic_or_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.chdir(tmp_path)
    with suppress(InputError):
        expression(text)(np.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_yaml_makes_plain_values_only(tmp_path: Path) -> None:
    for tag in ("python/object/apply:os.system [x]", "python/name:os.system", "python/object/new:os.system [x]"):
        with pytest.raises(InputError, match="not valid YAML"):
            read_yaml(f"!!{tag}")
    (tmp_path / "g.yaml").write_text("notebooks: !!python/object/apply:os.system [touch harmed]")
    with pytest.raises(InputError, match="not valid YAML"):
        sweep.read_grid(tmp_path / "g.yaml")


def test_tables_in_a_page_escape_what_they_show() -> None:
    harm = "<script>harm()</script>"
    said = {"id": "C1", "claim": harm, "statistic": harm, "source": harm, "margin": 0.5}
    record = {**said, "estimate": 1.0, "ci": [0.5, 1.5], "n": 3, "verdict": "supported"}
    pages = [verdict_table([record]).to_html(), statement_table({"C1": SimpleNamespace(**said, kind=harm)}).to_html()]
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;harm()" in page


def test_a_page_escapes_a_dead_kernel_s_last_words(tmp_path: Path) -> None:
    harm = "```\n<script>harm()</script>"
    notebook = new_notebook(cells=[new_markdown_cell("# A")], metadata={"papermill": {}})
    nbformat.write(notebook, tmp_path / "n.ipynb")
    execution._mark_failed(tmp_path / "n.ipynb", harm.replace("\n", " "), harm)
    page = to_html(nbformat.read(tmp_path / "n.ipynb", as_version=4), "n", tmp_path)
    assert "<script" not in page
    assert page.count("harm()") == 2


def test_a_sweep_s_folders_stay_in_its_own(tmp_path: Path) -> None:
    for value in ("../../x", "/etc/passwd", "..", ".", "a\0b", "a\nb", "~", "$HOME", "x" * 5000):
        assert Path("out", sweep.point_name({"dataset": value})).parent == Path("out")
        assert "\0" not in sweep.point_name({"dataset": value})


def test_a_cluster_of_our_own_is_reached_from_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: said.update(options),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}],
        shutdown=lambda: said.update(ended=True),
        remote=lambda **_: lambda _: None,
    )
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    monkeypatch.setattr(ray_engine, "_events", lambda *_: iter(()))
    assert list(ray_engine.progress_on_ray([])) == []
    assert (said["_node_ip_address"], said["include_dashboard"], said["ended"]) == ("127.0.0.1", False, True)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("nobody\nthere")))
    with pytest.raises(InputError, match=r"no Ray cluster at 'far:1': nobody \(valid: auto, HOST:PORT\)"):
        next(ray_engine.progress_on_ray([], address="far:1"))
