"""The stage lora: fine-tunes a low-rank adapter on the run's dataset and publishes it with its provenance.

It reads top to bottom: rows, token ids, audit, adapter, training with checkpoints, publication. It must not evaluate.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from mark_crds.job_input import JobInput, digest_of
from mark_crds.job_output import Artifact, Result
from mark_crds.names import ADAPTERS_FOLDER
from mark_crds.stages import Lora
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from trl import SFTConfig, SFTTrainer

from mark_trainer import base_model, checkpoints
from mark_trainer.audit import audit_adapter, audit_examples
from mark_trainer.base_model import BaseModel
from mark_trainer.dataset import TRAIN_FILE, VALIDATION_FILE, Encoded, Example, encode_rows, read_rows, training_order
from mark_trainer.failures import MachineTrouble, Stopped, UserMistake
from mark_trainer.prompts import TEMPLATE_VERSION, PromptBuilder
from mark_trainer.publish import publish, verify_folder
from mark_trainer.workspace import Work

# Which layers get an adapter, by model family. Mamba reads dt_proj.weight directly and its fused kernels bypass
# x_proj, so in_proj is the one projection that trains and serves the same everywhere.
LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGET_MODULES = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "mamba": ("in_proj",),
}

WARM_UP_SHARE = 0.05
SECONDS_BETWEEN_CHECKPOINTS = 300.0
CHECKPOINTS_OF_A_RUN = 10  # at least, beside those by time: what a stop can cost stays below a tenth

log = logging.getLogger(__name__)


def run(work: Work) -> Result:
    """Train the adapter; returns where it was published and how it went."""
    started = time.monotonic()
    job, settings = work.job_input, work.job_input.lora
    if settings.epochs == 0:
        raise UserMistake("NoEpochs", "lora.epochs: is 0, so nothing would be trained; set at least 1")
    if job.base_model is None:
        raise UserMistake("NoBaseModel", "baseModel: the stage lora needs one; set baseModel.path")
    set_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = base_model.load(job.base_model, work.workspace.root, device, dtype)

    # ---- rows to token ids ------------------------------------------------------------------------------------------
    dataset_folder = work.dataset_folder()
    dataset_digest = verify_folder(dataset_folder, work.workspace.relative(dataset_folder))
    training_rows = read_rows(dataset_folder, TRAIN_FILE)
    validation_rows = read_rows(dataset_folder, VALIDATION_FILE)
    limit = prompt_limit(job, base)
    builder = PromptBuilder(base.tokenizer, limit)
    encoded = encode_rows(training_rows, builder, max_length=settings.max_length, seed=settings.seed)
    findings = audit_examples(encoded.examples, training_rows, validation_rows, builder)
    say_what_is_trained(encoded, builder)

    # ---- adapter ----------------------------------------------------------------------------------------------------
    model = adapted(base, settings)
    live_modules = audit_adapter(model, encoded.examples[0])
    provenance = {
        "baseDigest": base.digest,
        "datasetDigest": dataset_digest,
        "templateDigest": builder.digest(),
        "settingsDigest": digest_of({"lora": settings.to_dict(), "promptLimitTokens": limit}),
    }

    # ---- training ---------------------------------------------------------------------------------------------------
    order = training_order(
        [len(example.ids) for example in encoded.examples],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    steps = math.ceil(len(order) / (settings.batch_size * settings.gradient_accumulation_steps))
    folder = work.run_folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    staged = work.workspace.staging_folder(work.run_uid, "checkpoint")
    keeper = Keeper(work, folder, staged, provenance, steps)
    reporter = Reporter(work)
    examples = [encoded.examples[row] for row in order]
    trainer = make_trainer(model, base, settings, examples, steps=steps, output=staged, callbacks=[reporter, keeper])
    resume = checkpoints.newest_verified(folder, provenance)
    if resume is not None:
        print(f"lora: goes on from {resume.name} of {steps} steps", flush=True)
    work_lost = "no step was done" if resume is None else f"{resume.name} is the last checkpoint"
    if work.stop.is_set():
        raise Stopped(
            "Stopped", f"lora was asked to end before its first step; {work_lost}, the next attempt goes on there"
        )
    outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    reporter.close()
    if trainer.state.global_step < steps:
        raise Stopped(
            "StoppedAfterCheckpoint", f"lora was asked to end and kept step {trainer.state.global_step} of {steps}"
        )
    if not math.isfinite(outcome.training_loss):
        raise MachineTrouble("LossNotFinite", "lora: the loss became infinite or no number; lower lora.learningRate")

    # ---- publication ------------------------------------------------------------------------------------------------
    unpublished = work.workspace.staging_folder(work.run_uid, "adapter")
    save_adapter(trainer.model, unpublished, job)
    manifest = {
        "kind": "adapter",
        "run": {"namespace": job.namespace, "name": job.name, "replayKey": job.replay_key},
        "base": {**job.base_model.to_dict(), "digest": base.digest, "family": base.model.config.model_type},
        "dataset": {"path": work.workspace.relative(dataset_folder), "digest": dataset_digest},
        "prompt": {"template": TEMPLATE_VERSION, "digest": provenance["templateDigest"], "limitTokens": limit},
        "settings": settings.to_dict(),
        "schedule": {"name": "cosine", "warmUpSteps": warm_up_steps(steps), "steps": steps},
        "precision": str(dtype).removeprefix("torch."),
        "examples": {
            "trained": findings.examples,
            "retrieved": sum(example.form == "retrieved" for example in encoded.examples),
            "closedBook": sum(example.form == "closedBook" for example in encoded.examples),
            "mix": "each row once an epoch, with passages or closed book by a draw on seed and row id",
            "tooLong": len(encoded.too_long),
            "passagesCut": encoded.cut,
            "tokens": findings.tokens,
            "trainedTokens": findings.trained_tokens,
            "sharedWithValidation": findings.shared_clusters,
        },
        "liveModules": list(live_modules),
        "versions": versions(),
    }
    published = publish(work.workspace, unpublished, ADAPTERS_FOLDER, manifest)
    first, last = reporter.losses[0], reporter.losses[-1]
    return work.done(
        "Trained",
        f"{steps} steps on {findings.examples} rows; the loss went from {first:.3f} to {last:.3f}; "
        f"{len(encoded.too_long)} rows were too long",
        (Artifact(kind="adapter", path=published.path, digest=published.digest),),
        family="mamba" if "mamba" in base.model.config.model_type else "transformer",
        steps=steps,
        epochs=settings.epochs,
        rows=findings.examples,
        rowsTooLong=len(encoded.too_long),
        firstLoss=first,
        lastLoss=last,
        meanLoss=float(outcome.training_loss),
        trainedTokenShare=findings.trained_share,
        adapterParameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        tokensPerSecond=reporter.tokens_per_second,
        seconds=round(time.monotonic() - started, 1),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Model and trainer


def prompt_limit(job: JobInput, base: BaseModel) -> int:
    """Tokens that a prompt may have, in training and evaluation: what maxNewTokens leaves of maxLength."""
    context = getattr(base.model.config, "max_position_embeddings", None)
    if context is not None and job.lora.max_length > context:
        raise UserMistake(
            "TooLongForModel",
            f"lora.maxLength: {job.lora.max_length} is more than the {context} tokens of the base model; lower it",
        )
    limit = job.lora.max_length - job.evaluation.max_new_tokens
    if limit < 32:
        raise UserMistake(
            "NoRoomForPrompt",
            "evaluation.maxNewTokens: leaves fewer than 32 tokens of lora.maxLength for the prompt; lower it",
        )
    return limit


def adapted(base: BaseModel, settings: Lora) -> PeftModel:
    """The base model, frozen, with a fresh adapter of float32 weights."""
    family = base.model.config.model_type
    if family not in TARGET_MODULES:
        raise UserMistake(
            "UnknownFamily",
            f"baseModel: no adapter targets are known for family {family}; known are {', '.join(TARGET_MODULES)}",
        )
    torch.manual_seed(settings.seed)
    return get_peft_model(
        base.model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=float(settings.dropout),
            target_modules=list(TARGET_MODULES[family]),
        ),
    )


def make_trainer(
    model: PeftModel,
    base: BaseModel,
    settings: Lora,
    examples: Sequence[Example],
    *,
    steps: int,
    output: Path,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """TRL's trainer on our own token ids and labels: no template, no packing, no truncation, no report of its own."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    arguments = SFTConfig(
        output_dir=str(output),
        num_train_epochs=1,  # the examples hold all epochs, in our order
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=float(settings.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=warm_up_steps(steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="no",  # Keeper decides when
        eval_strategy="no",
        logging_steps=1,
        logging_first_step=True,
        report_to="none",  # Reporter writes the logs and reports progress; transformers' own callback stays off
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    rows = Dataset.from_list([{"input_ids": example.ids, "labels": example.labels} for example in examples])
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=base.tokenizer, callbacks=callbacks
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def warm_up_steps(steps: int) -> int:
    return math.ceil(steps * WARM_UP_SHARE)


def save_adapter(model: PeftModel, folder: Path, job: JobInput) -> None:
    """Adapter weights and configuration; the base model is named as in the spec, not by a path of this machine."""
    model.peft_config["default"].base_model_name_or_path = job.base_model.path or job.base_model.hugging_face_id
    # save_embedding_layers: whether to do so would otherwise be looked up on the hub
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def say_what_is_trained(encoded: Encoded, builder: PromptBuilder) -> None:
    """Prints the first example as the model sees it, so that a wrong prompt meets the eye."""
    example = encoded.examples[0]
    trained = builder.tokenizer.decode(example.ids[example.prompt_tokens :])
    ending = builder.tokenizer.decode(example.ids[: example.prompt_tokens])[-120:]
    print(f"lora: first example, prompt ends {ending!r}, trained {trained!r}", flush=True)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")}


# ---------------------------------------------------------------------------------------------------------------------
# What happens beside the steps


class Keeper(TrainerCallback):
    """Decides when a checkpoint is written, seals it, and stops the training when the Pod is asked to end."""

    def __init__(self, work: Work, folder: Path, staged: Path, provenance: dict[str, str], steps: int) -> None:
        self.work, self.folder, self.staged, self.provenance = work, folder, staged, provenance
        self.every = max(1, steps // CHECKPOINTS_OF_A_RUN)
        self.last_kept = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        by_time = time.monotonic() - self.last_kept >= SECONDS_BETWEEN_CHECKPOINTS
        stop = self.work.stop.is_set() and state.global_step < state.max_steps
        if stop or by_time or state.global_step % self.every == 0:
            control.should_save = True
        if stop:
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        written = self.staged / f"checkpoint-{state.global_step}"
        checkpoints.publish(written, self.folder, state.global_step, self.provenance)
        self.work.progress.kept(state.global_step)
        self.last_kept = time.monotonic()


class Reporter(TrainerCallback):
    """Writes every step to metrics.jsonl and TensorBoard, and tells the progress."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.epochs = work.job_input.lora.epochs
        self.losses: list[float] = []
        self.tokens_per_second = 0.0
        logs = work.run_folder / "logs"
        logs.mkdir(exist_ok=True)
        self._file = (logs / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(logs / "tensorboard"))
        self._begun = (time.monotonic(), 0.0)  # time and tokens before the first step of this attempt

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begun = (time.monotonic(), 0.0)
        self.work.progress.report(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        # num_tokens counts from the start of this process, also after a resume
        self.tokens_per_second = float(logs.get("num_tokens", 0)) / max(1e-9, time.monotonic() - self._begun[0])
        measures = {
            "epoch": self.epochs * state.global_step / state.max_steps,
            "loss": float(logs["loss"]),
            "learningRate": float(logs["learning_rate"]),
            "gradNorm": float(logs["grad_norm"]),
            "tokensPerSecond": self.tokens_per_second,
        }
        self.losses.append(measures["loss"])
        self._file.write(json.dumps({"step": state.global_step, "attempt": self.work.attempt, **measures}) + "\n")
        self._file.flush()
        for name, value in measures.items():
            self._board.add_scalar(f"lora/{name}", value, state.global_step)
        self.work.progress.report(state.global_step, state.max_steps, **measures)

    def close(self) -> None:
        self._file.close()
        self._board.close()
