"""Folders that other runs rely on: a manifest with the digest of every file, written last, and one rename that makes
them visible. A folder's digest is the sha256 of its manifest, so it stands for the files and for where they come from.

It must not know what the files mean.
"""

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    write_json(folder / MANIFEST, {"formatVersion": 2, "files": files, "provenance": provenance})
    return file_digest(folder / MANIFEST)


def verify_folder(folder: Path, name: str) -> str:
    """The digest of a published folder; raises BadData, naming the file, when anything differs from its manifest."""
    listed = read_manifest(folder, name)["files"]
    there = {path.relative_to(folder).as_posix() for path in _files(folder)}
    for relative in sorted(there | listed.keys()):
        if relative not in there:
            state = "is missing though it is in"
        elif relative not in listed:
            state = "is not in"
        elif file_digest(folder / relative) != listed[relative]:
            state = "differs from"
        else:
            continue
        raise BadData("DigestDiffers", f"{name}/{relative}: {state} {MANIFEST}; make {name} again")
    return file_digest(folder / MANIFEST)


def provenance_of(folder: Path, name: str) -> dict[str, Any]:
    """What the folder's manifest says about where it came from."""
    return dict(read_manifest(folder, name)["provenance"])


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The folder's manifest; raises BadData unless it lists files and says where they come from."""
    if not (folder / MANIFEST).is_file():
        raise BadData("NotPublished", f"{name}: has no {MANIFEST}; it was not written whole, make it again")
    found = read_json(folder / MANIFEST, f"{name}/{MANIFEST}")
    parts = [found.get(part) for part in ("files", "provenance")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise BadData(
            "NotPublished",
            f"{name}/{MANIFEST}: does not list its files and where they come from; make {name} again",
        )
    return dict(found)


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
