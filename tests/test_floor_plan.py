"""Imports run downwards only, and what computes never imports Jupyter, papermill or widgets."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lthlib"
FLOORS = (
    ("errors", "randomness", "rounding"),
    ("axes", "basis", "data", "models", "proximal", "store", "ticket"),
    (
        "batches",
        "captured",
        "mask_updates",
        "muon",
        "network",
        "optimizers",
        "recipe",
        "stacked_sgd",
        "steps",
        "threads",
        "training",
    ),
    ("elastic", "finders"),
    ("deployment", "theory"),
    ("evidence",),
    ("workbook",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SHOWN = ("IPython", "ipykernel", "ipywidgets", "nbformat", "nbconvert", "papermill")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            if node.module == "lthlib":
                found += [f"lthlib.{name.name}" for name in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    rooms = [name.split(".")[1] for name in imported(path) if name.startswith("lthlib.")]
    assert [other for other in rooms if FLOOR[other] > FLOOR[room]] == []
    computes = FLOOR[room] <= FLOOR["theory"]
    assert not computes or [name for name in imported(path) if name.split(".")[0] in SHOWN] == []
