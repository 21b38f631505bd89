"""From a profile to tasks: parameters in YAML, laid over the notebooks' defaults; `--set` is laid over both.

Every name and value is checked, nothing is run.

A profile has up to two keys. `common` holds parameters for every notebook that has them; `notebooks` holds those of
one notebook each, and wins:

    common: {dataset: mnist, seeds: 5}
    notebooks:
      01_generalized_basis: {levels: 12}
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lthlib.errors import InputError, unknown
from lthlib.store import notebooks_folder, project_root
from lthlib.workbook import manifest
from lthlib.workbook.notebooks import Notebook, catalogue, find, read
from lthlib.workbook.parameters import RESERVED, check_all
from lthlib.workbook.plain_yaml import read_yaml_file
from lthlib.workbook.run import Task


@dataclass(frozen=True)
class Profile:
    """Parameters by name, for all notebooks that have them and for single ones."""

    name: str
    common: dict[str, Any] = field(default_factory=dict)
    notebooks: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_profile(text: str, folder: Path) -> Profile:
    """The profile called `text` in `folder`, or in the file `text` if that ends in .yaml or .yml.

    Raises InputError where there is none, or where it is more or less than described above.
    """
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if text not in names:
            raise unknown("profile", text, [*names, "FILE.yaml"])
        path = folder / f"{text}.yaml"
    if not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise InputError(f"{path.stem!r} cannot name a folder of results (valid: letters, digits, '_', '-', '.')")
    top = _mapping(read_yaml_file(path, "profile"), path.name)
    for key in top:
        if key not in ("common", "notebooks"):
            raise InputError(f"profile {path.name}: {unknown('key', key, ['common', 'notebooks'])}")
    notebooks = _mapping(top.get("notebooks"), f"{path.name}: notebooks")
    return Profile(
        path.stem,
        _mapping(top.get("common"), f"{path.name}: common"),
        {name: _mapping(values, f"{path.name}: {name}") for name, values in notebooks.items()},
    )


def resolve(
    profile: Profile,
    settings: Sequence[str],
    selected: Sequence[Notebook],
    known: Sequence[Notebook] = (),
) -> dict[str, dict[str, Any]]:
    """All parameters of each selected notebook, by its name: defaults, then the profile, then `settings`.

    `settings` are texts `name=value`. `known` are the other notebooks that the profile may speak of; what it says of
    them is checked too. Raises one InputError with a line for each mistake.
    """
    problems: list[str] = []
    everyone = {notebook.name: notebook for notebook in (*known, *selected)}
    resolved: dict[str, dict[str, Any]] = {}
    for name in profile.common:
        if not any(name in notebook.parameters for notebook in everyone.values()):
            names = sorted({name for notebook in everyone.values() for name in notebook.parameters})
            problems.append(f"profile {profile.name}: {unknown('parameter', name, names)}")
    for name in profile.notebooks:
        if name not in everyone:
            problems.append(f"profile {profile.name}: {unknown('notebook', name, everyone)}")
    for name in RESERVED.keys() & set().union(profile.common, *profile.notebooks.values()):
        problems.append(f"profile {profile.name}: {name} is filled by the runner (use {RESERVED[name]})")
    for notebook in everyone.values():
        common = {name: value for name, value in profile.common.items() if name in notebook.parameters}
        values = {**common, **profile.notebooks.get(notebook.name, {})}
        with _collecting(problems, f"profile {profile.name}, {notebook.name}: "):
            resolved[notebook.name] = check_all(notebook.parameters, values)
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        takers = [notebook for notebook in selected if name in notebook.parameters]
        if not equals:
            problems.append(f"--set {setting}: expected name=value")
        elif name in RESERVED:
            problems.append(f"--set {setting}: {name} is filled by the runner (use {RESERVED[name]})")
        elif not takers:
            names = sorted({name for notebook in selected for name in notebook.parameters} - RESERVED.keys())
            problems.append(f"--set {setting}: {unknown('parameter', name, names)}")
        for notebook in takers if equals and name not in RESERVED else ():
            with _collecting(problems, f"{notebook.name}: "):
                resolved.setdefault(notebook.name, {})[name] = notebook.parameters[name].read(text)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return {notebook.name: resolved[notebook.name] for notebook in selected}


@contextmanager
def _collecting(problems: list[str], where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.extend(where + line for line in str(error).splitlines())


def _mapping(value: object, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"profile {where}: expected a mapping of names to values, got {ascii(value)[:60]}")
    return value


def plan(
    selection: Sequence[str], profile: str, settings: Sequence[str], out: str, folder: Path | None = None
) -> list[Task]:
    """The tasks for the selected notebooks (all of `folder` if none), with results under `out`/<profile>/.

    `profile` is a name or a file, `settings` are texts `name=value`. Raises InputError with a line for each mistake.
    """
    folder = folder or notebooks_folder()
    paths = catalogue(folder)
    selected = [read(path) for path in find(selection, paths)]
    chosen = read_profile(profile, folder / "profiles")
    known = []
    for name, path in paths.items():
        if not any(notebook.path == path for notebook in selected):
            try:
                known.append(read(path))
            except InputError:
                # A notebook in the making stops nobody, unless the profile speaks of it.
                if name in chosen.notebooks:
                    raise
    values = resolve(chosen, settings, selected, known)
    tasks = []
    for notebook in selected:
        out_dir = Path(out, chosen.name, notebook.name).as_posix()
        filled = {"profile": chosen.name, "out_dir": out_dir}
        fitting = {name: value for name, value in filled.items() if name in notebook.parameters}
        tasks.append(Task(notebook.path, {**values[notebook.name], **fitting}, out_dir))
    return tasks


def longest_first(tasks: Sequence[Task], kept: Path | None = None) -> list[Task]:
    """The tasks in the order for several at a time: long ones first, so that none is left alone at the end.

    How long a notebook takes is read from the run of it that is `kept` with the quick profile (default: the project's
    own, results/reference/quick); notebooks without one count as longest.
    """
    kept = kept or project_root() / "results/reference/quick"

    def seconds(task: Task) -> float:
        return float((manifest.read(kept / task.name) or {}).get("seconds", math.inf))

    return sorted(tasks, key=seconds, reverse=True)
