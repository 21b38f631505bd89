"""ClaimsBoard: every claim of every run, by verdict, down to the rows that decided it."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import fill
from typing import Any

import ipywidgets as controls
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.collections import LineCollection
from matplotlib.figure import FigureBase

from lthlib.errors import InputError, unknown
from lthlib.evidence.results import VERDICTS, output_folder, read_claims, read_metrics
from lthlib.evidence.style import BLACK, BLUE
from lthlib.widgets.explorer import Explorer, dropdown, text_field, whole_slider
from lthlib.widgets.scene import Facts, Move

SIZE = (10.8, 3.9)
EVERY = "all"
# Told apart by the words and by lightness too.
COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": "#B8B8B8"}
ROWS = 12  # of a run's table on one page
Record = Mapping[str, Any]


@dataclass(frozen=True)
class ClaimFacts(Facts):
    """Counts of verdicts by run among the claims that pass the filter, and the one that is looked at (None: none).

    `most` is the largest number of claims of a run, filtered out or not.
    """

    runs: tuple[str, ...]
    most: int
    counts: dict[str, tuple[int, ...]]
    keys: tuple[str, ...]
    claim: Record | None


def run_of(record: Record) -> str:
    """A run's name on the board: the notebook, and the folder of its profile."""
    return _run_name(record["folder"], record["notebook"], record["profile"])


# Hundreds of claims share a few runs, and taking paths apart for each of them took half of a redraw.
@lru_cache(maxsize=256)
def _run_name(folder: str, notebook: str, profile: str) -> str:
    profiles = Path(folder).parent
    parent = "reference/" if profiles.parent.name == "reference" else ""
    return f"{notebook} ({parent}{profiles.name or profile})"


def key_of(record: Record) -> str:
    """A claim's name on the board: its id and run."""
    return f"{record['id']} in {run_of(record)}"


def claim_facts(
    records: Sequence[Record], *, verdict: str = EVERY, run: str = EVERY, search: str = "", claim: str = ""
) -> ClaimFacts:
    """The claims with this verdict, of this run, with `search` in id, sentence or source; `claim` picks one by key.

    A claim that the filter leaves out gives way to the first that it lets through. Raises InputError for an unknown
    verdict or run.
    """
    sizes = Counter(map(run_of, records))
    runs = tuple(sizes)
    if verdict not in (EVERY, *VERDICTS):
        raise unknown("verdict", verdict, (EVERY, *VERDICTS))
    if run not in (EVERY, *runs):
        raise unknown("run", run, (EVERY, *runs))
    words = search.lower().split()
    passed = [
        record
        for record in records
        if verdict in (EVERY, record["verdict"])
        and run in (EVERY, run_of(record))
        and all(word in f"{record['id']} {record['claim']} {record['source']}".lower() for word in words)
    ]
    tally = Counter((record["verdict"], run_of(record)) for record in passed)
    counts = {kind: tuple(tally[kind, name] for name in runs) for kind in VERDICTS}
    chosen = next((record for record in passed if key_of(record) == claim), passed[0] if passed else None)
    totals = ", ".join(f"{sum(counts[kind])} {kind}" for kind in VERDICTS)
    readout = f"{len(passed)} of {len(records)} claims: {totals}"
    if chosen is not None:
        readout += f"; {key_of(chosen)}: {chosen['verdict']}, estimate {interval_text(chosen)}, n = {chosen['n']}"
    most = max(sizes.values(), default=1)
    keys = tuple(map(key_of, passed))
    return ClaimFacts(readout, runs, runs, most, counts, keys, chosen, held=_told(chosen))


def interval_text(record: Record) -> str:
    """Estimate and 95 % interval in words; '-' where a number does not exist."""
    numbers = [record["estimate"], *record["ci"]]
    estimate, low, high = ("-" if number is None else f"{number:.3g}" for number in numbers)
    return f"{estimate} [{low}, {high}]"


def draw_claims(figure: FigureBase, facts: ClaimFacts) -> Sequence[Move]:
    """Verdicts by run, and the chosen claim with its estimate and interval."""
    axes = figure.add_axes((0.25, 0.15, 0.22, 0.68))
    places = range(len(facts.runs))
    axes.set_yticks(places, facts.runs, fontsize=8.5)
    axes.set_ylim(len(facts.runs) - 0.4, -0.6)
    axes.set(xlim=(0, facts.most * 1.05), xlabel="claims")
    axes.set_title("Verdicts by run")
    bars: dict[str, LineCollection] = {}
    for kind in VERDICTS:
        axes.plot([], [], "s", color=COLOURS[kind], label=kind)
        bars[kind] = LineCollection([], colors=COLOURS[kind], linewidths=13, capstyle="butt")
        axes.add_collection(bars[kind])
    axes.legend(loc="upper left", bbox_to_anchor=(-1.15, -0.08), fontsize=8, ncols=3)
    text = figure.text(0.52, 0.93, "", va="top", fontsize=9.5)
    right = figure.add_axes((0.56, 0.15, 0.42, 0.16))
    right.set(yticks=[], ylim=(-1, 1), xlim=(-0.05, 1.05), xlabel="estimate (dot), 95 % interval (bar), zero (line)")
    right.set_xticks([])
    (zero,) = right.plot([0, 0], [-1, 1], color=BLACK, linewidth=1)
    (bar,) = right.plot([], [], color=BLUE, linewidth=3)
    (dot,) = right.plot([], [], "o", color=BLUE, ms=9)

    def hold(now: ClaimFacts) -> Sequence[Artist]:
        text.set_text(str(now.held))
        return (text,)

    def move(now: ClaimFacts) -> Sequence[Artist]:
        ends = [0] * len(now.runs)
        for kind in VERDICTS:
            starts, ends = ends, [start + count for start, count in zip(ends, now.counts[kind], strict=True)]
            rows = zip(places, starts, ends, strict=True)
            bars[kind].set_segments([[(start, place), (end, place)] for place, start, end in rows])
        at = _places(now.claim)
        zero.set_data(*(([at["zero"]] * 2, [-1, 1]) if at else ([], [])))
        bar.set_data(*(([at["low"], at["high"]], [0, 0]) if "low" in at else ([], [])))
        dot.set_data(*(([at["estimate"]], [0]) if at else ([], [])))
        return (*bars.values(), zero, bar, dot)

    return (hold, move)


