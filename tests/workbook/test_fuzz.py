"""Anything typed or loaded is taken as it was meant or refused in a line: never a traceback, never another run.

More than two thousand cases: profiles, `--set`, grids, depth maps, ticket files.
"""

import atexit
import json
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lthlib import elastic
from lthlib.errors import InputError
from lthlib.models import architecture as models
from lthlib.ticket import Ticket, _digest, initial_tickets
from lthlib.workbook import profiles, sweep
from lthlib.workbook.notebooks import Notebook, read

FIXTURES = Path(__file__).parents[1] / "fixtures" / "notebooks"
OK, SLOW = read(FIXTURES / "ok.ipynb"), read(FIXTURES / "slow.ipynb")
TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict}


def cases(count: int) -> settings:
    """So many examples; slow ones are not the examples' fault."""
    return settings(max_examples=count, suppress_health_check=list(HealthCheck))


names = st.sampled_from([*OK.parameters, *SLOW.parameters, "sedes", "seed s", "", "é"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.integers()
    | st.floats(0, 1)
    | st.floats()
    | st.sampled_from(["digits", "mnist", "folder:x", "cuda", "dct", "1e-3", "no", ".nan", "", "!!int 3"])
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
noise = st.text(max_size=40) | st.text("[]{}:,-+.e0123456789 \n&*!#'\"tnu~<|>%@`", max_size=40)


def refused(error: InputError) -> None:
    """What a user is shown: lines that say something, each of a bearable length."""
    lines = str(error).splitlines()
    assert lines
    assert all(line.strip() and len(line) < 1500 for line in lines)


def fits(notebook: Notebook, found: dict[str, Any], given_values: dict[str, Any]) -> None:
    """Each parameter is what was given for it or its default, of its type and within its limits."""
    assert found.keys() == notebook.parameters.keys()
    for name, value in found.items():
        parameter = notebook.parameters[name]
        assert value == given_values.get(name, parameter.default)
        assert type(value) is TYPES[parameter.kind.name] or (value is None and parameter.kind.optional)
        if parameter.limits and not isinstance(value, list | dict):
            assert parameter.limits.allow(value)


def dumped(value: object) -> str:
    return yaml.safe_dump(value, allow_unicode=True)


@cases(400)
@given(st.dictionaries(names, values, max_size=3), st.dictionaries(names, values, max_size=2), st.booleans())
def test_profiles_of_any_values(common: dict[str, Any], own: dict[str, Any], written: bool) -> None:
    said = {"common": common, "notebooks": {"ok": own}}
    try:
        if written:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8", errors="surrogateescape") as file:
                file.write(dumped(said))
                file.flush()
                profile = profiles.read_profile(file.name, FIXTURES)
        else:
            profile = profiles.Profile("p", common, {"ok": own})
        found = profiles.resolve(profile, [], [OK, SLOW])
    except InputError as error:
        return refused(error)
    fits(OK, found["ok"], {**{name: value for name, value in common.items() if name in OK.parameters}, **own})
    fits(SLOW, found["slow"], {name: value for name, value in common.items() if name in SLOW.parameters})


@cases(300)
@given(noise.map(str.encode) | st.binary(max_size=40))
def test_profile_and_grid_files_of_any_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "g.yaml")
        path.write_bytes(content)
        for load in (
            lambda: profiles.resolve(profiles.read_profile(str(path), FIXTURES), [], [OK]),
            lambda: sweep.read_grid(path),
        ):
            try:
                load()
            except InputError as error:
                refused(error)


@cases(500)
@given(
    st.lists(st.tuples(names, values.map(json.dumps) | scalars.map(str) | noise), max_size=3),
    st.lists(noise, max_size=1),
)
def test_settings_of_any_text(pairs: list[tuple[str, str]], more: list[str]) -> None:
    try:
        texts = [*(f"{name}={text}" for name, text in pairs), *more]
        found = profiles.resolve(profiles.Profile("p"), texts, [OK, SLOW])
    except InputError as error:
        return refused(error)
    # Each by itself, by the one parameter that it names: the last word wins and nothing else moves.
    for notebook in (OK, SLOW):
        meant = {name: notebook.parameters[name].read(text) for name, text in pairs if name in notebook.parameters}
        fits(notebook, found[notebook.name], meant)


@cache
def no_notebooks() -> Path:
    """A folder with one empty profile: to read all notebooks for every grid would take the longest."""
    folder = Path(tempfile.mkdtemp(prefix="lth-fuzz-"))
    (folder / "profiles").mkdir()
    (folder / "profiles" / "quick.yaml").touch()
    atexit.register(shutil.rmtree, folder)
    return folder


axes = st.dictionaries(
    st.sampled_from([*OK.parameters, "seconds", "sedes"]),
    st.lists(st.integers(1, 4) | st.floats(0.1, 1) | values, max_size=3, unique_by=repr) | values,
    max_size=3,
)
grids = st.fixed_dictionaries(
    {"notebooks": st.just([str(OK.path), str(SLOW.path)]) | st.just([str(OK.path)]) | values},
    optional={
        "set": axes | values,
        "seeds": st.integers(-1, 9) | values,
        "profile": st.just("quick") | values,
        "x": values,
    },
)


@cases(300)
@given(grids | values)
def test_grids_of_any_values(said: Any) -> None:
    try:
        grid = sweep.grid_from(said, "g")
        runs = sweep.runs(grid, "results", no_notebooks())
    except InputError as error:
        return refused(error)
    assert len({run.task.out_dir.lower() for run in runs}) == len(runs)
    for notebook in (OK, SLOW):
        mine = [run for run in runs if run.task.name == notebook.name]
        own = [tried for name, tried in grid.values.items() if name in notebook.parameters]
        expected = 1
        for tried in own:
            expected *= len(tried)
        assert not mine or len(mine) == expected
        for run in mine:
            assert all(value in grid.values[name] for name, value in run.values.items())
            assert Path(run.task.out_dir).parts[:2] == ("results", "g")
            fits(notebook, run.task.parameters, {**run.values, "profile": "quick", "out_dir": run.task.out_dir})


@cache
def resnet(depth: int) -> models.Architecture:
    return models.architecture(f"resnet-{depth}-w2", (1, 8, 8), 10)


@cache
def small_ticket() -> Ticket:
    return initial_tickets(resnet(14), [0])[0]


stage = st.lists(st.integers(-1, 3), max_size=4) | st.just([0, 1])
maps = st.lists(stage, min_size=2, max_size=4).map(lambda stages: tuple(map(tuple, stages)))


@cases(300)
@given(maps.map(elastic.to_text) | st.text("012349,:;| ", max_size=24) | noise, st.sampled_from([8, 14, 20]))
def test_depth_maps_of_any_text(text: str, depth: int) -> None:
    try:
        depths = elastic.from_text(text)
        elastic.validate(depths, resnet(14), resnet(depth))
    except InputError as error:
        return refused(error)
    assert elastic.from_text(elastic.to_text(depths)) == depths
    carried = elastic.carry(small_ticket(), resnet(depth), depths)
    assert carried.state().keys() == models.build(resnet(depth)).state_dict().keys()


@cache
def ticket_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        small_ticket().save(Path(folder, "t.safetensors"))
        return Path(folder, "t.safetensors").read_bytes()


def loads(content: bytes) -> Ticket | None:
    """The ticket in a file of these bytes; None where it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.safetensors")
        path.write_bytes(content)
        try:
            return Ticket.load(path)
        except InputError as error:
            return refused(error)


@cases(200)
@given(st.data())
def test_ticket_files_with_changed_bytes(data: st.DataObject) -> None:
    whole = ticket_bytes()
    # The header is an eighth of the file; half of the damage is there.
    place = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, struct.unpack("<Q", whole[:8])[0] + 7))
    change = data.draw(st.sampled_from(["cut", "flip", "insert", "remove"]))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = {
        "cut": whole[:place],
        "flip": whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :],
        "insert": whole[:place] + bytes([bit]) + whole[place:],
        "remove": whole[:place] + whole[place + 1 :],
    }[change]
    assert loads(changed) is None


@cases(100)
@given(st.data())
def test_ticket_files_with_a_made_up_description(data: st.DataObject) -> None:
    from safetensors.torch import load, save

    tensors = load(ticket_bytes())
    description, _ = small_ticket()._described()
    description = json.loads(json.dumps(description))
    place: Any = description
    key: Any = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(values.filter(lambda value: "nan" not in repr(value).lower()))
    header = json.dumps(description | {"digest": _digest(tensors, description)})
    found = loads(save(tensors, metadata={"ticket": header}))
    # Where it is one, it is a ticket of that architecture that can be looked at.
    if found is not None:
        assert 0 <= found.density <= 1
        assert list(found.masks) == list(models.prunable(found.architecture))


def test_any_bytes_are_no_ticket() -> None:
    for content in (b"", b"\0" * 8, b"\xff" * 64, struct.pack("<Q", 2) + b"{}", b"PK\x03\x04" + b"\0" * 40):
        assert loads(content) is None


def test_a_pickle_is_no_ticket(tmp_path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    assert loads(pickle.dumps(Harm())) is None
    assert not (tmp_path / "harmed").exists()
    with pytest.raises(InputError, match="no ticket file"):
        Ticket.load(tmp_path / "none")
