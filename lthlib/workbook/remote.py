"""Results at an address that fsspec knows (s3://, gs://, sftp://, file://...), for machines that share no folder.

A run is made in a folder of its machine. When it has finished, its files are copied to the address, each under a
temporary name that is then changed, the manifest last; a run that is there already is taken from there. Trainings
(`store/`) stay where they were made.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from lthlib.errors import InputError
from lthlib.store import PART, write_atomically
from lthlib.workbook import manifest


def is_address(text: str) -> bool:
    """Whether `text` is an address and no folder's name."""
    return "://" in text


def check(url: str) -> None:
    """Raises InputError unless files can be written at `url`."""
    if not is_address(url):
        raise InputError(f"{url!r} is no address (valid: such as s3://bucket/folder or file:///folder)")
    with _reaching(url) as (files, root):
        probe = f"{root}/.probe-{uuid4().hex}"
        files.makedirs(root, exist_ok=True)
        files.pipe_file(probe, b"")
        files.rm_file(probe)


def send(folder: Path, url: str) -> None:
    """Copies the finished run in `folder` to `url`, over what is there.

    Its manifest goes last, and an older one first: a run cut off half-way counts as not there.
    """
    facts = manifest.read(folder)
    if facts is None:
        raise InputError(f"{str(folder)!r} is no finished run")
    with _reaching(url) as (files, root), suppress(FileNotFoundError):
        files.rm_file(f"{root}/{manifest.FILE}")
    for name in [*facts["files"], manifest.FILE]:
        send_file(folder / name, url)


def send_file(path: Path, url: str) -> None:
    """Copies one file into the folder `url`, where it appears whole or not at all."""
    with _reaching(url) as (files, root):
        part = f"{root}/.{path.name}{PART}-{uuid4().hex}"
        files.makedirs(root, exist_ok=True)
        files.put_file(str(path), part)
        files.mv(part, f"{root}/{path.name}")


def holds(url: str, wanted: str) -> bool:
    """Whether a manifest at `url` says that the run with key `wanted` finished there."""
    with _reaching(url) as (files, root):
        return _finished(files, root, wanted) is not None


def fetch(url: str, folder: Path, wanted: str) -> dict[str, Any] | None:
    """Takes the finished run with key `wanted` from `url` into `folder`, and gives its manifest.

    None where it is not there, or not whole by its checksums. Whoever calls holds the folder's lock.
    """
    with _reaching(url) as (files, root):
        facts = _finished(files, root, wanted)
        # Names come from elsewhere: none may lead out of the folder.
        if facts is None or any(Path(name).name != name or name.startswith(".") for name in facts["files"]):
            return None
        manifest.clear(folder)
        for name in [*facts["files"], manifest.FILE]:
            try:
                content = files.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
            write_atomically(folder / name, partial(_fill, content))
    return manifest.finished(folder, wanted)


@contextmanager
def copied(url: str) -> Iterator[Path]:
    """A folder with a copy of all files below `url`, which lasts as long as the context."""
    with TemporaryDirectory(prefix="lth-") as name:
        with _reaching(url) as (files, root):
            for path in files.find(root):
                inside = PurePosixPath(path).relative_to(root)
                if not any(part.startswith(".") for part in inside.parts):
                    Path(name, inside).parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(path, str(Path(name, inside)))
        yield Path(name)


@contextmanager
def _reaching(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of `url` and its path there; what goes wrong with either is an InputError."""
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
        # Another machine may have written since.
        files.invalidate_cache()
        yield files, root.rstrip("/")
    except InputError:
        raise
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"cannot use {url!r}: {line} (valid: an address that fsspec can write)") from error


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _finished(files: Any, root: str, wanted: str) -> dict[str, Any] | None:
    try:
        facts = manifest.parse(files.cat_file(f"{root}/{manifest.FILE}"))
    except FileNotFoundError:
        return None
    return facts if facts is not None and manifest.says_finished(facts, wanted) else None
