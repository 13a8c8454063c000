"""Build the images and bring them into the cluster.

Nothing is done for an image whose inputs did not change. Otherwise buildah reuses the layers of the dependencies, and
containerd receives only the layers that it does not hold: after a change of code that is one small layer.
"""

import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from . import base_image, containers, host, oci, processes, settings
from .build_store import build_logged, buildah, image_exists, layer_content, remove_leftovers
from .console import say, step
from .image_sources import Image

# Where the machine keeps the certificate authorities it trusts: a proxy's own one is among them.
CERTIFICATE_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Not where the package ca-certificates writes its own while the image is built.
BUNDLE_IN_BUILD = "/run/build/ca-certificates.crt"
CONTENT_STORE = settings.CONTAINERD_ROOT / "io.containerd.content.v1.content" / "blobs" / "sha256"
# Other clones and branches use the same store at the same time, so the last few stay.
KEPT_TAGS = 12


def ensure(image: Image) -> str:
    """Build and import the image unless the cluster has exactly this one; its reference."""
    with host.exclusive("images", settings.CACHE), tempfile.TemporaryDirectory() as folder:
        processes.require_alive("containerd")
        image.copy_to(Path(folder))
        reference = image.reference(Path(folder))
        if reference in containers.image_names():
            say(f"- {reference}: there already")
        else:
            _build_and_import(image, reference, Path(folder))
        containers.ctr("images", "tag", "--force", reference, image.development_reference())
        return reference


def ensure_built(image: Image) -> str:
    """Build the image unless the build store has exactly this one, for those who need no cluster; its reference."""
    with host.exclusive("images", settings.CACHE), tempfile.TemporaryDirectory() as folder:
        image.copy_to(Path(folder))
        reference = image.reference(Path(folder))
        if not image_exists(reference):
            _build(image, reference, Path(folder))
        return reference


def _build_and_import(image: Image, reference: str, context: Path) -> None:
    _build(image, reference, context)
    with step(f"{reference}: bringing the new layers into the cluster"):
        import_image(reference)
    remove_older(image)


def _build(image: Image, reference: str, context: Path) -> None:
    remove_leftovers()
    base = base_image.ensure()
    with step(f"{reference}: building"):
        build(image, reference, base, context)


def build(image: Image, reference: str, base: str, context: Path) -> None:
    """Build from a folder that holds the image's files and nothing else."""
    arguments = [f"--build-arg=BASE={base}"]
    if image.flavour:
        arguments.append(f"--build-arg=FLAVOUR={image.flavour}")
    with tempfile.NamedTemporaryFile("w", suffix="pip.conf") as pip_configuration:
        pip_configuration.write(_pip_configuration())
        pip_configuration.flush()
        arguments.append(f"--volume={pip_configuration.name}:/etc/pip.conf:ro")
        if CERTIFICATE_BUNDLE.exists():
            arguments.append(f"--volume={CERTIFICATE_BUNDLE}:{BUNDLE_IN_BUILD}:ro")
        file = f"--file={context / image.containerfile}"
        always = ("--layers", "--force-rm", "--pull=never", file, f"--tag={reference}")
        build_logged("build", *always, *arguments, str(context))


def _pip_configuration() -> str:
    """What the pip inside the build must know of this machine."""
    lines = ["[global]"]
    if CERTIFICATE_BUNDLE.exists():
        lines.append(f"cert = {BUNDLE_IN_BUILD}")
    if index := os.environ.get("PIP_INDEX_URL"):
        lines.append(f"index-url = {index}")
    return "\n".join([*lines, ""])


def import_image(reference: str) -> None:
    """Give containerd the image's layers that it lacks, straight from buildah's store."""
    described = json.loads(buildah("inspect", "--type=image", reference))
    manifest, config = described["Manifest"].encode(), described["Config"].encode()
    held = {f"sha256:{path.name}" for path in CONTENT_STORE.iterdir()} if CONTENT_STORE.exists() else set()
    lacking = {
        layer["digest"]: layer["size"] for layer in json.loads(manifest)["layers"] if layer["digest"] not in held
    }

    def write(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            oci.write_image(archive, reference, manifest, config)
            for digest, size in lacking.items():
                with layer_content(digest) as content:
                    oci.add_blob(archive, digest, size, content)

    containers.import_stream(write)


def remove_older(image: Image) -> None:
    """Forget all but the last few builds of an image."""
    suffix = f"-{image.flavour}" if image.flavour else ""
    mine = [
        (each["createdatraw"], name)
        for each in json.loads(buildah("images", "--json"))
        for name in each["names"] or []
        if name.startswith(f"localhost/{image.name}:") and name.endswith(suffix)
    ]
    present = containers.image_names()
    for _, name in sorted(mine, reverse=True)[KEPT_TAGS:]:
        buildah("rmi", name)
        if name in present:
            containers.ctr("images", "rm", name)
