"""A server, a browser and a notebook's page for tests: started, waited for by condition, ended with their kernels."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lthlib.widgets.explorer import Explorer
from lthlib.workbook.excerpt import DECIDE, LEDGER, excerpt
from lthlib.workbook.notebooks import read, source, tags

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "only-for-this-test"
PATIENCE = 180_000  # milliseconds: a crowded machine takes ten times as long as a quiet one
TROUBLE = "[data-mime-type^='application/vnd.jupyter.']:has-text('Traceback')"


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that is running: its address without the token, the folder that it serves, the token."""

    address: str
    folder: Path
    token: str = TOKEN

    def ask(self, path: str, method: str = "GET") -> bytes:
        """What the server answers at /api/`path`."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


def code(text: str) -> dict[str, Any]:
    """A code cell without outputs."""
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}


def notebook(path: Path, cells: list[dict[str, Any]]) -> None:
    """Writes a notebook of these cells."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    named = [{**cell, "id": cell.get("id", f"cell-{number}")} for number, cell in enumerate(cells)]
    book = {"cells": named, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book))


def explorer_cells(path: Path) -> list[dict[str, Any]]:
    """The notebook's code cut down to what its explorer needs, as `lth reproduce` cuts it to what a claim needs."""
    book = read(path)
    cells = [
        cell if "parameters" in tags(cell) else {**cell, "source": without_decisions(source(cell))}
        for cell in book.cells
        if cell["cell_type"] == "code"
    ]
    asked = replace(book, cells=(*cells, code(f"explorer.{LEDGER}()")))
    *needed, _ = excerpt(asked, "explorer", ["explorer"])
    return [*needed, code("display(explorer.static())\nexplorer")]


def without_decisions(text: str) -> str:
    """The statements of a cell that neither decide a claim nor write the ledger."""

    def calls(statement: ast.stmt) -> set[str]:
        return {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}

    return "\n".join(ast.unparse(part) for part in ast.parse(text).body if not calls(part) & {DECIDE, LEDGER})


# --- servers ---


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def with_figures(**more: str) -> dict[str, str]:
    """The environment for kernels whose figures must reach the page: MPLBACKEND=agg of the tests would keep them."""
    return {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | more


@contextmanager
def served(arguments: list[str], environment: Mapping[str, str], url: str, log: Path) -> Iterator[None]:
    """A server that answers at `url`, until the block ends."""
    with log.open("wb") as lines:
        server = subprocess.Popen(arguments, env=dict(environment), stdout=lines, stderr=lines)
        try:
            _wait_for(url, server, log)
            yield
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@contextmanager
def jupyterlab(folder: Path) -> Iterator[Lab]:
    """A JupyterLab on this machine only, with a token, its state away from the home folder."""
    private = folder / "private"
    settings = private / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews":"false","doNotDisturbMode":true}')
    names = ("CONFIG", "DATA", "RUNTIME")
    places = {f"JUPYTER_{name}_DIR": str(private / name.lower()) for name in names}
    places |= {"IPYTHONDIR": str(private / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(private / "settings")}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"), "PYTHONPATH": str(ROOT)}
    port = free_port()
    arguments = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}",
        "--allow-root", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    lab = Lab(f"http://127.0.0.1:{port}", folder)
    with served(arguments, with_figures(**places), f"{lab.address}/api/status?token={TOKEN}", folder / "log"):
        yield lab


# --- pages ---


@contextmanager
def opened(browser: Any, lab: Lab, name: str) -> Iterator[tuple[Any, list[str]]]:
    """The notebook's page with its kernel connected, and the list that errors of the console go to.

    Leaves a picture of the page where the block fails, and no kernel: ten at a time would fill the memory.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    try:
        page.goto(f"{lab.address}/lab/tree/{name}?token={lab.token}&reset", wait_until="domcontentloaded")
        connected(page)
        yield page, errors
    except BaseException:
        page.screenshot(path=lab.folder / f"failed-{Path(name).stem}.png", timeout=10_000)
        raise
    finally:
        page.close()
        for kernel in json.loads(lab.ask("kernels")):
            lab.ask(f"kernels/{kernel['id']}", "DELETE")


def connected(page: Any) -> None:
    """Waits until the notebook is there and its kernel idle."""
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell")
    idle(page)


def idle(page: Any) -> None:
    """Waits until the kernel has nothing to do."""
    page.wait_for_selector("text=/\\| Idle/")


def run_all(page: Any) -> None:
    """Run > Run All Cells."""
    page.click("li.lm-MenuBar-item:has-text('Run')")
    page.click("li.lm-Menu-item[data-command='runmenu:run-all']")


def saved_and_reloaded(page: Any) -> None:
    """Saves the notebook, loads its page anew and waits for the kernel, which has gone on living."""
    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    page.wait_for_selector(".lm-DockPanel .lm-TabBar-tab.jp-mod-dirty", state="detached")
    page.reload(wait_until="domcontentloaded")
    connected(page)


def until(page: Any, holds: Callable[[], bool], why: Callable[[], str]) -> None:
    """Waits until the condition holds; fails with `why()` when patience ends."""
    limit = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < limit, why()
        page.wait_for_timeout(100)


def press(page: Any, explorer: Any, label: str, keys: Sequence[str], readout: str) -> None:
    """Presses keys on the control with this label; waits until the read-out is `readout`, the picture another one."""
    image, line = explorer.locator("img").last, explorer.locator(".lth-readout")
    before = image.get_attribute("src")
    row = explorer.locator(".widget-inline-hbox").filter(has=page.get_by_text(label, exact=True)).first
    handle = row.locator(".noUi-handle, select, input").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    for key in keys:
        page.keyboard.press(key)
    until(
        page,
        lambda: line.inner_text() == readout and image.get_attribute("src") != before,
        lambda: f"{label} stays at {line.inner_text()!r} instead of {readout!r}: {explorer.inner_text()[-300:]}",
    )
    assert explorer.locator(".lth-error").count() == 0


def said(explorer: Explorer, **change: Any) -> str:
    """The read-out of an explorer of this kind as it is first shown, after a change of its settings."""
    assert explorer.box
    text = explorer.readout(**{**explorer.settings, **change})
    explorer.close()
    return text
