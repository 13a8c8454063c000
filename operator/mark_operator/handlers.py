"""Every kopf decorator of the operator.
Each handler only says which run to look at; kopf writes nothing on any object."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from mark_crds import names

from mark_operator.seen import RunKey, essence, is_settled, key_from_labels

CREDENTIALS_LAST = timedelta(minutes=10)
CHILDREN = (("batch", "v1", "jobs"), ("", "v1", "pods"))


class Attention:
    """Which events ask for a look. A run that is settled, a run as our own pass left it, one whose trainer told its
    progress, the children of a settled run and a Job that was just created have nothing new to tell."""

    def __init__(self, look_at: Callable[[RunKey], None], wrote: Callable[[RunKey, Mapping[str, Any]], bool]) -> None:
        self._look_at = look_at
        self._wrote = wrote
        self._settled: set[str] = set()
        self._essences: dict[str, bytes] = {}

    def run(self, body: Mapping[str, Any], event: str | None = None) -> None:
        """A run or a Model, as an event tells of it; without event, as a list does, which repairs what was missed."""
        metadata = body["metadata"]
        key, uid = RunKey(body["kind"], metadata["namespace"], metadata["name"]), metadata["uid"]
        before = self._essences.pop(uid, None)
        if is_settled(body) and event != "DELETED":
            self._settled.add(uid)
            return
        self._settled.discard(uid)
        if event != "DELETED":
            self._essences[uid] = essence(body)
        if event != "MODIFIED" or (before != self._essences[uid] and not self._wrote(key, body)):
            self._look_at(key)

    def child(self, body: Mapping[str, Any], event: str | None) -> None:
        """A Job or a Pod of a run."""
        metadata = body["metadata"]
        labels = dict(metadata.get("labels", {}))
        key = key_from_labels(metadata["namespace"], labels)
        created = event == "ADDED" and body["kind"] == "Job"
        if key is not None and not created and labels.get(names.RUN_UID_LABEL) not in self._settled:
            self._look_at(key)


def registry(attention: Attention, heard: Callable[[], None]) -> kopf.OperatorRegistry:
    """Handlers that say what changed; `heard` is called at every event."""
    handlers = kopf.OperatorRegistry()

    async def on_run(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf names it
        heard()
        attention.run(body, type)

    async def on_child(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf names it
        heard()
        attention.child(body, type)

    for plural in names.PLURALS.values():
        kopf.on.event(names.GROUP, names.VERSION, plural, registry=handlers, id=plural)(on_run)
    for group, version, plural in CHILDREN:
        kopf.on.event(group, version, plural, labels={names.RUN_LABEL: kopf.PRESENT}, registry=handlers, id=plural)(
            on_child
        )
    kopf.on.login(registry=handlers)(login)
    return handlers


def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
    """Credentials that are read anew before a projected token ends."""
    found = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    return dataclasses.replace(found, expiration=datetime.now(UTC) + CREDENTIALS_LAST) if found else None


def watch_settings() -> kopf.OperatorSettings:
    """kopf as a watcher that outlives an absent API server and keeps its own counsel."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoMemory()
    settings.watching.inactivity_timeout = 70
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    # kopf's worker of an object holds on to it until it was idle for so long: after a restart, to all objects at once.
    settings.queueing.idle_timeout = 0.2
    # A list that nobody answers is asked for again, long before anybody would call the watch deaf.
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = _Backoffs()
    for _, _, plural in CHILDREN:
        settings.watching.label_selectors[plural] = names.RUN_LABEL
    return settings


class _NoMemory(kopf.DiffBaseStorage):
    """kopf compares nothing here, so it need not copy every object for a comparison."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("kopf stores nothing on anybody's objects")


class _Backoffs:
    """Pauses between requests that fail:
    growing, jittered, without end. kopf walks through them anew for each request."""

    def __iter__(self) -> Iterator[float]:
        growing = (1.0, 2.0, 4.0, 8.0, 15.0)
        return (pause * random.uniform(0.7, 1.3) for pause in itertools.chain(growing, itertools.repeat(20.0)))
