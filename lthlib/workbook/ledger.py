"""The ledger: every claim of every run kept for the record, as blocks of the pages; `ledger_page` shows more."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from lthlib.errors import InputError
from lthlib.evidence.results import VERDICTS, read_claims
from lthlib.store import notebooks_folder
from lthlib.workbook import manifest
from lthlib.workbook.keep import markdown_table, short_number

BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
OUTCOMES_BEGIN, OUTCOMES_END = "<!-- notebooks:begin -->", "<!-- notebooks:end -->"
# Profiles of minutes and seconds: the pages show them only where a notebook has nothing larger.
CHEAP = ("quick", "smoke")
_HEAD = ["id", "claim", "source", "estimate [95 % interval]", "n", "verdict"]


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
        return slug(f"{self.anchor}-{claim_id}")

    @property
    def datasets(self) -> str:
        """The data sets of its claims, each once."""
        return ", ".join(dict.fromkeys(claim["dataset"] for claim in self.claims))

    @property
    def command(self) -> str:
        """The command that makes it again, with every parameter that was recorded."""
        words = ["./run_all.sh", "run", self.notebook, "--profile", str(self.facts.get("profile") or "quick")]
        for name, value in self.facts.get("parameters", {}).items():
            if name != "profile":
                # Text as it is, all else as JSON, which is YAML too.
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                words += ["--set", f"{name}={text}"]
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


def large_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs without those of the `CHEAP` profiles of notebooks that have others."""
    large = {run.notebook for run in runs if run.profile not in CHEAP}
    return [run for run in runs if run.profile not in CHEAP or run.notebook not in large]


def ledger_block(runs: Sequence[Run]) -> str:
    """The ledger in Markdown, for results/README.md: counts of verdicts by run, then a folded table for each."""
    shown = large_runs(runs)
    counts = [[f"{run.notebook}, {run.profile}", *map(str, verdict_counts([run]).values())] for run in shown]
    counts.append(["**all**", *(f"**{count}**" for count in verdict_counts(shown).values())])
    lines = [BEGIN, "", *markdown_table(["notebook, profile", *VERDICTS], counts), ""]
    for run in shown:
        lines += [
            f"<details><summary>{run.notebook}, {run.profile}: {len(run.claims)} claims on "
            f"{plain(run.datasets)}</summary>",
            "",
            f"`./run_all.sh reproduce ID --profile {run.profile}` makes one again.",
            "",
            *markdown_table(_HEAD, [_row(run, claim) for claim in run.claims]),
            "",
            "</details>",
            "",
        ]
    return "\n".join([*lines, END])


def outcomes_block(runs: Sequence[Run]) -> str:
    """The front page's table of notebooks in Markdown: what each asks, what came out of one claim, all its verdicts.

    Questions and claims are those of `notebooks/front_page.yaml`, which names every notebook that it shows; verdicts
    are those of the `large_runs`. Raises InputError for a claim that was not kept.
    """
    shown = large_runs(runs)
    front = yaml.safe_load((notebooks_folder() / "front_page.yaml").read_text(encoding="utf-8"))
    rows = []
    for notebook, entry in front.items():
        kept = [run for run in shown if run.notebook == notebook]
        rows.append([f"[{notebook}](notebooks/{notebook}.ipynb)", entry["question"], _outcome(kept, entry["claim"])])
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(shown).items())
    table = markdown_table(["notebook", "question", "what came out"], rows)
    return "\n".join([OUTCOMES_BEGIN, "", *table, "", f"All kept claims: {counts}.", "", OUTCOMES_END])


def with_block(text: str, block: str) -> str:
    """`text` with the block that has the same first and last line, its markers, replaced; InputError without it."""
    begin, end = block.splitlines()[0], block.splitlines()[-1]
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        name = begin.strip("<!-> ").removesuffix(":begin")
        raise InputError(f"the page has no place for the {name} (valid: a line {begin!r} and, below it, {end!r})")
    return before + block + after


def slug(text: str) -> str:
    """`text` as an anchor: letters, digits, '_' and '-'."""
    return re.sub(r"[^\w-]+", "-", text)


