"""Passes that come to no end: what passes is looked at again at once, what does not gets pauses, a log line and an Event."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio import client, config
from mark_operator import cluster as connection
from mark_operator.cluster import ApiError, Resource
from mark_operator.health import Health
from mark_operator.reconcile import Reconciler
from mark_operator.seen import Body, RunKey
from mark_operator.settings import Settings
from overtaken import Overtaken

A_JOB = ("create", "job", "try", "--image=x", "--dry-run=server", "-n")
ARTIFACTS = {"data-prep": "dataset", "lora": "adapter"}


class Passes:
    """Passes over one run in this process, one after another."""

    def __init__(self, bench: Any) -> None:
        self.bench, self.key = bench, RunKey("TrainingRun", bench.namespace, "run")
        self._loop = asyncio.Runner()
        self.cluster = self._loop.run(self._connect())
        settings = Settings.model_validate({"requireGpuNodes": False})
        self._reconciler = Reconciler(self.cluster, settings, lambda: datetime.now(UTC), None, Health(60))

    async def _connect(self) -> Overtaken:
        configuration = client.Configuration()
        await config.load_kube_config(str(self.bench.server.kubeconfig()), client_configuration=configuration)
        return Overtaken(configuration)

    def look(self) -> float | None:
        return self._loop.run(self._reconciler.look_at(self.key))

    def call(self, work: Any) -> Any:
        return self._loop.run(work)

    def close(self) -> None:
        self._loop.run(self.cluster.close())
        self._loop.close()

    def complaints(self) -> list[str]:
        """The messages of the Events that say that nothing goes on."""
        return [event["message"] for event in self.bench.get("events")["items"] if event["reason"] == "PassFailed"]


@pytest.fixture
def passes(make_bench: Any, api_server: Any, namespace: str) -> Iterator[Passes]:
    made = Passes(make_bench(api_server, namespace))
    yield made
    made.close()


@contextmanager
def without(kind: str) -> Iterator[None]:
    """The API server does not know a kind, as after its CRD was deleted."""
    known = connection.RESOURCES[kind]
    connection.RESOURCES[kind] = Resource(known.api_version, kind, "nothings")
    try:
        yield
    finally:
        connection.RESOURCES[kind] = known


@contextmanager
def no_jobs(bench: Any) -> Iterator[None]:
    """The API server refuses every Job of the namespace."""
    head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": bench.namespace}}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": bench.namespace}}}
    validation = {"expression": "false", "message": "no Jobs on Sundays"}
    policy = {"matchConstraints": {"resourceRules": [rule], **here}, "validations": [validation]}
    binding = {"policyName": bench.namespace, "validationActions": ["Deny"]}
    kinds = {"ValidatingAdmissionPolicy": policy, "ValidatingAdmissionPolicyBinding": binding}
    for kind, spec in kinds.items():
        bench.server.must("apply", "-f", "-", stdin={**head, "kind": kind, "spec": spec})
    bench.wait(lambda: bench.server.kubectl(*A_JOB, bench.namespace).returncode)
    try:
        yield
    finally:
        for kind in kinds:
            bench.server.must("delete", kind, bench.namespace)


def test_conflicts_without_end_get_pauses_and_a_log_line(passes: Passes, caplog: pytest.LogCaptureFixture) -> None:
    passes.bench.run()
    counter = iter(range(100))
    passes.cluster.touch = lambda: passes.bench.patch(
        "trainingrun", "run", {"metadata": {"labels": {"touched": str(next(counter))}}}
    )
    assert [passes.look() for _ in range(7)] == [0, 0, 1, 2, 4, 8, 16]
    lines = [record for record in caplog.records if record.levelno == logging.WARNING and "Conflict" in record.message]
    assert [record.run for record in lines] == [str(passes.key)] * 5
    assert passes.complaints() == [], "these often pass by themselves"
    assert passes.look() == 32
    (complaint,) = passes.complaints()
    assert "Conflict" in complaint
    del passes.cluster.touch
    passes.look()
    assert passes.bench.status()["state"] == "PlanReady"


def test_a_name_that_is_taken_is_asked_for_as_seldom_as_the_run_is(passes: Passes) -> None:
    """Nobody tells of an object without the run's labels."""
    bench = passes.bench
    bench.run()
    passes.look()
    bench.server.must("create", "job", "run-t-preflight-1", "--image=x", "-n", bench.namespace)
    bench.confirm()
    for _ in range(2):
        assert passes.look() == Settings().timings.active_seconds
        assert "Job run-t-preflight-1 exists already" in condition_of(bench, "Progressing")["message"]
    bench.delete("job", "run-t-preflight-1")
    passes.look()
    assert bench.jobs() == ["run-t-preflight-1"]
    assert bench.get("job", "run-t-preflight-1")["metadata"]["ownerReferences"][0]["name"] == "run"


def condition_of(bench: Any, kind: str) -> Body:
    return next(item for item in bench.status()["conditions"] if item["type"] == kind)


