"""How a room gives its files: by name, each imported when it is first asked for."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def files_of(room: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of a room: its files by name, each imported when it is first asked for."""

    def file_of(name: str) -> ModuleType:
        if find_spec(f"{room}.{name}") is None:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return import_module(f"{room}.{name}")

    return file_of
