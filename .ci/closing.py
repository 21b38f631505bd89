"""The closing lines of several calls of pytest, read from a log, as one: `closing.py LOG [--retried] [--keep SECONDS]`.

With --retried, failures are left out: each was tried again in a later call, and passed. With --keep the counts go to
results/reference/nightly.json too, with the date, the commit, the processor and the seconds.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLOSING = re.compile(r"^=*\s*((?:\d+ \w+, )*\d+ \w+) in ([\d.]+)s", re.MULTILINE)


def closing(log: str, retried: bool = False) -> tuple[dict[str, int], float]:
    """The counts of all calls together by their kind, and their seconds; without failures if these were `retried`."""
    counts: Counter[str] = Counter()
    calls = CLOSING.findall(log)
    for text, _ in calls:
        counts.update({kind.removesuffix("s"): int(count) for count, kind in re.findall(r"(\d+) (\w+)", text)})
    left_out = {"deselected", *(("failed", "error") if retried else ())}
    return {kind: count for kind, count in counts.items() if kind not in left_out}, sum(
        float(took) for _, took in calls
    )


def main() -> None:
    """Prints the closing line of all, and keeps it where asked to."""
    counts, seconds = closing(Path(sys.argv[1]).read_text(errors="replace"), "--retried" in sys.argv)
    if "--keep" in sys.argv:
        from lthlib.workbook.machine import processor

        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        facts = {"date": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip()}
        facts |= {"processor": processor(), "seconds": int(sys.argv[sys.argv.index("--keep") + 1])}
        kept = {**facts, "passed": 0, "failed": 0, **counts}
        (ROOT / "results" / "reference" / "nightly.json").write_text(json.dumps(kept, indent=2) + "\n")
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), f"in {seconds:.2f}s")


if __name__ == "__main__":
    main()
