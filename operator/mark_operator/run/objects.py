"""Rendered objects of a run as plain dicts, in the order of a manifest, so that code, golden file and `kubectl get -o
yaml` look alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mark_crds import names
from mark_crds.job_output import ExitCode
from mark_crds.run import RunSpec
from mark_crds.shared import CpuResources, Resources

from mark_operator.seen import Body, RunKey
from mark_operator.settings import Settings

HOME = "/home/mark"
MASTER_PORT = 29500
TOKEN_SECONDS = 3600
CPU_STAGES = frozenset({"preflight", "ingest", "dataPrep"})
SINGLE_NODE_STAGES = CPU_STAGES | {"eval"}


@dataclass(frozen=True)
class Means:
    """What the Jobs of a run may use; the part of the spec that says where and with what, not which work."""

    key: RunKey
    spec: RunSpec
    resources: Resources
    cpu_resources: CpuResources
    settings: Settings

    def nodes(self, stage: str) -> int:
        return 1 if stage in SINGLE_NODE_STAGES else self.resources.nodes

    def gpus_per_node(self, stage: str) -> int:
        return 0 if stage in CPU_STAGES else self.resources.gpus_per_node

    @property
    def image(self) -> str:
        return self.spec.image or self.settings.trainer_image


def service_name(key: RunKey) -> str:
    """Name of the headless Service that gives the Pods of a run their DNS names."""
    return f"{key.name}-{names.KIND_LETTERS[key.kind]}"


def progress_audience(key: RunKey) -> str:
    """Audience of the tokens with which the Pods of this run post progress, and of no other run's."""
    return f"{names.GROUP}/{names.PLURALS[key.kind]}/{key.namespace}/{key.name}"


def progress_path(key: RunKey) -> str:
    """Path on the progress server that takes this run's posts."""
    return f"/v1/namespaces/{key.namespace}/{names.PLURALS[key.kind]}/{key.name}/progress"


def job_template(means: Means, stage: str) -> Body:
    """The Job of the stage's first attempt, without what is known only at its creation: uid, attempt, owner."""
    key = means.key
    labels = _labels(key, stage)
    queue = {names.QUEUE_LABEL: means.spec.queue_name} if means.spec.queue_name else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.job_name(key.kind, key.name, stage, 1),
            "namespace": key.namespace,
            "labels": {**labels, **queue},
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": means.nodes(stage),
            "parallelism": means.nodes(stage),
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": means.spec.active_deadline_seconds,
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod_spec(means, stage),
            },
        },
    }


def service(key: RunKey) -> Body:
    """The headless Service of a run with several nodes.
    Names resolve before the Pods are ready, so ranks find each other at once."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(key),
            "namespace": key.namespace,
            "labels": {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name},
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name},
        },
    }


def bind(template: Body, *, kind: str, uid: str, attempt: int) -> Body:
    """The Job of one attempt: the planned template with the run's uid, the attempt and the owner filled in, nothing
    else changed."""
    metadata, spec = template["metadata"], template["spec"]
    labels = metadata["labels"]
    run, stage = labels[names.RUN_LABEL], labels[names.STAGE_LABEL]
    late = {names.RUN_UID_LABEL: uid, names.ATTEMPT_LABEL: str(attempt)}
    name = names.job_name(kind, run, stage, attempt)
    pod = spec["template"]
    suspend = {"suspend": True} if names.QUEUE_LABEL in labels else {}
    return owned(
        {
            **template,
            "metadata": {**metadata, "name": name, "labels": {**labels, **late}},
            "spec": {
                **spec,
                **suspend,
                "template": {
                    "metadata": {**pod["metadata"], "labels": {**pod["metadata"]["labels"], **late}},
                    "spec": {**pod["spec"], "containers": [_bind_container(pod["spec"], name, uid, attempt)]},
                },
            },
        },
        kind=kind,
        run=run,
        uid=uid,
    )


def owned(body: Body, *, kind: str, run: str, uid: str) -> Body:
    """The object with the run as its owner.
    It does not block the owner's deletion: that would need rights on finalizers."""
    owner = {"apiVersion": names.API_VERSION, "kind": kind, "name": run, "uid": uid, "controller": True}
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [owner]}}


def pod_of(job: Body) -> Body:
    """One Pod as the Job controller would make it, for a dry run."""
    template, metadata = job["spec"]["template"], job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-plan",
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
        },
        "spec": template["spec"],
    }


