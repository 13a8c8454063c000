"""Ingest and data preparation with a real Chroma server on this machine: the same as embedded, byte by byte."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mark_trainer import data_prep, ingest, preflight
from mark_trainer.collection import Collection, open_collection
from mark_trainer.failures import MachineTrouble, UserMistake
from mark_trainer.workspace import Work

MakeWork = Callable[..., Work]
CopyOf = Callable[..., Path]

pytestmark = pytest.mark.slow


class ChromaServer:
    """The server of the installed package, with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port: int = free.getsockname()[1]

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "the Chroma server did not start"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def settings(self) -> dict[str, Any]:
        return {"maxSamples": 30, "chroma": {"server": {"host": "127.0.0.1", "port": self.port}}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaServer]:
    running = ChromaServer(tmp_path / "server")
    running.start()
    yield running
    running.stop()


def test_a_server_gives_what_the_embedded_database_gives(
    server: ChromaServer, ingested: Path, copy_of: CopyOf, make_work: MakeWork
) -> None:
    embedded_root, root = copy_of(ingested, "embedded"), copy_of(ingested, "remote")
    shutil.rmtree(root / "chroma")
    embedded = make_work("dataPrep", root=embedded_root, dataPrep={"maxSamples": 30})
    remote = make_work("dataPrep", root=root, dataPrep=server.settings)
    with pytest.raises(UserMistake, match=rf"no collection pdf_docs on 127.0.0.1:{server.port}: add ingest"):
        data_prep.run(remote)
    assert (
        preflight.run(make_work("preflight", root=root, stages=["ingest"], dataPrep=server.settings)).outcome == "Done"
    )
    first = ingest.run(remote)
    assert not (root / "chroma").exists()
    with open_collection(embedded) as collection:
        content = collection.read()
    with open_collection(remote) as collection:
        assert collection.read().documents == content.documents
    assert first.artifacts[0].digest == content.digest
    again = {measure.name: measure.value for measure in ingest.run(remote).measures}
    assert again["unchangedDocuments"] == "6" and again["newDocuments"] == "0"
    datasets = [data_prep.run(work).artifacts[0] for work in (embedded, remote)]
    rows = [
        (work.workspace.path(dataset.path) / data_prep.TRAIN_FILE).read_bytes()
        for work, dataset in zip((embedded, remote), datasets, strict=True)
    ]
    assert rows[0] == rows[1]


def test_a_server_that_goes_away_is_machine_trouble_and_the_next_attempt_goes_on(
    server: ChromaServer, ingested: Path, copy_of: CopyOf, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(root=copy_of(ingested), dataPrep=server.settings)
    with open_collection(make_work(root=work.workspace.root)) as collection:
        digest = collection.digest
    add, added = Collection.add, []

    def add_until_it_goes(self: Collection, document: Any, *arguments: Any) -> None:
        if len(added) == 2:
            server.stop()
        add(self, document, *arguments)
        added.append(document.digest)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "add", add_until_it_goes)
        with pytest.raises(MachineTrouble, match=rf"127.0.0.1:{server.port} does not answer") as caught:
            ingest.run(work)
    assert caught.value.reason == "ChromaUnreachable" and len(added) == 2
    with pytest.raises(MachineTrouble, match="ChromaUnreachable"):
        ingest.run(work)
    server.start()
    result = ingest.run(work)
    found = {measure.name: measure.value for measure in result.measures}
    assert (found["unchangedDocuments"], found["newDocuments"]) == ("2", "4")
    assert result.artifacts[0].digest == digest