def _told(claim: Record | None) -> str:
    if claim is None:
        return "No claim passes the filter."
    parts = [
        f"{claim['id']}: {claim['verdict'].upper()}",
        fill(str(claim["claim"]), 62),
        fill(f"Statistic: {claim['statistic']}", 70),
        f"estimate {interval_text(claim)}, margin {claim['margin']}, n = {claim['n']}, {claim['dataset']}",
        fill(f"Source: {claim['source']}", 70),
    ]
    return "\n".join(parts)


def _places(claim: Record | None) -> dict[str, float]:
    """Where zero, estimate and limits lie, scaled to [0, 1]."""
    if claim is None or claim["estimate"] is None:
        return {}
    low, high = claim["ci"]
    named = {"zero": 0.0, "estimate": claim["estimate"], "low": low, "high": high}
    numbers = {name: float(value) for name, value in named.items() if value is not None}
    if "low" not in numbers or "high" not in numbers:
        numbers = {name: value for name, value in numbers.items() if name not in ("low", "high")}
    least, span = min(numbers.values()), max(numbers.values()) - min(numbers.values()) or 1.0
    return {name: (value - least) / span for name, value in numbers.items()}


@lru_cache(maxsize=16)
def rows_of(folder: str) -> pd.DataFrame:
    """The metrics of one run; an empty frame where its folder holds none."""
    try:
        return read_metrics(folder).drop(columns=["folder"], errors="ignore")
    except InputError:
        return pd.DataFrame()


def last_page(claim: Record | None) -> int:
    """The number of the last page of the rows behind a claim, from 0."""
    return 0 if claim is None else max(0, len(rows_of(str(claim["folder"]))) - 1) // ROWS


def page_of(claim: Record | None, page: int) -> str:
    """One page of the rows behind a claim, as HTML; every text is escaped."""
    if claim is None:
        return ""
    rows = rows_of(str(claim["folder"]))
    if rows.empty:
        return "<p>This run has no table.</p>"
    start = ROWS * min(page, last_page(claim))
    part = rows.iloc[start : start + ROWS].dropna(axis=1, how="all")
    head = f"rows {start + 1} to {start + len(part)} of {len(rows):,}, {run_of(claim)}"
    table = part.to_html(index=False, escape=True, border=0, float_format=lambda value: f"{value:.4g}")
    return f"<p>{html.escape(head)}</p><div style='overflow-x:auto'>{table}</div>"


class ClaimsBoard(Explorer):
    """All claims of all runs at or below `folders` (default: results/), by verdict, run and words.

    `records` (as `results.read_claims` gives them) instead shows what a notebook has just decided.
    """

    def __init__(self, *folders: Path | str, records: Sequence[Record] | None = None) -> None:
        if records is None:
            try:
                records = read_claims(*(folders or (output_folder("", "any", "run").parents[1],)))
            except InputError:
                if folders:
                    raise
                records = []  # nothing has run yet
        self.records = list(records)
        facts = claim_facts(self.records)
        rows = {
            "verdict": dropdown("verdict", (EVERY, *VERDICTS)),
            "run": dropdown("run", (EVERY, *facts.runs)),
            "search": text_field("search"),
            "claim": dropdown("claim", facts.keys or ("",)),
            "page": whole_slider("table page", 0, 1, 0),
        }
        super().__init__("Claims", rows, self._facts, draw_claims, SIZE, *({"verdict": kind} for kind in VERDICTS))

    def _facts(self, page: int = 0, **settings: Any) -> ClaimFacts:
        return claim_facts(self.records, **settings)

    def extras(self) -> list[controls.Widget]:
        """The page of the table; it stands above the picture so that long tables do not move it."""
        self.table = controls.HTML()
        self.fold = controls.Accordion([self.table], selected_index=None)
        self.fold.set_title(0, "Rows behind the claim")
        self.fold.observe(lambda _: self.redraw(), "selected_index")
        return [self.fold]

    def follow(self, facts: ClaimFacts) -> None:
        """The choice of claims becomes those that pass the filter; the rows are read where they are unfolded."""
        choice, page = self.controls["claim"], self.controls["page"]
        keys, unfolded = facts.keys or ("",), self.fold.selected_index is not None
        with self.deaf():
            if choice.options != keys:
                choice.options = keys
            if facts.claim is not None:
                choice.value = key_of(facts.claim)
            if unfolded:
                page.max = max(1, last_page(facts.claim))
        self.table.value = page_of(facts.claim, page.value) if unfolded else ""
