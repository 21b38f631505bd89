"""The `lth` command. Heavy imports wait inside the commands, so that help comes at once.

Exit codes: 0 done, 1 something failed, 2 bad input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lthlib.workbook.run import Outcome, Task

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
    from lthlib.workbook.profiles import plan
    from lthlib.workbook.report import run_folders, write_index
    from lthlib.workbook.run import check_device, writable

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


@app.command(short_help="Runs notebooks over a grid of parameters.")
def sweep(
    grid: Annotated[str, typer.Argument(metavar="GRID.yaml", help="Notebooks, and values for their parameters.")],
    out: Out = "results",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one a GPU where there are any.")] = 1,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    address: Annotated[str, typer.Option(help="Ray cluster: auto or HOST:PORT; none: one of this machine.")] = "",
    gpus_per_run: Annotated[float, typer.Option(min=0, help="Ray: GPUs, or a share of one, for each run.")] = 0.0,
    cpus_per_run: Annotated[float, typer.Option(min=0, help="Ray: cores for each run.")] = 1.0,
    share: Annotated[str, typer.Option(help="Keep results there too: s3://..., file://...", metavar="URL")] = "",
    force: Annotated[bool, typer.Option("--force", help="Run again what is finished.")] = False,
) -> None:
    """Runs every combination of a grid into DIR/<grid>/<point>/<notebook>/, with one table, DIR/<grid>/sweep.parquet.

    What is finished is skipped, so that the same command goes on where a sweep was stopped; what fails is named, and
    the others go on. See `lth status`. A grid file: `notebooks: [00]`, `profile: quick`, `set: {keep: [0.5, 0.8]}`,
    `seeds: 5`.
    """
    from lthlib.errors import unknown
    from lthlib.store import project_path
    from lthlib.workbook import ray_engine, remote
    from lthlib.workbook import run as runner
    from lthlib.workbook import status as board
    from lthlib.workbook import sweep as sweeps

    if engine not in ("local", "ray"):
        raise unknown("engine", engine, ("local", "ray"))
    chosen = sweeps.read_grid(grid)
    shared = f"{share.rstrip('/')}/{chosen.name}" if share else ""
    planned = sweeps.runs(chosen, out, shared=shared)
    tasks, folder = [run.task for run in planned], project_path(Path(out, chosen.name))
    runner.writable(folder)
    if shared:
        remote.check(shared)
    devices = sorted({str(task.parameters.get("device", "auto")) for task in tasks})
    if engine == "ray":
        events = ray_engine.progress_on_ray(
            tasks, address=address, gpus_per_run=gpus_per_run, cpus_per_run=cpus_per_run, force=force
        )
    else:
        for device in devices:
            runner.check_device(device)
        events = runner.progress(tasks, jobs=jobs, force=force, gpus=runner.visible_gpus(devices), apart=True)
    sweeps.write_plan(folder, planned, shared)
    state = board.Board(len(tasks))
    try:
        for _ in board.watch(events, state, {run.task.out_dir: run.name for run in planned}):
            pass
    except KeyboardInterrupt:
        print(f"interrupted: {state.summary()}; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    table = sweeps.close(folder, planned, shared)
    print(*board.failures(state), f"{folder}: {state.summary()}", *([f"Table: {table}"] if table else []), sep="\n")
    if state.count("failed"):
        raise typer.Exit(1)


@app.command(short_help="Says what is done, running, failed and left.")
def status(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder (or URL) of results, of a sweep or of one run.")
    ] = "results",
) -> None:
    """Says of every run in DIR whether it is done, running, failed or left, one line each.

    Exit code 1 where one has failed.
    """
    from lthlib.store import project_path
    from lthlib.workbook.remote import copied, is_address
    from lthlib.workbook.status import status, summary

    if is_address(folder):
        with copied(folder) as copy:
            states = status(copy)
    else:
        states = status(project_path(folder))
    print(*states, summary(states), sep="\n")
    if any(state.state == "failed" for state in states):
        raise typer.Exit(1)


@app.command(short_help="Says whether this machine is ready.")
def doctor(
    out: Out = "results",
    data_dir: Annotated[str, typer.Option(help="Where data sets lie.", metavar="DIR")] = "data",
) -> None:
    """Looks at versions, device, free disk and memory, write access and the data sets that are there, one line each.

    Exit code 1 where something is not well.
    """
    from lthlib.store import project_path
    from lthlib.workbook.doctor import examine

    well = True
    for finding in examine(project_path(out), project_path(data_dir)):
        print(finding, flush=True)
        well = well and finding.well
    if not well:
        raise typer.Exit(1)


@app.command(short_help="Lists notebooks and their parameters.")
def notebooks() -> None:
    """Lists the notebooks and their parameters: type, default, what they are, and their limits."""
    from lthlib.store import notebooks_folder
    from lthlib.workbook.notebooks import catalogue, read
    from lthlib.workbook.parameters import RESERVED

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

    The claims and speeds of the project's own results are written into its pages too.
    """
    from lthlib.errors import InputError
    from lthlib.store import project_path
    from lthlib.workbook.report import profile_folders, write_index, write_ledger

    written = [write_index(folder) for folder in profile_folders(project_path(out))]
    written += write_ledger(project_path(out))
    if not written:
        raise InputError(f"{out!r} holds no results (make some with `lth run`)")
    print(*written, sep="\n")


