"""All notebooks in the smoke profile, run once a session for every test that reads what they leave.

The first test that asks runs them with the workbook's own runner on all cores; those in other workers of pytest wait.
`LTH_SMOKE` names a folder that several calls of pytest share, as `./run_all.sh test` does.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from lthlib.workbook.machine import cores
from lthlib.workbook.profiles import longest_first, plan
from lthlib.workbook.run import Outcome, Task, run_all

# The second pass takes them in the other order: other neighbours, the same bits.
ORDERS: dict[str, Callable[[list[Task]], list[Task]]] = {
    "first": longest_first,
    "again": lambda tasks: longest_first(tasks)[::-1],
}


def smoke_pass(folder: Path, name: str) -> tuple[dict[str, Task], dict[str, Outcome]]:
    """The tasks of a pass, `first` or `again`, and what became of each, by notebook; runs them if nothing has yet."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    tasks = plan([], "smoke", [], str(place))
    record = place / "outcomes.json"
    with FileLock(folder / "smoke.lock"):  # of both passes: either takes all cores
        if not record.exists():
            outcomes = [asdict(outcome) for outcome in run_all(ORDERS[name](tasks), jobs=cores())]
            record.write_text(json.dumps(outcomes))
    outcomes = [Outcome(**outcome) for outcome in json.loads(record.read_text())]
    return {task.name: task for task in tasks}, {outcome.notebook: outcome for outcome in outcomes}


def smoke_folder(base: Path) -> Path:
    """Where the passes of this test run lie: in `LTH_SMOKE`, else in the folder that all workers of pytest share."""
    if named := os.environ.get("LTH_SMOKE"):
        return Path(named)
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
