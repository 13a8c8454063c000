"""The images' base, `debian:trixie-slim` in everyday use, made here from the machine's own package source.

There is no registry to pull it from; debootstrap makes the same system from packages.
"""

import shutil
import tempfile
from pathlib import Path

from . import settings
from .build_store import buildah, image_exists
from .commands import run
from .console import step
from .errors import ClusterError

SUITE = "trixie"
# Raise the number when the recipe below changes: the image is made once and then kept.
REVISION = 2
REFERENCE = f"localhost/mark-base:{SUITE}-{REVISION}"
# What debian:trixie-slim leaves out as well.
LEFT_OUT = ("usr/share/man", "usr/share/info", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists", "var/log")
DPKG_LEAVES_OUT = """\
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
"""


def ensure() -> str:
    """Make the base image if it is not there yet; its name."""
    if not image_exists(REFERENCE):
        with step(f"making the base image: Debian {SUITE}, minimal"):
            _make()
    return REFERENCE


def _make() -> None:
    with tempfile.TemporaryDirectory(prefix="debian-base-", dir=settings.CACHE) as folder:
        root = Path(folder) / "root"
        run("nice", "-n", "5", "debootstrap", "--variant=minbase", SUITE, root, _mirror(), timeout=1200)
        _slim(root)
        container = buildah("from", "scratch").strip()
        try:
            buildah("add", "--quiet", container, str(root), "/")
            buildah(
                "config",
                "--cmd",
                "bash",
                "--env",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                container,
            )
            buildah("commit", "--quiet", container, REFERENCE)
        finally:
            buildah("rm", container)


def _slim(root: Path) -> None:
    for name in LEFT_OUT:
        for child in (root / name).iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    for document in (root / "usr/share/doc").rglob("*"):
        if document.is_file() and document.name != "copyright":
            document.unlink()
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(DPKG_LEAVES_OUT)
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/resolv.conf").unlink(missing_ok=True)


def _mirror() -> str:
    """The package source this machine is set up with."""
    form = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(SITE)"
    for line in run("apt-get", "indextargets", "--format", form, "Identifier: Packages").splitlines():
        origin, component, codename, site = line.split("|")
        if origin == "Debian" and component == "main" and not codename.endswith("-security"):
            return site
    raise ClusterError("this machine's package sources name no Debian main archive", "run `apt-get update` and see")
