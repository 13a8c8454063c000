"""The near side of a copy: which files a person's folder holds, and writing received ones whole or not at all.

It must not know about Pods.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mark_operator.cli.errors import ClusterError, InputError

CHUNK = 256 * 1024


@dataclass(frozen=True)
class File:
    """A file of a copy; the name is relative to the copied folder, and empty for a single file."""

    name: str
    size: int
    digest: str


def local_paths(source: Path) -> list[tuple[str, Path]]:
    """Name and path of every file below a folder, sorted by name. Links are followed: their targets are copied."""
    if source.is_file():
        return [("", source)]
    if not source.is_dir():
        raise InputError(f"{source}: there is no such file or folder")
    found = sorted((path.relative_to(source).as_posix(), path) for path in _walk(source, frozenset()))
    if not found:
        raise InputError(f"{source}: holds no file, so there is nothing to copy")
    return found


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        raise InputError(f"{folder}: a symbolic link leads back to a folder above it", "remove the link")
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _walk(entry, above | {real})
        elif entry.is_file():
            yield entry
        else:
            raise InputError(
                f"{entry}: is neither a file nor a folder (a broken link, a socket or a device)", "remove it first"
            )


def listing(paths: Iterable[tuple[str, Path]], advance: Callable[[int], None]) -> list[File]:
    """Size and sha256 of each file; `advance` hears how many bytes were read."""
    return [_describe(name, path, advance) for name, path in paths]


def _describe(name: str, path: Path, advance: Callable[[int], None]) -> File:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path!s}: the name is not UTF-8", "rename the file") from error
    checksum, size = hashlib.sha256(), 0
    for data in read_chunks(path):
        checksum.update(data)
        size += len(data)
        advance(len(data))
    return File(name, size, checksum.hexdigest())


def read_chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes in pieces."""
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                yield data
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


class Pieces:
    """A stream that comes in pieces of any size, read as a line and as exact counts of bytes."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._rest = b""

    def line(self) -> bytes:
        """The stream up to its first line break; what there is when it ends before."""
        while b"\n" not in self._rest:
            piece = next(self._source, b"")
            if not piece:
                return self._rest
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def exactly(self, count: int, what: str) -> Iterator[bytes]:
        """The next `count` bytes; raises when the stream ends before."""
        while count:
            piece = self._rest or next(self._source, b"")
            if not piece:
                raise ClusterError(f"{what}: the copy ended {count} bytes early", _AGAIN)
            now, self._rest = piece[:count], piece[count:]
            count -= len(now)
            yield now


def write_received(
    files: list[File],
    target: Path,
    pieces: Pieces,
    *,
    advance: Callable[[int], None],
    check: Callable[[Path, list[File]], None],
) -> None:
    """Write the files beside the target, check each one and then all, and put them there in one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        for file in files:
            _write_checked(file, _place(staged, file.name), pieces, advance)
        check(staged, files)
        _swap(staged, target)
    finally:
        remove(staged)


def _place(staged: Path, name: str) -> Path:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ClusterError(f"the Pod sent a file name that leads out of the folder: {name!r}")
    return staged / name if name else staged


def _write_checked(file: File, path: Path, pieces: Pieces, advance: Callable[[int], None]) -> None:
    what = file.name or path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = hashlib.sha256()
    with path.open("wb") as output:
        for data in pieces.exactly(file.size, what):
            output.write(data)
            checksum.update(data)
            advance(len(data))
        output.flush()
        os.fsync(output.fileno())
    if checksum.hexdigest() != file.digest:
        raise ClusterError(f"{what}: arrived damaged (its sha256 differs)", _AGAIN)


def _swap(staged: Path, target: Path) -> None:
    old = staged.with_name(f"{staged.name}.old")
    if target.exists():
        target.rename(old)
    staged.rename(target)
    remove(old)


_AGAIN = "nothing was kept; run the command again"


def remove(path: Path) -> None:
    """Delete a file or folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
