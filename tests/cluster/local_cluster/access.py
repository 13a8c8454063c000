"""How to reach the cluster: the kubeconfig, kubectl and helm; the only place that knows of CLUSTER=current."""

import os
import shutil
from pathlib import Path

from . import binaries, certificates, settings
from .commands import run
from .errors import ClusterError


def uses_current_context() -> bool:
    """Whether the person asked for the cluster of their current kubectl context instead of the local one."""
    choice = os.environ.get("CLUSTER", "")
    if choice not in {"", "local", "current"}:
        raise ClusterError(f"CLUSTER={choice} means nothing", "leave it unset, or set CLUSTER=current")
    return choice == "current"


def kubeconfig() -> Path:
    """The kubeconfig to use. The person's own one is looked at only with CLUSTER=current."""
    if not uses_current_context():
        return settings.KUBECONFIG
    named = os.environ.get("KUBECONFIG", "")
    if os.pathsep in named:
        raise ClusterError("KUBECONFIG names several files", "merge them: kubectl config view --flatten > one-file")
    return Path(named) if named else Path.home() / ".kube" / "config"


def current_context() -> str:
    """The name of the context in use."""
    try:
        return kubectl("config", "current-context").strip()
    except ClusterError as error:
        raise ClusterError(f"{kubeconfig()} names no current context", "kubectl config use-context NAME") from error


def tool(name: str) -> Path:
    """Where kubectl or helm is: the ones built for the local cluster, else what is on PATH."""
    built = binaries.program(name)
    if built.exists():
        return built
    found = shutil.which(name)
    if not found:
        raise ClusterError(f"no {name} yet", "python3 tests/cluster/local.py binaries")
    return Path(found)


def kubectl(*words: str, input_text: str | None = None, timeout: float = 60) -> str:
    """Run kubectl against the cluster in use."""
    return run(tool("kubectl"), f"--kubeconfig={kubeconfig()}", *words, input_text=input_text, timeout=timeout)


def kubectl_as_admin(*words: str, input_text: str | None = None, timeout: float = 60) -> str:
    """Run kubectl against the local cluster, whatever the environment says."""
    config = f"--kubeconfig={certificates.ADMIN.kubeconfig}"
    return run(binaries.program("kubectl"), config, *words, input_text=input_text, timeout=timeout)


def hand_out_kubeconfig() -> None:
    """Give this clone its own copy."""
    folder = settings.KUBECONFIG.parent
    folder.mkdir(exist_ok=True)
    certificates.write_private(settings.KUBECONFIG, certificates.ADMIN.kubeconfig.read_text())
    owner = settings.REPOSITORY.stat()
    for path in (folder, settings.KUBECONFIG):
        os.chown(path, owner.st_uid, owner.st_gid)
