"""Releases of the chart on a control plane."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control_plane import ApiServer

CHART = Path(__file__).resolve().parents[2] / "helm" / "mark-operator"


def helm(server: ApiServer, *words: str) -> str:
    """Run Helm as admin and return what it printed; fail the test with its words when it fails."""
    command = [str(server.programs["helm"]), "--kubeconfig", str(server.kubeconfig()), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr}"
    return done.stdout


@contextmanager
def installed(server: ApiServer, release: str, *values: str) -> Iterator[str]:
    """Namespace of a release, which is uninstalled afterwards. The control plane has the CRDs already, without Helm."""
    namespace = f"mark-{secrets.token_hex(4)}"
    settings = [word for value in ("crds.enabled=false", *values) for word in ("--set", value)]
    helm(server, "install", release, str(CHART), "-n", namespace, "--create-namespace", *settings)
    try:
        yield namespace
    finally:
        helm(server, "uninstall", release, "-n", namespace, "--timeout=30s")
