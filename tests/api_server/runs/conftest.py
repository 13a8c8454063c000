"""The operator as a process against a real API server, and the hands of user, kubelet and Job controller.

No kubelet and no controller is there: the tests write what Jobs and Pods would say.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Body = dict[str, Any]
WAIT_SECONDS = 30


class Operator:
    """The operator as a process of its own, with the rights of the cluster's administrator."""

    def __init__(self, api_server: Any, folder: Path, **settings: Any) -> None:
        self._kubeconfig = api_server.kubeconfig()
        self._log_path = folder / "operator.log"
        self._settings = folder / "settings.json"
        timings = {"leaseSeconds": 15, "renewSeconds": 1, "relistSeconds": 30, "checkSeconds": 1, "firstRetrySeconds": 1}
        timings |= settings.pop("timings", {})
        ports = {"healthPort": 0, "progressPort": 0}
        self._settings.write_text(json.dumps({"operatorNamespace": "default", "timings": timings, **ports, **settings}))
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self.starts = 0

    def use(self, kubeconfig: Path) -> None:
        """Reach the API server by another way from the next start on."""
        self._kubeconfig = kubeconfig

    def start(self, forever: bool = False) -> None:
        """Start the process; with `forever`, again whenever it ends, as a Deployment would."""
        self._start()
        if forever:
            threading.Thread(target=self._keep, daemon=True).start()

    def _start(self) -> None:
        environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
        command = [sys.executable, "-m", "mark_operator", "--settings", str(self._settings)]
        self.starts += 1
        self._process = subprocess.Popen(command, env=environment, stderr=self._log_path.open("ab"))

    def _keep(self) -> None:
        while True:
            assert self._process is not None
            if self._process.wait() == 0 or self._over:
                return
            time.sleep(1)
            self._start()

    def stop(self) -> int:
        """Ask it to end, as the kubelet does; its exit status."""
        assert self._process is not None
        self._over = True
        self._process.terminate()
        return self._process.wait(30)

    def kill(self) -> None:
        """End it, as a node failure does."""
        self._over = True
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def send(self, number: signal.Signals) -> None:
        """A signal, such as SIGSTOP, which stands for a machine that halts and goes on."""
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self, seconds: float) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def wait_for_log(self, words: str) -> None:
        end = time.monotonic() + 60
        while words not in self.log:
            assert time.monotonic() < end, self.log[-3000:]
            time.sleep(0.1)

    @property
    def log(self) -> str:
        return self._log_path.read_text() if self._log_path.exists() else ""

    @property
    def resident_megabytes(self) -> float:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def operator(api_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator that looks at all namespaces."""
    process = Operator(api_server, tmp_path_factory.mktemp("operator"), requireGpuNodes=False)
    process.start()
    yield process
    assert process.stop() == 0, process.log[-3000:]


class Bench:
    """One namespace with a claim, and the hands of user and kubelet."""

    def __init__(self, api_server: Any, namespace: str) -> None:
        self.server = api_server
        self.namespace = namespace
        self.claim("workspace")

    def claim(self, name: str) -> None:
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim})

    def apply(self, body: Body) -> None:
        body = {**body, "metadata": {"namespace": self.namespace, **body["metadata"]}}
        self.server.must("apply", "-f", "-", stdin=body)

    def run(self, name: str = "run", **spec: Any) -> None:
        work = {
            "workspace": {"claimName": "workspace"},
            "baseModel": {"path": "base/tiny"},
            "lora": {"epochs": 1},
            "resources": {"gpusPerNode": 0, "cpu": "1", "memory": "1Gi"},
        }
        head = {"apiVersion": "training.mark.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": name}}
        self.apply({**head, "spec": {**work, **spec}})

    def get(self, *words: str) -> Body:
        found: Body = json.loads(self.server.must("get", *words, "-n", self.namespace, "-o", "json"))
        return found

    def status(self, name: str = "run") -> Body:
        found: Body = self.get("trainingrun", name).get("status", {})
        return found

    def jobs(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.get("jobs")["items"])

    def patch(self, kind: str, name: str, change: Body, *words: str) -> None:
        self.server.must("patch", kind, name, "-n", self.namespace, "--type=merge", "-p", json.dumps(change), *words)

    def confirm(self, name: str = "run", **more: Any) -> None:
        self.patch("trainingrun", name, {"spec": {"dryRun": False, "confirm": True, **more}})

    def wait(self, what: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
        end = time.monotonic() + seconds
        while True:
            found = what()
            if found:
                return found
            assert time.monotonic() < end, (
                f"waited {seconds} s; status: {json.dumps(self.get('trainingruns'), indent=1)[-6000:]}"
            )
            time.sleep(0.1)

    def wait_for_state(self, state: str, name: str = "run", seconds: float = WAIT_SECONDS) -> Body:
        found: Body = self.wait(lambda: self.status(name).get("state") == state and self.status(name), seconds)
        return found

    def wait_for_job(self, name: str, seconds: float = WAIT_SECONDS) -> Body:
        self.wait(lambda: name in self.jobs(), seconds)
        return self.get("job", name)

    def delete(self, kind: str, name: str, *words: str) -> None:
        self.server.must("delete", kind, name, "-n", self.namespace, *words)

    def pod_of(self, job: Body) -> str:
        """The Pod that the Job controller would make; its name."""
        job_name, template = job["metadata"]["name"], job["spec"]["template"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job_name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        name = f"{job_name}-0-x"
        metadata = {"name": name, "labels": template["metadata"]["labels"], "ownerReferences": [owner]}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        return name

    def finish(self, job_name: str, exit_code: int = 0, **result: Any) -> None:
        """What kubelet and Job controller write when the Job's Pod ends with a Result."""
        job = self.wait_for_job(job_name)
        stage = job["metadata"]["labels"]["training.mark.dev/stage"]
        message = {"stage": stage, "outcome": "Done", "reason": "Done", "message": "done", **result}
        pod = self.pod_of(job)
        terminated = {"exitCode": exit_code, "message": json.dumps(message), "finishedAt": "2026-01-01T00:00:00Z"}
        container = {
            "name": "trainer", "image": "x", "imageID": "x", "ready": False, "restartCount": 0, "state": {"terminated": terminated},
        }  # fmt: skip
        phase = "Failed" if exit_code else "Succeeded"
        self.patch(
            "pod",
            pod,
            {"status": {"phase": phase, "containerStatuses": [container]}},
            "--subresource=status",
        )
        verdicts = ("FailureTarget", "Failed") if exit_code else ("SuccessCriteriaMet", "Complete")
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conditions = [
            {"type": verdict, "status": "True", "reason": "PodFailurePolicy", "lastTransitionTime": now}
            for verdict in verdicts
        ]
        change: Body = {"conditions": conditions, "startTime": now}
        if not exit_code:
            change["completionTime"] = now
        self.patch("job", job_name, {"status": change}, "--subresource=status")


@pytest.fixture
def bench(api_server: Any, namespace: str, operator: Operator) -> Bench:
    return Bench(api_server, namespace)


@pytest.fixture(scope="session")
def make_operator() -> type[Operator]:
    """For tests that start, stop and kill operators of their own."""
    return Operator


@pytest.fixture(scope="session")
def make_bench() -> type[Bench]:
    """For tests whose operator is not the common one."""
    return Bench
