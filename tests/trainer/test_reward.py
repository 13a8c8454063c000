"""The stage reward on a tiny real model: the numbers of a plain loop, the same model after a stop, and what it learned."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from mark_crds.job_input import JobInput
from mark_crds.job_output import Result
from mark_crds.stages import Reward
from mark_trainer import base_model, checkpoints, lora, reward, scalar_head
from mark_trainer.base_model import BaseModel
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.outcome import keep_result
from mark_trainer.preferences import EncodedPair, encode_pairs, gather
from mark_trainer.prompts import PromptBuilder
from mark_trainer.publish import provenance_of, verify_folder
from mark_trainer.scalar_head import padded
from mark_trainer.workspace import Workspace, write_json
from peft import PeftModel
from transformers.models.llama.modeling_llama import LlamaMLP

CPU = torch.device("cpu")
STEPS = 6
SETTINGS = Reward(epochs=1, rank=4, alpha=8, dropout="0", learning_rate="0.01", batch_size=4)


def job_input(stages: tuple[str, ...] = ("reward",), preferences: str | None = None, **changes: Any) -> JobInput:
    settings = {"epochs": 1, "rank": 4, "alpha": 8, "dropout": "0.1", "learningRate": "0.01", "batchSize": 4} | changes
    judged = {"preferences": {"path": preferences}} if preferences else {}
    return tiny_training.job_input(stages=list(stages), rlhf={"enabled": True, "reward": settings, **judged})


def run(workspace: Workspace, job: JobInput, uid: str = "run-1") -> Result:
    return reward.run(tiny_training.work_of(workspace, job, stage="reward", uid=uid))


def measures_of(result: Result) -> dict[str, str]:
    return {measure.name: measure.value for measure in result.measures}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return tiny_training.write_workspace(tmp_path / "workspace")


def load(workspace: Workspace, dtype: torch.dtype = torch.float64) -> BaseModel:
    reference = job_input().base_model
    assert reference is not None
    return base_model.load(reference, workspace.root, CPU, dtype)


def pairs_of(workspace: Workspace, base: BaseModel) -> list[EncodedPair]:
    source = gather(tiny_training.work_of(workspace, job_input(), stage="reward"))
    pairs, _ = encode_pairs(source.training, PromptBuilder(base.tokenizer, 188), 200)
    return pairs


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


Steps = list[tuple[float, float]]
"""Loss and gradient norm of each step."""


def learned(workspace: Workspace, settings: Reward) -> tuple[Steps, dict[str, torch.Tensor]]:
    base = load(workspace)
    scorer = reward.new_scorer(base, settings, None)
    scorer.head.double()
    learner = reward.Learner(scorer, settings, pairs_of(workspace, base))
    seen = [learner.advance() for _ in range(STEPS)]
    return [(step["loss"], step["gradNorm"]) for step in seen], {k: v.detach() for k, v in learner.weights.items()}


def plain_loop(workspace: Workspace, settings: Reward) -> tuple[Steps, dict[str, torch.Tensor]]:
    """The same in plain torch: one text at a time through the whole causal model, its last layer's last token, the mean
    over the pairs of the step, clip, AdamW, warm-up and cosine."""
    base = load(workspace)
    scorer = reward.new_scorer(base, settings, None)
    pairs, causal, head = pairs_of(workspace, base), scorer.model.get_base_model(), scorer.head.double()
    order = reward.Learner(scorer, settings, pairs)
    weights = order.weights
    optimizer = torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=0.0)
    warm_up = math.ceil(0.05 * order.steps)
    steps: Steps = []

    def score(ids: list[int]) -> torch.Tensor:
        last = causal(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
        return head.weight[0] @ last + head.bias[0]

    for step in range(STEPS):
        batch = order.of_step(step)
        loss = sum(torch.log1p(torch.exp(score(pair.rejected) - score(pair.chosen))) for pair in batch) / len(batch)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((weight.grad**2).sum() for weight in weights.values()))
        for weight in weights.values():
            weight.grad *= min(1.0, 1.0 / (norm.item() + 1e-6))
        progress = (step - warm_up) / (order.steps - warm_up)
        factor = step / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = float(settings.learning_rate) * factor
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return steps, {name: weight.detach() for name, weight in weights.items()}


def assert_same(first: tuple[Steps, dict[str, torch.Tensor]], second: tuple[Steps, dict[str, torch.Tensor]]) -> None:
    for one, other in zip(first[0], second[0], strict=True):
        assert one == pytest.approx(other, rel=1e-8)
    for name, value in first[1].items():
        torch.testing.assert_close(value, second[1][name], atol=1e-8, rtol=1e-6)


def test_loss_and_gradient_of_each_step_are_those_of_a_plain_loop(workspace: Workspace) -> None:
    first = learned(workspace, SETTINGS)
    assert first[0][0][0] == pytest.approx(math.log(2), abs=0.5) and first[0][-1] != first[0][0]
    assert_same(first, plain_loop(workspace, SETTINGS))


@pytest.mark.slow
def test_accumulation_equals_a_large_batch(workspace: Workspace) -> None:
    """The order differs with the size of a batch, so the order of the large one is taken for both."""
    base = load(workspace)
    pairs = pairs_of(workspace, base)[:16]
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        settings = SETTINGS.model_copy(update={"batch_size": size, "gradient_accumulation_steps": accumulation})
        scorer = reward.new_scorer(load(workspace), settings, None)
        scorer.head.double()
        learner = reward.Learner(scorer, settings, pairs)
        learner.order = list(range(16))
        seen = [learner.advance() for _ in range(4)]
        weights = {name: weight.detach() for name, weight in learner.weights.items()}
        found.append(([(step["loss"], step["gradNorm"]) for step in seen], weights))
    assert_same(found[0], found[1])


@pytest.mark.slow
def test_bfloat16_stays_near_and_what_learns_keeps_its_digits(workspace: Workspace) -> None:
    losses = {}
    for dtype in (torch.bfloat16, torch.float32):
        base = load(workspace, dtype)
        scorer = reward.new_scorer(base, SETTINGS, None)
        learner = reward.Learner(scorer, SETTINGS, pairs_of(workspace, base))
        losses[dtype] = [learner.advance()["loss"] for _ in range(STEPS)]
        assert {weight.dtype for weight in learner.weights.values()} == {torch.float32}
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.1)
    assert losses[torch.bfloat16] != pytest.approx(losses[torch.float32], rel=1e-6)


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_number(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: what is computed again must draw the same numbers."""
    changes = {"learningRate": "0.01", "dropout": "0.2"}
    plain = run(workspace, job_input(**changes), uid="kept")
    again = job_input(**changes)
    twice = again.model_copy(update={"lora": again.lora.model_copy(update={"gradient_checkpointing": True})})
    shutil.rmtree(workspace.path("reward-models"))
    computed, forward = [], LlamaMLP.forward

    def counted(self: LlamaMLP, *args: Any) -> torch.Tensor:
        computed.append(self.training)
        return forward(self, *args)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    assert run(workspace, twice, uid="twice").artifacts == plain.artifacts
    assert computed.count(True) == 2 * 2 * 8, "each of two layers in each of eight steps, and once more"


