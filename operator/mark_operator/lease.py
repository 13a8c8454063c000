"""Leader election by a Lease: one replica acts, the others stand by. What leads is cancelled as soon as the Lease is
lost. It must not be late because the leader is busy: renewals have a thread and a connection of their own."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

from mark_operator.cluster import ApiError, Cluster
from mark_operator.seen import Body
from mark_operator.settings import Settings

log = logging.getLogger(__name__)

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
GIVE_BACK_SECONDS = 5.0

Claim = Literal["Ours", "Another's", "Unknown"]


class LeaseLostError(Exception):
    """Another replica leads, or this one could not renew in time."""


class Lease:
    """One Lease object and this replica's claim on it."""

    def __init__(
        self, cluster: Cluster, connect: Callable[[], Awaitable[Cluster]], settings: Settings, identity: str
    ) -> None:
        self._cluster = cluster
        self._connect = connect
        self._namespace = settings.operator_namespace
        self._name = settings.lease_name
        self._timings = settings.timings
        # A margin is left: a leader that did not hear for so long has stopped before another one may start.
        self._longest = settings.timings.lease_seconds * 2 / 3
        self._identity = identity
        self._observed: tuple[str, float] = ("", 0.0)
        self._until = 0.0

    @property
    def held(self) -> bool:
        """Whether this replica may act at this moment. A process that stood still learns it here before the thread that
        renews has found out."""
        return time.monotonic() < self._until

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, then work while it is held. It is given back when the work ends, however it ends."""
        log.info("standing by as %s", self._identity)
        await self._acquire()
        log.info("leading as %s", self._identity)
        try:
            async with _loop_apart() as loop, asyncio.TaskGroup() as group:
                future = asyncio.run_coroutine_threadsafe(self._renew(), loop)
                renewing = group.create_task(_result(future))
                await group.create_task(_finish(work, renewing))
        finally:
            self._until = 0.0
            await self._give_back()

    async def _acquire(self) -> None:
        """Wait for the Lease, which counts from the moment of asking. An answer that took too long is not enough to
        lead: another one may have followed by now."""
        while True:
            asked = time.monotonic()
            if await self._try(self._cluster) == "Ours":
                self._until = asked + self._longest
                if self.held:
                    return
            await asyncio.sleep(self._timings.renew_seconds)

    async def _renew(self) -> None:
        """Renew in a loop of its own. The operator's loop hanging for good is the liveness probe's business."""
        cluster = await self._connect()
        try:
            await self._renew_through(cluster)
        finally:
            await cluster.close()

    async def _renew_through(self, cluster: Cluster) -> None:
        """Renew until another one holds the Lease, or nobody answered for too long."""
        while True:
            await asyncio.sleep(min(self._timings.renew_seconds, self._until - time.monotonic()))
            asked = time.monotonic()
            try:
                async with asyncio.timeout(self._until - asked):
                    claim = await self._try(cluster)
            except TimeoutError as error:
                raise LeaseLostError(f"the Lease {self._name} could not be renewed") from error
            if claim == "Another's":
                raise LeaseLostError(f"another one holds the Lease {self._name}")
            if claim == "Ours":
                self._until = asked + self._longest

    async def _try(self, cluster: Cluster) -> Claim:
        """Take or renew the Lease. A write that somebody else came before is tried once more, which shows whose the
        Lease is by now."""
        for _ in range(2):
            try:
                return "Ours" if await self._claim(cluster) else "Another's"
            except ApiError as error:
                if not error.is_transient:
                    raise
                log.warning("the Lease %s: %s", self._name, error)
                if error.status != 409:
                    break
        return "Unknown"

    async def _claim(self, cluster: Cluster) -> bool:
        """Write our claim; False when another one holds the Lease."""
        found = await cluster.get("Lease", self._namespace, self._name)
        if found is None:
            await cluster.create(self._object({}, {"leaseTransitions": 0}))
            return True
        spec = found.get("spec", {})
        mine = spec.get("holderIdentity") == self._identity
        if not mine and not self._is_free(spec):
            return False
        kept = spec if mine else {"leaseTransitions": spec.get("leaseTransitions", 0) + 1}
        await cluster.replace(self._object(found["metadata"], kept))
        return True

    def _is_free(self, spec: Body) -> bool:
        """Whether the holder is gone: it gave the Lease back, or it has not renewed it for its whole duration by our
        own clock."""
        if not spec.get("holderIdentity"):
            return True
        now = time.monotonic()
        renewed = f"{spec['holderIdentity']} {spec.get('renewTime')}"
        if self._observed[0] != renewed:
            self._observed = (renewed, now)
        duration = int(spec.get("leaseDurationSeconds", self._timings.lease_seconds))
        return now - self._observed[1] > duration

    async def _give_back(self) -> None:
        """Clear the holder, so that a successor need not wait. An API server that does not answer must not keep this
        process from ending."""
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                found = await self._cluster.get("Lease", self._namespace, self._name)
                if found and found.get("spec", {}).get("holderIdentity") == self._identity:
                    await self._cluster.replace({**found, "spec": {**found["spec"], "holderIdentity": ""}})
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease %s was not given back: %s", self._name, str(error) or "no answer")

    def _object(self, metadata: Body, kept: Body) -> Body:
        """The Lease, held by us and renewed now."""
        now = datetime.now(UTC).strftime(TIME_FORMAT)
        mine = {"holderIdentity": self._identity, "leaseDurationSeconds": self._timings.lease_seconds, "renewTime": now}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {**metadata, "name": self._name, "namespace": self._namespace},
            "spec": {"acquireTime": now, **kept, **mine},
        }


async def _finish(work: Callable[[], Awaitable[None]], renewing: asyncio.Task[None]) -> None:
    try:
        await work()
    finally:
        renewing.cancel()


async def _result(future: "Future[None]") -> None:
    await asyncio.wrap_future(future)


@asynccontextmanager
async def _loop_apart() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """An event loop that turns in a thread of its own; what still runs in it at the end is cancelled and waited for."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def turn() -> None:
        over = asyncio.Event()
        begun.set_result((asyncio.get_running_loop(), over))
        await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(turn()), name="lease", daemon=True)
    thread.start()
    loop, over = begun.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(over.set)
        await asyncio.to_thread(thread.join)
