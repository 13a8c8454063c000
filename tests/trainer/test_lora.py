"""The stage lora on a tiny real model: the same numbers as a plain loop, the same adapter after an interruption."""

import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
import torch
from mark_crds.job_output import Result
from mark_crds.stages import Lora
from mark_trainer import base_model, checkpoints, lora, passes
from mark_trainer.audit import audit_adapter
from mark_trainer.base_model import BaseModel
from mark_trainer.dataset import Example, encode_rows, read_rows
from mark_trainer.failures import Stopped, UserMistake
from mark_trainer.likelihood import IGNORED
from mark_trainer.model_files import TRAINABLE_FAMILIES
from mark_trainer.outcome import adopt_own_result
from mark_trainer.packed_attention import can_pack
from mark_trainer.prompts import PromptBuilder
from mark_trainer.publish import provenance_of, verify_folder
from mark_trainer.workspace import Workspace, write_json
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import MambaConfig, MambaForCausalLM, TrainerCallback

SETTINGS = tiny_training.job_input(lora={"dropout": "0"}).lora
STEPS = 8


@pytest.fixture
def workspace(tmp_path: Path, request: pytest.FixtureRequest) -> Workspace:
    return tiny_training.write_workspace(tmp_path / "workspace", family=getattr(request, "param", "llama"))


FAMILIES = pytest.mark.parametrize("workspace", ["llama", "mamba"], indirect=True)


def load(workspace: Workspace, dtype: torch.dtype = torch.float64) -> BaseModel:
    reference = tiny_training.job_input().base_model
    assert reference is not None
    return base_model.load(reference, workspace.root, torch.device("cpu"), dtype)


def examples_of(workspace: Workspace, base: BaseModel) -> list[Example]:
    rows = read_rows(workspace.path("datasets/contracts"), "train_sft.jsonl")
    return encode_rows(rows, PromptBuilder(base.tokenizer, 188), max_length=200, seed=7).examples


