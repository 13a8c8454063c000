"""Specs made from the CRDs' own schemas: each valid one comes to the state that it declares, with a reason, each wrong one a refusal that names the field; and nobody waits for a poisoned neighbour."""

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from control_plane import ApiServer
from mark_crds import names
from mark_operator.queue import WORKERS
from mark_operator.run.plan import plan_digest
from operator_bed import UNHURRIED, Case, Crowd, children, crowd
from rest import Refused
from schema_specs import Mistake, drawn, mistakes, obeying, spec_schema
from tally import WHOLE, Tally
from workloads import CLAIM, Person, Workload

Body = dict[str, Any]
Item = TypeVar("Item")
KINDS = {"trainingruns": "TrainingRun", "evalruns": "EvalRun"}
VALID_OF_EACH_KIND = 1000 if WHOLE else 75
INVALID_OF_EACH_KIND = 1000
AT_ONCE = 16
HEALTHY = 200
# Of each poison that makes every pass raise: together several times as many as there are workers, and each has failed so often, before healthy runs
# come, that its pauses are long. If it held a worker meanwhile, the healthy ones would wait for several such pauses.
RAISING_OF_EACH = 60
FAILED_BEFORE = 4
NOT_HELD_SECONDS = 15.0
SETTLES_SECONDS = 600.0
MOST_NODES = 2
DEADLINES = frozenset({"activeDeadlineSeconds", "pendingDeadlineSeconds", "queueDeadlineSeconds"})
LONGER_THAN_A_TEST_SECONDS = 3600


async def _nobody(_: Person) -> None:
    """The test itself tells the story."""


BED = Case(Workload("bed", _nobody))


def specs_of(plural: str, count: int) -> list[Body]:
    """Valid specs, always the same ones."""
    found: dict[str, Body] = {}
    for spec in drawn(plural, 2 * count):
        turn = len(found) % 4
        bent = obeying(spec if turn else to_the_end(spec), plural)
        bent = bent if turn % 2 else at_home(bent)
        found.setdefault(json.dumps(bent, sort_keys=True), bent)
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
    # On a busy machine, a limit of seconds comes before the state.
    kept |= {key: max(kept[key], LONGER_THAN_A_TEST_SECONDS) for key in DEADLINES & kept.keys() if kept[key] > 0}
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

    async def tell() -> tuple[list[Body], dict[str, str]]:
        async with crowd(plane, [BED], log, timings=UNHURRIED, approval="Field") as bed:
            path, rest = runs_path(plural, bed.namespaces[0]), bed.people[0].rest
            bodies = [manifest(KINDS[plural], f"r{number}", spec) for number, spec in enumerate(specs)]
            await each(bodies, lambda body: rest.post(path, body))
            return await _settled(bed, plural), await children(rest, bed.namespaces[0])

    runs, owned = asyncio.run(tell())
    assert len(runs) == len(specs), "the API server took every one"
    elsewhere = {run["metadata"]["name"]: (declared(run), run.get("status")) for run in runs if not is_settled(run)}
    assert elsewhere == {}, f"(declared, status), all that the runs own: {owned}, and what the operator said: {log.read_text()[-4000:]}"
    reached = Counter(run["status"]["state"] for run in runs)
    assert reached.keys() >= {"Planning", "PlanReady", "Succeeded"}, reached
    failed = [run["metadata"]["name"] for run in runs if "PlanningFailed" in json.dumps(run["status"]["conditions"])]
    assert failed == [], "the planner has an answer to every spec"
    assert "Traceback" not in log.read_text() and "could not write" not in log.read_text()
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

    answers = asyncio.run(ask())
    nameless = [(mistake.what, answer) for mistake, answer in zip(wrong, answers, strict=True) if not names_it(answer, mistake)]
    assert nameless == []
    with tally.of("misoperation", plural) as counts:
        counts["invalid specs"] = len(wrong)


def names_it(answer: str, mistake: Mistake) -> bool:
    """Whether a refusal names the field's whole path, not that of a longer one."""
    return re.search(rf"\b{re.escape(mistake.field)}\b", answer) is not None


