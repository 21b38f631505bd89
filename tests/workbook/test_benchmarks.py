"""Every benchmark script runs, the one command gathers their rows, and the pages show what was measured."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lthlib.errors import InputError
from lthlib.workbook import performance

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("name", ["plain_loops", "stacks", "pruning", "searches", "tensors"])
def test_a_tiny_run_gives_rows_with_a_limit_and_the_plain_way(script, name, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--json", str(tmp_path / "rows.json")])
    script(name).main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows and all(row["value"] > 0 and row["ratio"] > 0 for row in rows)
    times = [row["times"] for row in rows if row["times"] is not None]
    assert times and min(times) > 0
    assert all(row["name"] in capsys.readouterr().out for row in rows[:1])


def test_ratios_goals_and_times_of_a_row(script) -> None:
    row = script("reporting").Row
    slow = row("step", 2.0, "s", limit=1.0, goal="<= 1.5", plain=8.0, plain_goal=">= 3")
    assert (slow.ratio, slow.times, slow.met) == (2.0, 4.0, False)
    rate = row("rate", 2.0, "images/s", limit=4.0, goal=">= 0.5", plain=8.0, plain_goal=">= 3")
    assert (rate.ratio, rate.times, rate.met) == (0.5, 0.25, False)
    assert row("rate", 2.0, "images/s", limit=4.0, goal=">= 0.5").met
    assert row("value", 2.0, "s", goal="<= 2").met and row("no goal", 2.0, "s").met


def rows(seconds: float) -> list[dict[str, object]]:
    name = "a | <path>"
    return [{"name": name, "value": seconds, "unit": "s", "limit": 1.0, "ratio": seconds, "goal": "<= 1.5",
             "plain": 9.0, "times": 9 / seconds, "plain_goal": None, "met": seconds <= 1.5}]  # fmt: skip


@pytest.fixture
def run_all(script, monkeypatch, tmp_path) -> ModuleType:
    """The command, with scripts that write what their name says instead of measuring."""
    found = script("run_all")
    part = found.Part
    monkeypatch.setattr(found, "FOLDER", tmp_path)
    parts = {
        "fast": part("Fast"),
        "slow": part("Slow", why="it waits"),
        "broken": part("Broken"),
        "large": part("Large", heavy=True),
    }
    parts["fed"] = part("Fed", needs_data=True)
    monkeypatch.setattr(found, "PARTS", parts)
    for name, seconds in (("fast", 1.0), ("slow", 3.0), ("large", 1.0), ("fed", 1.0)):
        text = f"import sys; open(sys.argv[-1], 'w').write({json.dumps(json.dumps(rows(seconds)))})"
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "broken.py").write_text("raise SystemExit('no such | thing')")
    return found


def test_one_command_one_file_and_parts_are_kept(run_all, tmp_path, capsys) -> None:
    file = tmp_path / "all.json"
    assert run_all.main(["--json", str(file)]) == 1
    record = json.loads(file.read_text())
    assert list(record["parts"]) == ["fast", "slow", "broken"]
    assert record["parts"]["broken"]["failed"] == "no such | thing"
    assert record["machine"]["torch"] and "cores" in record["machine"]["processor"]
    seen = capsys.readouterr()
    assert seen.out.count("a | <path>") == 2 and "fed is left out" in seen.err
    assert run_all.main(["--json", str(file), "--only", "large"]) == 0
    assert list(json.loads(file.read_text())["parts"]) == ["fast", "slow", "broken", "large"]
    with pytest.raises(InputError, match="unknown benchmark 'none'"):
        run_all.main(["--json", str(file), "--only", "none"])
    file.write_text(json.dumps(record | {"machine": {"processor": "another"}}))
    with pytest.raises(InputError, match=r"'all\.json' was measured on"):
        run_all.main(["--json", str(file)])


def test_the_table_says_what_is_missed_and_nothing_is_taken_for_markup(run_all, tmp_path) -> None:
    file = tmp_path / "all.json"
    run_all.main(["--json", str(file)])
    block = performance.full_block(json.loads(file.read_text()))
    assert block.startswith(f"{performance.BEGIN}\n") and block.endswith(f"\n{performance.END}")
    assert "| Fast | 1 | 1 | 0 |" in block and "| Slow | 1 | 0 | 1 |" in block
    assert r"| a \| \<path\> | 3 s | 1 s | 3 | 9 s | 3 | ratio \<= 1.5: **missed** |" in block
    assert block.count("Where a goal is missed: it waits.") == 1
    assert r"failed: no such \| thing" in block


def test_the_figures_go_into_their_pages_and_a_page_without_a_place_is_refused(tmp_path) -> None:
    assert performance.pages(tmp_path) == {}
    (tmp_path / performance.FILE).parent.mkdir(parents=True)
    (tmp_path / performance.FILE).write_bytes((ROOT / performance.FILE).read_bytes())
    front, full = tmp_path / "README.md", tmp_path / "benchmarks" / "README.md"
    full.parent.mkdir()
    front.write_text(f"a\n{performance.SPEED_BEGIN}\nold\n{performance.SPEED_END}\nb")
    full.write_text(f"a\n{performance.BEGIN}\nold\n{performance.END}\nb")
    assert performance.write_pages(tmp_path) == [front, full]
    assert all(
        text.read_text().startswith("a\n<!-- ") and text.read_text().endswith(" -->\nb") for text in (front, full)
    )
    assert len(performance.FRONT) == sum(line.startswith("| ") for line in front.read_text().splitlines()) - 2
    full.write_text("nothing")
    with pytest.raises(InputError, match="no place for the benchmarks"):
        performance.write_pages(tmp_path)


def test_the_pages_show_what_was_measured() -> None:
    stale = "older than results/reference/benchmarks.json: run `./run_all.sh report`"
    for page, text in performance.pages(ROOT).items():
        assert page.read_text(encoding="utf-8") == text, f"{page} is {stale}"
    assert performance.pages(ROOT)


def test_every_part_is_a_script_and_every_script_a_part(script) -> None:
    found = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "import Row, parser" in path.read_text()}
    # Faults are counted, not timed.
    assert found - {"faults"} == set(script("run_all").PARTS)


def test_training_starts_without_what_it_does_not_need_at_once() -> None:
    heavy = {"scipy", "pandas", "matplotlib", "sklearn", "torchvision", "numba"}
    code = "import lthlib.training.train, lthlib.finders.imp, lthlib.finders.find, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not heavy & set(loaded)
