"""What passes ask together: one request for questions that are the same, and a refusal only under a run's own name."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mark_operator.cluster import ApiError
from mark_operator.findings import Questions
from mark_operator.planning import plan
from mark_operator.run.plan import Rendering
from mark_operator.seen import Body, Findings, RunKey
from run_builders import SETTINGS, training

RUNS = 20


class SmallCluster:
    """Answers after a moment, counts, and refuses the dry run of Pods that ask for too much memory."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def get(self, kind: str, namespace: str | None, name: str) -> Body | None:
        await self._count(f"get {kind}")
        return None

    async def list_all(self, kind: str, namespace: str | None = None) -> AsyncIterator[Body]:
        await self._count(f"list {kind}")
        if kind == "Node":
            yield {"metadata": {"name": "large"}, "status": {"images": ["x"] * 50, "allocatable": {"nvidia.com/gpu": "8"}}}

    async def create(self, body: Body, dry_run: bool = False) -> Body:
        assert dry_run
        await self._count(f"dry run {body['kind']}")
        spec = body["spec"]
        if body["kind"] == "Pod" and spec["containers"][0]["resources"]["limits"]["memory"] == "999Gi":
            raise ApiError(403, "Forbidden", f'pods "{body["metadata"]["name"]}" is forbidden: exceeded quota')
        return body

    async def _count(self, what: str) -> None:
        self.asked[what] += 1
        await asyncio.sleep(0.005)


def rendered(name: str, **spec: Any) -> Rendering:
    found = plan(RunKey("TrainingRun", "legal", name), training(**{"stages": ["dataPrep"], **spec}), SETTINGS)
    assert isinstance(found, Rendering)
    return found


def asked_at_once(cluster: SmallCluster, *renderings: Rendering) -> list[Findings]:
    async def story() -> list[Findings]:
        questions = Questions(cluster)  # type: ignore[arg-type]
        return await asyncio.gather(*(questions.look(each, "uid", confirmed=True) for each in renderings))

    return asyncio.run(story())


def test_runs_that_differ_in_nothing_but_the_name_ask_once() -> None:
    cluster = SmallCluster()
    found = asked_at_once(cluster, *(rendered(f"run-{number}") for number in range(RUNS)))
    assert all(answer.outcome == "Found" for each in found for answer in (*each.jobs.values(), *each.pods.values()))
    assert all(each.freeze.outcome == "Missing" for each in found)
    # Two Jobs and one Pod; what is asked while the first request is under way shares the next one.
    assert cluster.asked["dry run Job"] <= 4 and cluster.asked["dry run Pod"] <= 2, cluster.asked
    assert cluster.asked["list ResourceQuota"] <= 2 and cluster.asked["get ConfigMap"] <= 2, cluster.asked


@pytest.mark.parametrize(("stages", "asked"), [(["dataPrep"], 0), (["dataPrep", "lora"], 1)])
def test_nodes_are_listed_for_gpus_only_and_nothing_else_of_them_is_kept(stages: list[str], asked: int) -> None:
    cluster = SmallCluster()
    (found,) = asked_at_once(cluster, rendered("run", stages=stages, resources={"gpusPerNode": 8}))
    assert cluster.asked["list Node"] == asked
    assert found.nodes.items == asked * ({"status": {"allocatable": {"nvidia.com/gpu": "8"}}},)


def test_another_shape_is_another_question() -> None:
    cluster = SmallCluster()
    sizes = [{"cpuResources": {"cpu": "1", "memory": f"{number}Gi"}} for number in range(1, RUNS + 1)]
    asked_at_once(cluster, *(rendered(f"run-{number}", **size) for number, size in enumerate(sizes)))
    assert cluster.asked["dry run Pod"] == RUNS


def test_a_refusal_names_the_runs_own_pod() -> None:
    cluster = SmallCluster()
    large = {"cpuResources": {"cpu": "1", "memory": "999Gi"}}
    found = asked_at_once(cluster, *(rendered(f"run-{number}", **large) for number in range(RUNS)))
    for number, each in enumerate(found):
        (answer,) = each.pods.values()
        assert answer.outcome == "Refused" and f'"run-{number}-t-preflight-1-plan"' in answer.message
