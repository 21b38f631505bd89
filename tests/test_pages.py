"""What the pages say holds: their code runs, their links lead somewhere, their commands and paths exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image

import lthlib as lth
from lthlib.evidence import statements
from lthlib.workbook.cli import app
from lthlib.workbook.parameters import read_cell

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / folder / "README.md"
    for folder in ("", "results", "benchmarks", "lthlib", "lthlib/workbook", "notebooks", "data")
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Folders whose files a page may name in `code`.
FOLDERS = ("lthlib", "notebooks", "tests", "benchmarks", "results/reference", ".ci")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def spans(page: Path) -> list[str]:
    """The inline code of a page."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", prose)


def anchors(page: Path) -> set[str]:
    """The anchors of a page: ids of HTML, headings of Markdown as GitHub names them."""
    text = page.read_text(encoding="utf-8")
    headings = (
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)
    )
    return {*re.findall(r'\bid="([^"]+)"', text), *headings}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of `./run_all.sh` or `lth` that a page names, without its program, beside the page."""
    for page, name in zip(PAGES, NAMES, strict=True):
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        for text in lines + spans(page):
            if text.startswith(("./run_all.sh", "lth ")) and not text.endswith(" COMMAND"):
                yield name, shlex.split(text, comments=True)


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_that_is_there_is_checked() -> None:
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    kept = {page for folder in folders for page in folder.rglob("README.md")} - set(ROOT.glob("results/**/*/README.md"))
    assert {page for page in kept if "data" not in page.parts or page.parent == ROOT / "data"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    texts = spans(page) + [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = {
        word.rstrip("/.,;:")
        for text in texts
        for word in text.split()
        if word.startswith(tuple(f"{name}/" for name in FOLDERS))
    }
    assert [word for word in words if not list(ROOT.glob(word))] == []


def test_every_command_is_real_with_real_options() -> None:
    tools = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer brings a click of its own
    script = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    verbs = {verb for line in re.findall(r"^([\w| -]+)\)$", script, re.M) for verb in re.split(r"\W+", line)}
    named = list(commands())
    for page, (program, *words) in named:
        if program == "./run_all.sh" and (not words or words[0] in verbs - {""}):
            continue
        name, arguments = ("run", words) if words[0].startswith("-") else (words[0], words[1:])
        assert name in tools, f"{page}: {shlex.join([program, *words])}"
        if arguments or program == "./run_all.sh":
            tools[name].make_context(name, arguments)  # raises UsageError for what it does not take
    assert len(named) > 30


def test_every_name_of_the_import_is_on_the_librarys_page() -> None:
    assert set(spans(ROOT / "lthlib" / "README.md")) >= set(lth.__all__)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.parent.name)
def test_the_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in one namespace, in a folder with some pictures and the claims that the page states."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 10), ("test", 2)):
        for label, grey in (("dark", 40), ("light", 200)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), grey + number).save(folder / f"{number}.png")
    for block in blocks(page, "yaml"):
        if name := re.match(r"# notebooks/claims/(\w+)\.yaml\n", block):
            (tmp_path / f"{name[1]}.yaml").write_text(block)
            monkeypatch.setattr(statements, "FOLDER", tmp_path)
    # As the runner does it: a notebook's folder of results has its name.
    injected = {"out_dir": str(tmp_path / "results" / "07_mine"), "data_dir": str(tmp_path / "cache")}
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        code = block.replace('"cache"', repr(str(tmp_path / "cache")))
        exec(compile(code, str(page), "exec"), names)
        names |= {name: value for name, value in injected.items() if name in names}


def test_the_own_notebook_has_a_parameters_cell_and_stated_claims() -> None:
    page = ROOT / "notebooks" / "README.md"
    parameters = read_cell(blocks(page, "python")[0], "notebooks/README.md")
    assert {"profile", "out_dir"} < set(parameters)
    assert all(parameter.help for parameter in parameters.values())
    stated = {claim["id"] for block in blocks(page, "yaml") for claim in yaml.safe_load(block)}
    assert stated == set(re.findall(r'results\.decide\("([^"]+)"', page.read_text(encoding="utf-8")))


def test_the_citation_has_the_workbook_and_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert citation["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    papers = {paper["identifiers"][0]["value"] for paper in citation["references"]}
    assert {"arXiv:2107.06825", "arXiv:2103.16547", "arXiv:2305.17559", "arXiv:2111.11146"} <= papers
    assert all(paper["title"] and paper["authors"] for paper in citation["references"])
