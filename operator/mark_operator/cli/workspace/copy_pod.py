"""The short-lived Pod that stands between a person's files and a claim: its manifest, its start and its end.

It has no rights, no token and no network needs, passes Pod Security `restricted`, and is gone when the copy is over,
however that ends.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

from mark_crds import names

from mark_operator.cli.errors import ClusterError, CommandError, NotFoundError, RefusedError
from mark_operator.cli.session import Json, Session, path

CONTAINER = "copy"
LABELS = {"app.kubernetes.io/name": "mark-copy", "app.kubernetes.io/managed-by": "mark-cli"}
# The belt: the Pod's program ends by itself two minutes after the last byte.
DEADLINE_SECONDS = 6 * 3600
START_SECONDS = 120
_RUN = "import os; exec(os.environ['FAR_SIDE'])"


@dataclass(frozen=True)
class Copying:
    """What a copy Pod is made of."""

    claim: str
    image: str
    user: int = 1000
    read_only: bool = False


def far_side_command(verb: str, *arguments: str) -> list[str]:
    """The command that runs a verb of the far side in the Pod."""
    return ["python3", "-c", _RUN, verb, *arguments]


def copy_pod(copying: Copying) -> Json:
    """The manifest."""
    program = resources.files("mark_operator.cli.workspace").joinpath("far_side.py").read_text()
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "mark-copy-", "labels": LABELS},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": copying.user,
                "runAsGroup": copying.user,
                "fsGroup": copying.user,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": CONTAINER,
                    "image": copying.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": far_side_command("wait"),
                    "env": [{"name": "FAR_SIDE", "value": program}],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": {
                        "requests": {"cpu": "100m", "memory": "128Mi"},
                        "limits": {"cpu": "1", "memory": "256Mi"},
                    },
                    "volumeMounts": [
                        {"name": "workspace", "mountPath": names.WORKSPACE_MOUNT, "readOnly": copying.read_only},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [
                {"name": "workspace", "persistentVolumeClaim": {"claimName": copying.claim}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}},
            ],
        },
    }


@contextmanager
def running_copy_pod(session: Session, copying: Copying) -> Iterator[str]:
    """The name of a copy Pod that is ready; it is deleted at the end of the block."""
    _require_claim(session, copying.claim)
    _delete_finished(session)
    name = str(session.create(path("pods", session.namespace), copy_pod(copying))["metadata"]["name"])
    try:
        _wait_running(session, name)
        yield name
    finally:
        session.delete(path("pods", session.namespace, name), grace_period_seconds=0)


def _require_claim(session: Session, claim: str) -> None:
    try:
        session.get(path("persistentvolumeclaims", session.namespace, claim))
    except NotFoundError as error:
        claims = session.items(path("persistentvolumeclaims", session.namespace))
        known = ", ".join(c["metadata"]["name"] for c in claims) or "none"
        raise NotFoundError(
            f"there is no PersistentVolumeClaim {claim} in the namespace {session.namespace}",
            f"claims there: {known}; look at --claim and --namespace",
        ) from error


def _delete_finished(session: Session) -> None:
    """Remove the Pods of copies that were killed."""
    selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
    for pod in session.items(path("pods", session.namespace), labelSelector=selector):
        if pod["status"].get("phase") in ("Succeeded", "Failed"):
            session.delete(path("pods", session.namespace, pod["metadata"]["name"]))


def _wait_running(session: Session, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        pod = session.get(path("pods", session.namespace, name))
        phase = pod["status"].get("phase")
        if phase == "Running":
            return
        if phase in ("Succeeded", "Failed"):
            raise ClusterError(f"the copy Pod {name} ended at once: {pod['status'].get('message') or _why(pod)}")
        stuck = _hopeless(pod)
        if stuck or time.monotonic() > deadline:
            raise _not_started(session, name, stuck or _why(pod))
        time.sleep(0.2)


def _hopeless(pod: Json) -> str:
    """Why the Pod will not start by waiting longer; empty while it may."""
    for container in pod["status"].get("containerStatuses", []):
        waiting = container["state"].get("waiting", {})
        if waiting.get("reason") in (
            "ErrImageNeverPull",
            "InvalidImageName",
            "ImagePullBackOff",
            "CreateContainerError",
        ):
            return f"{waiting['reason']}: {waiting.get('message', '')[:300]}"
    return ""


def _why(pod: Json) -> str:
    conditions = [c for c in pod["status"].get("conditions", []) if c["status"] != "True" and c.get("message")]
    return "; ".join(c["message"] for c in conditions) or f"its phase is {pod['status'].get('phase')}"


def _not_started(session: Session, name: str, why: str) -> CommandError:
    events = session.items(path("events", session.namespace), fieldSelector=f"involvedObject.name={name}")
    said = "\n".join(f"{event.get('reason')}: {event.get('message')}" for event in events[-3:])
    if "mage" in why:
        remedy = "name an image that the nodes have, with python3 in it, with --image or $MARK_IMAGE"
        return RefusedError(f"the copy Pod did not start: {why}", remedy)
    return ClusterError(f"the copy Pod did not start within {START_SECONDS} s: {why}", said)