class Steps(TrainerCallback):
    """Keeps what each step logs."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.gradient: list[float] = []

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.loss.append(logs["loss"])
            self.gradient.append(logs["grad_norm"])


Trained = tuple[Steps, dict[str, torch.Tensor]]


def assert_same(first: Trained, second: Trained) -> None:
    """Gradient norm and final adapter to what float64 can tell; the trainer keeps the loss it logs in float32."""
    assert len(first[0].loss) == len(second[0].loss) == STEPS
    assert first[0].loss == pytest.approx(second[0].loss, rel=1e-6)
    assert first[0].gradient == pytest.approx(second[0].gradient, rel=1e-6)
    for name, value in first[1].items():
        torch.testing.assert_close(value, second[1][name], atol=1e-8, rtol=1e-6)


def train(workspace: Workspace, settings: Lora, output: Path, dtype: torch.dtype = torch.float64) -> Trained:
    base, steps = load(workspace, dtype), Steps()
    examples = examples_of(workspace, base)
    packed = settings.packing and can_pack(base.model.config)
    model = lora.adapted(base, settings, packed=packed)
    dealt = passes.plan(
        range(STEPS * 4),
        [len(example.ids) for example in examples],
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation_steps,
        processes=1,
        max_length=settings.max_length,
        packed=packed,
    )
    trainer = lora.make_trainer(model, base, settings, dealt, examples, output=output)
    trainer.add_callback(steps)
    trainer.train()
    return steps, adapter_of(model)


def adapter_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def plain_loop(workspace: Workspace, settings: Lora) -> Trained:
    """The same training in plain torch: padded batches in order, token-weighted loss, clip, AdamW, warm-up and cosine."""
    base, steps = load(workspace), Steps()
    examples = examples_of(workspace, base)
    model = lora.adapted(base, settings, packed=False)
    model.train()
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0)
    warm_up = math.ceil(0.05 * STEPS)
    for step in range(STEPS):
        batch = examples[step * settings.batch_size : (step + 1) * settings.batch_size]
        longest = max(len(example.ids) for example in batch)
        ids = torch.tensor([example.ids + [0] * (longest - len(example.ids)) for example in batch])
        labels = torch.tensor([example.labels + [IGNORED] * (longest - len(example.ids)) for example in batch])
        mask = torch.tensor([[1] * len(example.ids) + [0] * (longest - len(example.ids)) for example in batch])
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        loss.backward()
        steps.loss.append(loss.item())
        steps.gradient.append(torch.nn.utils.clip_grad_norm_(weights, 1.0).item())
        progress = (step - warm_up) / (STEPS - warm_up)
        factor = step / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = float(settings.learning_rate) * factor
        optimizer.step()
        optimizer.zero_grad()
    return steps, adapter_of(model)


def test_loss_and_gradient_of_each_step_are_those_of_a_plain_loop(workspace: Workspace, tmp_path: Path) -> None:
    assert_same(train(workspace, SETTINGS, tmp_path / "out"), plain_loop(workspace, SETTINGS))


@pytest.mark.slow
@FAMILIES
def test_accumulation_equals_a_large_batch(workspace: Workspace, tmp_path: Path) -> None:
    """Answers differ in length, so this holds only if the loss is weighted by token over the whole step."""
    changes = {"batch_size": 1, "gradient_accumulation_steps": 4, "packing": False}
    small = train(workspace, SETTINGS.model_copy(update=changes), tmp_path / "small")
    assert_same(small, train(workspace, SETTINGS, tmp_path / "large"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"packing": False}, {"max_length": 64, "gradient_accumulation_steps": 2, "batch_size": 2}],
    ids=["padded", "packed in two passes"],
)
def test_packing_changes_no_number(workspace: Workspace, tmp_path: Path, changes: dict) -> None:
    """The same rows a step, without padding or with it, in one pass or in several."""
    other = train(workspace, SETTINGS.model_copy(update=changes), tmp_path / "other")
    assert_same(other, train(workspace, SETTINGS, tmp_path / "packed"))


@pytest.mark.slow
@FAMILIES
def test_gradient_checkpointing_changes_no_number(workspace: Workspace, tmp_path: Path) -> None:
    """With dropout: what is computed again must draw the same numbers."""
    settings = SETTINGS.model_copy(update={"dropout": "0.2"})
    kept = train(workspace, settings, tmp_path / "kept")
    assert_same(
        train(workspace, settings.model_copy(update={"gradient_checkpointing": True}), tmp_path / "twice"), kept
    )


@pytest.mark.slow
def test_bfloat16_stays_near(workspace: Workspace, tmp_path: Path) -> None:
    """Its eight bits of precision show, and no more than they."""
    steps, adapter = train(workspace, SETTINGS, tmp_path / "bfloat16", torch.bfloat16)
    exact, _ = train(workspace, SETTINGS, tmp_path / "exact")
    assert all(value.dtype == torch.float32 for value in adapter.values())
    assert steps.loss == pytest.approx(exact.loss, rel=2e-2) and steps.loss != pytest.approx(exact.loss, rel=1e-6)


def test_the_stage_publishes_adapter_logs_and_provenance(workspace: Workspace) -> None:
    job = tiny_training.job_input()
    work = tiny_training.work_of(workspace, job)
    result = lora.run(work)
    (artifact,) = result.artifacts
    assert artifact.path == f"adapters/{artifact.digest}"
    folder = workspace.path(artifact.path)
    assert verify_folder(folder, artifact.path) == artifact.digest
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    provenance = provenance_of(folder, artifact.path)
    assert provenance["base"]["digest"] == base_model.folder_digest(workspace.path("base/tiny"))
    assert provenance["dataset"]["digest"] == verify_folder(workspace.path("datasets/contracts"), "")
    assert provenance["settings"] == job.lora.to_dict()
    assert len(provenance["liveModules"]) == 2 * 7
    assert str(workspace.root) not in (folder / "adapter_config.json").read_text()
    logs = steps_of(work.run_folder / "logs/metrics.jsonl")
    assert [line["step"] for line in logs] == list(range(1, 17))
    assert logs[-1]["epoch"] == 2 and logs[-1]["loss"] < logs[0]["loss"]
    assert list((work.run_folder / "logs/tensorboard/lora").glob("events.*"))
    kept = {path.name for path in (work.run_folder / "checkpoints").iterdir()}
    assert kept == {"step-15", "step-16", f"step-{measures_of(result)['bestStep']}"}
    values = measures_of(result)
    assert values["steps"] == "16" and values["family"] == "transformer"


def steps_of(logs: Path) -> list[dict]:
    """The lines of metrics.jsonl about steps; those about checkpoints have a validationLoss instead."""
    lines = [json.loads(line) for line in logs.read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_training_before_it_is_kept(workspace: Workspace) -> None:
    """A row whose loss is no number: its step is in no checkpoint and no log, and nothing is published."""
    tiny_training.poison(workspace, "train")
    work = tiny_training.work_of(workspace, tiny_training.job_input())
    with pytest.raises(UserMistake, match=r"lora\.learningRate: at step \d+ loss is nan, gradNorm is nan") as caught:
        lora.run(work)
    step = int(caught.value.message.split("step ")[1].split()[0])
    kept = {path.name for path in (work.run_folder / "checkpoints").iterdir()}
    assert step > 1 and f"step-{step - 1}" in kept and f"step-{step}" not in kept
    assert [line["step"] for line in steps_of(work.run_folder / "logs/metrics.jsonl")] == list(range(1, step))
    assert not workspace.path("adapters").exists()


@pytest.mark.slow
def test_a_validation_loss_that_is_no_number_ends_the_training_too(workspace: Workspace) -> None:
    tiny_training.poison(workspace, "validation")
    work = tiny_training.work_of(workspace, tiny_training.job_input())
    with pytest.raises(UserMistake, match="at step 1 validationLoss is nan"):
        lora.run(work)
    assert not list((work.run_folder / "checkpoints").iterdir())


def test_weights_that_are_no_numbers_are_not_saved(workspace: Workspace, tmp_path: Path) -> None:
    model = lora.adapted(load(workspace), SETTINGS, packed=True)
    weights = lora.adapter_weights(model)
    next(iter(weights.values()))[0, 0] = math.inf
    with pytest.raises(UserMistake, match=r"lora\.learningRate: the adapter's .*lora_A\S* is not finite"):
        lora.save_adapter(model, weights, tmp_path / "adapter", tiny_training.job_input())
    assert not (tmp_path / "adapter").exists()


def measures_of(result: Result) -> dict[str, str]:
    return {measure.name: measure.value for measure in result.measures}


class StopAt:
    """Asks the stage to end once a step is done, as SIGTERM does."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.stop = None

    def report(self, step: int, steps: int, **measures: float) -> None:
        if step == self.step:
            self.stop.set()

    def kept(self, step: int) -> None:
        self.newest_checkpoint = step


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_an_interrupted_run_ends_with_the_adapter_of_a_straight_one(tmp_path: Path, family: str) -> None:
    """Bit for bit, with dropout on, across an epoch's end, stopped at random steps: the digest is over the weights.
    A Job that was suspended goes on under its own attempt."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace", family=family)
    job = tiny_training.job_input(lora={"dropout": "0.1", "gradientAccumulationSteps": 2, "epochs": 3})
    first, second = sorted(random.sample(range(2, 12), 2))
    print(f"stopped at steps {first} and {second}")
    straight = lora.run(tiny_training.work_of(workspace, job, uid="straight"))
    shutil.rmtree(workspace.path("adapters"))
    for attempt, step in ((1, first), (1, second)):
        stopper = StopAt(step - 1)  # heard at the end of the step after
        work = tiny_training.work_of(workspace, job, uid="halting", attempt=attempt)
        object.__setattr__(work, "progress", stopper)
        stopper.stop = work.stop
        torch.manual_seed(random.randrange(1000))
        with pytest.raises(Stopped, match=rf"kept step {step} of 12"):
            lora.run(work)
        assert stopper.newest_checkpoint == step
    for attempt in (2, 3):  # the third finds the last step's checkpoint: the second was killed behind it
        last = lora.run(tiny_training.work_of(workspace, job, uid="halting", attempt=attempt))
        assert last.artifacts == straight.artifacts and last.message == straight.message
        measures, others = measures_of(last), measures_of(straight)
        assert measures["family"] == {"llama": "transformer", "mamba": "mamba"}[family]
        assert all(measures[name] == others[name] for name in ("steps", "firstLoss", "lastLoss", "meanLoss"))
        assert ("tokensPerSecond" in measures) == (attempt == 2)
        shutil.rmtree(workspace.path("adapters"))
    logs = steps_of(workspace.path("runs/halting/logs/metrics.jsonl"))
    assert [line["step"] for line in logs] == list(range(1, 13))


@pytest.mark.slow
def test_what_the_whole_run_lost_is_told_by_the_attempt_that_ends_it(workspace: Workspace) -> None:
    """The measures are those of all steps in the logs, though the attempt did the last ones alone."""
    stopper = StopAt(9)
    work = tiny_training.work_of(workspace, tiny_training.job_input())
    object.__setattr__(work, "progress", stopper)
    stopper.stop = work.stop
    with pytest.raises(Stopped):
        lora.run(work)
    measures = measures_of(lora.run(tiny_training.work_of(workspace, tiny_training.job_input(), attempt=2)))
    losses = [line["loss"] for line in steps_of(work.run_folder / "logs/metrics.jsonl")]
    assert len(losses) == 16
    told = [float(measures[name]) for name in ("firstLoss", "lastLoss", "meanLoss")]
    assert told == pytest.approx([losses[0], losses[-1], sum(losses) / 16], rel=1e-5)


@pytest.mark.slow
def test_a_stopped_run_that_goes_on_with_other_settings_starts_anew(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    stopper = StopAt(3)
    work = tiny_training.work_of(workspace, tiny_training.job_input())
    object.__setattr__(work, "progress", stopper)
    stopper.stop = work.stop
    with pytest.raises(Stopped):
        lora.run(work)
    other = tiny_training.job_input(lora={"learningRate": "0.02"})
    with caplog.at_level(logging.WARNING):
        lora.run(tiny_training.work_of(workspace, other, attempt=2))
    assert "belongs to other data or settings" in caplog.text


@pytest.mark.slow
def test_sigterm_keeps_a_checkpoint_and_exits_with_75(workspace: Workspace, tmp_path: Path) -> None:
    job = tiny_training.job_input(lora={"epochs": 400})
    write_json(tmp_path / "job.json", job.to_dict())
    message = tmp_path / "message"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mark_trainer", "run", "--stage", "lora", "--run-uid", "run-1"),
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
    newest = max((workspace.path("runs/run-1/checkpoints")).iterdir(), key=checkpoints.step_of)
    assert f"kept step {checkpoints.step_of(newest)} of" in result["message"]
    verify_folder(newest, newest.name)
    assert adopt_own_result(tiny_training.work_of(workspace, job)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {"epochs": 0}}, r"lora\.epochs"),
        ({"lora": {"maxLength": 512}}, r"lora\.maxLength: 512 is more than the 256"),
        ({"evaluation": {"maxNewTokens": 190}}, r"evaluation\.maxNewTokens"),
        ({"baseModel": {"path": "base/none"}}, r"baseModel\.path: base/none"),
        ({"baseModel": None}, r"baseModel"),
    ],
    ids=["epochs", "length", "room", "path", "none"],
)
def test_a_mistake_is_named_with_its_field(workspace: Workspace, changes: dict, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        lora.run(tiny_training.work_of(workspace, tiny_training.job_input(**changes)))


@pytest.mark.parametrize(("targets", "live"), [(("in_proj",), True), (("in_proj", "dt_proj"), False)])
def test_a_dead_adapter_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, targets: tuple[str, ...], live: bool
) -> None:
    """Mamba reads dt_proj's weight without calling the layer: an adapter there would train nothing."""
    base = load(workspace)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(base.tokenizer), hidden_size=32, num_hidden_layers=2))
    monkeypatch.setitem(lora.TARGET_MODULES, "mamba", targets)
    model = lora.adapted(BaseModel(mamba, base.tokenizer, base.folder, base.digest), SETTINGS, packed=False)
    example = examples_of(workspace, base)[0]
    if live:
        assert len(audit_adapter(model, example, packed=False)) == 2
        return
    with pytest.raises(UserMistake, match=r"dt_proj\.lora_"):
        audit_adapter(model, example, packed=False)


