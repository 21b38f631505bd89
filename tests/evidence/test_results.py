import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lthlib import store
from lthlib.errors import InputError
from lthlib.evidence import results
from lthlib.evidence.claims import Claim, decide, ledger
from lthlib.evidence.results import (
    Results,
    output_folder,
    read_claims,
    read_metrics,
    save_claims,
    save_figure,
    save_metrics,
)
from lthlib.evidence.style import chart, style


@pytest.fixture
def metrics():
    return pd.DataFrame(
        {"basis": ["canonical", "dct"], "seed": [0, 1], "accuracy": [97.5, math.nan], "kept": [True, False]}
    )


@pytest.fixture
def records():
    claim = Claim("GB-1", "Sparse tickets match.", "[paper]", "difference to dense", "non-inferior", 0.3)
    return ledger([decide(claim, [0.1, 0.2, 0.0])], "digits", "quick")


def test_metrics_come_back_as_they_were(tmp_path, metrics):
    folder = tmp_path / "quick" / "01_generalized_basis"
    path = save_metrics(metrics, folder)
    assert path == folder / "metrics.parquet" and list(folder.iterdir()) == [path]
    found = read_metrics(folder)
    pd.testing.assert_frame_equal(found[list(metrics)], metrics)
    assert found.profile.unique() == ["quick"] and found.notebook.unique() == ["01_generalized_basis"]


def test_equal_metrics_give_equal_bytes(tmp_path, metrics):
    paths = [save_metrics(frame, tmp_path / name) for name, frame in (("a", metrics), ("b", metrics.copy()))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_metrics_name_no_machine(tmp_path, metrics):
    content = save_metrics(metrics, tmp_path).read_bytes()
    assert str(Path.home()).encode() not in content and b"pandas_version" not in content


def test_one_reader_for_tables_across_runs(tmp_path, metrics):
    for profile, notebook in (("quick", "01"), ("mnist", "01"), ("mnist", "02")):
        save_metrics(metrics.assign(dataset=profile), tmp_path / profile / notebook)
    save_metrics(metrics.assign(profile="own", extra=1), tmp_path / "other" / "03")
    found = read_metrics(tmp_path)
    assert list(found.groupby(["profile", "notebook"]).size().items()) == [
        (("mnist", "01"), 2),
        (("mnist", "02"), 2),
        (("own", "03"), 2),
        (("quick", "01"), 2),
    ]
    assert len(read_metrics(tmp_path / "mnist", tmp_path / "quick" / "01", tmp_path / "mnist" / "02")) == 6


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"a": [1]}, "are a pandas table, not a dict"),
        (pd.DataFrame({("a", "b"): [1]}), r"\('a', 'b'\) of the metrics table is no flat name"),
        (pd.DataFrame(np.ones((1, 2)), columns=["a", "a"]), "'a' of the metrics table is there twice"),
        (pd.DataFrame({"a": [1]}, index=pd.Index([3], name="seed")), r"has an index \['seed'\]"),
        (pd.DataFrame({"a": [[1, 2], None]}), "'a' of the metrics table holds collections"),
        (pd.DataFrame({"a": [1, "two"]}, dtype=object), "column of mixed types"),
    ],
)
def test_metrics_that_are_not_tidy_are_refused(tmp_path, frame, message):
    with pytest.raises(InputError, match=message):
        save_metrics(frame, tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_metrics_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no metrics\.parquet: run a notebook first"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match=r"metrics\.parquet' is no readable metrics table.*run its notebook again"):
        read_metrics(tmp_path)


def test_claims_come_back_with_their_notebook(tmp_path, records):
    folder = tmp_path / "quick" / "01_generalized_basis"
    path = save_claims(records, folder)
    assert json.loads(path.read_text()) == records
    (found,) = read_claims(tmp_path)
    assert {name: found[name] for name in results.CLAIM_FIELDS} == records[0]
    assert (found["notebook"], found["folder"]) == ("01_generalized_basis", str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "maybe"}, "unknown verdict of claim GB-1 'maybe'"),
        ({"estimate": math.nan}, "claim GB-1 holds nan"),
        ({"ci": [0.1]}, "a lower and an upper limit"),
        ({"n": 2.5}, r"has n = 2\.5"),
        ({"note": "x"}, "unknown field of claim GB-1 'note'"),
    ],
)
def test_claims_that_are_wrong_are_refused(tmp_path, records, change, message):
    with pytest.raises(InputError, match=message):
        save_claims([{**records[0], **change}], tmp_path)
    assert not list(tmp_path.iterdir())


