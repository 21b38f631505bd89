"""The other explorers: each number against its source, each setting that does not fit, each slider redrawn."""

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lthlib.elastic import carry, depth_map
from lthlib.errors import InputError
from lthlib.evidence.results import CLAIM_FIELDS, save_claims, save_metrics
from lthlib.models.architecture import architecture
from lthlib.theory import sketching
from lthlib.theory.subset_sum.solve import solve
from lthlib.theory.universal.construct import polynomial_ticket
from lthlib.widgets import (
    BasisExplorer,
    ClaimsBoard,
    ElasticExplorer,
    SketchExplorer,
    SubsetSumExplorer,
    TicketExplorer,
    UniversalExplorer,
    loaded,
)
from lthlib.widgets import sketch as sketch_room
from lthlib.widgets.bases import Turns, basis_facts, largest, rotation
from lthlib.widgets.claims_board import claim_facts, key_of, page_of
from lthlib.widgets.elastic import elastic_facts, example_ticket, map_picture
from lthlib.widgets.explorer import Explorer
from lthlib.widgets.scene import DPI, Painter, figure_of
from lthlib.widgets.sketch import SAMPLERS, sketch_facts, synthetic
from lthlib.widgets.subset_sums import subset_facts, walk
from lthlib.widgets.universal import FUNCTIONS, expression, universal_facts

MOVES: dict[type[Explorer], dict[str, Any]] = {
    SketchExplorer: {"tau": 0.3, "sampler": "gumbel, exact count", "density": 0.5},
    SubsetSumExplorer: {"n": 7, "mode": "fixed", "target": -0.4, "eps": 0.1},
    BasisExplorer: {"turn": 0.4, "density": 0.02, "weights": "initial"},
    ElasticExplorer: {"target": "resnet-44-w8", "order": "interpolate", "density": 0.05},
    UniversalExplorer: {"knots": 4, "text": "x**2 - x/3"},
    ClaimsBoard: {"verdict": "inconclusive", "search": "nothing like it"},
}


# Through controls that move artists, held ones and whole backgrounds, and back.
STEPS: dict[type[Explorer], list[dict[str, Any]]] = {
    **{kind: [{name: value} for name, value in moves.items()] for kind, moves in MOVES.items()},
    TicketExplorer: [{"density": 0.02}, {"seed": 1}, {"basis": "dct"}, {"live": False}, {"layer": "3.weight"}],
    BasisExplorer: [{"turn": 0.4}, {"density": 0.02}, {"weights": "initial"}, {"basis": "dct"}, {"layer": "3.weight"}],
    ClaimsBoard: [{"verdict": "inconclusive"}, {"verdict": "supported"}, {"search": "nothing like it"}],
}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)


def record(name: str, verdict: str, folder: Path, **changes: Any) -> dict[str, Any]:
    one = {
        "id": name, "claim": f"Masks of {name} matter", "source": "a paper", "statistic": "points", "estimate": 1.5,
        "ci": [0.5, 2.5], "margin": 0.3, "n": 5, "verdict": verdict, "dataset": "digits", "profile": "quick",
    }  # fmt: skip
    assert tuple(one) == CLAIM_FIELDS
    return {**one, "notebook": folder.name, "folder": str(folder), **changes}


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    first, second = tmp_path / "quick" / "00_start", tmp_path / "quick" / "01_basis"
    return [
        record("A-1", "supported", first),
        record("A-2", "inconclusive", first, estimate=None, ci=[None, None]),
        record("B-1", "not supported", second),
    ]


@pytest.mark.parametrize("kind", MOVES, ids=lambda kind: kind.__name__)
def test_each_slider_redraws_what_the_pure_function_says(kind: type[Explorer], records: list[dict[str, Any]]) -> None:
    made = ClaimsBoard(records=records) if kind is ClaimsBoard else kind()
    try:
        assert made.box
        assert made.problem.value == ""
        for name, value in MOVES[kind].items():
            readout, picture = made.numbers.value, made.image.value
            made.controls[name].value = value
            assert made.problem.value == ""
            now = {setting: value for setting, value in made.settings.items() if setting != "page"}
            assert made.readout(**now) in re.sub("&#x27;", "'", made.numbers.value)
            assert (made.numbers.value, made.image.value) != (readout, picture)
    finally:
        made.close()


@pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.__name__)
def test_a_redraw_is_the_whole_figure_drawn_anew(kind: type[Explorer], records: list[dict[str, Any]]) -> None:
    made = ClaimsBoard(records=records) if kind is ClaimsBoard else kind()
    settings = {name: row.value for name, row in made.rows.items()}
    painter = Painter(made.draw, made.size)
    steps = [{}, *STEPS[kind], *STEPS[kind][::-1], {name: settings[name] for step in STEPS[kind] for name in step}]
    for step in steps:
        settings.update(step)
        facts = made.facts(**settings)
        picture = painter.png(facts)
        # To the last bit what a painter draws that has seen nothing before.
        assert picture == Painter(made.draw, made.size).png(facts), step
        with BytesIO() as buffer:
            figure_of(made.draw, facts, made.size).savefig(buffer, format="png", dpi=DPI)
            whole = pixels(buffer.getvalue())
        # Artists that move are drawn over spines, which the whole figure has above them.
        assert (np.abs(pixels(picture) - whole).max(axis=2) > 40).mean() < 0.0003, step


@pytest.mark.parametrize("kind", MOVES, ids=lambda kind: kind.__name__)
def test_each_has_a_static_figure_of_three_settings(kind: type[Explorer], records: list[dict[str, Any]]) -> None:
    made = ClaimsBoard(records=records) if kind is ClaimsBoard else kind()
    assert len(made.static().subfigs) == 3
    assert len({made.readout(**one) for one in made.examples}) == 3


# --- sketching ---


@pytest.mark.parametrize("sampler", [one for one in SAMPLERS if one not in ("gumbel, exact count", "top-k")])
def test_measured_errors_lie_about_the_theory(sampler: str) -> None:
    problem = synthetic(seed=3)
    facts = sketch_facts(problem, score="optimal", sampler=sampler, tau=1.0, density=0.25)
    p = sketch_room.probabilities(problem, "optimal", 1.0)
    expected = sketch_room.expected(problem, p, sampler, 16)
    assert expected is not None
    error = facts.errors.std(ddof=1) / np.sqrt(len(facts.errors))
    assert abs(facts.errors.mean() - expected) < 4 * error
    assert f"theory {expected:.3g}" in facts.readout


def test_tau_sharpens_from_uniform_to_the_scores() -> None:
    problem = synthetic()
    assert torch.allclose(sketch_room.probabilities(problem, "magnitude", 0.0), torch.full((64,), 1 / 64).double())
    own = sketching.distribution("magnitude", problem.x, problem.w)
    assert torch.allclose(sketch_room.probabilities(problem, "magnitude", 1.0), own)
    assert float(sketch_room.probabilities(problem, "magnitude", 3.0).max()) > float(own.max())
    with pytest.raises(InputError, match="tau -1"):
        sketch_room.probabilities(problem, "magnitude", -1)
    with pytest.raises(InputError, match="unknown sampler 'top'"):
        sketch_facts(problem, score="optimal", sampler="top", tau=1, density=0.5)


# --- subset sums ---


def test_the_subset_is_the_one_that_solve_finds() -> None:
    facts = subset_facts(n=10, eps=0.01, target=0.35, mode="best", seed=4)
    found = solve(facts.candidates, 0.35)
    assert facts.kept.tolist() == found.kept(10).tolist()
    assert abs(facts.candidates[facts.kept].sum() - 0.35) == pytest.approx(facts.error, abs=1e-12)
    assert subset_facts(n=10, eps=0.01, target=0.35, mode="fixed", k=4, seed=4).kept.sum() == 4
    sparse = subset_facts(n=10, eps=0.2, target=0.35, mode="sparsest", seed=4)
    assert sparse.kept.sum() <= facts.kept.sum()


def test_the_law_of_errors_is_near_what_is_measured() -> None:
    facts = subset_facts(n=14, eps=1e-4, target=0.0, mode="best")
    shares = [(facts.errors > at).mean() for at in np.geomspace(1e-8, 1, 120)]
    assert np.abs(np.array(shares) - facts.predicted).max() < 0.15


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), max_size=20), st.floats(-1, 1))
def test_partial_sums_stay_near_a_target_that_the_subset_meets(values: list[float], target: float) -> None:
    numbers = np.array(values)
    sums = walk(numbers, float(numbers.sum()) if values else target)
    assert len(sums) == len(values) + 1
    assert sums[-1] == pytest.approx(numbers.sum())
    goal = float(numbers.sum()) if values else target
    assert sums.max() <= max(goal, 0) + 1 + 1e-9
    assert sums.min() >= min(goal, 0) - 1 - 1e-9


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="21 candidates"):
        subset_facts(n=21, eps=0.1, target=0, mode="best")
    with pytest.raises(InputError, match="did you mean 'sparsest'"):
        subset_facts(n=4, eps=0.1, target=0, mode="sparse")
    with pytest.raises(InputError, match="tolerance 0"):
        subset_facts(n=4, eps=0, target=0, mode="best")