def plain(text: str) -> str:
    """`text` as Markdown shows it letter by letter."""
    return re.sub(r"([\\|*_$`<>\[\]])", r"\\\1", text)


def _outcome(runs: Sequence[Run], claim_id: str) -> str:
    """One claim with its verdict (on MNIST where it was kept), then the counts of all the notebook's runs."""
    kept = [(run, claim) for run in runs for claim in run.claims if claim["id"] == claim_id]
    if not kept:
        raise InputError(f"claim {claim_id!r} of front_page.yaml is in no kept run (valid: ids in results/README.md)")
    run, claim = max(kept, key=lambda pair: pair[0].profile == "mnist")
    counts = "; ".join(f"{run.profile} {' / '.join(map(str, verdict_counts([run]).values()))}" for run in runs)
    return f"{plain(claim['claim'])}: **{claim['verdict']}** ({_link(run, claim, 'results/index.html')}). {counts}"


def _row(run: Run, claim: dict[str, Any]) -> list[str]:
    estimate, low, high = map(short_number, (claim["estimate"], *claim["ci"]))
    said = [_link(run, claim, "index.html"), plain(claim["claim"]), plain(claim["source"])]
    return [*said, f"{estimate} [{low}, {high}]", str(claim["n"]), claim["verdict"]]


def _link(run: Run, claim: dict[str, Any], page: str) -> str:
    return f"[{plain(claim['id'])}]({page}#{run.claim_anchor(claim['id'])})"


# Filters are radio buttons that the style sheet asks for; a browser without `:has` shows everything.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Claims ledger</title>
<style>
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #5c5c5c; --line: #d5d5d5; --link: #0b57a4;
  --supported: #11663f; --not-supported: #a11b1b; --inconclusive: #755600; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --paper: #181a1b; --faint: #a8a8a8; --line: #44484a;
  --link: #8ab8f0; --supported: #6fd3a3; --not-supported: #ff9a8d; --inconclusive: #e3c15c; } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 80em; margin: 2em auto; padding: 0 1em;
  color: var(--ink); background: var(--paper); }
a { color: var(--link); }
table { border-collapse: collapse; width: 100%; margin: 0.8em 0 1.5em; }
th, td { text-align: left; vertical-align: top; padding: 0.35em 0.6em; border-bottom: 1px solid var(--line); }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.supported, td.not-supported, td.inconclusive { white-space: nowrap; font-weight: 600; }
.supported { color: var(--supported); }
.not-supported { color: var(--not-supported); }
.inconclusive { color: var(--inconclusive); }
.small, code { font-size: 0.85em; }
.small { color: var(--faint); }
code { overflow-wrap: anywhere; }
fieldset { border: 1px solid var(--line); margin: 0.4em 0; }
label { margin-right: 1em; white-space: nowrap; }
tr:target, section:target > h2 { outline: 2px solid var(--link); }
{% for verdict in counts %}
body:has(#only-{{ verdict | slug }}:checked) tr[data-verdict]:not([data-verdict="{{ verdict | slug }}"]) {
  display: none; }