GARBAGE: Body = {
    "state": "Running",
    "startedAt": "2026-01-01T00:00:00Z",
    "observedGeneration": 99,
    "stage": "no-such-stage",
    "stages": [{"stage": "lora", "state": "Running", "job": "no-such-job", "attempt": -7}],
    "conditions": [{"type": "Ready", "status": "True", "reason": "?", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
}
HEALTHY_SPEC: Body = {"workspace": {"claimName": "mark-workspace"}, "stages": ["ingest"], "cpuResources": {"cpu": "1", "memory": "1Gi"}}


# Plans that cannot be read.
NO_JSON: Body = {names.JOBS_KEY: "{", names.JOB_INPUT_KEY: "[]"}
NO_JOBS: Body = {names.JOBS_KEY: "[{}]", names.JOB_INPUT_KEY: "[]"}
AS_IT_WAS = ("Running", "")


@dataclass(frozen=True)
class Poison:
    """A status, a plan and a Job that no operator wrote, and what the operator makes of them."""

    name: str
    becomes: tuple[str, str] = AS_IT_WAS
    """State and headline of the run."""
    status: Body = field(default_factory=dict)
    plan: Body = field(default_factory=lambda: NO_JSON)
    owned: bool = False
    """Whether plan and Job say that they belong to the run."""
    heavy: bool = False
    """Whether an annotation as large as can be comes with it."""
    raises: bool = False
    """Whether nothing can be made of it, so that every pass ends with an error."""


def _confirmed(plan: Body) -> Body:
    """That this plan was confirmed, as far as its hash tells."""
    return {"confirmation": {"planHash": plan_digest(plan), "at": "2026-01-01T00:00:00Z"}}


POISONS = (
    Poison("unconfirmed", ("Failed", "PlanLost"), heavy=True),
    Poison("ended", status={"finishedAt": "1999-01-01T00:00:00Z"}),
    Poison("foreign-plan", ("Starting", "NameTaken"), _confirmed(NO_JSON)),
    Poison("other-plan", ("Failed", "PlanTampered"), _confirmed({}), owned=True),
    Poison("no-json", status=_confirmed(NO_JSON), owned=True, raises=True),
    Poison("no-jobs", status=_confirmed(NO_JOBS), plan=NO_JOBS, owned=True, heavy=True, raises=True),
)


async def _poison(bed: Crowd, poison: Poison, name: str) -> None:
    rest, namespace = bed.people[0].rest, bed.namespaces[0]
    path = runs_path("trainingruns", namespace)
    body = manifest("TrainingRun", name, {**HEALTHY_SPEC, "dryRun": False, "confirm": True})
    body["metadata"]["annotations"] = {"note": "x" * 200_000} if poison.heavy else {}
    uid = (await rest.post(path, body))["metadata"]["uid"]
    owner = {"apiVersion": names.API_VERSION, "kind": "TrainingRun", "name": name, "uid": uid}
    labels = {names.RUN_LABEL: name, names.KIND_LABEL: "TrainingRun", names.RUN_UID_LABEL: uid if poison.owned else "no-uid"}
    metadata = {"labels": labels, "ownerReferences": [owner] if poison.owned else []}
    await rest.post(f"/api/v1/namespaces/{namespace}/configmaps", _plan(name, metadata, poison.plan))
    await rest.post(f"/apis/batch/v1/namespaces/{namespace}/jobs", _job(name, metadata))
    await rest.patch(f"{path}/{name}/status", {"status": {**GARBAGE, **poison.status}})


def _plan(run: str, metadata: Body, data: Body) -> Body:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**metadata, "name": names.plan_name("TrainingRun", run)}, "data": data}


def _job(run: str, metadata: Body) -> Body:
    container = {"name": "stranger", "image": "stranger"}
    template = {"metadata": {"labels": metadata["labels"]}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {"suspend": True, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {**metadata, "name": f"{run}-t-preflight-1"}, "spec": spec}


async def _planning_seconds(bed: Crowd, prefix: str) -> list[float]:
    """From the creation of each of the healthy runs to its plan."""
    rest, namespace = bed.people[0].rest, bed.namespaces[0]

    async def one(name: str) -> float:
        began = time.monotonic()
        await rest.post(runs_path("trainingruns", namespace), manifest("TrainingRun", name, HEALTHY_SPEC))
        await Person(rest, namespace, "TrainingRun", name).in_state("PlanReady")
        return time.monotonic() - began

    return await each([f"{prefix}-{number}" for number in range(HEALTHY)], one)


def failed_passes(log: str) -> Counter[str]:
    """How many passes over each run ended with an error, by the name of the run."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return Counter(line["run"].rsplit("/", 1)[1] for line in lines if line["message"].startswith("the pass failed"))


async def _all_failed(log: Path, names_of_runs: set[str]) -> None:
    """Wait until passes over each of the runs have failed so often that the pauses are long."""
    end = time.monotonic() + SETTLES_SECONDS
    while min(failed_passes(log.read_text())[name] for name in names_of_runs) < FAILED_BEFORE:
        assert time.monotonic() < end, "passes over the poisoned runs should fail again and again"
        await asyncio.sleep(1)


def stands(run: Body) -> tuple[str, str]:
    status = run.get("status", {})
    headline = next((item["reason"] for item in status.get("conditions", ()) if item["type"] == "Progressing"), "")
    return status.get("state", ""), headline


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nobody_waits_for_a_poisoned_neighbour(plane: ApiServer, tally: Tally, tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    poisoned = {f"{poison.name}-{number}": poison for poison in POISONS for number in range(RAISING_OF_EACH if poison.raises else 3)}
    raising = {name for name, poison in poisoned.items() if poison.raises}
    assert len(raising) > 2 * WORKERS

    async def tell() -> tuple[list[float], list[float], Body]:
        async with crowd(plane, [BED], log, timings=UNHURRIED) as bed:
            await _planning_seconds(bed, "first")  # until everything is warm
            alone = await _planning_seconds(bed, "alone")
            await each(poisoned, lambda name: _poison(bed, poisoned[name], name))
            await _all_failed(log, raising)
            beside = await _planning_seconds(bed, "beside")
            found = (await bed.people[0].rest.get(runs_path("trainingruns", bed.namespaces[0])))["items"]
            return alone, beside, {run["metadata"]["name"]: stands(run) for run in found}

    alone, beside, states = asyncio.run(tell())
    failed = failed_passes(log.read_text())
    assert failed.keys() == raising and min(failed.values()) >= 2, "again and again, and nobody else's"
    assert {name: states[name] for name in poisoned} == {name: poison.becomes for name, poison in poisoned.items()}
    slowest, usual = (statistics.quantiles(seconds, n=20)[-1] for seconds in (beside, alone))
    print(f"95 % of {HEALTHY} runs planned within {slowest:.2f} s beside poisoned ones, {usual:.2f} s without")
    assert slowest < 3 * usual + NOT_HELD_SECONDS
    with tally.of("misoperation", "poison") as counts:
        counts["healthy runs beside poisoned ones"] = len(beside)
        counts["passes that raised"] = failed.total()
