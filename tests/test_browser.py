"""The explorers where people use them: JupyterLab in Chromium, sliders moved by keyboard, buttons pressed.

Needs Playwright for Python and a Chromium of the system; skips where one is missing. Screenshots are kept in pytest's
folder for temporary files (`--basetemp` chooses it). `LTH_BROWSER=smoke` runs them, with the smoke profile's parameters
for the notebooks, `LTH_BROWSER=quick` with the notebooks' own defaults, which takes minutes. They are asked for until
they have been seen to pass on a machine with nothing else to do.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lthlib.evidence.widgets import SketchExplorer, SubsetSumExplorer, TicketExplorer
from lthlib.workbook.notebooks import tags
from lthlib.workbook.plan import plan

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
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
CELLS = [
    "from lthlib.evidence.widgets import *\nfrom lthlib.evidence.widgets import loaded",
    "TicketExplorer()",
    "from dataclasses import replace\nsmall = loaded.small()\n"
    "TicketExplorer(source=replace(small, recipe=replace(small.recipe, epochs=900)))",
    "SketchExplorer()",
    "SubsetSumExplorer()",
    "BasisExplorer()",
    "ElasticExplorer()",
    "UniversalExplorer()",
    "ClaimsBoard(records=[])",
]

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)"),
    pytest.mark.skipif("LTH_BROWSER" not in os.environ, reason="browser tests run where LTH_BROWSER is smoke or quick"),
]


def notebook(path: Path, cells: list[dict[str, Any]]) -> None:
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    named = [{**cell, "id": cell.get("id", f"cell-{number}")} for number, cell in enumerate(cells)]
    book = {"cells": named, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book))


def code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}


def small_copy(path: Path, target: Path) -> None:
    """The notebook with its results in a folder of its own, and the smoke profile's parameters unless asked not to."""
    book = json.loads(path.read_text(encoding="utf-8"))
    profile = "quick" if os.environ.get("LTH_BROWSER") == "quick" else "smoke"
    (task,) = plan([path.stem], profile, [], str(target.parent / "results"))
    at = next(number for number, cell in enumerate(book["cells"]) if "parameters" in tags(cell))
    lines = "\n".join(f"{name} = {value!r}" for name, value in {**task.parameters, "out_dir": str(task.folder)}.items())
    notebook(target, [*book["cells"][: at + 1], code(lines), *book["cells"][at + 1 :]])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab on this machine only, with a token, its state away from the home folder: address and folder."""
    folder = tmp_path_factory.mktemp("lab")
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
    # The kernels' figures must reach the page, and MPLBACKEND=agg of the tests would keep them from it.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | places
    address = f"http://127.0.0.1:{port}"
    with served(arguments, environment, f"{address}/api/status?token={TOKEN}", folder / "log"):
        yield address, folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def served(arguments: list[str], environment: dict[str, str], url: str, log: Path) -> Iterator[None]:
    """A server that answers at `url`, until the block ends."""
    with log.open("wb") as lines:
        server = subprocess.Popen(arguments, env=environment, stdout=lines, stderr=lines)
        try:
            _wait_for(url, server, log)
            yield
        finally:
            server.terminate()
            server.wait(60)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield running
        running.close()


def opened(browser: Any, lab: tuple[str, Path], name: str) -> tuple[Any, list[str]]:
    """The notebook's page with its kernel connected, and the list that errors of the console go to."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{lab[0]}/lab/tree/{name}?token={TOKEN}&reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell")
    page.wait_for_selector("text=/\\| Idle/")
    return page, errors


def run_all(page: Any) -> None:
    page.click("li.lm-MenuBar-item:has-text('Run')")
    page.click("li.lm-Menu-item[data-command='runmenu:run-all']")


def press(page: Any, explorer: Any, key: str, times: int, slider: int = 0) -> str:
    """Moves a slider by keyboard until picture and read-out have both changed; the new read-out."""
    image, line = explorer.locator("img").last, explorer.locator(".lth-readout")
    before, text = image.get_attribute("src"), line.inner_text()
    handle = explorer.locator(".noUi-handle").nth(slider)
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(times):
        page.keyboard.press(key)
    limit = time.monotonic() + PATIENCE / 1000
    while image.get_attribute("src") == before or line.inner_text() == text:
        assert time.monotonic() < limit, f"nothing changed: {line.inner_text()}, {explorer.inner_text()[-300:]}"
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    assert explorer.locator(".lth-error").count() == 0
    return str(line.inner_text())


