"""The parameters cell, `--set` and profiles: what fits is taken as meant, what does not is named before it runs."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lthlib.errors import InputError
from lthlib.workbook import profiles
from lthlib.workbook.notebooks import read
from lthlib.workbook.parameters import Parameter, check_all, read_cell
from lthlib.workbook.plain_yaml import read_yaml
from lthlib.workbook.profiles import longest_first, plan
from lthlib.workbook.run import Task

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notebooks"
TYPES = ("bool", "int", "float", "str", "list", "dict", "list[int]", "list[float]", "list[str]", "dict[str, float]")


def parameter(line: str) -> Parameter:
    return next(iter(read_cell(line, "x.ipynb").values()))


def test_reads_names_types_defaults_help_and_limits() -> None:
    found = read(FIXTURES / "ok.ipynb").parameters
    assert list(found)[:3] == ["profile", "dataset", "out_dir"]
    density = found["density"]
    assert (str(density.kind), density.default, density.help) == ("float", 0.5, "kept / prunable")
    assert density.limits is not None and density.limits.text == "0 < x <= 1"
    assert str(found["widths"].kind) == "dict[str, int]"
    assert found["widths"].default == {"hidden": 30}


def test_reads_a_default_over_several_lines_with_its_comment() -> None:
    found = parameter("widths: list[int] = [  # units\n    300,\n    100,\n]\n")
    assert (found.default, found.help) == ([300, 100], "units")


def test_a_default_is_converted_like_any_value() -> None:
    default = parameter("rate: float = 1  # step").default
    assert type(default) is float


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("x = 1", "expected `name: type = default"),
        ("import os", "expected `name: type = default"),
        ("x: int = 1\nx: int = 2", "line 2: 'x' is given twice"),
        ("x: int = 1 + 1", "not a literal"),
        ("x: int = len([1])", "not a literal"),
        ("x: int", "default of x: None is null"),
        ("x: tuple = (1,)", "x has the type `tuple`"),
        ("x: int = 'a'", "default of x: 'a' is a str"),
        ("x: int = True", "default of x: True is a bool"),
        ("x: float = 2.0  # share [0 < x <= 1]", "default of x: 2.0 is out of range"),
        ("x: float = 2.0  # share [0 < y <= 1]", "cannot read the limits"),
        ("x: float = 2.0  # share [3 > x > 1]", "cannot read the limits"),
        ("x: float = 2.0  # share [0 < x > 1]", "cannot read the limits"),
        ("x: float = 2.0  # share [x]", "cannot read the limits"),
        ("x: int = 2  # [one of a, b]", "cannot read the limits"),
        ("x: str = 'a'  # [x > 1]", "cannot read the limits"),
        ("x: int = (", "is not Python"),
    ],
)
def test_an_unclear_cell_is_an_error_that_names_notebook_and_line(cell: str, message: str) -> None:
    with pytest.raises(InputError, match=r"x\.ipynb: ") as caught:
        read_cell(cell, "x.ipynb")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no_parameters", "0 cells have the tag"), ("two_tags", "2 cells have the tag"), ("not_literal", "not a literal")],
)
def test_a_notebook_needs_one_clear_parameters_cell(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(FIXTURES / f"{name}.ipynb")


def test_what_is_no_notebook_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    for text in ("", "[]", '{"cells": [1]}', '{"cells": 3}', '{"cells": [{}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="not a notebook of format 4"):
            read(path)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "y.ipynb")


@pytest.mark.parametrize(
    ("line", "text", "value"),
    [
        ("x: float = 1.0", "1", 1.0),
        ("x: float = 1.0", "1e-3", 0.001),
        ("x: float = 1.0", "-.5", -0.5),
        ("x: int = 1", "-3", -3),
        ("x: bool = True", "false", False),
        ("x: str = 'a'", "no", "no"),
        ("x: str = 'a'", "12", "12"),
        ("x: str = 'a'", "", ""),
        ("x: str = 'a'", "folder:a: b", "folder:a: b"),
        ("x: str | None = None", "null", None),
        ("x: int | None = 3", "", None),
        ("x: list[str] = []", "[dct, haar]", ["dct", "haar"]),
        ("x: list[float] = []", "[1, 2.5]", [1.0, 2.5]),
        ("x: list = []", "[1, no, 010, 1:30, 2020-01-01]", [1, "no", "010", "1:30", "2020-01-01"]),
        ("x: dict[str, int] = {}", "{a: 1}", {"a": 1}),
        ("x: list[list[int]] = []", "[[1], []]", [[1], []]),
    ],
)
def test_set_reads_text_by_the_type_it_is_for(line: str, text: str, value: object) -> None:
    found = parameter(line).read(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        ("x: int = 1", "1.0", "x: 1.0 is a float (valid: int, such as 1)"),
        ("x: int = 1", "true", "x: True is a bool (valid: int"),
        ("x: int = 1", "hello", "x: 'hello' is a str (valid: int"),
        ("x: int = 1", "1_000", "is a str"),
        ("x: float = 1.0", "true", "is a bool"),
        ("x: float = 1.0", ".nan", "is a str"),
        ("x: float = 1.0", "1e999", "a float that is not finite"),
        ("x: float = 1.0", "1" + "0" * 400, "int too large"),
        ("x: bool = True", "1", "is an int"),
        ("x: bool = True", "yes", "is a str"),
        ("x: list[str] = []", "dct", "'dct' is a str (valid: list[str]"),
        ("x: list[str] = []", "[1]", "is an int"),
        ("x: list[int] = []", "[1, null]", "is null"),
        ("x: list = []", "!!set {a}", "is a set"),
        ("x: list = []", "[!!binary aa==]", "is a bytes"),
        ("x: list = []", "&a [*a]", "aliases are not supported"),
        ("x: list = []", "[" * 2000, "not valid YAML"),
        ("x: list = []", "[1", "not valid YAML in line 1"),
        ("x: list = []", "!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("x: dict = {}", "{a: 1, a: 2}", "'a' is given twice"),
        ("x: dict = {}", "{1: 2}", "is an int"),
        ("x: int = 1  # [x >= 1]", "0", "x: 0 is out of range (valid: x >= 1)"),
        ("x: float = 1.0  # [0 < x <= 1]", "0", "out of range"),
        ("x: float = 1.0  # [0 < x <= 1]", "1.1", "out of range"),
        ("x: list[float] = [1.0]  # [0 < x <= 1]", "[1, 0]", "0.0 is out of range"),
        ("x: str = 'a'  # [one of a, b-c]", "c", "x: 'c' is out of range (valid: a, b-c)"),
        ("x: str = 'a'  # [one of a, folder:*]", "folder", "out of range"),
        ("x: str = 'a'", "\udcff", "not valid Unicode"),
    ],
)
def test_set_refuses_what_does_not_fit_in_one_line(line: str, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parameter(line).read(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("x: ")
    assert "\n" not in str(caught.value)


def test_limits_let_their_edges_and_patterns_through() -> None:
    assert parameter("x: float = 1.0  # [0 <= x < 2]").read("0") == 0
    assert parameter("x: float = 1.0  # [x < 2e3]").read("-5") == -5
    assert parameter("x: str = 'a'  # [one of a, folder:*]").read("folder:../b c") == "folder:../b c"
    assert parameter("x: int | None = 3  # [x > 1]").read("null") is None


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc: -", max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(plain)
def test_values_written_as_json_come_back_the_same(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)
    if isinstance(value, list):
        assert parameter("x: list = []").read(text) == value


@given(st.sampled_from(TYPES), st.text() | st.text("[]{}:,-+.e0123456789 \n&*!#'\"tnu~", max_size=20))
def test_any_text_is_a_fitting_value_or_one_line_of_error(kind: str, text: str) -> None:
    default = {"b": False, "i": 0, "f": 0.0, "s": "", "l": [], "d": {}}[kind[0]]
    try:
        value = parameter(f"x: {kind} = {default!r}").read(text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert type(value).__name__ == kind.partition("[")[0]
        json.dumps(value, allow_nan=False)


@given(plain)
def test_papermill_writes_a_value_as_the_same_value(value: object) -> None:
    from papermill.translators import PythonTranslator

    assert ast.literal_eval(PythonTranslator.translate(value)) == value


def test_check_all_names_every_mistake_and_fills_defaults() -> None:
    parameters = read(FIXTURES / "ok.ipynb").parameters
    assert check_all(parameters, {"density": 1})["density"] == 1.0
    with pytest.raises(InputError) as caught:
        check_all(parameters, {"sedes": 1, "density": "x", "final": 0})
    first, second, third = str(caught.value).splitlines()
    assert "unknown parameter 'sedes', did you mean 'seeds'?" in first
    assert "density: 'x' is a str" in second
    assert "final: 0 is an int" in third


def profile_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def resolved(profile: str, *settings: str, names: tuple[str, ...] = ("ok", "slow")) -> dict[str, dict[str, object]]:
    selected = [read(FIXTURES / f"{name}.ipynb") for name in names]
    return profiles.resolve(profiles.read_profile(profile, FIXTURES), settings, selected)


def test_set_beats_the_notebook_s_part_beats_common_beats_defaults(tmp_path: Path) -> None:
    profile = profile_file(
        tmp_path, "common: {seeds: 3, density: 0.1}\nnotebooks:\n  ok: {density: 0.2, final: true}\n"
    )
    found = resolved(profile, "final=false", "seconds=2")
    assert found["ok"] == {**found["ok"], "seeds": 3, "density": 0.2, "final": False, "dataset": "digits"}
    assert found["slow"]["seconds"] == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("commmon: {}", "unknown key 'commmon', did you mean 'common'?"),
        ("common: {sedes: 3}", "unknown parameter 'sedes', did you mean 'seeds'?"),
        ("common: {seeds: a}", "ok: seeds: 'a' is a str"),
        ("common: {seeds: 0}", "ok: seeds: 0 is out of range"),
        ("common: {profile: x}", "profile is filled by the runner (use --profile)"),
        ("notebooks: {okk: {}}", "unknown notebook 'okk', did you mean 'ok'?"),
        ("notebooks: {ok: {seconds: 1}}", "ok: unknown parameter 'seconds'"),
        ("notebooks: {ok: 3}", "expected a mapping"),
        ("notebooks: [ok]", "expected a mapping"),
        ("- 1", "expected a mapping"),
        ("common: {seeds: 3", "not valid YAML"),
        ("common: {seeds: 3, seeds: 4}", "'seeds' is given twice"),
        ("common: {}\ncommon: {}", "'common' is given twice"),
        ("common: &a {x: *a}", "aliases are not supported"),
    ],
)
def test_a_profile_may_say_nothing_that_no_notebook_understands(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolved(profile_file(tmp_path, text))
    assert message in str(caught.value)


def test_profiles_are_found_by_name_or_file(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("")
    assert profiles.read_profile("quick", tmp_path) == profiles.Profile("quick")
    with pytest.raises(InputError, match=r"unknown profile 'quik', did you mean 'quick'\? \(valid: quick, FILE.yaml\)"):
        profiles.read_profile("quik", tmp_path)
    with pytest.raises(InputError, match="No such file"):
        profiles.read_profile(str(tmp_path / "none.yaml"), tmp_path)
    with pytest.raises(InputError, match="cannot name a folder"):
        profiles.read_profile(str(tmp_path / ".yaml.yaml"), tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.yaml"):
        profiles.read_profile(str(tmp_path / "binary.yaml"), tmp_path)


def test_every_wrong_setting_gets_its_line(tmp_path: Path) -> None:
    profile = profile_file(tmp_path, "")
    with pytest.raises(InputError) as caught:
        resolved(profile, "seeds", "nothing=1", "out_dir=x", "seconds=-1", "seeds=x")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert "expected name=value" in lines[0]
    assert "unknown parameter 'nothing'" in lines[1]
    assert "use --out" in lines[2]
    assert "slow: seconds: -1.0 is out of range" in lines[3]
    assert "ok: seeds: 'x' is a str" in lines[4]


def test_a_setting_of_unselected_notebooks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown parameter 'seconds'"):
        resolved(profile_file(tmp_path, ""), "seconds=1", names=("ok",))


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_settings_give_values_or_lines_of_error(settings: list[str]) -> None:
    notebook = read(FIXTURES / "ok.ipynb")
    try:
        found = profiles.resolve(profiles.Profile("p"), settings, [notebook])
    except InputError as error:
        assert str(error)
    else:
        assert found["ok"].keys() == notebook.parameters.keys()


def test_a_plan_fills_profile_and_folder_and_checks_other_notebooks_only_where_named(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    for name in ("ok", "slow", "two_tags"):
        (tmp_path / f"{name}.ipynb").write_bytes((FIXTURES / f"{name}.ipynb").read_bytes())
    (tmp_path / "profiles" / "quick.yaml").write_text("common: {seconds: 1}")
    (task,) = plan(["ok"], "quick", [], "results", tmp_path)
    assert task.parameters["profile"] == "quick"
    assert task.parameters["out_dir"] == task.out_dir == "results/quick/ok"
    (tmp_path / "profiles" / "quick.yaml").write_text("notebooks: {two_tags: {}}")
    with pytest.raises(InputError, match="2 cells have the tag"):
        plan(["ok"], "quick", [], "results", tmp_path)


def test_notebooks_are_found_by_number_name_and_path(tmp_path: Path) -> None:
    from lthlib.workbook.notebooks import catalogue, find

    for name in ("00_start", "01_basis", "10_more", "extra"):
        (tmp_path / f"{name}.ipynb").touch()
    known = catalogue(tmp_path)
    other = tmp_path / "other" / "own.ipynb"
    other.parent.mkdir()
    other.touch()
    assert [path.stem for path in find([], known)] == ["00_start", "01_basis", "10_more", "extra"]
    assert [path.stem for path in find(["1", "00", "extra"], known)] == ["01_basis", "00_start", "extra"]
    assert [path.stem for path in find(["1", "01_basis", str(tmp_path / "01_basis.ipynb")], known)] == ["01_basis"]
    assert find([str(other)], known) == [other]
    with pytest.raises(InputError, match="unknown notebook '01_bassis', did you mean '01_basis'"):
        find(["01_bassis"], known)
    (other.parent / "extra.ipynb").touch()
    with pytest.raises(InputError, match="two notebooks are named 'extra'"):
        find(["extra", str(other.parent / "extra.ipynb")], known)
    with pytest.raises(InputError, match="no notebooks"):
        find([], {})


def test_the_longest_runs_come_first_and_those_never_kept_before_them(tmp_path: Path) -> None:
    for name, seconds in (("short", 2), ("long", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(
            json.dumps({"status": "finished", "files": {}, "seconds": seconds})
        )
    tasks = [Task(Path(f"{name}.ipynb"), {}, "out") for name in ("short", "long", "unknown")]
    assert [task.name for task in longest_first(tasks, tmp_path)] == ["unknown", "long", "short"]
