"""The Kubernetes programs, built from their Go modules once a version and kept in the cache.

A folder in the cache is whole or absent: it is built under another name and renamed at the end.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import host, settings
from .commands import run
from .console import step

KUBERNETES_COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
# Nine minutes on two cores when nothing is cached; a slow disk takes several times that.
BUILD_SECONDS = 3600


@dataclass(frozen=True)
class Build:
    """Programs that come from one module at one version."""

    name: str
    version: str
    module: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    linker_values: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return settings.BINARIES / f"{self.name}-{self.version}"


def _kubernetes_version_values() -> tuple[str, ...]:
    """Clients read the server's version; a build from modules knows it only if it is told."""
    major, minor, _ = settings.KUBERNETES_VERSION.split(".")
    values = (f"gitVersion=v{settings.KUBERNETES_VERSION}", f"gitMajor={major}", f"gitMinor={minor}")
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return tuple(f"{package}.{value}" for package in packages for value in values)


KUBERNETES = Build(
    "kubernetes",
    settings.KUBERNETES_VERSION,
    "kubernetes",
    tuple(f"k8s.io/kubernetes/cmd/{command}" for command in KUBERNETES_COMMANDS),
    KUBERNETES_COMMANDS,
    _kubernetes_version_values(),
)
ETCD = Build("etcd", settings.ETCD_VERSION, "kubernetes", ("go.etcd.io/etcd/server/v3",), ("etcd",))
COREDNS = Build("coredns", settings.COREDNS_VERSION, "coredns", ("github.com/coredns/coredns",), ("coredns",))
HELM = Build(
    "helm",
    settings.HELM_VERSION,
    "helm",
    ("helm.sh/helm/v4/cmd/helm",),
    ("helm",),
    (f"helm.sh/helm/v4/internal/version.version=v{settings.HELM_VERSION}",),
)
PAUSE = Build("pause", settings.PAUSE_VERSION, "pause", (".",), ("pause",))
# A later program (for instance kwok, for nodes that are not there) is one more line and one more module in tests/cluster/go.
ALL = (KUBERNETES, ETCD, COREDNS, HELM, PAUSE)


def program(name: str) -> Path:
    """Where a program is, or will be once it is built."""
    return next(build.folder / name for build in ALL if name in build.programs)


def build_missing() -> None:
    """Build what the cache does not hold."""
    if all(build.folder.exists() for build in ALL):
        return
    host.require_go()
    with host.exclusive("binaries", settings.CACHE):
        _remove_leftovers()
        settings.BINARIES.mkdir(parents=True, exist_ok=True)
        # The compile cache takes 5 GB and is of no use once the programs are kept.
        with tempfile.TemporaryDirectory(prefix="go-build-", dir=settings.CACHE) as compile_cache:
            for build in ALL:
                if not build.folder.exists():
                    with step(f"building {build.name} {build.version} (the whole set: 10 minutes on 2 cores, once)"):
                        _build(build, compile_cache)


def _remove_leftovers() -> None:
    """Remove what a build that was killed has left."""
    for folder in [*settings.CACHE.glob("go-build-*"), *settings.BINARIES.glob(".*")]:
        shutil.rmtree(folder)


def _build(build: Build, compile_cache: str) -> None:
    draft = settings.BINARIES / f".{build.name}-{build.version}"
    draft.mkdir()
    linker = " ".join(("-s", "-w", *(f"-X {value}" for value in build.linker_values)))
    # With several packages Go names the files itself, in a folder; a single one is named here (etcd's would be "server").
    output = f"{draft}/" if len(build.packages) > 1 else str(draft / build.programs[0])
    environment = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOCACHE": compile_cache,
        "GOWORK": "off",
    }
    try:
        run(
            "nice",
            "-n",
            "5",
            "go",
            "build",
            "-trimpath",
            "-ldflags",
            linker,
            "-o",
            output,
            *build.packages,
            folder=settings.GO_MODULES / build.module,
            extra_environment=environment,
            timeout=BUILD_SECONDS,
            remedy="the Go module proxy must be reachable for the first build",
        )
        draft.rename(build.folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
