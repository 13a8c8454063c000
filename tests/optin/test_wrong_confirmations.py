"""At least fifty wrong ways to confirm, on a real API server with the real operator: none makes a Job, and each is answered."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from control_plane import ApiServer
from operator_bed import UNHURRIED, stage
from workloads import Person, Workload
from wrong_confirmations import FOR_BOTH, FOR_TRAINING, REFUSED, Scene, WrongConfirmation, answer_of, attempt

Body = dict[str, Any]
OTHER = {"TrainingRun": "EvalRun", "EvalRun": "TrainingRun"}
CASES = [("TrainingRun", case) for case in (*FOR_BOTH, *FOR_TRAINING)] + [("EvalRun", case) for case in FOR_BOTH]
LIMITS: Body = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "memory"},
    "spec": {"limits": [{"type": "Container", "max": {"memory": "64Gi"}}]},
}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
AT_ONCE = 8
QUOTA: Body = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "gpus"},
    "spec": {"hard": {"requests.nvidia.com/gpu": "8"}},
}


@dataclass(frozen=True)
class Told:
    """What became of every attempt, and what the operator made of them."""

    answers: dict[tuple[str, str], str]
    jobs: list[str]
    started: list[str]


async def _plan_of(person: Person, manifest: Body) -> str:
    await person.create(manifest)
    return str((await person.planned())["status"]["plan"]["hash"])


async def _tell(server: ApiServer, cases: Iterable[tuple[str, WrongConfirmation]], folder: Path) -> Told:
    elsewhere = await asyncio.to_thread(server.fresh_namespace)
    bed = Workload("bed", _nobody)
    async with stage(server, bed, folder / "operator.log", timings=UNHURRIED, watch_namespaces=[]) as (
        first,
        _,
        _,
        namespace,
    ):
        rest = first.rest
        await rest.post(f"/api/v1/namespaces/{namespace}/resourcequotas", QUOTA)
        await rest.post(f"/api/v1/namespaces/{namespace}/limitranges", LIMITS)
        await rest.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": RESTRICTED}})
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, kind: str, case: WrongConfirmation) -> tuple[tuple[str, str], str]:
            async with gate:
                return (kind, case.name), await _answer(rest, namespace, elsewhere, number, kind, case)

        answers = dict(await asyncio.gather(*(one(number, *case) for number, case in enumerate(cases))))
        await asyncio.sleep(3)
        jobs = (await rest.get(f"/apis/batch/v1/namespaces/{namespace}/jobs"))["items"]
        runs = [
            *(await rest.get(first.runs))["items"],
            *(await rest.get(first.runs.replace("trainingruns", "evalruns")))["items"],
        ]
        told = Told(
            answers,
            [job["metadata"]["name"] for job in jobs],
            [run["metadata"]["name"] for run in runs if "startedAt" in run.get("status", {})],
        )
        await _right_one(Person(rest, namespace, "TrainingRun", "right"))
        return told


async def _answer(rest: Any, namespace: str, elsewhere: str, number: int, kind: str, case: WrongConfirmation) -> str:
    name = f"run-{number}"
    person = Person(rest, namespace, kind, name)
    strangers = {
        "another run": (Person(rest, namespace, kind, f"{name}-x"), case.manifest(kind, f"{name}-x")),
        "another namespace": (Person(rest, elsewhere, kind, name), case.manifest(kind, name)),
        "other kind": (Person(rest, namespace, OTHER[kind], name), case.manifest(OTHER[kind], name)),
    }
    whose = next(
        (word for word in strangers if case.name.startswith(f"{word}'s") or case.name == f"the {word}'s"), None
    )
    foreign = {whose: await _plan_of(*strangers[whose])} if whose else {}
    refusal = await attempt(case, Scene(person, case.manifest(kind, name), foreign))
    return REFUSED if refusal else await answer_of(person)


async def _right_one(person: Person) -> None:
    """After all the wrong ones the operator still starts what is confirmed rightly."""
    await person.create(Workload("right", _nobody).manifest | {"metadata": {"name": "right"}})
    await person.confirm()
    await person.in_state("Running", "Succeeded")


async def _nobody(_: Person) -> None:
    """For a story that nobody tells."""


@pytest.fixture(scope="module")
def told(plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Told:
    return asyncio.run(_tell(plane, CASES, tmp_path_factory.mktemp("wrong")))


def test_there_are_fifty_at_least() -> None:
    assert len(CASES) >= 50


@pytest.mark.slow
def test_none_makes_a_job(told: Told) -> None:
    assert told.jobs == [] and told.started == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_each_is_answered(told: Told, kind: str, case: WrongConfirmation) -> None:
    assert told.answers[kind, case.name] == case.answer
