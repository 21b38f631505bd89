"""The explorers where people use them: JupyterLab in Chromium, sliders moved by keyboard, buttons pressed.

Needs Playwright for Python and a Chromium of the system; skips where one is missing. Screenshots are kept in pytest's
folder for temporary files (`--basetemp` chooses it). They run where they are asked for (`-m browser -n 0`): a browser
beside the other tests on every core waits longer for its kernels than it tests. Notebook 00 runs whole in the page; of
the others the explorer opens on the session's smoke runs, and `-m nightly` runs those whole too, with the smoke
profile's parameters or, with `LTH_BROWSER=quick`, the notebooks' own defaults.
"""

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    CHROMIUM,
    FLAGS,
    PATIENCE,
    ROOT,
    TOKEN,
    TROUBLE,
    Lab,
    code,
    explorer_cells,
    free_port,
    idle,
    jupyterlab,
    notebook,
    opened,
    press,
    run_all,
    said,
    saved_and_reloaded,
    served,
    until,
    with_figures,
)
from smoke import smoke_pass

from lthlib.widgets import (
    BasisExplorer,
    ElasticExplorer,
    SketchExplorer,
    SubsetSumExplorer,
    TicketExplorer,
    UniversalExplorer,
)
from lthlib.workbook.notebooks import tags
from lthlib.workbook.profiles import plan

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# One notebook whole at every commit, all of them at night.
WHOLE = [pytest.param(NOTEBOOKS[0], marks=pytest.mark.browser), *NOTEBOOKS[1:]]
# Every explorer with nothing run before, and one whose training lasts long enough to be cancelled.
CELLS = [
    "from lthlib.widgets import *\nfrom lthlib.widgets import loaded",
    "TicketExplorer()",
    "from dataclasses import replace\nsmall = loaded.example()\n"
    "TicketExplorer(source=replace(small, recipe=replace(small.recipe, epochs=900)))",
    "SketchExplorer()",
    "SubsetSumExplorer()",
    "BasisExplorer()",
    "ElasticExplorer()",
    "UniversalExplorer()",
    "ClaimsBoard(records=[])",
]
# Of each notebook's explorer: a control with its label, keys, keys that undo them, the value in between. JupyterLab
# takes the arrow keys of a closed list for its own cursor, so that a list is opened first.
LEFT, RIGHT, UP, DOWN = ["ArrowLeft"], ["ArrowRight"], ["Enter", "ArrowUp", "Enter"], ["Enter", "ArrowDown", "Enter"]
ABOVE = "explorer.targets[explorer.targets.index(now['target']) - 1]"
MOVES = {
    "00_start_here": ("density", "density", LEFT * 3, RIGHT * 3, "10 ** -1.15"),
    "01_generalized_basis": ("turn", "turn to basis", LEFT * 4, RIGHT * 4, "0.8"),
    "02_elastic_tickets": ("target", "target", UP, DOWN, ABOVE),
    "03_sketching_pai": ("tau", "tau", RIGHT * 3, LEFT * 3, "1.3"),
    "04_universal_tickets": ("knots", "knots", LEFT * 2, RIGHT * 2, "10"),
    "05_strong_tickets": ("n", "candidates n", RIGHT * 3, LEFT * 3, "15"),
    "06_beyond_the_papers": ("density", "density", LEFT * 3, RIGHT * 3, "10 ** -1.15"),
}

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)")


def small_copy(cells: list[dict[str, Any]], target: Path, parameters: dict[str, Any], last: str) -> None:
    """A notebook of these cells with other parameters, and one more cell at its end."""
    at = next(number for number, cell in enumerate(cells) if "parameters" in tags(cell))
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook(target, [*cells[: at + 1], code(lines), *cells[at + 1 :], code(last)])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with jupyterlab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield running
        running.close()


