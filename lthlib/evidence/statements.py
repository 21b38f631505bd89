"""The claims that a notebook will decide, as stated before any data are looked at: `notebooks/claims/NOTEBOOK.yaml`."""

from dataclasses import fields
from pathlib import Path

import pandas as pd
import yaml
from pandas.io.formats.style import Styler

from lthlib.errors import InputError, unknown
from lthlib.evidence.claims import Claim

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "claims"


def claims_of(notebook: str) -> str:
    """The name whose claims a notebook decides: its own, or that of the notebook it is a copy of; empty where none is.

    A copy is called like its original with something behind it, such as `01_generalized_basis-Copy1`.
    """
    names = [file.stem for file in FOLDER.glob("*.yaml")]
    return max((name for name in names if notebook.startswith(name)), key=len, default="")


def stated(notebook: str, **margins: float) -> dict[str, Claim]:
    """The notebook's claims by id, in the file's order.

    A margin given as a name in the file, such as `margin: margin`, takes its number from `margins`, so that a profile
    can declare it. Raises InputError for a missing file, an unknown field or a margin that was not given.
    """
    path = FOLDER / f"{notebook}.yaml"
    if not path.is_file():
        raise unknown("notebook with stated claims", notebook, sorted(file.stem for file in FOLDER.glob("*.yaml")))
    known = [field.name for field in fields(Claim)]
    claims: dict[str, Claim] = {}
    for record in yaml.safe_load(path.read_text(encoding="utf-8")):
        for name in record:
            if name not in known:
                raise unknown(f"field of a claim in {path.name}", name, known)
        if record["id"] in claims:
            raise InputError(f"claim {record['id']!r} is stated twice in {path.name}")
        margin = record.get("margin")
        if isinstance(margin, str):
            if margin not in margins:
                raise unknown(f"margin of claim {record['id']}", margin, margins)
            record["margin"] = margins[margin]
        claims[record["id"]] = Claim(**record)
    return claims


def statement_table(claims: dict[str, Claim]) -> Styler:
    """What will be decided, and how: one row a claim, to be shown before the first result."""
    columns = ("id", "claim", "source", "statistic", "kind", "margin")
    frame = pd.DataFrame([{name: getattr(claim, name) for name in columns} for claim in claims.values()])
    table = frame.style.hide(axis="index").format({"margin": "{:g}"}, escape="html")
    return table.set_properties(**{"text-align": "left", "vertical-align": "top"})