body:has(#only-{{ verdict | slug }}:checked) section:not(:has(tr[data-verdict="{{ verdict | slug }}"])) {
  display: none; }
{% endfor %}
{% for notebook in notebooks %}
body:has(#only-{{ notebook | slug }}:checked) section:not([data-notebook="{{ notebook | slug }}"]) { display: none; }
{% endfor %}
</style>
</head>
<body>
<h1>Claims ledger</h1>
<p>What the papers claim, what was measured here, and how sure that is. Every claim, its statistic and its margin were
stated before its data were looked at. Intervals are 95 % intervals over the n replicates; verdicts are corrected for
the other claims of the notebook (Holm): <em>supported</em>, the claim holds; <em>not supported</em>, its opposite
does; <em>inconclusive</em>, these data decide neither. <em>not supported</em> speaks of the settings that were run.
</p>
<table>
<tr><th>Notebook</th><th>Profile</th><th>Data</th>
{% for verdict in counts %}<th class="number">{{ verdict }}</th>{% endfor %}</tr>
{% for run in runs %}
<tr><td><a href="#{{ run.anchor }}">{{ run.notebook }}</a></td><td>{{ run.profile }}</td><td>{{ run.datasets }}</td>
{% for verdict, count in run.counts.items() %}
<td class="number {{ verdict | slug }}">{{ count }}</td>{% endfor %}</tr>
{% endfor %}
<tr><th>all</th><td></td><td></td>
{% for verdict, count in counts.items() %}
<td class="number {{ verdict | slug }}"><strong>{{ count }}</strong></td>{% endfor %}</tr>
</table>
<fieldset><legend>Verdict</legend>
<label><input type="radio" name="verdict" checked> all</label>
{% for verdict in counts %}
<label><input type="radio" name="verdict" id="only-{{ verdict | slug }}"> {{ verdict }}</label>
{% endfor %}
</fieldset>
<fieldset><legend>Notebook</legend>
<label><input type="radio" name="notebook" checked> all</label>
{% for notebook in notebooks %}
<label><input type="radio" name="notebook" id="only-{{ notebook | slug }}"> {{ notebook }}</label>
{% endfor %}
</fieldset>
{% for run in runs %}
<section id="{{ run.anchor }}" data-notebook="{{ run.notebook | slug }}">
<h2>{{ run.title }} ({{ run.profile }})</h2>
<p class="small">{{ run.notebook }}, profile {{ run.profile }}, {{ run.made }}.
{% for kind, files in run.files.items() if files %}
{{ kind }}: {% for file in files %}
<a href="{{ file.link }}">{{ file.name }}</a>{{ ". " if loop.last else ", " }}{% endfor %}
{% endfor %}</p>
<details class="small"><summary>The command that made it</summary><code>{{ run.command }}</code></details>
<table>
<tr><th>Claim</th><th>Verdict</th><th class="number">Estimate</th><th class="number">95 % CI</th>
<th class="number">Margin</th><th class="number">n</th><th>Statistic</th><th>Data</th></tr>
{% for claim in run.claims %}
<tr id="{{ claim.anchor }}" data-verdict="{{ claim.verdict | slug }}">
<td><a href="#{{ claim.anchor }}"><strong>{{ claim.id }}</strong></a> {{ claim.claim }}
<div class="small">{{ claim.source }}</div><code>{{ claim.command }}</code></td>
<td class="{{ claim.verdict | slug }}">{{ claim.verdict }}</td>
<td class="number">{{ claim.estimate | number }}</td>
<td class="number">{{ claim.ci[0] | number }} to {{ claim.ci[1] | number }}</td>
<td class="number">{{ claim.margin | number }}</td>
<td class="number">{{ claim.n }}</td>
<td>{{ claim.statistic }}</td>
<td>{{ claim.dataset }}</td>
</tr>
{% endfor %}
</table>
</section>
{% endfor %}
</body>
</html>
"""


def ledger_page(runs: Sequence[Run], out: Path) -> str:
    """The page for `out`/index.html, escaped throughout; links lead to the runs' files, which lie below `out`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=short_number, slug=slug)
    return environment.from_string(_PAGE).render(
        runs=[_shown(run, out) for run in runs],
        counts=verdict_counts(runs),
        notebooks=list(dict.fromkeys(run.notebook for run in runs)),
    )


def _shown(run: Run, out: Path) -> dict[str, Any]:
    def links(*names: str) -> list[dict[str, str]]:
        paths = [path for name in names for path in sorted(run.folder.glob(name))]
        return [{"name": path.name, "link": quote(path.relative_to(out).as_posix())} for path in paths]

    return {
        "anchor": run.anchor,
        "notebook": run.notebook,
        "profile": run.profile,
        "title": run.facts.get("title", run.notebook),
        "made": f"commit {manifest.provenance(run.facts)}",
        "datasets": run.datasets,
        "counts": verdict_counts([run]),
        "command": run.command,
        "files": {"Data": links("*.parquet", "*.json"), "Figures": links("*.png")},
        "claims": [
            {**claim, "anchor": run.claim_anchor(claim["id"]), "command": run.reproduce(claim["id"])}
            for claim in run.claims
        ],
    }
