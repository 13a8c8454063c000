"""The local cluster does what the operator and the trainer rely on."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from local_cluster import ClusterError, lifecycle, processes, settings, uses_current_context
from local_cluster.commands import wait_until

Manifest = dict[str, Any]
Kubectl = Callable[..., str]

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_IDENTITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod_spec(image: str, script: str, **more: object) -> Manifest:
    """A Pod as the operator makes them: restricted, a read-only root, writable folders where programs expect them."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python", "-c", script],
        "securityContext": RESTRICTED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "4Gi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": "/home/mark"}],
    }
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]
    return {
        "restartPolicy": "Never",
        "securityContext": POD_IDENTITY,
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": 1,
        **more,
    }


def job(name: str, spec: Manifest, **more: object) -> Manifest:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}, **more},
    }


def create(kubectl: Kubectl, namespace: str, *manifests: Manifest) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    kubectl("create", f"--namespace={namespace}", "--filename=-", input_text=json.dumps(listed))


def run_job(kubectl: Kubectl, namespace: str, manifest: Manifest) -> str:
    """Run a Job to its end and return what it printed; its output is the error when it fails."""
    name = str(manifest["metadata"]["name"])
    create(kubectl, namespace, manifest)
    here = f"--namespace={namespace}"
    ended: set[str] = set()

    def over() -> bool:
        status = json.loads(kubectl("get", here, f"job/{name}", "--output=json"))["status"]
        ended.update(each["type"] for each in status.get("conditions", []) if each["type"] in {"Complete", "Failed"})
        return bool(ended)

    wait_until(f"Job {name} ends", over, 180, kubectl("get", here, "events"))
    output = kubectl("logs", here, f"--selector=job-name={name}", "--tail=-1")
    assert ended == {"Complete"}, output
    return output


def test_the_node_is_ready_and_shows_the_pretend_gpus(kubectl: Kubectl) -> None:
    node = json.loads(kubectl("get", "nodes", "--output=json"))["items"][0]
    assert {"type": "Ready", "status": "True"}.items() <= next(
        each for each in node["status"]["conditions"] if each["type"] == "Ready"
    ).items()
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "2"


def test_a_restricted_job_completes(kubectl: Kubectl, namespace: str, operator_image: str) -> None:
    script = "import kopf, kubernetes, mark_crds, mark_operator; print('imported')"
    assert "imported" in run_job(kubectl, namespace, job("imports", pod_spec(operator_image, script)))


def test_the_operator_image_holds_no_torch_and_no_build_tools(
    kubectl: Kubectl, namespace: str, operator_image: str
) -> None:
    script = (
        "import importlib.util, shutil\n"
        "print([m for m in ('torch', 'transformers', 'pip') if importlib.util.find_spec(m)],\n"
        "      [t for t in ('gcc', 'cc', 'make', 'pip') if shutil.which(t)])"
    )
    assert run_job(kubectl, namespace, job("contents", pod_spec(operator_image, script))).strip() == "[] []"


def test_the_trainer_image_imports_and_multiplies(kubectl: Kubectl, namespace: str, trainer_image: str) -> None:
    script = (
        "import importlib.util, shutil, time\n"
        "import torch, transformers, peft, trl, chromadb, mark_trainer, mark_crds\n"
        "matrix = torch.rand(2048, 2048); matrix @ matrix\n"
        "started = time.perf_counter()\n"
        "for _ in range(3): matrix @ matrix\n"
        "print('gigaflops', 3 * 2 * 2048**3 / (time.perf_counter() - started) / 1e9)\n"
        "assert not importlib.util.find_spec('kopf') and not shutil.which('gcc') and not shutil.which('pip')\n"
    )
    output = run_job(kubectl, namespace, job("imports", pod_spec(trainer_image, script)))
    # Debian's torch without openblas reaches about 3; with it, 40 and more on a single core.
    assert float(output.rpartition("gigaflops")[2]) > 10, output


def test_a_privileged_pod_is_refused(kubectl: Kubectl, namespace: str) -> None:
    spec = {"containers": [{"name": "main", "image": "none", "securityContext": {"privileged": True}}]}
    with pytest.raises(ClusterError, match='violates PodSecurity "restricted'):
        create(
            kubectl, namespace, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "privileged"}, "spec": spec}
        )