def _bind_container(pod_spec: Mapping[str, Any], name: str, uid: str, attempt: int) -> Body:
    container: Body = pod_spec["containers"][0]
    arguments = [*container["args"], "--run-uid", uid, "--attempt", str(attempt)]
    subdomain = pod_spec.get("subdomain")
    if subdomain is None:
        return {**container, "args": arguments}
    # Which Pod the ranks meet at depends on the attempt, because Pods are named after the Job.
    meeting = {"name": "MASTER_ADDR", "value": f"{name}-0.{subdomain}"}
    return {**container, "args": arguments, "env": [*container["env"], meeting]}


def _labels(key: RunKey, stage: str) -> dict[str, str]:
    return {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name, names.STAGE_LABEL: stage}


def _failure_rules() -> list[Body]:
    # The first rule that matches wins: what the trainer says of itself comes before what happened to its Pod.
    codes = (ExitCode.USER_MISTAKE, ExitCode.BAD_DATA, ExitCode.STOPPED)
    by_code = [_fail_on_code(int(code)) for code in codes]
    disrupted: Body = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [*by_code, disrupted, _fail_on_code(int(ExitCode.MACHINE_TROUBLE))]


def _fail_on_code(code: int) -> Body:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": [code]},
    }


def _pod_spec(means: Means, stage: str) -> Body:
    spec, settings = means.spec, means.settings
    optional: Body = {
        "imagePullSecrets": [{"name": name} for name in settings.trainer_image_pull_secrets],
        "runtimeClassName": settings.runtime_class_name,
        "priorityClassName": spec.priority_class_name,
        "nodeSelector": dict(spec.node_selector),
        "tolerations": [toleration.to_dict() for toleration in spec.tolerations],
        "subdomain": service_name(means.key) if means.nodes(stage) > 1 else None,
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "runAsGroup": settings.run_as_user,
            "fsGroup": settings.run_as_user,
            # A workspace holds many files: do not walk through all of them at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **{name: value for name, value in optional.items() if value},
        "containers": [_container(means, stage)],
        "volumes": _volumes(means),
    }


def _container(means: Means, stage: str) -> Body:
    resources = _resources(means, stage)
    return {
        "name": names.TRAINER_CONTAINER,
        "image": means.image,
        "imagePullPolicy": means.settings.trainer_image_pull_policy,
        "args": [
            "run",
            "--stage",
            stage,
            "--input",
            f"{names.INPUT_MOUNT}/{names.JOB_INPUT_KEY}",
            "--workspace",
            names.WORKSPACE_MOUNT,
        ],
        "env": _environment(means, stage),
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "workspace", "mountPath": names.WORKSPACE_MOUNT},
            {"name": "input", "mountPath": names.INPUT_MOUNT, "readOnly": True},
            *([{"name": "progress", "mountPath": names.PROGRESS_MOUNT, "readOnly": True}] if _posts(means) else []),
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "home", "mountPath": HOME},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _resources(means: Means, stage: str) -> dict[str, str]:
    needs = means.cpu_resources if stage in CPU_STAGES else means.resources
    gpus = means.gpus_per_node(stage)
    return {
        "cpu": needs.cpu,
        "memory": needs.memory,
        **({means.resources.gpu_resource: str(gpus)} if gpus else {}),
    }


def _environment(means: Means, stage: str) -> list[Body]:
    variables = {"HOME": HOME}
    if means.nodes(stage) > 1:
        variables["MASTER_PORT"] = str(MASTER_PORT)
    if _posts(means):
        variables["KUBEFLOW_TRAINER_SERVER_URL"] = f"{means.settings.progress_url}{progress_path(means.key)}"
        variables["KUBEFLOW_TRAINER_SERVER_CA_CERT"] = f"{names.PROGRESS_MOUNT}/{names.CA_KEY}"
        variables["KUBEFLOW_TRAINER_SERVER_TOKEN"] = f"{names.PROGRESS_MOUNT}/token"
    return [{"name": name, "value": value} for name, value in variables.items()]


def _posts(means: Means) -> bool:
    return means.settings.progress_url is not None


def _volumes(means: Means) -> list[Body]:
    plan = names.plan_name(means.key.kind, means.key.name)
    token = {"audience": progress_audience(means.key), "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    authority = {"name": plan, "items": [{"key": names.CA_KEY, "path": names.CA_KEY}], "optional": True}
    progress = {
        "name": "progress",
        "projected": {"sources": [{"serviceAccountToken": token}, {"configMap": authority}]},
    }
    return [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": means.spec.workspace.claim_name}},
        {
            "name": "input",
            "configMap": {"name": plan, "items": [{"key": names.JOB_INPUT_KEY, "path": names.JOB_INPUT_KEY}]},
        },
        *([progress] if _posts(means) else []),
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        # In memory, as libraries expect of /dev/shm; it counts against the memory limit.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