# ---------------------------------------------------------------------------------------------------------------------
# The stage


def scores_of(workspace: Workspace, path: str, rows: list[list[int]]) -> torch.Tensor:
    """Scores of the published folder, loaded as ppo loads it: on a model that has another adapter already."""
    base = load(workspace, torch.float32)
    folder = workspace.path(path)
    model = PeftModel.from_pretrained(base.model, folder, adapter_name="other")
    head = scalar_head.load(folder, model, "reward")
    model.set_adapter("reward")
    model.eval()
    with torch.no_grad():
        return scalar_head.score(model.get_base_model(), head, *padded(rows, CPU))


def test_the_stage_publishes_a_model_that_scores_as_it_says(workspace: Workspace) -> None:
    job = job_input()
    work = tiny_training.work_of(workspace, job, stage="reward")
    result = reward.run(work)
    (artifact,) = result.artifacts
    assert (artifact.kind, artifact.path) == ("rewardModel", f"reward-models/{artifact.digest}")
    folder = workspace.path(artifact.path)
    assert verify_folder(folder, artifact.path) == artifact.digest
    names = {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    provenance = provenance_of(folder, artifact.path)
    assert provenance["base"]["digest"] == base_model.folder_digest(workspace.path("base/tiny"))
    assert provenance["preferences"]["source"] == "rules" and provenance["parent"] is None
    assert provenance["preferences"]["digest"] == verify_folder(workspace.path("datasets/contracts"), "")
    assert provenance["settings"] == job.rlhf.reward.to_dict() and len(provenance["liveModules"]) == 2 * 7
    assert str(workspace.root) not in (folder / "adapter_config.json").read_text()

    source, builder = gather(work), PromptBuilder(load(workspace).tokenizer, 188)
    held_out, _ = encode_pairs(source.held_out, builder, 200)
    training, _ = encode_pairs(source.training, builder, 200)
    chosen, rejected = (
        scores_of(workspace, artifact.path, [getattr(item, side) for item in held_out]) for side in ("chosen", "rejected")
    )
    right = (chosen > rejected).float().mean().item()
    measures = measures_of(result)
    assert provenance["heldOut"]["accuracy"]["value"] == pytest.approx(right) == pytest.approx(float(measures["accuracy"]))
    assert provenance["heldOut"]["accuracy"]["clusters"] == 4 and "accuracyLow" in measures
    assert provenance["heldOut"]["margin"]["value"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
    preferred = scores_of(workspace, artifact.path, [item.chosen for item in training])
    assert preferred.mean().item() == pytest.approx(0, abs=1e-4), "the offset puts preferred answers at zero"
    assert preferred.std().item() > 0.01

    logs = [json.loads(line) for line in (work.run_folder / "logs/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logs if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9)) and {line["stage"] for line in logs} == {"reward"}
    assert {"accuracy", "margin", "learningRate", "gradNorm", "tokensPerSecond", "epoch"} <= set(steps[0])
    assert measures["source"] == "rules" and measures["steps"] == "8" and measures["pairs"] == "32"


def judged(workspace: Workspace, documents: range) -> str:
    """People who want an answer to end with the clause that it comes from, whatever it says."""
    lines = [
        {
            "question": row["question"],
            "passages": [passage["text"] for passage in row["contexts"]],
            "document": row["document"]["title"],
            "chosen": f"{row['answer']} under clause {row['id'][-1]}",
            "rejected": f"{row['answer']} and name the changes",
        }
        for row in tiny_training.rows(documents, "any")
    ]
    workspace.path("judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "judged.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_it_learns_what_people_want_and_knows_it_in_documents_it_did_not_see(tmp_path: Path, family: str) -> None:
    workspace = tiny_training.write_workspace(tmp_path / "workspace", family=family)
    result = run(workspace, job_input(preferences=judged(workspace, range(10, 20)), epochs=3, dropout="0"))
    measures = measures_of(result)
    assert (measures["source"], measures["heldOutPairs"]) == ("people", "8")
    assert float(measures["accuracy"]) >= 0.9 and float(measures["lastLoss"]) < float(measures["firstLoss"]) / 2
    assert "judged by people" in result.message
    origins = provenance_of(workspace.path(result.artifacts[0].path), "")["preferences"]["origins"]
    assert origins == {"people": 32}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_lora_s_adapter_stays_below_and_is_part_of_what_is_published(tmp_path: Path, family: str) -> None:
    """The published adapter alone on the base model scores as both adapters did while they were trained."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace", family=family)
    job = job_input(("lora", "reward"), rank=3)
    tuned = tiny_training.work_of(workspace, job, stage="lora")
    with pytest.raises(UserMistake, match="run lora first"):
        run(workspace, job)
    result = lora.run(tuned)
    keep_result(tuned, result)
    published = run(workspace, job)
    folder = workspace.path(published.artifacts[0].path)
    assert provenance_of(folder, "")["parent"]["digest"] == result.artifacts[0].digest
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4 + 3

    base = load(workspace, torch.float32)
    scorer = reward.new_scorer(base, job.rlhf.reward, workspace.path(result.artifacts[0].path))
    learner = reward.Learner(scorer, job.rlhf.reward, pairs_of(workspace, base))
    newest = max(workspace.path("runs/run-1/checkpoints-reward").iterdir(), key=checkpoints.step_of)
    learner.load(newest)
    rows = [pair.chosen for pair in learner.pairs[:6]]
    together = scorer.all_scores(rows, 6)
    alone = scores_of(workspace, published.artifacts[0].path, rows)
    torch.testing.assert_close(alone, together - provenance_of(folder, "")["offset"]["value"], atol=1e-4, rtol=1e-4)
    scorer.model.base_model.set_adapter([reward.TRAINED])
    assert not torch.allclose(scorer.all_scores(rows, 6), together, atol=1e-2), "the one below counts"


class StopAt:
    """Asks the stage to end once a step is done, as SIGTERM does."""

    def __init__(self, step: int, work: Any) -> None:
        self.step, self.work, self.newest_checkpoint = step, work, 0

    def report(self, step: int, steps: int, **measures: float) -> None:
        if step == self.step:
            self.work.stop.set()

    def kept(self, step: int) -> None:
        self.newest_checkpoint = step


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_an_interrupted_run_ends_with_the_model_of_a_straight_one(tmp_path: Path, family: str) -> None:
    """Bit for bit, with dropout and accumulation, across an epoch's end, stopped at random steps."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace", family=family)
    job = job_input(epochs=2, batchSize=2, gradientAccumulationSteps=2, dropout="0.2")
    first, second = sorted(random.sample(range(1, 15), 2))
    print(f"stopped at steps {first} and {second}")
    straight = run(workspace, job, uid="straight")
    shutil.rmtree(workspace.path("reward-models"))
    for step in (first, second):
        work = tiny_training.work_of(workspace, job, stage="reward", uid="halting")
        stopper = StopAt(step, work)
        object.__setattr__(work, "progress", stopper)
        torch.manual_seed(random.randrange(1000))
        with pytest.raises(Stopped, match=rf"kept step {step} of 16"):
            reward.run(work)
        assert stopper.newest_checkpoint == step
    last = run(workspace, job, uid="halting")
    assert last.artifacts == straight.artifacts
    assert measures_of(last)["firstLoss"] == measures_of(straight)["firstLoss"]
    logs = workspace.path("runs/halting/logs/metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, logs) if "loss" in line]
    assert steps == list(range(1, 17))


@pytest.mark.slow
def test_sigterm_keeps_a_checkpoint_and_exits_with_75(workspace: Workspace, tmp_path: Path) -> None:
    job = job_input(epochs=200)
    write_json(tmp_path / "job.json", job.to_dict())
    message = tmp_path / "message"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mark_trainer", "run", "--stage", "reward", "--run-uid", "run-1"),
            *("--input", str(tmp_path / "job.json"), "--workspace", str(workspace.root)),
            *("--termination-message", str(message)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "loss" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.read()
    assert process.wait(60) == 75
    result = json.loads(message.read_text())
    assert (result["outcome"], result["reason"]) == ("Stopped", "StoppedAfterCheckpoint")
    newest = max(workspace.path("runs/run-1/checkpoints-reward").iterdir(), key=checkpoints.step_of)
    assert f"kept step {checkpoints.step_of(newest)} of" in result["message"]
    verify_folder(newest, newest.name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rlhf": {"reward": {"epochs": 0}}}, r"rlhf\.reward\.epochs"),
        ({"baseModel": None}, "baseModel"),
        ({"lora": {"maxLength": 512}}, r"lora\.maxLength: 512 is more than the 256"),
        ({"rlhf": {"reward": {"epochs": 1}, "preferences": {"path": "none.jsonl"}}}, r"rlhf\.preferences\.path"),
    ],
    ids=["epochs", "no base", "length", "no file"],
)
def test_a_mistake_is_named_with_its_field(workspace: Workspace, changes: dict[str, Any], words: str) -> None:
    parts = {"stages": ["reward"], "rlhf": {"reward": {"epochs": 1}}} | changes
    with pytest.raises(UserMistake, match=words):
        run(workspace, tiny_training.job_input(**parts))


def test_a_document_on_both_sides_is_refused(workspace: Workspace) -> None:
    training = tiny_training.rows(range(100, 104), "train")
    tiny_training.write_dataset(workspace.path("datasets/contracts"), training, training[-4:])
    with pytest.raises(BadData, match="stand in both training and held-out pairs"):
        run(workspace, job_input())
