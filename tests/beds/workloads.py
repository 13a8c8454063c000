"""What people and nodes do to runs, as short stories, so that each can be told with and without a fault. It must hold no expectation beyond the end it waits for."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mark_crds import names
from mark_crds.job_output import ExitCode
from pretend_kubelet import NEVER, Ending, Script, done, trouble
from rest import Rest

CLAIM = "mark-workspace"
Body = dict[str, Any]
Story = Callable[["Person"], Awaitable[None]]
WAIT_SECONDS = 120


class Person:
    """Somebody at a terminal: changes one run and looks at it."""

    def __init__(self, rest: Rest, namespace: str, kind: str, name: str) -> None:
        self.rest = rest
        self.runs = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURALS[kind]}"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.path = f"{self.runs}/{name}"
        self._kind, self._name = kind, name

    async def create(self, manifest: Body) -> None:
        await self.rest.post(self.runs, manifest)

    async def change(self, **spec: Any) -> None:
        await self.rest.patch(self.path, {"spec": spec})

    async def delete(self) -> None:
        await self.rest.delete(self.path, {"propagationPolicy": "Background"})

    async def see(self) -> Body:
        return await self.rest.get(self.path)

    async def until(self, holds: Callable[[Body], bool], what: str) -> Body:
        """Look until the run is as wished; fail with what it says of itself."""
        end = asyncio.get_running_loop().time() + WAIT_SECONDS
        run: Body = {}
        while asyncio.get_running_loop().time() < end:
            run = await self.see()
            if holds(run):
                return run
            await asyncio.sleep(0.05)
        raise AssertionError(f"never {what}; the run says {run.get('status')}")

    async def planned(self) -> Body:
        return await self.until(lambda run: bool(run.get("status", {}).get("plan", {}).get("seen")), "planned")

    async def confirm(self) -> None:
        await self.planned()
        await self.change(dryRun=False, confirm=True)

    async def in_state(self, *states: str) -> Body:
        return await self.until(lambda run: run.get("status", {}).get("state") in states, f"in state {' or '.join(states)}")

    async def held(self, stage: str) -> None:
        """Look until no Pod of the stage's first attempt works; the state says Suspended a little earlier."""
        path = f"{self.jobs}/{names.job_name(self._kind, self._name, stage, 1)}"
        end = asyncio.get_running_loop().time() + WAIT_SECONDS
        while asyncio.get_running_loop().time() < end:
            job = await self.rest.get(path)
            if job["spec"].get("suspend") and not job["status"].get("active") and not job["status"].get("terminating"):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the Pods of stage {stage} never ended")

    async def stage_running(self, stage: str) -> Body:
        def runs(run: Body) -> bool:
            stages = run.get("status", {}).get("stages", [])
            return any(item["stage"] == stage and item["state"] == "Running" for item in stages)

        return await self.until(runs, f"at stage {stage}")


@dataclass(frozen=True)
class Workload:
    """One story: a run, what a person does with it, how its Pods end."""

    name: str
    story: Story
    script: Script = done
    spec: Body = field(default_factory=dict)
    kind: str = "TrainingRun"

    @property
    def manifest(self) -> Body:
        training: Body = {
            "baseModel": {"path": "base/tiny-llama"},
            "stages": ["dataPrep", "lora"],
            "lora": {"epochs": 1},
            "resources": {"cpu": "1", "memory": "1Gi"},
            "output": {"model": "transformer-lora"},
        }
        evaluation: Body = {"model": {"path": "adapters/abc"}, "dataset": {"path": "datasets/abc"}}
        own = training if self.kind == "TrainingRun" else evaluation
        spec = {"workspace": {"claimName": CLAIM}, **own, **self.spec}
        return {"apiVersion": names.API_VERSION, "kind": self.kind, "metadata": {"name": "run"}, "spec": spec}


async def _plan(person: Person) -> None:
    await person.planned()


async def _to_success(person: Person) -> None:
    await person.confirm()
    await person.in_state("Succeeded")


async def _to_failure(person: Person) -> None:
    await person.confirm()
    await person.in_state("Failed")


async def _suspend_and_resume(person: Person) -> None:
    await person.confirm()
    await person.stage_running("lora")
    await person.change(suspend=True)
    await person.in_state("Suspended")
    await person.held("lora")
    await person.change(suspend=False)
    await person.in_state("Succeeded")


async def _cancel(person: Person) -> None:
    await person.confirm()
    await person.stage_running("lora")
    await person.change(confirm=False)
    await person.in_state("Cancelled")


async def _delete(person: Person) -> None:
    await person.confirm()
    await person.stage_running("lora")
    await person.delete()


def _bad_data(stage: str, attempt: int, turn: int) -> Ending:
    return trouble(stage, ExitCode.BAD_DATA, "EmptyCorpus", "no PDF file in folder corpus") if stage == "dataPrep" else done(stage)


def _one_retry(stage: str, attempt: int, turn: int) -> Ending:
    return trouble(stage, ExitCode.MACHINE_TROUBLE) if stage == "lora" and attempt == 1 else done(stage)


def _one_eviction(stage: str, attempt: int, turn: int) -> Ending:
    return Ending(exit_code=137, reason="Error", disrupted=True) if stage == "lora" and attempt == 1 else done(stage)


def _endless_lora(stage: str, attempt: int, turn: int) -> Ending:
    return replace(done(stage), after_seconds=NEVER) if stage == "lora" else done(stage)


def _endless_until_suspended(stage: str, attempt: int, turn: int) -> Ending:
    return _endless_lora(stage, attempt, turn) if turn == 1 else done(stage)


WORKLOADS = (
    Workload("plan", _plan),
    Workload("run", _to_success),
    Workload("fail", _to_failure, _bad_data),
    Workload("retry", _to_success, _one_retry),
    Workload("suspend", _suspend_and_resume, _endless_until_suspended),
    Workload("evict", _to_success, _one_eviction),
    Workload("cancel", _cancel, _endless_lora),
    Workload("delete", _delete, _endless_lora),
    Workload("multi-node", _to_success, spec={"resources": {"nodes": 2, "cpu": "1", "memory": "1Gi"}}),
    Workload("evaluate", _to_success, kind="EvalRun"),
)
