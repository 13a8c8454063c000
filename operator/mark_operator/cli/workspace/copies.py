"""Copying files into a workspace and out of it, with every file's sha256 checked at the far end.

It must not print: progress goes to a callback.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mark_operator.cli.errors import RefusedError
from mark_operator.cli.session import Session
from mark_operator.cli.workspace.copy_pod import far_side_command
from mark_operator.cli.workspace.exec_stream import ExecStream
from mark_operator.cli.workspace.local_files import File, Pieces, local_paths, read_chunks, write_received

# The Pod hashes what it has before it speaks; a file of 100 GB takes it minutes.
SILENCE_SECONDS = 1800

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Found:
    """What lies at a path of the workspace."""

    is_folder: bool
    files: list[File]


def look(session: Session, pod: str, path: str) -> Found | None:
    """What lies at a path, with digests; None when nothing does."""
    answer = _ask(session, pod, "list", path)
    if answer["found"] is None:
        return None
    return Found(answer["found"] == "folder", [File(*row) for row in answer["files"]])


def send_files(
    session: Session, pod: str, source: Path, path: str, files: list[File], *, replace: bool, advance: Advance
) -> None:
    """Copy local files to a path of the workspace, whole or not at all."""
    paths = dict(local_paths(source))
    command = far_side_command("receive", path, "replace" if replace else "keep")
    with ExecStream(session, pod, command, seconds=SILENCE_SECONDS) as stream:
        stream.write(json.dumps({"files": [[f.name, f.size, f.digest] for f in files]}).encode() + b"\n")
        for file in files:
            for data in read_chunks(paths[file.name]):
                if stream.has_answered:  # it will take no more, and the answer says why
                    _read_answer(stream)
                stream.write(data)
                advance(len(data))
        stream.close_input()
        _read_answer(stream)


def fetch_files(
    session: Session,
    pod: str,
    path: str,
    target: Path,
    *,
    begin: Callable[[list[File]], Advance],
    check: Callable[[Path, list[File]], None],
) -> list[File]:
    """Copy a file or folder of the workspace to a local path, whole or not at all.

    `begin` gets the listing before anything is written, `check` the files before they get their name; both refuse by
    raising.
    """
    with ExecStream(session, pod, far_side_command("send", path), seconds=SILENCE_SECONDS) as stream:
        pieces = Pieces(stream.read())
        header = pieces.line()
        if not header:
            _read_answer(stream)
        files = [File(*row) for row in json.loads(header)["files"]]
        write_received(files, target, pieces, advance=begin(files), check=check)
        return files


def read_file(session: Session, pod: str, path: str) -> tuple[bytes, str]:
    """The bytes of one file of the workspace, and its sha256."""
    with ExecStream(session, pod, far_side_command("send", path), seconds=SILENCE_SECONDS) as stream:
        pieces = Pieces(stream.read())
        header = pieces.line()
        if not header:
            _read_answer(stream)
        (file,) = (File(*row) for row in json.loads(header)["files"])
        return b"".join(pieces.exactly(file.size, path)), file.digest


def _ask(session: Session, pod: str, *command: str) -> dict[str, Any]:
    with ExecStream(session, pod, far_side_command(*command), seconds=SILENCE_SECONDS) as stream:
        return _read_answer(stream)


def _read_answer(stream: ExecStream) -> dict[str, Any]:
    """What the far side answers; raises what it complains about."""
    answer: dict[str, Any] = json.loads(stream.answer())
    if answer["error"]:
        raise RefusedError(answer["error"])
    return answer
