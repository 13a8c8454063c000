"""Plays the node for tests without one: takes Pods of runs, runs them for a moment, and lets them end as a script says. It must not touch Jobs or runs."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mark_crds import names
from mark_crds.job_output import Adopted, Artifact, ExitCode, Measure, Result
from mark_operator.job_facts import REQUIRED_ARTIFACTS
from rest import Refused, Rest

NODE = "node1"
GPU = "nvidia.com/gpu"
# A trainer that is asked to end saves a checkpoint first. Were it quicker than the Job controller hears of the deletion, a suspended Job would fail.
END_SECONDS = 0.5


@dataclass(frozen=True)
class Ending:
    """How the Pods of one attempt end."""

    exit_code: int = 0
    result: Result | None = None
    reason: str = "Completed"
    disrupted: bool = False
    after_seconds: float = 0.1
    words: str | None = None
    """The termination message as it stands, instead of a Result."""
    waits: str | None = None
    """Why the container never starts, as the kubelet words it."""
    wordless: bool = False
    """Whether the Pod fails as a whole, and its container is never heard of."""
    deaf: bool = False
    """Whether the container ignores SIGTERM, so that it is killed after its grace period."""
    clock_seconds: float = 0.0
    """How much the clock of the Pod's node is fast; negative for slow."""
    together: int = 0
    """How many ranks end at one moment, once all of them run; 0 for each by itself."""
    others: "Ending | None" = None
    """How the Pods of the other ranks end; absent for as this one."""


# The ending for a stage, an attempt and the turn: 1 for the attempt's first Pods, 2 for those after a suspension.
Script = Callable[[str, int, int], Ending]
NEVER = 3600.0


def done(stage: str, _attempt: int = 1, _turn: int = 1) -> Ending:
    """The ending of a stage that does its work."""
    paths = {
        "collection": "chroma",
        "dataset": "datasets/abc",
        "adapter": "adapters/abc",
        "rewardModel": "reward-models/abc",
        "report": "reports/eval.json",
    }
    kind = REQUIRED_ARTIFACTS.get(stage)
    artifacts = (Artifact(kind=kind, path=paths[kind], digest="ab" * 32),) if kind else ()
    measures = (Measure(name="tuned.closedBook.f1", value="0.5"),) if stage == "eval" else ()
    return Ending(
        result=Result(stage=stage, outcome="Done", reason="Done", message=f"{stage} is done", artifacts=artifacts, measures=measures)
    )


