"""The probes and the metrics: what makes an operator sick, and that every series is documented."""

import asyncio
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mark_crds.run import Failure, RunStatus, StageStatus
from mark_operator import clock, health
from mark_operator.cluster import _resource_of
from mark_operator.health import Health
from mark_operator.run.objects import bind
from mark_operator.run.usage import Usage, ended_attempts, gpu_seconds
from run_builders import KEY, NOON, UID, Body, rendering_of, training

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def ask(subject: Health, path: str, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """(status, body) of a request to the real server."""

    async def go() -> tuple[int, str]:
        runner = await subject.serve(0)
        port = runner.addresses[0][1]
        try:
            before()
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()
        finally:
            await runner.cleanup()

    return asyncio.run(go())


def test_a_loop_that_stands_still_is_sick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LONGEST_LAG_SECONDS", 0.2)
    subject = Health(relist_seconds=60)
    assert ask(subject, "/healthz", lambda: time.sleep(0.3))[0] == 500
    assert ask(Health(relist_seconds=60), "/healthz")[0] == 200


def test_a_leader_that_hears_nothing_is_sick_and_a_standby_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LISTS_MISSED", 0)
    monkeypatch.setattr(health, "LONGEST_LAG_SECONDS", 0.5)
    standby, leader, listing, hearing = (Health(relist_seconds=60) for _ in range(4))
    monkeypatch.setattr(health, "LONGEST_LAG_SECONDS", 60)
    for subject in (leader, listing, hearing):
        subject.count_runs({})
    time.sleep(0.6)
    listing.count_runs({})
    hearing.heard()
    assert [ask(subject, "/healthz")[0] for subject in (standby, leader, listing, hearing)] == [200, 500, 200, 200]
    assert re.search(r"last news \d+ s ago", ask(leader, "/healthz")[1])


def test_readiness_does_not_need_leadership() -> None:
    subject = Health(relist_seconds=60)
    assert ask(subject, "/readyz")[0] == 503
    subject.ready()
    assert ask(subject, "/readyz")[0] == 200


def test_every_series_is_documented_and_every_documented_one_is_there() -> None:
    subject = Health(relist_seconds=60)
    subject.moved("TrainingRun", None, "Running")
    subject.answered("GET", "jobs", 200)
    subject.attempt_ended("TrainingRun", "lora", "Succeeded")
    subject.held_gpus("TrainingRun", "lora", 12.5)
    text = ask(subject, "/metrics")[1]
    told = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    told = {name: kind for name, kind in told.items() if not name.endswith("_created")}
    documented = dict(re.findall(r"^\| `(mark_operator_\w+)` \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE))
    assert told == documented
    assert 'mark_operator_gpu_seconds_total{kind="TrainingRun",stage="lora"} 12.5' in text


def test_runs_are_counted_as_they_move_and_set_right_by_lists() -> None:
    subject = Health(relist_seconds=60)
    subject.count_runs({("TrainingRun", "Running"): 3})
    subject.moved("TrainingRun", "Running", "Succeeded")
    subject.moved("TrainingRun", None, "Planning")
    subject.moved("TrainingRun", "Planning", "Planning")
    text = ask(subject, "/metrics")[1]
    counts = dict(re.findall(r'mark_operator_runs\{kind="TrainingRun",state="(\w+)"\} (\S+)', text))
    assert counts == {"Running": "2.0", "Succeeded": "1.0", "Planning": "1.0"}
    subject.count_runs({("TrainingRun", "Succeeded"): 1})
    assert 'state="Running"' not in ask(subject, "/metrics")[1]


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/nodes", "nodes"),
        ("/api/v1/namespaces/a/pods/b", "pods"),
        ("/apis/batch/v1/namespaces/a/jobs", "jobs"),
        ("/apis/training.mark.dev/v1alpha1/trainingruns", "trainingruns"),
        ("/apis/training.mark.dev/v1alpha1/namespaces/a/trainingruns/b/status", "trainingruns/status"),
        ("/apis/authentication.k8s.io/v1/tokenreviews", "tokenreviews"),
    ],
)
def test_calls_are_counted_by_resource(path: str, resource: str) -> None:
    assert _resource_of(path) == resource


LORA = bind(
    rendering_of(training(resources={"nodes": 2, "gpusPerNode": 4})).jobs[2], kind=KEY.kind, uid=UID, attempt=1
)


def job(start: float | None = 0, end: float | None = None, verdict: str = "Complete") -> Body:
    """The Job of two nodes with four GPUs each, that started and ended so many seconds after noon."""

    def moment(seconds: float) -> str:
        return clock.text_of(NOON + timedelta(seconds=seconds))

    conditions = [] if end is None else [{"type": verdict, "status": "True", "lastTransitionTime": moment(end)}]
    return {**LORA, "status": {"conditions": conditions, **({} if start is None else {"startTime": moment(start)})}}


@pytest.mark.parametrize(
    ("body", "seconds"),
    [(job(0, 100), 800), (job(50, 100, "Failed"), 400), (job(40), 480), (job(None), 0), (job(200, 100), 0)],
)
def test_gpu_seconds_are_those_of_all_pods(body: Body, seconds: float) -> None:
    assert gpu_seconds(body, NOON + timedelta(seconds=100)) == seconds


def stage(state: Any, attempt: int = 1, counted: int = 0) -> RunStatus:
    failure = Failure(reason="x", message="x") if state == "Failed" else None
    entry = StageStatus(
        stage="lora", state=state, job=LORA["metadata"]["name"], attempt=attempt, counted_failures=counted, failure=failure
    )
    return RunStatus(stages=(entry,))


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        (stage("Running"), stage("Succeeded"), "Succeeded"),
        (stage("Running"), stage("Failed", counted=1), "Failed"),
        (stage("Running", counted=1), stage("Failed", counted=1), "Interrupted"),
        (stage("Failed", 1, 1), stage("Failed", 2, 2), "Failed"),
        (stage("Running"), stage("Cancelled"), "Cancelled"),
        (RunStatus(), stage("Succeeded"), "Succeeded"),
        (stage("Pending"), stage("Running"), None),
        (stage("Succeeded"), stage("Succeeded"), None),
    ],
)
def test_an_attempt_is_counted_once_when_it_ends(old: RunStatus, new: RunStatus, outcome: Any) -> None:
    ended = ended_attempts(old, new, {LORA["metadata"]["name"]: job(0, 10)}, NOON)
    assert ended == (() if outcome is None else (Usage("lora", outcome, 80),))


def test_what_a_deleted_job_held_is_told_of_its_deletion_alone() -> None:
    ended = ended_attempts(stage("Running"), stage("Cancelled"), {LORA["metadata"]["name"]: job(0)}, NOON)
    assert ended == (Usage("lora", "Cancelled", 0),)
