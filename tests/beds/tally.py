"""How many cases the fault suites did: written down case group by case group, so that a long run can be done in parts."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from control_plane import ROOT

WHOLE = os.environ.get("MARK_FAULTS") == "whole"
FILE = ROOT / "build" / "faults.jsonl"


class Tally:
    """Writes one line for each group of cases that came out well."""

    @contextmanager
    def of(self, suite: str, group: str) -> Iterator[Counter[str]]:
        """Counts by name, to be filled in; kept only when nothing was raised."""
        began, counts = time.time(), Counter[str]()
        yield counts
        FILE.parent.mkdir(exist_ok=True)
        line = {"suite": suite, "group": group, "counts": counts, "seconds": round(time.time() - began), "at": time.time()}
        with FILE.open("a") as file:
            file.write(json.dumps(line) + "\n")


def totals_since(moment: float) -> Counter[tuple[str, str]]:
    """The counts of all groups since a moment, by suite and name."""
    totals = Counter[tuple[str, str]]()
    for line in map(json.loads, FILE.read_text().splitlines() if FILE.exists() else ()):
        if line["at"] >= moment:
            totals.update({(line["suite"], name): count for name, count in line["counts"].items()})
    return totals
