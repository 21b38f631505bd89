"""The claims page and the pages' blocks say what the kept runs say, and nothing in them is taken for markup."""

import json
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lthlib.errors import InputError
from lthlib.evidence.results import read_metrics
from lthlib.workbook.ledger import (
    BEGIN,
    END,
    Run,
    kept_runs,
    ledger_block,
    ledger_page,
    outcomes_block,
    verdict_counts,
    with_block,
)
from lthlib.workbook.report import pages, write_ledger

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
KEPT = kept_runs(RESULTS / "reference")
STALE = "run `./run_all.sh report` and commit what it writes"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    claim = {"id": "T-1", "claim": "a | <b> is *better*", "source": "[x]", "statistic": "<i>s</i>", "estimate": 1.5}
    claim |= {"ci": [1.0, None], "margin": 0.0, "n": 5, "verdict": "not supported", "dataset": "d&d", "profile": "own"}
    folder = tmp_path / "reference" / "own" / "00_a"
    folder.mkdir(parents=True)
    (folder / "claims.json").write_text(json.dumps([claim]))
    facts = {"status": "finished", "files": {}, "title": "A <title>", "profile": "own", "seconds": 2.5, "code": {}}
    facts["parameters"] = {"profile": "own", "seeds": 5, "bases": ["a", "dct@input"], "data_dir": "my data"}
    (folder / "manifest.json").write_text(json.dumps(facts))
    (folder / "a figure.png").touch()
    return kept_runs(tmp_path / "reference")[0]


def test_the_committed_page_is_what_the_kept_runs_give() -> None:
    page = (RESULTS / "index.html").read_text(encoding="utf-8")
    assert page == ledger_page(KEPT, RESULTS), f"results/index.html is older than results/reference: {STALE}"
    assert len(page.encode()) < 300 * 1024


def test_the_pages_are_what_the_kept_runs_give() -> None:
    texts = pages(ROOT, KEPT)
    assert {page.relative_to(ROOT).as_posix() for page in texts} == {
        "README.md",
        "results/README.md",
        "benchmarks/README.md",
    }
    for page, text in texts.items():
        assert page.read_text(encoding="utf-8") == text, f"{page} is older than results/reference: {STALE}"


def test_the_front_page_shows_every_notebook_with_its_verdicts() -> None:
    block = outcomes_block(KEPT)
    for run in KEPT:
        assert f"](notebooks/{run.notebook}.ipynb)" in block
        if run.profile != "quick":
            assert f"{run.profile} {' / '.join(map(str, verdict_counts([run]).values()))}" in block
    with pytest.raises(InputError, match="is in no kept run"):
        outcomes_block(KEPT[1:2])


def test_every_notebook_that_has_claims_is_in_the_ledger_and_not_all_are_supported() -> None:
    stated = {path.stem for path in (ROOT / "notebooks" / "claims").glob("0[0-5]*.yaml")}
    assert stated <= {run.notebook for run in KEPT}
    assert all(verdict_counts(KEPT).values())


def test_one_reader_gathers_the_tables_of_all_kept_runs() -> None:
    table = read_metrics(RESULTS / "reference")
    runs = set(table.groupby(["notebook", "folder"]).groups)
    assert runs == {(run.notebook, str(run.folder)) for run in KEPT}


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attributes)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("href", "src") if name in values]


def test_the_page_needs_no_network_and_its_links_lead_somewhere() -> None:
    page = Links((RESULTS / "index.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & page.tags
    assert len(set(page.ids)) == len(page.ids)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids)
    files = [link for link in page.links if not link.startswith("#")]
    assert files
    assert [link for link in files if not (RESULTS / link).is_file()] == []


def test_the_page_escapes_and_links_what_it_shows(run: Run) -> None:
    page = ledger_page([run], run.folder.parents[2])
    assert "a | &lt;b&gt; is *better*" in page
    assert "&lt;i&gt;s&lt;/i&gt;" in page
    assert "A &lt;title&gt; (own)" in page
    assert 'href="reference/own/00_a/a%20figure.png"' in page
    assert "1 to -" in page
    assert "./run_all.sh reproduce T-1 --profile own" in page


def test_the_block_escapes_and_links_what_it_shows(run: Run) -> None:
    block = ledger_block([run])
    assert r"a \| \<b\> is \*better\* | \[x\] | 1.5 [1, -] | 5 | not supported |" in block
    assert "[T-1](index.html#own-00_a-T-1)" in block
    assert 'id="own-00_a-T-1"' in ledger_page([run], run.folder.parents[2])


def test_cheap_runs_are_left_out_where_there_are_others(run: Run) -> None:
    quick = Run(run.folder.parents[1] / "quick" / "00_a", run.facts, run.claims)
    assert "quick" not in ledger_block([run, quick])
    assert "00_a, quick" in ledger_block([quick])


def test_the_command_says_every_parameter(run: Run) -> None:
    words = ["./run_all.sh", "run", "00_a", "--profile", "own", "--set", "seeds=5"]
    assert shlex.split(run.command) == [*words, "--set", 'bases=["a", "dct@input"]', "--set", "data_dir=my data"]


def test_the_ledger_is_written_over_what_is_kept(run: Run, tmp_path: Path) -> None:
    assert write_ledger(tmp_path) == [tmp_path / "index.html"]
    assert write_ledger(tmp_path / "reference") == []
    (run.folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"00_a' has no readable manifest\.json"):
        write_ledger(tmp_path)


def test_a_page_without_markers_is_refused() -> None:
    block = f"{BEGIN}\nnew\n{END}"
    assert with_block(f"a\n{BEGIN}\nold\n{END}\nb", block) == f"a\n{block}\nb"
    with pytest.raises(InputError, match="no place for the ledger"):
        with_block(f"a\n{END}\n{BEGIN}", block)
