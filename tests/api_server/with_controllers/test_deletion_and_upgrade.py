"""Deletion and upgrade on a real API server with real controllers: nothing hangs, nothing is left, nothing runs twice."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from careful_kubelet import CarefulKubelet, careful
from control_plane import ApiServer
from fault_proxy import Trouble
from mark_crds import names
from operator_bed import CHILDREN, REPLACED_SOON, stage
from pretend_kubelet import NEVER, Ending, done
from workloads import Person, Workload

pytestmark = pytest.mark.slow
Body = dict[str, Any]
NAMES, TIMES = 5, 10  # runs at once, and how often each is deleted and made anew: 50 times in all
# The namespace controller looks again after half of the longest grace period of a Pod that it finds.
GRACE_SECONDS, GONE_SECONDS = 10, 60


async def _nothing(_: Person) -> None:
    return None


def _endless_lora(stage_name: str, _attempt: int, _turn: int) -> Ending:
    return replace(done(stage_name), after_seconds=NEVER) if stage_name == "lora" else done(stage_name)


def _endless(stage_name: str, _attempt: int, _turn: int) -> Ending:
    return replace(done(stage_name), after_seconds=NEVER)


ENDLESS = Workload("endless", _nothing, _endless)


async def children(person: Person, namespace: str) -> list[str]:
    """Everything in the namespace that a run can own."""
    found = []
    for resource, group in CHILDREN.items():
        for item in (await person.rest.get(f"{group}/namespaces/{namespace}/{resource}"))["items"]:
            if names.RUN_LABEL in item["metadata"].get("labels", {}):
                found.append(f"{resource}/{item['metadata']['name']}")
    return found


async def gone(person: Person, namespace: str) -> None:
    end = time.monotonic() + GONE_SECONDS
    while left := await children(person, namespace):
        assert time.monotonic() < end, f"orphans: {left}"
        await asyncio.sleep(0.2)


async def tell_again_and_again(plane: ApiServer, folder: Path) -> None:
    kept: list[CarefulKubelet] = []
    async with stage(plane, ENDLESS, folder / "log", kubelet_type=careful(kept), timings=REPLACED_SOON) as (person, _, _, namespace):

        async def one(name: str) -> None:
            mine = Person(person.rest, namespace, "TrainingRun", name)
            for turn in range(TIMES):
                await mine.create({**ENDLESS.manifest, "metadata": {"name": name}})
                await mine.confirm()
                end = time.monotonic() + GONE_SECONDS
                while sum(pod.startswith(f"{name}-t-") for pod in kept[0].started) <= turn:
                    assert time.monotonic() < end, f"{name} does not start: {(await mine.see())['status']['conditions']}"
                    await asyncio.sleep(0.02)
                await mine.delete()
                while name in [run["metadata"]["name"] for run in (await person.rest.get(person.runs))["items"]]:
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(one(f"run-{number}") for number in range(NAMES)))
        assert kept[0].together == [], "two writers on one workspace"
        assert len(kept[0].started) == NAMES * TIMES, "every run started once"
        await gone(person, namespace)


def test_delete_and_create_while_pods_terminate_fifty_times(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_again_and_again(plane, tmp_path))


async def tell_deletion_without_operator(plane: ApiServer, folder: Path) -> None:
    """Neither the run nor its children need the operator to go."""
    async with stage(plane, ENDLESS, folder / "log", kubelet_type=careful([]), timings=REPLACED_SOON) as (person, proxy, process, namespace):
        await person.create({**ENDLESS.manifest, "spec": {**ENDLESS.manifest["spec"], "resources": {"nodes": 2}}})
        await person.confirm()
        await person.stage_running("preflight")
        for resource, group in CHILDREN.items():
            for item in (await person.rest.get(f"{group}/namespaces/{namespace}/{resource}"))["items"]:
                if resource != "pods":  # the Job controller counts Pods with a finalizer of its own
                    assert not item["metadata"].get("finalizers"), item["metadata"]
        assert not (await person.see())["metadata"].get("finalizers")
        proxy.begin(Trouble("cut", 0, 3600))
        await process.kill()
        await person.delete()
        while (await person.rest.get(person.runs))["items"]:
            await asyncio.sleep(0.05)
        await gone(person, namespace)


def test_a_run_is_deleted_without_the_operator(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_deletion_without_operator(plane, tmp_path))


async def tell_namespace(plane: ApiServer, folder: Path) -> None:
    """A namespace with a running, a queued and a planned run; the operator's Lease lies elsewhere."""
    elsewhere = {"operator_namespace": "default", "lease_name": f"of-{folder.name[:20].replace('_', '-')}"}
    async with stage(plane, ENDLESS, folder / "log", timings=REPLACED_SOON, **elsewhere) as (person, _, process, namespace):
        grace: Body = {"terminationGracePeriodSeconds": GRACE_SECONDS}
        specs: dict[str, Body] = {"running": {}, "queued": {"queueName": "research"}, "planned": {}}
        people = {name: Person(person.rest, namespace, "TrainingRun", name) for name in specs}
        for name, spec in specs.items():
            manifest = {**ENDLESS.manifest, "spec": {**ENDLESS.manifest["spec"], **grace, **spec}, "metadata": {"name": name}}
            await people[name].create(manifest)
            await people[name].planned()
        await people["running"].confirm()
        await people["queued"].confirm()
        await people["running"].stage_running("preflight")
        await people["queued"].in_state("Queued")
        await person.rest.delete(f"/api/v1/namespaces/{namespace}")
        end = time.monotonic() + GONE_SECONDS
        while left := [item for item in (await person.rest.get("/api/v1/namespaces"))["items"] if item["metadata"]["name"] == namespace]:
            assert time.monotonic() < end, f"the namespace hangs: {left[0]['status'].get('conditions')}"
            await asyncio.sleep(0.2)
        assert "the pass failed" not in process.log, process.log[-3000:]


