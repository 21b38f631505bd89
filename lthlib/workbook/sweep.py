"""A sweep: notebooks, run once for every combination of the values that a grid gives their parameters.

A grid is a YAML file:

    notebooks: [00]                      # numbers, names or paths
    profile: quick                       # name or FILE.yaml; quick if not said
    set:
      learning_rate: [0.02, 0.05, 0.1]   # values for each parameter
      model: [lenet-300-100, conv-2]
    seeds: 5                             # replicates in every run; as `set: {seeds: [5]}`

A notebook is combined over those parameters that it has. Each run has a folder of its own,
`DIR/<grid>/<point>/<notebook>/`, named by its values.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lthlib.errors import InputError, unknown
from lthlib.store import key, write_atomically, write_json
from lthlib.workbook import manifest, remote
from lthlib.workbook.notebooks import read
from lthlib.workbook.parameters import RESERVED, Parameter
from lthlib.workbook.plain_yaml import read_yaml_file
from lthlib.workbook.profiles import plan
from lthlib.workbook.run import Task, bring

if TYPE_CHECKING:
    import pandas as pd

PLAN, TABLE = "sweep.json", "sweep.parquet"
KEYS = ("notebooks", "profile", "set", "seeds")
MOST = 10_000  # runs; more is a slip of the pen
LONGEST = 100  # characters of a folder's name


@dataclass(frozen=True)
class Grid:
    """What a grid file says; `values` are the values to try of each parameter."""

    name: str
    notebooks: tuple[str, ...]
    profile: str = "quick"
    values: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: the `point` of the grid that it is at, the values that make it so, and what to do."""

    point: str
    values: dict[str, Any]
    task: Task

    @property
    def name(self) -> str:
        """What it is called: its place in the sweep's folder."""
        return f"{self.point}/{self.task.name}"


