"""Kernels that are forked from a process with all imports (`preloaded`), for runs that follow one another.

A kernel of its own takes some three seconds to start and import, as long as a small run computes. multiprocessing's
fork server would do, but it runs the caller's main module again in each fork.
"""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

MODULE = "lthlib.workbook.preloaded"


def available() -> bool:
    """Whether this system forks; Windows does not, and macOS's own libraries do not bear it."""
    return sys.platform == "linux"


class Preloaded:
    """The process that kernels are forked from, one at a time; it ends with this process."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", MODULE]
        # A session of its own: Ctrl-C is not for it.
        self.process = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
        theirs.close()
        self.said = b""

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path | str) -> "Fork":
        """A kernel that has been forked; ChildProcessError where this process is dead."""
        wanted = {"arguments": list(arguments), "environment": dict(environment), "folder": str(Path.cwd())}
        with suppress(OSError):
            self.socket.sendall(json.dumps({**wanted, "log": str(log)}).encode() + b"\n")
        try:
            number = self.heard()
        except KeyboardInterrupt:
            self.end()
            raise
        if number is None:
            raise ChildProcessError("the process that kernels are forked from has died")
        return Fork(self, number)

    def heard(self, seconds: float | None = None) -> int | None:
        """The number that it says next; TimeoutError where it says none so soon, None where it is dead."""
        while b"\n" not in self.said:
            if not select.select([self.socket], [], [], seconds)[0]:
                raise TimeoutError
            try:
                more = self.socket.recv(64)
            except OSError:
                more = b""
            if not more:
                return None
            self.said += more
        line, _, self.said = self.said.partition(b"\n")
        return int(line)

    def alive(self) -> bool:
        """Whether it can fork."""
        return self.process.poll() is None

    def end(self) -> None:
        """Ends it, and a kernel that it still has."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


class Fork:
    """A forked kernel, with what provisioners use of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, parent: Preloaded, pid: int) -> None:
        self.parent, self.pid = parent, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """As `poll`, after waiting for that, at most `timeout` seconds."""
        if self.returncode is None:
            try:
                code = self.parent.heard(timeout)
            except TimeoutError:
                return None
            if code is None:
                # Nobody is left to tell how it ended.
                self.send_signal(9)
            self.returncode = -9 if code is None else code
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it has not ended."""
        if self.returncode is None:
            # It may have ended without having been heard of.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(9)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(15)


_started: list[Preloaded] = []


def start() -> Preloaded:
    """This process's one, which imports while this process goes on; started where there is none alive."""
    if _started and not _started[0].alive():
        end()
    if not _started:
        _started.append(Preloaded())
    return _started[0]


def end() -> None:
    """Ends this process's one, if there is one."""
    while _started:
        _started.pop().end()
