"""Folders that other runs rely on: a manifest with the digest of every file, written last, and one rename that makes
them visible.

It must not know what the files mean.
"""

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mark_crds.job_input import digest_of

from mark_trainer.failures import BadData
from mark_trainer.workspace import Workspace, read_json, sync_folder, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Published:
    """A folder of the workspace that is whole."""

    path: str
    digest: str


def file_digest(path: Path) -> str:
    """sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, provenance: dict[str, Any]) -> str:
    """Write the folder's manifest, after every other file is durable; returns the folder's digest."""
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in _files(folder)}
    for path in _files(folder):
        _sync_file(path)
    digest = digest_of(files)
    write_json(folder / MANIFEST, {"formatVersion": 1, "digest": digest, "files": files, "provenance": provenance})
    return digest


def verify_folder(folder: Path, name: str) -> str:
    """The digest of a published folder; raises BadData, naming the file, when anything differs from its manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise BadData("NotPublished", f"{name}: has no {MANIFEST}; it was not written whole, make it again")
    files = read_json(manifest, f"{name}/{MANIFEST}")["files"]
    for relative, digest in sorted(files.items()):
        path = folder / relative
        if not path.is_file() or file_digest(path) != digest:
            state = "differs from" if path.is_file() else "is missing though it is in"
            raise BadData("DigestDiffers", f"{name}/{relative}: {state} {MANIFEST}; make {name} again")
    return digest_of(files)


def provenance_of(folder: Path, name: str) -> dict[str, Any]:
    """What the folder's manifest says about where it came from."""
    return dict(read_json(folder / MANIFEST, f"{name}/{MANIFEST}")["provenance"])


def publish(workspace: Workspace, staged: Path, parent: str, provenance: dict[str, Any]) -> Published:
    """Move a staged folder to `<parent>/<digest>` in one rename. An equal folder that is there already is kept."""
    digest = write_manifest(staged, provenance)
    target = workspace.path(parent) / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        verify_folder(target, workspace.relative(target))
        shutil.rmtree(staged)
    sync_folder(target.parent)
    return Published(path=workspace.relative(target), digest=digest)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