def test_conflicts_before_a_refusal_neither_hide_nor_hasten_that_it_is_told_of_once(passes: Passes) -> None:
    """On a busy API server conflicts pass by themselves, and so does an error that comes behind them."""
    passes.bench.run()
    passes.look()
    passes.bench.confirm(suspend=True)
    passes.look()
    passes.bench.wait_for_state("Suspended")
    with no_jobs(passes.bench):
        counter = iter(range(100))
        passes.cluster.touch = lambda: passes.bench.patch(
            "trainingrun", "run", {"metadata": {"labels": {"touched": str(next(counter))}}}
        )
        passes.bench.patch("trainingrun", "run", {"spec": {"ttlSecondsAfterFinished": 9999}})
        for _ in range(4):
            passes.look()
        assert passes.complaints() == []
        del passes.cluster.touch
        passes.bench.patch("trainingrun", "run", {"spec": {"suspend": False}})
        for told in (0, 0, 1, 1, 1):
            with pytest.raises(ApiError):
                passes.look()
            assert len(passes.complaints()) == told
    assert "no Jobs on Sundays" in passes.complaints()[0]


def test_one_conflict_is_nothing_to_tell(passes: Passes, caplog: pytest.LogCaptureFixture) -> None:
    passes.bench.run()
    for attempts in (4, 5, 6):
        passes.bench.patch("trainingrun", "run", {"spec": {"maxAttempts": attempts}})
        label = {"metadata": {"labels": {"touched": str(attempts)}}}
        passes.cluster.touch = lambda label=label: passes.bench.patch("trainingrun", "run", label)
        assert passes.look() == 0
        del passes.cluster.touch
        assert passes.look() != 0
    assert passes.complaints() == [] and "Conflict" not in caplog.text


def test_what_a_trainer_tells_meanwhile_stops_no_pass(passes: Passes) -> None:
    passes.bench.run()
    words = iter(({"stage": "lora", "percent": 1, "updated": "2026-01-31T12:00:00Z"},))

    def tell() -> None:
        for progress in words:
            patch = json.dumps({"status": {"progress": progress}})
            where = ("-n", passes.bench.namespace, "--subresource=status", "--type=merge", "-p", patch)
            passes.bench.server.must("patch", "trainingrun", "run", *where)

    passes.look()
    passes.bench.patch("trainingrun", "run", {"spec": {"maxAttempts": 4}})
    passes.cluster.touch = tell
    assert passes.look() != 0
    status = passes.bench.status()
    assert (status["observedGeneration"], status["progress"]["percent"]) == (2, 1)


def test_a_started_run_that_cannot_go_on_says_so(passes: Passes) -> None:
    passes.bench.run()
    passes.look()
    passes.bench.confirm(suspend=True)
    passes.look()
    passes.bench.wait_for_state("Suspended")
    with no_jobs(passes.bench):
        passes.bench.patch("trainingrun", "run", {"spec": {"suspend": False}})
        for number in range(5):
            with pytest.raises(ApiError):
                passes.look()
            assert len(passes.complaints()) == (number >= 2)
    assert "no Jobs on Sundays" in passes.complaints()[0]
    passes.bench.wait(lambda: passes.bench.server.kubectl(*A_JOB, passes.bench.namespace).returncode == 0)
    passes.look()
    assert passes.bench.jobs() == ["run-t-preflight-1"]


def finish_stages(passes: Passes) -> None:
    """A run that shall put its result into a Model, up to the end of its last stage, which no pass has seen."""
    passes.bench.run(output={"model": "tuned"})
    passes.look()
    passes.bench.confirm()
    for stage in ("preflight", "data-prep", "lora"):
        passes.look()
        kind = ARTIFACTS.get(stage)
        found = [{"kind": kind, "path": f"{kind}/x", "digest": "ab" * 32}] if kind else []
        passes.bench.finish(f"run-t-{stage}-1", artifacts=found)


def test_a_model_that_another_run_made_first_is_taken_as_it_is(passes: Passes) -> None:
    bench = passes.bench
    finish_stages(passes)
    model = {"apiVersion": "training.mark.dev/v1alpha1", "kind": "Model", "metadata": {"name": "tuned"}}
    passes.cluster.quicker = lambda: bench.apply({**model, "spec": {"family": "transformer"}})
    assert passes.look() == 0
    passes.look()
    assert bench.status()["state"] == "Succeeded"
    assert [version["run"] for version in bench.get("model", "tuned")["status"]["versions"]] == ["run"]


def test_a_kind_that_is_missing_for_long_is_told_of(passes: Passes, caplog: pytest.LogCaptureFixture) -> None:
    finish_stages(passes)
    with without("Model"):
        assert [passes.look() for _ in range(5)] == [1, 1, 1, 2, 4]
    assert "404" in caplog.text and len(passes.complaints()) == 1
    passes.look()
    assert passes.bench.status()["state"] == "Succeeded"


def test_a_later_job_of_the_same_name_is_left_alone(passes: Passes) -> None:
    bench = passes.bench
    container = {"name": "x", "image": "x"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    bench.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}, "spec": {"template": template}})
    uid = bench.get("job", "one")["metadata"]["uid"]
    with pytest.raises(ApiError) as refused:
        passes.call(passes.cluster.set_suspend(bench.namespace, "one", "f" * len(uid), True))
    assert refused.value.reason == "Conflict" and not bench.get("job", "one")["spec"]["suspend"]
    passes.call(passes.cluster.annotate("Job", bench.namespace, "one", "f" * len(uid), {"step": "1"}))
    assert "step" not in bench.get("job", "one")["metadata"].get("annotations", {})
    passes.call(passes.cluster.set_suspend(bench.namespace, "one", uid, True))
    assert bench.get("job", "one")["spec"]["suspend"] is True
