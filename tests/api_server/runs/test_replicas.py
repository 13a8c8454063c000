"""Restarts, several replicas, an API server that is away, and objects that are odd: nothing runs twice, and nothing is lost."""

import asyncio
import json
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_log import AuditLog, writes_of
from control_plane import AUDITED
from kubernetes.aio import client, config
from mark_operator.cluster import ApiError, Cluster
from mark_operator.settings import Settings

DIGEST = "ab" * 32
TAKEOVER_SECONDS = 15


def artifact(kind: str) -> dict[str, str]:
    return {"kind": kind, "path": f"{kind}/x", "digest": DIGEST}


@pytest.fixture
def alone(api_server: Any, namespace: str, tmp_path: Path, make_operator: Any) -> Iterator[Any]:
    """Makes operators that look at this test's namespace only; all are gone at its end."""
    made: list[Any] = []

    def make(name: str = "one", **settings: Any) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        scope = {"operatorNamespace": namespace, "watchNamespaces": [namespace], "requireGpuNodes": False}
        # Short, so that a successor of one that was killed need not wait long.
        scope["timings"] = {"leaseSeconds": 3, "renewSeconds": 1}
        made.append(make_operator(api_server, folder, **{**scope, **settings}))
        return made[-1]

    yield make
    for operator in made:
        operator.kill()


@pytest.fixture
def bench(make_bench: Any, api_server: Any, namespace: str) -> Any:
    return make_bench(api_server, namespace)


def test_an_operator_that_dies_all_the_time_runs_each_stage_once(alone: Any, bench: Any) -> None:
    operator = alone()
    operator.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    bench.confirm()
    stages = {"preflight": [], "data-prep": [artifact("dataset")], "lora": [artifact("adapter")]}
    for stage, artifacts in stages.items():
        bench.wait_for_job(f"run-t-{stage}-1")
        operator.kill()
        bench.finish(f"run-t-{stage}-1", artifacts=artifacts)
        operator.start()
    bench.wait_for_state("Succeeded", seconds=60)
    assert bench.jobs() == ["run-t-data-prep-1", "run-t-lora-1", "run-t-preflight-1"]


def test_a_standby_takes_over_and_only_one_acts(alone: Any, bench: Any) -> None:
    first, second = alone("first"), alone("second")
    first.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    second.start()
    time.sleep(4)
    assert "leading" in first.log and "leading" not in second.log
    first.kill()
    bench.confirm()
    before = time.monotonic()
    bench.wait_for_job("run-t-preflight-1", seconds=60)
    assert "leading" in second.log
    print(f"took over after {time.monotonic() - before:.1f} s")


@pytest.mark.slow
def test_a_standby_acts_within_fifteen_seconds_of_a_kill(alone: Any, bench: Any) -> None:
    """With the default settings, and every run exactly once."""
    timings = Settings().timings.to_dict()
    first, second = alone("first", timings=timings), alone("second", timings=timings)
    first.start()
    first.wait_for_log("leading")
    second.start()
    second.wait_for_log("standing by")
    runs = [f"run-{number}" for number in range(5)]
    for name in runs:
        bench.run(name)
    for name in runs:
        bench.wait_for_state("PlanReady", name, seconds=60)
    time.sleep(timings["renewSeconds"])
    first.kill()
    killed = time.monotonic()
    for name in runs:
        bench.confirm(name)
    bench.wait(lambda: len(bench.jobs()) == len(runs), 60)
    seconds = time.monotonic() - killed
    print(f"the first Jobs {seconds:.1f} s after the kill")
    assert seconds < TAKEOVER_SECONDS and "leading" in second.log
    assert bench.jobs() == [f"{name}-t-preflight-1" for name in runs]
    transitions = bench.get("lease", "mark-operator")["spec"]["leaseTransitions"]
    assert transitions == 1


def test_a_leader_that_is_told_to_stop_hands_over_at_once(alone: Any, bench: Any) -> None:
    first, second = alone("first"), alone("second")
    first.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    second.start()
    time.sleep(4)
    before = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - before < 5, "it ends quickly"
    lease = bench.get("lease", "mark-operator")["spec"]
    assert lease.get("holderIdentity", "") == "" or "leading" in second.log
    bench.confirm()
    bench.wait_for_job("run-t-preflight-1", seconds=30)


