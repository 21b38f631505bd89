"""`manifest.json`: what a run was made from, what it used, and the checksums that show it whole.

Nothing in it names the machine: no host, no user, no absolute path.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path, PurePath
from platform import python_version
from typing import Any

import lthlib
from lthlib.errors import InputError
from lthlib.store import PART, checksum, json_text, key, project_root, write_json
from lthlib.workbook.notebooks import Notebook
from lthlib.workbook.parameters import RESERVED

FILE = "manifest.json"
PARTIAL = f".{{}}{PART}.ipynb"  # the notebook of that name while it is executed


@cache
def library_digest() -> str:
    """A digest of lthlib's sources, names and content: one half of the code version."""
    folder = Path(lthlib.__file__).parent
    digest = blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def run_key(notebook: Notebook, parameters: Mapping[str, Any]) -> str:
    """The key of a run: same notebook, same library, same parameters, wherever its results are put."""
    chosen = {name: value for name, value in parameters.items() if name not in RESERVED}
    return key({"notebook": notebook.digest, "library": library_digest(), "parameters": chosen})


@cache
def git_state() -> dict[str, Any]:
    """The checkout's commit and whether files differ from it (`dirty`); both None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that lthlib asks for."""
    installed = {"python": python_version(), "lthlib": lthlib.__version__}
    try:
        required = metadata.requires("lthlib") or []
    except metadata.PackageNotFoundError:
        required = []
    for requirement in required:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement:
            try:
                installed[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    return installed


def computed_on(facts: Mapping[str, Any]) -> str:
    """What a kept digit is compared under, as far as it is recorded: processor or GPU, threads, MKL's mode, torch."""
    threads, mkl, versions_ = facts.get("threads"), facts.get("mkl"), facts.get("versions")
    torch = versions_.get("torch") if isinstance(versions_, dict) else None
    parts = [
        facts.get("device"),
        threads and f"{threads} thread{'' if threads == 1 else 's'}",
        mkl and f"MKL {mkl}",
        torch and f"torch {torch}",
    ]
    return ", ".join(str(part) for part in parts if part) if parts[0] else ""


def provenance(facts: Mapping[str, Any]) -> str:
    """The commit that a run was made from, its seconds, and what it was computed on: words to follow "commit"."""
    commit = str(facts.get("code", {}).get("commit") or "unknown")[:7]
    return f"{commit}, {facts.get('seconds', 0):.0f} s on {computed_on(facts) or 'an unknown device'}"


def portable(value: Any) -> Any:
    """A parameter as the manifest shows it: of an absolute path (also after `folder:`) only the last part."""
    if isinstance(value, list):
        return list(map(portable, value))
    if isinstance(value, dict):
        return {name: portable(item) for name, item in value.items()}
    if isinstance(value, str):
        kind, colon, path = value.rpartition("folder:")
        if PurePath(path).is_absolute():
            return f"{kind}{colon}.../{PurePath(path).name}"
    return value


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest with the checksums of the folder's files; last of all, for it marks the folder as whole.

    `seal` is the manifest's own checksum, of all that it says besides.
    """
    files = {path.relative_to(folder).as_posix(): checksum(path) for path in result_files(folder)}
    said = {name: value for name, value in facts.items() if name != "seal"} | {"files": files}
    write_json(folder / FILE, {**said, "seal": key(said)})


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none or it is damaged."""
    try:
        return parse((folder / FILE).read_bytes())
    except OSError:
        return None


def parse(content: bytes) -> dict[str, Any] | None:
    """What the bytes of a manifest say; None where they are no manifest's."""
    try:
        facts = json.loads(content)
        return facts if isinstance(facts["files"], dict) and isinstance(facts["status"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def finished(folder: Path, wanted: str) -> dict[str, Any] | None:
    """The folder's manifest if the run with key `wanted` finished there and every file is still what it was."""
    facts = read(folder)
    return facts if facts is not None and says_finished(facts, wanted) and whole(folder, facts) else None


def says_finished(facts: Mapping[str, Any], wanted: str) -> bool:
    """Whether these are a manifest's facts of a finished run with key `wanted`."""
    return facts["status"] == "finished" and facts.get("key") == wanted


def whole(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the manifest with these facts, and every file that it lists, is still what it was."""
    return "seal" in facts and not fault(folder, facts)


def fault(folder: Path, facts: Mapping[str, Any]) -> str:
    """What is missing or damaged in the folder of the manifest with these facts, in a clause; nothing if all is well.

    A manifest without `seal`, of a version that wrote none, shows its files' damage but not its own.
    """
    said = {name: value for name, value in facts.items() if name != "seal"}
    try:
        as_written = (folder / FILE).read_text(encoding="utf-8") == json_text(facts)
        if "seal" in facts and (facts["seal"] != key(said) or not as_written):
            return f"{FILE} is damaged"
        for name, digest in facts["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if checksum(folder / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, TypeError) as error:
        return f"it cannot be read ({error})"
    return ""


def result_files(folder: Path) -> list[Path]:
    """The files of a run: not the manifest, hidden ones, nor subfolders, where the store keeps and seals its own."""
    return [path for path in sorted(folder.glob("[!.]*")) if path.is_file() and path.name != FILE]


def clear(folder: Path) -> None:
    """Removes what an earlier run left in the folder, so that results of two runs never mix; the store's stay.

    The manifest goes first: from then on the folder counts as unfinished. Halves that a killed writer left go too, in
    the store as well; whoever calls holds the folder's lock.
    """
    try:
        (folder / FILE).unlink(missing_ok=True)
        for path in [*result_files(folder), *folder.rglob(f".*{PART}*")]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {str(folder)!r}: {error.strerror} (choose a writable folder)") from error


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