def test_pods_of_an_indexed_job_find_each_other_by_name(kubectl: Kubectl, namespace: str, operator_image: str) -> None:
    script = (
        "import os, socket, threading, time\n"
        "server = socket.create_server(('', 8000))\n"
        "name = f\"pair-{1 - int(os.environ['JOB_COMPLETION_INDEX'])}.pair." + namespace + '.svc.cluster.local"\n'
        "def reach():\n"
        "    for _ in range(300):\n"
        "        try: return socket.create_connection((name, 8000), timeout=2).close()\n"
        "        except OSError: time.sleep(0.1)\n"
        "    raise SystemExit(f'{name} is not to be reached')\n"
        "caller = threading.Thread(target=reach); caller.start()\n"
        "server.accept(); caller.join(); print('met', name)"
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "pair"},
        "spec": {"clusterIP": "None", "selector": {"job-name": "pair"}, "publishNotReadyAddresses": True},
    }
    create(kubectl, namespace, service)
    pair = job(
        "pair",
        pod_spec(operator_image, script, subdomain="pair"),
        completionMode="Indexed",
        completions=2,
        parallelism=2,
    )
    output = run_job(kubectl, namespace, pair)
    assert "met pair-0.pair" in output and "met pair-1.pair" in output


def test_a_pod_reaches_the_api_server_through_its_service(
    kubectl: Kubectl, namespace: str, operator_image: str
) -> None:
    script = (
        "import json, ssl, urllib.request\n"
        "folder = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
        "request = urllib.request.Request('https://kubernetes.default.svc/version')\n"
        "request.add_header('Authorization', 'Bearer ' + open(folder + 'token').read())\n"
        "trust = ssl.create_default_context(cafile=folder + 'ca.crt')\n"
        "print(json.load(urllib.request.urlopen(request, context=trust, timeout=20))['gitVersion'])"
    )
    output = run_job(kubectl, namespace, job("version", pod_spec(operator_image, script)))
    server = json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    assert output.strip() == server


def test_logs_and_exec_work(kubectl: Kubectl, namespace: str, operator_image: str) -> None:
    spec = pod_spec(operator_image, "import time; print('started'); time.sleep(300)")
    create(kubectl, namespace, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sleeper"}, "spec": spec})
    here = f"--namespace={namespace}"
    kubectl("wait", here, "--for=condition=Ready", "pod/sleeper", "--timeout=60s", timeout=90)
    assert kubectl("exec", here, "sleeper", "--", "id", "-u").strip() == "1000"
    assert "started" in kubectl("logs", here, "sleeper")


def test_a_claim_binds_at_once_and_a_pod_writes_to_it(kubectl: Kubectl, namespace: str, operator_image: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "workspace"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    create(kubectl, namespace, claim)
    kubectl(
        "wait", f"--namespace={namespace}", "--for=jsonpath={.status.phase}=Bound", "pvc/workspace", "--timeout=30s"
    )
    script = "from pathlib import Path; Path('/workspace/note').write_text('kept'); print('written')"
    assert "written" in run_job(kubectl, namespace, job("writer", _with_workspace(pod_spec(operator_image, script))))
    script = "from pathlib import Path; print(Path('/workspace/note').read_text())"
    assert "kept" in run_job(kubectl, namespace, job("reader", _with_workspace(pod_spec(operator_image, script))))


def _with_workspace(spec: Manifest) -> Manifest:
    spec["volumes"].append({"name": "workspace", "persistentVolumeClaim": {"claimName": "workspace"}})
    spec["containers"][0]["volumeMounts"].append({"name": "workspace", "mountPath": "/workspace"})
    return spec


def test_a_deleted_claims_volume_is_wiped_and_offered_again(kubectl: Kubectl, namespace: str) -> None:
    if uses_current_context():
        pytest.skip("the volumes of that cluster are not ours to wipe")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "short-lived"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    create(kubectl, namespace, claim)
    here = f"--namespace={namespace}"
    kubectl("wait", here, "--for=jsonpath={.status.phase}=Bound", "pvc/short-lived", "--timeout=30s")
    volume = kubectl("get", here, "pvc/short-lived", "--output=jsonpath={.spec.volumeName}")
    left = settings.VOLUMES / volume / "left"
    left.write_text("by the earlier claim")
    kubectl("delete", here, "pvc/short-lived", "--timeout=30s")
    kubectl("wait", f"persistentvolume/{volume}", "--for=jsonpath={.status.phase}=Released", "--timeout=30s")
    lifecycle.recycle_volumes()
    kubectl("wait", f"persistentvolume/{volume}", "--for=jsonpath={.status.phase}=Available", "--timeout=30s")
    assert not left.exists()


def test_a_job_that_asks_for_a_gpu_is_scheduled(kubectl: Kubectl, namespace: str, operator_image: str) -> None:
    spec = pod_spec(operator_image, "print('ran')")
    spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "1"
    assert "ran" in run_job(kubectl, namespace, job("asks-for-a-gpu", spec))


def test_a_second_start_does_nothing_and_is_quick(kubectl: Kubectl) -> None:
    if uses_current_context():
        pytest.skip("nothing is started with CLUSTER=current")
    before, started = processes.recorded(), time.monotonic()
    lifecycle.start()
    assert time.monotonic() - started < 10
    assert processes.recorded() == before
