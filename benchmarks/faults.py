"""Faults, injected: killed processes, damaged files, full and read-only disks, missing data, a clock that jumps.

Every row counts what was lost, wrong or unnoticed, so that its goal is none; the last rows are about long runs: the
runner's memory, its time beside papermill's own, and a profile run again and again.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from injected import (
    SLOW,
    TRAIN,
    damages,
    date_files,
    ended,
    ends_within,
    kill_one,
    lth,
    remount,
    small_disk,
    sweep,
    tables,
    watched,
)
from reporting import Row, parser, report

NONE = "<= 0"


def kills(folder: Path, count: int, seed: int = 0, pace: float | None = None) -> list[Row]:
    """Kills the runner, a worker or a kernel at `count` random instants of sweeps, which are resumed until they end.

    At most `pace` seconds lie between two, or half of what an undisturbed sweep takes.
    """
    start = time.perf_counter()
    code, out = sweep(folder / "undisturbed")
    span = time.perf_counter() - start
    if code:
        raise RuntimeError(out)
    print(f"undisturbed: {span:.1f} s", file=sys.stderr, flush=True)
    wanted, choice = tables(folder / "undisturbed"), random.Random(seed)
    done = dict.fromkeys(("runner", "worker", "kernel"), 0)
    lost = different = sweeps = tracebacks = 0
    while sum(done.values()) < count:
        place = folder / f"disturbed-{sweeps}"
        place.mkdir()
        (place / "g.yaml").write_text((folder / "undisturbed" / "g.yaml").read_text())
        sweeps, code = sweeps + 1, -1
        while code != 0:
            before, start = _finished(place), time.perf_counter()
            runner = lth(place, "sweep", "g.yaml", "--jobs", "2")
            while sum(done.values()) < count and not ends_within(runner, choice.uniform(0, pace or span / 2)):
                if killed := kill_one(runner, choice):
                    done[killed] += 1
                    print(f"kill {sum(done.values())} of {count}: {killed}", file=sys.stderr, flush=True)
            code, out = ended(runner)
            # A machine that has grown quicker would leave whole sweeps alone.
            span = min(span, time.perf_counter() - start) if code == 0 and not before else span
            tracebacks += "Traceback" in out
            lost += sum(_finished(place).get(name) != stamp for name, stamp in before.items())
        found = tables(place)
        different += sum(found.get(name) != content for name, content in wanted.items()) + len(found.keys() - wanted)
    named = ", ".join(f"{kind} {times}" for kind, times in done.items())
    return [
        Row(f"kill -9 ({named}; {sweeps} sweeps): finished results lost", lost, "runs", goal=NONE),
        Row("kill -9: files that differ from an undisturbed sweep's", different, "files", goal=NONE),
        Row("kill -9: commands that ended in a traceback", tracebacks, "commands", goal=NONE),
    ]


def _finished(place: Path) -> dict[str, str]:
    """When each run that has finished was begun: one that is made again has been lost."""
    found = {}
    for path in place.glob("results/g/*/*/manifest.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["status"] == "finished":
            found[str(path)] = f"{facts['started']} {facts['seconds']}"
    return found


def together(folder: Path) -> list[Row]:
    """Two sweeps of one grid at once, into one folder: no run is made twice, and the tables are one sweep's."""
    sweep(folder / "alone")
    place = folder / "shared"
    place.mkdir()
    (place / "g.yaml").write_text((folder / "alone" / "g.yaml").read_text())
    said = [ended(one) for one in [lth(place, "sweep", "g.yaml", "--jobs", "2") for _ in range(2)]]
    made = sum(line.split()[1:2] == ["done"] for _, out in said for line in out.splitlines())
    found, wanted = tables(place), tables(folder / "alone")
    different = sum(found.get(name) != content for name, content in wanted.items()) + sum(code != 0 for code, _ in said)
    return [
        Row("two sweeps at once: runs made twice", made - len(_finished(place)), "runs", goal=NONE),
        Row("two sweeps at once: files that differ from one sweep's", different, "files", goal=NONE),
    ]


