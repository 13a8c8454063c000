"""A real control plane on loopback for tests: etcd, kube-apiserver and, if asked, kube-controller-manager. No node, no scheduler."""

import json
import secrets
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "tests" / "cluster" / "local.py"
START_SECONDS = 60
# admin and operator may do everything, the others nothing until a test binds them to a role.
USERS = ("admin", "operator", "alice", "bob", "carol", "dave", "erin", "stranger")
# Whose calls are written down, one line each, for those who count them.
AUDITED = "operator"
CONTROLLERS = (
    "job-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "ttl-after-finished-controller",
    "resourcequota-controller",
    "persistentvolumeclaim-protection-controller",
)


@dataclass(frozen=True)
class ApiServer:
    """A running API server and its users."""

    url: str
    folder: Path
    programs: dict[str, Path]
    tokens: dict[str, str] = field(repr=False)

    @property
    def certificate(self) -> Path:
        return self.folder / "certs" / "apiserver.crt"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def kubeconfig(self, user: str = "admin", url: str | None = None) -> Path:
        """A kubeconfig for a user; with `url`, one that goes another way on loopback instead."""
        path = self.folder / f"kubeconfig-{user}-{'direct' if url is None else secrets.token_hex(4)}"
        if path.exists():
            return path
        cluster = {"server": url or self.url}
        if cluster["server"].startswith("https:"):
            cluster["certificate-authority"] = str(self.certificate)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        whole = path.with_suffix(f".{secrets.token_hex(4)}")  # two threads may ask at once
        whole.write_text(json.dumps(config))
        whole.chmod(0o600)
        return whole.rename(path)

    def kubectl(self, *words: str, user: str = "admin", stdin: Any = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl; `stdin` may be a manifest as text or as a dict. The caller looks at returncode, stdout and stderr."""
        text = json.dumps(stdin) if isinstance(stdin, dict | list) else stdin
        command = [str(self.programs["kubectl"]), "--kubeconfig", str(self.kubeconfig(user)), *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    def must(self, *words: str, user: str = "admin", stdin: Any = None) -> str:
        """Run kubectl and return what it printed; fail the test with its words when it fails."""
        done = self.kubectl(*words, user=user, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def fresh_namespace(self) -> str:
        """A new namespace with the service account that a controller manager would make."""
        name = f"test-{secrets.token_hex(4)}"
        self.must("create", "namespace", name)
        self.kubectl("create", "serviceaccount", "default", "-n", name)
        return name


@contextmanager
def control_plane(folder: Path, *, controllers: bool = False) -> Iterator[ApiServer]:
    """Start it, install the generated CRDs, and end it with the block."""
    programs = _programs()
    client_port, peer_port, secure_port = _free_ports(3)
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *flags: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([str(programs[name]), *flags], stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        processes.append(process)
        return process

    try:
        tokens = _write_credentials(folder)
        _write_audit_policy(folder)
        start("etcd", *_etcd_flags(folder, client_port, peer_port))
        process = start("kube-apiserver", *_server_flags(folder, client_port, secure_port))
        server = ApiServer(f"https://127.0.0.1:{secure_port}", folder, programs, tokens)
        _wait_until_ready(server, process)
        for name in ("trainingruns", "evalruns", "models"):
            server.must("apply", "--server-side", "-f", str(ROOT / "crds" / f"{name}.yaml"))
        server.must("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        if controllers:
            start("kube-controller-manager", *_controller_flags(server))
        yield server
    finally:
        for process in reversed(processes):
            _end(process)


def _programs() -> dict[str, Path]:
    built = subprocess.run([sys.executable, str(LAUNCHER), "binaries"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, f"the binaries could not be built:\n{built.stdout}{built.stderr}"
    folder = Path(built.stdout.strip().splitlines()[-1])
    wanted = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm")
    found = {name: path for name in wanted for path in folder.glob(f"*/{name}")}
    assert found.keys() == set(wanted), f"missing in {folder}: {set(wanted) - found.keys()}"
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # it waits for open watches; nothing of it is kept
        process.kill()
        process.wait()


def _etcd_flags(folder: Path, client_port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _server_flags(folder: Path, etcd_port: int, secure_port: int) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--secure-port={secure_port}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={folder / 'certs'}",
        f"--service-account-key-file={folder / 'service-account.key'}",
        f"--service-account-signing-key-file={folder / 'service-account.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        # Pods are made here before the controller manager has made their service account.
        "--disable-admission-plugins=ServiceAccount",
        "--service-cluster-ip-range=10.98.0.0/16",
        f"--audit-policy-file={folder / 'audit-policy.json'}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--audit-log-maxsize=10000",  # MB; one that is put aside in the middle would not be read on
    ]


def _controller_flags(server: ApiServer) -> list[str]:
    return [
        f"--kubeconfig={server.kubeconfig()}",
        f"--controllers={','.join(CONTROLLERS)}",
        f"--service-account-private-key-file={server.folder / 'service-account.key'}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def _write_credentials(folder: Path) -> dict[str, str]:
    key = folder / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens = {user: secrets.token_hex(16) for user in USERS}
    groups = dict.fromkeys(("admin", "operator"), ',"system:masters"')
    lines = [f"{token},{user},{user}{groups.get(user, '')}" for user, token in tokens.items()]
    (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
    (folder / "tokens.csv").chmod(0o600)
    return tokens


def _write_audit_policy(folder: Path) -> None:
    rules = [{"level": "Metadata", "users": [AUDITED]}, {"level": "None"}]
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    (folder / "audit-policy.json").write_text(json.dumps(policy))


def _wait_until_ready(server: ApiServer, process: subprocess.Popen[bytes]) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is being written while we ask
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if urllib.request.urlopen(f"{server.url}/readyz", context=context, timeout=2).status == 200:
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    log = (server.folder / "kube-apiserver.log").read_text()[-2000:]
    raise AssertionError(f"kube-apiserver did not become ready in {START_SECONDS} s:\n{log}")
