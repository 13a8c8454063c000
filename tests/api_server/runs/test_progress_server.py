"""Progress over HTTPS, with tokens of a real API server: believed from live Pods of the run, and from nobody else."""

import asyncio
import base64
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio import client, config
from mark_operator import progress_server
from mark_operator.certificates import ServerContext, new_authority
from mark_operator.progress_server import ProgressServer
from overtaken import Overtaken

POST = {
    "trainerStatus": {
        "progressPercentage": 40,
        "metrics": [{"name": "loss", "value": "2.5"}, {"name": "step", "value": "4"}],
    }
}


class Trainer:
    """A trainer's Pod, and what it holds: the CA certificate and its token."""

    def __init__(self, bench: Any, url: str, pod: str, run: str = "run") -> None:
        self.bench, self.url, self.pod = bench, url, pod
        self.audience = f"training.mark.dev/trainingruns/{bench.namespace}/{run}"
        self.path = f"/v1/namespaces/{bench.namespace}/trainingruns/{run}/progress"

    def token(self, audience: str | None = None, bound: bool = True) -> str:
        words = ["create", "token", "default", "-n", self.bench.namespace, f"--audience={audience or self.audience}"]
        uid = self.bench.get("pod", self.pod)["metadata"]["uid"]
        binding = ["--bound-object-kind=Pod", f"--bound-object-name={self.pod}", f"--bound-object-uid={uid}"]
        return str(self.bench.server.must(*words, *(binding if bound else []))).strip()

    def post(self, token: str, body: Any = POST, path: str | None = None) -> int:
        """The answer's status."""
        authority = self.bench.get("configmap", "run-t-plan")["data"]["ca.crt"]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + (path or self.path), data=data, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(
                request, timeout=10, context=ssl.create_default_context(cadata=authority)
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def serve(make_operator: Any, api_server: Any, namespace: str, tmp_path: Any) -> Iterator[Any]:
    """Starts an operator with a progress server; the server's address. All are gone at the end."""
    made = []

    def start(name: str = "one", **settings: Any) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        (tmp_path / name).mkdir()
        scope = {"operatorNamespace": namespace, "watchNamespaces": [namespace], "requireGpuNodes": False}
        url = f"https://127.0.0.1:{port}"
        made.append(make_operator(api_server, tmp_path / name, progressUrl=url, progressPort=port, **scope, **settings))
        made[-1].start()
        return url

    yield start
    for operator in made:
        operator.kill()


def started(bench: Any, url: str) -> Trainer:
    """A started run whose preflight Pod works."""
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    bench.confirm()
    return Trainer(bench, url, bench.pod_of(bench.wait_for_job("run-t-preflight-1")))


@pytest.fixture
def trainer(serve: Any, make_bench: Any, api_server: Any, namespace: str) -> Trainer:
    return started(make_bench(api_server, namespace), serve())


def test_only_a_live_pod_of_the_run_is_believed(trainer: Trainer) -> None:
    bench = trainer.bench
    assert trainer.post(trainer.token()) == 200
    progress = bench.wait(lambda: bench.status().get("progress"))
    assert (progress["percent"], progress["loss"], progress["step"], progress["stage"]) == (40, "2.5", 4, "preflight")
    check_owner(bench)
    for audience in ("", "training.mark.dev/trainingruns/other/run", "https://kubernetes.default.svc"):
        wrong = trainer.token(audience or "mark") if audience != "" else "junk"
        assert trainer.post(wrong) == 401
    assert trainer.post(trainer.token(bound=False)) == 401, "a token of no Pod"
    assert trainer.post(trainer.token(), path=trainer.path.replace("/run/", "/other/")) == 401
    assert trainer.post(trainer.token(), path="/v1/anything") == 404
    bench.apply({"apiVersion": "v1", "kind": "Pod", **stranger()})
    other = Trainer(bench, trainer.url, "stranger")
    assert other.post(other.token()) == 403, "a Pod of the same service account that is not the run's"
    token = trainer.token()
    bench.delete("pod", trainer.pod, "--force", "--grace-period=0")
    assert trainer.post(token) in (401, 403), "a Pod that is gone"


def stranger() -> dict[str, Any]:
    container = {"name": "x", "image": "x"}
    return {"metadata": {"name": "stranger"}, "spec": {"serviceAccountName": "default", "containers": [container]}}


def check_owner(bench: Any) -> None:
    fields = bench.get("trainingrun", "run", "--show-managed-fields")["metadata"]["managedFields"]
    (mine,) = [entry for entry in fields if entry["manager"] == "mark-progress"]
    assert set(mine["fieldsV1"]["f:status"]) == {"f:progress"}
    (ours,) = [entry for entry in fields if entry["manager"] == "mark-operator"]
    assert "f:progress" not in ours["fieldsV1"]["f:status"]


def test_bodies_and_rates_are_limited(trainer: Trainer) -> None:
    token = trainer.token()
    assert trainer.post(token, b"{") == 400
    assert trainer.post(token, {"x": 1}) == 400
    assert trainer.post(token, b"x" * 100_000) == 413
    for odd in (b"1" + b"0" * 400, b"[" * 30_000):
        body = b'{"trainerStatus": {"progressPercentage": 1, "metrics": [{"name": "loss", "value": %s}]}}' % odd
        assert trainer.post(token, body) == 400
    answers = [trainer.post(token, {"trainerStatus": {"progressPercentage": number}}) for number in range(70)]
    assert answers[0] == 200 and answers[-1] == 429
    assert trainer.post(trainer.token(), {"trainerStatus": {"progressPercentage": 77}}) == 200, "another token"
    trainer.bench.wait(lambda: trainer.bench.status().get("progress", {}).get("percent") == 77, 60)


class Replica:
    """One more progress server, in this process, whose questions to the API server are counted."""

    def __init__(self, api_server: Any, touch: Callable[[], None] = lambda: None) -> None:
        self._kubeconfig = str(api_server.kubeconfig())
        self._touch = touch
        self.asked: Counter[str] = Counter()

    async def __aenter__(self) -> "Replica":
        configuration = client.Configuration()
        await config.load_kube_config(self._kubeconfig, client_configuration=configuration)
        self._cluster = Overtaken(configuration, lambda verb, resource, status: self.asked.update([resource]))
        self._cluster.touch = self._touch
        self.url = "https://127.0.0.1:0"
        server = ProgressServer(self._cluster, lambda: datetime.now(UTC), 15)
        authority = new_authority(datetime.now(UTC))
        self._runner = await server.serve(0, ServerContext(authority, self.url))
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        self._trust = ssl.create_default_context(cadata=authority.pem)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._cluster.close()

    async def post(self, path: str, token: str) -> int:
        """The answer's status; one that refuses for now must say for how long."""
        return await asyncio.to_thread(self._post, path, token)

    def _post(self, path: str, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            self.url + path, data=json.dumps(POST).encode(), headers=headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self._trust) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            assert error.code != 429 or int(error.headers["Retry-After"]) > 0
            return error.code


@pytest.mark.parametrize("limit", ["STRANGERS_PER_MINUTE", "STRANGERS_PER_ADDRESS"])
def test_tokens_of_nobody_cost_few_reviews_and_starve_no_trainer(
    trainer: Trainer, api_server: Any, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(progress_server, limit, 5)
    monkeypatch.setattr(progress_server, "BELIEVED_SECONDS", 0.0)
    token = trainer.token()

    async def story() -> None:
        async with Replica(api_server) as replica:
            assert await replica.post(trainer.path, token) == 200
            answers = [await replica.post(trainer.path, f"junk-{number}") for number in range(20)]
            assert answers == [401] * 4 + [429] * 16
            assert replica.asked["tokenreviews"] == 5
            assert await replica.post(trainer.path, token) == 200, "though it is reviewed anew"
            assert replica.asked["tokenreviews"] == 6

    asyncio.run(story())


def test_the_end_is_written_at_once_and_the_authority_is_kept(trainer: Trainer) -> None:
    bench, token = trainer.bench, trainer.token()
    assert trainer.post(token) == 200
    assert trainer.post(token, {"trainerStatus": {"progressPercentage": 100}}) == 200
    assert bench.status()["progress"]["percent"] == 100
    secret = bench.get("secret", "mark-operator-authority")["data"]
    mounted = bench.get("configmap", "run-t-plan")["data"]["ca.crt"]
    assert base64.b64decode(secret["ca.crt"]).decode() == mounted


def told(step: int, **metrics: Any) -> dict[str, Any]:
    listed = [{"name": name, "value": str(value)} for name, value in {"step": step, "steps": 100, **metrics}.items()]
    return {"trainerStatus": {"progressPercentage": step, "metrics": listed}}


def series(bench: Any) -> dict[str, list[int]]:
    """The steps of each series in the run's metrics."""
    found = json.loads(bench.get("configmap", "run-t-metrics")["data"]["metrics.json"])
    return {item["name"]: [step for step, _, _ in item["points"]] for item in found["series"]}


@pytest.mark.slow
def test_metrics_and_checkpoint_are_kept_where_people_and_schedulers_look(
    serve: Any, make_bench: Any, api_server: Any, namespace: str
) -> None:
    trainer = started(make_bench(api_server, namespace), serve(timings={"progressSeconds": 6}))
    bench, token = trainer.bench, trainer.token()
    assert trainer.post(token, told(1, loss=2.5, learningRate="2e-4")) == 200
    assert series(bench) == {"loss": [1], "learningRate": [1]}
    for step in (2, 3, 4):
        assert trainer.post(token, told(step, loss=2.0, checkpointStep=2, checkpointAgeSeconds=5)) == 200
    assert series(bench)["loss"] == [1], "what comes within the pause is written together"
    bench.wait(lambda: series(bench)["loss"] == [1, 2, 3, 4])
    kept = bench.wait(lambda: bench.status().get("lastCheckpoint"))
    assert (kept["stage"], kept["step"]) == ("preflight", 2)
    job = bench.wait(lambda: bench.get("job", "run-t-preflight-1")["metadata"].get("annotations"))
    prefix = "training.mark.dev/last-checkpoint-"
    assert (job[f"{prefix}step"], job[f"{prefix}time"]) == ("2", kept["time"])
    stored = bench.get("configmap", "run-t-metrics", "--show-managed-fields")["metadata"]
    assert [entry["manager"] for entry in stored["managedFields"]] == ["mark-progress"]
    assert stored["ownerReferences"][0]["uid"] == bench.get("trainingrun", "run")["metadata"]["uid"]
    # The operator's own status writes leave what trainers told alone.
    bench.patch("trainingrun", "run", {"spec": {"suspend": True}})
    bench.wait_for_state("Suspended")
    assert bench.status()["lastCheckpoint"] == kept and bench.status()["progress"]["step"] == 4


@pytest.mark.slow
def test_two_replicas_write_one_story_at_one_pace(serve: Any, make_bench: Any, api_server: Any, namespace: str) -> None:
    timings = {"progressSeconds": 3}
    bench = make_bench(api_server, namespace)
    first = started(bench, serve("first", timings=timings))
    second = Trainer(bench, serve("second", timings=timings), first.pod)
    token = first.token()
    bench.wait(lambda: _answers(second, token))
    versions = set()
    end = time.monotonic() + 9
    step = 0
    while time.monotonic() < end:
        step += 1
        assert (first if step % 2 else second).post(token, told(step, loss=1)) == 200
        versions.add(bench.get("configmap", "run-t-metrics")["metadata"]["resourceVersion"])
        time.sleep(0.3)
    assert len(versions) <= 5, "about one write in three seconds"
    bench.wait(lambda: len(series(bench)["loss"]) >= step)
    assert series(bench)["loss"] == list(range(1, step + 1)), "no point is lost, and all are in order"
    bench.wait(lambda: bench.status()["progress"]["step"] >= step - 1)


@pytest.mark.slow
def test_a_replica_with_nothing_newer_takes_no_turn(
    serve: Any, make_bench: Any, api_server: Any, namespace: str
) -> None:
    """Two replicas that hear posts by turns could keep each other from ever writing the status."""
    timings = {"progressSeconds": 6}
    bench = make_bench(api_server, namespace)
    first = started(bench, serve("first", timings=timings))
    second = Trainer(bench, serve("second", timings=timings), first.pod)
    token = first.token()
    bench.wait(lambda: _answers(second, token))
    time.sleep(7)
    begin = time.monotonic()
    the_end = told(3, loss=3)
    the_end["trainerStatus"]["progressPercentage"] = 100
    posts = [
        (0, first, told(1, loss=3)),
        (1, second, told(2, loss=3)),
        (2, first, the_end),
        (10, first, told(4, loss=3)),
    ]
    for at, replica, post in posts:
        time.sleep(max(0.0, begin + at - time.monotonic()))
        assert replica.post(token, post) == 200
    assert bench.status()["progress"]["step"] == 4, "not kept waiting by step 2, written two seconds ago"
    assert series(bench)["loss"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_nothing_is_written_for_a_run_that_is_gone(
    serve: Any, make_bench: Any, api_server: Any, namespace: str
) -> None:
    trainer = started(make_bench(api_server, namespace), serve(timings={"progressSeconds": 3}))
    bench, token = trainer.bench, trainer.token()
    assert trainer.post(token, told(1, loss=2)) == 200
    assert trainer.post(token, told(2, loss=2)) == 200, "this one waits for its turn"
    bench.delete("trainingrun", "run")
    bench.delete("configmap", "run-t-metrics")
    time.sleep(7)
    assert "run-t-metrics" not in api_server.must("get", "configmaps", "-n", namespace, "-o", "name")


def _answers(trainer: Trainer, token: str) -> bool:
    try:
        return trainer.post(token, told(0)) == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_config_map_of_somebody_else_is_left_alone(trainer: Trainer) -> None:
    bench = trainer.bench
    bench.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "run-t-metrics"}, "data": {"mine": "x"}})
    assert trainer.post(trainer.token(), told(1, loss=2)) == 200
    assert bench.wait(lambda: bench.status().get("progress"))["step"] == 1
    assert bench.get("configmap", "run-t-metrics")["data"] == {"mine": "x"}


