"""The Pod of a stage: restricted, bounded, with everything mounted that a trainer needs and nothing else."""

from mark_crds import names

from mark_operator.run.means import CPU_STAGES, Means, progress_audience, progress_path, service_name
from mark_operator.seen import Body

HOME = "/home/mark"
MASTER_PORT = 29500
TOKEN_SECONDS = 3600
TRAINING_STAGES = frozenset({"lora", "reward", "ppo"})


def pod_spec(means: Means, stage: str) -> Body:
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
        # A trainer that crashes before it can leave a Result leaves the end of its log as its last words.
        "terminationMessagePolicy": "FallbackToLogsOnError",
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
    plain: list[Body] = [{"name": name, "value": value} for name, value in variables.items()]
    return plain + _api_key(means, stage)


def _api_key(means: Means, stage: str) -> list[Body]:
    """The tracker's API key, for the stages that send measures. The kubelet reads the Secret, the operator never."""
    if means.api_key_secret is None or stage not in TRAINING_STAGES:
        return []
    name = "WANDB_API_KEY"
    return [{"name": name, "valueFrom": {"secretKeyRef": {"name": means.api_key_secret, "key": name}}}]


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