@pytest.mark.slow
@pytest.mark.parametrize("workspace", ["mistral", "qwen2", "qwen3", "gemma2"], indirect=True)
def test_every_family_is_trained(workspace: Workspace) -> None:
    """Two steps, by the stage itself: every layer that the table names learns."""
    result = lora.run(tiny_training.work_of(workspace, tiny_training.job_input(lora={"batchSize": 16, "epochs": 1})))
    (artifact,) = result.artifacts
    provenance = provenance_of(workspace.path(artifact.path), artifact.path)
    assert provenance["schedule"]["steps"] == 2 and len(provenance["liveModules"]) == 2 * 7
    weights = load_file(workspace.path(artifact.path) / "adapter_model.safetensors")
    assert all(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 0), (2, 1), (20, 1), (21, 2), (40, 2)])
def test_the_warm_up_leaves_steps_to_train(steps: int, warm_up: int) -> None:
    assert lora.warm_up_steps(steps) == warm_up


@pytest.mark.slow
def test_a_single_step_trains(workspace: Workspace) -> None:
    result = lora.run(tiny_training.work_of(workspace, tiny_training.job_input(lora={"batchSize": 32, "epochs": 1})))
    assert measures_of(result)["steps"] == "1"
    weights = load_file(workspace.path(result.artifacts[0].path) / "adapter_model.safetensors")
    assert all(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)


def test_preflight_lets_through_the_families_that_have_targets() -> None:
    assert set(TRAINABLE_FAMILIES) == set(lora.TARGET_MODULES)


def test_the_audit_leaves_model_and_random_numbers_alone(workspace: Workspace) -> None:
    base = load(workspace)
    model = lora.adapted(base, SETTINGS.model_copy(update={"dropout": "0.5"}), packed=True)
    before, state = adapter_of(model), torch.get_rng_state()
    audit_adapter(model, examples_of(workspace, base)[0], packed=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in adapter_of(model).items())
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.slow
def test_the_saved_adapter_is_the_trained_one(workspace: Workspace) -> None:
    result = lora.run(tiny_training.work_of(workspace, tiny_training.job_input()))
    saved = load_file(workspace.path(result.artifacts[0].path) / "adapter_model.safetensors")
    newest = workspace.path("runs/run-1/checkpoints/step-16/adapter_model.safetensors")
    kept = load_file(newest)
    assert saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in saved)
