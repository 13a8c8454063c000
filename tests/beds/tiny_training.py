"""A workspace to train in within a second: a real tokenizer, a real Llama of random weights, a dataset of made-up
contracts. Nothing here is a stand-in for our own code.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mark_crds.job_input import JobInput
from mark_trainer.base_model import train_tokenizer
from mark_trainer.prompts import REFUSAL
from mark_trainer.publish import write_manifest
from mark_trainer.workspace import Work, Workspace
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PARTIES = ("Licensor", "Licensee", "Contributor", "Distributor", "Publisher", "Author", "Recipient", "Steward")
DUTIES = (
    "keep the notice in every copy",
    "give thirty days of notice before the end",
    "pay no fee for private use",
    "name the changes that were made",
    "offer the source for three years",
    "bear the cost of every defect",
)

Row = dict[str, Any]


def contract(number: int) -> list[str]:
    """The clauses of a made-up contract, one a party."""
    random_of = random.Random(number)
    return [
        f"The {party} of Contract {number} shall {random_of.choice(DUTIES)} under clause {index + 1}."
        for index, party in enumerate(random_of.sample(PARTIES, 4))
    ]


def rows(documents: Sequence[int], split: str) -> list[Row]:
    """Rows as dataPrep writes them: a question a clause, the clause and another one as passages."""
    found = []
    for number in documents:
        clauses = contract(number)
        digest = f"{number:064x}"
        starts = [sum(len(clause) + 1 for clause in clauses[:at]) for at in range(len(clauses))]  # one a line
        for index, clause in enumerate(clauses):
            party = clause.split()[1]
            begin, end = clause.index("shall ") + 6, clause.index(" under")
            answer = clause[begin:end]
            passages = [
                {
                    "chunkId": f"{number}-{at}",
                    "text": clauses[at],
                    "document": digest,
                    "page": 1,
                    "span": [starts[at], starts[at] + len(clauses[at])],
                    "oracle": at == index,
                }
                for at in (index, (index + 1) % len(clauses))
            ]
            found.append(
                {
                    "id": f"{number}-{index}",
                    "question": f"What shall the {party} of Contract {number} do?",
                    "answer": answer,
                    "topic": "duty",
                    "document": {
                        "digest": digest,
                        "title": f"Contract {number}",
                        "path": f"corpus/{number}.pdf",
                        "cluster": f"contract-{number}",
                    },
                    "page": 1,
                    "span": [starts[index] + begin, starts[index] + end],
                    "chunkId": f"{number}-{index}",
                    "contexts": passages if index % 2 else passages[::-1],
                    "generator": "test",
                    "split": split,
                }
            )
    return found


def unanswerable_rows(documents: Sequence[int], split: str) -> list[Row]:
    """A row a document whose question the document does not answer, with passages that do not help."""
    found = []
    for row in rows(documents, split)[::4]:
        passages = [passage | {"oracle": False} for passage in row["contexts"]]
        number = int(row["document"]["digest"], 16)
        changed = {
            "id": f"{number}-none",
            "question": f"What shall the Auditor of Contract {number} do?",
            "answer": REFUSAL,
            "answerable": False,
            "page": None,
            "span": None,
            "chunkId": "",
            "contexts": passages,
        }
        found.append(row | changed)
    return found


def write_base(folder: Path, seed: int = 1, family: str = "llama") -> None:
    """A tokenizer of the contracts and a model of the family, of 30 thousand random weights."""
    tokenizer = train_tokenizer(["\n".join(contract(number)) for number in range(40)])
    torch.manual_seed(seed)
    shared: Row = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "mamba":
        config = AutoConfig.for_model(family, state_size=8, **shared)
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        config = AutoConfig.for_model(family, intermediate_size=64, max_position_embeddings=256, **heads, **shared)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def poison(workspace: Workspace, split: str) -> None:
    """One row of the split asks with a character for which the base model's embedding is no number."""
    folder = workspace.path("base/tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ids = tokenizer("§", add_special_tokens=False).input_ids
    model.get_input_embeddings().weight.data[ids] = torch.nan
    model.save_pretrained(folder)
    parts = {"train": rows(range(100, 108), "train"), "validation": rows(range(108, 112), "validation")}
    parts[split][9]["question"] += " §"
    write_dataset(workspace.path("datasets/contracts"), parts["train"], parts["validation"])


def write_dataset(folder: Path, training: Sequence[Row], validation: Sequence[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train_sft.jsonl", training), ("val_sft.jsonl", validation)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    write_manifest(folder, {"kind": "dataset"})


def write_workspace(root: Path, *, training: int = 8, validation: int = 4, family: str = "llama") -> Workspace:
    """A workspace with a base model and a dataset of so many documents."""
    root.mkdir(exist_ok=True)
    write_base(root / "base/tiny", family=family)
    documents = range(100, 100 + training + validation)
    write_dataset(
        root / "datasets/contracts", rows(documents[:training], "train"), rows(documents[training:], "validation")
    )
    return Workspace(root)


def job_input(**changes: dict[str, Any]) -> JobInput:
    """The work of a run of lora and eval; `lora`, `evaluation` and `dataPrep` take changed settings."""
    settings = {
        "lora": {
            "epochs": 2,
            "rank": 4,
            "alpha": 8,
            "dropout": "0.1",
            "learningRate": "0.01",
            "batchSize": 4,
            "gradientAccumulationSteps": 1,
            "maxLength": 200,
        },
        "evaluation": {"maxItems": 16, "maxNewTokens": 12},
        "dataPrep": {"topK": 2},
    }
    merged = {name: {**value, **changes.pop(name, {})} for name, value in settings.items()}
    return JobInput.model_validate(
        {
            "kind": "TrainingRun",
            "namespace": "tests",
            "name": "contracts",
            "replayKey": "0" * 64,
            "stages": ["lora", "eval"],
            "baseModel": {"path": "base/tiny"},
            "dataset": {"path": "datasets/contracts"},
            "ingest": {},
            "rlhf": {},
            "outputModel": "contracts-lora",
            **merged,
            **changes,
        }
    )


def work_of(workspace: Workspace, job: JobInput, *, stage: str = "lora", uid: str = "run-1", attempt: int = 1) -> Work:
    return Work(job_input=job, workspace=workspace, run_uid=uid, attempt=attempt, stage=stage)
