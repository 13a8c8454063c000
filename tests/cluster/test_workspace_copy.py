"""`mark put` and the copy Pod on a real node: under `restricted`, whole or not at all, and gone afterwards."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_cluster import access
from mark_command import Done, mark
from mark_operator.cli.errors import ClusterError, RefusedError
from mark_operator.cli.session import Session, Target, connect
from mark_operator.cli.workspace.copies import fetch_files, look, read_file, send_files
from mark_operator.cli.workspace.copy_pod import LABELS, Copying, running_copy_pod
from mark_operator.cli.workspace.local_files import File, listing, local_paths

CLAIM = "workspace"
Kubectl = Callable[..., str]


def ignore(*_: object) -> None:
    return None


@pytest.fixture
def claim(kubectl: Kubectl, namespace: str) -> str:
    manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    kubectl("--namespace", namespace, "create", "--filename=-", input_text=json.dumps(manifest))
    return CLAIM


@pytest.fixture
def session(claim: str, namespace: str) -> Session:
    return connect(Target(namespace=namespace, kubeconfig=str(access.kubeconfig())))


@pytest.fixture
def pod(session: Session, operator_image: str) -> Iterator[str]:
    with running_copy_pod(session, Copying(claim=CLAIM, image=operator_image)) as name:
        yield name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "a.pdf").write_bytes(os.urandom(300_000))
    (source / "below" / "name with spaces, ü.pdf").write_bytes(os.urandom(1_000_001))
    (source / "empty").write_bytes(b"")
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(session: Session, image: str, *words: str) -> Done:
    fixed = ("--claim", CLAIM, "--image", image, "-n", session.namespace, "--kubeconfig", str(access.kubeconfig()))
    return mark("put", *words, *fixed)


def copy_pods(kubectl: Kubectl, namespace: str) -> str:
    selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
    return kubectl("--namespace", namespace, "get", "pods", "--selector", selector, "--output=name").strip()


@pytest.mark.parametrize("image", ["operator_image", "trainer_image"])
def test_either_image_carries_a_copy(
    image: str, session: Session, folder: Path, kubectl: Kubectl, request: pytest.FixtureRequest
) -> None:
    done = put(session, request.getfixturevalue(image), str(folder), "corpus")
    assert (done.code, "3 files" in done.err) == (0, True), done.err
    assert copy_pods(kubectl, session.namespace) == ""


def test_the_rules_of_replacing(session: Session, folder: Path, operator_image: str) -> None:
    assert put(session, operator_image, str(folder), "corpus").code == 0
    assert "already the same at corpus" in put(session, operator_image, str(folder), "corpus").err
    (folder / "a.pdf").write_bytes(b"changed")
    refused = put(session, operator_image, str(folder), "corpus")
    assert (refused.code, "1 file changed (a.pdf)" in refused.err) == (3, True)
    assert put(session, operator_image, str(folder), "corpus", "--replace").code == 0
    assert "it is a folder" in put(session, operator_image, str(folder / "a.pdf"), "corpus").err


def test_what_was_put_comes_back_the_same(session: Session, pod: str, folder: Path, tmp_path: Path) -> None:
    files = listing(local_paths(folder), ignore)
    send_files(session, pod, folder, "base/tiny", files, replace=False, advance=ignore)
    fetch_files(session, pod, "base/tiny", tmp_path / "back", begin=lambda _: ignore, check=ignore)
    assert contents(tmp_path / "back") == contents(folder)
    content, digest = read_file(session, pod, "base/tiny/a.pdf")
    assert (content, digest) == ((folder / "a.pdf").read_bytes(), hashlib.sha256(content).hexdigest())


def test_a_file_that_changes_on_the_way_is_refused(session: Session, pod: str, folder: Path) -> None:
    files = [File(file.name, file.size, "0" * 64) for file in listing(local_paths(folder), ignore)]
    with pytest.raises(RefusedError, match="another sha256 than it was sent with"):
        send_files(session, pod, folder, "corpus", files, replace=False, advance=ignore)
    assert look(session, pod, "corpus") is None


def test_a_file_that_becomes_shorter_is_refused(session: Session, pod: str, folder: Path) -> None:
    files = [File(file.name, file.size + 1, file.digest) for file in listing(local_paths(folder), ignore)]
    with pytest.raises((RefusedError, ClusterError)):
        send_files(session, pod, folder, "corpus", files, replace=False, advance=ignore)
    assert look(session, pod, "corpus") is None


def test_an_interrupted_copy_leaves_nothing(
    session: Session, folder: Path, operator_image: str, kubectl: Kubectl
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    files = listing(local_paths(folder), ignore)
    with (
        pytest.raises(KeyboardInterrupt),
        running_copy_pod(session, Copying(claim=CLAIM, image=operator_image)) as pod,
    ):
        send_files(session, pod, folder, "corpus", files, replace=False, advance=interrupt)
    assert copy_pods(kubectl, session.namespace) == ""
    with running_copy_pod(session, Copying(claim=CLAIM, image=operator_image)) as pod:
        everything = kubectl("--namespace", session.namespace, "exec", pod, "--", "ls", "-A", "/workspace")
    assert "corpus" not in everything


def test_a_pod_that_cannot_start_is_explained(session: Session, folder: Path, kubectl: Kubectl) -> None:
    done = put(session, "localhost/there-is-no-such-image:1", str(folder), "corpus")
    assert (done.code, "--image or $MARK_IMAGE" in done.err) == (3, True), done.err
    assert copy_pods(kubectl, session.namespace) == ""


def test_a_missing_claim_is_named(session: Session, folder: Path, operator_image: str) -> None:
    kubeconfig = str(access.kubeconfig())
    words = ("--claim", "nowhere", "--image", operator_image, "-n", session.namespace, "--kubeconfig", kubeconfig)
    done = mark("put", str(folder), "corpus", *words)
    assert (done.code, f"claims there: {CLAIM}" in done.err) == (4, True)
