"""Leader election by a Lease: one replica acts, the others stand by. What leads is cancelled as soon as the Lease is
lost."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from mark_operator.cluster import ApiError, Cluster
from mark_operator.seen import Body
from mark_operator.settings import Settings

log = logging.getLogger(__name__)

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


class LeaseLostError(Exception):
    """Another replica leads, or this one could not renew in time."""


class Lease:
    """One Lease object and this replica's claim on it."""

    def __init__(self, cluster: Cluster, settings: Settings, identity: str) -> None:
        self._cluster = cluster
        self._namespace = settings.operator_namespace
        self._name = settings.lease_name
        self._timings = settings.timings
        self._identity = identity
        self._observed: tuple[str, float] = ("", 0.0)
        self.held = False

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, then work while it is held. It is given back when the work ends, however it ends."""
        log.info("standing by as %s", self._identity)
        while not await self._try():
            await asyncio.sleep(self._timings.renew_seconds)
        log.info("leading as %s", self._identity)
        self.held = True
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._renew())
                await group.create_task(_finish(work, renewing))
        finally:
            self.held = False
            await self._give_back()

    async def _renew(self) -> None:
        """Renew until that fails for too long. A margin is left: this leader has stopped before another may start."""
        loop = asyncio.get_running_loop()
        longest = self._timings.lease_seconds * 2 / 3
        last = loop.time()
        while True:
            await asyncio.sleep(self._timings.renew_seconds)
            asked = loop.time()
            try:
                async with asyncio.timeout_at(last + longest):
                    renewed = await self._try()
            except TimeoutError:
                renewed = False
            if renewed:
                last = asked
            elif loop.time() >= last + longest:
                raise LeaseLostError(f"the Lease {self._name} could not be renewed")

    async def _try(self) -> bool:
        """Take or renew the Lease; False when somebody else holds it, or nobody answers."""
        try:
            found = await self._cluster.get("Lease", self._namespace, self._name)
            if found is None:
                await self._cluster.create(self._object({}, {"leaseTransitions": 0}))
                return True
            spec = found.get("spec", {})
            mine = spec.get("holderIdentity") == self._identity
            if not mine and not self._is_free(spec):
                return False
            kept = spec if mine else {"leaseTransitions": spec.get("leaseTransitions", 0) + 1}
            await self._cluster.replace(self._object(found["metadata"], kept))
        except ApiError as error:
            if not error.is_transient and not error.exists_already:
                raise
            log.warning("the Lease %s: %s", self._name, error)
            return False
        return True

    def _is_free(self, spec: Body) -> bool:
        """Whether the holder is gone: it gave the Lease back, or it has not renewed it for its whole duration by our
        own clock."""
        if not spec.get("holderIdentity"):
            return True
        now = asyncio.get_running_loop().time()
        renewed = f"{spec['holderIdentity']} {spec.get('renewTime')}"
        if self._observed[0] != renewed:
            self._observed = (renewed, now)
        duration = int(spec.get("leaseDurationSeconds", self._timings.lease_seconds))
        return now - self._observed[1] > duration

    async def _give_back(self) -> None:
        """Clear the holder, so that a successor need not wait."""
        try:
            found = await self._cluster.get("Lease", self._namespace, self._name)
            if found and found.get("spec", {}).get("holderIdentity") == self._identity:
                await self._cluster.replace({**found, "spec": {**found["spec"], "holderIdentity": ""}})
        except ApiError as error:
            log.warning("the Lease %s was not given back: %s", self._name, error)

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
