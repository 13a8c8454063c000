"""Job controller and kubelet in one, for thousands of Jobs on an API server that has neither: each new Job gets its Pod, which runs and ends well."""

import asyncio
import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from mark_crds import names
from pretend_kubelet import done
from rest import Rest

Body = dict[str, Any]
JOBS = "/apis/batch/v1"
PODS = "/api/v1"


class PaperJobs:
    """Brings every Job of a namespace, or those of some runs, to its end until its task is cancelled."""

    def __init__(
        self,
        rest: Rest,
        namespace: str,
        runs: Collection[str] | None = None,
        seconds: float = 0.0,
        hands: int = 16,
    ) -> None:
        self._rest = rest
        self._runs = runs
        self._jobs = f"{JOBS}/namespaces/{namespace}/jobs"
        self._pods = f"{PODS}/namespaces/{namespace}/pods"
        self._seconds = seconds
        self._hands = asyncio.Semaphore(hands)
        self._taken: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                async for kind, job in self._rest.watch(self._jobs):
                    uid = job["metadata"]["uid"]
                    if kind == "ADDED" and uid not in self._taken and self._concerns_us(job):
                        self._taken.add(uid)
                        group.create_task(self._bring_to_its_end(job))

    def _concerns_us(self, job: Body) -> bool:
        if job["status"].get("conditions"):
            return False
        return self._runs is None or job["metadata"]["labels"][names.RUN_LABEL] in self._runs

    async def _bring_to_its_end(self, job: Body) -> None:
        name = job["metadata"]["name"]
        pod = f"{self._pods}/{name}-0-paper"
        async with self._hands:
            await self._rest.post(self._pods, _pod(job))
            await self._status(f"{self._jobs}/{name}", {"active": 1, "ready": 0, "startTime": _now()})
            await self._status(pod, _pod_status("Running", {"running": {"startedAt": _now()}}))
        await asyncio.sleep(self._seconds)
        async with self._hands:
            await self._status(pod, _pod_status("Succeeded", {"terminated": _terminated(job)}))
            await self._status(f"{self._jobs}/{name}", _job_status())

    async def _status(self, path: str, status: Body) -> None:
        await self._rest.patch(f"{path}/status", {"status": status})


def _pod(job: Body) -> Body:
    name, template = job["metadata"]["name"], job["spec"]["template"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
    labels = {**template["metadata"]["labels"], "job-name": name}
    metadata = {"name": f"{name}-0-paper", "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**template["spec"], "nodeName": "paper"}}


def _pod_status(phase: str, state: Body) -> Body:
    container = {
        "name": names.TRAINER_CONTAINER,
        "image": "trainer",
        "imageID": "trainer",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    return {"phase": phase, "startTime": _now(), "containerStatuses": [container]}


def _terminated(job: Body) -> Body:
    ending = done(job["metadata"]["labels"][names.STAGE_LABEL])
    assert ending.result is not None
    return {"exitCode": 0, "reason": "Completed", "message": json.dumps(ending.result.to_dict()), "finishedAt": _now()}


def _job_status() -> Body:
    verdicts = ("SuccessCriteriaMet", "Complete")
    conditions = [
        {"type": verdict, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": _now()}
        for verdict in verdicts
    ]
    return {
        "active": None,
        "ready": 0,
        "succeeded": 1,
        "completionTime": _now(),
        "conditions": conditions,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
