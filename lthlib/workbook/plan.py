"""What a command asks for, as tasks: every name and value checked, nothing run yet."""

import math
from collections.abc import Sequence
from pathlib import Path

from lthlib.errors import InputError
from lthlib.store import notebooks_folder, project_root
from lthlib.workbook import manifest, profiles
from lthlib.workbook.notebooks import Notebook, catalogue, find, read
from lthlib.workbook.run import Task


def plan(
    selection: Sequence[str], profile: str, settings: Sequence[str], out: str, folder: Path | None = None
) -> list[Task]:
    """The tasks for the selected notebooks (all of `folder` if none), with results under `out`/<profile>/.

    `profile` is a name or a file, `settings` are texts `name=value`. Raises InputError with a line for each mistake.
    """
    folder = folder or notebooks_folder()
    paths = catalogue(folder)
    selected = [read(path) for path in find(selection, paths)]
    chosen = profiles.read_profile(profile, folder / "profiles")
    known: list[Notebook] = []
    for name, path in paths.items():
        if not any(notebook.path == path for notebook in selected):
            try:
                known.append(read(path))
            except InputError:
                # A notebook in the making stops nobody, unless the profile speaks of it.
                if name in chosen.notebooks:
                    raise
    values = profiles.resolve(chosen, settings, selected, known)
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
