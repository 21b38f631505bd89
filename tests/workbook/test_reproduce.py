"""One claim is made again from its record alone: only what it needs, every digit the same."""

import builtins
import json
import symtable
from dataclasses import replace
from pathlib import Path

import pytest

from lthlib.errors import InputError
from lthlib.workbook import execution, manifest
from lthlib.workbook.excerpt import excerpt
from lthlib.workbook.ledger import Run, kept_runs
from lthlib.workbook.notebooks import Notebook, read, source, tags
from lthlib.workbook.reproduce import Reproduction, find_claim, recorded, reproduce
from lthlib.workbook.run import THREADS

ROOT = Path(__file__).parents[2]
KEPT = kept_runs(ROOT / "results" / "reference")
NOTEBOOKS = {run.notebook: read(ROOT / "notebooks" / f"{run.notebook}.ipynb") for run in KEPT}
CHEAP = "S2"


def notebook(*cells: str) -> Notebook:
    code = [{"cell_type": "code", "metadata": {}, "source": cell} for cell in cells]
    code[0]["metadata"] = {"tags": ["parameters"]}
    return Notebook(Path("n.ipynb"), tuple(code), {})


def kept(cells: list[dict]) -> list[str]:
    return [line for cell in cells[1:] for line in source(cell).splitlines()]


START, END = "results = Results()", "results.table(table)\nresults.verdicts(label)"


def test_an_excerpt_is_what_the_decision_reads() -> None:
    found = notebook(
        "seeds = 5",
        START,
        "import a\nfrom b import c, d\nimport unused",
        "one = a.run(seeds)\ntwo = c(one)\nthree = d(2)",
        "figure = a.plot(one)\nfigure",
        "rows = []\nfor part in one:\n    rows.append(part)\nlines = []\nfor part in two:\n    lines += [part]",
        'results.decide("A", rows)\nresults.decide("B", lines)',
        'results.decide("C", three)',
        END,
    )
    assert kept(excerpt(found, "A", "ABC")) == [
        *(START, "import a", "one = a.run(seeds)", "rows = []", "for part in one:", "    rows.append(part)"),
        *("results.decide('A', rows)", "results.verdicts(label)"),
    ]
    lines = kept(excerpt(found, "B", "ABC"))
    assert "    lines += [part]" in lines
    assert "two = c(one)" in lines
    assert kept(excerpt(found, "C", "ABC"))[2:4] == ["three = d(2)", "results.decide('C', three)"]
    with pytest.raises(InputError, match=r"unknown claim of n 'D'"):
        excerpt(found, "D", "ABC")


def test_what_changes_a_table_in_place_is_kept_and_what_is_bound_anew_is_not() -> None:
    found = notebook(
        "seeds = 5",
        START,
        "table = slow()\ntable = quick()\ntable['x'] = table['y'] * 2\ntable.attrs['z'] = 1\nx = [slow for slow in ()]",
        "slow = train()\nfor rule in [1]:\n    slow = table[rule]\n    table.loc[rule] = slow",
        'if len(table):\n    results.decide("A", table)',
        END,
    )
    assert kept(excerpt(found, "A", "A"))[:-3] == [
        *(START, "table = quick()", "table['x'] = table['y'] * 2", "table.attrs['z'] = 1"),
        *("for rule in [1]:", "    slow = table[rule]", "    table.loc[rule] = slow"),
    ]


def test_claims_named_by_a_variable_stay_with_their_kind() -> None:
    found = notebook(
        "seeds = 5",
        START + "\nbeats = {'A': 1, 'B': 2}\nfirst = train()\nsecond = train()",
        "for name in beats:\n    results.decide(name, first)",
        "for name, value in {'C': second, 'D': 4}.items():\n    results.decide(name, value)",
        "results.decide('E', 5)",
        END,
    )
    assert "first = train()" not in kept(excerpt(found, "C", "ABCDE"))
    assert "second = train()" in kept(excerpt(found, "D", "ABCDE"))
    assert kept(excerpt(found, "E", "ABCDE"))[:2] == [START, "results.decide('E', 5)"]
    assert {"first = train()", "beats = {'A': 1, 'B': 2}"} <= set(kept(excerpt(found, "A", "ABCDE")))


