"""The pages' tables of speeds, made from the file that `benchmarks/run_all.py` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthlib.store import write_text
from lthlib.workbook.keep import markdown_table
from lthlib.workbook.ledger import plain, with_block

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
SPEED_BEGIN, SPEED_END = "<!-- speed:begin -->", "<!-- speed:end -->"
FILE = Path("results/reference/benchmarks.json")
# The front page's figures: part, row.
FRONT = (
    ("plain_loops", "lenet-300-100, 4 stacked: a step of 128"),
    ("pruning", "IMP, lenet-300-100 on mnist, 10 levels x 5 seeds x 1 epochs"),
    ("quick_profile", "quick profile, 7 notebooks, 2 at a time"),
)
_HEAD = ["path", "ours", "limit", "ratio to limit", "plain way", "times faster", "goal"]


def write_pages(project: Path) -> list[Path]:
    """Writes the blocks into `project`'s pages from its kept figures, and lists the pages (`pages`)."""
    texts = pages(project)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def pages(project: Path) -> dict[Path, str]:
    """README.md and benchmarks/README.md of `project` with their blocks made anew from `FILE`; none without that file.

    Raises InputError where a page has no place for its block.
    """
    if not (project / FILE).exists():
        return {}
    record = json.loads((project / FILE).read_text(encoding="utf-8"))
    blocks = {"README.md": front_block(record), "benchmarks/README.md": full_block(record)}
    return {project / page: with_block((project / page).read_text("utf-8"), block) for page, block in blocks.items()}


def front_block(record: Mapping[str, Any]) -> str:
    """The `FRONT` figures in Markdown, those of them that were measured."""
    rows = []
    for part, name in FRONT:
        measured = [row for row in record["parts"].get(part, {"rows": []})["rows"] if row["name"] == name]
        rows += [[cells[0], cells[1], cells[4], cells[5]] for cells in map(_row, measured)]
    table = markdown_table(["what", "here", "plain way", "times faster"], rows)
    return "\n".join([SPEED_BEGIN, "", *table, "", f"{_machine(record)}.", "", SPEED_END])


def full_block(record: Mapping[str, Any]) -> str:
    """The table in Markdown: the machine, how many goals are met, then a folded table a script."""
    parts = record["parts"]
    days = sorted({part["date"][:10] for part in parts.values()})
    dates = " and ".join(dict.fromkeys((days[0], days[-1])))
    table = markdown_table(["part", "figures", "goals met", "goals missed"], list(map(_count, parts.values())))
    lines = [BEGIN, "", f"{_machine(record)}; {dates}. Limits were measured in the same run.", "", *table, ""]
    for part in parts.values():
        lines += [f"<details><summary>{plain(part['title'])}</summary>", "", *_body(part), "", "</details>", ""]
    return "\n".join([*lines, END])


def _machine(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    gpu = plain(machine["gpu"]) if machine["gpu"] else "no GPU"
    return f"{plain(machine['processor'])}, {gpu}; torch {machine['torch']} with {machine['threads']} threads"


def _count(part: Mapping[str, Any]) -> list[str]:
    goals = [row for row in part["rows"] if row["goal"] or row["plain_goal"]]
    missed = [row for row in goals if not row["met"]]
    figures = f"failed: {plain(part['failed'])}" if part["failed"] else str(len(part["rows"]))
    return [plain(part["title"]), figures, str(len(goals) - len(missed)), str(len(missed))]


def _body(part: Mapping[str, Any]) -> list[str]:
    load = "" if part["load"] is None else f", load {part['load']:g} before it"
    lines = [f"`{part['command']}`, {part['seconds']:.0f} s{load}.", ""]
    lines += markdown_table(_HEAD, [_row(row) for row in part["rows"]])
    if part["why"] and any(not row["met"] for row in part["rows"]):
        lines += ["", f"Where a goal is missed: {plain(part['why'])}."]
    return lines


def _row(row: Mapping[str, Any]) -> list[str]:
    unit = f" {row['unit']}" if row["unit"] not in ("", "-") else ""
    figures = [_number(row[key], unit) for key in ("value", "limit")]
    figures += [_number(row["ratio"]), _number(row["plain"], unit), _number(row["times"])]
    # A goal bounds the ratio where there is a limit, else the figure itself.
    goals = [f"{'ratio' if row['ratio'] is not None else 'value'} {row['goal']}"] if row["goal"] else []
    goals += [f"times {row['plain_goal']}"] if row["plain_goal"] else []
    verdict = f"{plain(' and '.join(goals))}: {'met' if row['met'] else '**missed**'}" if goals else ""
    return [plain(row["name"]), *figures, verdict]


def _number(value: float | None, unit: str = "") -> str:
    """Three digits, thousands separated."""
    if value is None:
        return ""
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}") + unit