def read_grid(path: Path | str) -> Grid:
    """The grid in a file; InputError where it says more or less than a grid may."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml") or not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise InputError(f"{str(path)!r} is no grid (valid: FILE.yaml; letters, digits, '_', '-' and '.')")
    return grid_from(read_yaml_file(path, "grid"), path.stem)


def grid_from(content: object, name: str) -> Grid:
    """The grid that a YAML value describes; raises InputError as `read_grid` does."""
    where = f"grid {name}"
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping with the keys {', '.join(KEYS)}, got {ascii(content)[:60]}")
    for key_ in content:
        if key_ not in KEYS:
            raise InputError(f"{where}: {unknown('key', key_, KEYS)}")

    def expect(well: bool, name: str, value: object, kind: str) -> None:
        if not well:
            raise InputError(f"{where}: {name}: {ascii(value)[:60]} is no {kind}")

    notebooks: Any = content.get("notebooks")
    profile, values = content.get("profile", "quick"), content.get("set")
    named = isinstance(notebooks, list) and notebooks and all(isinstance(item, str | int) for item in notebooks)
    expect(bool(named), "notebooks", notebooks, "list of notebooks (valid: such as [00, 01])")
    expect(isinstance(profile, str), "profile", profile, "name (valid: such as quick, or FILE.yaml)")
    values = {} if values is None else values
    mapping = isinstance(values, dict) and all(isinstance(parameter, str) for parameter in values)
    expect(mapping, "set", values, "mapping of names to lists of values")
    if "seeds" in content:
        if "seeds" in values:
            raise InputError(f"{where}: seeds are given twice (valid: as a key, or in set)")
        seeds = content["seeds"]
        values = {**values, "seeds": seeds if isinstance(seeds, list) else [seeds]}
    for parameter, tried in values.items():
        listed = isinstance(tried, list) and bool(tried)
        expect(listed, f"set: {parameter}", tried, "list of values (valid: such as [1, 2])")
    return Grid(name, tuple(map(str, notebooks)), profile, values)


def runs(grid: Grid, out: str, folder: Path | None = None, shared: str = "") -> list[PlannedRun]:
    """All runs of a grid, notebook by notebook, the last parameter moving fastest; nothing is run yet.

    `folder` holds the notebooks and `profiles/`, as for `plan`; `shared` is the sweep's address, if it has one. Raises
    InputError with a line for each mistake.
    """
    tasks = plan(grid.notebooks, grid.profile, [], out, folder)
    parameters = {task.name: read(task.notebook).parameters for task in tasks}
    problems, checked = [], {}
    known = sorted({name for names in parameters.values() for name in names} - RESERVED.keys())
    for name, tried in grid.values.items():
        if name in RESERVED:
            problems.append(f"grid {grid.name}: {name} is filled by the runner (use {RESERVED[name]})")
        elif name not in known:
            problems.append(f"grid {grid.name}: {unknown('parameter', name, known)}")
        for task in tasks if name in known else ():
            if name in parameters[task.name]:
                checked[task.name, name] = _check(parameters[task.name][name], tried, f"{task.name}: ", problems)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    count = sum(prod(len(tried) for (of, _), tried in checked.items() if of == task.name) for task in tasks)
    if count > MOST:
        raise InputError(f"grid {grid.name}: {count:,} runs are too many (valid: at most {MOST:,})")
    planned = []
    for task in tasks:
        axes = {name: tried for (of, name), tried in checked.items() if of == task.name}
        for chosen in product(*axes.values()):
            values = dict(zip(axes, chosen, strict=True))
            point = point_name(values)
            out_dir = Path(out, grid.name, point, task.name).as_posix()
            filled = {"out_dir": out_dir} if "out_dir" in parameters[task.name] else {}
            given = {**task.parameters, **values, **filled}
            address = f"{shared}/{point}/{task.name}" if shared else ""
            planned.append(PlannedRun(point, values, Task(task.notebook, given, out_dir, address)))
    return planned


def _check(parameter: Parameter, tried: Sequence[object], where: str, problems: list[str]) -> list[Any]:
    values: list[Any] = []
    for value in tried:
        try:
            checked = parameter.check(value)
        except InputError as error:
            problems.extend(where + line for line in str(error).splitlines())
            continue
        if checked in values:
            problems.append(f"{where}{parameter.name}: {ascii(checked)[:60]} is given twice")
        values.append(checked)
    return values


def point_name(values: Mapping[str, Any]) -> str:
    """A folder's name for a point: `name=value,...`; what no folder's name can say plainly is told apart by a key.

    Capitals count as that: some file systems take them for small letters.
    """
    if not values:
        return "all"
    text = ",".join(f"{name}={_plain(value)}" for name, value in values.items())
    if all(map(_is_plain, values.values())) and text.isascii() and text == text.lower() and len(text) <= LONGEST:
        return text
    safe = re.sub(r"[^\w.,=+-]+", "-", text, flags=re.ASCII)[: LONGEST - 17]
    return f"{safe}-{key(values)}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        # What is joined by + must hold none itself, and [] would leave nothing to see.
        return bool(value) and all(isinstance(item, str) and "+" not in item and _is_plain(item) for item in value)
    return isinstance(value, bool | int | float) or (
        isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]+", value, re.ASCII))
    )


def write_plan(folder: Path, planned: Sequence[PlannedRun], shared: str = "") -> None:
    """Writes `sweep.json`: every run, by point and notebook, with its values. `lth status` reads what is left there.

    It is sent to `shared`, the sweep's address, too.
    """
    runs = [{"point": run.point, "notebook": run.task.name, "values": manifest.portable(run.values)} for run in planned]
    write_json(folder / PLAN, {"runs": runs})
    if shared:
        remote.send_file(folder / PLAN, shared)


def read_plan(folder: Path) -> list[tuple[str, str]]:
    """Point and notebook of every run of the sweep in `folder`; InputError where there is no readable plan."""
    try:
        planned = json.loads((folder / PLAN).read_text(encoding="utf-8"))["runs"]
        pairs = [(run["point"], run["notebook"]) for run in planned]
        if all(isinstance(name, str) and Path(name).name == name for pair in pairs for name in pair):
            return pairs
        raise ValueError("a name that is no folder's")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(folder / PLAN)!r} is no readable plan: {error} (run the sweep again)") from error


def write_table(folder: Path, planned: Sequence[PlannedRun]) -> Path | None:
    """Writes the metrics of all finished runs as one tidy table, `sweep.parquet`; None where no run has finished.

    In the order of the plan. Before its own columns each run's rows get `point`, `profile`, `notebook` and a column
    `set_NAME` for each parameter of the grid; lists and mappings are JSON.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for run in planned for name in run.values))
    tables = [_rows(run, names) for run in planned if _finished(run.task.folder)]
    if not tables:
        return None
    table = pa.Table.from_pandas(pd.concat(tables, ignore_index=True), preserve_index=False)
    # The pandas metadata names library versions.
    plain = table.replace_schema_metadata(None)
    write_atomically(folder / TABLE, partial(pq.write_table, plain, compression="zstd"))
    return folder / TABLE


def _finished(folder: Path) -> bool:
    facts = manifest.read(folder)
    return facts is not None and facts["status"] == "finished" and manifest.whole(folder, facts)


def _rows(run: PlannedRun, names: Sequence[str]) -> "pd.DataFrame":
    from lthlib.evidence.results import read_metrics

    # The folder is this machine's affair; the point says the same.
    rows = read_metrics(run.task.folder).drop(columns="folder")
    said: dict[str, Any] = {
        "point": run.point,
        "profile": run.task.parameters.get("profile", ""),
        "notebook": run.task.name,
    }
    for name in names:
        value = run.values.get(name)
        said[f"set_{name}"] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
    rows = rows.drop(columns=list(said), errors="ignore")
    for place, (name, value) in enumerate(said.items()):
        rows.insert(place, name, value)
    return rows


def close(folder: Path, planned: Sequence[PlannedRun], shared: str = "") -> Path | None:
    """Gathers what has finished so far: a page for each point, and the table, whose path it returns.

    Runs that only their address has, made on machines without this folder, are taken from there first; the table is
    sent to `shared`, the sweep's address.
    """
    from lthlib.workbook.report import run_folders, write_index

    for run in planned:
        bring(run.task)
    for point in dict.fromkeys(folder / run.point for run in planned):
        if point.is_dir() and run_folders(point):
            write_index(point)
    table = write_table(folder, planned)
    if table and shared:
        remote.send_file(table, shared)
    return table
