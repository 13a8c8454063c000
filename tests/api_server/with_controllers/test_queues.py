"""Queues and priorities on a real API server: what Kueue does to a Job, and what becomes of the run."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from careful_kubelet import CarefulKubelet, careful
from control_plane import ApiServer
from kueue import GATE, Kueue
from operator_bed import REPLACED_SOON, stage
from pretend_kubelet import NEVER, Ending, done
from workloads import Person, Workload

pytestmark = pytest.mark.slow
Body = dict[str, Any]


def _endless_first_turn(stage_name: str, _attempt: int, turn: int) -> Ending:
    return replace(done(stage_name), after_seconds=NEVER) if stage_name == "lora" and turn == 1 else done(stage_name)


async def _nothing(_: Person) -> None:
    return None


QUEUED = Workload("queued", _nothing, _endless_first_turn, spec={"queueName": "research", "maxAttempts": 1})


def admitted(run: Body) -> tuple[str, str]:
    conditions = run.get("status", {}).get("conditions", ())
    return next(((item["status"], item["reason"]) for item in conditions if item["type"] == "Admitted"), ("", ""))


async def tell(plane: ApiServer, folder: Path) -> None:
    kept: list[CarefulKubelet] = []
    async with stage(plane, QUEUED, folder / "log", kubelet_type=careful(kept), timings=REPLACED_SOON) as (person, proxy, process, namespace):
        kueue = Kueue(person.rest, namespace)
        await person.create(QUEUED.manifest)
        await person.confirm()
        for name in ("run-t-preflight-1", "run-t-data-prep-1"):
            await person.until(lambda run: admitted(run) == ("False", "Queued"), "queued")
            job = await kueue.job(name)
            assert job["spec"]["suspend"] is True
            assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
            assert await kueue.pods(name) == []
            await kueue.admit(name, [GATE])
            await person.until(lambda run: admitted(run) == ("True", "Admitted"), "admitted")
            pod = await kueue.release(name)
            assert pod["spec"]["nodeSelector"] == {"flavor": "h100"} and pod["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "main"
            assert "spot" in [item.get("key") for item in pod["spec"]["tolerations"]]
        await _evict_twice(person, kueue, process)
        run = await person.in_state("Succeeded")
        assert [(item["attempt"], item["countedFailures"]) for item in run["status"]["stages"]] == [(1, 0)] * 3
        # The operator created each Job and never wrote it again: what Kueue put into it stayed.
        assert {verb for (verb, resource, _) in proxy.ledger.writes if resource == "jobs"} == {"POST"}
        assert kept[0].together == []


async def _evict_twice(person: Person, kueue: Kueue, process: Any) -> None:
    """Admitted, evicted while gated, admitted, evicted while running with the operator dying in between, admitted."""
    name = "run-t-lora-1"
    await person.until(lambda run: run["status"].get("stage") == "lora" and admitted(run) == ("False", "Queued"), "queued")
    await kueue.admit(name, [GATE])
    gated = await person.until(
        lambda run: any("SchedulingGated" in item["message"] for item in run["status"]["conditions"]), "said to be gated"
    )
    assert gated["status"]["state"] == "Starting"
    await kueue.evict(name)
    await person.until(lambda run: admitted(run) == ("False", "Evicted"), "evicted")
    await kueue.admit(name, [GATE])
    await kueue.release(name)
    await person.in_state("Running")
    await kueue.evict(name)
    await process.kill()
    run = await person.until(lambda run: admitted(run) == ("False", "Evicted"), "evicted")
    assert run["status"]["state"] == "Queued" and (await kueue.job(name))["spec"]["suspend"] is True
    await kueue.admit(name, [GATE])
    await kueue.release(name)


def test_kueue_admits_evicts_and_admits_again(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell(plane, tmp_path))


async def tell_held(plane: ApiServer, folder: Path) -> None:
    """A cluster that suspends Jobs without a queue too: their run says so and leaves the Job alone."""
    workload = replace(QUEUED, spec={}, script=done)
    async with stage(plane, workload, folder / "log", timings=REPLACED_SOON) as (person, _, _, _):
        policy = _suspending_everything(person)
        await person.rest.post("/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies", policy[0])
        await person.rest.post("/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings", policy[1])
        try:
            await _until_in_force(person)
            await person.create(workload.manifest)
            await person.confirm()
            run = await person.in_state("Queued")
            reasons = {item["type"]: item["reason"] for item in run["status"]["conditions"]}
            assert reasons["Progressing"] == "HeldByOther" and "Admitted" not in reasons
        finally:
            for body in policy:
                plural = "mutatingadmissionpolicies" if "matchConstraints" in body["spec"] else "mutatingadmissionpolicybindings"
                await person.rest.delete(f"/apis/admissionregistration.k8s.io/v1/{plural}/{body['metadata']['name']}")
        for name in ("run-t-preflight-1", "run-t-data-prep-1", "run-t-lora-1"):
            await person.until(lambda run, name=name: any(s["job"] == name for s in run["status"].get("stages", [])), f"at {name}")
            await person.rest.patch(f"{person.jobs}/{name}", {"spec": {"suspend": False}})
        await person.in_state("Succeeded")


def _suspending_everything(person: Person) -> tuple[Body, Body]:
    """What Kueue's webhook does where it manages Jobs without a queue name, as a policy of the API server itself."""
    namespace = person.jobs.split("/")[-2]
    api, name = "admissionregistration.k8s.io/v1", f"suspend-{namespace}"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    spec = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {"namespaceSelector": selector, "resourceRules": [rule]},
        "mutations": [
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": "Object{spec: Object.spec{suspend: true}}"},
            }
        ],
    }
    binding = {"policyName": name}
    return (
        {"apiVersion": api, "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec},
        {"apiVersion": api, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name}, "spec": binding},
    )


async def _until_in_force(person: Person) -> None:
    container = {"name": "x", "image": "x"}
    pod = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    trial = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "trial-"}, "spec": {"template": pod}}
    for _ in range(300):
        made = await person.rest.post(f"{person.jobs}?dryRun=All", trial)
        if made["spec"].get("suspend"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the policy did not come into force")


def test_a_job_that_another_controller_suspends_is_left_to_it(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_held(plane, tmp_path))


async def tell_priority(plane: ApiServer, folder: Path) -> tuple[Body, Body]:
    """(a run whose class is missing, a Pod of a run whose class is there)"""
    workload = replace(QUEUED, spec={"priorityClassName": "urgent"}, script=_endless_first_turn)
    async with stage(plane, workload, folder / "log", timings={**REPLACED_SOON, "checkSeconds": 1}) as (person, _, _, namespace):
        await person.create(workload.manifest)
        missing = await person.in_state("Planning")
        body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "urgent"}, "value": 1000}
        await person.rest.post("/apis/scheduling.k8s.io/v1/priorityclasses", body)
        try:
            await person.confirm()
            await person.stage_running("lora")
            (pod,) = await Kueue(person.rest, namespace).pods("run-t-lora-1")
            return missing, pod
        finally:
            await person.rest.delete("/apis/scheduling.k8s.io/v1/priorityclasses/urgent")


def test_a_priority_class_is_checked_in_the_plan_and_passed_on(plane: ApiServer, tmp_path: Path) -> None:
    missing, pod = asyncio.run(tell_priority(plane, tmp_path))
    failed = [check["message"] for check in missing["status"]["plan"]["checks"] if check["outcome"] == "Failed"]
    assert any("urgent" in message for message in failed), failed
    assert pod["spec"]["priorityClassName"] == "urgent" and pod["spec"]["priority"] == 1000
