"""Results kept for the record: what is small of finished runs, and a README of tables computed from it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lthlib.errors import InputError
from lthlib.store import checksum, notebooks_folder, write_atomically, write_text
from lthlib.workbook import manifest

LARGEST = 2**20
KEPT = ("metrics.parquet", "claims.json", manifest.FILE)


def keep(run: Path, into: Path, *, figures: bool = True) -> list[Path]:
    """Copies the tables, claims, manifest and PNG figures of one finished run into `into`/<its name>, and lists them.

    The copy's manifest lists what was copied; what an earlier copy left besides is removed. Raises InputError for a
    folder that holds no finished run, for a file above 1 MiB, and for one that has changed since the run ended.
    """
    files = [run / name for name in KEPT] + (sorted(run.glob("*.png")) if figures else [])
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise InputError(f"{str(run)!r} is no finished run: {', '.join(missing)} is missing")
    large = [path.name for path in files if path.stat().st_size > LARGEST]
    if large:
        raise InputError(f"{', '.join(large)} of {str(run)!r} is above 1 MiB, the most that is kept")
    tables = [path for path in files if path.name != manifest.FILE]
    facts = manifest.read(run)
    if facts is None or any(facts["files"].get(path.name) != checksum(path) for path in tables):
        raise InputError(f"{str(run)!r} is damaged (`lth status` says what is; run it again)")
    target = into / run.name
    for path in tables:
        write_atomically(target / path.name, partial(shutil.copyfile, path))
    for path in manifest.result_files(target):
        if path.name not in {table.name for table in tables}:
            path.unlink()
    manifest.write(target, facts)
    return [target / path.name for path in files]


def write_readme(folder: Path) -> Path:
    """`folder`/README.md: for each run kept there its settings, tables and verdicts, computed from its files."""
    runs = sorted(path.parent for path in folder.glob("*/claims.json"))
    if not runs:
        raise InputError(f"{str(folder)!r} holds no results that were kept")
    lines = [f"# Reference results: {folder.name}", ""]
    lines += ["Computed from the files beside it by `lth keep`; test accuracy in percent, means over seeds with 95 % t"]
    lines += ["intervals. Verdicts are corrected for several claims (Holm); `-` is a number that does not exist."]
    for run in runs:
        lines += ["", f"## {run.name}", "", _settings(run), *_tables(run), *_verdicts(run)]
    path = folder / "README.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _settings(run: Path) -> str:
    facts = json.loads((run / manifest.FILE).read_text(encoding="utf-8"))
    hidden = ("out_dir", "data_dir", "profile", "device")
    shown = ", ".join(f"{name} {value}" for name, value in facts["parameters"].items() if name not in hidden)
    return f"{shown}. Commit {manifest.provenance(facts)}."


def _tables(run: Path) -> list[str]:
    import pandas as pd

    chosen = yaml.safe_load((notebooks_folder() / "reference.yaml").read_text(encoding="utf-8")).get(run.name, [])
    frame = pd.read_parquet(run / "metrics.parquet")
    return [line for table in chosen for line in _table(frame, table)]


def _table(frame: Any, table: Mapping[str, Any]) -> list[str]:
    from lthlib.evidence.intervals import mean_interval
    from lthlib.evidence.measure import difference_to
    from lthlib.evidence.style import ordered

    for column, values in table.get("where", {}).items():
        frame = frame[frame[column].isin(values if isinstance(values, list) else [values])]
    if frame.empty:  # these settings did not ask for it
        return []
    rows, columns, value = table["rows"], table["columns"], table["value"]
    for arm, (first, second) in table.get("minus", {}).items():
        frame = frame.assign(**{value: difference_to(frame, arm, second, (rows, columns, "seed"), value)})
        frame = frame[frame[arm] == first]
    names = ordered(frame[columns].dropna())
    body = []
    for key in ordered(frame[rows].dropna()):
        part = frame[frame[rows] == key]
        cells = []
        for name in names:
            interval = mean_interval(part.loc[part[columns] == name, value])
            cells.append(f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]" if interval.n else "")
        # A level of pruning is told by its density.
        body.append([f"{part['density'].mean():.3f}" if rows == "round" else _text(key), *cells])
    head = ["density" if rows == "round" else rows, *map(_text, names)]
    return ["", f"**{table['title']}**", "", *markdown_table(head, body)]


def _verdicts(run: Path) -> list[str]:
    records = json.loads((run / "claims.json").read_text(encoding="utf-8"))
    rows = []
    for claim in records:
        interval = " to ".join(map(short_number, claim["ci"]))
        numbers = [short_number(claim["estimate"]), interval, short_number(claim["margin"]), str(claim["n"])]
        rows.append([f"{claim['id']}: {claim['claim']}", claim["verdict"], *numbers])
    return ["", *markdown_table(["claim", "verdict", "estimate", "95 % interval", "margin", "n"], rows)]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_number(value: float | None) -> str:
    """Three digits; '-' for a number that does not exist."""
    return "-" if value is None else f"{value:.3g}"
