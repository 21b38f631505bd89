"""Is this machine ready? Versions, device, room, data, write access: one finding each."""

import gzip
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

from lthlib.errors import InputError
from lthlib.workbook.machine import cores, processor
from lthlib.workbook.manifest import versions

FREE_DISK = 2 * 2**30  # bytes; a quick run of all notebooks leaves a fraction of it
FREE_MEMORY = 2 * 2**30  # bytes; one kernel peaks at about one of them
DATASETS = ("mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "svhn")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is well, and its state."""

    what: str
    well: bool
    state: str

    def __str__(self) -> str:
        return f"{'ok' if self.well else 'BAD':<3}  {self.what:<8}  {self.state}"


def examine(out: Path, data_dir: Path) -> Iterator[Finding]:
    """All findings, for results in `out` and data in `data_dir`; data sets that are not there are none."""
    yield _packages()
    yield _device()
    yield _rounding()
    yield _disk(out)
    yield _memory()
    yield from _access(out, data_dir)
    yield from _data(data_dir)


def _packages() -> Finding:
    """Every requirement of lthlib against what is installed."""
    from packaging.requirements import Requirement

    wrong = []
    try:
        required = [Requirement(text) for text in metadata.requires("lthlib") or []]
    except metadata.PackageNotFoundError:
        return Finding("versions", False, "lthlib is not installed in this Python (./run_all.sh installs it)")
    for requirement in required:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            present = metadata.version(requirement.name)
            if not requirement.specifier.contains(present, prereleases=True):
                wrong.append(f"{requirement.name} {present} is not {requirement.specifier}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
    installed = versions()
    shown = [name for name in ("python", "lthlib", "torch", "numpy") if name in installed]
    named = ", ".join(f"{name} {installed[name]}" for name in shown)
    return Finding("versions", not wrong, "; ".join([named, *wrong]))


def _device() -> Finding:
    import torch

    processors = f"{processor()}, {cores()} cores"
    if not torch.cuda.is_available():
        return Finding("device", True, f"{processors}; no CUDA device")
    try:
        # A driver that does not fit is noticed only when something is computed.
        for index in range(torch.cuda.device_count()):
            torch.ones(8, device=f"cuda:{index}").sum().item()
            free, total = torch.cuda.mem_get_info(index)
            processors += f"; cuda:{index} {torch.cuda.get_device_name(index)}, {_size(free)} of {_size(total)} free"
    except RuntimeError as error:
        return Finding("device", False, f"{processors}; CUDA is there but fails: {str(error).splitlines()[0]}")
    return Finding("device", True, processors)


def _rounding() -> Finding:
    """Whether a replicate's result depends on its neighbours; see lthlib.rounding."""
    from lthlib.rounding import mkl_mode, neighbours_leave_no_trace

    well = neighbours_leave_no_trace()
    digits = "the same digits" if well else "other digits"
    return Finding("rounding", well, f"a replicate has {digits} alone and beside others (MKL's mode: {mkl_mode()})")


def _disk(out: Path) -> Finding:
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    return Finding("disk", free >= FREE_DISK, f"{_size(free)} free for {out} (at least {_size(FREE_DISK)})")


def _memory() -> Finding:
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        return Finding("memory", free >= FREE_MEMORY, f"{_size(free)} available (at least {_size(FREE_MEMORY)})")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Finding("memory", total >= FREE_MEMORY, f"{_size(total)} in all")
    return Finding("memory", True, "unknown on this system")


def _access(out: Path, data_dir: Path) -> Iterator[Finding]:
    for what, folder in (("results", out), ("data", data_dir)):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        try:
            # Of a folder that is not there yet the one above is tried: to look must leave nothing behind.
            TemporaryFile(dir=existing).close()
        except OSError as error:
            yield Finding(what, False, f"cannot write {str(folder)!r}: {error.strerror} (choose a writable folder)")
        else:
            yield Finding(what, True, f"{folder} can be {'written' if folder.exists() else 'made'}")


def _data(data_dir: Path) -> Iterator[Finding]:
    from lthlib import data

    for name in ("digits", *DATASETS):
        try:
            images = data.load(name, data_dir, download=False)
            damaged = list(_unlike_their_archives(data_dir, name))
        except InputError as error:
            # What is not there is downloaded when a run first asks for it.
            if "is not in" not in str(error):
                yield Finding("data", False, str(error))
            continue
        sizes = " + ".join(str(len(split.labels)) for split in (images.train, images.validation, images.test))
        if damaged:
            yield Finding("data", False, f"{name}: {', '.join(damaged)} is damaged (delete it and load again)")
        else:
            yield Finding("data", True, f"{name}: {sizes} images")


def _unlike_their_archives(data_dir: Path, name: str) -> Iterator[str]:
    """Files of the MNIST family that differ from the archives they came from, or archives from what was published.

    torchvision checks the archives when it downloads them, and CIFAR's and SVHN's files whenever it reads them.
    """
    from torchvision import datasets

    kinds = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
    for archive, digest in getattr(datasets, kinds[name]).resources if name in kinds else ():
        packed = data_dir / kinds[name] / "raw" / archive
        if not packed.is_file():
            continue
        content = packed.read_bytes()
        if md5(content, usedforsecurity=False).hexdigest() != digest:
            yield archive
        elif packed.with_suffix("").read_bytes() != gzip.decompress(content):
            yield packed.stem


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
