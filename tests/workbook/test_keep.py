"""Results that are kept for the record say what their files say."""

from pathlib import Path
from typing import Any

import pytest

from lthlib.errors import InputError
from lthlib.workbook import manifest
from lthlib.workbook.keep import keep, write_readme
from lthlib.workbook.status import status

KEPT = sorted((Path(__file__).parents[2] / "results" / "reference").glob("*/*/claims.json"))
FOLDERS = sorted({path.parents[1] for path in KEPT})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_readme_is_what_the_committed_files_give(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    for path in KEPT:
        if path.parents[1] == folder:
            keep(path.parent, copy)
    assert write_readme(copy).read_text(encoding="utf-8") == (folder / "README.md").read_text(encoding="utf-8")


def test_nothing_committed_is_large() -> None:
    large = [path for folder in FOLDERS for path in folder.rglob("*") if path.stat().st_size > 2**20]
    assert large == []


def test_an_unfinished_run_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"is no finished run: metrics\.parquet, claims\.json, manifest\.json"):
        keep(tmp_path / "run", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    with pytest.raises(InputError, match="holds no results that were kept"):
        write_readme(tmp_path)


def test_a_file_above_one_mebibyte_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.parquet", "claims.json", "manifest.json"):
        (run / name).write_bytes(b"0" * (2**20 + 1 if name == "metrics.parquet" else 1))
    with pytest.raises(InputError, match=r"metrics\.parquet .* is above 1 MiB"):
        keep(run, tmp_path / "kept")


def test_a_copy_is_whole_and_a_damaged_run_is_not_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.parquet", "claims.json", "a.png", "run.html"):
        (run / name).write_text(name)
    manifest.write(run, {"status": "finished"})
    names = {"a.png", "claims.json", "metrics.parquet"}
    for figures in (True, False):
        names -= set() if figures else {"a.png"}
        keep(run, tmp_path / "kept", figures=figures)
        facts = manifest.read(tmp_path / "kept" / "run")
        assert facts is not None
        assert facts["files"].keys() == names
        assert manifest.whole(tmp_path / "kept" / "run", facts)
        assert {path.name for path in (tmp_path / "kept" / "run").iterdir()} == names | {"manifest.json"}
    (run / "claims.json").write_text("other")
    with pytest.raises(InputError, match="is damaged"):
        keep(run, tmp_path / "kept")


def test_what_is_kept_here_is_whole() -> None:
    assert [str(state) for state in status(FOLDERS[0].parent) if state.state != "done"] == []


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ""),
        ({"threads": 2, "mkl": "AVX2,STRICT", "versions": {"torch": "2.15.0"}}, ""),
        ({"device": "a processor"}, "a processor"),
        ({"device": "a processor", "threads": 1, "versions": "damaged"}, "a processor, 1 thread"),
        (
            {"device": "a processor", "threads": 2, "mkl": "AVX2,STRICT", "versions": {"torch": "2.15.0"}},
            "a processor, 2 threads, MKL AVX2,STRICT, torch 2.15.0",
        ),
    ],
)
def test_what_a_digit_is_compared_under_is_said_as_far_as_recorded(facts: dict[str, Any], said: str) -> None:
    assert manifest.computed_on(facts) == said
