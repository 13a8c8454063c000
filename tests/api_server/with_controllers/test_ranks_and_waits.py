"""Ranks of one stage on a real API server with a real Job controller: one that dies, some that never start, and what is given back."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from careful_kubelet import CarefulKubelet, careful
from control_plane import ApiServer
from mark_crds import names
from mark_crds.job_output import ExitCode
from operator_bed import REPLACED_SOON, stage
from pretend_kubelet import NEVER, Ending, done, trouble
from workloads import Person, Workload

pytestmark = pytest.mark.slow
Body = dict[str, Any]
TWO_NODES = {"nodes": 2, "cpu": "1", "memory": "1Gi"}


async def _nothing(_: Person) -> None:
    return None


def first_rank_of_two_dies(stage_name: str, attempt: int, rank: int) -> Ending | None:
    """In the first attempt rank 1 breaks, and rank 0 would work for ever; the second attempt ends well."""
    if stage_name != "lora" or attempt > 1:
        return None
    return trouble("lora", ExitCode.MACHINE_TROUBLE, "NodeSick") if rank == 1 else replace(done("lora"), after_seconds=NEVER)


async def tell_dying_rank(plane: ApiServer, folder: Path) -> None:
    workload = Workload("ranks", _nothing, spec={"resources": TWO_NODES})
    kept: list[CarefulKubelet] = []
    habits = {"ranks": first_rank_of_two_dies, "end_seconds": 1.0}
    async with stage(plane, workload, folder / "log", kubelet_type=careful(kept, **habits), timings=REPLACED_SOON) as (person, _, _, namespace):
        await person.create(workload.manifest)
        await person.confirm()
        run = await person.in_state("Succeeded")
        lora = next(item for item in run["status"]["stages"] if item["stage"] == "lora")
        assert (lora["attempt"], lora["countedFailures"]) == (2, 1)
        assert kept[0].together == [], "a rank of the next attempt beside one of the former"
        started = [name.rsplit("-", 1)[0] for name in kept[0].started if "lora" in name]
        assert sorted(started) == [f"run-t-lora-{attempt}-{rank}" for attempt in (1, 2) for rank in (0, 1)]
        assert sorted(started[:2]) == ["run-t-lora-1-0", "run-t-lora-1-1"]
        pods = (await person.rest.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector=job-name=run-t-lora-2"))["items"]
        _check_ranks(pods)
        service = await person.rest.get(f"/api/v1/namespaces/{namespace}/services/t-run")
        assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["clusterIP"] == "None"
        assert service["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"]


def _check_ranks(pods: list[Body]) -> None:
    """Every rank can tell which it is and where the ranks meet, and carries the number of its attempt."""
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["run-t-lora-2-0", "run-t-lora-2-1"]
    for pod in pods:
        environment = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
        assert environment["MASTER_ADDR"] == "run-t-lora-2-0.t-run" and environment["MASTER_PORT"] == "29500"
        assert "JOB_COMPLETION_INDEX" in environment and pod["spec"]["subdomain"] == "t-run"
        assert pod["metadata"]["labels"][names.ATTEMPT_LABEL] == "2"


def test_one_rank_dies_and_the_next_attempt_waits_for_the_others(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_dying_rank(plane, tmp_path))


def no_room_for_rank_1(pod: Body) -> bool:
    labels = pod["metadata"]["labels"]
    place = (labels[names.STAGE_LABEL], labels[names.ATTEMPT_LABEL], labels["batch.kubernetes.io/job-completion-index"])
    return place == ("lora", "1", "1")


async def tell_partial(plane: ApiServer, folder: Path) -> None:
    """One of two ranks finds no node; the operator dies while it waits."""
    workload = Workload("partial", _nothing, spec={"resources": TWO_NODES, "pendingDeadlineSeconds": 4})
    kept: list[CarefulKubelet] = []
    endless = {"ranks": lambda stage_name, attempt, _: replace(done(stage_name), after_seconds=NEVER) if (stage_name, attempt) == ("lora", 1) else None}
    maker = careful(kept, unplaced=no_room_for_rank_1, **endless)
    async with stage(plane, workload, folder / "log", kubelet_type=maker, timings=REPLACED_SOON) as (person, proxy, process, namespace):
        await person.create(workload.manifest)
        await person.confirm()
        pods = f"/api/v1/namespaces/{namespace}/pods"
        selector = "labelSelector=job-name=run-t-lora-1,batch.kubernetes.io/job-completion-index=1"
        while not (found := (await person.rest.get(f"{pods}?{selector}"))["items"]):
            await asyncio.sleep(0.05)
        words = {"reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}
        condition = {"type": "PodScheduled", "status": "False", **words}
        await person.rest.patch(f"{pods}/{found[0]['metadata']['name']}/status", {"status": {"conditions": [condition]}})
        run = await person.until(lambda run: "1 of 2 Pods run" in str(run["status"]["conditions"]), "said to wait for one rank")
        assert run["status"]["state"] == "Starting"
        await process.kill()
        run = await person.until(lambda run: any(item.get("failure") for item in run["status"]["stages"]), "released")
        failure = next(item["failure"] for item in run["status"]["stages"] if item.get("failure"))
        assert failure["reason"] == "Unschedulable"
        assert "Insufficient nvidia.com/gpu" in failure["message"] and "1 nvidia.com/gpu" in failure["message"]
        run = await person.in_state("Succeeded")
        lora = next(item for item in run["status"]["stages"] if item["stage"] == "lora")
        assert (lora["attempt"], lora["countedFailures"]) == (2, 1) and kept[0].together == []
        assert proxy.ledger.of("DELETE") == {("jobs", "run-t-lora-1"): 1}


def test_ranks_that_wait_too_long_give_back_what_they_hold(plane: ApiServer, tmp_path: Path) -> None:
    asyncio.run(tell_partial(plane, tmp_path))


async def tell_quota(plane: ApiServer, folder: Path) -> Body:
    """A quota that somebody sets after the plan was made leaves no room for a Pod."""
    slow = lambda stage_name, *_: replace(done(stage_name), after_seconds=2.0)  # noqa: E731
    workload = Workload("quota", _nothing, slow, spec={"pendingDeadlineSeconds": 8, "maxAttempts": 1})
    async with stage(plane, workload, folder / "log", timings=REPLACED_SOON) as (person, _, _, namespace):
        await person.create(workload.manifest)
        await person.planned()
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
        await person.change(dryRun=False, confirm=True)
        while not (await person.rest.get(person.jobs))["items"]:
            await asyncio.sleep(0.05)
        await person.rest.post(f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
        return await person.in_state("Failed")


def test_pods_that_no_quota_allows_end_the_attempt_with_that_reason(plane: ApiServer, tmp_path: Path) -> None:
    failure = asyncio.run(tell_quota(plane, tmp_path))["status"]["stages"][-1]["failure"]
    assert failure["reason"] == "PodNotCreated"
    assert "needs 1 pods in all its Pods, but ResourceQuota none has 0 left" in failure["message"]


async def tell_deleted_pod(plane: ApiServer, folder: Path) -> Body:
    """Somebody deletes the Pod of a run that has one attempt; it saves a checkpoint and ends."""
    endless = lambda stage_name, attempt, _: replace(done(stage_name), after_seconds=NEVER if (stage_name, attempt) == ("lora", 1) else 0.1)  # noqa: E731
    workload = Workload("deleted-pod", _nothing, endless, spec={"maxAttempts": 1})
    async with stage(plane, workload, folder / "log", timings=REPLACED_SOON) as (person, _, _, namespace):
        await person.create(workload.manifest)
        await person.confirm()
        await person.stage_running("lora")
        pods = f"/api/v1/namespaces/{namespace}/pods"
        (pod,) = (await person.rest.get(f"{pods}?labelSelector=job-name=run-t-lora-1"))["items"]
        await person.rest.delete(f"{pods}/{pod['metadata']['name']}")
        return await person.in_state("Succeeded")


def test_a_pod_that_somebody_deletes_costs_no_attempt(plane: ApiServer, tmp_path: Path) -> None:
    lora = asyncio.run(tell_deleted_pod(plane, tmp_path))["status"]["stages"][-1]
    assert (lora["attempt"], lora["countedFailures"]) == (2, 0)
    # The Job controller says that the Job failed when the Pod is gone, or just before that.
    assert lora["lastFailure"]["reason"] in ("Stopped", "PodVanished")
