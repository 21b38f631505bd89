"""Explorers without a browser: pure functions give the right numbers, controls redraw them, nothing leaks."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import ipywidgets as controls
import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from matplotlib.artist import Artist
from matplotlib.figure import FigureBase
from PIL import Image
from replicates import of_seeds

from lthlib.errors import InputError
from lthlib.training.parallel import on_cores
from lthlib.training.train import evaluate, train
from lthlib.widgets import explorer as room
from lthlib.widgets import loaded
from lthlib.widgets import tickets as tickets_room
from lthlib.widgets.background import Background, Cancelled, train_watched
from lthlib.widgets.explorer import Debounced, Explorer
from lthlib.widgets.scene import DPI, HELD, Facts, Move, Painter, coarse, figure_of, tiles
from lthlib.widgets.tickets import SIZE, Bench, TicketExplorer, draw_ticket, ticket_facts


@pytest.fixture
def bench() -> Bench:
    return Bench(loaded.example())


@pytest.fixture
def tickets() -> Iterator[TicketExplorer]:
    explorer = TicketExplorer()
    yield explorer
    explorer.close()


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)


def same_picture(one: bytes, other: np.ndarray) -> bool:
    """Equal but for the few pixels where a moving artist is drawn over one that stands."""
    return float((np.abs(pixels(one) - other).max(axis=2) > 40).mean()) < 0.0003


def whole(explorer: Explorer, **settings: Any) -> np.ndarray:
    """The figure drawn at once, from nothing."""
    with BytesIO() as buffer:
        figure_of(explorer.draw, explorer.facts(**settings), explorer.size).savefig(buffer, format="png", dpi=DPI)
        return pixels(buffer.getvalue())


# --- what all share ---


def test_held_artists_are_drawn_once_for_each_of_their_values_and_the_oldest_pictures_go() -> None:
    held: list[object] = []

    def draw(figure: FigureBase, facts: Facts) -> Sequence[Move]:
        text, mark = figure.text(0.1, 0.1, ""), figure.text(0.5, 0.5, "")

        def hold(now: Facts) -> Sequence[Artist]:
            held.append(now.held)
            text.set_text(str(now.held))
            return (text,)

        def move(now: Facts) -> Sequence[Artist]:
            mark.set_text(now.readout)
            return (mark,)

        return (hold, move)

    def facts(readout: str, held: int) -> Facts:
        return Facts(readout, "background", held=held)

    painter = Painter(draw, (2, 1))
    first = painter.png(facts("a", 0))
    held.clear()
    assert painter.png(facts("b", 0)) != first
    assert painter.png(facts("a", 1)) != first
    assert painter.png(facts("a", 0)) == first
    assert held == [1]
    for value in range(2, 2 + HELD):
        painter.png(facts("a", value))
    held.clear()
    assert painter.png(facts("a", 0)) == first
    assert held == [0]


def test_a_redraw_computes_on_one_core_and_its_training_on_all(tickets: TicketExplorer) -> None:
    before, seen = torch.get_num_threads(), []
    assert tickets.box
    facts = tickets.facts

    def counted(**settings: Any) -> Facts:
        seen.append(torch.get_num_threads())
        return facts(**settings)

    tickets.facts = counted
    tickets.controls["density"].value = 0.02
    assert seen == [1]
    assert torch.get_num_threads() == before

    begun, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.wait()
        seen.append(torch.get_num_threads())

    tickets.background.start(work, lambda value, error: ended.set())
    with on_cores(1):
        begun.set()
        assert ended.wait(10)
    assert seen == [1, before]


def test_a_picture_is_made_coarse_by_means_of_blocks() -> None:
    matrix = np.arange(12.0).reshape(3, 4)
    assert coarse(matrix, 4) is matrix
    assert coarse(matrix, 2).tolist() == [[2.5, 4.5], [8.5, 10.5]]
    assert coarse(np.ones((7, 301)), 100).shape == (7, 76)
    assert np.isfinite(coarse(np.ones((301, 7)), 100)).all()


def test_tiles_lie_in_rows_with_gaps_between() -> None:
    sheet = tiles(np.stack([np.full((2, 2), value) for value in (1.0, 2.0, 3.0)]), 2)
    assert sheet.shape == (5, 5)
    assert (sheet[0, 0], sheet[0, 3], sheet[3, 0]) == (1, 2, 3)
    assert np.isnan(sheet[2]).all()


def test_events_in_a_row_redraw_once_and_without_a_loop_at_once() -> None:
    calls: list[int] = []
    redraw = Debounced(lambda: calls.append(1), pause=0.01)
    redraw()
    assert len(calls) == 1

    async def burst() -> None:
        for _ in range(20):
            redraw()
        await asyncio.sleep(0.1)

    asyncio.run(burst())
    assert len(calls) == 2


def test_an_error_is_one_line_and_the_last_picture_stays(tickets: TicketExplorer) -> None:
    picture = tickets.box and tickets.image.value
    tickets.controls["seed"].options = [0, 1, 9]
    tickets.controls["seed"].value = 9
    assert "there is no training of seed 9 (valid: 0, 1)" in tickets.problem.value
    assert "\n" not in tickets.problem.value
    assert tickets.image.value == picture
    assert tickets.sign.value == ""
    tickets.controls["seed"].value = 1
    assert tickets.problem.value == ""


def test_what_an_error_says_cannot_break_the_page() -> None:
    explorer = TicketExplorer()
    assert explorer.box
    explorer.tell("<script>alert(1)</script>")
    assert "<script>" not in explorer.problem.value
    explorer.close()


def test_a_closed_explorer_leaves_no_widget_and_comes_back() -> None:
    before = set(_instances)
    explorer = TicketExplorer()
    assert set(_instances) == before  # nothing until it is shown
    assert explorer.box
    assert len(set(_instances) - before) > 10
    explorer.close()
    assert set(_instances) == before
    assert explorer.box
    explorer.close()
    assert set(_instances) == before


def test_a_cell_that_is_run_again_closes_its_old_explorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_cell", lambda: "cell-1")
    before = set(_instances)
    first, second, third = TicketExplorer(), TicketExplorer(), TicketExplorer()
    first._repr_mimebundle_()
    second._repr_mimebundle_()
    assert first._box is None
    assert second._box is not None
    monkeypatch.setattr(room, "_cell", lambda: "cell-2")
    third._repr_mimebundle_()
    assert second._box is not None
    second.close()
    third.close()
    assert set(_instances) == before


def test_in_a_batch_run_an_explorer_is_one_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(room.BATCH, "1")
    before = set(_instances)
    bundle = TicketExplorer()._repr_mimebundle_()
    assert list(bundle) == ["text/plain"]
    assert set(_instances) == before


def test_every_control_is_labelled_and_waits_for_a_settled_value(tickets: TicketExplorer) -> None:
    assert tickets.box
    assert all(control.description for control in tickets.controls.values())
    assert not any(getattr(control, "continuous_update", False) for control in tickets.controls.values())


# --- tickets ---


def test_live_pruning_is_what_evaluating_the_masked_network_gives(bench: Bench) -> None:
    for basis in ("canonical", "dct@input", "random"):
        facts = ticket_facts(bench, density=0.2, basis=basis, finder="trained magnitude", seed=1, layer="1.weight")
        pruned, rewound = bench.ticket(1, basis, "trained magnitude", 0.2)
        assert pruned.kept == rewound.kept == round(0.2 * pruned.prunable)
        (expected,) = evaluate([pruned], bench.source.dataset, "validation")
        assert facts.accuracy == pytest.approx(expected.accuracy, abs=0.4)
        assert facts.density == pruned.density
        assert f"{facts.accuracy:.1f} % of validation images" in facts.readout


def test_images_in_shares_give_the_accuracy_of_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, _ = bench.ticket(0, "dct", "trained magnitude", 0.5)
    bench.cores, whole = 3, bench.accuracy(pruned)
    monkeypatch.setattr(tickets_room, "SHARE", 50)
    assert bench.accuracy(pruned) == whole


@pytest.mark.parametrize("finder", ["trained magnitude", "initial magnitude", "snip", "grasp", "random"])
def test_masks_of_a_finder_are_nested_in_density(bench: Bench, finder: str) -> None:
    small, large = (bench.masks(0, "canonical", finder, density) for density in (0.05, 0.3))
    assert all(bool((large[name] | ~small[name]).all()) for name in small)


def test_magnitude_keeps_the_largest(bench: Bench) -> None:
    pruned, _ = bench.ticket(0, "canonical", "trained magnitude", 0.1)
    trained = bench.seen(0, "canonical")[1]
    values = torch.cat([c.abs().flatten() for c in trained.coefficients.values()])
    kept = torch.cat([mask.flatten() for mask in pruned.masks.values()])
    assert values[kept].min() >= values[~kept].max()


def test_the_layer_density_and_the_pictures_are_those_of_the_mask(bench: Bench) -> None:
    settings: dict[str, Any] = {"basis": "canonical", "finder": "random", "seed": 0}
    facts = ticket_facts(bench, density=1.0, layer="3.weight", **settings)
    assert set(facts.layers.values()) == {1.0}
    assert (facts.mask == 1).all()
    assert np.allclose(facts.effective, facts.dense)
    none = ticket_facts(bench, density=1e-9, layer="1.weight", **settings)
    assert none.density == 1 / 50_200


def test_a_table_gives_curves_and_the_nearest_row_of_the_seed(bench: Bench) -> None:
    table = pd.DataFrame(
        {
            "arm": ["ticket", "ticket", "ticket", "random mask"],
            "seed": [0, 1, 0, 0],
            "round": [1, 1, 2, 1],
            "density": [0.5, 0.5, 0.1, 0.5],
            "accuracy": [97.0, 95.0, 90.0, 20.0],
        }
    )
    with_table = Bench(loaded.loaded(table=table))
    facts = ticket_facts(
        with_table, density=0.12, basis="canonical", finder="random", seed=0, layer="1.weight", live=False
    )
    assert facts.accuracy is None
    assert facts.nearest == (0.1, 90.0)
    assert facts.measured["ticket"].tolist() == [[0.1, 90.0], [0.5, 96.0]]
    assert "ticket of 10 %, trained: 90.0 %" in facts.readout


def test_found_tickets_are_shown_at_their_own_density(bench: Bench) -> None:
    run = bench.source.run(0)
    pruned = [bench.ticket(0, "dct@input", "snip", density)[1] for density in (0.4, 0.07)]
    with_pruned = Bench(loaded.loaded([run], bench.source.dataset, bench.source.recipe, pruned=pruned))
    facts = ticket_facts(
        with_pruned, density=0.1, basis="canonical", finder="tickets of the run", seed=0, layer="1.weight"
    )
    assert facts.density == pruned[1].density


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 0.0}, "density 0.0 is not in"),
        ({"layer": "2.weight"}, "unknown layer '2.weight'"),
        ({"finder": "snap"}, "did you mean 'snip'"),
        ({"basis": "fourier"}, "unknown basis rule 'fourier'"),
        ({"seed": 7}, "no training of seed 7"),
    ],
)
def test_settings_that_do_not_fit_are_named(bench: Bench, change: dict[str, Any], message: str) -> None:
    settings = {"density": 0.1, "basis": "canonical", "finder": "snip", "seed": 0, "layer": "1.weight"} | change
    with pytest.raises(InputError, match=re.escape(message)):
        ticket_facts(bench, **settings)


def test_what_moves_over_the_kept_picture_is_what_is_drawn_anew(bench: Bench) -> None:
    painter = Painter(draw_ticket, SIZE)
    settings: dict[str, Any] = {"basis": "canonical", "finder": "trained magnitude", "seed": 0, "layer": "1.weight"}
    facts = [ticket_facts(bench, density=density, **settings) for density in (0.5, 0.03, 0.5)]
    pictures = [painter.png(one) for one in facts]
    assert pictures[0] == pictures[2]
    assert pictures[0] != pictures[1]
    for one, picture in zip(facts, pictures, strict=True):
        with BytesIO() as buffer:
            figure_of(draw_ticket, one, SIZE).savefig(buffer, format="png", dpi=DPI)
            assert same_picture(picture, pixels(buffer.getvalue()))


def test_a_slider_changes_picture_and_readout(tickets: TicketExplorer) -> None:
    assert tickets.box
    picture = tickets.image.value
    tickets.controls["density"].value = 0.02
    assert tickets.image.value != picture
    assert "density 2 % (sparsity 98 %)" in tickets.numbers.value
    assert tickets.readout(**tickets.settings) in tickets.numbers.value
    assert same_picture(tickets.image.value, whole(tickets, **tickets.settings))


# --- training in the background ---


def test_a_watched_training_is_the_plain_one(bench: Bench) -> None:
    source, seen = bench.source, []
    ticket = bench.ticket(0, "canonical", "snip", 0.1)[1]
    watched = train_watched(ticket, source.recipe, source.dataset, 0, lambda *at: seen.append(at), threading.Event())
    (plain,) = train(of_seeds([ticket], [0]), source.recipe, source.dataset)
    assert watched.ticket.digest() == plain.ticket.digest()
    assert watched.history == plain.history
    total = source.recipe.steps(len(source.dataset.train.labels))
    assert seen[-1] == (total, total)


def test_train_adds_a_point_and_cancel_leaves_nothing(tickets: TicketExplorer) -> None:
    threads, workers = threading.active_count(), torch.get_num_threads()
    assert tickets.box
    tickets.train()
    assert tickets.train_button.disabled
    tickets.background._thread.join()
    assert len(tickets.bench.results) == 1
    assert "trained here at 10 %" in tickets.numbers.value
    assert (tickets.train_button.disabled, tickets.cancel_button.disabled) == (False, True)
    tickets.train()
    tickets.cancel()
    assert tickets.state.value == "cancelled"
    assert tickets.progress.value == 0
    assert len(tickets.bench.results) == 1
    assert threading.active_count() == threads
    assert torch.get_num_threads() == workers


def test_one_job_at_a_time_and_its_error_is_handed_over() -> None:
    background, ended = Background(), []
    release = threading.Event()
    assert background.start(lambda stop: release.wait(10), lambda *end: ended.append(end))
    assert not background.start(lambda stop: None, lambda *end: ended.append(end))
    release.set()
    background.cancel()

    def wait(stop: threading.Event) -> None:
        while not stop.is_set():
            time.sleep(0.005)
        raise Cancelled

    assert background.start(wait, lambda *end: ended.append(end))
    background.cancel()
    assert not background.running
    assert ended[0] == (True, None)
    assert isinstance(ended[1][1], Cancelled)


def test_a_network_without_its_data_or_start_is_refused(bench: Bench) -> None:
    with pytest.raises(InputError, match="pass dataset"):
        loaded.loaded(bench.source.dense)
    with pytest.raises(InputError, match="at least one dense training"):
        loaded.loaded([], bench.source.dataset)
    with pytest.raises(InputError, match="holds no finished run"):
        loaded.of_run("nowhere")


def test_static_figures_show_three_settings(tickets: TicketExplorer) -> None:
    figure = tickets.static()
    assert len(figure.subfigs) == 3
    texts = [part.texts[0].get_text().replace("\n", " ") for part in figure.subfigs]
    assert texts == [tickets.readout(**settings) for settings in tickets.examples]
    assert isinstance(tickets.box, controls.VBox)
