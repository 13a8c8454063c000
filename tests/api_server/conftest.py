"""A real etcd and kube-apiserver on loopback, one pair for the whole test session, with RBAC and the generated CRDs. No kubelet, no controllers."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "tests" / "cluster" / "local.py"
START_SECONDS = 60


@dataclass(frozen=True)
class ApiServer:
    """A running API server and the token of its administrator."""

    url: str
    folder: Path
    kubectl_path: Path
    helm_path: Path

    def kubeconfig(self, user: str = "admin") -> Path:
        """A kubeconfig for one of the users of the token file: admin (who may do everything) and some who may do nothing yet."""
        path = self.folder / f"kubeconfig-{user}"
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "certs" / "apiserver.crt")}
        token = json.loads((self.folder / "tokens.json").read_text())[user]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def kubectl(self, *words: str, user: str = "admin", stdin: Any = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl; `stdin` may be a manifest as text or as a dict. The caller looks at returncode, stdout and stderr."""
        text = json.dumps(stdin) if isinstance(stdin, dict | list) else stdin
        command = [str(self.kubectl_path), "--kubeconfig", str(self.kubeconfig(user)), *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    def must(self, *words: str, user: str = "admin", stdin: Any = None) -> str:
        """Run kubectl and return what it printed; fail the test with its words when it fails."""
        done = self.kubectl(*words, user=user, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout


USERS = ("admin", "alice", "bob", "carol", "dave", "erin", "stranger")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("api-server")
    binaries = _binaries()
    client_port, peer_port, secure_port = _free_ports(3)
    etcd = _start(folder, "etcd", [binaries["etcd"], *_etcd_flags(folder, client_port, peer_port)])
    server = None
    try:
        _write_credentials(folder)
        server = _start(folder, "kube-apiserver", [binaries["kube-apiserver"], *_server_flags(folder, client_port, secure_port)])
        running = ApiServer(f"https://127.0.0.1:{secure_port}", folder, binaries["kubectl"], binaries["helm"])
        _wait_until_ready(running, server)
        for name in ("trainingruns", "evalruns", "models"):
            running.must("apply", "--server-side", "-f", str(ROOT / "crds" / f"{name}.yaml"))
        running.must("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield running
    finally:
        for process in (server, etcd):
            if process is not None:
                _end(process)


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A fresh namespace with the default service account that the controller manager would make."""
    name = f"test-{secrets.token_hex(4)}"
    api_server.must("create", "namespace", name)
    api_server.must("create", "serviceaccount", "default", "-n", name)
    return name


def _binaries() -> dict[str, Path]:
    built = subprocess.run([sys.executable, str(LAUNCHER), "binaries"], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.fail(f"the API server's binaries could not be built:\n{built.stdout}{built.stderr}")
    folder = Path(built.stdout.strip().splitlines()[-1])
    found = {name: next(folder.glob(f"*/{name}"), None) for name in ("etcd", "kube-apiserver", "kubectl", "helm")}
    assert all(found.values()), f"missing in {folder}: {[name for name, path in found.items() if path is None]}"
    return {name: path for name, path in found.items() if path is not None}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _start(folder: Path, name: str, command: list[Any]) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT, cwd=folder)


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
        # No controller manager runs here that would make service accounts in time.
        "--disable-admission-plugins=ServiceAccount",
        "--service-cluster-ip-range=10.98.0.0/16",
    ]


def _write_credentials(folder: Path) -> None:
    key = folder / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens = {user: secrets.token_hex(16) for user in USERS}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    groups = {"admin": ',"system:masters"'}
    lines = [f"{token},{user},{user}{groups.get(user, '')}" for user, token in tokens.items()]
    (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
    (folder / "tokens.csv").chmod(0o600)


def _wait_until_ready(running: ApiServer, process: subprocess.Popen[bytes]) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is being written while we ask
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if urllib.request.urlopen(f"{running.url}/readyz", context=context, timeout=2).status == 200:
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    log = (running.folder / "kube-apiserver.log").read_text()[-2000:]
    pytest.fail(f"kube-apiserver did not become ready in {START_SECONDS} s:\n{log}")
