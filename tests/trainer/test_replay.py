"""The operator's replay key and the trainer's memory together, on a real folder: the same run again is adopted, other work is not, and of two clusters one waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_output import LOCKED, Result
from mark_operator.planning import plan
from mark_operator.run.plan import Rendering
from mark_operator.seen import RunKey
from mark_operator.settings import Settings
from mark_trainer import __main__ as command
from mark_trainer import data_prep
from mark_trainer.locks import hold
from mark_trainer.publish import publish
from mark_trainer.workspace import Work

RunTrainer = Callable[..., tuple[int, Result]]
MakeWork = Callable[..., Work]
TIMES = 100


def planned(settings: Settings | None = None, **spec: Any) -> dict[str, Any]:
    """The job input that the operator would store for the run `legal/contracts`."""
    work = {"workspace": {"claimName": "workspace"}, "stages": ["dataPrep"], **spec}
    rendering = plan(RunKey("TrainingRun", "legal", "contracts"), work, settings or Settings())
    assert isinstance(rendering, Rendering), rendering
    return rendering.job_input.to_dict()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Uids of the runs whose work was really done."""
    found: list[str] = []

    def run(work: Work) -> Result:
        found.append(work.run_uid)
        folder = work.workspace.staging_folder(work.run_uid, "dataset")
        (folder / "rows").write_text(work.job_input.replay_key)
        published = publish(work.workspace, folder, "datasets", {})
        artifact = {"kind": "dataset", "path": published.path, "digest": published.digest}
        return Result.model_validate(
            {"stage": work.stage, "outcome": "Done", "reason": "Made", "message": "made", "artifacts": [artifact]}
        )

    monkeypatch.setattr(data_prep, "run", run)
    return found


def live(run_trainer: RunTrainer, job_input: dict[str, Any], workspace: Path, uid: str) -> str:
    """One life of a run as the operator leads it: preflight, and the stage unless the work is adopted."""
    _, preflight = run_trainer("preflight", job_input, workspace, run_uid=uid)
    if preflight.outcome != "Adopted":
        run_trainer("dataPrep", job_input, workspace, run_uid=uid)
    return preflight.outcome


def test_the_same_run_a_hundred_times_is_done_once(run_trainer: RunTrainer, tmp_path: Path, trained: list[str]) -> None:
    live(run_trainer, planned(), tmp_path, "run-0")
    # A chart that grew another default, and a manifest that spells out what it had left to the defaults.
    other_chart = Settings(trainer_image="localhost/mark-trainer:next", run_as_user=2000)
    spelled_out = planned(other_chart, maxAttempts=3, dataPrep={"seed": 7, "validationFraction": "0.20"})
    for number in range(1, TIMES):
        assert live(run_trainer, spelled_out if number % 2 else planned(), tmp_path, f"run-{number}") == "Adopted"
    assert trained == ["run-0"]


@pytest.mark.parametrize("change", [{"trainingRevision": "2"}, {"dataPrep": {"seed": 8}}], ids=["revision", "seed"])
def test_other_work_is_done_again(
    run_trainer: RunTrainer, tmp_path: Path, trained: list[str], change: dict[str, Any]
) -> None:
    live(run_trainer, planned(), tmp_path, "run-0")
    assert live(run_trainer, planned(**change), tmp_path, "run-1") != "Adopted"
    assert trained == ["run-0", "run-1"]


def test_the_second_cluster_is_told_to_come_again_and_adopts_afterwards(
    run_trainer: RunTrainer, make_work: MakeWork, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CLAIM_WAIT_SECONDS", 0)
    job_input = planned()
    claim = f"work-{job_input['replayKey'][:16]}"
    with hold(make_work("dataPrep", run_uid="first", root=tmp_path), claim, 0):
        code, told = run_trainer("preflight", job_input, tmp_path, run_uid="second")
    assert (code, told.outcome, told.reason) == (75, "Stopped", LOCKED)
    assert "held by run legal/contracts (uid first), stage dataPrep" in told.message
    live(run_trainer, job_input, tmp_path, "first")
    assert live(run_trainer, job_input, tmp_path, "second") == "Adopted" and trained == ["first"]