# --- bases ---


@pytest.mark.parametrize("size", [1, 2, 5, 8, 31])
def test_a_path_turns_the_identity_into_the_basis_and_stays_orthonormal(size: int) -> None:
    matrix = np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0]
    for sign in (1, -1):
        matrix[0] *= sign
        along = rotation(matrix)
        assert np.allclose(along.at(0), np.eye(size))
        assert np.allclose(np.abs(along.at(1)), np.abs(matrix), atol=1e-8)
        assert np.allclose(along.at(1)[:-1], matrix[:-1], atol=1e-8)
        for t in (0.25, 0.7):
            assert np.allclose(along.at(t) @ along.at(t).T, np.eye(size), atol=1e-10)
        assert np.allclose(along.at(0.5) @ along.at(0.5), along.at(1), atol=1e-8)


def test_half_turns_are_found_in_pairs() -> None:
    along = rotation(np.diag([-1.0, 1.0, -1.0, -1.0, -1.0]))
    assert np.allclose(along.at(1), np.diag([-1.0, 1.0, -1.0, -1.0, -1.0]))
    assert np.allclose(along.at(0.5) @ along.at(0.5).T, np.eye(5))
    with pytest.raises(InputError, match="orthonormal rows"):
        rotation(np.ones((2, 2)))
    with pytest.raises(InputError, match="a share of coefficients"):
        largest(torch.ones(3), 0)


def test_energy_on_the_way_is_canonical_at_first_and_the_basiss_at_last() -> None:
    turns = Turns(loaded.example())
    chosen: dict[str, Any] = {"basis": "svd", "layer": "5.weight", "weights": "trained", "density": 0.1, "seed": 0}
    start, half, end = (basis_facts(turns, turn=turn, **chosen) for turn in (0, 0.5, 1))
    assert np.allclose(start.now, start.canonical)
    assert np.allclose(end.now, end.target)
    assert start.share < half.share < end.share
    whole = basis_facts(turns, turn=0.5, **{**chosen, "density": 1.0})
    assert np.nanmax(np.abs(whole.rebuilt - whole.weights)) < 1e-10
    with pytest.raises(InputError, match="turn 2"):
        basis_facts(turns, turn=2, **chosen)
    with pytest.raises(InputError, match="no product over axes"):
        basis_facts(turns, turn=1, **{**chosen, "basis": "units"})


# --- elastic ---


def test_the_predicted_density_is_that_of_the_carried_ticket() -> None:
    ticket = example_ticket("resnet-14-w8", 0.1)
    for order in ("append", "interpolate"):
        facts = elastic_facts(ticket, "resnet-26-w8", order=order)
        goal = architecture("resnet-26-w8", (3, 32, 32), 10)
        carried = carry(ticket, goal, depth_map(ticket.architecture, goal, order))
        assert facts.total == (ticket.density, carried.density)
        masks = [mask for name, mask in carried.masks.items() if name.startswith("stages.1.")]
        assert facts.target_density[1] == sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


def test_blocks_show_each_unit_and_pale_copies() -> None:
    facts = elastic_facts(example_ticket("resnet-14-w8", 0.1), "resnet-20-w8", longest=4)
    sheet, labels = map_picture(facts)
    assert sheet.shape == (8, 4, 3)
    assert [labels[1, place] for place in range(3)] == ["0", "1", "1"]
    assert (sheet[1, 2] > sheet[1, 1]).all()
    assert (sheet[1, 3] == 1).all()


def test_measured_accuracy_is_told_where_there_is_any_and_mistakes_are_named() -> None:
    ticket = example_ticket("resnet-14-w8", 0.1)
    row = {"source": "resnet-14-w8", "target": "resnet-20-w8", "arm": "elastic", "accuracy": 90.0}
    table = pd.DataFrame([row, {**row, "accuracy": 92.0}])
    assert "elastic 91.0 % (n = 2)" in elastic_facts(ticket, "resnet-20-w8", table=table).readout
    assert "nothing measured" in elastic_facts(ticket, "resnet-26-w8", table=table).readout
    with pytest.raises(InputError, match="unknown column 'target'"):
        elastic_facts(ticket, "resnet-20-w8", table=table.drop(columns="target"))
    with pytest.raises(InputError, match=re.escape("blocks '1;2' are no list")):
        elastic_facts(ticket, "resnet-20-w8", chosen="1;2")
    with pytest.raises(InputError, match="unit 7 cannot be copied"):
        elastic_facts(ticket, "resnet-20-w8", chosen="7")