@pytest.mark.slow
def test_a_quota_on_config_maps_costs_the_curves_and_not_the_progress(trainer: Trainer) -> None:
    bench = trainer.bench
    hard = {"configmaps": "1"}
    head = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}}
    bench.apply({**head, "spec": {"hard": hard}})
    bench.patch("resourcequota", "full", {"status": {"hard": hard, "used": hard}}, "--subresource=status")
    assert trainer.post(trainer.token(), told(1, loss=2)) == 200
    assert bench.wait(lambda: bench.status().get("progress"))["step"] == 1
    assert "run-t-metrics" not in bench.server.must("get", "configmaps", "-n", bench.namespace, "-o", "name")


def test_what_a_trainer_told_of_a_run_that_was_made_anew_is_not_the_new_ones(trainer: Trainer, api_server: Any) -> None:
    bench, token = trainer.bench, trainer.token()

    def make_anew() -> None:
        bench.delete("trainingrun", "run")
        bench.run()

    async def story() -> None:
        async with Replica(api_server, make_anew) as replica:
            assert await replica.post(trainer.path, token) == 200

    asyncio.run(story())
    bench.wait_for_state("PlanReady")
    assert "progress" not in bench.status()


def test_a_write_in_between_costs_no_progress(trainer: Trainer, api_server: Any) -> None:
    bench, token = trainer.bench, trainer.token()

    async def story() -> None:
        touch = {"metadata": {"labels": {"touched": "yes"}}}
        async with Replica(api_server, lambda: bench.patch("trainingrun", "run", touch)) as replica:
            assert await replica.post(trainer.path, token) == 200

    asyncio.run(story())
    assert bench.status()["progress"]["percent"] == 40