@pytest.mark.parametrize("run", KEPT, ids=lambda run: run.anchor)
def test_recorded_parameters_still_fit_their_notebook(run: Run) -> None:
    # Where a folder data set lies is each machine's own.
    moved = ["dataset=folder:here"] if str(run.facts["parameters"].get("dataset")).startswith("folder:") else []
    assert recorded(run, NOTEBOOKS[run.notebook], moved)["seeds"] == run.facts["parameters"]["seeds"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_kept_claims_can_be_asked_for(name: str) -> None:
    notebook = NOTEBOOKS[name]
    ids = list(dict.fromkeys(claim["id"] for run in KEPT if run.notebook == name for claim in run.claims))
    whole = sum(len(source(cell)) for cell in notebook.cells if cell["cell_type"] == "code")
    for claim_id in ids[::3]:  # a share, for time
        cells = excerpt(notebook, claim_id, ids)
        text = "\n".join(source(cell) for cell in cells)
        assert "decide(" in text
        assert len(text) < whole
        assert [tags(cell) for cell in cells].count(["parameters"]) == 1
        assert unbound(text) <= {*dir(builtins), "display"}


def unbound(text: str) -> set[str]:
    """Names that the text reads and never binds."""
    top = symtable.symtable(text, "excerpt", "exec")
    inner = {symbol.get_name() for table in top.get_children() for symbol in table.get_symbols() if symbol.is_global()}
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return (inner | set(top.get_identifiers())) - bound


@pytest.mark.notebook
def test_a_cheap_claim_comes_out_as_it_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREADS:  # as many as the record had
        monkeypatch.delenv(name, raising=False)
    run, old = find_claim(CHEAP, ROOT / "results" / "reference", "quick")
    found = reproduce(run, CHEAP, [], str(tmp_path))
    assert found.agrees, found.report()
    # Another processor, or other versions, can round otherwise; here nothing may differ.
    assert found.exact or not found.same
    assert (found.old, found.whole) == (old, False)
    assert [path.name for path in (tmp_path / "quick").glob("*/*.ipynb")] == [f"{CHEAP}.ipynb"]
    assert not list(tmp_path.rglob("metrics.parquet"))


@pytest.fixture
def made() -> Reproduction:
    run, old = find_claim("LTH-1", ROOT / "results" / "reference", "quick")
    return Reproduction(run, old, dict(old), "a processor", 2.0, same=True, whole=True)


def test_what_agrees(made: Reproduction) -> None:
    (_, high), estimate = made.old["ci"], made.old["estimate"]
    moved = replace(made, new={**made.old, "estimate": estimate + (high - estimate) / 2})
    far = replace(made, new={**made.old, "estimate": high + 1}, same=False)
    absent = replace(made, new={**made.old, "estimate": None}, same=False)
    other = replace(made, old={**made.old, "verdict": "inconclusive"}, new={**made.new, "verdict": "supported"})
    assert made.agrees
    assert "Equal to the last digit." in made.report()
    assert not moved.agrees
    assert "Not reproduced" in moved.report()
    assert replace(moved, same=False).agrees
    assert "lies inside the kept interval" in replace(moved, same=False).report()
    assert not far.agrees
    assert "lies outside" in far.report()
    assert not absent.agrees
    assert replace(far, identity=True).agrees
    assert "its verdict is the same" in replace(far, identity=True).report()
    assert not other.agrees
    assert replace(other, whole=False).agrees  # uncorrected, a verdict can be surer


def test_the_cheapest_run_is_taken_unless_a_profile_is_named() -> None:
    reference = ROOT / "results" / "reference"
    assert find_claim("LTH-1", reference)[0].profile == "quick"
    assert find_claim("LTH-1", reference, "mnist")[0].profile == "mnist"
    with pytest.raises(InputError, match=r"unknown claim 'LTH-9', did you mean 'LTH-"):
        find_claim("LTH-9", reference)
    with pytest.raises(InputError, match=r"unknown profile of claim LTH-1 'cifar'.*mnist, quick"):
        find_claim("LTH-1", reference, "cifar")
    with pytest.raises(InputError, match="holds no kept runs"):
        find_claim("LTH-1", ROOT / "notebooks")


def test_data_and_device_are_the_readers_and_the_rest_is_recorded(made: Reproduction) -> None:
    notebook = NOTEBOOKS[made.run.notebook]
    facts = {**made.run.facts, "parameters": {**made.run.facts["parameters"], "data_dir": "../elsewhere", "seeds": 7}}
    run = replace(made.run, facts=facts)
    found = recorded(run, notebook, ["device=cpu"])
    assert (found["data_dir"], found["seeds"], found["device"]) == ("data", 7, "cpu")
    assert recorded(run, notebook, ["data_dir=/mine"])["data_dir"] == "/mine"
    facts["parameters"]["dataset"] = manifest.portable("folder:/machine/images")
    with pytest.raises(InputError, match=r"'folder:\.\.\./images' on the machine of the record .*--set dataset="):
        recorded(run, notebook)
    assert recorded(run, notebook, ["dataset=digits"])["dataset"] == "digits"
    facts["parameters"]["gone"] = 1
    with pytest.raises(InputError, match="unknown parameter 'gone'"):
        recorded(run, notebook, ["dataset=digits"])
    with pytest.raises(InputError, match="unknown parameter 'sedes', did you mean 'seeds'"):
        recorded(made.run, notebook, ["sedes=1"])
    with pytest.raises(InputError, match="expected name=value"):
        recorded(made.run, notebook, ["seeds"])


def test_a_cell_that_fails_is_said_in_one_line(
    made: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def execute(part: Path, changed: dict, target: Path) -> execution.Execution:
        seen.update(changed, cells=json.loads(part.read_text())["cells"], name=target.name)
        return execution.Execution("ValueError: no")

    monkeypatch.setattr(execution, "execute", execute)
    with pytest.raises(RuntimeError, match=r"^ValueError: no \(see .*LTH-1\.ipynb\)$"):
        reproduce(made.run, "LTH-1", ["seeds=7"], str(tmp_path))
    assert (seen["seeds"], seen["name"]) == (7, "LTH-1.ipynb")
    assert 0 < len(seen["cells"]) < len(NOTEBOOKS[made.run.notebook].cells)
