"""Plays Kueue for tests without it: the changes that it makes to Jobs, one by one as it makes them. It must not touch runs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mark_crds import names
from rest import Rest

Body = dict[str, Any]
GATE = "kueue.x-k8s.io/topology"
LOOK_SECONDS = 0.1


class Kueue:
    """What Kueue does to the Jobs of a namespace: it admits by one change, and evicts by three, in this order."""

    def __init__(self, rest: Rest, namespace: str) -> None:
        self._rest = rest
        self._jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    async def job(self, name: str) -> Body:
        return await self._rest.get(f"{self._jobs}/{name}")

    async def admit(self, name: str, gates: Sequence[str] = ()) -> None:
        """Let the Job go; with gates, its Pods wait for more."""
        pod = {
            "metadata": {"labels": {"kueue.x-k8s.io/podset": "main"}, "annotations": {"kueue.x-k8s.io/workload": "w"}},
            "spec": {
                "nodeSelector": {"flavor": "h100"},
                "tolerations": [{"key": "spot", "operator": "Exists"}],
                "schedulingGates": [{"name": gate} for gate in gates],
            },
        }
        await self._rest.patch(f"{self._jobs}/{name}", {"spec": {"suspend": False, "template": pod}})

    @asynccontextmanager
    async def admitting(self) -> AsyncIterator[None]:
        """Admit every Job that waits in a queue, as long as the block lasts."""
        task = asyncio.create_task(self._admit_all())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _admit_all(self) -> None:
        while True:
            for job in (await self._rest.get(self._jobs))["items"]:
                if _waits(job):
                    await self.admit(job["metadata"]["name"])
            await asyncio.sleep(LOOK_SECONDS)

    async def evict(self, name: str) -> None:
        path = f"{self._jobs}/{name}"
        await self._rest.patch(path, {"spec": {"suspend": True}})
        while True:
            status = (await self.job(name))["status"]
            if not status.get("active") and not status.get("terminating"):
                break
            await asyncio.sleep(0.05)
        await self._rest.patch(f"{path}/status", {"status": {"startTime": None}})
        restored = {"nodeSelector": None, "tolerations": None, "schedulingGates": None}
        await self._rest.patch(path, {"spec": {"template": {"spec": restored}}})

    async def pods(self, name: str) -> list[Body]:
        found: list[Body] = (await self._rest.get(f"{self._pods}?labelSelector=job-name={name}"))["items"]
        return found

    async def release(self, name: str) -> Body:
        """Take the scheduling gate off the Job's Pod, as soon as there is one; the Pod."""
        while not (found := [pod for pod in await self.pods(name) if pod["spec"].get("schedulingGates")]):
            await asyncio.sleep(0.05)
        await self._rest.patch(f"{self._pods}/{found[0]['metadata']['name']}", {"spec": {"schedulingGates": []}})
        return found[0]


def _waits(job: Body) -> bool:
    metadata = job["metadata"]
    queued = names.QUEUE_LABEL in metadata["labels"] and "deletionTimestamp" not in metadata
    return queued and bool(job["spec"].get("suspend"))