def damage(folder: Path, count: int) -> list[Row]:
    """Flips bits in, and cuts short, each kind of file; counts what nobody noticed and what came back different."""
    from lthlib import data
    from lthlib.finders.imp import train_dense
    from lthlib.models import architecture as models
    from lthlib.store import Store
    from lthlib.ticket import Ticket, initial_tickets
    from lthlib.training.recipe import Recipe
    from lthlib.workbook import manifest

    choice, rows = random.Random(1), []
    code, out = sweep(folder, f"notebooks: ['{TRAIN}']\n")
    if code:
        raise RuntimeError(out)
    run = folder / "results" / "g" / "all" / "train"
    wanted = json.loads((run / manifest.FILE).read_text(encoding="utf-8"))["key"]
    for name in ("metrics.parquet", "claims.json", "manifest.json", "ticket.safetensors", "train.ipynb", "train.html"):
        content, unseen = (run / name).read_bytes(), 0
        for changed in damages(content, count, choice):
            (run / name).write_bytes(changed)
            unseen += manifest.finished(run, wanted) is not None
        (run / name).write_bytes(content)
        rows.append(Row(f"{name} damaged {count} times: unnoticed", unseen, "times", goal=NONE))
    before = tables(folder)
    for name in ("metrics.parquet", "manifest.json"):
        (run / name).write_bytes(next(damages((run / name).read_bytes(), 1, choice)))
        sweep(folder, f"notebooks: ['{TRAIN}']\n")
    different = sum(tables(folder).get(name) != content for name, content in before.items())
    rows.append(Row("damaged runs made anew: files that differ", different, "files", goal=NONE))

    images = data.load("digits")
    net = models.architecture("lenet-24-16", images.input_shape, images.classes)
    store = Store(folder / "store")

    def trained() -> str:
        (one,) = train_dense(initial_tickets(net, [0]), Recipe(epochs=1), images, store=store)
        return one.ticket.digest()

    first = trained()
    (entry,) = [path for path in store.folder.iterdir() if path.is_dir()]
    for name in ("ticket.safetensors", "training.json", "parameters.json", "checksums.json"):
        content, unseen = (entry / name).read_bytes(), 0
        for changed in damages(content, count, choice):
            (entry / name).write_bytes(changed)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                same = trained() == first
            unseen += not (same and any("is damaged" in str(one.message) for one in said))
        rows.append(Row(f"store's {name} damaged {count} times: unnoticed or not mended", unseen, "times", goal=NONE))

    unseen = 0
    content = (run / "ticket.safetensors").read_bytes()
    for changed in damages(content, count, choice):
        (folder / "alone.safetensors").write_bytes(changed)
        try:
            Ticket.load(folder / "alone.safetensors")
            unseen += 1
        except ValueError:
            pass
    rows.append(Row(f"ticket file alone damaged {count} times: loaded", unseen, "times", goal=NONE))
    return rows


def disks(folder: Path) -> list[Row]:
    """A disk that is full half-way, then larger; one that turns read-only with results on it."""
    code, _ = sweep(folder / "wide")
    wanted, problems, misses = tables(folder / "wide"), [], 0
    try:
        with small_disk(folder / "small", "600k") as disk:
            code, out = sweep(disk)
            problems.append(code != 1 or "No space left" not in out or "Traceback" in out)
            remount(disk, "size=200m")
            code, out = sweep(disk)
            misses = sum(tables(disk).get(name) != content for name, content in wanted.items()) + (code != 0)
            remount(disk, "ro")
            code, out = ended(lth(disk, "sweep", "g.yaml"))
            problems.append(code != 2 or "cannot write" not in out or "Traceback" in out)
            code, out = ended(lth(disk, "status", "results"))
            problems.append(code != 0 or "3 done" not in out)
    except PermissionError as error:
        print(f"disks: left out, {error}", file=sys.stderr)
        return []
    return [
        Row("full disk, then read-only disk: messages that are not clear", sum(problems), "messages", goal=NONE),
        Row("full disk, then a larger one: files that differ", misses, "files", goal=NONE),
    ]


