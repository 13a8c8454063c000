"""The near side of a copy: what a folder holds, and received files written whole or not at all."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from mark_operator.cli.errors import ClusterError, InputError
from mark_operator.cli.workspace.local_files import File, Pieces, listing, local_paths, write_received


def ignore(_: object, __: object = None) -> None:
    return None


def test_files_below_a_folder_are_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "weights").write_bytes(b"w")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / "weights")
    (snapshot / "more").symlink_to(tmp_path / "blobs")
    assert [name for name, _ in local_paths(snapshot)] == ["model.safetensors", "more/weights"]


def test_a_loop_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads back to a folder above it"):
        local_paths(tmp_path)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: None, "holds no file"),
        (lambda folder: (folder / "broken").symlink_to("nowhere"), "broken: is neither a file nor a folder"),
        (lambda folder: folder.rmdir(), "there is no such file or folder"),
    ],
    ids=["empty", "broken link", "missing"],
)
def test_a_folder_that_cannot_be_copied_is_refused(tmp_path: Path, make: object, complaint: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=complaint):
        local_paths(folder)


def test_a_listing_reads_every_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 600_000)
    seen: list[int] = []
    (file,) = listing(local_paths(tmp_path), seen.append)
    assert file == File("a", 600_000, hashlib.sha256(b"x" * 600_000).hexdigest())
    assert sum(seen) == 600_000


def pieces_of(content: bytes, size: int) -> Iterator[bytes]:
    yield from (content[start : start + size] for start in range(0, len(content), size))


def files_of(contents: dict[str, bytes]) -> list[File]:
    return [File(name, len(c), hashlib.sha256(c).hexdigest()) for name, c in contents.items()]


CONTENTS = {"a": b"first", "b/c": b"second" * 50, "empty": b""}


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_received_files_are_the_sent_ones_however_the_stream_is_cut(tmp_path: Path, size: int) -> None:
    stream = Pieces(pieces_of(b"header\n" + b"".join(CONTENTS.values()), size))
    assert stream.line() == b"header"
    write_received(files_of(CONTENTS), tmp_path / "out", stream, advance=ignore, check=ignore)
    assert {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    } == CONTENTS


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [(b"first" + b"second", "ended .* bytes early"), (b"F" + b"".join(CONTENTS.values())[1:], "arrived damaged")],
    ids=["cut off", "damaged"],
)
def test_a_bad_stream_keeps_what_was_there(tmp_path: Path, stream: bytes, complaint: str) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(ClusterError, match=complaint):
        write_received(files_of(CONTENTS), tmp_path / "out", Pieces(iter([stream])), advance=ignore, check=ignore)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    files = files_of({name: b"x"})
    with pytest.raises(ClusterError, match="leads out of the folder"):
        write_received(files, tmp_path / "out", Pieces(iter([b"x"])), advance=ignore, check=ignore)
