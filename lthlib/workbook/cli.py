"""The `lth` command. Heavy imports wait inside the commands, so that help comes at once.

Exit codes: 0 done, 1 something failed, 2 bad input.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lthlib.workbook.runner import Outcome, Task

app = typer.Typer(
    help="Runs the lottery-ticket workbook.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Out = Annotated[str, typer.Option(help="Folder of results.", metavar="DIR")]


def main() -> None:
    """Runs `lth`; bad input ends in one line for each mistake and exit code 2."""
    from lthlib.errors import InputError

    try:
        app(prog_name="lth")
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


@app.command(short_help="Runs notebooks and gathers their results.")
def run(
    notebooks: Annotated[
        list[str] | None, typer.Argument(metavar="NOTEBOOK", help="Numbers (01), names or paths; all if none.")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, mnist, cifar10 or FILE.yaml.")] = "quick",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter, over the profile's; repeatable."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Notebooks at a time.")] = 1,
    out: Out = "results",
    force: Annotated[bool, typer.Option("--force", help="Run again what is finished.")] = False,
) -> None:
    """Runs notebooks into DIR/<profile>/<notebook>/ and gathers them in DIR/<profile>/index.html.

    What is finished there already, with the same parameters and code, is skipped. Relative paths in values are
    relative to the current folder.
    """
    from lthlib.workbook.plan import plan
    from lthlib.workbook.report import run_folders, write_index
    from lthlib.workbook.runner import check_device, writable

    tasks = plan(notebooks or [], profile, settings or [], out)
    writable(tasks[0].folder.parent)
    for device in sorted({str(task.parameters.get("device", "auto")) for task in tasks}):
        check_device(device)
    try:
        outcomes = _run_with_bar(tasks, jobs, force)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise
    finally:
        # Interrupted too: what is there can be looked at.
        if run_folders(tasks[0].folder.parent):
            index = write_index(tasks[0].folder.parent)
    _print_table(outcomes)
    print(f"Report: {index}")
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


@app.command(short_help="Lists notebooks and their parameters.")
def notebooks() -> None:
    """Lists the notebooks and their parameters: type, default, what they are, and their limits."""
    from lthlib.workbook.notebooks import catalogue, read
    from lthlib.workbook.parameters import RESERVED
    from lthlib.workbook.paths import notebooks_folder

    for path in catalogue(notebooks_folder()).values():
        notebook = read(path)
        print(f"{notebook.name}: {notebook.title}")
        shown = [parameter for parameter in notebook.parameters.values() if parameter.name not in RESERVED]
        heads = [f"{parameter.name}: {parameter.kind} = {parameter.default!r}" for parameter in shown]
        width = min(48, max(map(len, heads), default=0))
        for parameter, head in zip(shown, heads, strict=True):
            limits = f" [{parameter.limits.text}]" if parameter.limits else ""
            print(f"  {head:<{width}}  {parameter.help}{limits}".rstrip())
        print()


@app.command(short_help="Writes the report anew.")
def report(out: Out = "results") -> None:
    """Writes index.html anew for every profile in DIR, and DIR/index.html, the claims of all runs in DIR/reference.

    The claims of the project's own results are written into its README too.
    """
    from lthlib.errors import InputError
    from lthlib.workbook.paths import project_path
    from lthlib.workbook.report import profile_folders, write_index, write_ledger

    written = [write_index(folder) for folder in profile_folders(project_path(out))]
    written += write_ledger(project_path(out))
    if not written:
        raise InputError(f"{out!r} holds no results (make some with `lth run`)")
    print(*written, sep="\n")


@app.command(short_help="Keeps finished results for the record.")
def keep(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Folders of finished runs, DIR/<profile>/<notebook>.")
    ],
    into: Annotated[str, typer.Option(help="Folder to keep them in.", metavar="DIR")] = "results/reference/mnist",
    figures: Annotated[bool, typer.Option(help="Keep the PNG figures too.")] = True,
) -> None:
    """Copies tables, claims, manifest and figures of RUNs into DIR/<notebook>, and writes DIR/README.md anew.

    A RUN is DIR/<profile>/<notebook> of `lth run`; the README has tables and verdicts of all that is kept in DIR. The
    ledger is written anew too, as by `lth report`.
    """
    from pathlib import Path

    from lthlib.workbook.paths import project_path
    from lthlib.workbook.reference import keep, write_readme
    from lthlib.workbook.report import write_ledger

    folder = project_path(into)
    for run in runs:
        keep(Path(run), folder, figures=figures)
    print(
        write_readme(folder), *(write_ledger(folder.parents[1]) if folder.parent.name == "reference" else []), sep="\n"
    )


def _run_with_bar(tasks: "Sequence[Task]", jobs: int, force: bool) -> "list[Outcome]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from lthlib.workbook.runner import run_all

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    outcomes = []
    waiting = [task.name for task in tasks]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(_now(waiting, jobs), total=len(tasks))
        for outcome in run_all(tasks, jobs=jobs, force=force):
            outcomes.append(outcome)
            waiting.remove(outcome.notebook)
            bar.update(line, advance=1, description=_now(waiting, jobs))
    order = [task.name for task in tasks]
    return sorted(outcomes, key=lambda outcome: order.index(outcome.notebook))


def _now(waiting: Sequence[str], jobs: int) -> str:
    if not waiting:
        return "done"
    return waiting[0] if len(waiting) == 1 or jobs == 1 else f"{waiting[0]} and others"


def _print_table(outcomes: "Sequence[Outcome]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("notebook", "status", "seconds", "claims", "why")
    table.columns[2].justify = "right"
    for outcome in outcomes:
        claims = ", ".join(f"{count} {verdict}" for verdict, count in outcome.verdicts.items())
        # Text: a message in brackets is no markup.
        table.add_row(outcome.notebook, outcome.status, f"{outcome.seconds:.1f}", claims, Text(outcome.reason))
    if not any(outcome.reason for outcome in outcomes):
        table.columns.pop()
    console = Console()
    # In a log file the lines keep together.
    Console(width=console.width if console.is_terminal else 160).print(table)


if __name__ == "__main__":
    main()
