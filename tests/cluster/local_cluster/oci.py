"""Write a container image as an OCI archive without any container engine."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
NAME_ANNOTATION = "io.containerd.image.name"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def blob_path(blob_digest: str) -> str:
    """Where a blob lies in an OCI layout."""
    return f"blobs/{blob_digest.replace(':', '/')}"


def write_archive(archive: Path, reference: str, manifest: Mapping[str, object], blobs: Iterable[Path | bytes]) -> None:
    """Write an archive of one image with the blobs given; an importer that has the others needs no more."""
    index = {"schemaVersion": 2, "manifests": [{**manifest, "annotations": {NAME_ANNOTATION: reference}}]}
    with tarfile.open(archive, "w") as output:
        _add(output, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(output, "index.json", json.dumps(index).encode())
        for blob in blobs:
            if isinstance(blob, bytes):
                _add(output, blob_path(digest(blob)), blob)
            else:
                output.add(blob, f"blobs/sha256/{blob.name}")


def write_single_program_image(archive: Path, reference: str, program: Path) -> None:
    """An image that holds nothing but one static program."""
    layer_stream = io.BytesIO()
    with tarfile.open(fileobj=layer_stream, mode="w") as layer_file:
        _add(layer_file, program.name, program.read_bytes(), mode=0o755)
    layer = layer_stream.getvalue()
    config = json.dumps({
        "architecture": ARCHITECTURE, "os": "linux", "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, config), "layers": [_descriptor(LAYER_TYPE, layer)],
    }).encode()
    write_archive(archive, reference, _descriptor(MANIFEST_TYPE, manifest), [layer, config, manifest])


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))
