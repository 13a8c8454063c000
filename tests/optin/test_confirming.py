"""Confirming on a real API server with the real operator: once however often it is asked for, recorded, and held by whatever must hold it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from control_plane import ApiServer
from fault_proxy import FaultProxy
from mark_command import mark
from mark_crds import names
from operator_bed import UNHURRIED, stage
from workloads import Person, Workload

Body = dict[str, Any]
ON: Body = {"dryRun": False, "confirm": True}
FEW_SECONDS = 2
pytestmark = pytest.mark.slow


class NoFreezeToBeSeen(FaultProxy):
    """Answers everything but the stop switch."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith(f"/configmaps/{names.FREEZE_NAME}"):
            status = {
                "kind": "Status",
                "status": "Failure",
                "reason": "Forbidden",
                "message": "not for you",
                "code": 403,
            }
            return web.json_response(status, status=403)
        return await super()._handle(request)


@asynccontextmanager
async def planned(
    server: ApiServer, folder: Path, **how: Any
) -> AsyncIterator[tuple[tuple[Person, Person], FaultProxy]]:
    """A planned run of each kind, and the operator behind its proxy."""
    bed = Workload("bed", _nobody)
    async with stage(server, bed, folder / "operator.log", **{"timings": UNHURRIED, **how}) as (
        person,
        proxy,
        _,
        namespace,
    ):
        people = (person, Person(person.rest, namespace, "EvalRun", "run"))
        await person.create(bed.manifest)
        await people[1].create(Workload("bed", _nobody, kind="EvalRun").manifest)
        await each(people, Person.planned)
        yield people, proxy


async def _nobody(_: Person) -> None:
    """For a story that nobody tells."""


