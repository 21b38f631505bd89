"""Executes one notebook with papermill, in a kernel of this very Python."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from json import loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_markdown_cell
from papermill.exceptions import PapermillExecutionError

from lthlib.evidence.results import NOTEBOOK
from lthlib.workbook import forks
from lthlib.workbook.kernel import BACKEND, REPORT
from lthlib.workbook.workers import ending

# It warns that it cannot read what `parameters.py` reads, and reports what `Execution.reason` says.
logging.getLogger("papermill").setLevel(logging.CRITICAL)

START_TIMEOUT = 120  # seconds: on a crowded machine a kernel takes many times its usual one second
ERROR_TAG = "papermill-error-cell-tag"


@dataclass(frozen=True)
class Execution:
    """How it went: `reason` is empty for success, else one line; `usage` is what the kernel last reported."""

    reason: str
    usage: dict[str, Any] = field(default_factory=dict)


def execute(source: Path, parameters: Mapping[str, Any], target: Path, *, forked: bool = False) -> Execution:
    """Executes `source` with `parameters` and leaves the executed notebook at `target`, also when a cell fails.

    A kernel that dies before the first cell is tried once more. `forked`: the first is one of `forks`, where there are.
    """
    target.unlink(missing_ok=True)
    first = _attempt(source, parameters, target, forked=forked and forks.available())
    return first if first is not None else _attempt(source, parameters, target, last=True) or Execution("not started")


def _attempt(
    source: Path, parameters: Mapping[str, Any], target: Path, *, last: bool = False, forked: bool = False
) -> Execution | None:
    """One attempt; None where the kernel did not start and this was not the last one."""
    with TemporaryDirectory(prefix="lth-") as private:
        folder = Path(private)

        class Kernel(ThisPython):
            pass

        Kernel.folder, Kernel.notebook, Kernel.forked = folder, source.stem, forked
        reason = ""
        try:
            papermill.execute_notebook(
                # papermill fills braces in paths with parameters.
                str(source).replace("{", "{{").replace("}", "}}"),
                str(target).replace("{", "{{").replace("}", "}}"),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=START_TIMEOUT,
                kernel_manager_class=Kernel,
            )
        except PapermillExecutionError as error:
            reason = first_line(f"{error.ename}: {error.evalue}")
        except Exception as error:
            if isinstance(error, DeadKernelError) and _started(target):
                reason = f"the kernel died{ending(Kernel.returncode)}"
            elif _started(target) or not target.exists():
                raise
            elif not last:
                return None
            else:
                lines = reversed(_tail(folder / "log").split("\n"))
                last_line = next((line for line in lines if line.strip()), "")
                reason = first_line(f"the kernel did not start: {last_line or error}")
            _mark_failed(target, reason, _tail(folder / "log"))
        finally:
            Kernel.end()
        _forget_paths(target, source.name)
        report = folder / "report.json"
        return Execution(reason, loads(report.read_text(encoding="utf-8")) if report.exists() else {})


class ForkedProvisioner(LocalProvisioner):
    """Starts kernels as forks."""

    async def launch_kernel(self, cmd: list[str], **keywords: Any) -> Any:
        """Forks a kernel for the arguments that follow `python -m MODULE` in `cmd`."""
        fork = forks.start().fork(cmd[3:], keywords["env"], keywords["stderr"].name)
        self.process: Any = fork
        # It makes itself the leader of its group.
        self.pid = self.pgid = fork.pid
        return self.connection_info

    def end(self) -> None:
        """Ends a kernel that still runs, so that the next can start."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class ThisPython(AsyncKernelManager):
    """A kernel of this interpreter, whatever kernels a user has installed, with its files in `folder`."""

    folder: Path
    notebook: str = ""
    forked: bool = False
    provisioner_of_forks: ForkedProvisioner | None = None
    returncode: int | None = None

    def __init__(self, **keywords: Any) -> None:
        # Sockets in a private folder instead of TCP ports: nothing to race for and nobody else can connect. Their
        # paths must be short; Windows has none.
        private = os.name == "posix" and len(str(self.folder)) < 80
        super().__init__(
            **keywords, transport="ipc" if private else "tcp", connection_file=str(self.folder / "kernel.json")
        )

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "lthlib.workbook.kernel", "-f", "{connection_file}"],
            env={
                REPORT: str(self.folder / "report.json"),
                NOTEBOOK: self.notebook,
                "MPLBACKEND": BACKEND,
                # Nobody is there to move a slider: explorers leave one line of text (widgets.explorer).
                "LTH_BATCH": "1",
            },
            display_name="Python 3",
            language="python",
        )

    async def _async_pre_start_kernel(self, **keywords: Any) -> tuple[list[str], dict[str, Any]]:
        if self.forked and self.provisioner is None:
            self.provisioner = type(self).provisioner_of_forks = ForkedProvisioner(
                kernel_spec=self.kernel_spec, parent=self
            )
        return await super()._async_pre_start_kernel(**keywords)

    @classmethod
    def end(cls) -> None:
        """Ends a fork that still runs."""
        if cls.provisioner_of_forks is not None:
            cls.provisioner_of_forks.end()

    async def _async_start_kernel(self, **keywords: Any) -> None:
        with (self.folder / "log").open("ab") as log:
            await super()._async_start_kernel(**{"stderr": log, **keywords})

    async def _async_is_alive(self) -> bool:
        if self.provisioner is not None:
            type(self).returncode = await self.provisioner.poll()
        return await super()._async_is_alive()

    pre_start_kernel = _async_pre_start_kernel
    start_kernel = _async_start_kernel
    is_alive = _async_is_alive


def _started(target: Path) -> bool:
    """Whether papermill had begun a cell when it gave up."""
    try:
        cells = loads(target.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return False
    return any(cell["metadata"].get("papermill", {}).get("start_time") for cell in cells)


def _mark_failed(target: Path, reason: str, log: str) -> None:
    """Marks a notebook whose kernel died as papermill marks one with a failed cell."""
    notebook = nbformat.read(target, as_version=4)
    notebook.metadata.papermill["exception"] = True
    begun = [i for i, cell in enumerate(notebook.cells) if cell.metadata.get("papermill", {}).get("start_time")]
    # What a kernel said last is anyone's text, and Markdown passes HTML on.
    text = f"**Execution stopped here: {escape(reason)}**" + (f"\n\n<pre>{escape(log)}</pre>" if log else "")
    notebook.cells.insert(begun[-1] if begun else 0, new_markdown_cell(text, metadata={"tags": [ERROR_TAG]}))
    nbformat.write(notebook, target)


def _forget_paths(target: Path, name: str) -> None:
    """papermill writes where the notebook lay on this machine; keeps the name only."""
    notebook = nbformat.read(target, as_version=4)
    notebook.metadata.papermill["input_path"] = notebook.metadata.papermill["output_path"] = name
    nbformat.write(notebook, target)


def first_line(text: str) -> str:
    """The first line of a message, without terminal colours, at most 300 characters."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    line = plain.splitlines()[0] if plain else ""
    return line if len(line) <= 300 else line[:297] + "..."


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-20:])
