"""Users' own models: the factory that a name stands for, and a digest of all the source that it is made from."""

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from lthlib.errors import InputError, unknown

Factory = Callable[[tuple[int, int, int], int], object]
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def name_of(factory: Factory) -> str:
    """`package.module:function` of a function or class; other callables have the name of their type."""
    if isinstance(factory, partial):
        module, _, function = name_of(factory.func).partition(":")
        return f"{module}:partial({function})"
    named: Any = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}:{named.__qualname__}"


def import_factory(name: str) -> Factory:
    """The function or class called `package.module:function`; InputError where nothing of that name can be imported."""
    path, _, function = name.partition(":")
    if "<" in function or "(" in function:
        raise InputError(
            f"model {name!r} was defined inside a function or has no name, so it cannot be looked up again "
            "(define it at the top of a module or notebook, or pass it to `architecture` itself)"
        )
    try:
        module = import_module(path)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{path}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"model {name!r}: no module {path!r} can be imported (write package.module:function, and have the "
            f"package's folder in PYTHONPATH or installed)"
        ) from error
    factory: Any = module
    for part in function.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function in module {path!r},", function, callables or ["none"])
    return factory


def source_digest(factory: Factory) -> str:
    """A digest of the source text that a factory is made from, so that a redefined one is another model.

    It covers the function or class, what it names in its own package (helper functions, base classes, constants), what
    it closes over, and, where that is in files, these whole modules and those of the package that they import.
    Without source text (a lambda typed into a prompt) the code object stands for it.
    """
    digest = blake2b(digest_size=16)
    package = name_of(factory).partition(":")[0].partition(".")[0]
    for text in _texts(factory, package, {}):
        digest.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _texts(value: object, package: str, seen: dict[int, object]) -> Iterator[str]:
    """The source of a value and, depth first, of what it refers to; each function, class and module once."""
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # held, so that no other object gets its id
    if isinstance(value, tuple | list):
        for part in value:
            yield from _texts(part, package, seen)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield repr(key)
            yield from _texts(part, package, seen)
    elif isinstance(value, partial):
        yield from _texts((value.func, value.args, value.keywords), package, seen)
    elif isinstance(value, ModuleType):
        if _belongs(value.__name__, package):
            yield from _module_texts(value, package, seen)
    elif isinstance(value, FunctionType):
        if _belongs(value.__module__, package):
            yield from _function_texts(value, package, seen)
    elif isinstance(value, type):
        if _belongs(value.__module__, package):
            yield value.__qualname__
            yield from _texts(value.__bases__, package, seen)
            # Member by member: of two classes of one name in one file, Python finds the source of one alone.
            for name, member in vars(value).items():
                held = getattr(member, "fget", getattr(member, "__func__", member))
                if isinstance(held, FunctionType) or not name.startswith("__"):
                    yield name
                    yield from _texts(held, package, seen)
            yield from _texts(sys.modules.get(value.__module__), package, seen)
    elif (method := getattr(value, "__func__", None)) is not None:
        yield from _texts((method, getattr(value, "__self__", None)), package, seen)
    elif _belongs(type(value).__module__, package):
        yield from _texts((type(value), getattr(value, "__dict__", {})), package, seen)


def _belongs(module: str | None, package: str) -> bool:
    return module is not None and (module == package or module.startswith(f"{package}."))


def _function_texts(function: FunctionType, package: str, seen: dict[int, object]) -> Iterator[str]:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = ""
    # Several lambdas share a line, and their source is that line.
    yield text if text and function.__name__ != "<lambda>" else text + _code_text(function.__code__)
    yield from _texts((function.__defaults__, function.__kwdefaults__), package, seen)
    for cell in function.__closure__ or ():
        try:
            yield from _texts(cell.cell_contents, package, seen)
        except ValueError:  # not yet bound
            continue
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _texts(function.__globals__[name], package, seen)
    yield from _texts(sys.modules.get(function.__module__), package, seen)


def _module_texts(module: ModuleType, package: str, seen: dict[int, object]) -> Iterator[str]:
    # A kernel's or script's own module grows from statement to statement: what is named in it has been followed.
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or file is None:
        return
    try:
        yield Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for value in list(vars(module).values()):
        home = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", "")))
        if home is not None and home is not module:
            yield from _texts(home, package, seen)


def _names(code: CodeType) -> set[str]:
    """The global names that a code object and those inside it may read."""
    return set(code.co_names).union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


def _code_text(code: CodeType) -> str:
    def written(part: object) -> str:
        if isinstance(part, CodeType):
            return _code_text(part)
        # A set's order differs from process to process.
        return repr(sorted(part, key=repr) if isinstance(part, frozenset) else part)

    constants = list(map(written, code.co_consts))
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars))
