"""Write a container image as an OCI archive without any container engine."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import IO

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
NAME_ANNOTATION = "io.containerd.image.name"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def write_image(archive: tarfile.TarFile, reference: str, manifest: bytes, config: bytes) -> None:
    """Write all of an image but its layers; an importer that has those already needs no more."""
    named = {**_descriptor(MANIFEST_TYPE, manifest), "annotations": {NAME_ANNOTATION: reference}}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]}
    _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    _add(archive, "index.json", json.dumps(index).encode())
    for content in (manifest, config):
        add_blob(archive, digest(content), len(content), io.BytesIO(content))


def add_blob(archive: tarfile.TarFile, blob_digest: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(f"blobs/{blob_digest.replace(':', '/')}")
    member.size = size
    archive.addfile(member, content)


def write_single_program_image(archive: tarfile.TarFile, reference: str, program: Path) -> None:
    """An image that holds nothing but one static program."""
    layer_stream = io.BytesIO()
    with tarfile.open(fileobj=layer_stream, mode="w") as layer_file:
        _add(layer_file, program.name, program.read_bytes(), mode=0o755)
    layer = layer_stream.getvalue()
    config = json.dumps(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": [_descriptor(LAYER_TYPE, layer)],
        }
    ).encode()
    write_image(archive, reference, manifest, config)
    add_blob(archive, digest(layer), len(layer), io.BytesIO(layer))


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))
