"""`lth reproduce`: one claim of a kept run made again, and compared with what was kept."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from lthlib.errors import InputError, unknown
from lthlib.evidence.results import CLAIMS, read_claims
from lthlib.evidence.statements import stated
from lthlib.store import Store, notebooks_folder, project_path
from lthlib.workbook import manifest
from lthlib.workbook.excerpt import excerpt
from lthlib.workbook.keep import short_number
from lthlib.workbook.ledger import Run, kept_runs
from lthlib.workbook.notebooks import Notebook, read
from lthlib.workbook.parameters import RESERVED, check_all
from lthlib.workbook.run import THREADS, run_notebook

# Where data lie and what computes is the reader's own affair; all else is as it was recorded.
OWN = ("data_dir", "device")
# Packages whose versions can change a number.
COMPUTING = ("python", "torch", "numpy", "scipy", "scikit-learn", "numba", "PyWavelets", "pandas")


@dataclass(frozen=True)
class Reproduction:
    """A claim as it was kept and as it came out now.

    `same` says that settings, processor, kernels, threads and versions are those of the record: then every digit must
    agree.
    `whole` says that the whole notebook ran; without that the verdict lacks the correction for its other claims.
    `identity` says that the claim bounds rounding errors, which have no interval to lie in.
    """

    run: Run
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    computed_on: str
    seconds: float
    same: bool
    whole: bool
    identity: bool = False

    @property
    def exact(self) -> bool:
        """Whether estimate, interval and n agree to the last digit."""
        return all(self.old[name] == self.new[name] for name in ("estimate", "ci", "n"))

    @property
    def agrees(self) -> bool:
        """Exactly where all is the same, else with the new estimate inside the kept interval; and in its verdict.

        The correction only takes verdicts back, so without it an `inconclusive` can be anything.
        """
        verdict = self.old["verdict"] == self.new["verdict"] or (
            self.old["verdict"] == "inconclusive" and not self.whole
        )
        if self.exact or self.same or self.identity:
            return verdict and (self.exact or not self.same)
        (low, high), estimate = self.old["ci"], self.new["estimate"]
        return None not in (low, high, estimate) and low <= estimate <= high

    def report(self) -> str:
        """Old and new side by side, and in a sentence whether they agree."""
        code = self.run.facts.get("code", {})
        rows = [
            ("", "kept", "now"),
            ("estimate", *(repr(claim["estimate"]) for claim in (self.old, self.new))),
            ("95 % interval", *(" to ".join(map(short_number, claim["ci"])) for claim in (self.old, self.new))),
            ("n", *(str(claim["n"]) for claim in (self.old, self.new))),
            ("verdict", self.old["verdict"], self.new["verdict"] + ("" if self.whole else " (for this claim alone)")),
            ("on", manifest.computed_on(self.run.facts), self.computed_on),
            ("commit", *(str(commit)[:7] for commit in (code.get("commit"), manifest.git_state()["commit"]))),
            ("seconds", f"{self.run.facts.get('seconds', 0):.0f}, whole notebook", f"{self.seconds:.0f}"),
        ]
        wide = max(len(row[1]) for row in rows)
        lines = [f"{name:<14} {old:<{wide}}  {new}".rstrip() for name, old, new in rows]
        return "\n".join([f"{self.old['id']}: {self.old['claim']}", *lines, self._sentence()])

    def _sentence(self) -> str:
        if self.exact:
            return "Equal to the last digit." if self.agrees else "Equal numbers, but another verdict."
        if self.same:
            return "Not reproduced: same settings, processor, kernels, threads and versions, other numbers."
        where = "Settings, processor, kernels, threads or versions are not those of the record;"
        if self.identity:
            return f"{where} an identity up to rounding, its verdict is {'the same' if self.agrees else 'another'}."
        return f"{where} the new estimate lies {'inside' if self.agrees else 'outside'} the kept interval."


def find_claim(claim_id: str, reference: Path, profile: str = "") -> tuple[Run, dict[str, Any]]:
    """The kept run that holds the claim, and its record there: that of `profile`, or else the one that took least time.

    Raises InputError where nothing is kept, and for a claim or profile that is not.
    """
    runs = kept_runs(reference)
    if not runs:
        raise InputError(f"{str(reference)!r} holds no kept runs (keep some with `lth keep`)")
    kept = [(run, claim) for run in runs for claim in run.claims if claim["id"] == claim_id]
    if not kept:
        raise unknown("claim", claim_id, sorted({claim["id"] for run in runs for claim in run.claims}))
    chosen = [pair for pair in kept if profile in ("", pair[0].profile)]
    if not chosen:
        raise unknown(f"profile of claim {claim_id}", profile, sorted(run.profile for run, _ in kept))
    return min(chosen, key=lambda pair: float(pair[0].facts.get("seconds", 0)))


def reproduce(run: Run, claim_id: str, settings: Sequence[str], out: str, *, whole: bool = False) -> Reproduction:
    """Makes one claim of a kept run again, with its recorded parameters.

    Runs the statements that the claim needs (`excerpt`) in `out`/<profile>/<notebook>-claims, or with `whole` the whole
    notebook in `out`/<profile>/<notebook>. Trainings that are already in that folder's store, from another claim or an
    interrupted run, are read back. `settings` are texts
    `name=value`, for `data_dir` and `device` above all. Raises InputError for settings that do not fit, and
    RuntimeError, in one line, where a cell fails.
    """
    old = next(claim for claim in run.claims if claim["id"] == claim_id)
    notebook = read(notebooks_folder() / f"{run.notebook}.ipynb")
    values = recorded(run, notebook, settings)
    changed = _settings(settings).keys() - set(OWN)
    out_dir = Path(out, run.profile, run.notebook if whole else f"{run.notebook}-claims").as_posix()
    start = perf_counter()
    lock = Store(project_path(out_dir).parent).locked(Path(out_dir).name + "-reproduce")
    with lock, _threads(run.facts.get("threads")):
        if whole:
            outcome = run_notebook(notebook.path, values, out_dir)
            if outcome.status == "failed":
                raise RuntimeError(outcome.reason)
            usage: Mapping[str, Any] = manifest.read(project_path(out_dir)) or {}
        else:
            usage = _run_excerpt(notebook, {**values, "out_dir": out_dir}, run, claim_id)
        records = read_claims(project_path(out_dir))
    new = next((record for record in records if record["id"] == claim_id), None)
    if new is None:
        raise RuntimeError(f"{run.notebook} no longer decides {claim_id} with these settings")
    same = (
        not changed
        and all(usage.get(name) == run.facts.get(name) for name in ("device", "threads", "mkl"))
        and _computing(run.facts.get("versions", {})) == _computing(manifest.versions())
    )
    identity = stated(run.notebook, margin=float(values.get("margin", 1.0)))[claim_id].kind == "exact"
    computed_on = manifest.computed_on({**usage, "versions": manifest.versions()})
    return Reproduction(run, old, new, computed_on, perf_counter() - start, same, whole, identity)


def recorded(run: Run, notebook: Notebook, settings: Sequence[str] = ()) -> dict[str, Any]:
    """All parameters of the notebook as the run recorded them, with `settings` (texts `name=value`) over them.

    `data_dir` and `device` are the notebook's defaults unless set: the record's are another machine's. Raises
    InputError for parameters that the notebook no longer has, and for recorded paths that name no place here.
    """
    chosen = _settings(settings)
    for name, text in chosen.items():
        if name in RESERVED or name not in notebook.parameters:
            raise unknown("parameter", name, sorted(notebook.parameters.keys() - RESERVED.keys()))
        chosen[name] = notebook.parameters[name].read(text)
    kept = {name: value for name, value in run.facts["parameters"].items() if name not in OWN}
    for name, value in kept.items():
        # `manifest.portable` leaves of an absolute path its last part.
        if name not in chosen and "folder:..." in json.dumps(value):
            raise InputError(f"{name} was {value!r} on the machine of the record (say where it is: --set {name}=...)")
    return check_all(notebook.parameters, {**kept, **chosen})


def _settings(settings: Sequence[str]) -> dict[str, Any]:
    texts = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected name=value")
        texts[name.strip()] = text
    return texts


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Kernels that start meanwhile compute on as many threads as the record's, unless the user has said how many.

    A sum that threads share has other last digits with another number of them.
    """
    names = [name for name in THREADS if count and name not in os.environ]
    os.environ.update(dict.fromkeys(names, str(count)))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def _run_excerpt(notebook: Notebook, values: Mapping[str, Any], run: Run, claim_id: str) -> Mapping[str, Any]:
    from lthlib.workbook.execution import execute  # papermill takes seconds to import

    folder = project_path(values["out_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLAIMS).unlink(missing_ok=True)  # those of an earlier run are not taken for this one's
    cells = excerpt(notebook, claim_id, [claim["id"] for claim in run.claims])
    whole = json.loads(notebook.path.read_text(encoding="utf-8"))
    with TemporaryDirectory(prefix="lth-") as private:
        part = Path(private) / notebook.path.name
        part.write_text(json.dumps({**whole, "cells": cells}), encoding="utf-8")
        changed = {name: value for name, value in values.items() if value != notebook.parameters[name].default}
        execution = execute(part, changed, folder / f"{claim_id}.ipynb")
    if execution.reason:
        raise RuntimeError(f"{execution.reason} (see {folder / f'{claim_id}.ipynb'})")
    return execution.usage


def _computing(versions: Mapping[str, str]) -> dict[str, str | None]:
    return {name: versions.get(name) for name in COMPUTING}
