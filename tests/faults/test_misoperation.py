"""Specs made from the CRDs' own schemas: each valid one comes to the state that it declares, with a reason, each wrong one a refusal that names the field; and nobody waits for a poisoned neighbour."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from control_plane import ApiServer
from hypothesis import HealthCheck, Phase, given, settings
from mark_crds import names
from operator_bed import UNHURRIED, Case, Crowd, crowd
from rest import Refused
from schema_specs import Mistake, mistakes, obeying, spec_schema, values
from tally import WHOLE, Tally
from workloads import CLAIM, Person, Workload

Body = dict[str, Any]
Item = TypeVar("Item")
KINDS = {"trainingruns": "TrainingRun", "evalruns": "EvalRun"}
VALID_OF_EACH_KIND = 1000 if WHOLE else 75
INVALID_OF_EACH_KIND = 1000
AT_ONCE = 16
HEALTHY = 200
SETTLES_SECONDS = 600.0
MOST_NODES = 2


async def _nobody(_: Person) -> None:
    """The test itself tells the story."""


BED = Case(Workload("bed", _nobody))


def specs_of(plural: str, count: int) -> list[Body]:
    """Valid specs, always the same ones."""
    found: dict[str, Body] = {}

    @settings(
        max_examples=2 * count, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(values(spec_schema(plural)))
    def collect(spec: Body) -> None:
        turn = len(found) % 4
        bent = obeying(spec if turn else to_the_end(spec), plural)
        bent = bent if turn % 2 else at_home(bent)
        found.setdefault(json.dumps(bent, sort_keys=True), bent)

    collect()
    assert len(found) >= count
    return list(found.values())[:count]


def to_the_end(spec: Body) -> Body:
    """The spec, confirmed and with nothing that would hold it up."""
    kept = {key: value for key, value in spec.items() if key not in ("queueName", "suspend", "tolerations")}
    measured = {"model": {"path": "adapters/abc"}} if "model" in spec else {}
    return {**kept, **measured, "dryRun": False, "confirm": True}


def at_home(spec: Body) -> Body:
    """The spec with names that exist in the test's namespace, so that it can run there."""
    kept = {key: value for key, value in spec.items() if key not in ("image", "priorityClassName", "confirmPlan")}
    resources = {key: value for key, value in spec.get("resources", {}).items() if key != "gpuResource"}
    resources["nodes"] = min(resources.get("nodes", 1), MOST_NODES)
    return {**kept, "workspace": {"claimName": CLAIM}, "resources": resources}


def declared(run: Body) -> str:
    """The state that a spec asks for, with an operator that takes every confirmation: how far it comes before something is lacking."""
    spec, plan = run["spec"], run.get("status", {}).get("plan")
    confirmed = spec["confirm"] and not spec["dryRun"]
    if plan is None:
        return "Planning"
    if confirmed and "confirmPlan" in spec:
        return "AwaitingConfirmation"  # a hash by chance is never the plan's
    if any(check["outcome"] == "Failed" for check in plan["checks"]):
        return "Planning"
    if not confirmed:
        return "PlanReady"
    return "Suspended" if spec["suspend"] else "Queued" if "queueName" in spec else "Succeeded"


def manifest(kind: str, name: str, spec: Body) -> Body:
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


async def each(items: Iterable[Item], act: Callable[[Item], Awaitable[Any]]) -> list[Any]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item) -> Any:
        async with gate:
            return await act(item)

    return await asyncio.gather(*(one(item) for item in items))


def runs_path(plural: str, namespace: str) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{plural}"


def is_settled(run: Body) -> bool:
    """Whether it is in its declared state, and says why in every condition."""
    status = run.get("status", {})
    conditions = status.get("conditions", [])
    current = status.get("observedGeneration") == run["metadata"]["generation"]
    told = conditions and all(item["reason"] and item["message"] for item in conditions)
    return bool(current and told and status["state"] == declared(run))


async def _settled(bed: Crowd, plural: str) -> list[Body]:
    """All runs of a kind once each is where it should be, or as they are when time is up."""
    end = time.monotonic() + SETTLES_SECONDS
    while True:
        runs: list[Body] = (await bed.people[0].rest.get(runs_path(plural, bed.namespaces[0])))["items"]
        if all(is_settled(run) for run in runs) or time.monotonic() > end:
            return runs
        await asyncio.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plural", KINDS)
