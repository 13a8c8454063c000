"""The program of the copy Pod, run here on a folder: whole or not at all, and nothing outside its target."""

import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from mark_operator.cli.workspace import far_side


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    monkeypatch.setattr(far_side, "ROOT", root)
    monkeypatch.setattr(far_side, "ALIVE", tmp_path / "alive")
    return root


def stream(files: dict[str, bytes], *, digests: dict[str, str] | None = None) -> io.BytesIO:
    rows = [[n, len(c), (digests or {}).get(n) or hashlib.sha256(c).hexdigest()] for n, c in files.items()]
    return io.BytesIO(json.dumps({"files": rows}).encode() + b"\n" + b"".join(files.values()))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FILES = {"a.pdf": b"one", "below/b.pdf": b"two" * 1000, "empty": b""}


def test_a_folder_arrives_whole(workspace: Path) -> None:
    assert far_side.receive("base/tiny", "keep", stream(FILES)) == {"files": 3}
    assert contents(workspace) == {f"base/tiny/{name}": content for name, content in FILES.items()}


def test_a_single_file_arrives(workspace: Path) -> None:
    far_side.receive("notes/a.txt", "keep", stream({"": b"hello"}))
    assert contents(workspace) == {"notes/a.txt": b"hello"}


@pytest.mark.parametrize("missing", [1, 500, 3002])
def test_a_truncated_stream_leaves_nothing(workspace: Path, missing: int) -> None:
    whole = stream(FILES).getvalue()
    with pytest.raises(far_side.CopyError, match=r"ended .* bytes early"):
        far_side.receive("corpus", "keep", io.BytesIO(whole[:-missing]))
    assert contents(workspace) == {}


def test_no_stream_at_all_leaves_nothing(workspace: Path) -> None:
    with pytest.raises(far_side.CopyError, match="before its first line"):
        far_side.receive("corpus", "keep", io.BytesIO(b""))
    assert contents(workspace) == {}


def test_a_damaged_file_keeps_what_was_there(workspace: Path) -> None:
    far_side.receive("corpus", "keep", stream({"a.pdf": b"old"}))
    with pytest.raises(far_side.CopyError, match=r"a\.pdf: arrived with another sha256"):
        far_side.receive("corpus", "replace", stream({"a.pdf": b"new"}, digests={"a.pdf": "0" * 64}))
    assert contents(workspace) == {"corpus/a.pdf": b"old"}


def test_replacing_takes_the_old_files_away(workspace: Path) -> None:
    far_side.receive("corpus", "keep", stream({"a.pdf": b"old", "gone.pdf": b"old"}))
    far_side.receive("corpus", "replace", stream({"a.pdf": b"new"}))
    assert contents(workspace) == {"corpus/a.pdf": b"new"}


def test_what_is_there_stays_without_replace(workspace: Path) -> None:
    far_side.receive("corpus", "keep", stream({"a.pdf": b"old"}))
    with pytest.raises(far_side.CopyError, match="appeared while it was copied"):
        far_side.receive("corpus", "keep", stream({"a.pdf": b"new"}))
    assert contents(workspace) == {"corpus/a.pdf": b"old"}


def test_a_failed_rename_puts_the_old_files_back(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far_side.receive("corpus", "keep", stream({"a.pdf": b"old"}))
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target.name == "corpus" and (self / "new.pdf").exists():
            raise OSError(28, "No space left on device", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        far_side.receive("corpus", "replace", stream({"new.pdf": b"new"}))
    assert contents(workspace) == {"corpus/a.pdf": b"old"}


def test_what_a_killed_copy_left_is_removed_once_it_is_old(workspace: Path) -> None:
    for name, age in (("aaaaaaaa", 3600), ("bbbbbbbb", 0)):
        left = workspace / f".corpus.{name}.partial"
        left.mkdir()
        (left / "half.pdf").write_bytes(b"half")
        for path in (left / "half.pdf", left):
            os.utime(path, (time.time() - age,) * 2)
    far_side.receive("corpus", "keep", stream({"a.pdf": b"new"}))
    assert sorted(path.name for path in workspace.iterdir()) == [".corpus.bbbbbbbb.partial", "corpus"]


def test_a_listing_names_size_and_digest_of_each_file(workspace: Path) -> None:
    far_side.receive("corpus", "keep", stream(FILES))
    (workspace / "corpus" / ".x.12345678.partial").write_bytes(b"being copied")
    listed = far_side.answer_listing("corpus")
    assert listed["found"] == "folder"
    assert listed["files"] == [[n, len(c), hashlib.sha256(c).hexdigest()] for n, c in sorted(FILES.items())]
    assert far_side.answer_listing("nowhere") == {"found": None}


def test_what_is_sent_is_what_is_received(workspace: Path) -> None:
    far_side.receive("one", "keep", stream(FILES))
    sent = io.BytesIO()
    far_side.send("one", sent)
    far_side.receive("two", "keep", io.BytesIO(sent.getvalue()))
    assert contents(workspace / "two") == FILES


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "link/x"])
def test_nothing_outside_the_workspace_is_touched(workspace: Path, path: str) -> None:
    (workspace / "link").symlink_to("/tmp")
    with pytest.raises(far_side.CopyError, match="leads out of the workspace"):
        far_side.place(path)


@pytest.mark.parametrize("arguments", [["list", "../x"], ["send", "nowhere"]])
def test_trouble_is_one_line_of_json_and_an_exit_code(arguments: list[str], capsys: Any) -> None:
    assert far_side.main(arguments) == 1
    assert json.loads(capsys.readouterr().err)["error"]


def test_the_pod_ends_when_no_copy_is_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_side, "IDLE_SECONDS", 0)
    assert far_side.main(["wait"]) == 0
