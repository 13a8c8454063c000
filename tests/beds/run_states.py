"""One run of each kind in every state, and in the odd ones beside them, made by the operator's own decisions. It must hold no verdict on them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from mark_crds.run import RunStatus
from mark_operator import clock
from mark_operator.planning import plan
from mark_operator.run.decide import decide
from mark_operator.run.view import View
from mark_operator.seen import Answer, Findings, RunKey, Seen
from run_builders import (
    DIGEST,
    NOON,
    SETTINGS,
    Body,
    a_result,
    a_run,
    all_well,
    evaluating,
    job_with,
    pod_with,
    terminated,
    training,
)

ON: Body = {"dryRun": False, "confirm": True}
SPECS: dict[str, Callable[..., Body]] = {"TrainingRun": training, "EvalRun": evaluating}
PUBLISHED = [
    {"kind": kind, "path": f"{folder}/x", "digest": DIGEST}
    for kind, folder in (("dataset", "datasets"), ("adapter", "adapters"), ("report", "reports"))
]
RESULTS: dict[str, Body] = {
    "adopted": {
        "outcome": "Adopted",
        "adopted": {"runUid": "the-first-one", "finished": "2026-01-01T00:00:00Z"},
        "artifacts": PUBLISHED,
    }
}


class Life:
    """A run, and what the cluster shows of it."""

    def __init__(self, kind: str, **spec: Any) -> None:
        self.key = RunKey(kind, "legal", "contracts")
        self._spec = (
            {"output": {"model": "tuned"}, "stages": ["dataPrep", "lora", "eval"], **spec}
            if kind == "TrainingRun"
            else spec
        )
        self.run = a_run(SPECS[kind](**self._spec), key=self.key)
        self.findings = all_well()
        self.plan: Body | None = None
        self.jobs: dict[str, Body] = {}
        self.pods: dict[str, Body] = {}
        self.now = NOON
        self.written: list[RunStatus] = []

    def change(self, **spec: Any) -> "Life":
        self._spec = {**self._spec, **spec}
        self.run["spec"] = SPECS[self.key.kind](**self._spec)
        self.run["metadata"]["generation"] += 1
        return self.look()

    def look(self, times: int = 1) -> "Life":
        for _ in range(times):
            self._step()
            self.now += timedelta(seconds=1)
        return self

    def confirmed(self) -> "Life":
        return self.look().change(**ON).look(3)

    def pod(self, state: Body, phase: str = "Running") -> "Life":
        """The Pod of the newest Job is in this state."""
        name = list(self.jobs)[-1]
        self.pods[name] = pod_with(self.jobs[name], state, phase)
        return self.look()

    def end(self, code: int = 0, **result: Any) -> "Life":
        """The newest Job ends with these words of its trainer."""
        name = list(self.jobs)[-1]
        stage = self.jobs[name]["metadata"]["labels"]["training.mark.dev/stage"]
        message = a_result(stage, **result)
        self.pods[name] = pod_with(self.jobs[name], terminated(code, message), "Failed" if code else "Succeeded")
        ended = job_with(self.jobs[name], "Failed" if code else "Complete")
        ended["status"]["conditions"][0]["lastTransitionTime"] = clock.text_of(self.now)
        self.jobs[name] = ended
        return self.look(3)

    def to_the_end(self) -> "Life":
        while "finishedAt" not in self.run["status"]:
            self.end()
        return self

    def _step(self) -> None:
        seen = Seen(self.key, copy.deepcopy(self.run), self.plan, tuple(self.jobs.values()), tuple(self.pods.values()))
        view = View(seen, SETTINGS, self.now)
        decision = decide(view, plan(self.key, view.spec, SETTINGS), self.findings)
        for body in decision.create:
            self._create(body)
        for deletion in decision.delete:
            self.jobs.pop(deletion.name, None)
            self.pods.pop(deletion.name, None)
        for suspension in decision.suspend:
            job = self.jobs[suspension.job]
            self.jobs[suspension.job] = {**job, "spec": {**job["spec"], "suspend": suspension.suspend}}
            self.pods.pop(suspension.job, None)
        if decision.status is not None:
            self.run["status"] = decision.status.to_dict()
            self.written.append(decision.status)

    def _create(self, body: Body) -> None:
        name = body["metadata"]["name"]
        if body["kind"] == "ConfigMap":
            self.plan = body
        elif body["kind"] == "Job":
            self.jobs[name] = {**body, "metadata": {**body["metadata"], "uid": f"uid-of-{name}"}}


def _no_claim(kind: str) -> Life:
    life = Life(kind)
    life.findings = replace(life.findings, claim=Answer("Missing"))
    return life.look()


def _frozen(kind: str) -> Life:
    life = Life(kind)
    life.findings = Findings(
        **{**vars(life.findings), "freeze": Answer("Found", ({"data": {"reason": "maintenance"}},))}
    )
    return life.confirmed()


def _unusable(kind: str) -> Life:
    life = Life(kind)
    life.run["spec"]["surprise"] = 1
    return life.look()


RUNNING: Body = {"running": {"startedAt": "2026-01-31T12:00:00Z"}}
# The states of a run, in the order of a life.
STATES: dict[str, Callable[[str], Life]] = {
    "Planning": _no_claim,
    "PlanReady": lambda kind: Life(kind).look(),
    "AwaitingConfirmation": lambda kind: Life(kind, **ON).look(),
    "Queued": lambda kind: Life(kind, queueName="research").confirmed().look(2),
    "Starting": lambda kind: Life(kind).confirmed().look(),
    "Running": lambda kind: Life(kind).confirmed().look().pod(RUNNING),
    "Suspended": lambda kind: Life(kind).confirmed().look().pod(RUNNING).change(suspend=True).look(3),
    "Succeeded": lambda kind: Life(kind).confirmed().look().to_the_end(),
    "Adopted": lambda kind: Life(kind).confirmed().look().end(**RESULTS["adopted"]),
    "Failed": lambda kind: Life(kind).confirmed().look().end(64, outcome="UserMistake", reason="NoBaseModel"),
    "Cancelled": lambda kind: Life(kind).confirmed().look().pod(RUNNING).change(confirm=False).look(3),
}
# What is odd within a state.
ODD: dict[str, Callable[[str], Life]] = {
    "Frozen": _frozen,
    "InvalidSpec": _unusable,
    "HeldByOtherRun": lambda kind: Life(kind).confirmed().look().end(75, outcome="Stopped", reason="Locked"),
    "RetryLater": lambda kind: Life(kind).confirmed().look().end(70, outcome="MachineTrouble", reason="DiskSlow"),
    "PlanChanged": lambda kind: Life(kind).look().change(**ON, confirmPlan="0" * 64).look(),
}


def dump(name: str, kind: str) -> Body:
    """The run as `kubectl get -o yaml` would show it."""
    return {**STATES, **ODD}[name](kind).run
