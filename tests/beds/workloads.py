"""What people and nodes do to runs, as short stories, so that each can be told with and without a fault. It must hold no expectation beyond the end it waits for."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from kueue import Kueue
from mark_crds import names
from mark_crds.job_output import ExitCode
from pretend_kubelet import NEVER, Ending, Script, adopted, done, trouble
from rest import Rest

CLAIM = "mark-workspace"
Body = dict[str, Any]
Story = Callable[["Person"], Awaitable[None]]
WAIT_SECONDS = 120
# The stage of each kind that takes long.
WORK = {"TrainingRun": "lora", "EvalRun": "eval"}
LONG = tuple(WORK.values())


class Person:
    """Somebody at a terminal: changes one run and looks at it."""

    def __init__(self, rest: Rest, namespace: str, kind: str, name: str) -> None:
        self.rest = rest
        self.runs = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURALS[kind]}"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.path = f"{self.runs}/{name}"
        self.queue = Kueue(rest, namespace)
        self.kind, self._name = kind, name
        self.patience = WAIT_SECONDS

    async def create(self, manifest: Body) -> None:
        await self.rest.post(self.runs, manifest)

    async def change(self, **spec: Any) -> None:
        await self.rest.patch(self.path, {"spec": spec})

    @property
    def work(self) -> str:
        """The stage that takes long."""
        return WORK[self.kind]

    async def delete(self) -> None:
        await self.rest.delete(self.path, {"propagationPolicy": "Background"})

    async def see(self) -> Body:
        return await self.rest.get(self.path)

    async def until(self, holds: Callable[[Body], bool], what: str) -> Body:
        """Look until the run is as wished; fail with what it says of itself."""
        return await self._until(self.runs, self.path, holds, what)

    async def _until(self, folder: str, path: str, holds: Callable[[Body], bool], what: str) -> Body:
        name, last = path.rsplit("/", 1)[1], {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience):
                while True:
                    async with aclosing(self.rest.watch(folder, fieldSelector=f"metadata.name={name}")) as events:
                        async for kind, item in events:
                            last = item
                            if kind != "DELETED" and holds(item):
                                return item
        raise AssertionError(f"{name} never {what}; its status says {last.get('status')}")

    async def planned(self) -> Body:
        return await self.until(lambda run: bool(run.get("status", {}).get("plan", {}).get("seen")), "planned")

    async def confirm(self) -> None:
        await self.planned()
        await self.change(dryRun=False, confirm=True)

    async def in_state(self, *states: str) -> Body:
        return await self.until(lambda run: run.get("status", {}).get("state") in states, f"in state {' or '.join(states)}")

    async def held(self, stage: str) -> None:
        """Look until no Pod of the stage's first attempt works; the state says Suspended a little earlier."""

        def is_held(job: Body) -> bool:
            return bool(job["spec"].get("suspend")) and not job["status"].get("active") and not job["status"].get("terminating")

        path = f"{self.jobs}/{self.first_job(stage)}"
        await self._until(self.jobs, path, is_held, f"without Pods of stage {stage}")

    def first_job(self, stage: str) -> str:
        """The name of the Job of the stage's first attempt."""
        return names.job_name(self.kind, self._name, stage, 1)

    async def without_jobs(self) -> None:
        """Look until the run has no Job."""
        end = asyncio.get_running_loop().time() + self.patience
        while found := (await self.rest.get(self.jobs))["items"]:
            assert asyncio.get_running_loop().time() < end, f"{self._name} keeps {[job['metadata']['name'] for job in found]}"
            await asyncio.sleep(0.2)

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
    posts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """What the trainer of a stage tells of its progress, one after another, before it falls silent; of other stages it tells the truth."""

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
    await person.stage_running(person.work)
    await person.change(suspend=True)
    await person.in_state("Suspended")
    await person.held(person.work)
    await person.change(suspend=False)
    await person.in_state("Succeeded")


async def _leave_the_queue(person: Person) -> None:
    """Suspended while the first Job waits for its queue, which the Job leaves; and back again."""
    await person.confirm()
    await person.in_state("Queued")
    await person.change(suspend=True)
    await person.in_state("Suspended")
    await person.without_jobs()
    await person.change(suspend=False)
    async with person.queue.admitting():
        await person.in_state("Succeeded")


async def _be_evicted(person: Person) -> None:
    """The queue admits each Job, takes the longest one's admission back, and admits it again."""
    await person.confirm()
    async with person.queue.admitting():
        await person.stage_running(person.work)
    await person.queue.evict(person.first_job(person.work))
    await person.until(_is_evicted, "evicted")
    async with person.queue.admitting():
        await person.in_state("Succeeded")


def _is_evicted(run: Body) -> bool:
    conditions = run.get("status", {}).get("conditions", ())
    return any((item["type"], item["reason"]) == ("Admitted", "Evicted") for item in conditions)


