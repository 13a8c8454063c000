"""The main claim, on real licence texts: a short fine-tuning makes the model better on documents that it never saw.

A few minutes on two cores. The base model is built once and kept in build/; the documents come from `make corpus`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_input import JobInput
from mark_crds.job_output import Result
from mark_trainer import base_model, data_prep, evaluate, ingest, lora
from mark_trainer.outcome import keep_result
from mark_trainer.publish import file_digest, provenance_of
from mark_trainer.workspace import Work, Workspace

BUILD = Path(__file__).resolve().parents[2] / "build"
TEXTS = BUILD / "corpus/pretraining"
DOCUMENTS = BUILD / "corpus/documents"
HOW_MANY_DOCUMENTS = 36
STEPS, SEED = 400, 7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not DOCUMENTS.is_dir(), reason="no build/corpus: run `make corpus`"),
]


@pytest.fixture(scope="module")
def tiny_llama() -> Path:
    """The base model, built anew when the texts or its recipe changed."""
    folder = BUILD / "base-model/tiny-llama"
    if folder.is_dir():
        made = provenance_of(folder, "tiny-llama")
        texts = {path.name: file_digest(path) for path in TEXTS.glob("*.txt")}
        if (made["texts"], made["steps"], made["seed"]) == (texts, STEPS, SEED):
            return folder
    folder.parent.mkdir(exist_ok=True)
    base_model.build(TEXTS, folder, steps=STEPS, seed=SEED)
    return folder


@pytest.fixture(scope="module")
def corpus(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the base model and an ingested corpus."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_llama, root / "base/tiny-llama")
    (root / "corpus").mkdir()
    for path in sorted(DOCUMENTS.glob("*.pdf"))[:HOW_MANY_DOCUMENTS]:
        shutil.copy(path, root / "corpus")
    stage(ingest.run, "ingest", Workspace(root), seed=SEED)
    return Workspace(root)


def stage(run: Callable[[Work], Result], name: str, workspace: Workspace, *, seed: int) -> dict[str, Any]:
    """Runs a stage as a run of this seed; returns its measures, and the report where it wrote one."""
    job = JobInput.model_validate(
        {
            "kind": "TrainingRun",
            "namespace": "tests",
            "name": "learning",
            "replayKey": "0" * 64,
            "stages": ["ingest", "dataPrep", "lora", "eval"],
            "baseModel": {"path": "base/tiny-llama"},
            "ingest": {"chunkCharacters": 500, "chunkOverlapCharacters": 50},
            "dataPrep": {"topK": 2, "maxSamples": 300, "validationFraction": "0.25", "seed": seed},
            "lora": {
                "epochs": 3,
                "rank": 16,
                "alpha": 32,
                "learningRate": "2e-3",
                "batchSize": 8,
                "gradientAccumulationSteps": 1,
                "maxLength": 512,
                "seed": seed,
            },
            "rlhf": {},
            "evaluation": {"maxItems": 60, "maxNewTokens": 24},
            "outputModel": "learning",
        }
    )
    work = Work(job_input=job, workspace=workspace, run_uid=f"seed-{seed}", attempt=1, stage=name)
    result = run(work)
    keep_result(work, result)
    reports = [artifact.path for artifact in result.artifacts if artifact.kind == "report"]
    return json.loads(workspace.path(reports[0]).read_text()) if reports else {}


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_tuning_helps_on_documents_never_seen(corpus: Workspace, seed: int) -> None:
    for name, run in (("dataPrep", data_prep.run), ("lora", lora.run)):
        stage(run, name, corpus, seed=seed)
    report = stage(evaluate.run, "eval", corpus, seed=seed)
    for condition, nats in report["answerNats"].items():
        difference = nats["difference"]
        print(f"seed {seed}, {condition}: {nats['base']['value']:.3f} -> {nats['tuned']['value']:.3f}, {difference}")
        assert difference["clusters"] >= 5
        assert difference["high"] < 0, f"{condition}: the interval reaches 0"
    text = report["heldOutText"]
    assert text["unigramFittedOn"] == "the base model's own training text"
    assert text["difference"]["high"] < 0, "the base model does not beat word frequencies"
