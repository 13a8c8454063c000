"""What the cluster needs in its API before anyone uses it, and the checks that it can be used."""

import json
import socket
import struct

from . import access, settings, volumes
from .errors import ClusterError
from .volumes import Manifest

CHECK_NAMESPACE = "mark-cluster-check"
READ_ONLY = ["list", "watch"]


def apply_all() -> None:
    """Create CoreDNS's rights, the storage, and a namespace for the admission check."""
    role: Manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": READ_ONLY},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ_ONLY},
        ],
    }
    binding: Manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "coredns"}],
    }
    namespace: Manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": CHECK_NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    items = [role, binding, namespace, *volumes.manifests()]
    access.kubectl_as_admin(
        "create", "--filename=-", input_text=json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    )


def node_ready() -> bool:
    try:
        conditions = json.loads(access.kubectl_as_admin("get", "node", settings.NODE, "--output=json"))["status"]
    except ClusterError:
        return False  # not registered yet
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions["conditions"])


def pretend_gpus() -> None:
    """Add the GPU resource to the node's status: Jobs that ask for it are scheduled, and find no GPU."""
    quantity = {settings.PRETEND_GPU_RESOURCE: str(settings.PRETEND_GPU_COUNT)}
    access.kubectl_as_admin(
        "patch",
        "node",
        settings.NODE,
        "--subresource=status",
        "--type=merge",
        f"--patch={json.dumps({'status': {'capacity': quantity, 'allocatable': quantity}})}",
    )


def pod_security_enforced() -> bool:
    """Whether a privileged Pod is refused for that reason (and not because a service account is still missing)."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "namespace": CHECK_NAMESPACE},
        "spec": {"containers": [{"name": "main", "image": "none", "securityContext": {"privileged": True}}]},
    }
    try:
        access.kubectl_as_admin("create", "--dry-run=server", "--filename=-", input_text=json.dumps(pod))
    except ClusterError as refusal:
        return "violates PodSecurity" in str(refusal)
    return False


def service_reachable() -> bool:
    """Whether kube-proxy leads the API server's Service address to the API server."""
    try:
        socket.create_connection((settings.API_SERVICE_ADDRESS, 443), timeout=1).close()
    except OSError:
        return False
    return True


def dns_answers() -> bool:
    """Whether CoreDNS knows the API server's Service."""
    name = f"kubernetes.default.svc.{settings.CLUSTER_DOMAIN}"
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        try:
            client.sendto(question, (settings.GATEWAY, 53))
            answer = client.recv(512)
        except OSError:
            return False
    return socket.inet_aton(settings.API_SERVICE_ADDRESS) in answer
