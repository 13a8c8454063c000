"""What this machine must be and have: Linux, Debian, root, a few packages; and one start, stop or build at a time."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import settings
from .commands import run
from .console import say, step
from .errors import ClusterError, NotSupportedError

SELF_HELP = "run on Debian as root, or set CLUSTER=current to use the cluster of your current kubectl context"


def require_support() -> None:
    """Refuse, loudly, on a machine that cannot carry the cluster."""
    if platform.system() != "Linux":
        raise NotSupportedError(f"the local cluster needs Linux, this is {platform.system()}", SELF_HELP)
    if _distribution() != "debian":
        raise NotSupportedError(f"the local cluster is made for Debian, this is {_distribution()!r}", SELF_HELP)
    if os.geteuid() != 0:
        raise NotSupportedError("the local cluster needs root: it starts containers and sets up a network", SELF_HELP)


def _distribution() -> str:
    release = Path("/etc/os-release")
    lines = release.read_text().splitlines() if release.exists() else []
    return next((line.removeprefix("ID=").strip('"') for line in lines if line.startswith("ID=")), "unknown")


def install_packages() -> None:
    """Install the Debian packages that are missing."""
    missing = [package for package, proof in settings.PACKAGES.items() if not Path(proof).exists()]
    if not missing:
        return
    with step(f"installing packages: {' '.join(missing)}"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        remedy = "see whether `apt-get update` works on this machine"
        # A package's own daemon (containerd) is neither needed nor started: the cluster runs its own.
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            run("apt-get", "update", extra_environment=quiet, remedy=remedy)
            run("apt-get", "install", "-y", "--no-install-recommends", *missing, extra_environment=quiet, remedy=remedy)
        finally:
            if ours:
                policy.unlink()


def require_go() -> None:
    """The Kubernetes commands are built from source."""
    if not shutil.which("go"):
        raise ClusterError("the Go toolchain is missing", "install Go 1.26 or later and put it on PATH")


def refuse_second_kubernetes() -> None:
    """Two kube-proxies in one network namespace would fight over the same chains."""
    own_network = Path("/proc/self/ns/net").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            if name not in {"kubelet", "kube-proxy", "k3s-server"}:
                continue
            program = str((process / "exe").readlink())
            network = (process / "ns" / "net").readlink()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if network == own_network and not program.startswith(str(settings.BINARIES)):
            raise ClusterError(
                f"another Kubernetes runs on this machine: process {process.name}, {program}",
                "stop it first, or set CLUSTER=current to use it",
            )


@contextmanager
def exclusive(activity: str, folder: Path = settings.LOCKS) -> Iterator[None]:
    """One process at a time, whichever clone it comes from; the folder says whom it concerns."""
    path = folder / f"mark-{activity}.lock"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"- another process works on the {activity}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