def test_a_namespace_with_live_runs_goes_and_nothing_hangs(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_namespace(plane, tmp_path))


async def tell_upgrade(plane: ApiServer, folder: Path) -> None:
    """Live runs in every stage of life; then an operator with another image, other users and other accounts in its settings."""
    workload = replace(ENDLESS, script=_endless_lora)
    async with stage(plane, workload, folder / "log", kubelet_type=careful([]), timings=REPLACED_SOON) as (person, proxy, process, namespace):
        specs: dict[str, Body] = {"live": {}, "queued": {"queueName": "q"}, "held": {}, "planned": {}, "done": {"stages": ["dataPrep"]}}
        people = {name: Person(person.rest, namespace, "TrainingRun", name) for name in specs}
        for name, spec in specs.items():
            manifest = {**workload.manifest, "spec": {**workload.manifest["spec"], **spec}, "metadata": {"name": name}}
            await people[name].create(manifest)
            await people[name].planned()
        for name in ("live", "queued", "held", "done"):
            await people[name].confirm()
        await people["live"].stage_running("lora")
        await people["held"].stage_running("lora")
        await people["held"].change(suspend=True)
        await people["held"].in_state("Suspended")
        await people["queued"].in_state("Queued")
        await people["done"].in_state("Succeeded")
        await asyncio.sleep(1)
        before = await _objects(person, namespace)
        plan = (await people["planned"].see())["status"]["plan"]["hash"]
        creates = proxy.ledger.of("POST")
        process.change(trainer_image="localhost/mark-trainer:next", run_as_user=2000, trainer_image_pull_policy="Always")
        await process.kill()
        await people["planned"].until(lambda run: run["status"]["plan"]["hash"] != plan, "planned anew")
        await asyncio.sleep(2)
        assert await _objects(person, namespace) == before, "an upgrade started, restarted or changed something"
        assert proxy.ledger.of("POST") == creates
        assert (await people["planned"].see())["status"]["state"] == "PlanReady"
        # What goes on, goes on as it was confirmed.
        await people["held"].change(suspend=False)
        await people["held"].stage_running("lora")
        pods = (await person.rest.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
        assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {"localhost/mark-trainer:test"}
        assert {pod["spec"]["securityContext"]["runAsUser"] for pod in pods} == {1000}


async def _objects(person: Person, namespace: str) -> Body:
    """Uid and spec of every Job and Pod, and the state of every run."""
    found = {}
    for resource, group in CHILDREN.items():
        for item in (await person.rest.get(f"{group}/namespaces/{namespace}/{resource}"))["items"]:
            if resource in ("jobs", "pods"):
                found[f"{resource}/{item['metadata']['name']}"] = (item["metadata"]["uid"], item["spec"])
    for run in (await person.rest.get(person.runs))["items"]:
        found[f"run/{run['metadata']['name']}"] = (run["metadata"]["uid"], run["status"]["state"])
    return found


def test_an_upgrade_of_the_operator_leaves_live_runs_alone(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_upgrade(plane, tmp_path))