async def _to_clean_up(person: Person) -> None:
    await _to_success(person)
    await person.without_jobs()


async def _cancel(person: Person) -> None:
    await person.confirm()
    await person.stage_running(person.work)
    await person.change(confirm=False)
    await person.in_state("Cancelled")


async def _delete(person: Person) -> None:
    await person.confirm()
    await person.stage_running(person.work)
    await person.delete()


async def _read_again(person: Person) -> None:
    """Confirmed with the hash of another plan, and then with the right one."""
    plan = (await person.planned())["status"]["plan"]
    await person.change(dryRun=False, confirm=True, confirmPlan="0" * 64)
    await person.in_state("AwaitingConfirmation")
    await person.change(confirmPlan=plan["hash"])
    await person.in_state("Succeeded")


async def _to_adoption(person: Person) -> None:
    await person.confirm()
    await person.in_state("Adopted")


def _bad_data(stage: str, attempt: int, turn: int) -> Ending:
    faulty = stage in ("dataPrep", "eval")
    return trouble(stage, ExitCode.BAD_DATA, "EmptyCorpus", "no PDF file in folder corpus") if faulty else done(stage)


def _one_retry(stage: str, attempt: int, turn: int) -> Ending:
    """The first attempt's first rank fails; the others would work on, so that the Job controller always ends them."""
    failing = replace(trouble(stage, ExitCode.MACHINE_TROUBLE), others=replace(done(stage), after_seconds=NEVER))
    return failing if stage in LONG and attempt == 1 else done(stage)


def _one_eviction(stage: str, attempt: int, turn: int) -> Ending:
    return Ending(exit_code=137, reason="Error", disrupted=True) if stage in LONG and attempt == 1 else done(stage)


def _one_rank_evicted(stage: str, attempt: int, turn: int) -> Ending:
    """The first rank's node takes it away; the other one fails for want of it, by its own clock a little earlier."""
    if stage not in LONG or attempt > 1:
        return done(stage)
    bereft = replace(trouble(stage, ExitCode.MACHINE_TROUBLE), clock_seconds=-3.0, together=2)
    return Ending(exit_code=137, reason="Error", disrupted=True, together=2, others=bereft)


def _no_image_at_first(stage: str, attempt: int, turn: int) -> Ending:
    return Ending(waits="ErrImagePull: manifest unknown") if stage in LONG and attempt == 1 else done(stage)


def _endless(stage: str, attempt: int, turn: int) -> Ending:
    return replace(done(stage), after_seconds=NEVER) if stage in LONG else done(stage)


def _endless_until_suspended(stage: str, attempt: int, turn: int) -> Ending:
    return _endless(stage, attempt, turn) if (attempt, turn) == (1, 1) else done(stage)


def _done_before(stage: str, attempt: int, turn: int) -> Ending:
    return adopted()


STORIES = (
    Workload("plan", _plan),
    Workload("run", _to_success),
    Workload("fail", _to_failure, _bad_data),
    Workload("retry", _to_success, _one_retry),
    Workload("suspend", _suspend_and_resume, _endless_until_suspended),
    Workload("evict", _to_success, _one_eviction),
    Workload("cancel", _cancel, _endless),
    Workload("delete", _delete, _endless),
    Workload("confirm", _read_again),
    Workload("adopt", _to_adoption, _done_before),
)
# Whatever counts as a failure ends the run.
ONE_ATTEMPT: Body = {"maxAttempts": 1}
QUEUED: Body = {**ONE_ATTEMPT, "queueName": "research"}
# Longer than a Pod takes to be made and to start on a busy machine.
PENDING: Body = {"pendingDeadlineSeconds": 30}
TTL: Body = {"ttlSecondsAfterFinished": 3}
MULTI_NODE: Body = {"resources": {"nodes": 2, "cpu": "1", "memory": "1Gi"}}
WORKLOADS = (
    *STORIES,
    Workload("multi-node", _to_success, spec=MULTI_NODE),
    Workload("multi-node-retry", _to_success, _one_retry, spec=MULTI_NODE),
    Workload("multi-node-evict", _to_success, _one_rank_evicted, spec={**MULTI_NODE, **ONE_ATTEMPT}),
    Workload("leave-queue", _leave_the_queue, spec=QUEUED),
    Workload("evict-from-queue", _be_evicted, _endless_until_suspended, spec=QUEUED),
    Workload("pending", _to_success, _no_image_at_first, spec=PENDING),
    Workload("clean-up", _to_clean_up, spec=TTL),
    Workload("all-stages", _to_success, spec={"stages": ["ingest", "dataPrep", "lora", "eval"]}),
    *(replace(story, name=f"evaluate-{story.name}", kind="EvalRun") for story in STORIES),
)
