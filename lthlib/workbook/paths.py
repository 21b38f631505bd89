"""Where relative paths lead, the same for a shell, the runner's kernel and JupyterLab."""

import os
from pathlib import Path

import lthlib


def project_root() -> Path:
    """The folder that holds `lthlib/` and `notebooks/`; the current folder where lthlib is installed elsewhere."""
    root = Path(lthlib.__file__).resolve().parents[1]
    return root if (root / "notebooks").is_dir() else Path.cwd()


def notebooks_folder() -> Path:
    """The folder of the workbook's notebooks and their profiles."""
    return project_root() / "notebooks"


def project_path(text: str | Path) -> Path:
    """`text` as a path: relative ones are relative to the current folder, or to the project inside `notebooks/`.

    JupyterLab starts kernels in `notebooks/`, the runner in the folder of its caller; `data` means the project's
    `data/` in both. Relative paths stay relative, so that no machine's folders are written into results.
    """
    path = Path(text).expanduser()
    here = Path.cwd().resolve()
    if path.is_absolute() or not here.is_relative_to(notebooks_folder().resolve()):
        return path
    return Path(os.path.relpath(project_root().resolve() / path, here))
