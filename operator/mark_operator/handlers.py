"""Every kopf decorator of the operator.
Each handler only says which run to look at; kopf writes nothing on any object."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from mark_crds import names

from mark_operator.seen import RunKey, is_settled, key_from_labels

CREDENTIALS_LAST = timedelta(minutes=10)
CHILDREN = (("batch", "v1", "jobs"), ("", "v1", "pods"))


def registry(look_at: Callable[[RunKey], None], heard: Callable[[], None]) -> kopf.OperatorRegistry:
    """Handlers that pass keys to `look_at`; `heard` is called at every event."""
    handlers = kopf.OperatorRegistry()

    async def on_run(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf names it
        heard()
        if not is_settled(body):
            look_at(RunKey(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]))

    async def on_child(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf names it
        heard()
        key = key_from_labels(body["metadata"]["namespace"], dict(body["metadata"].get("labels", {})))
        if key is not None:
            look_at(key)

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
    settings.watching.inactivity_timeout = 70
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.networking.error_backoffs = _Backoffs()
    for _, _, plural in CHILDREN:
        settings.watching.label_selectors[plural] = names.RUN_LABEL
    return settings


class _Backoffs:
    """Pauses between requests that fail:
    growing, jittered, without end. kopf walks through them anew for each request."""

    def __iter__(self) -> Iterator[float]:
        growing = (1.0, 2.0, 4.0, 8.0, 15.0)
        return (pause * random.uniform(0.7, 1.3) for pause in itertools.chain(growing, itertools.repeat(20.0)))