@pytest.mark.slow
def test_a_leader_that_stood_still_writes_nothing_when_it_goes_on(alone: Any, bench: Any, api_server: Any) -> None:
    """As on a machine that halts for a while, with the default settings. One story, each Job once."""
    timings = Settings().timings.to_dict()
    first, second = alone("first", timings=timings), alone("second", timings=timings)
    first.use(api_server.kubeconfig(AUDITED))  # its calls alone are written down
    first.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    second.start()
    second.wait_for_log("standing by")
    bench.confirm()
    bench.wait_for_job("run-t-preflight-1", seconds=60)
    bench.finish("run-t-preflight-1")
    bench.wait_for_job("run-t-data-prep-1", seconds=60)
    # What it hears last is for it to act on; by then the other one has.
    bench.finish("run-t-data-prep-1", artifacts=[artifact("dataset")])
    first.send(signal.SIGSTOP)
    second.wait_for_log("leading")
    bench.wait_for_job("run-t-lora-1", seconds=60)
    audit = AuditLog(api_server.audit_log)
    first.send(signal.SIGCONT)
    assert first.ended(30) == 1 and "LeaseLostError" in first.log
    bench.finish("run-t-lora-1", artifacts=[artifact("adapter")])
    bench.wait_for_state("Succeeded", seconds=60)
    # What it was about to send when it was stopped is still sent, and refused, since the run has a newer version.
    accepted = Counter({call: count for call, count in audit.take().items() if call.accepted})
    assert writes_of(accepted, bench.namespace) == Counter()
    assert bench.jobs() == ["run-t-data-prep-1", "run-t-lora-1", "run-t-preflight-1"]
    assert [(stage["attempt"], stage["countedFailures"]) for stage in bench.status()["stages"]] == [(1, 0)] * 3


def test_a_restart_over_finished_runs_writes_nothing(alone: Any, bench: Any) -> None:
    operator = alone()
    operator.start()
    for number in range(5):
        bench.run(f"run-{number}")
    for number in range(5):
        bench.wait_for_state("PlanReady", f"run-{number}", seconds=60)
    before = {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in bench.get("trainingruns")["items"]
    }
    assert operator.stop() == 0
    operator.start()
    time.sleep(6)
    after = {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in bench.get("trainingruns")["items"]
    }
    assert after == before and bench.jobs() == []


