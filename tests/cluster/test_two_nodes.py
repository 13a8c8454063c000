"""One training by two Pods: they meet by name, share every step, and publish one adapter. It goes on without the operator."""

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demo
import pytest
import tiny_training
from cluster_run import OPERATOR, Kubectl, Run, until
from local_cluster import containers, uses_current_context

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl, operator_image: str, trainer_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the operator installed, and a claim for many writers that holds a base model and a dataset."""
    install(operator_image, trainer_image)
    name = f"two-nodes-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": demo.CLAIM},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    kubectl("apply", "-n", name, "-f", "-", input_text=json.dumps(claim))
    workspace = tiny_training.write_workspace(tmp_path_factory.mktemp("two") / "workspace").root
    for folder in ("base/tiny", "datasets/contracts"):
        demo.run(f"mark put {workspace / folder} {folder} --claim {demo.CLAIM} -n {name}")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def install(operator_image: str, trainer_image: str) -> None:
    demo.start_cluster()
    demo.install_operator({"operator": operator_image, "trainer": trainer_image})


def manifest(name: str, epochs: int) -> dict[str, Any]:
    lora = {"epochs": epochs, "learningRate": "0.01", "batchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 200}
    return {
        "apiVersion": "training.mark.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "stages": ["lora"],
            "workspace": {"claimName": demo.CLAIM},
            "baseModel": {"path": "base/tiny"},
            "dataset": {"path": "datasets/contracts"},
            "lora": lora,
            "resources": {"nodes": 2, "gpusPerNode": 0, "cpu": "500m", "memory": "2Gi"},
            "cpuResources": {"cpu": "500m", "memory": "1Gi"},
        },
    }


def job_of(kubectl: Kubectl, namespace: str, name: str) -> dict[str, Any]:
    return json.loads(kubectl("get", "job", f"{name}-t-lora-1", "-n", namespace, "-o", "json"))


def start(kubectl: Kubectl, namespace: str, name: str, epochs: int) -> Run:
    kubectl("apply", "-n", namespace, "-f", "-", input_text=json.dumps(manifest(name, epochs)))
    run = Run(kubectl, namespace, name)
    run.planned()
    subprocess.run(["mark", "confirm", name, "-n", namespace], check=True, timeout=60)
    return run


def test_two_pods_train_one_adapter(kubectl: Kubectl, namespace: str, tmp_path: Path) -> None:
    status = start(kubectl, namespace, "two-nodes", epochs=4).ended()
    assert status["state"] == "Succeeded", status
    job = job_of(kubectl, namespace, "two-nodes")
    assert (job["spec"]["completions"], job["status"]["succeeded"]) == (2, 2)
    pods = json.loads(kubectl("get", "pods", "-n", namespace, "-l", "job-name=two-nodes-t-lora-1", "-o", "json"))["items"]
    said = {pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]: result_of(pod) for pod in pods}
    assert {index: result["reason"] for index, result in said.items()} == {"0": "Trained", "1": "TookPart"}
    subprocess.run(["mark", "get", "two-nodes", "adapter", "--to", str(tmp_path / "adapter"), "-n", namespace], check=True, timeout=120)
    (file,) = tmp_path.rglob("manifest.json")
    assert json.loads(file.read_text())["provenance"]["processes"] == {"count": 2, "strategy": "ddp"}


def result_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["status"]["containerStatuses"]
    return json.loads(container["state"]["terminated"]["message"])


def test_training_goes_on_while_the_release_is_uninstalled_and_is_taken_up_by_the_next(
    kubectl: Kubectl, namespace: str, operator_image: str, trainer_image: str
) -> None:
    """Nothing hangs, nothing is orphaned or made twice: the runs and their Jobs stay, and the work counts."""
    run = start(kubectl, namespace, "released", epochs=60)
    run.working_on("lora")
    until(lambda: job_of(kubectl, namespace, "released").get("status", {}).get("ready") == 2, "both Pods at work")
    authority = authority_uid(kubectl)
    demo.run(f"helm uninstall mark-operator -n {demo.OPERATOR_NAMESPACE} --wait --timeout 120s")
    until(lambda: not kubectl("get", "pods", "-n", demo.OPERATOR_NAMESPACE, "-l", OPERATOR, "-o", "name"), "no operator's Pod")
    before = job_of(kubectl, namespace, "released")["metadata"]["uid"]
    until(lambda: job_of(kubectl, namespace, "released").get("status", {}).get("succeeded") == 2, "the end of training")
    assert "finishedAt" not in run.status(), "nobody is there to note it"
    install(operator_image, trainer_image)
    status = run.ended()
    assert status["state"] == "Succeeded", status
    assert [(stage["attempt"], stage["countedFailures"]) for stage in status["stages"]] == [(1, 0)] * len(status["stages"])
    assert job_of(kubectl, namespace, "released")["metadata"]["uid"] == before
    assert authority_uid(kubectl) == authority, "Pods trust no other"


@pytest.mark.skipif(uses_current_context(), reason="only the local cluster's own node lets a container be killed")
def test_a_rank_that_is_killed_ends_the_attempt_and_the_next_one_goes_on_from_the_checkpoint(kubectl: Kubectl, namespace: str) -> None:
    """Killed in the middle of training without a word, as for want of memory; the other rank waits for it in vain."""
    run = start(kubectl, namespace, "killed-rank", epochs=60)
    run.working_on("lora")
    kept = run.until(lambda status: status.get("lastCheckpoint", {}).get("step"), "a first checkpoint")
    container = pod_of(kubectl, namespace, "killed-rank-t-lora-1", rank=1)["status"]["containerStatuses"][0]["containerID"]
    containers.ctr("tasks", "kill", "--signal", "SIGKILL", container.removeprefix("containerd://"))
    run.until(lambda status: lora_of(status).get("attempt") == 2, "a second attempt")
    status = run.ended()
    assert status["state"] == "Succeeded", status
    assert (lora_of(status)["attempt"], lora_of(status)["countedFailures"]) == (2, 1)
    first = pod_of(kubectl, namespace, "killed-rank-t-lora-2", rank=0)["metadata"]["name"]
    (went_on,) = re.findall(r"goes on from step-(\d+) of \d+ steps", kubectl("logs", first, "-n", namespace))
    assert int(went_on) >= kept > 0


def pod_of(kubectl: Kubectl, namespace: str, job: str, rank: int) -> dict[str, Any]:
    label = f"job-name={job},batch.kubernetes.io/job-completion-index={rank}"
    (pod,) = json.loads(kubectl("get", "pods", "-n", namespace, "-l", label, "-o", "json"))["items"]
    return pod


def lora_of(status: dict[str, Any]) -> dict[str, Any]:
    return next((stage for stage in status.get("stages", []) if stage["stage"] == "lora"), {})


def authority_uid(kubectl: Kubectl) -> str:
    return kubectl("get", "secret", "mark-operator-authority", "-n", demo.OPERATOR_NAMESPACE, "-o", "jsonpath={.metadata.uid}")
