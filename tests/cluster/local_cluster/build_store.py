"""buildah with a store of its own, so that it neither sees nor disturbs the images of the person's other tools."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from . import settings
from .commands import run
from .errors import ClusterError

FOLDER = settings.CACHE / "buildah"
OPTIONS = (f"--root={FOLDER / 'storage'}", f"--runroot={FOLDER / 'run'}", "--storage-driver=overlay")
STORAGE_PROGRAM = (
    "containers-storage",
    f"--graph={FOLDER / 'storage'}",
    f"--run={FOLDER / 'run'}",
    "--storage-driver=overlay",
)
BUILD_SECONDS = 3600
LOG = FOLDER / "build.log"


def buildah(*words: str) -> str:
    """Run buildah on the private store."""
    return run(*_command(words), extra_environment=_environment(), timeout=BUILD_SECONDS)


def build_logged(*words: str) -> None:
    """Run a build, its whole output in a log; the end of it is the error when it fails."""
    with LOG.open("w") as log:
        done = subprocess.run(
            _command(words),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_environment()},
            timeout=BUILD_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise ClusterError("\n".join(["the image build failed:", *LOG.read_text().splitlines()[-30:]]), f"see {LOG}")


def remove_leftovers() -> None:
    """Remove what a build that was killed has left; only for the holder of the images' lock."""
    buildah("rm", "--all")
    for folder in settings.CACHE.glob("debian-base-*"):
        shutil.rmtree(folder)


@contextmanager
def layer_content(digest: str) -> Iterator[IO[bytes]]:
    """The uncompressed archive of one layer, exactly as its digest says."""
    layers = json.loads(run(*STORAGE_PROGRAM, "layers", "--json"))
    identifier = next(layer["id"] for layer in layers if layer.get("diff-digest") == digest)
    command = [*STORAGE_PROGRAM, "diff", "--uncompressed", identifier]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as export:
        assert export.stdout
        yield export.stdout
    if export.returncode != 0:
        raise ClusterError(f"the layer {digest} could not be read from {FOLDER}", f"delete {FOLDER} and build again")


def _command(words: tuple[str, ...]) -> list[str]:
    return ["nice", "-n", "5", "buildah", *OPTIONS, *words]


def _environment() -> dict[str, str]:
    temporary = FOLDER / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    # chroot: the other kinds of isolation need capabilities that sandboxes do not give.
    return {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(temporary)}


def image_exists(reference: str) -> bool:
    try:
        buildah("inspect", "--type=image", "--format={{.FromImageID}}", reference)
    except ClusterError:
        return False
    return True