@app.command(short_help="Makes one claim of the kept results again.")
def reproduce(
    claim: Annotated[str, typer.Argument(metavar="CLAIM_ID", help="Such as LTH-1; see results/index.html.")],
    profile: Annotated[str, typer.Option(help="Profile it was kept with; none: the one that took least time.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter, over the recorded one, such as data_dir=PATH."),
    ] = None,
    reference: Annotated[str, typer.Option(help="Folder of kept results.", metavar="DIR")] = "results/reference",
    out: Out = "results/reproduced",
    whole: Annotated[bool, typer.Option("--whole", help="Run the whole notebook, verdicts corrected.")] = False,
) -> None:
    """Makes one claim of a kept run again, from its recorded parameters, and prints old and new side by side.

    Only what the claim needs is run. Exit code 0 where every digit agrees (or, with another processor, other versions
    or other settings, the new estimate lies in the kept interval), 1 where not.
    """
    from lthlib.store import project_path
    from lthlib.workbook import reproduce as room

    run, _ = room.find_claim(claim, project_path(reference), profile)
    try:
        reproduction = room.reproduce(run, claim, settings or [], out, whole=whole)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(reproduction.report())
    if not reproduction.agrees:
        raise typer.Exit(1)


@app.command(short_help="Writes a ticket's network for use elsewhere.")
def export(
    ticket: Annotated[str, typer.Argument(metavar="TICKET", help="A ticket file, such as a run's ticket.safetensors.")],
    to: Annotated[str, typer.Option(help="onnx, torch-2:4, factored or csr.", metavar="FORM")],
    out: Annotated[str, typer.Option(help="File to write.", metavar="FILE")],
    device: Annotated[str, typer.Option(help="Where latency is measured: cpu or cuda.")] = "cpu",
) -> None:
    """Writes a ticket's network as FORM, with its size and latency beside the dense network's.

    onnx: baked dense weights. torch-2:4: half precision, two of four weights, on CUDA devices that have kernels for it.
    factored: dead units removed (in networks of linear layers), layers of low rank as two. csr: linear layers as
    sparse rows. The last three are read by lthlib.deployment.load_network.
    """
    from lthlib.workbook.export import export as write
    from lthlib.workbook.run import check_device

    check_device(device)
    print(write(ticket, to, out, device))


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
    from lthlib.store import project_path
    from lthlib.workbook.keep import keep, write_readme
    from lthlib.workbook.report import write_ledger

    folder = project_path(into)
    for run in runs:
        keep(Path(run), folder, figures=figures)
    ledger = write_ledger(folder.parents[1]) if folder.parent.name == "reference" else []
    print(write_readme(folder), *ledger, sep="\n")


def _run_with_bar(tasks: "Sequence[Task]", jobs: int, force: bool) -> "list[Outcome]":
    from rich import progress
    from rich.console import Console

    from lthlib.workbook.profiles import longest_first
    from lthlib.workbook.run import run_all

    elapsed, left = ("elapsed", progress.TimeElapsedColumn()), ("left", progress.TimeRemainingColumn())
    columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), *elapsed, *left)
    outcomes = []
    queue = longest_first(tasks) if jobs > 1 else tasks
    waiting = [task.name for task in queue]
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(_now(waiting, jobs), total=len(tasks))
        for outcome in run_all(queue, jobs=jobs, force=force):
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
