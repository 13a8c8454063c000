"""The command: input checked first, exit codes, the Result, and a stage that is not done twice."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mark_crds.job_output import ExitCode, Result
from mark_trainer import ingest
from mark_trainer.failures import BadData, MachineTrouble, Stopped, UserMistake, failure_of
from mark_trainer.outcome import termination_message
from mark_trainer.publish import publish
from mark_trainer.workspace import Work

JobInputs = Callable[..., dict[str, Any]]
RunTrainer = Callable[..., tuple[int, Result]]


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (
            {"formatVersion": 2},
            "UnknownFormatVersion",
            "formatVersion 2, and this trainer reads 1: set the trainer image",
        ),
        ({"formatVersion": None}, "UnknownFormatVersion", "formatVersion None"),
        ({"lora": {"rank": 0}}, "InvalidJobInput", "lora.rank: "),
        ({"surprise": 1}, "InvalidJobInput", "surprise: "),
        ({"stages": ["dataPrep"]}, "StageNotInRun", "ingest is not one of the run's stages"),
    ],
)
def test_a_wrong_input_is_the_user_s_mistake_and_names_the_field(
    run_trainer: RunTrainer, job_input: JobInputs, tmp_path: Path, change: dict[str, Any], reason: str, words: str
) -> None:
    code, result = run_trainer("ingest", job_input() | change, tmp_path)
    assert (code, result.outcome, result.reason) == (64, "UserMistake", reason)
    assert words in result.message


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (UserMistake("EmptyCorpus", "words"), 64, "EmptyCorpus"),
        (BadData("NotPdf", "words"), 65, "NotPdf"),
        (MachineTrouble("Locked", "words"), 70, "Locked"),
        (Stopped("Stopped", "words"), 75, "Stopped"),
        (OSError(errno.ENOSPC, "No space left on device"), 64, "DiskFull"),
        (RuntimeError("database or disk is full"), 64, "DiskFull"),
        (MemoryError(), 70, "OutOfMemory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), 70, "GpuOutOfMemory"),
        (ValueError("first line\nlast line"), 70, "UnexpectedError"),
    ],
)
def test_every_end_has_its_exit_code(
    run_trainer: RunTrainer,
    job_input: JobInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    reason: str,
) -> None:
    def fail(work: Work) -> Result:
        raise error

    monkeypatch.setattr(ingest, "run", fail)
    found, result = run_trainer("ingest", job_input(), tmp_path)
    assert (found, result.reason) == (code, reason)
    assert not (tmp_path / "runs" / "run-1" / "results" / "ingest.json").exists()


def test_a_cause_counts_and_the_last_line_is_told() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("saving failed") from error
    except RuntimeError as error:
        assert failure_of(error).reason == "DiskFull"
    assert failure_of(ValueError("first\nlast")).message == "ValueError: last"


@pytest.mark.parametrize("message", ["x" * 1000, "\u00e4" * 1000, '"\n' * 500, "\U0001f600" * 1000])
def test_the_message_fits_what_kubernetes_keeps(message: str) -> None:
    measures = [{"name": f"{'m' * 60}{number:02}", "value": "1" * 24} for number in range(24)]
    artifacts = [{"kind": "dataset", "path": "d" * 200, "digest": "0" * 64}] * 2
    value = {"stage": "ingest", "outcome": "Done", "reason": "R", "message": message}
    result = Result.model_validate(value | {"measures": measures, "artifacts": artifacts})
    text = termination_message(result)
    assert len(text.encode()) <= 4096
    assert Result.model_validate_json(text).artifacts == result.artifacts


def test_torch_is_not_loaded_before_the_input_is_known_to_be_good() -> None:
    script = (
        "import sys; from mark_trainer.__main__ import main; "
        "code = main(['run', '--stage', 'ingest', '--input', '/nonexistent', '--run-uid', 'u']); "
        "import mark_trainer.preflight; "
        "assert not {'torch', 'transformers', 'chromadb'} & set(sys.modules), 'heavy imports'; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == ExitCode.USER_MISTAKE


def publish_something(work: Work) -> Result:
    folder = work.workspace.staging_folder(work.run_uid, "dataset")
    (folder / "rows").write_text("rows")
    published = publish(work.workspace, folder, "datasets", {})
    artifact = {"kind": "dataset", "path": published.path, "digest": published.digest}
    value = {"stage": work.stage, "outcome": "Done", "reason": "Made", "message": "made", "artifacts": [artifact]}
    return Result.model_validate(value)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stages were really run; both of the run's stages publish a small folder."""
    from mark_trainer import data_prep

    found: list[str] = []

    def run(work: Work) -> Result:
        found.append(work.stage)
        return publish_something(work)

    monkeypatch.setattr(ingest, "run", run)
    monkeypatch.setattr(data_prep, "run", run)
    return found


def test_a_done_stage_is_not_done_again_while_its_artifacts_are_whole(
    run_trainer: RunTrainer, job_input: JobInputs, tmp_path: Path, calls: list[str]
) -> None:
    first = run_trainer("ingest", job_input(), tmp_path)
    assert run_trainer("ingest", job_input(), tmp_path) == first and calls == ["ingest"]
    (tmp_path / first[1].artifacts[0].path / "rows").write_text("harmed")
    (tmp_path / first[1].artifacts[0].path).rename(tmp_path / "harmed")
    assert run_trainer("ingest", job_input(), tmp_path) == first and calls == ["ingest", "ingest"]


def test_a_finished_run_is_adopted_by_the_next_with_the_same_key(
    run_trainer: RunTrainer, job_input: JobInputs, tmp_path: Path, calls: list[str]
) -> None:
    for stage in ("ingest", "dataPrep"):
        _, result = run_trainer(stage, job_input(), tmp_path)
    completed = json.loads((tmp_path / "completed" / f"{'a' * 64}.json").read_text())
    assert completed["runUid"] == "run-1" and completed["datasetDigest"] == result.artifacts[0].digest
    code, adopted = run_trainer("preflight", job_input(), tmp_path, run_uid="run-2")
    assert (code, adopted.outcome) == (0, "Adopted")
    assert adopted.adopted is not None and adopted.adopted.run_uid == "run-1"
    assert "to train again, change spec.trainingRevision" in adopted.message


def test_a_harmed_result_is_not_adopted(
    run_trainer: RunTrainer, job_input: JobInputs, tmp_path: Path, calls: list[str]
) -> None:
    for stage in ("ingest", "dataPrep"):
        _, result = run_trainer(stage, job_input(), tmp_path)
    (tmp_path / result.artifacts[0].path / "rows").write_text("harmed")
    _, second = run_trainer("preflight", job_input(), tmp_path, run_uid="run-2")
    assert second.outcome != "Adopted"


def test_an_unwritable_termination_message_does_not_fail_the_stage(
    job_input: JobInputs, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from mark_trainer.__main__ import main

    file = tmp_path / "input.json"
    file.write_text(json.dumps(job_input()))
    arguments = ["run", "--stage", "ingest", "--input", str(file), "--workspace", str(tmp_path), "--run-uid", "u"]
    assert main([*arguments, "--termination-message", str(tmp_path / "no" / "folder")]) == 0
    assert "the Result was not written" in capsys.readouterr().err
