"""Results: what a notebook leaves in its folder, and the one reader for tables and claims across runs."""

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lthlib import store
from lthlib.errors import InputError, unknown
from lthlib.evidence.claims import Decision, decide, ledger, part_table
from lthlib.evidence.statements import claims_of, stated, statement_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

METRICS, CLAIMS = "metrics.parquet", "claims.json"
NOTEBOOK = "LTH_NOTEBOOK"  # in the environment of a kernel that the runner starts: the notebook's name
CLAIM_FIELDS = (
    "id", "claim", "source", "statistic", "estimate", "ci", "margin", "n", "verdict", "dataset", "profile",
)  # fmt: skip
VERDICTS = ("supported", "not supported", "inconclusive")


class Results:
    """A notebook's folder of results, its claims as stated beforehand, and what it decides.

    `profile` and `out_dir` are the notebook's parameters: results go to `out_dir`, or, where that is empty, to
    results/<profile>/<notebook>. `notebook` is found by itself in JupyterLab, VS Code and the runner. `margins` are the
    numbers of margins that the stated claims name, such as `margin=1.0`. A copy of a notebook has its original's claims
    and a folder of its own; one without stated claims decides none. Raises InputError where the notebook's name
    cannot be told, or is no folder name.
    """

    def __init__(self, profile: str = "quick", out_dir: Path | str = "", notebook: str = "", **margins: float) -> None:
        self.notebook = notebook or _running_notebook() or Path(out_dir).name
        if not self.notebook:
            raise InputError("the notebook's name cannot be told here: Results(..., notebook='my_notebook')")
        self.profile = profile
        self.folder = store.project_path(output_folder(out_dir, profile, self.notebook))
        claims = claims_of(self.notebook)
        self.claims = stated(claims, **margins) if claims else {}
        self.store = store.Store(self.folder / "store")
        self.decisions: list[Decision] = []

    def statements(self) -> "Styler":
        """What will be decided, and how: to be shown before the first result."""
        return statement_table(self.claims)

    def figure(self, figure: "Figure", name: str) -> "Figure":
        """Saves the figure as NAME.png and NAME.svg (`save_figure`), and gives it back to be shown."""
        save_figure(figure, name, self.folder)
        return figure

    def decide(self, claim_id: str, evidence: Any) -> Decision:
        """Decides a stated claim from `evidence` (`claims.decide`). Raises InputError for an id that is not stated."""
        if claim_id not in self.claims:
            raise unknown(f"claim of {self.notebook}", claim_id, self.claims)
        self.decisions.append(decide(self.claims[claim_id], evidence))
        return self.decisions[-1]

    def parts(self, *claim_ids: str) -> pd.DataFrame:
        """The parts of decided claims (default: the last one's), a row each, rounded to three digits."""
        decided = {decision.claim.id: decision for decision in self.decisions}
        chosen = [decided[claim_id] for claim_id in claim_ids] or self.decisions[-1:]
        tables = [part_table(decision).assign(claim=decision.claim.id) for decision in chosen]
        return pd.concat(tables, ignore_index=True).round(3)

    def table(self, rows: pd.DataFrame | Mapping[str, pd.DataFrame]) -> None:
        """Saves the tidy table as `metrics.parquet`; of several tables each gets its name as `section`."""
        if isinstance(rows, Mapping):
            rows = pd.concat([part.assign(section=name) for name, part in rows.items()], ignore_index=True)
        save_metrics(rows, self.folder)

    def verdicts(self, dataset: str) -> "Styler":
        """Saves all decisions as `claims.json`, Holm-corrected, and gives them as a table: a notebook's last cell."""
        from lthlib.evidence.grids import verdict_table  # matplotlib: half a second of start-up

        records = ledger(self.decisions, dataset, self.profile)
        save_claims(records, self.folder)
        return verdict_table(records)


def _running_notebook() -> str:
    """The name of the notebook that this kernel runs, without its ending; nothing where nobody says."""
    shown_by = getattr(sys.modules.get("__main__"), "__vsc_ipynb_file__", "")
    return Path(os.environ.get(NOTEBOOK) or os.environ.get("JPY_SESSION_NAME") or shown_by).stem


def output_folder(out_dir: Path | str, profile: str, notebook: str) -> Path:
    """A notebook's folder: `out_dir`, or, where that is empty, results/<profile>/<notebook> at the project's root.

    The folder is not created here. Raises InputError where profile or notebook is not one plain folder name.
    """
    if str(out_dir):
        return Path(out_dir)
    for kind, name in (("profile", profile), ("notebook", notebook)):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"{kind} {name!r} is no folder name (letters, digits, '_', '-' and '.')")
    return store.project_root() / "results" / profile / notebook


def save_metrics(frame: pd.DataFrame, out_dir: Path | str) -> Path:
    """Writes a tidy table (one row a measurement, flat unique column names, one plain value a cell) as
    `metrics.parquet`; equal tables give equal bytes. Raises InputError for a table that is not tidy."""
    _check_tidy(frame)
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"the metrics table holds a column of mixed types: {error.args[0]}") from error
    # The pandas metadata names library versions, which belong in the run's manifest.
    table = table.replace_schema_metadata(None)
    path = Path(out_dir) / METRICS
    store.write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    return path