def test_explorers_move_train_cancel_and_survive_a_reload(browser: Any, lab: tuple[str, Path]) -> None:
    notebook(lab[1] / "explorers.ipynb", [code(text) for text in CELLS])
    page, errors = opened(browser, lab, "explorers.ipynb")
    run_all(page)
    every = page.locator(".lth-explorer")
    every.nth(len(CELLS) - 2).wait_for()

    tickets, long, sketch, subsets, bases, elastic, universal, _ = (every.nth(number) for number in range(8))
    expected = TicketExplorer()
    now = {**expected.examples[1], "density": 10**-1.2}
    assert press(page, tickets, "ArrowLeft", 4) == expected.readout(**now)
    own = SketchExplorer()
    first = {"problem": next(iter(own.problems)), "score": "optimal", "sampler": "with replacement, reweighted"}
    first |= {"tau": 1.3, "density": 0.25, "seed": 0}
    assert press(page, sketch, "ArrowRight", 3) == own.readout(**first)
    sums = SubsetSumExplorer()
    assert press(page, subsets, "ArrowRight", 3) == sums.readout(**{**sums.examples[0], "n": 15})
    assert "80 % of the way" in press(page, bases, "ArrowLeft", 4)
    assert "density 10 %" in press(page, elastic, "ArrowLeft", 6)
    assert "with 10 pieces" in press(page, universal, "ArrowLeft", 2)
    page.screenshot(path=lab[1] / "explorers.png")

    tickets.locator("button:has-text('Train')").click()
    tickets.locator(".lth-readout:has-text('trained here at 6.31 %')").wait_for()
    tickets.scroll_into_view_if_needed()
    page.screenshot(path=lab[1] / "trained.png")

    long.locator("button:has-text('Train')").click()
    long.locator("text=/training a ticket/").wait_for()
    page.wait_for_function("document.querySelectorAll('.progress-bar')[1].style.width != '0%'")
    # Others answer while one trains.
    assert press(page, subsets, "ArrowLeft", 1) == sums.readout(**{**sums.examples[0], "n": 14})
    long.locator("button:has-text('Cancel')").click()
    long.locator("text=cancelled").wait_for()
    assert long.locator("button:has-text('Train')").is_enabled()
    long.scroll_into_view_if_needed()
    page.screenshot(path=lab[1] / "cancelled.png")
    page.wait_for_selector("text=/\\| Idle/")

    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    page.wait_for_timeout(2000)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell")
    page.wait_for_selector("text=/\\| Idle/")
    again = page.locator(".lth-explorer").nth(3)
    again.wait_for()
    again.locator(".lth-readout").wait_for()
    assert press(page, again, "ArrowRight", 2) == sums.readout(**{**sums.examples[0], "n": 16})
    page.screenshot(path=lab[1] / "reloaded.png")
    assert [text for text in errors if "lth" in text.lower() or "widget" in text.lower()] == []
    page.close()


def test_an_explorer_cell_that_is_run_again_leaves_one_explorer(browser: Any, lab: tuple[str, Path]) -> None:
    count = "from ipywidgets.widgets.widget import _instances\nprint('widgets:', len(_instances))"
    cells = ["from lthlib.evidence.widgets import SubsetSumExplorer", "SubsetSumExplorer()", count]
    notebook(lab[1] / "again.ipynb", [code(text) for text in cells])
    page, _ = opened(browser, lab, "again.ipynb")
    seen = []
    for number in range(1, 4):
        run_all(page)
        page.wait_for_selector(f".jp-InputPrompt:has-text('[{3 * number}]')")
        page.wait_for_selector("text=/\\| Idle/")
        page.wait_for_timeout(500)
        seen.append(page.locator("text=/widgets: [0-9]+/").last.inner_text())
    assert len(set(seen)) == 1
    assert page.locator(".lth-explorer").count() == 1
    page.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_and_its_explorer_moves(path: Path, browser: Any, lab: tuple[str, Path]) -> None:
    small_copy(path, lab[1] / path.name)
    page, _ = opened(browser, lab, path.name)
    page.set_default_timeout(20 * 60_000 if os.environ.get("LTH_BROWSER") == "quick" else 2 * PATIENCE)
    run_all(page)
    explorer = page.locator(".lth-explorer").first
    try:
        explorer.wait_for()
        explorer.locator(".lth-readout").wait_for()
        page.wait_for_selector("text=/\\| Idle/")
        slider = "ArrowLeft" if path.stem != "05_strong_tickets" else "ArrowRight"
        if explorer.locator(".noUi-handle").count():
            press(page, explorer, slider, 3)
        else:
            before = explorer.locator(".lth-readout").inner_text()
            explorer.locator("select").nth(1).select_option(index=0)
            page.wait_for_function("was => document.querySelector('.lth-readout').innerText != was", arg=before)
        assert page.locator(".jp-OutputArea-output img").count() > 0
        assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']:has-text('Traceback')").count() == 0
    finally:
        explorer.scroll_into_view_if_needed(timeout=5000)
        page.screenshot(path=lab[1] / f"{path.stem}.png")
    page.close()


def test_the_dashboard_opens_its_tabs(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("voila", reason="Voila is not installed (./run_all.sh app installs it)")
    port = free_port()
    book = str(ROOT / "lthlib" / "evidence" / "widgets" / "dashboard.ipynb")
    arguments = [
        sys.executable,
        "-m",
        "voila",
        book,
        "--no-browser",
        f"--port={port}",
        "--Voila.ip=127.0.0.1",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    with served(arguments, environment, f"http://127.0.0.1:{port}/voila/static/voila.js", tmp_path / "log"):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{port}/", wait_until="domcontentloaded")
        page.locator(".lth-explorer").first.wait_for()
        page.locator(".lm-TabBar-tab:has-text('Subset sums')").click()
        own = SubsetSumExplorer()
        explorer = page.locator(".lth-explorer:visible")
        explorer.locator(".lth-readout").wait_for()
        assert press(page, explorer, "ArrowRight", 3) == own.readout(**{**own.examples[0], "n": 15})
        page.screenshot(path=tmp_path / "dashboard.png")
        page.close()


def test_the_server_wants_its_token_and_listens_here_only(lab: tuple[str, Path]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab[0]}/api/contents", timeout=30)
    port = int(lab[0].rsplit(":", 1)[1])
    table = Path("/proc/net/tcp")
    if table.exists():
        listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
        assert [one.split(":")[0] for one in listening if int(one.split(":")[1], 16) == port] == ["0100007F"]