def test_every_valid_spec_gets_a_state_and_a_reason(plane: ApiServer, tally: Tally, plural: str, tmp_path: Path) -> None:
    specs, log = specs_of(plural, VALID_OF_EACH_KIND), tmp_path / "operator.log"

    async def tell() -> list[Body]:
        async with crowd(plane, [BED], log, timings=UNHURRIED, approval="Field") as bed:
            path, rest = runs_path(plural, bed.namespaces[0]), bed.people[0].rest
            bodies = [manifest(KINDS[plural], f"r{number}", spec) for number, spec in enumerate(specs)]
            await each(bodies, lambda body: rest.post(path, body))
            return await _settled(bed, plural)

    runs = asyncio.run(tell())
    assert len(runs) == len(specs), "the API server took every one"
    elsewhere = {run["metadata"]["name"]: (declared(run), run.get("status", {}).get("state")) for run in runs if not is_settled(run)}
    assert elsewhere == {}, "(declared, reached)"
    reached = Counter(run["status"]["state"] for run in runs)
    assert reached.keys() >= {"Planning", "PlanReady", "Succeeded"}, reached
    failed = [run["metadata"]["name"] for run in runs if "PlanningFailed" in json.dumps(run["status"]["conditions"])]
    assert failed == [], "the planner has an answer to every spec"
    assert "Traceback" not in log.read_text()
    with tally.of("misoperation", plural) as counts:
        counts["valid specs"] = len(runs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plural", KINDS)
def test_every_mistake_is_refused_and_named(plane: ApiServer, tally: Tally, plural: str) -> None:
    dice, schema = random.Random(plural), spec_schema(plural)
    wrong = [mistakes(spec, schema, dice) for spec in specs_of(plural, INVALID_OF_EACH_KIND)]

    async def refusal(person: Person, path: str, mistake: Mistake) -> str:
        try:
            await person.rest.post(f"{path}?dryRun=All&fieldValidation=Strict", manifest(KINDS[plural], "wrong", mistake.spec))
        except Refused as refused:
            return str(refused) if refused.code in (400, 422) else f"not a refusal: {refused}"
        return "accepted"

    async def ask() -> list[str]:
        async with crowd(plane, [BED], Path("/dev/null"), timings=UNHURRIED) as bed:
            path = runs_path(plural, bed.namespaces[0])
            return await each(wrong, lambda mistake: refusal(bed.people[0], path, mistake))

    answers = dict(zip((mistake.what for mistake in wrong), zip(wrong, asyncio.run(ask()), strict=True), strict=False))
    nameless = {what: answer for what, (mistake, answer) in answers.items() if mistake.field not in answer}
    assert nameless == {}
    with tally.of("misoperation", plural) as counts:
        counts["invalid specs"] = len(wrong)


GARBAGE: Body = {
    "state": "Running",
    "startedAt": "2026-01-01T00:00:00Z",
    "observedGeneration": 99,
    "stage": "no-such-stage",
    "stages": [{"stage": "lora", "state": "Running", "job": "no-such-job", "attempt": -7}],
    "conditions": [{"type": "Ready", "status": "True", "reason": "?", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
}
HEALTHY_SPEC: Body = {"workspace": {"claimName": "mark-workspace"}, "stages": ["ingest"], "cpuResources": {"cpu": "1", "memory": "1Gi"}}


async def _poison(bed: Crowd) -> None:
    """Runs with statuses that no operator wrote, a Job and a plan of theirs that are broken, and an annotation as large as can be."""
    rest, namespace = bed.people[0].rest, bed.namespaces[0]
    path = runs_path("trainingruns", namespace)
    heavy = {"note": "x" * 200_000}
    for number in range(10):
        name = f"poison-{number}"
        body = manifest("TrainingRun", name, {**HEALTHY_SPEC, "dryRun": False, "confirm": True})
        body["metadata"]["annotations"] = heavy if number % 3 == 0 else {}
        await rest.post(path, body)
        garbage = [GARBAGE, {**GARBAGE, "finishedAt": "1999-01-01T00:00:00Z"}, {**GARBAGE, "confirmation": _confirmation()}]
        await rest.patch(f"{path}/{name}/status", {"status": garbage[number % 3]})
        await rest.post(f"/api/v1/namespaces/{namespace}/configmaps", _broken_plan(name))
        await rest.post(f"/apis/batch/v1/namespaces/{namespace}/jobs", _broken_job(name))


def _confirmation() -> Body:
    return {"planHash": "0" * 64, "at": "2026-01-01T00:00:00Z"}


def _broken_plan(run: str) -> Body:
    metadata = {"name": names.plan_name("TrainingRun", run), "labels": _labels(run)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {names.JOBS_KEY: "{", names.JOB_INPUT_KEY: "[]"}}


def _broken_job(run: str) -> Body:
    container = {"name": "stranger", "image": "stranger"}
    template = {"metadata": {"labels": _labels(run)}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": f"{run}-t-preflight-1", "labels": _labels(run)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"suspend": True, "template": template}}


def _labels(run: str) -> Body:
    return {names.RUN_LABEL: run, names.KIND_LABEL: "TrainingRun", names.RUN_UID_LABEL: "no-uid"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nobody_waits_for_a_poisoned_neighbour(plane: ApiServer, tally: Tally, tmp_path: Path) -> None:
    async def seconds(poison: bool, log: Path) -> float:
        """From the first of the healthy runs to the last one's plan."""
        async with crowd(plane, [BED], log, timings=UNHURRIED) as bed:
            rest, path = bed.people[0].rest, runs_path("trainingruns", bed.namespaces[0])
            await rest.post(path, manifest("TrainingRun", "first", HEALTHY_SPEC))
            await Person(rest, bed.namespaces[0], "TrainingRun", "first").planned()
            if poison:
                await _poison(bed)
            began = time.monotonic()
            bodies = [manifest("TrainingRun", f"healthy-{number}", HEALTHY_SPEC) for number in range(HEALTHY)]
            await each(bodies, lambda body: rest.post(path, body))
            while True:
                runs = (await rest.get(path))["items"]
                healthy = [run for run in runs if run["metadata"]["name"].startswith("healthy")]
                if all(run.get("status", {}).get("state") == "PlanReady" for run in healthy):
                    return time.monotonic() - began
                assert time.monotonic() - began < SETTLES_SECONDS
                await asyncio.sleep(0.5)

    alone = asyncio.run(seconds(False, tmp_path / "alone.log"))
    beside = asyncio.run(seconds(True, tmp_path / "beside.log"))
    # Ten in 210 are poisoned; what is left is the noise of a shared machine.
    assert beside < 2 * alone + 5, f"{beside:.1f} s beside poisoned runs, {alone:.1f} s without"
    with tally.of("misoperation", "poison") as counts:
        counts["healthy runs beside poisoned ones"] = HEALTHY
