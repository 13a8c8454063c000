"""A workspace as a claim's and a manifest for it, small enough that all stages run in half a minute: real PDFs, a real tokenizer,
a Llama of random weights.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tiny_training import write_base

CORPUS = Path(__file__).resolve().parents[2] / "manifests" / "corpus"
DOCUMENTS = ("AFL-3.0", "CC0-1.0", "CDL-1.0", "LPPL-1.0", "OSL-3.0", "QPL-1.0")
MARK = (sys.executable, "-c", "from mark_operator.cli.main import main; main()")


def write_local_run(folder: Path, wandb: str = "off", **changes: Any) -> Path:
    """The folder mark-workspace, with run.yaml beside it; `wandb` is the mode of that tracker, `changes` are of the
    spec."""
    workspace = folder / "mark-workspace"
    (workspace / "corpus").mkdir(parents=True)
    for name in DOCUMENTS:
        shutil.copy(CORPUS / f"{name}.pdf", workspace / "corpus")
    write_base(workspace / "base/tiny")
    lora = {
        "epochs": 10,
        "rank": 4,
        "learningRate": "0.01",
        "batchSize": 4,
        "gradientAccumulationSteps": 1,
        "maxLength": 200,
    }
    spec = {
        "stages": ["ingest", "dataPrep", "lora", "eval"],
        "workspace": {"claimName": "mark-workspace"},
        "baseModel": {"path": "base/tiny"},
        "dataPrep": {"maxSamples": 40, "topK": 2},
        "lora": lora,
        "evaluation": {"maxItems": 4, "maxNewTokens": 8},
        "tracking": {"wandb": {"mode": wandb}},
        "resources": {"gpusPerNode": 0},
        "output": {"model": "contracts-lora"},
        **changes,
    }
    run = {
        "apiVersion": "training.mark.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "contracts"},
        "spec": spec,
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    return workspace


def local_run(*words: str) -> list[str]:
    """The command, for a process whose working directory holds run.yaml."""
    return [*MARK, "run", "--local", "-f", "run.yaml", *words]
