"""One certificate authority a cluster, a certificate and a kubeconfig for each component, made anew at every start."""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path

from . import settings
from .commands import run

DAYS = "3650"
FOLDER = settings.CERTIFICATES
AUTHORITY = FOLDER / "authority.crt"
SERVICE_ACCOUNT_KEY = FOLDER / "service-accounts.key"
SERVICE_ACCOUNT_PUBLIC_KEY = FOLDER / "service-accounts.pub"


@dataclass(frozen=True)
class Identity:
    """Who a certificate speaks for."""

    name: str
    common_name: str
    organization: str = ""
    addresses: tuple[str, ...] = field(default=())

    @property
    def certificate(self) -> Path:
        return FOLDER / f"{self.name}.crt"

    @property
    def key(self) -> Path:
        return FOLDER / f"{self.name}.key"

    @property
    def kubeconfig(self) -> Path:
        return settings.CONFIGURATION / f"{self.name}.kubeconfig"


API_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{settings.CLUSTER_DOMAIN}",
)
API_SERVER = Identity(
    "kube-apiserver",
    "kube-apiserver",
    addresses=(
        *(f"DNS:{name}" for name in API_SERVER_NAMES),
        *(f"IP:{address}" for address in (settings.API_SERVICE_ADDRESS, settings.GATEWAY)),
    ),
)
KUBELET = Identity(
    "kubelet", f"system:node:{settings.NODE}", "system:nodes", (f"DNS:{settings.NODE}", f"IP:{settings.GATEWAY}")
)
KUBELET_CLIENT = Identity("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
ETCD = Identity("etcd", "etcd", addresses=(f"IP:{settings.LOOPBACK}",))
ADMIN = Identity("admin", "admin", "system:masters")
CONTROLLER_MANAGER = Identity("kube-controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("kube-scheduler", "system:kube-scheduler")
PROXY = Identity("kube-proxy", "system:kube-proxy")
COREDNS = Identity("coredns", "coredns")

WITH_KUBECONFIG = (ADMIN, CONTROLLER_MANAGER, SCHEDULER, PROXY, COREDNS, KUBELET)
ALL = (*WITH_KUBECONFIG, API_SERVER, KUBELET_CLIENT, ETCD)


def make_all() -> None:
    """Make the authority, all certificates, the service-account keys and the kubeconfigs."""
    FOLDER.mkdir(parents=True, mode=0o700)
    settings.CONFIGURATION.mkdir(parents=True, exist_ok=True)
    _make_authority()
    for identity in ALL:
        _make_certificate(identity)
    elliptic = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    run("openssl", "genpkey", *elliptic, "-out", SERVICE_ACCOUNT_KEY)
    run("openssl", "pkey", "-in", SERVICE_ACCOUNT_KEY, "-pubout", "-out", SERVICE_ACCOUNT_PUBLIC_KEY)
    for identity in WITH_KUBECONFIG:
        write_private(identity.kubeconfig, _kubeconfig(identity))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


def _make_authority() -> None:
    _openssl_request(
        "/CN=mark-local-cluster",
        FOLDER / "authority.key",
        AUTHORITY,
        ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"],
        [],
    )


def _make_certificate(identity: Identity) -> None:
    organization = f"/O={identity.organization}" if identity.organization else ""
    extensions = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth,clientAuth",
    ]
    if identity.addresses:
        extensions.append(f"subjectAltName={','.join(identity.addresses)}")
    signer = ["-CA", str(AUTHORITY), "-CAkey", str(FOLDER / "authority.key")]
    _openssl_request(
        f"{organization}/CN={identity.common_name}", identity.key, identity.certificate, extensions, signer
    )


def _openssl_request(subject: str, key: Path, certificate: Path, extensions: list[str], signer: list[str]) -> None:
    added = [word for extension in extensions for word in ("-addext", extension)]
    run(
        "openssl",
        "req",
        "-x509",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-noenc",
        "-config",
        "/dev/null",
        "-days",
        DAYS,
        "-subj",
        subject,
        "-keyout",
        key,
        "-out",
        certificate,
        *added,
        *signer,
    )


def _kubeconfig(identity: Identity) -> str:
    """A kubeconfig that carries its keys itself, so that it can be copied."""
    context = {"cluster": "mark-local", "user": identity.name}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "mark-local",
            "clusters": [
                {
                    "name": "mark-local",
                    "cluster": {"server": settings.API_SERVER, "certificate-authority-data": _base64(AUTHORITY)},
                }
            ],
            "users": [
                {
                    "name": identity.name,
                    "user": {
                        "client-certificate-data": _base64(identity.certificate),
                        "client-key-data": _base64(identity.key),
                    },
                }
            ],
            "contexts": [{"name": "mark-local", "context": context}],
        },
        indent=1,
    )


def _base64(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()
