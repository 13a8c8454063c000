"""Workspaces, small corpora of real PDFs, and stages run as the operator runs them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_input import JobInput
from mark_crds.job_output import Result
from mark_trainer.workspace import Work, Workspace
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Paragraph, SimpleDocTemplate

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED_CORPUS = REPOSITORY / "manifests" / "corpus"
# Six short licences in five clusters: AFL and OSL are siblings.
SMALL_CORPUS = ("AFL-3.0", "CC0-1.0", "CDL-1.0", "LPPL-1.0", "OSL-3.0", "QPL-1.0")

MakeWork = Callable[..., Work]


@pytest.fixture
def job_input() -> Callable[..., dict[str, Any]]:
    """A JobInput as the operator writes it; keyword arguments replace its parts."""

    def make(**parts: Any) -> dict[str, Any]:
        whole: dict[str, Any] = {
            "kind": "TrainingRun",
            "namespace": "legal",
            "name": "contracts",
            "replayKey": "a" * 64,
            "stages": ["ingest", "dataPrep"],
            "ingest": {},
            "dataPrep": {"maxSamples": 40},
            "lora": {},
            "rlhf": {},
            "evaluation": {},
        }
        return JobInput.model_validate(whole | parts).to_dict()

    return make


@pytest.fixture
def make_work(tmp_path: Path, job_input: Callable[..., dict[str, Any]]) -> MakeWork:
    """A stage's Work in a workspace below the test's folder."""

    def make(stage: str = "ingest", run_uid: str = "run-1", root: Path | None = None, **parts: Any) -> Work:
        folder = root or tmp_path / "workspace"
        folder.mkdir(exist_ok=True)
        return Work(
            job_input=JobInput.model_validate(job_input(**parts)),
            workspace=Workspace(folder),
            run_uid=run_uid,
            attempt=1,
            stage=stage,
        )

    return make


@pytest.fixture
def write_pdf() -> Callable[[Path, str, str], Path]:
    """Writes a text as a PDF, one paragraph a line."""

    def write(path: Path, title: str, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        style = getSampleStyleSheet()["BodyText"]
        document = SimpleDocTemplate(str(path), title=title, invariant=1)
        document.build([Paragraph(row, style) for row in text.split("\n") if row.strip()])
        return path

    return write


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose small corpus is ingested. Read only: copy it with `copy_of`."""
    from mark_trainer.ingest import run

    root = tmp_path_factory.mktemp("ingested")
    (root / "corpus").mkdir()
    for name in SMALL_CORPUS:
        shutil.copy(COMMITTED_CORPUS / f"{name}.pdf", root / "corpus")
    parts: dict[str, Any] = {"ingest": {}, "dataPrep": {}, "lora": {}, "rlhf": {}, "evaluation": {}}
    names = {"kind": "TrainingRun", "namespace": "legal", "name": "contracts", "replayKey": "b" * 64}
    job_input = JobInput.model_validate({**names, "stages": ["ingest"], **parts})
    run(Work(job_input=job_input, workspace=Workspace(root), run_uid="first", attempt=1, stage="ingest"))
    return root


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a workspace that the test may change."""

    def copy(root: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(root, tmp_path / name))

    return copy


@pytest.fixture
def run_trainer(tmp_path: Path) -> Callable[..., tuple[int, Result]]:
    """Runs the command in this process; returns its exit code and the Result of its termination message."""
    from mark_trainer.__main__ import main

    def run(stage: str, job_input: dict[str, Any], root: Path, run_uid: str = "run-1") -> tuple[int, Result]:
        file, message = tmp_path / "job-input.json", tmp_path / "termination-log"
        file.write_text(json.dumps(job_input))
        arguments = ["run", "--stage", stage, "--input", str(file), "--workspace", str(root), "--run-uid", run_uid]
        code = main([*arguments, "--termination-message", str(message)])
        assert message.stat().st_size <= 4096
        return code, Result.model_validate_json(message.read_text())

    return run
