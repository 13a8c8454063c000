"""What the operator asked of the API server, read from the server's own audit log. It judges nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

WRITES = ("create", "update", "patch", "delete")
# What a replica does to stay the leader, at its own pace, whatever the runs do.
ASIDE = "leases"


class Call(NamedTuple):
    """One kind of call; `resource` has the subresource behind a slash, `accepted` is no answer of 400 and more."""

    verb: str
    resource: str
    dry_run: bool
    namespace: str
    accepted: bool

    @property
    def writes(self) -> bool:
        """Whether it asks to change what the API server stores. Whose a token is, or a dry run, does not."""
        reviews = self.resource.endswith("reviews")
        return self.verb in WRITES and not self.dry_run and not reviews and self.resource != ASIDE


class AuditLog:
    """The calls since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.take()

    def take(self) -> Counter[Call]:
        """How often each call was answered since the last look."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            lines = log.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        self._offset += sum(map(len, lines))
        return Counter(_call(json.loads(line)) for line in lines)


def writes_of(calls: Counter[Call], namespace: str | None = None) -> Counter[str]:
    """The writes among them, as `verb resource`; with `namespace`, those within it alone."""
    writes: Counter[str] = Counter()
    for call, count in calls.items():
        if call.writes and namespace in (None, call.namespace):
            writes[f"{call.verb} {call.resource}"] += count
    return writes


def _call(event: dict) -> Call:  # type: ignore[type-arg]
    target = event.get("objectRef", {})
    resource = "/".join(part for part in (target.get("resource", "-"), target.get("subresource", "")) if part)
    dry_run = "dryRun" in parse_qs(urlsplit(event["requestURI"]).query)
    accepted = event.get("responseStatus", {}).get("code", 0) < 400
    return Call(event["verb"], resource, dry_run, target.get("namespace", ""), accepted)