# --- universal ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sin(2*pi*x)", lambda x: np.sin(2 * np.pi * x)),
        ("-x^2 + 3", lambda x: 3 - x**2),
        ("max(x, 0.5) % 0.3", lambda x: np.maximum(x, 0.5) % 0.3),
        ("relu(x - e/10)", lambda x: np.maximum(x - np.e / 10, 0)),
        ("7", lambda x: np.full_like(x, 7.0)),
    ],
)
def test_typed_functions_are_read(text: str, expected: Any) -> None:
    x = np.linspace(0, 1, 7)
    assert np.allclose(expression(text)(x), expected(x))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the function is empty"),
        ("y + 1", "unknown name 'y'"),
        ("sine(x)", "unknown function 'sine', did you mean 'sin'"),
        ("__import__('os').system('x')", "is not arithmetic"),
        ("x.__class__", "is not arithmetic"),
        ("[x for x in x]", "is not arithmetic"),
        ("lambda: x", "is not arithmetic"),
        ("'a'*9", "is not arithmetic"),
        ("True + x", "is not arithmetic"),
        ("x if x else 1", "is not arithmetic"),
        ("sin(x, out=x)", "is not arithmetic"),
        ("sin(x, x)", "sin takes 1 numbers, not 2"),
        ("x +", "is no function of x"),
        ("1" * 400, "has 400 characters"),
        ("9e999", "too large"),
        ("(" * 150 + "x", "is no function of x"),
        ("x = 1", "is no function of x"),
    ],
)
def test_what_is_no_arithmetic_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        expression(text)


def test_a_power_tower_overflows_quietly_instead_of_growing() -> None:
    assert np.isinf(expression("9**9**9**9 + x")(np.zeros(2))).all()
    with pytest.raises(InputError, match="unbounded"):
        universal_facts(text="9**9**9", knots=4)
    with pytest.raises(InputError, match="NaN"):
        universal_facts(text="sqrt(x - 2)", knots=4)


@settings(max_examples=150)
@given(st.text(alphabet="x0123456789.+-*/%^(), esincoqrtablgpmdhfx_'[]{}:", max_size=40))
def test_any_text_is_a_function_or_bad_input(text: str) -> None:
    try:
        values = expression(text)(np.linspace(0, 1, 5))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert values.shape == (5,)


def test_the_ticket_follows_the_function_and_more_knots_help() -> None:
    few, many = (universal_facts(text="sin(2*pi*x)", knots=knots) for knots in (4, 18))
    assert few.error > 4 * many.error
    assert many.error < 0.02
    assert few.kept < many.kept
    assert np.abs(many.ticket - np.sin(2 * np.pi * many.x)).max() == many.error
    assert set(FUNCTIONS) >= {"sin", "exp", "log"}


# --- claims ---


def test_filters_and_drill_down(records: list[dict[str, Any]], tmp_path: Path) -> None:
    facts = claim_facts(records)
    assert facts.counts == {"supported": (1, 0), "not supported": (0, 1), "inconclusive": (1, 0)}
    assert facts.claim == records[0]
    assert claim_facts(records, verdict="not supported").claim == records[2]
    assert claim_facts(records, claim=key_of(records[1])).claim == records[1]
    assert claim_facts(records, search="b-1 masks").keys == (key_of(records[2]),)
    assert claim_facts(records, search="nothing like it").claim is None
    with pytest.raises(InputError, match="did you mean 'supported'"):
        claim_facts(records, verdict="suported")
    table = pd.DataFrame({"arm": ["<b>x</b>"] * 30, "accuracy": np.arange(30.0)})
    save_metrics(table, records[0]["folder"])
    first, last = page_of(records[0], 0), page_of(records[0], 9)
    assert "rows 1 to 12 of 30" in first
    assert "rows 25 to 30 of 30" in last
    assert "<b>x" not in first
    assert "no table" in page_of(records[2], 0)


