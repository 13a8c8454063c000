"""Stages that report what does not lie in the workspace: the command reads everything again, and none of them is done."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_output import Result
from mark_trainer import data_prep
from mark_trainer.publish import publish, write_manifest
from mark_trainer.workspace import Work

RunTrainer = Callable[..., tuple[int, Result]]
Body = dict[str, Any]


def publish_rows(work: Work) -> tuple[Path, Body]:
    """A dataset as an honest stage publishes it, and the artifact that it reports."""
    folder = work.workspace.staging_folder(work.run_uid, "dataset")
    (folder / "rows").write_text("a row")
    published = publish(work.workspace, folder, "datasets", {})
    return work.workspace.path(published.path), {"kind": "dataset", "path": published.path, "digest": published.digest}


def _nothing_there(work: Work) -> Body:
    return {"kind": "dataset", "path": "datasets/abc", "digest": "a" * 64}


def _other_digest(work: Work) -> Body:
    return {**publish_rows(work)[1], "digest": "a" * 64}


def _cut_after_the_manifest(work: Work) -> Body:
    folder, artifact = publish_rows(work)
    os.truncate(folder / "rows", 2)
    return artifact


def _file_lost(work: Work) -> Body:
    folder, artifact = publish_rows(work)
    (folder / "rows").unlink()
    return artifact


def _no_manifest(work: Work) -> Body:
    folder, artifact = publish_rows(work)
    (folder / "manifest.json").unlink()
    return artifact


def _changed_with_its_manifest(work: Work) -> Body:
    folder, artifact = publish_rows(work)
    (folder / "rows").write_text("another row")
    write_manifest(folder, {})
    return artifact


def _file_for_a_folder(work: Work) -> Body:
    artifact = publish_rows(work)[1]
    return {**artifact, "path": f"{artifact['path']}/rows"}


LIES = (
    _nothing_there,
    _other_digest,
    _cut_after_the_manifest,
    _file_lost,
    _no_manifest,
    _changed_with_its_manifest,
    _file_for_a_folder,
)


@pytest.fixture
def data_prep_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Work], Body]], None]:
    """Replaces the stage dataPrep by one that reports an artifact."""

    def replace(report: Callable[[Work], Body]) -> None:
        def run(work: Work) -> Result:
            words = {"stage": work.stage, "outcome": "Done", "reason": "Made", "message": "made"}
            return Result.model_validate({**words, "artifacts": [report(work)]})

        monkeypatch.setattr(data_prep, "run", run)

    return replace


def job(make: Callable[..., Body], *stages: str) -> Body:
    return make(stages=list(stages), dataPrep={})


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_stage_is_not_done_without_what_it_reports(
    run_trainer: RunTrainer, job_input: Callable[..., Body], data_prep_that: Any, tmp_path: Path, lie: Any
) -> None:
    data_prep_that(lie)
    code, result = run_trainer("dataPrep", job(job_input, "dataPrep"), tmp_path)
    assert (code, result.outcome, result.reason) == (70, "MachineTrouble", "ArtifactDiffers")
    assert not list((tmp_path / "completed").glob("*")), "nobody will adopt it"


def test_a_link_out_of_the_workspace_is_no_artifact(
    run_trainer: RunTrainer, job_input: Callable[..., Body], data_prep_that: Any, tmp_path: Path
) -> None:
    def report(work: Work) -> Body:
        (work.workspace.root / "datasets").mkdir(exist_ok=True)
        (work.workspace.root / "datasets" / "abc").symlink_to("/etc")
        return {"kind": "dataset", "path": "datasets/abc", "digest": "a" * 64}

    data_prep_that(report)
    code, result = run_trainer("dataPrep", job(job_input, "dataPrep"), tmp_path)
    assert (code, result.reason) == (64, "PathOutsideWorkspace")


@pytest.mark.parametrize("change", ["the rows", "the rows and their manifest"])
def test_the_next_stage_takes_only_what_the_last_one_reported(
    run_trainer: RunTrainer, job_input: Callable[..., Body], data_prep_that: Any, tmp_path: Path, change: str
) -> None:
    data_prep_that(lambda work: publish_rows(work)[1])
    whole = job(job_input, "dataPrep", "lora")
    code, made = run_trainer("dataPrep", whole, tmp_path)
    assert (code, made.outcome) == (0, "Done")
    folder = tmp_path / made.artifacts[0].path
    (folder / "rows").write_text("a row that nobody made")
    if "manifest" in change:
        write_manifest(folder, {})
    code, refused = run_trainer("lora", whole, tmp_path)
    assert (code, refused.outcome, refused.reason) == (65, "BadData", "DigestDiffers")
    assert made.artifacts[0].path in refused.message
