"""Paths that stay inside, files that are whole or absent, folders that are published in one rename."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mark_crds.job_output import Artifact
from mark_trainer import publish as publishing
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.outcome import keep_result
from mark_trainer.publish import publish, verify_folder
from mark_trainer.workspace import Work, Workspace, write_file

MakeWork = Callable[..., Work]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "root").mkdir()
    return Workspace(tmp_path / "root")


def staged(workspace: Workspace, content: str = "a row\n") -> Path:
    folder = workspace.staging_folder("run-1", "dataset")
    (folder / "rows.jsonl").write_text(content)
    return folder


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc", "link/file"])
def test_no_path_leads_out(workspace: Workspace, tmp_path: Path, path: str) -> None:
    (workspace.root / "link").symlink_to(tmp_path)
    with pytest.raises(UserMistake, match="leads out of the workspace"):
        workspace.path(path)


def test_a_missing_workspace_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"--workspace: .*nowhere is no folder"):
        Workspace(tmp_path / "nowhere")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.root / "file"
    write_file(path, "old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in workspace.root.iterdir()] == ["file"]


def test_published_folders_verify_and_are_named_by_their_content(workspace: Workspace) -> None:
    first = publish(workspace, staged(workspace), "datasets", {"from": "here"})
    again = publish(workspace, staged(workspace), "datasets", {"from": "here"})
    other = publish(workspace, staged(workspace, "another row\n"), "datasets", {"from": "here"})
    assert first == again and first.path == f"datasets/{first.digest}" and other.digest != first.digest
    assert verify_folder(workspace.path(first.path), first.path) == first.digest


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "rows.jsonl").write_text("changed\n"), "rows.jsonl: differs from"),
        (lambda folder: (folder / "rows.jsonl").unlink(), "rows.jsonl: is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: is no JSON"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: does not list its files"),
        (lambda folder: (folder / "more.jsonl").write_text("{}"), "more.jsonl: is not in manifest.json"),
    ],
)
def test_a_harmed_folder_is_not_taken_for_whole(
    workspace: Workspace, harm: Callable[[Path], object], words: str
) -> None:
    published = publish(workspace, staged(workspace), "datasets", {})
    harm(workspace.path(published.path))
    with pytest.raises(BadData, match=words):
        verify_folder(workspace.path(published.path), published.path)


def test_the_digest_is_that_of_the_whole_manifest(workspace: Workspace) -> None:
    """So nothing that it says of where the files come from can be changed without another digest."""
    first = publish(workspace, staged(workspace), "datasets", {"settings": {"limitTokens": 100}})
    other = publish(workspace, staged(workspace), "datasets", {"settings": {"limitTokens": 101}})
    manifest = workspace.path(first.path) / "manifest.json"
    assert first.digest == hashlib.sha256(manifest.read_bytes()).hexdigest() != other.digest
    manifest.write_text(manifest.read_text().replace("100", "101"))
    assert verify_folder(workspace.path(first.path), first.path) == other.digest


@pytest.mark.parametrize("step", ["_sync_file", "write_json", "file_digest"])
def test_a_crash_at_any_step_publishes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    folder = staged(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, step, crash)
        with pytest.raises(KeyboardInterrupt):
            publish(workspace, folder, "datasets", {})
    assert not (workspace.root / "datasets").exists() or not list((workspace.root / "datasets").iterdir())
    with pytest.raises(BadData):
        verify_folder(folder, "staged")
    assert publish(workspace, staged(workspace), "datasets", {}).path.startswith("datasets/")


def test_the_dataset_is_the_spec_s_or_the_one_that_this_run_made(make_work: MakeWork) -> None:
    named = make_work("lora", dataset={"path": "datasets/mine"})
    assert named.dataset_folder().name == "mine"
    with pytest.raises(UserMistake, match=r"add dataPrep to spec\.stages"):
        make_work("lora").dataset_folder()
    result = named.done("DatasetMade", "made")
    assert json.loads(result.model_dump_json())["outcome"] == "Done"


def test_what_the_run_made_is_that_of_the_newest_stage_that_is_done(make_work: Callable[..., Work]) -> None:
    work = make_work("eval", stages=["lora", "reward", "ppo", "eval"], baseModel={"path": "b"}, dataset={"path": "d"})
    assert work.made("adapter", "ppo", "lora") is None
    for stage, kind in (("lora", "adapter"), ("reward", "rewardModel"), ("ppo", "adapter")):
        artifact = Artifact(kind=kind, path=f"{stage}/x", digest="a" * 64)
        keep_result(replace(work, stage=stage), work.done("Done", "done", (artifact,)))
        newest = work.made("adapter", "ppo", "lora")
        assert newest is not None and newest.path == ("ppo/x" if stage == "ppo" else "lora/x")
    assert work.made("dataset", "ppo", "lora") is None
