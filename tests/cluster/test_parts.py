"""The local cluster's parts that can be seen to be right without a cluster."""

import os
import subprocess
from pathlib import Path

from local_cluster import processes, settings
from local_cluster.image_sources import Image
from local_cluster.network import removal_script
from pytest import MonkeyPatch

SAVED = """\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-MARK-MASQ
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
COMMIT
"""


def test_only_the_clusters_chains_and_the_rules_to_them_are_removed() -> None:
    assert removal_script(SAVED).splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-F KUBE-SERVICES",
        "-F KUBE-MARK-MASQ",
        "-X KUBE-SERVICES",
        "-X KUBE-MARK-MASQ",
        "COMMIT",
    ]
    assert removal_script("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n") == ""


def test_a_process_is_ended_and_known_to_be_gone() -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        process = processes.identify(sleeper.pid)
        assert process and process.alive()
        processes.end(process, patience_seconds=5)
        assert not process.alive()


def test_a_reused_number_is_not_taken_for_the_process() -> None:
    own = processes.identify(os.getpid())
    assert own is not None
    stranger = processes.Process(own.pid, own.start_ticks - 1, own.boot)
    assert not stranger.alive()
    processes.end(stranger)
    assert own.alive()


def test_an_images_name_follows_its_files_and_nothing_else(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REPOSITORY", tmp_path)
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "Containerfile").write_text("FROM scratch")
    (tmp_path / "code" / "a.py").write_text("1")
    image = Image("mark-thing", "Containerfile", ("code",))
    first = image.reference()
    (tmp_path / "code" / "__pycache__" / "a.pyc").write_text("compiled")
    (tmp_path / "elsewhere.py").write_text("not in the image")
    (tmp_path / "code" / "a.py").touch()
    assert image.reference() == first
    (tmp_path / "code" / "a.py").write_text("2")
    assert image.reference() != first
