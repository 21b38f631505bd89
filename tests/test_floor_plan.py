"""The house: imports run downwards only, rooms keep to themselves, and a public name has one home."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import lthlib

PACKAGE = Path(__file__).parents[1] / "lthlib"
FLOORS = (
    ("errors", "randomness", "rooms", "rounding"),
    ("axes", "masks", "models", "store"),
    ("basis", "data"),
    ("ticket",),
    ("elastic", "training"),
    ("deployment", "finders"),
    ("evidence", "theory"),
    ("studies", "widgets", "workbook"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
JUPYTER = {"IPython", "ipykernel", "ipywidgets", "nbclient", "nbconvert", "nbformat", "papermill"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, inside its functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{name.name}" for name in node.names]
    return names


def of_the_house(path: Path) -> list[str]:
    """What a file imports of this package, without `lthlib.`, as rooms or `room.file`."""
    return [name.removeprefix("lthlib.") for name in imported(path) if name.startswith("lthlib.")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_and_never_sideways(path: Path) -> None:
    room = room_of(path)
    others = {name.split(".")[0] for name in of_the_house(path)} - {room, "__version__"}
    assert {other for other in others if FLOOR[other] >= FLOOR[room]} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_workbook_and_the_widgets_know_jupyter(path: Path) -> None:
    if room_of(path) not in ("widgets", "workbook"):
        assert {name.split(".")[0] for name in imported(path)} & JUPYTER == set()


def test_masks_are_plain_tensors() -> None:
    for path in sorted((PACKAGE / "masks").glob("*.py")):
        assert {name.split(".")[0] for name in of_the_house(path)} <= {"errors", "masks"}, path.name


def test_theory_never_trains_and_never_loads_data() -> None:
    for path in sorted((PACKAGE / "theory").rglob("*.py")):
        assert {name.split(".")[0] for name in of_the_house(path)} & {"data", "elastic", "finders", "training"} == set()


# Studies that are parts of one notebook's.
PARTS = {"connectivity": "elastic", "transfer": "universal", "supermask": "strong", "frontier": "beyond"}


def notebook_of(study: str) -> str:
    return PARTS.get(study.split("_", maxsplit=1)[0], study.split("_", maxsplit=1)[0])


def test_a_study_imports_of_other_notebooks_only_the_setting() -> None:
    for path in sorted((PACKAGE / "studies").glob("*.py")):
        others = {name.split(".")[1] for name in of_the_house(path) if name.startswith("studies.")}
        assert {other for other in others if notebook_of(other) != notebook_of(path.stem)} <= {"setting"}, path.name


def test_modules_import_each_other_in_one_direction() -> None:
    """No circle of modules, however many of them it takes."""
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in MODULES}
    arrows = {name: set(of_the_house(path)) & files.keys() - {name} for name, path in files.items()}
    while leaves := {name for name, below in arrows.items() if not below}:
        arrows = {name: below - leaves for name, below in arrows.items() if name not in leaves}
    assert arrows == {}


def definitions() -> dict[str, list[str]]:
    """Where each public function and class is defined."""
    homes = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    return homes


def test_a_public_name_has_one_home() -> None:
    homes = definitions()
    rooms = {name: {place.partition(".")[0] for place in places} - {"workbook"} for name, places in homes.items()}
    below = {name for name, places in rooms.items() if len(places) > 1}
    assert below == set(), "one name, one place below the workbook, whose files each have a `load`, `read` or `run`"
    assert {name: homes[name] for name, room in lthlib.HOMES.items() if room not in homes[name]} == {}


def test_the_face_knows_each_name_once_and_says_so_to_type_checkers() -> None:
    face = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = [node for part in face.body if isinstance(part, ast.If) for node in part.body]
    told = {name.name: node.module for node in typed if isinstance(node, ast.ImportFrom) for name in node.names}
    rooms = {name: f"lthlib.{room}".rpartition(".")[0] for name, room in lthlib.ROOMS.items() if name in told}
    assert told == {name: f"lthlib.{room}" for name, room in lthlib.HOMES.items()} | rooms
    assert all(getattr(lthlib, name) is not None for name in lthlib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        lthlib.lod  # noqa: B018
