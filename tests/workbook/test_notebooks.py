"""The committed notebooks: clean, short, parametrised, and each runs from end to end at the smallest size."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from smoke import smoke_pass

from lthlib.workbook.html import markdown_html
from lthlib.workbook.notebooks import read, source, tags
from lthlib.workbook.profiles import plan

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PROFILES = sorted(FOLDER.glob("profiles/*.yaml"))
EXPECTED = {"profile": "str", "dataset": "str", "data_dir": "str", "out_dir": "str", "device": "str", "seeds": "int"}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@each
def test_parameters_are_annotated_explained_and_complete(path: Path) -> None:
    parameters = read(path).parameters
    assert [name for name, parameter in parameters.items() if not parameter.help] == []
    assert EXPECTED.items() <= {name: str(parameter.kind) for name, parameter in parameters.items()}.items()
    assert (parameters["profile"].default, parameters["out_dir"].default) == ("quick", "")
    assert (parameters["dataset"].default, parameters["data_dir"].default) == ("digits", "data")


@each
def test_nothing_of_a_run_is_committed(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert not {"papermill", "widgets"} & notebook["metadata"].keys()
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not {"papermill", "execution"} & cell["metadata"].keys()
        assert not {"injected-parameters", "papermill-error-cell-tag"} & set(tags(cell))


@each
def test_cells_are_few_and_short(path: Path) -> None:
    code = cells(path, "code")
    assert len(code) <= 25
    # The parameters cell has one line a parameter, and papermill wants them all in one cell.
    most = {id(cell): 20 if "parameters" in tags(cell) else 15 for cell in code}
    assert [source(cell) for cell in code if len(source(cell).splitlines()) > most[id(cell)]] == []


@each
def test_a_notebook_defines_no_algorithm(path: Path) -> None:
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    assert re.findall(r"^\s*(?:class|def|async def) .*", code, flags=re.MULTILINE) == []


@each
def test_formulas_and_links_survive_in_the_offline_page(path: Path) -> None:
    for cell in cells(path, "markdown"):
        page = markdown_html(source(cell))
        assert "untranslated-latex" not in page
        for name in re.findall(r'href="\.\./([\w-]+)/', page):
            assert (FOLDER / f"{name}.ipynb").is_file()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_profiles_say_only_what_the_notebooks_understand(profile: Path) -> None:
    if not NOTEBOOKS:
        pytest.skip("there are no notebooks yet")
    assert len(plan([], profile.stem, [], "results")) == len(NOTEBOOKS)


@pytest.mark.notebook
@each
def test_a_notebook_runs_and_leaves_its_results(path: Path, smoke: Path) -> None:
    from lthlib.evidence.results import CLAIM_FIELDS, read_metrics

    tasks, outcomes = smoke_pass(smoke, "first")
    task, outcome = tasks[path.stem], outcomes[path.stem]
    assert (outcome.status, outcome.reason) == ("done", "")
    assert len(read_metrics(task.folder)) > 0
    claims = json.loads((task.folder / "claims.json").read_text())
    assert claims
    assert all(tuple(claim) == CLAIM_FIELDS for claim in claims)
    figures = {figure.stem for figure in task.folder.glob("*.png")}
    assert figures
    assert figures == {figure.stem for figure in task.folder.glob("*.svg")}
    page = (task.folder / f"{path.stem}.html").read_text()
    assert "<script" not in page
    assert "untranslated-latex" not in page


@pytest.mark.notebook
@each
def test_the_same_seed_gives_the_same_bits(path: Path, smoke: Path) -> None:
    tables = []
    for name in ("first", "again"):
        tasks, outcomes = smoke_pass(smoke, name)
        assert outcomes[path.stem].status == "done"
        tables.append((tasks[path.stem].folder / "metrics.parquet").read_bytes())
    assert tables[0] == tables[1]
