"""buildah with a store of its own, so that it neither sees nor disturbs the images of the person's other tools."""

from pathlib import Path

from . import settings
from .commands import run
from .errors import ClusterError

FOLDER = settings.CACHE / "buildah"
OPTIONS = (f"--root={FOLDER / 'storage'}", f"--runroot={FOLDER / 'run'}", "--storage-driver=overlay")
BUILD_SECONDS = 3600


def buildah(*words: str) -> str:
    """Run buildah on the private store."""
    # chroot: the other kinds of isolation need capabilities that sandboxes do not give.
    environment = {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(_temporary_folder())}
    return run("nice", "-n", "5", "buildah", *OPTIONS, *words, extra_environment=environment, timeout=BUILD_SECONDS)


def _temporary_folder() -> Path:
    folder = FOLDER / "temporary"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def image_exists(reference: str) -> bool:
    try:
        buildah("inspect", "--type=image", "--format={{.FromImageID}}", reference)
    except ClusterError:
        return False
    return True
