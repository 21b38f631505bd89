"""`results/<profile>/index.html`: every notebook of a profile on one page, from the files they left; and the ledger."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from lthlib.errors import InputError
from lthlib.store import project_root, write_text
from lthlib.workbook import manifest, performance
from lthlib.workbook.ledger import Run, kept_runs, ledger_block, ledger_page, outcomes_block, with_block

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Results: {{ profile }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1em 0 2em; }
th, td { text-align: left; vertical-align: top; padding: 0.35em 0.7em; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.finished, .supported { color: #11663f; }
.failed, .not-supported { color: #a11b1b; }
.unfinished, .inconclusive { color: #7a5b00; }
.figures { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 22em; }
figure img { max-width: 100%; border: 1px solid #eee; }
figcaption, .small { font-size: 0.85em; color: #555; }
</style>
</head>
<body>
<h1>Results: {{ profile }}</h1>
<table>
<tr><th>Notebook</th><th>Status</th><th>Seconds</th><th>Peak memory</th><th>Claims</th><th>Files</th></tr>
{% for run in runs %}
<tr>
<td>{% if run.page %}<a href="{{ run.page }}">{{ run.title }}</a>{% else %}{{ run.title }}{% endif %}
<div class="small">{{ run.name }}{% if run.started %}, {{ run.started }}{% endif %}
{%- if run.computed_on %}, {{ run.computed_on }}{% endif %}</div></td>
<td class="{{ run.status }}">{{ run.status }}
{%- if run.reason %}<div class="small">{{ run.reason }}</div>{% endif %}</td>
<td class="number">{{ run.seconds }}</td>
<td class="number">{{ run.memory }}</td>
<td>{% for verdict, count in run.verdicts.items() %}<span class="{{ verdict | replace(' ', '-') }}">
{{- count }} {{ verdict }}</span>{{ "" if loop.last else ", " }}{% endfor %}</td>
<td>{% for file in run.files %}
<a href="{{ file.link }}">{{ file.name }}</a>{{ "" if loop.last else ", " }}{% endfor %}</td>
</tr>
{% endfor %}
</table>
{% if claims %}
<h2>Claims</h2>
<table>
<tr><th>Claim</th><th>Verdict</th><th>Estimate</th><th>95 % CI</th><th>Margin</th><th>n</th><th>Statistic</th>
<th>Data</th></tr>
{% for claim in claims %}
<tr>
<td><strong>{{ claim.id }}</strong> {{ claim.claim }}
<div class="small">{{ claim.source }}; {{ claim.notebook }}</div></td>
<td class="{{ claim.verdict | replace(' ', '-') }}">{{ claim.verdict }}</td>
<td class="number">{{ claim.estimate | number }}</td>
<td class="number">{{ claim.ci[0] | number }} to {{ claim.ci[1] | number }}</td>
<td class="number">{{ claim.margin | number }}</td>
<td class="number">{{ claim.n }}</td>
<td>{{ claim.statistic }}</td>
<td>{{ claim.dataset }}</td>
</tr>
{% endfor %}
</table>
{% endif %}
{% for run in runs if run.figures %}
<h2>{{ run.title }}</h2>
<div class="figures">
{% for figure in run.figures %}
<figure><a href="{{ figure.full }}"><img src="{{ figure.image }}" alt="{{ figure.name }}" loading="lazy"></a>
<figcaption>{{ figure.name }}</figcaption></figure>
{% endfor %}
</div>
{% endfor %}
</body>
</html>
"""


def write_index(folder: Path) -> Path:
    """Writes `index.html` over the notebooks' folders in `folder`, escaped throughout; returns its path.

    Whatever is unfinished or damaged is shown as such. Raises InputError where `folder` holds no run.
    """
    runs = [_run(path) for path in run_folders(folder)]
    if not runs:
        raise InputError(f"{str(folder)!r} holds no results (make some with `lth run`)")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.4g}"
    page = environment.from_string(_PAGE).render(
        profile=folder.name, runs=runs, claims=[claim for run in runs for claim in run["claims"]]
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def write_ledger(out: Path) -> list[Path]:
    """Writes `out`/index.html over the runs kept in `out`/reference; returns what was written, [] where none are kept.

    Where `out` is the project's own folder of results, the blocks of its pages too. Raises InputError for damaged
    runs.
    """
    runs = kept_runs(out / "reference")
    if not runs:
        return []
    texts = {out / "index.html": ledger_page(runs, out)}
    if out.resolve() == (project_root() / "results").resolve() and (project_root() / "README.md").is_file():
        texts |= pages(project_root(), runs)
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def pages(project: Path, runs: Sequence[Run]) -> dict[Path, str]:
    """The project's pages that have generated blocks, with these made anew from the kept runs and figures.

    Raises InputError where a page has no place for its block.
    """
    front, results = project / "README.md", project / "results" / "README.md"
    texts = {page: page.read_text(encoding="utf-8") for page in (front, results)} | performance.pages(project)
    blocks = {front: outcomes_block(runs), results: ledger_block(runs)}
    return texts | {page: with_block(texts[page], block) for page, block in blocks.items()}


def profile_folders(out: Path) -> list[Path]:
    """The folders in `out` that hold runs, one a profile."""
    return [path for path in sorted(out.glob("*")) if path.is_dir() and run_folders(path)]


def run_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that a notebook was run in, finished or not."""
    traces = (manifest.FILE, "*.ipynb", manifest.PARTIAL.format("*"))
    folders = [path for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    return [path for path in folders if any(any(path.glob(trace)) for trace in traces)]


def _run(folder: Path) -> dict[str, Any]:
    facts = manifest.read(folder) or {}
    claims, unreadable = _claims(folder)
    memory = facts.get("peak_memory_bytes")
    vectors = {png: png.with_suffix(".svg") for png in sorted(folder.glob("*.png"))}
    page = folder / f"{folder.name}.html"
    return {
        "name": folder.name,
        "title": facts.get("title", folder.name),
        "status": str(facts.get("status", "unfinished")),
        "reason": facts.get("reason", "") or unreadable,
        "seconds": f"{facts['seconds']:.1f}" if isinstance(facts.get("seconds"), int | float) else "",
        "memory": f"{memory / 2**20:.0f} MiB" if isinstance(memory, int | float) else "",
        "started": str(facts.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        "computed_on": manifest.computed_on(facts),
        "verdicts": facts.get("verdicts", {}) if isinstance(facts.get("verdicts"), dict) else {},
        "claims": claims,
        "page": _link(page) if page.exists() else "",
        "files": [
            {"name": path.suffix.lstrip(".") if path.suffix == ".ipynb" else path.name, "link": _link(path)}
            for path in sorted(folder.iterdir())
            if path.suffix in (".ipynb", ".json", ".parquet") and not path.name.startswith(".")
        ],
        "figures": [
            {"name": png.stem, "image": _link(png), "full": _link(svg if svg.exists() else png)}
            for png, svg in vectors.items()
        ],
    }


def _claims(folder: Path) -> tuple[list[dict[str, Any]], str]:
    from lthlib.evidence.results import read_claims

    if not (folder / "claims.json").exists():
        return [], ""
    try:
        return [claim for claim in read_claims(folder) if Path(claim["folder"]) == folder], ""
    except InputError as error:
        return [], str(error)


def _link(path: Path) -> str:
    return f"{quote(path.parent.name)}/{quote(path.name)}"