def test_claims_that_are_incomplete_or_doubled_are_refused(tmp_path, records):
    with pytest.raises(InputError, match="claim GB-1 lacks 'margin', 'profile'"):
        save_claims([{name: records[0][name] for name in records[0] if name not in ("margin", "profile")}], tmp_path)
    with pytest.raises(InputError, match="'GB-1' is there twice"):
        save_claims(records * 2, tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": "GB-1"}]', "3"])
def test_a_damaged_ledger_is_named(tmp_path, text):
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(InputError, match=r"claims\.json' is no readable ledger"):
        read_claims(tmp_path)


def test_a_figure_drawn_again_gives_the_same_bytes(tmp_path):
    contents = []
    for name in ("a", "b"):
        with style():
            figure, (axes,) = chart()
            axes.plot([1, 2], [3, 4], label="line")
            axes.fill_between([1, 2], [2, 3], [4, 5], alpha=0.2)
        png, svg = save_figure(figure, "accuracy", tmp_path / name)
        contents.append((png.read_bytes(), svg.read_bytes()))
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG") and b"<svg" in contents[0][1]
    assert b"<dc:date>" not in contents[0][1] and b"Matplotlib v" not in contents[0][1] + contents[0][0]


def test_names_that_leave_the_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"figure name '\.\./x' is no file name"):
        save_figure(chart()[0], "../x", tmp_path)
    with pytest.raises(InputError, match="profile 'a/b' is no folder name"):
        output_folder("", "a/b", "01")


def test_output_folder_is_the_one_given_or_lies_under_results(tmp_path, monkeypatch):
    root = Path(__file__).resolve().parents[2]
    assert output_folder(tmp_path, "quick", "01") == tmp_path
    assert output_folder("", "quick", "01_generalized_basis") == root / "results" / "quick" / "01_generalized_basis"
    monkeypatch.setattr(store, "__file__", str(tmp_path / "site-packages" / "lthlib" / "store.py"))
    monkeypatch.chdir(tmp_path)
    assert output_folder("", "quick", "01") == tmp_path / "results" / "quick" / "01"


def test_an_unwritable_folder_is_named(tmp_path, records, metrics):
    (tmp_path / "file").write_text("")
    for save, value in ((save_claims, records), (save_metrics, metrics)):
        with pytest.raises(InputError, match="cannot write"):
            save(value, tmp_path / "file" / "below")


def test_a_notebook_has_one_object_for_its_folder_claims_and_verdicts(tmp_path, monkeypatch):
    study = Results("quick", tmp_path / "out", notebook="00_start_here", margin=1.0)
    assert list(study.claims) == ["LTH-1", "LTH-2", "LTH-3"]
    assert study.store.folder == tmp_path / "out" / "store"
    figure, _ = chart()
    assert study.figure(figure, "x") is figure
    assert {path.name for path in study.folder.iterdir()} == {"x.png", "x.svg"}
    assert study.decide("LTH-2", [1.0, 2.0, 1.5]).verdict == "supported"
    assert list(study.parts()["claim"]) == ["LTH-2"]
    study.table({"a": pd.DataFrame({"seed": [0]}), "b": pd.DataFrame({"seed": [1]})})
    study.verdicts("digits")
    assert [record["id"] for record in read_claims(study.folder)] == ["LTH-2"]
    assert list(read_metrics(study.folder)["section"]) == ["a", "b"]
    with pytest.raises(InputError, match="unknown claim of 00_start_here 'LTH-9'"):
        study.decide("LTH-9", [1.0])


def test_a_notebook_s_name_is_found_by_itself(tmp_path, monkeypatch):
    for name in ("LTH_NOTEBOOK", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"Results\(\.\.\., notebook='my_notebook'\)"):
        Results()
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/03_sketching_pai.ipynb")
    assert Results("quick", tmp_path, margin=1.0).notebook == "03_sketching_pai"
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/00_start_here-Copy1.ipynb")
    copied = Results("quick", margin=1.0)
    assert (copied.folder.name, list(copied.claims)) == ("00_start_here-Copy1", ["LTH-1", "LTH-2", "LTH-3"])
    assert Results(notebook="mine").claims == {}
    monkeypatch.setenv("LTH_NOTEBOOK", "00_start_here")
    assert Results("quick", tmp_path, margin=1.0).notebook == "00_start_here"
