"""The ledger: every claim of every run kept for the record, as the README's block; `ledger_page` shows more."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lthlib.errors import InputError
from lthlib.evidence.results import VERDICTS, read_claims
from lthlib.workbook import manifest
from lthlib.workbook.reference import markdown_table, short_number

BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
# Profiles of minutes and seconds: the README shows them only where a notebook has nothing larger.
CHEAP = ("quick", "smoke")


@dataclass(frozen=True)
class Run:
    """A kept run: the folder <reference>/<profile>/<notebook>, its manifest, and the records of its claims."""

    folder: Path
    facts: dict[str, Any]
    claims: list[dict[str, Any]]

    @property
    def profile(self) -> str:
        """The folder it is kept in; mostly the profile it was run with."""
        return self.folder.parent.name

    @property
    def notebook(self) -> str:
        """The notebook's name."""
        return self.folder.name

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return slug(f"{self.profile}-{self.notebook}")

    def claim_anchor(self, claim_id: str) -> str:
        """The place of one of its claims on the page."""
        return slug(f"{self.profile}-{self.notebook}-{claim_id}")

    @property
    def command(self) -> str:
        """The command that makes it again, with every parameter that was recorded."""
        words = ["./run_all.sh", "run", self.notebook, "--profile", str(self.facts.get("profile") or "quick")]
        for name, value in self.facts.get("parameters", {}).items():
            if name != "profile":
                words += ["--set", f"{name}={_setting(value)}"]
        return shlex.join(words)

    def reproduce(self, claim_id: str) -> str:
        """The command that makes one of its claims again."""
        return shlex.join(["./run_all.sh", "reproduce", claim_id, "--profile", self.profile])


def kept_runs(reference: Path) -> list[Run]:
    """The runs kept under `reference`, by notebook, then profile; [] where there are none.

    Raises InputError for a damaged ledger or manifest, by name.
    """
    runs = []
    for path in sorted(reference.glob("*/*/claims.json"), key=lambda path: (path.parts[-2], path.parts[-3])):
        facts = manifest.read(path.parent)
        if facts is None:
            raise InputError(f"{str(path.parent)!r} has no readable {manifest.FILE} (keep its run again)")
        runs.append(Run(path.parent, facts, read_claims(path.parent)))
    return runs


def verdict_counts(runs: Sequence[Run]) -> dict[str, int]:
    """How many claims of the runs got each verdict."""
    counts = Counter(claim["verdict"] for run in runs for claim in run.claims)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def readme_block(runs: Sequence[Run]) -> str:
    """The ledger in Markdown, markers included: counts of verdicts by run, then a folded table for each.

    A notebook's runs of the `CHEAP` profiles are left out where it has others.
    """
    large = {run.notebook for run in runs if run.profile not in CHEAP}
    shown = [run for run in runs if run.profile not in CHEAP or run.notebook not in large]
    counts = [[f"{run.notebook}, {run.profile}", *map(str, verdict_counts([run]).values())] for run in shown]
    counts.append(["**all**", *(f"**{count}**" for count in verdict_counts(shown).values())])
    lines = [BEGIN, "", *markdown_table(["notebook, profile", *VERDICTS], counts), ""]
    for run in shown:
        lines += [
            f"<details><summary>{run.notebook}, {run.profile}: {len(run.claims)} claims on {_datasets(run)}</summary>",
            "",
            f"`./run_all.sh reproduce ID --profile {run.profile}` makes one again.",
            "",
            *markdown_table(
                ["id", "claim", "source", "estimate [95 % interval]", "n", "verdict"],
                [_row(run, claim) for claim in run.claims],
            ),
            "",
            "</details>",
            "",
        ]
    return "\n".join([*lines, END])


def with_block(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with what stands between two markers, and the markers, replaced by `block`; InputError without markers."""
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        name = begin.strip("<!-> ").removesuffix(":begin")
        raise InputError(f"the README has no place for the {name} (valid: a line {begin!r} and, below it, {end!r})")
    return before + block + after


def slug(text: str) -> str:
    """`text` as an anchor: letters, digits, '_' and '-'."""
    return re.sub(r"[^\w-]+", "-", text)


def plain(text: str) -> str:
    """`text` as Markdown shows it letter by letter."""
    return re.sub(r"([\\|*_$`<>\[\]])", r"\\\1", text)


def _row(run: Run, claim: dict[str, Any]) -> list[str]:
    low, high = map(short_number, claim["ci"])
    link = f"[{plain(claim['id'])}](results/index.html#{run.claim_anchor(claim['id'])})"
    estimate = f"{short_number(claim['estimate'])} [{low}, {high}]"
    return [link, plain(claim["claim"]), plain(claim["source"]), estimate, str(claim["n"]), claim["verdict"]]


def _datasets(run: Run) -> str:
    return plain(", ".join(dict.fromkeys(claim["dataset"] for claim in run.claims)))


def _setting(value: Any) -> str:
    """A value as `--set` takes it: text as it is, all else as JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
