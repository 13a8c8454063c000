"""Every version, name, address and path of the local cluster, in one place."""

import os
from pathlib import Path

KUBERNETES_VERSION = "1.36.3"
ETCD_VERSION = "3.6.8"
COREDNS_VERSION = "1.15.0"
HELM_VERSION = "4.3.1"
PAUSE_VERSION = "1"

REPOSITORY = Path(__file__).resolve().parents[3]
GO_MODULES = REPOSITORY / "tests" / "cluster" / "go"
KUBECONFIG = REPOSITORY / ".cluster" / "kubeconfig"

# What is dear to make and the same for every clone lives here and survives `down`.
CACHE = Path(os.environ.get("MARK_CACHE") or Path.home() / ".cache" / "mark-operator")
BINARIES = CACHE / "bin"
CONTAINERD_ROOT = CACHE / "containerd"

# One cluster a machine, whoever started it. `down` empties it but for the logs.
STATE = Path("/var/lib/mark-cluster")
LOGS = STATE / "logs"
RECORDS = STATE / "processes"
CERTIFICATES = STATE / "certificates"
CONFIGURATION = STATE / "configuration"
KUBELET_ROOT = STATE / "kubelet"
POD_LOGS = STATE / "pod-logs"
CONTAINERD_STATE = STATE / "containerd"
CONTAINERD_SOCKET = CONTAINERD_STATE / "containerd.sock"
VOLUMES = STATE / "volumes"
LOCKS = Path("/run/lock")

NODE = "node1"
BRIDGE = "mark0"
POD_SUBNET = "10.97.0.0/16"
GATEWAY = "10.97.0.1"
SERVICE_SUBNET = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
API_SERVER = f"https://{GATEWAY}:6443"
# A loopback address of its own: the usual ports stay free for whatever else runs on this machine.
LOOPBACK = "127.97.0.1"
ETCD_CLIENT = f"https://{LOOPBACK}:2379"
ETCD_PEER = f"https://{LOOPBACK}:2380"
CLUSTER_DOMAIN = "cluster.local"
CGROUP = "mark-cluster"

STORAGE_CLASS = "mark-local"
VOLUME_COUNT = 24
VOLUME_SIZE = "50Gi"
# Pretend: nothing stands behind it. It lets Jobs that ask for a GPU be scheduled.
PRETEND_GPU_RESOURCE = "nvidia.com/gpu"
PRETEND_GPU_COUNT = 2

PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "buildah": "/usr/bin/buildah",
    "containers-storage": "/usr/bin/containers-storage",
    "debootstrap": "/usr/sbin/debootstrap",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/sbin/ip",
    "conntrack": "/usr/sbin/conntrack",
    "openssl": "/usr/bin/openssl",
}