def _check_tidy(frame: pd.DataFrame) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"metrics are a pandas table, not a {type(frame).__name__}")
    bad = [name for name in frame.columns if not isinstance(name, str) or not name]
    if bad:
        raise InputError(f"column {bad[0]!r} of the metrics table is no flat name: every column is one string")
    if not frame.columns.is_unique:
        raise InputError(f"column {frame.columns[frame.columns.duplicated()][0]!r} of the metrics table is there twice")
    if any(name is not None for name in frame.index.names):
        raise InputError(f"the metrics table has an index {list(frame.index.names)}: reset_index() makes it columns")
    for name in frame.columns:
        if frame[name].dtype == object:
            values = (value for value in frame[name] if not isinstance(value, str | bytes))
            if any(isinstance(value, Iterable | Mapping) for value in values):
                raise InputError(f"column {name!r} of the metrics table holds collections: one plain value a cell")


def save_claims(records: Sequence[Mapping[str, Any]], out_dir: Path | str) -> Path:
    """Writes the records of `claims.ledger` as `claims.json`. Raises InputError for an incomplete record."""
    for record in records:
        _check_claim(record)
    ids = [record["id"] for record in records]
    if len(set(ids)) < len(ids):
        raise InputError(f"claim {next(one for one in ids if ids.count(one) > 1)!r} is there twice")
    path = Path(out_dir) / CLAIMS
    store.write_json(path, [{name: record[name] for name in CLAIM_FIELDS} for record in records])
    return path


def _check_claim(record: Mapping[str, Any]) -> None:
    name = record.get("id", "without an id")
    missing = [field for field in CLAIM_FIELDS if field not in record]
    if missing:
        raise InputError(f"claim {name} lacks {', '.join(map(repr, missing))}")
    extra = [field for field in record if field not in CLAIM_FIELDS]
    if extra:
        raise unknown(f"field of claim {name}", extra[0], CLAIM_FIELDS)
    if record["verdict"] not in VERDICTS:
        raise unknown(f"verdict of claim {name}", record["verdict"], VERDICTS)
    if not isinstance(record["ci"], Sequence) or len(record["ci"]) != 2:
        raise InputError(f"claim {name} has the interval {record['ci']!r}: it takes a lower and an upper limit")
    for number in (record["estimate"], *record["ci"], record["margin"]):
        if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
            raise InputError(f"claim {name} holds {number!r}: a number that does not exist is None")
    if not isinstance(record["n"], int) or record["n"] < 0:
        raise InputError(f"claim {name} has n = {record['n']!r}: it is the number of replicates")


def save_figure(figure: "Figure", name: str, out_dir: Path | str) -> tuple[Path, Path]:
    """Writes NAME.png (150 dpi) and NAME.svg; drawing the same figure again gives the same bytes.

    Returns both paths. Raises InputError where the name is not one plain file name.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"figure name {name!r} is no file name (letters, digits, '_', '-' and '.')")
    import matplotlib as mpl  # half a second of start-up

    png, svg = Path(out_dir) / f"{name}.png", Path(out_dir) / f"{name}.svg"
    # Matplotlib would stamp its version and the date, and number an SVG's parts at random.
    with mpl.rc_context({"svg.hashsalt": name}):
        store.write_atomically(
            png, lambda path: figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
        )
        store.write_atomically(
            svg, lambda path: figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
        )
    return png, svg


def read_metrics(*folders: Path | str) -> pd.DataFrame:
    """The metrics of every run at or below the folders in one table, ordered by path.

    Each row gets the columns `profile` and `notebook` (from its folder, results/<profile>/<notebook>, unless the table
    has them) and `folder`. Raises InputError for a folder without metrics and for a damaged file, by name.
    """
    tables = []
    for path in _files(folders, METRICS):
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{str(path)!r} is no readable metrics table: {error} (run its notebook again)") from error
        run = {"profile": path.parent.parent.name, "notebook": path.parent.name, "folder": str(path.parent)}
        tables.append(table.assign(**{name: value for name, value in run.items() if name not in table.columns}))
    return pd.concat(tables, ignore_index=True)


def read_claims(*folders: Path | str) -> list[dict[str, Any]]:
    """The claim records of every run at or below the folders, ordered by path, each with its `notebook` and `folder`.

    Raises InputError for a folder without claims and for a damaged or incomplete file, by name.
    """
    records: list[dict[str, Any]] = []
    for path in _files(folders, CLAIMS):
        try:
            claims = json.loads(path.read_text(encoding="utf-8"))
            for record in claims:
                _check_claim(record)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{str(path)!r} is no readable ledger: {error} (run its notebook again)") from error
        records += [{**record, "notebook": path.parent.name, "folder": str(path.parent)} for record in claims]
    return records


def _files(folders: Sequence[Path | str], name: str) -> list[Path]:
    files: list[Path] = []
    for folder in folders:
        below = sorted(Path(folder).rglob(name))
        if not below:
            raise InputError(f"{str(folder)!r} holds no {name}: run a notebook first, or name a folder of results")
        files += below
    return list(dict.fromkeys(files))
