"""A confirmed run that is created again does not train again, however often; another trainingRevision does."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from control_plane import ApiServer
from mark_crds.job_output import LOCKED, ExitCode
from operator_bed import UNHURRIED, stage
from pretend_kubelet import Ending, adopted, done, trouble
from workloads import Person, Workload

TIMES = 100
pytestmark = pytest.mark.slow


class Workspace:
    """What the trainer remembers in `completed/`: a finished revision is adopted, as the real preflight does."""

    def __init__(self, claim_held: int = 0) -> None:
        self.revision = "1"
        self.claim_held = claim_held
        self.completed: set[str] = set()
        self.trained: Counter[str] = Counter()

    def __call__(self, stage: str, attempt: int, turn: int) -> Ending:
        if stage == "preflight" and self.claim_held:
            self.claim_held -= 1
            return trouble(
                stage, ExitCode.STOPPED, LOCKED, "work-abc.lock is held by run other/run (uid 1), stage lora"
            )
        if stage == "preflight" and self.revision in self.completed:
            return adopted()
        if stage == "lora":
            self.trained[self.revision] += 1
            self.completed.add(self.revision)
        return done(stage)


async def replay_key(person: Person) -> str:
    found = await person.rest.get(
        person.jobs.replace("/apis/batch/v1", "/api/v1").replace("jobs", "configmaps/run-t-plan")
    )
    return str(json.loads(found["data"]["job-input.json"])["replayKey"])


async def _nobody(_: Person) -> None:
    """For a story that nobody tells."""


def workload(workspace: Workspace, **spec: object) -> Workload:
    return Workload("replay", _nobody, workspace, spec=spec)


@pytest.mark.timeout(900)
def test_a_confirmed_run_created_a_hundred_times_trains_once(plane: ApiServer, tmp_path: Path) -> None:
    workspace = Workspace()

    async def again(person: Person, plan: str, state: str, **spec: object) -> str:
        on = {"dryRun": False, "confirm": True, "confirmPlan": plan, **spec}
        await person.create(workload(workspace, **on).manifest)
        await person.in_state(state)
        return await replay_key(person)

    async def story() -> None:
        bed = workload(workspace)
        async with stage(plane, bed, tmp_path / "operator.log", timings=UNHURRIED) as (person, proxy, _, _):
            await person.create(bed.manifest)
            plan = str((await person.planned())["status"]["plan"]["hash"])
            await person.delete()
            keys = {await again(person, plan, "Succeeded")}
            for _ in range(TIMES - 1):
                await person.delete()
                keys.add(await again(person, plan, "Adopted"))
            assert workspace.trained == {"1": 1} and len(keys) == 1
            assert proxy.ledger.of("POST")["jobs", "run-t-lora-1"] == 1
            workspace.revision = "2"
            await person.delete()
            await person.create(workload(workspace, trainingRevision="2").manifest)
            other = str((await person.planned())["status"]["plan"]["hash"])
            await person.change(dryRun=False, confirm=True, confirmPlan=other)
            await person.in_state("Succeeded")
            assert workspace.trained == {"1": 1, "2": 1} and await replay_key(person) not in keys

    asyncio.run(story())


def test_the_second_of_two_clusters_waits_without_using_up_its_attempts(plane: ApiServer, tmp_path: Path) -> None:
    workspace = Workspace(claim_held=4)
    workspace.completed.add("1")

    async def story() -> None:
        bed = workload(workspace, maxAttempts=1)
        async with stage(plane, bed, tmp_path / "operator.log", timings=UNHURRIED) as (person, _, _, _):
            await person.create(bed.manifest)
            await person.confirm()
            waiting = await person.in_state("Queued")
            assert waiting["status"]["conditions"][2]["reason"] == "HeldByOtherRun"
            assert "held by run other/run (uid 1), stage lora" in waiting["status"]["conditions"][2]["message"]
            run = await person.in_state("Adopted")
            (preflight,) = run["status"]["stages"]
            assert (preflight["attempt"], preflight["countedFailures"]) == (1, 0), "no number of turns is too many"
            assert workspace.trained == Counter()

    asyncio.run(story())
