"""`mark get`: which artifact is meant, and that only the one the status names is kept."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cli_cases
import pytest
from mark_operator.cli.commands.get import MANIFEST, check_folder, find_artifact
from mark_operator.cli.errors import ClusterError, NotFoundError, RefusedError
from mark_operator.cli.runs import RunReference
from mark_operator.cli.workspace.local_files import File, listing, local_paths

REFERENCE = RunReference("TrainingRun", "contracts-lora")


def test_the_result_names_the_artifact() -> None:
    assert find_artifact(cli_cases.succeeded_run(), REFERENCE, "adapter")["path"].startswith("adapters/")


def test_a_running_run_has_what_its_stages_published() -> None:
    run = cli_cases.running_run()
    published = {"kind": "dataset", "path": "datasets/1", "digest": cli_cases.DIGEST}
    run["status"]["stages"][2]["artifacts"] = [published]
    assert find_artifact(run, REFERENCE, "dataset") == published


def test_a_missing_artifact_is_named_with_what_there_is() -> None:
    with pytest.raises(NotFoundError, match="has made no predictions; it has made: adapter, report"):
        find_artifact(cli_cases.succeeded_run(), REFERENCE, "predictions")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    (folder / MANIFEST).write_text(json.dumps({"files": {"weights": hashlib.sha256(b"weights").hexdigest()}}))
    return folder


def made_of(folder: Path) -> dict[str, Any]:
    return {"path": "adapters/x", "digest": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}


def received(folder: Path) -> list[File]:
    return listing(local_paths(folder), lambda _: None)


def test_a_folder_that_agrees_with_its_manifest_is_kept(adapter: Path) -> None:
    check_folder(made_of(adapter), adapter, received(adapter))


@pytest.mark.parametrize("change", ["weights", "more"])
def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(adapter: Path, change: str) -> None:
    made = made_of(adapter)
    (adapter / change).write_bytes(b"changed")
    with pytest.raises(RefusedError, match=f"adapters/x/{change}: does not agree with manifest.json"):
        check_folder(made, adapter, received(adapter))


def test_a_folder_of_another_digest_is_refused(adapter: Path) -> None:
    with pytest.raises(RefusedError, match="but the run's status says 000000000000"):
        check_folder({**made_of(adapter), "digest": "0" * 64}, adapter, received(adapter))


def test_a_manifest_that_says_something_else_is_refused(adapter: Path) -> None:
    """Whatever it says: where the files come from is as much a part of the artifact as they are."""
    made = made_of(adapter)
    manifest = json.loads((adapter / MANIFEST).read_text())
    (adapter / MANIFEST).write_text(json.dumps(manifest | {"provenance": {"run": "another"}}))
    with pytest.raises(RefusedError, match="but the run's status says"):
        check_folder(made, adapter, received(adapter))


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": 1}', "["])
def test_a_manifest_that_lists_no_files_is_refused(adapter: Path, text: str) -> None:
    (adapter / MANIFEST).write_text(text)
    with pytest.raises(ClusterError, match="has no readable manifest"):
        check_folder(made_of(adapter), adapter, received(adapter))


def test_a_folder_without_manifest_is_refused(adapter: Path) -> None:
    made = made_of(adapter)
    (adapter / MANIFEST).unlink()
    with pytest.raises(ClusterError, match="has no readable manifest"):
        check_folder(made, adapter, received(adapter))