def test_a_board_reads_folders_and_is_empty_where_nothing_ran(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [{name: value for name, value in one.items() if name in CLAIM_FIELDS} for one in records]
    save_claims(own[:2], tmp_path / "quick" / "00_start")
    assert len(json.loads((tmp_path / "quick" / "00_start" / "claims.json").read_text())) == 2
    assert "2 of 2 claims" in ClaimsBoard(tmp_path).readout()
    with pytest.raises(InputError, match="run a notebook first"):
        ClaimsBoard(tmp_path / "elsewhere")
    empty = ClaimsBoard(records=[])
    assert empty.readout() == "0 of 0 claims: 0 supported, 0 not supported, 0 inconclusive"
    assert empty.static() is not None


def test_the_boards_list_of_claims_follows_the_filter(records: list[dict[str, Any]]) -> None:
    board = ClaimsBoard(records=records)
    assert board.box
    assert len(board.controls["claim"].options) == 3
    board.controls["verdict"].value = "not supported"
    assert board.controls["claim"].options == (key_of(records[2]),)
    assert "B-1" in board.numbers.value
    board.controls["verdict"].value = "all"
    board.controls["claim"].value = key_of(records[1])
    assert "A-2" in board.numbers.value
    assert "estimate - [-, -]" in board.numbers.value
    board.close()


def test_a_change_of_the_board_draws_once_and_reads_no_rows_until_they_are_unfolded(
    records: list[dict[str, Any]],
) -> None:
    save_metrics(pd.DataFrame({"accuracy": np.arange(30.0)}), records[0]["folder"])
    board = ClaimsBoard(records=records)
    assert board.box
    drawn = board.redraws
    board.controls["verdict"].value = "supported"
    assert (board.redraws, board.table.value) == (drawn + 1, "")
    board.fold.selected_index = 0
    assert "rows 1 to 12 of 30" in board.table.value
    assert board.controls["page"].max == 2
    board.controls["page"].value = 2
    assert "rows 25 to 30 of 30" in board.table.value
    board.fold.selected_index = None
    assert board.table.value == ""
    board.close()


# --- finished runs ---


def test_a_runs_weights_are_laws_of_candidates() -> None:
    own = SubsetSumExplorer({"layer": torch.tensor([[0.5, -2.0], [1.0, 0.25]])})
    assert own.box
    assert own.controls["law"].options[-1] == "layer"
    facts = own._facts(**own.examples[0] | {"law": "layer"})
    assert set(facts.candidates.tolist()) <= {0.25, -1.0, 0.5, 0.125}
    assert "predicted" not in facts.readout
    assert np.isnan(facts.predicted).all()
    with pytest.raises(InputError, match="largest magnitude 0"):
        SubsetSumExplorer({"layer": torch.zeros(3)})
    with pytest.raises(InputError, match="'else'"):
        own._facts(**own.examples[0] | {"law": "else"})


def test_a_saved_universal_ticket_is_read_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="notebook 04"):
        UniversalExplorer.of_run(tmp_path)
    polynomial_ticket(0).save(tmp_path / "tickets" / "polynomials-ours-0.safetensors")
    own = UniversalExplorer.of_run(tmp_path)
    assert own.box
    name = own.controls["ticket"].options[1]
    square = own._facts(text="x**2 - x", ticket=name, knots=3)
    wave = own._facts(text="sin(2*pi*x)", ticket=name, knots=3)
    assert square.error < 0.01 < wave.error
    assert "5 readout numbers on 4 features" in square.readout
    assert "with 3 pieces" in own._facts(text="x", ticket=own.controls["ticket"].value, knots=3).readout
    with pytest.raises(InputError, match="polynomials-ours-0"):
        own._facts(text="x", ticket="other", knots=3)


def test_saved_tickets_of_other_depths_are_carried(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="notebook 02"):
        ElasticExplorer.of_run(tmp_path)
    names = ["resnet-20-w2", "resnet-14-w2"]
    for name in names:
        example_ticket(name, 0.3).save(tmp_path / f"{name}.safetensors")
    row = {"section": "matrix", "source": names[1], "target": names[0], "arm": "elastic", "accuracy": 50.0}
    save_metrics(pd.DataFrame([row | {"round": 1}, row | {"round": 2, "accuracy": 60.0}]), tmp_path)
    own = ElasticExplorer.of_run(tmp_path)
    assert own.sources == names[::-1]
    assert "elastic 60.0 % (n = 1)" in own._facts(source=names[1], target=names[0]).readout


def test_a_runs_images_are_sketched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        SketchExplorer.of_run(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"parameters": {"dataset": "digits"}}))
    assert list(SketchExplorer.of_run(tmp_path).problems)[0] == "pixels of digits"
