"""Finds notebooks and reads what a run needs to know about them, without Jupyter."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lthlib.errors import InputError, unknown
from lthlib.workbook.parameters import Parameter, read_cell


@dataclass(frozen=True)
class Notebook:
    """A notebook as it lies in `notebooks/`: its cells and, checked, its parameters."""

    path: Path
    cells: tuple[dict[str, Any], ...]
    parameters: dict[str, Parameter]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @cached_property
    def title(self) -> str:
        """The first heading, or the name."""
        lines = (line for cell in self.cells if cell["cell_type"] == "markdown" for line in source(cell).splitlines())
        return next((line.lstrip("# ") for line in lines if line.startswith("#")), self.name)

    @cached_property
    def digest(self) -> str:
        """A digest of what the cells and the stated claims say; outputs, counts and other metadata do not count."""
        said = [(cell["cell_type"], source(cell), sorted(tags(cell))) for cell in self.cells]
        claims = self.path.parent / "claims" / f"{self.name}.yaml"
        stated = claims.read_bytes() if claims.is_file() else b""
        return blake2b(json.dumps(said).encode() + stated, digest_size=16).hexdigest()


def source(cell: dict[str, Any]) -> str:
    """A cell's text, which the format keeps as one string or as lines."""
    text = cell.get("source", "")
    return text if isinstance(text, str) else "".join(text)


def tags(cell: dict[str, Any]) -> list[str]:
    """A cell's tags."""
    return list(cell.get("metadata", {}).get("tags", []))


def read(path: Path) -> Notebook:
    """The notebook at `path`; InputError unless it is one, with exactly one well-formed `parameters` cell."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [source(cell) for cell in cells if cell["cell_type"] == "code" and "parameters" in tags(cell)]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror} (valid: a notebook, *.ipynb)") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is not a notebook of format 4 ({type(error).__name__}: {error})") from error
    if len(tagged) != 1:
        raise InputError(f"{path.name}: {len(tagged)} cells have the tag `parameters` (valid: exactly one)")
    return Notebook(path, tuple(cells), read_cell(tagged[0], path.name))


def catalogue(folder: Path) -> dict[str, Path]:
    """The notebooks of a folder by name, in the order of their numbers."""
    return {path.stem: path for path in sorted(folder.glob("*.ipynb")) if not path.name.startswith(".")}


def find(selection: Sequence[str], known: dict[str, Path]) -> list[Path]:
    """The notebooks that `selection` means - numbers (`1`, `01`), names or paths - each once; all, if it is empty."""
    if not selection:
        if not known:
            raise InputError("there are no notebooks in the notebooks folder (name one by its path)")
        return list(known.values())
    chosen = {_find_one(text, known): None for text in selection}
    names = [path.stem for path in chosen]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two notebooks are named {twice!r}, and their results would share a folder (run them apart)")
    return list(chosen)


def _find_one(text: str, known: dict[str, Path]) -> Path:
    if text in known:
        return known[text]
    if text.isdecimal():
        for name, path in known.items():
            number = name.partition("_")[0]
            if number.isdecimal() and int(number) == int(text):
                return path
    path = Path(text)
    if path.suffix == ".ipynb" and path.is_file():
        same = known.get(path.stem)
        return same if same and same.resolve() == path.resolve() else path
    raise unknown("notebook", text, known)
