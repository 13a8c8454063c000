"""The program inside the copy Pod: lists, receives and sends files of the workspace, whole or not at all.

It runs in whatever image the Pod has, so it must import nothing but the standard library, and it must write nothing
outside the folder of its target. A stream is one line of JSON, the listing, and then the bytes of the files in the
order of the listing. Every answer is one line of JSON on standard error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path("/workspace")
ALIVE = Path("/tmp/alive")
IDLE_SECONDS = 120
CHUNK = 1024 * 1024
PARTIAL = ".partial"


class CopyError(Exception):
    """What the near side shall tell the person."""


def main(arguments: list[str]) -> int:
    """Do what the first argument says; the answer's field `error` is null when it worked."""
    verbs: dict[str, Any] = {"wait": wait_until_idle, "list": answer_listing, "receive": receive, "send": send}
    try:
        answer: dict[str, Any] = {"error": None, **verbs[arguments[0]](*arguments[1:])}
    except CopyError as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": f"{within_workspace(error.filename)}: {error.strerror}"}
    sys.stderr.write(json.dumps(answer) + "\n")
    sys.stderr.flush()
    if arguments[0] == "receive":
        drain(sys.stdin.buffer)
    return 1 if answer["error"] else 0


def drain(source: BinaryIO) -> None:
    """Take what is still coming, so that the near side is never stuck sending and hears the answer."""
    while source.read(CHUNK):
        continue


def within_workspace(path: str | None) -> str:
    """A path as people write it."""
    return str(path).removeprefix(f"{ROOT}/") if path else "the workspace"


def wait_until_idle() -> dict[str, Any]:
    """Keep the Pod until no copy has moved a byte for a while, so that a killed `mark` leaves nothing running."""
    touch_alive()
    while time.time() - ALIVE.stat().st_mtime < IDLE_SECONDS:
        time.sleep(1)
    return {}


def touch_alive() -> None:
    """Say that a copy is going on."""
    ALIVE.touch()


def answer_listing(relative: str) -> dict[str, Any]:
    """What lies at a path: null, a file or a folder, with the size and sha256 of every file."""
    target = place(relative)
    if not target.exists():
        return {"found": None}
    return {"found": "folder" if target.is_dir() else "file", "files": listing(target)}


def listing(target: Path) -> list[list[Any]]:
    """[path, size, sha256] of each file, by path; the path of a single file is empty."""
    if target.is_file():
        return [["", target.stat().st_size, digest(target)]]
    files = sorted(path for path in target.rglob("*") if path.is_file() and not is_partial(path.relative_to(target)))
    return [[path.relative_to(target).as_posix(), path.stat().st_size, digest(path)] for path in files]


def is_partial(relative: Path) -> bool:
    """Whether it belongs to a copy that is going on, or was cut off."""
    return any(part.startswith(".") and part.endswith(PARTIAL) for part in relative.parts)


def receive(relative: str, replace: str, source: BinaryIO | None = None) -> dict[str, Any]:
    """Write the files of a stream beside the target, check each one, then put them there in one rename."""
    source = source or sys.stdin.buffer
    target = place(relative)
    header = json.loads(source.readline() or b"null")
    if header is None:
        raise CopyError("the stream ended before its first line")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        for name, size, expected in header["files"]:
            write_checked(source, staged / name if name else staged, (name or target.name, size, expected))
        swap(staged, target, replace == "replace")
    finally:
        remove(staged)
    return {"files": len(header["files"])}


def write_checked(source: BinaryIO, path: Path, expectation: tuple[str, int, str]) -> None:
    """Take exactly `size` bytes of the stream into a file; raises when they are not the ones that were announced."""
    name, size, expected = expectation
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = hashlib.sha256()
    left = size
    with path.open("wb") as file:
        while left:
            data = source.read(min(CHUNK, left))
            if not data:
                raise CopyError(f"{name}: the stream ended {left} bytes early")
            file.write(data)
            checksum.update(data)
            left -= len(data)
            touch_alive()
        file.flush()
        os.fsync(file.fileno())
    if checksum.hexdigest() != expected:
        raise CopyError(f"{name}: arrived with another sha256 than it was sent with; did it change while it was read?")


def swap(staged: Path, target: Path, replace: bool) -> None:
    """Give the staged files the target's name. What was there before goes only after that has worked."""
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    if target.exists():
        if not replace:
            raise CopyError(f"{target.relative_to(ROOT)}: appeared while it was copied")
        target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync_folder(target.parent)
    remove(old)


def remove_abandoned(target: Path) -> None:
    """Remove what copies that were cut off left beside the target: no living copy is silent for that long."""
    for path in target.parent.glob(f".{target.name}.????????{PARTIAL}"):
        newest = max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
        if time.time() - newest > 10 * IDLE_SECONDS:
            remove(path)


def send(relative: str, sink: BinaryIO | None = None) -> dict[str, Any]:
    """Write a file or folder of the workspace to standard output."""
    sink = sink or sys.stdout.buffer
    target = place(relative)
    if not target.exists():
        raise CopyError(f"{relative}: is not in the workspace")
    files = listing(target)
    sink.write(json.dumps({"folder": target.is_dir(), "files": files}).encode() + b"\n")
    for name, size, _ in files:
        with (target / name if name else target).open("rb") as file:
            copy_exactly(file, sink, size, name or target.name)
    sink.flush()
    return {"files": len(files)}


def copy_exactly(file: BinaryIO, sink: BinaryIO, size: int, name: str) -> None:
    """The announced number of bytes, or an error: the far end counts on it."""
    left = size
    while left:
        data = file.read(min(CHUNK, left))
        if not data:
            raise CopyError(f"{name}: became shorter while it was read")
        sink.write(data)
        left -= len(data)
        touch_alive()


def place(relative: str) -> Path:
    """The absolute path, which does not leave the workspace."""
    path = ROOT / relative
    if not path.resolve().is_relative_to(ROOT.resolve()):
        raise CopyError(f"{relative}: leads out of the workspace")
    return path


def digest(path: Path) -> str:
    """sha256 of a file."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            checksum.update(data)
            touch_alive()
    return checksum.hexdigest()


def remove(path: Path) -> None:
    """Delete a file or folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