@pytest.mark.browser
def test_explorers_move_train_cancel_and_survive_a_reload(browser: Any, lab: Lab) -> None:
    notebook(lab.folder / "explorers.ipynb", [code(text) for text in CELLS])
    with opened(browser, lab, "explorers.ipynb") as (page, errors):
        run_all(page)
        every = page.locator(".lth-explorer")
        every.nth(len(CELLS) - 2).wait_for()
        tickets, long, sketch, subsets, bases, elastic, universal, board = (every.nth(number) for number in range(8))
        press(page, tickets, "density", ["ArrowLeft"] * 4, said(TicketExplorer(), density=10**-1.2))
        press(page, sketch, "tau", ["ArrowRight"] * 3, said(SketchExplorer(), tau=1.3))
        press(page, subsets, "candidates n", ["ArrowRight"] * 3, said(SubsetSumExplorer(), n=15))
        press(page, bases, "turn to basis", ["ArrowLeft"] * 4, said(BasisExplorer(), turn=0.8))
        press(page, elastic, "density", ["ArrowLeft"] * 6, said(ElasticExplorer(), density=10**-1.0))
        press(page, elastic, "target", UP, said(ElasticExplorer(), density=10**-1.0, target="resnet-26-w8"))
        press(page, universal, "knots", ["ArrowLeft"] * 2, said(UniversalExplorer(), knots=10))
        assert "0 of 0 claims" in board.locator(".lth-readout").inner_text()
        page.screenshot(path=lab.folder / "explorers.png")

        tickets.locator("button:has-text('Train')").press("Enter")
        tickets.locator(".lth-readout:has-text('trained here at 6.31 %')").wait_for()
        tickets.scroll_into_view_if_needed()
        page.screenshot(path=lab.folder / "trained.png")

        long.locator("button:has-text('Train')").press("Enter")
        long.locator("text=/training a ticket/").wait_for()
        page.wait_for_function("document.querySelectorAll('.progress-bar')[1].style.width != '0%'")
        # Others answer while one trains.
        press(page, subsets, "candidates n", ["ArrowLeft"] * 1, said(SubsetSumExplorer(), n=14))
        long.locator("button:has-text('Cancel')").press("Enter")
        long.locator("text=cancelled").wait_for()
        assert long.locator("button:has-text('Train')").is_enabled()
        long.scroll_into_view_if_needed()
        page.screenshot(path=lab.folder / "cancelled.png")
        idle(page)

        wrong = universal.get_by_label("function of x")
        wrong.fill("sin(x")
        wrong.press("Enter")
        universal.locator(".lth-error").wait_for()
        assert "\n" not in universal.locator(".lth-error").inner_text().strip()
        universal.scroll_into_view_if_needed()
        page.screenshot(path=lab.folder / "mistake.png")

        saved_and_reloaded(page)
        again = page.locator(".lth-explorer").nth(3)
        again.locator(".lth-readout").wait_for()
        press(page, again, "candidates n", ["ArrowRight"] * 2, said(SubsetSumExplorer(), n=16))
        page.screenshot(path=lab.folder / "reloaded.png")
        assert [text for text in errors if "lth" in text.lower() or "widget" in text.lower()] == []


@pytest.mark.browser
def test_an_explorer_cell_that_is_run_again_leaves_one_explorer(browser: Any, lab: Lab) -> None:
    count = (
        "from ipywidgets.widgets.widget import _instances\nprint('widgets:', len(_instances), f'in [{len(In) - 1}]')"
    )
    cells = ["from lthlib.widgets import SubsetSumExplorer", "SubsetSumExplorer()", count]
    notebook(lab.folder / "again.ipynb", [code(text) for text in cells])
    with opened(browser, lab, "again.ipynb") as (page, _):
        seen = []
        for number in (3, 6, 9):
            run_all(page)
            line = page.locator(f"text=/widgets: [0-9]+ in .{number}./")
            line.wait_for()
            idle(page)
            seen.append(line.inner_text().split()[1])
        assert len(set(seen)) == 1
        assert page.locator(".lth-explorer").count() == 1


