"""The only room that knows folders: atomic writes, keys from parameters, locks, checksums, resume."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from errno import ENOSPC
from functools import cache
from hashlib import blake2b, file_digest
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

from filelock import FileLock

from lthlib.errors import InputError

Value = TypeVar("Value")
PART = ".part"  # in the hidden name of a file that is being written


def project_root() -> Path:
    """The folder that holds `lthlib/` and `notebooks/`; the current folder where lthlib is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
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


_FLUSHES = ContextVar("flushes", default=True)


@contextmanager
def _unflushed() -> Iterator[None]:
    token = _FLUSHES.set(False)
    try:
        yield
    finally:
        _FLUSHES.reset(token)


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> None:
    """Has `write` fill a temporary file beside `path`, flushes it to the disk and renames it to `path`.

    In a `Store` nothing waits for the disk: what it reads is checked, and computed anew where a power cut took it.

    A reader sees the old file or the whole new one, whenever the writer is killed. Raises InputError where the
    folder cannot be written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays, because writers such as matplotlib choose their format by it.
        with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=f"{PART}{path.suffix}", delete=False) as handle:
            temporary = Path(handle.name)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        write(temporary)
        if _FLUSHES.get():
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
        # A temporary file is private to its owner; a result is as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    advice = "free some space, or choose another folder" if error.errno == ENOSPC else "choose a writable folder"
    return InputError(f"cannot write {str(path)!r}: {error.strerror or error} ({advice})")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@cache
def sources_digest(*rooms: str) -> str:
    """16 hexadecimal digits that change with the sources of `rooms`, files or folders of this package.

    What is kept under a key that holds them is not taken for what other sources give.
    """
    digest = blake2b(digest_size=8)
    for room in rooms:
        place = Path(__file__).parent / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path | str, value: object) -> None:
    """Writes `value` as indented JSON, atomically; NaN and infinities are refused with ValueError."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """What `write_json` writes: a file that holds the same value in other bytes has been changed since."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def checksum(path: Path | str) -> str:
    """The BLAKE2b digest (16 bytes, hexadecimal) of a file's content."""
    with Path(path).open("rb") as handle:
        return file_digest(handle, lambda: blake2b(digest_size=16)).hexdigest()


def key(parameters: Mapping[str, Any]) -> str:
    """A short name for a set of parameters: equal parameters, whatever their order, give equal keys."""
    text = json.dumps(parameters, sort_keys=True, allow_nan=False, default=_plain)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be part of a key")


@dataclass(frozen=True)
class Store:
    """Finished pieces of work under one folder, each under the key of the parameters that fix it."""

    folder: Path

    def compute(
        self,
        parameters: Sequence[Mapping[str, Any]],
        work: Callable[[list[int]], Iterable[Value]],
        save: Callable[[Value, Path], None],
        load: Callable[[Path], Value],
    ) -> list[Value]:
        """One result for each set of parameters: read where it is stored whole, the others computed and kept.

        `work(indices)` computes the missing ones together, in that order; where it yields them one by one, each is
        kept at once. `save` and `load` write and read one folder. Two processes asking for one key do its work once:
        the second waits for the first. A damaged entry is set aside with a warning and computed anew: `load` says that
        of one by InputError or what else a file's content raises (OSError, ValueError, KeyError); other errors are
        mistakes of `load` itself and go on to the caller.
        """
        names = [key(fields) for fields in parameters]
        with ExitStack() as locks:
            # In one order for all processes, or two could wait for each other's locks.
            for name in sorted(set(names)):
                locks.enter_context(self.locked(name))
            values = {index: self._read(self.folder / name, load) for index, name in enumerate(names)}
            missing = [index for index, value in values.items() if value is None]
            for index, value in zip(missing, work(missing) if missing else (), strict=True):
                entry = self.folder / names[index]
                entry.mkdir(exist_ok=True)
                with _unflushed():
                    write_json(entry / "parameters.json", dict(parameters[index]))
                    save(value, entry)
                    seal(entry)
                values[index] = value
            return [value for value in values.values() if value is not None]

    def _read(self, entry: Path, load: Callable[[Path], Value]) -> Value | None:
        if not (entry / "checksums.json").exists():
            return None
        try:
            verify(entry)
            return load(entry)
        except (OSError, ValueError, KeyError) as error:
            aside = set_aside(entry)
            warnings.warn(f"{entry} is damaged ({error}); set aside as {aside.name}, computed anew", stacklevel=3)
            return None

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds the lock of one key; the operating system frees it when its holder dies."""
        lock = FileLock(self.folder / f".{name}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()


def seal(folder: Path) -> None:
    """Writes `checksums.json` over the folder's files: the mark that the folder is complete."""
    write_json(folder / "checksums.json", {path.name: checksum(path) for path in _files(folder)})


def verify(folder: Path) -> None:
    """Raises InputError, naming the file, unless every sealed file of the folder is there unchanged."""
    text = (folder / "checksums.json").read_text(encoding="utf-8")
    sealed = json.loads(text)
    if not isinstance(sealed, dict) or text != json_text(sealed):
        raise InputError(f"{str(folder / 'checksums.json')!r} is not as it was written")
    for name, digest in sealed.items():
        if not (folder / name).is_file() or checksum(folder / name) != digest:
            raise InputError(f"{str(folder / name)!r} is missing or differs from its checksum")


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder to the first free `NAME.damaged-K` beside it; returns that path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name != "checksums.json"
    )