async def each(people: tuple[Person, Person], act: Callable[[Person], Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*(act(person) for person in people))


def reason(run: Body) -> str:
    return str(next(item["reason"] for item in run["status"]["conditions"] if item["type"] == "Progressing"))


async def held(person: Person, why: str) -> Body:
    """The run once it says so, and still some seconds later; there is no Job."""
    await person.until(lambda run: reason(run) == why, why)
    await asyncio.sleep(FEW_SECONDS)
    run = await person.see()
    assert reason(run) == why and "startedAt" not in run["status"]
    assert (await person.rest.get(person.jobs))["items"] == []
    return run


async def succeeds(person: Person) -> Body:
    return await person.in_state("Succeeded")


async def hash_of(person: Person) -> str:
    return str((await person.planned())["status"]["plan"]["hash"])


def core(person: Person, resource: str) -> str:
    return person.jobs.replace("/apis/batch/v1", "/api/v1").replace("jobs", resource)


async def freeze(person: Person, **data: str) -> None:
    switch = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": names.FREEZE_NAME}, "data": data}
    await person.rest.post(core(person, "configmaps"), switch)


def test_a_hundred_confirmations_at_once_make_one_job_and_one_record(plane: ApiServer, tmp_path: Path) -> None:
    async def confirm(person: Person) -> None:
        right = await hash_of(person)
        await asyncio.gather(*(person.change(**ON, confirmPlan=right, confirmedBy="admin") for _ in range(100)))
        run = await succeeds(person)
        assert (run["spec"]["confirmPlan"], run["spec"]["confirmedBy"]) == (right, "admin")
        record = run["status"]["confirmation"]
        assert (record["planHash"], record["by"]) == (right, "admin") and record["at"].endswith("Z")
        events = (await person.rest.get(core(person, "events")))["items"]
        told = [
            event
            for event in events
            if event["reason"] == "Confirmed" and event["involvedObject"]["kind"] == run["kind"]
        ]
        assert [event["message"] for event in told] == [f"Plan {right} was confirmed by admin"]

    async def story() -> None:
        async with planned(plane, tmp_path) as (people, proxy):
            await each(people, confirm)
            await asyncio.sleep(FEW_SECONDS)
            jobs = {name: count for (resource, name), count in proxy.ledger.of("POST").items() if resource == "jobs"}
            assert sorted(name for name in jobs if "preflight" in name) == ["run-e-preflight-1", "run-t-preflight-1"]
            assert set(jobs.values()) == {1}

    asyncio.run(story())


def test_a_plan_is_read_with_kubectl_alone_and_has_the_hash_of_the_offline_one(
    plane: ApiServer, tmp_path: Path
) -> None:
    async def read(person: Person) -> None:
        run = await person.planned()
        kind, namespace = run["kind"], run["metadata"]["namespace"]
        text = await asyncio.to_thread(plane.must, "describe", kind.lower(), "run", "-n", namespace)
        summary = text.split("Summary:")[1]
        assert (
            all(line in summary for line in run["status"]["plan"]["summary"]) and run["status"]["plan"]["hash"] in text
        )
        assert text.rstrip().endswith(run["status"]["plan"]["confirmCommand"]), "the last Event tells how to confirm"
        file, settings = tmp_path / f"{kind}.yaml", tmp_path / "settings.yaml"
        manifest = Workload("bed", _nobody, kind=kind).manifest
        file.write_text(json.dumps({**manifest, "metadata": {"name": "run", "namespace": namespace}}))
        settings.write_text("trainerImage: localhost/mark-trainer:test\n")
        offline = await asyncio.to_thread(mark, "plan", "-f", str(file), "--settings", str(settings), "-o", "json")
        plan = json.loads(offline.out)
        assert plan["hash"] == run["status"]["plan"]["hash"] and plan["stages"] == run["status"]["plan"]["stages"]

    async def story() -> None:
        async with planned(plane, tmp_path) as (people, _):
            for person in people:
                await read(person)

    asyncio.run(story())


def test_the_hash_alone_counts_where_the_administrator_asks_for_it(plane: ApiServer, tmp_path: Path) -> None:
    async def refuse(person: Person) -> None:
        await person.change(**ON)
        await held(person, "PlanHashRequired")
        await person.change(confirmPlan="0" * 64)
        await held(person, "PlanChanged")

    async def allow(person: Person) -> None:
        await person.change(confirmPlan=(await person.see())["status"]["plan"]["hash"])
        await succeeds(person)

    async def story() -> None:
        async with planned(plane, tmp_path, approval="PlanHash") as (people, _):
            await each(people, refuse)
            await each(people, allow)

    asyncio.run(story())


def test_the_field_alone_counts_where_the_administrator_says_so(plane: ApiServer, tmp_path: Path) -> None:
    async def refuse(person: Person) -> None:
        await person.change(**ON, confirmPlan="0" * 64)
        await held(person, "PlanChanged")
        await person.delete()

    async def story() -> None:
        async with planned(plane, tmp_path, approval="Field") as (people, _):
            await each(people, refuse)
            for person, kind in zip(people, ("TrainingRun", "EvalRun"), strict=True):
                await person.create(Workload("bed", _nobody, kind=kind, spec=ON).manifest)
            await each(people, succeeds)

    asyncio.run(story())


def test_an_old_plan_must_be_made_anew_and_confirmed_again(plane: ApiServer, tmp_path: Path) -> None:
    async def expire(person: Person) -> None:
        right = await hash_of(person)
        await asyncio.sleep(7)
        await person.change(**ON, confirmPlan=right)
        await held(person, "PlanExpired")

    async def renew(person: Person) -> None:
        old = (await person.see())["status"]["plan"]
        await person.change(confirm=False)
        await person.until(lambda run: run["status"]["plan"]["plannedAt"] > old["plannedAt"], "made anew")
        await person.change(**ON, confirmPlan=old["hash"])
        await succeeds(person)

    async def story() -> None:
        async with planned(plane, tmp_path, plan_expiry_seconds=6) as (people, _):
            await each(people, expire)
            await each(people, renew)

    asyncio.run(story())


def test_a_freeze_is_flipped_while_the_operator_runs_and_leaves_alone_what_has_started(
    plane: ApiServer, tmp_path: Path
) -> None:
    async def wait(person: Person) -> None:
        await person.change(**ON)
        run = await held(person, "Frozen")
        assert "storage maintenance" in run["status"]["conditions"][2]["message"] and run["status"]["state"] == "Queued"

    async def story() -> None:
        async with planned(plane, tmp_path, timings={**UNHURRIED, "checkSeconds": 1}) as (people, _):
            await freeze(people[0], reason="storage maintenance")
            await each(people, wait)
            await people[0].rest.delete(f"{core(people[0], 'configmaps')}/{names.FREEZE_NAME}")
            await each(people, lambda person: person.until(lambda run: "startedAt" in run["status"], "started"))
            await freeze(people[0])
            await each(people, succeeds)

    asyncio.run(story())


def test_a_switch_that_cannot_be_read_is_on(plane: ApiServer, tmp_path: Path) -> None:
    async def wait(person: Person) -> None:
        await person.change(**ON)
        run = await held(person, "Frozen")
        assert "cannot be read, so it counts as on" in run["status"]["conditions"][2]["message"]

    async def story() -> None:
        async with planned(plane, tmp_path, proxy_type=NoFreezeToBeSeen) as (people, _):
            await each(people, wait)

    asyncio.run(story())