@pytest.mark.nightly
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_each_notebook_runs_and_its_explorer_moves(path: Path, browser: Any, lab: Lab) -> None:
    profile = "quick" if os.environ.get("LTH_BROWSER") == "quick" else "smoke"
    (task,) = plan([path.stem], profile, [], str(lab.folder / "results"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    moves_and_is_reloaded(browser, lab, path.stem, cells, {**task.parameters, "out_dir": str(task.folder)})


@pytest.mark.browser
@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_each_explorer_moves_on_a_finished_run(path: Path, browser: Any, lab: Lab, smoke: Path) -> None:
    tasks, outcomes = smoke_pass(smoke, "first")
    assert outcomes[path.stem].status == "done"
    task = tasks[path.stem]
    out = shutil.copytree(task.folder, lab.folder / "finished" / path.stem)
    parameters = {**task.parameters, "out_dir": str(out)}
    moves_and_is_reloaded(browser, lab, f"{path.stem}-explorer", explorer_cells(path), parameters)


def moves_and_is_reloaded(
    browser: Any, lab: Lab, stem: str, cells: list[dict[str, Any]], parameters: dict[str, Any]
) -> None:
    """Runs the cells in the page, moves their explorer by keyboard, reloads the page and moves it back."""
    name, label, keys, back, value = MOVES[stem.removesuffix("-explorer")]
    last = (
        "now = explorer.settings\nprint('first:', explorer.readout(**now))\n"
        f"print('moved:', explorer.readout(**{{**now, '{name}': {value}}}))"
    )
    small_copy(cells, lab.folder / f"{stem}.ipynb", parameters, last)
    with opened(browser, lab, f"{stem}.ipynb") as (page, _):
        run_all(page)
        answer = page.locator("pre:has-text('moved: '):has-text('first: ')")
        ended = f"pre:has-text('moved: '):has-text('first: '), {TROUBLE}"
        page.wait_for_selector(ended, state="attached", timeout=10 * PATIENCE)
        trouble = page.locator(TROUBLE)
        assert trouble.count() == 0, trouble.first.text_content()
        lines = (answer.last.text_content() or "").splitlines()
        first, moved = (line.split(": ", 1)[1] for line in lines if line.startswith(("first: ", "moved: ")))
        idle(page)
        explorer = page.locator(".lth-explorer")
        assert explorer.count() == 1
        explorer.scroll_into_view_if_needed()
        readout = explorer.locator(".lth-readout")
        assert (readout.inner_text(), first != moved) == (first, True)
        press(page, explorer, label, keys, moved)
        assert page.locator(".jp-OutputArea-output img").count() > 1
        page.screenshot(path=lab.folder / f"{stem}.png")

        saved_and_reloaded(page)
        readout.wait_for()

        def shown() -> str:
            # Outputs above that are drawn only now push it out of sight, where JupyterLab draws nothing.
            explorer.scroll_into_view_if_needed()
            return readout.inner_text()

        until(page, lambda: shown() == moved, shown)
        press(page, explorer, label, back, first)
        page.screenshot(path=lab.folder / f"{stem}-reloaded.png")


@pytest.mark.browser
def test_the_dashboard_opens_its_tabs(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("voila", reason="Voila is not installed (./run_all.sh app installs it)")
    port = free_port()
    book = str(ROOT / "lthlib" / "widgets" / "dashboard.ipynb")
    arguments = [sys.executable, "-m", "voila", book, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    arguments.append(f"--token={TOKEN}")
    address = f"http://127.0.0.1:{port}/"
    with served(arguments, with_figures(), f"{address}voila/static/voila.js", tmp_path / "log"):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.goto(address, wait_until="domcontentloaded")
        assert "/login" in page.url
        page.goto(f"{address}?token={TOKEN}", wait_until="domcontentloaded")
        page.locator(".lth-explorer").first.wait_for()
        page.locator(".lm-TabBar-tab:has-text('Subset sums')").click()
        explorer = page.locator(".lth-explorer:visible")
        explorer.locator(".lth-readout").wait_for()
        press(page, explorer, "candidates n", ["ArrowRight"] * 3, said(SubsetSumExplorer(), n=15))
        page.screenshot(path=tmp_path / "dashboard.png")
        page.close()


@pytest.mark.browser
def test_the_server_wants_its_token_and_listens_here_only(lab: Lab) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab.address}/api/contents", timeout=30)
    port = int(lab.address.rsplit(":", 1)[1])
    table = Path("/proc/net/tcp")
    if table.exists():
        listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
        assert [text.split(":")[0] for text in listening if int(text.split(":")[1], 16) == port] == ["0100007F"]