def missing(folder: Path) -> list[Row]:
    """Data that is not there, and a GPU without memory (simulated here, and nowhere else): named, the others go on."""
    notebook = json.loads(TRAIN.read_text(encoding="utf-8"))
    failing = "import torch\nraise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')"
    notebook["cells"].insert(2, {**notebook["cells"][2], "id": "full", "source": failing})
    folder.mkdir(parents=True)
    (folder / "oom.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    grid = f"notebooks: ['{TRAIN}', oom.ipynb]\nset: {{dataset: ['folder:nowhere', digits]}}\n"
    code, out = sweep(folder, grid)
    clear = [
        code == 1,
        "no folder 'nowhere/train'" in out,
        out.count("CUDA out of memory. Tried to allocate 2.00 GiB") >= 2,
        "1 done, 0 running, 3 failed, 0 left, of 4" in out,
        "Traceback" not in out,
    ]
    return [
        Row("missing data, GPU out of memory: messages that are not clear", clear.count(False), "messages", goal=NONE)
    ]


def clock(folder: Path) -> list[Row]:
    """Files dated 1980 and 2099: nothing is made again for it, and what is missing is made the same."""
    sweep(folder)
    wanted, stamps = tables(folder), _finished(folder)
    made = different = 0
    for year in (1980, 2099):
        date_files(folder, (year - 1970) * 365.25 * 86400)
        sweep(folder)
        made += sum(_finished(folder).get(name) != stamp for name, stamp in stamps.items())
    Path(next(iter(stamps))).unlink()
    sweep(folder)
    different = sum(tables(folder).get(name) != content for name, content in wanted.items())
    return [
        Row("clock moved: finished runs made again", made, "runs", goal=NONE),
        Row("clock moved: files that differ", different, "files", goal=NONE),
    ]


def many(folder: Path, count: int) -> list[Row]:
    """So many tiny notebooks on four workers: all finish, and the runner's memory stays where it was."""
    folder.mkdir()
    seconds = ", ".join(f"{number / 10_000:.4f}" for number in range(count))
    (folder / "g.yaml").write_text(f"notebooks: ['{SLOW}']\nset: {{seconds: [{seconds}]}}\n", encoding="utf-8")
    start = time.perf_counter()
    runner = lth(folder, "sweep", "g.yaml", "--jobs", "4")
    samples = watched(runner)
    code, _ = ended(runner)
    wall = time.perf_counter() - start
    done = len(_finished(folder))
    later = samples[len(samples) // 4 :]
    return [
        Row(f"{count} notebooks on 4 workers: not finished", count - done + (code != 0), "runs", goal=NONE),
        Row("runner's memory: largest / at a quarter", max(later) / later[0], "x", goal="<= 1.05"),
        Row("runner's memory", statistics.median(later) / 2**20, "MiB"),
        Row(f"{count} notebooks on 4 workers", wall / count, "s a notebook"),
    ]


def overhead(folder: Path, count: int) -> list[Row]:
    """Seconds a notebook takes in the runner beyond papermill's own, one after the other, in turn."""
    import papermill

    from lthlib.workbook.run import run_notebook

    folder.mkdir()
    ours, theirs = [], []
    for number in range(count + 1):
        start = time.perf_counter()
        run_notebook(SLOW, {}, str(folder / str(number) / "slow"))
        middle = time.perf_counter()
        options = {"kernel_name": "python3", "progress_bar": False, "cwd": str(folder)}
        papermill.execute_notebook(SLOW, folder / f"{number}.ipynb", {"out_dir": str(folder)}, **options)
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
    # The first of each imports what it needs.
    extra = statistics.median(mine - plain for mine, plain in zip(ours[1:], theirs[1:], strict=True))
    return [
        Row(f"a tiny notebook beyond papermill's own, median of {count}", extra, "s", goal="<= 1.5"),
        Row("a tiny notebook in papermill alone", statistics.median(theirs[1:]), "s"),
    ]


def soak(folder: Path, times: int, profile: str, notebooks: list[str]) -> list[Row]:
    """A profile again and again, each time from nothing: runs whose metrics differ from the first time's."""
    root, first, different, failed = Path(__file__).parents[1], {}, 0, 0
    for number in range(times):
        out = folder / str(number)
        arguments = ["run", *notebooks, "--profile", profile, "--out", str(out)]
        failed += ended(lth(root, *arguments), 36_000)[0] != 0
        found = {path.relative_to(out): path.read_bytes() for path in out.rglob("metrics.parquet")}
        first = first or found
        different += sum(found.get(name) != content for name, content in first.items())
        digest = blake2b(b"".join(found[name] for name in sorted(found)), digest_size=8).hexdigest()
        told = f"{profile} profile, time {number + 1} of {times}: {len(found)} tables, together {digest}"
        print(f"{told}; {failed} failed, {different} files differ so far", file=sys.stderr, flush=True)
    return [
        Row(f"{profile} profile {times} times ({len(first)} notebooks): failed", failed, "times", goal=NONE),
        Row(f"{profile} profile {times} times: metrics that differ", different, "files", goal=NONE),
    ]


def main() -> None:
    """Prints the rows of all faults, or of those chosen."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="few of each, to see that it runs")
    arguments.add_argument("--kills", type=int, help="instants to kill at (100)")
    arguments.add_argument("--pace", type=float, help="most seconds between two kills (half of a sweep's)")
    arguments.add_argument("--damages", type=int, help="damages to each kind of file (40)")
    arguments.add_argument("--runs", type=int, help="tiny notebooks on four workers (200)")
    arguments.add_argument("--soaks", type=int, help="times to run the profile (10)")
    arguments.add_argument("--soak-profile", default="quick", help="which profile (quick)")
    arguments.add_argument("--soak-notebooks", nargs="*", default=[], metavar="NOTEBOOK", help="which notebooks (all)")
    arguments.add_argument("--only", nargs="*", default=[], metavar="NAME", help="kills damage disks ...; all if none")
    arguments.add_argument("--seed", type=int, default=0, help="of the instants to kill at")
    chosen = arguments.parse_args()
    tiny = chosen.tiny

    def count(given: int | None, few: int, usual: int) -> int:
        return given if given is not None else few if tiny else usual

    profile, notebooks = ("smoke", ["00"]) if tiny else (chosen.soak_profile, chosen.soak_notebooks)
    parts: dict[str, Callable[[Path], list[Row]]] = {
        "kills": lambda folder: kills(folder, count(chosen.kills, 3, 100), chosen.seed, chosen.pace),
        "together": together,
        "damage": lambda folder: damage(folder, count(chosen.damages, 4, 40)),
        "disks": disks,
        "missing": missing,
        "clock": clock,
        "many": lambda folder: many(folder, count(chosen.runs, 4, 200)),
        "overhead": lambda folder: overhead(folder, 2 if tiny else 9),
        "soak": lambda folder: soak(folder, count(chosen.soaks, 2, 10), profile, notebooks),
    }
    rows: list[Row] = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="lth-faults-") as name:
        for part, work in parts.items():
            if not chosen.only or part in chosen.only:
                rows += work(Path(name, part))
                print(f"{part}: {sum(not row.met for row in rows)} goals missed so far", file=sys.stderr, flush=True)
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
