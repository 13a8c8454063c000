"""The parts of Kubernetes: what each is started with, in the order they start."""

import json
from collections.abc import Callable
from pathlib import Path

from . import binaries, certificates, processes, settings

KUBELET_CONFIGURATION = settings.CONFIGURATION / "kubelet.json"
PROXY_CONFIGURATION = settings.CONFIGURATION / "kube-proxy.json"
COREFILE = settings.CONFIGURATION / "Corefile"
# The reverse order of dependence: what watches goes before what is watched.
STOP_ORDER = ("kubelet", "kube-proxy", "coredns", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")


def start_etcd() -> None:
    identity, authority = certificates.ETCD, certificates.AUTHORITY
    processes.start(
        "etcd",
        [
            binaries.program("etcd"),
            "--name=etcd",
            f"--data-dir={settings.STATE / 'etcd'}",
            # The state never outlives the cluster, and waiting for a shared disk costs seconds.
            "--unsafe-no-fsync",
            f"--listen-client-urls={settings.ETCD_CLIENT}",
            f"--advertise-client-urls={settings.ETCD_CLIENT}",
            f"--listen-peer-urls={settings.ETCD_PEER}",
            f"--initial-advertise-peer-urls={settings.ETCD_PEER}",
            f"--initial-cluster=etcd={settings.ETCD_PEER}",
            f"--cert-file={identity.certificate}",
            f"--key-file={identity.key}",
            f"--trusted-ca-file={authority}",
            "--client-cert-auth",
            "--peer-client-cert-auth",
            f"--peer-cert-file={identity.certificate}",
            f"--peer-key-file={identity.key}",
            f"--peer-trusted-ca-file={authority}",
            "--log-level=warn",
        ],
    )


def start_api_server() -> None:
    server, to_kubelet, to_etcd = certificates.API_SERVER, certificates.KUBELET_CLIENT, certificates.ETCD
    processes.start(
        "kube-apiserver",
        [
            binaries.program("kube-apiserver"),
            f"--etcd-servers={settings.ETCD_CLIENT}",
            f"--etcd-cafile={certificates.AUTHORITY}",
            f"--etcd-certfile={to_etcd.certificate}",
            f"--etcd-keyfile={to_etcd.key}",
            # The bridge's address: Pods reach it through the Service, and nothing outside this machine does.
            f"--bind-address={settings.GATEWAY}",
            f"--advertise-address={settings.GATEWAY}",
            f"--tls-cert-file={server.certificate}",
            f"--tls-private-key-file={server.key}",
            f"--client-ca-file={certificates.AUTHORITY}",
            f"--kubelet-client-certificate={to_kubelet.certificate}",
            f"--kubelet-client-key={to_kubelet.key}",
            f"--kubelet-certificate-authority={certificates.AUTHORITY}",
            # `kubectl logs` would otherwise look for the node by its name.
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificates.SERVICE_ACCOUNT_PUBLIC_KEY}",
            f"--service-account-signing-key-file={certificates.SERVICE_ACCOUNT_KEY}",
            f"--service-cluster-ip-range={settings.SERVICE_SUBNET}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--profiling=false",
        ],
    )


def start_controller_manager() -> None:
    kubeconfig = certificates.CONTROLLER_MANAGER.kubeconfig
    processes.start(
        "kube-controller-manager",
        [
            binaries.program("kube-controller-manager"),
            *_control_plane_client(kubeconfig),
            f"--service-account-private-key-file={certificates.SERVICE_ACCOUNT_KEY}",
            f"--root-ca-file={certificates.AUTHORITY}",
            "--use-service-account-credentials",
        ],
    )


def start_scheduler() -> None:
    kubeconfig = certificates.SCHEDULER.kubeconfig
    processes.start("kube-scheduler", [binaries.program("kube-scheduler"), *_control_plane_client(kubeconfig)])


def _control_plane_client(kubeconfig: Path) -> list[str]:
    purposes = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return [
        *(f"--{purpose}={kubeconfig}" for purpose in purposes),
        f"--bind-address={settings.LOOPBACK}",
        "--leader-elect=false",
        "--profiling=false",
    ]


def start_coredns() -> None:
    # Two server blocks: within one, `template` would answer before `kubernetes` is asked.
    # Names outside the cluster do not exist, so a Pod that tries the network learns it at once.
    COREFILE.write_text(f"""\
{settings.CLUSTER_DOMAIN}:53 {{
    bind {settings.GATEWAY}
    errors
    kubernetes {settings.CLUSTER_DOMAIN} {{
        kubeconfig {certificates.COREDNS.kubeconfig} mark-local
        ttl 2
    }}
}}
.:53 {{
    bind {settings.GATEWAY}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""")
    processes.start("coredns", [binaries.program("coredns"), "-conf", COREFILE])


def start_kubelet() -> None:
    identity = certificates.KUBELET
    _write(
        KUBELET_CONFIGURATION,
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": settings.GATEWAY,
            "healthzBindAddress": settings.LOOPBACK,
            "tlsCertFile": str(identity.certificate),
            "tlsPrivateKeyFile": str(identity.key),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(certificates.AUTHORITY)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{settings.CONTAINERD_SOCKET}",
            "clusterDNS": [settings.GATEWAY],
            "clusterDomain": settings.CLUSTER_DOMAIN,
            "resolvConf": "",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{settings.CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            # Images come from an import, not from a registry: one that is collected is lost.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
            "podLogsDir": str(settings.POD_LOGS),
            "volumePluginDir": str(settings.KUBELET_ROOT / "volume-plugins"),
            "nodeStatusUpdateFrequency": "10s",
        },
    )
    processes.start(
        "kubelet",
        [
            binaries.program("kubelet"),
            f"--config={KUBELET_CONFIGURATION}",
            f"--kubeconfig={identity.kubeconfig}",
            f"--root-dir={settings.KUBELET_ROOT}",
            f"--hostname-override={settings.NODE}",
            f"--node-ip={settings.GATEWAY}",
        ],
    )


def start_proxy() -> None:
    _write(
        PROXY_CONFIGURATION,
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(certificates.PROXY.kubeconfig)},
            "mode": "iptables",
            "hostnameOverride": settings.NODE,
            "bindAddress": settings.GATEWAY,
            "healthzBindAddress": f"{settings.LOOPBACK}:10256",
            "metricsBindAddress": f"{settings.LOOPBACK}:10249",
            "iptables": {"localhostNodePorts": False},
            # The machine's connection tracking is left as it is.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        },
    )
    processes.start("kube-proxy", [binaries.program("kube-proxy"), f"--config={PROXY_CONFIGURATION}"])


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1))


AFTER_API_SERVER: tuple[Callable[[], None], ...] = (
    start_controller_manager,
    start_scheduler,
    start_coredns,
    start_kubelet,
    start_proxy,
)
ALL_NAMES = ("containerd", *reversed(STOP_ORDER))
