"""The README's table of speeds, made from the file that `benchmarks/run_all.py` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthlib.store import write_text
from lthlib.workbook.keep import markdown_table
from lthlib.workbook.ledger import plain, with_block

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
FILE = Path("results/reference/benchmarks.json")
_HEAD = ["path", "ours", "limit", "ratio to limit", "plain way", "times faster", "goal"]


def write_block(project: Path) -> Path:
    """Writes the block into `project`/README.md from `project`/results/reference/benchmarks.json; returns the README.

    Raises InputError where the README has no place for it.
    """
    readme = project / "README.md"
    write_text(readme, with_table(readme.read_text(encoding="utf-8"), project / FILE))
    return readme


def with_table(text: str, file: Path) -> str:
    """`text` with its block made anew from `file`; unchanged where there is no such file."""
    if not file.exists():
        return text
    return with_block(text, readme_block(json.loads(file.read_text(encoding="utf-8"))), BEGIN, END)


def readme_block(record: Mapping[str, Any]) -> str:
    """The table in Markdown, markers included: the machine, how many goals are met, then a folded table a script."""
    machine, parts = record["machine"], record["parts"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    days = sorted({part["date"][:10] for part in parts.values()})
    lines = [
        BEGIN,
        "",
        f"{plain(machine['processor'])}{gpu}; torch {machine['torch']} with {machine['threads']} threads; "
        f"{' and '.join(dict.fromkeys((days[0], days[-1])))}. Limits were measured in the same run.",
        "",
        *markdown_table(["part", "figures", "goals met", "goals missed"], [_count(part) for part in parts.values()]),
        "",
    ]
    for part in parts.values():
        lines += [f"<details><summary>{plain(part['title'])}</summary>", "", *_body(part), "", "</details>", ""]
    return "\n".join([*lines, END])


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