class Relay:
    """Forwards bytes to the API server, until it is cut: then it goes silent, without closing anything."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, cut: bool) -> None:
        (self._cut.set if cut else self._cut.clear)()

    def _accept(self) -> None:
        while True:
            mine, _ = self._listener.accept()
            theirs = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((mine, theirs), (theirs, mine)):
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                while self._cut.is_set():
                    time.sleep(0.1)
                target.sendall(data)
        except OSError:
            target.close()


def test_an_api_server_that_goes_silent_is_waited_for(alone: Any, bench: Any, api_server: Any, tmp_path: Path) -> None:
    relay = Relay(int(api_server.url.rsplit(":", 1)[1]))
    config = json.loads(Path(api_server.kubeconfig()).read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
    path = tmp_path / "relayed.kubeconfig"
    path.write_text(json.dumps(config))
    operator = alone()
    operator.use(path)
    operator.start(forever=True)
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    relay.cut(True)
    bench.confirm()
    time.sleep(20)
    relay.cut(False)
    before = time.monotonic()
    bench.wait_for_job("run-t-preflight-1", seconds=90)
    print(f"back after {time.monotonic() - before:.1f} s, {operator.starts} starts")
    assert operator.starts <= 3, "no crash loop"


def test_an_odd_object_harms_no_other(alone: Any, bench: Any) -> None:
    operator = alone()
    bench.run("odd")
    bench.confirm("odd")
    # A status that no pass of ours ever wrote: started, with a plan that nobody can make again.
    started = {"startedAt": "2026-01-01T00:00:00Z"}
    confirmation = {"planHash": "f" * 64, "at": "2026-01-01T00:00:00Z"}
    bench.patch("trainingrun", "odd", {"status": {**started, "confirmation": confirmation}}, "--subresource=status")
    operator.start()
    bench.run("healthy")
    bench.wait_for_state("PlanReady", "healthy", seconds=60)
    status = bench.wait_for_state("Failed", "odd")
    assert status["conditions"][0]["reason"] == "PlanLost" and bench.jobs() == []


def test_an_evaluation_runs_and_promotes(alone: Any, bench: Any) -> None:
    alone().start()
    version = {
        "digest": DIGEST, "path": "adapters/x", "claimName": "workspace", "run": "r", "runUid": "u", "planHash": DIGEST,
        "base": "base/tiny", "created": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    head = {"apiVersion": "training.mark.dev/v1alpha1"}
    bench.apply({**head, "kind": "Model", "metadata": {"name": "tuned"}, "spec": {"family": "transformer"}})
    bench.patch("model", "tuned", {"status": {"versions": [version]}}, "--subresource=status")
    spec = {
        "workspace": {"claimName": "workspace"},
        "model": {"name": "tuned"},
        "dataset": {"path": "datasets/x"},
        "resources": {"gpusPerNode": 0},
        "pass": [{"metric": "f1", "condition": "retrieved", "minimum": "0.40"}],
    }
    bench.apply({**head, "kind": "EvalRun", "metadata": {"name": "check"}, "spec": spec})
    bench.wait(lambda: bench.get("evalrun", "check").get("status", {}).get("state") == "PlanReady", 60)
    bench.patch("evalrun", "check", {"spec": {"dryRun": False, "confirm": True}})
    bench.finish("check-e-preflight-1")
    measures = [{"name": "tuned.retrieved.f1", "value": "0.52"}]
    bench.finish("check-e-eval-1", artifacts=[artifact("report")], measures=measures)
    bench.wait(lambda: bench.get("evalrun", "check")["status"]["state"] == "Succeeded")
    status = bench.get("model", "tuned")["status"]
    assert status["current"] == DIGEST and status["versions"][0]["passed"] is True
    bench.patch("model", "tuned", {"spec": {"promotedVersion": "f" * 64}})
    bench.wait(lambda: bench.get("model", "tuned")["status"]["current"] == "")


def test_memory_stays_small(alone: Any, bench: Any) -> None:
    operator = alone()
    operator.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    print(f"resident: {operator.resident_megabytes:.0f} MB")
    assert operator.resident_megabytes < 200


def test_metrics_logs_and_events_tell_of_a_run(alone: Any, bench: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    operator = alone(healthPort=port)
    operator.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    bench.confirm()
    bench.finish("run-t-preflight-1", 64, outcome="UserMistake", reason="NoSuchModel", message="it is not there")
    bench.wait_for_state("Failed")

    def tells(line: str) -> bool:
        return line in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()

    for line in (
        'mark_operator_attempts_total{kind="TrainingRun",outcome="Failed",stage="preflight"} 1.0',
        'mark_operator_runs{kind="TrainingRun",state="Failed"} 1.0',
        'mark_operator_api_calls_total{resource="configmaps",status="201",verb="POST"} 1.0',
        "mark_operator_leading 1.0",
    ):
        bench.wait(lambda line=line: tells(line))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
        assert answer.status == 200
    lines = [json.loads(line) for line in operator.log.splitlines()]
    about = [line for line in lines if line.get("run") == f"TrainingRun {bench.namespace}/run"]
    assert {"created Job run-t-preflight-1", "NoSuchModel: it is not there"} <= {line["message"] for line in about}
    told = [event["reason"] for event in bench.get("events")["items"] if event["involvedObject"]["name"] == "run"]
    assert {"PlanReady", "Confirmed", "NoSuchModel"} <= set(told)


def test_signals_before_leading_are_obeyed(alone: Any) -> None:
    first, second = alone("first"), alone("second")
    first.start()
    first.wait_for_log("leading")
    second.start()
    second.wait_for_log("standing by")
    assert second.stop() == 0


def test_a_namespace_that_ends_is_left_alone(alone: Any, bench: Any, namespace: str) -> None:
    # The operator's own Lease lies elsewhere: nothing can be created in a namespace that ends.
    operator = alone(operatorNamespace="default", leaseName=f"of-{namespace}")
    operator.start()
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    bench.server.must("delete", "namespace", namespace, "--wait=false")
    bench.confirm()
    time.sleep(6)
    assert bench.jobs() == [] and "the pass failed" not in operator.log


def test_a_status_decided_on_an_old_object_is_refused(api_server: Any, bench: Any) -> None:
    bench.run()
    old = bench.get("trainingrun", "run")["metadata"]["resourceVersion"]
    bench.patch("trainingrun", "run", {"spec": {"suspend": True}})
    metadata = {"name": "run", "namespace": bench.namespace, "resourceVersion": old}
    body = {
        "apiVersion": "training.mark.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": metadata,
        "status": {"state": "Running"},
    }

    async def write() -> ApiError:
        configuration = client.Configuration()
        await config.load_kube_config(str(api_server.kubeconfig()), client_configuration=configuration)
        cluster = Cluster(configuration)
        try:
            await cluster.apply_status(body)
        except ApiError as error:
            return error
        finally:
            await cluster.close()
        raise AssertionError("an old leader overwrote a newer object")

    assert asyncio.run(write()).reason == "Conflict"
    assert bench.status() == {}