def adopted() -> Ending:
    """The ending of a preflight that finds the whole work done by an earlier run."""
    earlier = Adopted(run_uid="the-first-one", finished="2026-01-01T00:00:00Z")
    found = [done(stage).result for stage in ("dataPrep", "lora", "eval")]
    artifacts = tuple(artifact for result in found if result is not None for artifact in result.artifacts)
    result = Result(
        stage="preflight", outcome="Adopted", reason="AlreadyDone", message="done before", adopted=earlier, artifacts=artifacts
    )
    return Ending(result=result, after_seconds=0)


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
        self._known: dict[str, dict[str, Any]] = {}
        self._bound: set[str] = set()
        self._due: dict[str, float] = {}
        self._endings: dict[str, Ending] = {}
        self._turns: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            while True:
                for pod in list(self._known.values()):
                    await self._look_at(pod)
                await asyncio.sleep(self._look_every)

    async def _listen(self) -> None:
        while True:
            async with aclosing(self._rest.watch(self._pods)) as events:
                async for kind, pod in events:
                    self._learn(pod, gone=kind == "DELETED")

    def _learn(self, pod: dict[str, Any], gone: bool = False) -> None:
        """Keep the newest version of a Pod, whichever way it comes."""
        if pod.get("kind") != "Pod":
            return  # the answer that it is gone
        uid, known = pod["metadata"]["uid"], self._known.get(pod["metadata"]["uid"])
        if gone:
            self._known.pop(uid, None)
        elif known is None or int(known["metadata"]["resourceVersion"]) < int(pod["metadata"]["resourceVersion"]):
            self._known[uid] = pod

    async def _look_at(self, pod: dict[str, Any]) -> None:
        metadata, phase = pod["metadata"], pod["status"].get("phase")
        name, uid = metadata["name"], metadata["uid"]
        now = asyncio.get_running_loop().time()
        ending = self._endings.get(uid)
        if "deletionTimestamp" in metadata:
            if phase in ("Pending", "Running"):
                deaf = ending is not None and ending.deaf
                grace = metadata["deletionGracePeriodSeconds"] if deaf else END_SECONDS
                if now < self._due.setdefault(f"end of {uid}", now + grace):
                    return
                await self._end(name, Ending(exit_code=137 if deaf else int(ExitCode.STOPPED), reason="Error"))
            await self._rest.delete(f"{self._pods}/{name}", {"gracePeriodSeconds": 0})
            self._known.pop(uid, None)
        elif not pod["spec"].get("nodeName"):
            if uid not in self._bound:
                self._bound.add(uid)
                target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
                binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
                try:
                    await self._rest.post(f"{self._pods}/{name}/binding", binding)
                except Refused as refused:
                    if refused.code not in (403, 404):  # the Pod, or its whole namespace, is going
                        raise
        elif phase == "Pending" and ending is None:
            self._endings[uid] = ending = self._ending(pod)
            await self._start(name, ending)
            self._due[uid] = now + ending.after_seconds
        elif phase == "Running" and ending is not None and now >= self._due[uid]:
            await (self._end_together(pod, ending.together) if ending.together else self._end(name, ending))

    async def _end_together(self, pod: dict[str, Any], ranks: int) -> None:
        job = pod["metadata"]["labels"]["job-name"]
        pods = [one for one in self._known.values() if one["metadata"]["labels"].get("job-name") == job]
        if sum(one["status"].get("phase") == "Running" for one in pods) == ranks:
            ends = [(one["metadata"]["name"], self._endings[one["metadata"]["uid"]]) for one in pods]
            # The eviction first: behind another failure, the Job controller could delete the Pod before it.
            for name, ending in sorted(ends, key=lambda end: not end[1].disrupted):
                await self._end(name, ending)

    def _ending(self, pod: dict[str, Any]) -> Ending:
        labels = pod["metadata"]["labels"]
        rank = labels["batch.kubernetes.io/job-completion-index"]
        place = f"{labels['job-name']}/{rank}"
        self._turns[place] += 1
        ending = self._script(labels[names.STAGE_LABEL], int(labels[names.ATTEMPT_LABEL]), self._turns[place])
        return ending if rank == "0" else ending.others or ending

    async def _start(self, name: str, ending: Ending) -> None:
        if ending.waits is not None:
            reason, _, message = ending.waits.partition(": ")
            waiting = {"waiting": {"reason": reason, "message": message}}
            status: dict[str, Any] = {"phase": "Pending", "containerStatuses": [_container(waiting, ready=False)]}
        else:
            running = {"running": {"startedAt": _now()}}
            status = {"phase": "Running", "startTime": _now(), "containerStatuses": [_container(running, ready=True)]}
        self._learn(await self._rest.patch(f"{self._pods}/{name}/status", {"status": status}))

    async def _end(self, name: str, ending: Ending) -> None:
        words = json.dumps(ending.result.to_dict()) if ending.result else ending.words or ""
        terminated = {"exitCode": ending.exit_code, "reason": ending.reason, "message": words, "finishedAt": _now(ending.clock_seconds)}
        status: dict[str, Any] = {"phase": "Succeeded" if ending.exit_code == 0 else "Failed"}
        if not ending.wordless:
            status["containerStatuses"] = [_container({"terminated": terminated}, ready=False)]
        if ending.disrupted:
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "lastTransitionTime": _now()}
            status["conditions"] = [condition]
        self._learn(await self._rest.patch(f"{self._pods}/{name}/status", {"status": status}))


async def make_node(rest: Rest) -> None:
    """A node on paper, so that plans find a GPU."""
    await rest.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "1000", GPU: "64"}
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    await rest.patch(f"/api/v1/nodes/{NODE}/status", {"status": status})


def _container(state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    return {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "trainer", "ready": ready, "restartCount": 0, "state": state}


def _now(fast_seconds: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=fast_seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
