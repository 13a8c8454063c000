"""Progress over HTTPS, with tokens of a real API server: believed from live Pods of the run, and from nobody else."""

import base64
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

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
def trainer(make_operator: Any, make_bench: Any, api_server: Any, namespace: str, tmp_path: Any) -> Iterator[Trainer]:
    """A started run whose preflight Pod works, and an operator with a progress server."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    scope = {"operatorNamespace": namespace, "watchNamespaces": [namespace]}
    operator = make_operator(api_server, tmp_path, progressUrl=url, progressPort=port, **scope)
    operator.start()
    bench = make_bench(api_server, namespace)
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    bench.confirm()
    yield Trainer(bench, url, bench.pod_of(bench.wait_for_job("run-t-preflight-1")))
    operator.kill()


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
    assert list(mine["fieldsV1"]["f:status"]) == ["f:progress"]
    (ours,) = [entry for entry in fields if entry["manager"] == "mark-operator"]
    assert "f:progress" not in ours["fieldsV1"]["f:status"]


def test_bodies_and_rates_are_limited(trainer: Trainer) -> None:
    token = trainer.token()
    assert trainer.post(token, b"{") == 400
    assert trainer.post(token, {"x": 1}) == 400
    assert trainer.post(token, b"x" * 100_000) == 413
    answers = [trainer.post(token, {"trainerStatus": {"progressPercentage": number}}) for number in range(70)]
    assert answers[0] == 200 and answers[-1] == 429
    version = trainer.bench.get("trainingrun", "run")["metadata"]["resourceVersion"]
    assert trainer.post(trainer.token(), {"trainerStatus": {"progressPercentage": 77}}) == 200
    assert trainer.bench.get("trainingrun", "run")["metadata"]["resourceVersion"] == version, "written a little later"


def test_the_end_is_written_at_once_and_the_authority_is_kept(trainer: Trainer) -> None:
    bench, token = trainer.bench, trainer.token()
    assert trainer.post(token) == 200
    assert trainer.post(token, {"trainerStatus": {"progressPercentage": 100}}) == 200
    assert bench.status()["progress"]["percent"] == 100
    secret = bench.get("secret", "mark-operator-authority")["data"]
    mounted = bench.get("configmap", "run-t-plan")["data"]["ca.crt"]
    assert base64.b64decode(secret["ca.crt"]).decode() == mounted
