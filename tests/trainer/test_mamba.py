"""Mamba, whole: built from texts, tuned, measured; and the parallel scan that makes it bearable on a CPU."""

from pathlib import Path

import pytest
import tiny_training
import torch
from mark_crds.shared import BaseModelReference
from mark_trainer import base_model, evaluate, lora
from mark_trainer.outcome import keep_result
from mark_trainer.passes import collate
from mark_trainer.publish import provenance_of
from mark_trainer.workspace import Workspace
from peft import PeftModel
from tiny_examples import example
from transformers import AutoModelForCausalLM

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny_training.write_workspace(tmp_path_factory.mktemp("mamba") / "workspace", family="mamba")


def test_the_parallel_scan_is_used_and_gives_the_same_logits(workspace: Workspace) -> None:
    base = base_model.load(BaseModelReference(path="base/tiny"), workspace.root, CPU, torch.float32)
    assert all(layer.mixer.use_mambapy for layer in base.model.backbone.layers)
    plain = AutoModelForCausalLM.from_pretrained(base.folder)
    assert not any(layer.mixer.use_mambapy for layer in plain.backbone.layers)
    ids = torch.randint(len(base.tokenizer), (2, 37))
    for model in (base.model, plain):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(base.model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    for (name, ours), theirs in zip(base.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_it_is_tuned_and_measured(workspace: Workspace) -> None:
    """Packing is asked for by default and left out; only in_proj learns; base and tuned are compared in every cell."""
    job = tiny_training.job_input(lora={"epochs": 6, "dropout": "0"})
    work = tiny_training.work_of(workspace, job)
    result = lora.run(work)
    keep_result(work, result)
    measures = {measure.name: measure.value for measure in result.measures}
    assert measures["family"] == "mamba" and float(measures["lastLoss"]) < float(measures["firstLoss"])
    provenance = provenance_of(workspace.path(result.artifacts[0].path), "adapter")
    assert provenance["passes"]["packed"] is False
    assert [name.rsplit(".", 1)[1] for name in provenance["liveModules"]] == ["in_proj"] * 2
    evaluation = evaluate.run(tiny_training.work_of(workspace, job, stage="eval"))
    values = {measure.name: float(measure.value) for measure in evaluation.measures if "Nats" in measure.name}
    assert values and all(value > 0 for value in values.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_merged_equals_adapter(tmp_path: Path, family: str) -> None:
    """And the adapter matters: base and tuned differ."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace", family=family)
    result = lora.run(tiny_training.work_of(workspace, tiny_training.job_input()))
    base = base_model.load(BaseModelReference(path="base/tiny"), workspace.root, CPU, torch.float64)
    ids = torch.randint(len(base.tokenizer), (2, 40))
    plain = base.model(input_ids=ids).logits
    model = PeftModel.from_pretrained(base.model, workspace.path(result.artifacts[0].path)).eval()
    with_adapter = model(input_ids=ids).logits
    merged = model.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, with_adapter, atol=1e-6, rtol=1e-6)  # Mamba's logits are float32
    assert not torch.allclose(plain, with_adapter, atol=1e-2)


@pytest.mark.slow
def test_one_is_built_from_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VOCABULARY": 400, "HIDDEN": 32, "LAYERS": 2, "BLOCK_TOKENS": 64}.items():
        monkeypatch.setattr(base_model, name, value)
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(6):
        clauses = [clause for part in range(40) for clause in tiny_training.contract(40 * number + part)]
        (texts / f"{number}.txt").write_text("\n".join(clauses))
    provenance = base_model.build(texts, tmp_path / "base", family="mamba", steps=120)
    assert provenance["family"] == "mamba"
    assert provenance["heldOut"]["nats"] < provenance["heldOut"]["unigramNats"]
    base = base_model.load(BaseModelReference(path="base"), tmp_path, CPU, torch.float32)
    assert base.model.config.model_type == "mamba" and base.digest == base_model.folder_digest(tmp_path / "base")


def test_batches_hold_rows_of_like_length(workspace: Workspace) -> None:
    """A padded batch of Mamba's: what stands behind a row does not reach it, and its own state begins at nothing."""
    base = base_model.load(BaseModelReference(path="base/tiny"), workspace.root, CPU, torch.float32)
    rows = [example(base.tokenizer.encode(text), 1) for text in ("A short one.", "One that is longer by far.")]
    inputs = collate(rows, base.tokenizer.pad_token_id, packed=False)
    inputs.pop("labels")
    together = base.model(**inputs).logits
    for row, logits in zip(rows, together, strict=True):
        alone = base.model(input_ids=torch.tensor([row.ids])).logits[0]
        torch.testing.assert_close(logits[: len(row.ids)], alone, atol=1e-5, rtol=1e-4)
