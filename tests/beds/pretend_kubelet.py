"""Plays the node for tests without one: takes Pods of runs, runs them for a moment, and lets them end as a script says. It must not touch Jobs or runs."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mark_crds import names
from mark_crds.job_output import Artifact, ExitCode, Measure, Result
from rest import Rest

NODE = "node1"
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Ending:
    """How the Pods of one attempt end."""

    exit_code: int = 0
    result: Result | None = None
    reason: str = "Completed"
    disrupted: bool = False
    after_seconds: float = 0.1


# The ending for a stage, an attempt and the turn: 1 for the attempt's first Pods, 2 for those after a suspension.
Script = Callable[[str, int, int], Ending]
NEVER = 3600.0


def done(stage: str, _attempt: int = 1, _turn: int = 1) -> Ending:
    """The ending of a stage that does its work."""
    kinds = {"ingest": "collection", "dataPrep": "dataset", "lora": "adapter", "eval": "report"}
    paths = {"collection": "chroma", "dataset": "datasets/abc", "adapter": "adapters/abc", "report": "reports/eval.json"}
    kind = kinds.get(stage)
    artifacts = (Artifact(kind=kind, path=paths[kind], digest="ab" * 32),) if kind else ()
    measures = (Measure(name="tuned.closedBook.f1", value="0.5"),) if stage == "eval" else ()
    return Ending(
        result=Result(stage=stage, outcome="Done", reason="Done", message=f"{stage} is done", artifacts=artifacts, measures=measures)
    )


def trouble(stage: str, code: ExitCode, reason: str = "Trouble", message: str = "it broke") -> Ending:
    """The ending of a stage that fails with a Result."""
    outcomes = {
        ExitCode.USER_MISTAKE: "UserMistake",
        ExitCode.BAD_DATA: "BadData",
        ExitCode.MACHINE_TROUBLE: "MachineTrouble",
        ExitCode.STOPPED: "Stopped",
    }
    result = Result(stage=stage, outcome=outcomes[code], reason=reason, message=message)
    return Ending(exit_code=int(code), result=result, reason="Error")


class PretendKubelet:
    """Runs the Pods of one namespace until its task is cancelled."""

    def __init__(self, rest: Rest, namespace: str, script: Script = done, look_every: float = 0.05) -> None:
        self._rest = rest
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._script = script
        self._look_every = look_every
        self._due: dict[str, float] = {}
        self._endings: dict[str, Ending] = {}
        self._turns: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            for pod in (await self._rest.get(self._pods))["items"]:
                await self._look_at(pod)
            await asyncio.sleep(self._look_every)

    async def _look_at(self, pod: dict[str, Any]) -> None:
        metadata, phase = pod["metadata"], pod["status"].get("phase")
        name, uid = metadata["name"], metadata["uid"]
        now = asyncio.get_running_loop().time()
        if "deletionTimestamp" in metadata:
            if phase in ("Pending", "Running"):
                await self._end(name, Ending(exit_code=int(ExitCode.STOPPED), reason="Error"))
            await self._rest.delete(f"{self._pods}/{name}", {"gracePeriodSeconds": 0})
        elif not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            await self._rest.post(f"{self._pods}/{name}/binding", binding)
        elif phase == "Pending":
            await self._start(name)
            self._endings[uid] = self._ending(pod)
            self._due[uid] = now + self._endings[uid].after_seconds
        elif phase == "Running" and now >= self._due[uid]:
            await self._end(name, self._endings[uid])

    def _ending(self, pod: dict[str, Any]) -> Ending:
        labels = pod["metadata"]["labels"]
        place = f"{labels['job-name']}/{labels['batch.kubernetes.io/job-completion-index']}"
        self._turns[place] += 1
        return self._script(labels[names.STAGE_LABEL], int(labels[names.ATTEMPT_LABEL]), self._turns[place])

    async def _start(self, name: str) -> None:
        state = {"running": {"startedAt": _now()}}
        status = {"phase": "Running", "startTime": _now(), "containerStatuses": [_container(state, ready=True)]}
        await self._rest.patch(f"{self._pods}/{name}/status", {"status": status})

    async def _end(self, name: str, ending: Ending) -> None:
        message = json.dumps(ending.result.to_dict()) if ending.result else ""
        terminated = {"exitCode": ending.exit_code, "reason": ending.reason, "message": message, "finishedAt": _now()}
        status: dict[str, Any] = {
            "phase": "Succeeded" if ending.exit_code == 0 else "Failed",
            "containerStatuses": [_container({"terminated": terminated}, ready=False)],
        }
        if ending.disrupted:
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "lastTransitionTime": _now()}
            status["conditions"] = [condition]
        await self._rest.patch(f"{self._pods}/{name}/status", {"status": status})


async def make_node(rest: Rest) -> None:
    """A node on paper, so that plans find a GPU."""
    await rest.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "1000", GPU: "64"}
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    await rest.patch(f"/api/v1/nodes/{NODE}/status", {"status": status})


def _container(state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    return {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "trainer", "ready": ready, "restartCount": 0, "state": state}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
