"""The stage lora: fine-tunes a low-rank adapter on the run's dataset and publishes it with its provenance.

It reads top to bottom: rows, token ids, audit, adapter, training with checkpoints, publication. It must not evaluate.
Several processes run it together, each on its share of every step; the first one writes for all.
"""

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from mark_crds.job_input import JobInput, digest_of
from mark_crds.job_output import Artifact, Result
from mark_crds.names import ADAPTERS_FOLDER
from mark_crds.stages import Distributed, Lora, Reward
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from mark_trainer import base_model, checkpoints, passes, ranks
from mark_trainer.answer_loss import use_answer_loss
from mark_trainer.audit import audit_adapter, audit_examples, audit_packing
from mark_trainer.base_model import BaseModel
from mark_trainer.dataset import TRAIN_FILE, VALIDATION_FILE, Encoded, Example, encode_rows, read_rows, training_order
from mark_trainer.failures import Stopped, UserMistake
from mark_trainer.likelihood import IGNORED
from mark_trainer.packed_attention import can_pack, use_packed_attention
from mark_trainer.passes import Passes, PassSet, collate
from mark_trainer.prompts import TEMPLATE_VERSION, PromptBuilder
from mark_trainer.publish import publish, verify_folder
from mark_trainer.ranks import Rank
from mark_trainer.tracking import Reporter
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

RATE = "lora.learningRate"
WARM_UP_SHARE = 0.05
SECONDS_BETWEEN_CHECKPOINTS = 300.0
CHECKPOINTS_OF_A_RUN = 10  # at least, beside those by time: what a stop can cost stays below a tenth
VALIDATION_ROWS = 16  # whose loss is measured at each checkpoint, to tell which was the best

log = logging.getLogger(__name__)


def run(work: Work) -> Result:
    """Train the adapter; returns where it was published and how it went."""
    started = time.monotonic()
    job, settings = work.job_input, work.job_input.lora
    if settings.epochs == 0:
        raise UserMistake("NoEpochs", "lora.epochs: is 0, so nothing would be trained; set at least 1")
    if job.base_model is None:
        raise UserMistake("NoBaseModel", "baseModel: the stage lora needs one; set baseModel.path")
    rank = Rank.here()
    set_seed(settings.seed)
    device = device_of(rank)
    dtype = number_type(settings, device)
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
    validation = encode_rows(
        validation_rows[:VALIDATION_ROWS], builder, max_length=settings.max_length, seed=settings.seed
    )
    say_what_is_trained(encoded, builder)

    # ---- adapter ----------------------------------------------------------------------------------------------------
    packed = settings.packing and can_pack(base.model.config)
    model = adapted(base, settings, packed=packed)
    live_modules = audit_adapter(model, encoded.examples[0], packed=packed)
    if packed:
        audit_packing(model, encoded.examples)
    provenance = {
        "baseDigest": base.digest,
        "datasetDigest": dataset_digest,
        "templateDigest": builder.digest(),
        "settingsDigest": digest_of({"lora": settings.to_dict(), "promptLimitTokens": limit}),
    }

    # ---- training ---------------------------------------------------------------------------------------------------
    lengths = [len(example.ids) for example in encoded.examples]
    order = training_order(lengths, epochs=settings.epochs, batch_size=settings.batch_size, seed=settings.seed)
    dealt = passes.plan(
        order,
        lengths,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation_steps,
        processes=rank.processes,
        max_length=settings.max_length,
        packed=packed,
    )
    steps = dealt.steps
    folder = work.run_folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    staged = work.run_folder / "tmp" / f"checkpoint-attempt-{work.attempt}"
    trainer = make_trainer(model, base, settings, dealt, encoded.examples, output=staged, strategy=job.distributed)
    parameters = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    resume = ranks.of_first(rank, lambda: checkpoints.newest_after_clearing(staged, folder, provenance))
    done = 0 if resume is None else checkpoints.step_of(resume)
    reporter = Reporter(work, dealt.slots(lengths), parameters, device, rank.processes, done) if rank.first else None
    measure = ValidationLoss(validation.examples, base.tokenizer.pad_token_id, settings.batch_size, packed)
    keeper = Keeper(work, rank, folder, staged, provenance, steps, measure, reporter)
    for callback in [keeper, reporter]:  # what is not finite is neither kept nor logged
        if callback is not None:
            trainer.add_callback(callback)
    if resume is not None and rank.first:
        print(f"lora: goes on from {resume.name} of {steps} steps", flush=True)
    work_lost = "no step was done" if resume is None else f"{resume.name} is the last checkpoint"
    (stop,) = ranks.any_of(rank, work.stop.is_set())
    if stop:
        raise Stopped(
            "Stopped", f"lora was asked to end before its first step; {work_lost}, the next attempt goes on there"
        )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if reporter is not None:
        reporter.logs.close()
    if trainer.state.global_step < steps:
        raise Stopped(
            "StoppedAfterCheckpoint", f"lora was asked to end and kept step {trainer.state.global_step} of {steps}"
        )

    # ---- publication ------------------------------------------------------------------------------------------------
    weights = adapter_weights(model)
    if reporter is None:
        return work.done("TookPart", f"process {rank.index} of {rank.processes} did its share of {steps} steps")
    unpublished = work.workspace.staging_folder(work.run_uid, "adapter")
    save_adapter(model, weights, unpublished, job)
    manifest = {
        "kind": "adapter",
        "run": {"namespace": job.namespace, "name": job.name, "replayKey": job.replay_key},
        "base": {**job.base_model.to_dict(), "digest": base.digest, "family": base.model.config.model_type},
        "dataset": {"path": work.workspace.relative(dataset_folder), "digest": dataset_digest},
        "prompt": {"template": TEMPLATE_VERSION, "digest": provenance["templateDigest"], "limitTokens": limit},
        "settings": settings.to_dict(),
        "schedule": {"name": "cosine", "warmUpSteps": warm_up_steps(steps), "steps": steps},
        "precision": str(dtype).removeprefix("torch."),
        "processes": {"count": rank.processes, "strategy": job.distributed.strategy},
        "passes": {"packed": packed, "ofAStep": dealt.a_step * rank.processes},
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
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]  # of earlier attempts too
    first, last = losses[0], losses[-1]
    best = checkpoints.best(folder)
    return work.done(
        "Trained",
        f"{steps} steps on {findings.examples} rows; the loss went from {first:.3f} to {last:.3f}; "
        f"{len(encoded.too_long)} rows were too long",
        (Artifact(kind="adapter", path=published.path, digest=published.digest),),
        family="mamba" if base.model.config.model_type == "mamba" else "transformer",
        steps=steps,
        epochs=settings.epochs,
        rows=findings.examples,
        rowsTooLong=len(encoded.too_long),
        firstLoss=first,
        lastLoss=last,
        meanLoss=sum(losses) / len(losses),
        **({"bestStep": best["step"], "bestValidationLoss": best["loss"]} if best else {}),
        trainedTokenShare=findings.trained_share,
        adapterParameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **({"tokensPerSecond": reporter.tokens_per_second} if done < steps else {}),
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


def device_of(rank: Rank) -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(rank.local_index)
    return torch.device("cuda", rank.local_index)


def number_type(settings: Lora, device: torch.device) -> torch.dtype:
    """The type of the base model's weights and of what is computed with them."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.precision == "bfloat16" and device.type == "cuda" and not able:
        raise UserMistake(
            "NoBfloat16", "lora.precision: this GPU does not compute with bfloat16; set float32, or use another GPU"
        )
    wanted = settings.precision == "bfloat16" or (settings.precision == "auto" and able)
    return torch.bfloat16 if wanted else torch.float32


def adapted(base: BaseModel, settings: Lora, *, packed: bool) -> PeftModel:
    """The base model, frozen, with a fresh adapter of float32 weights, ready for the training's passes and loss."""
    fresh = adapter_settings(base, settings)
    use_answer_loss(base.model)
    if packed:
        use_packed_attention(base.model)
    torch.manual_seed(settings.seed)
    model = get_peft_model(base.model, fresh)
    leave_out_model_card(model)
    return model


def adapter_settings(base: BaseModel, settings: Lora | Reward) -> LoraConfig:
    """A fresh adapter for the layers that the base model's family is adapted at."""
    family = base.model.config.model_type
    if family not in TARGET_MODULES:
        raise UserMistake(
            "UnknownFamily",
            f"baseModel: no adapter targets are known for family {family}; known are {', '.join(TARGET_MODULES)}",
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=float(settings.dropout),
        target_modules=list(TARGET_MODULES[family]),
    )


def leave_out_model_card(model: PeftModel) -> None:
    """Keep peft from rendering a page of placeholders at every checkpoint, a fourth of its cost; manifests say more."""
    model.create_or_update_model_card = lambda _folder: None


def make_trainer(
    model: PeftModel,
    base: BaseModel,
    settings: Lora,
    dealt: Passes,
    examples: Sequence[Example],
    *,
    output: Path,
    strategy: Distributed = Distributed(),  # noqa: B008 - frozen
) -> Trainer:
    """transformers' trainer on our own passes and loss: a batch of it is one forward pass, in our order."""
    on_gpu, several = next(model.parameters()).device.type == "cuda", dealt.processes > 1
    deepspeed = deepspeed_settings(strategy) if several else None
    if deepspeed is not None and not on_gpu:
        join_without_gpus()
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=1,  # the passes hold all epochs, in our order
        train_sampling_strategy="sequential",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=dealt.a_step,
        learning_rate=float(settings.learning_rate),
        lr_scheduler_type="cosine",
        warmup_steps=warm_up_steps(dealt.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=base.model.dtype == torch.bfloat16,
        use_cpu=not on_gpu
        and deepspeed is None,  # with it accelerate would leave DeepSpeed out; it sees the CPU itself
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        ddp_backend=("nccl" if on_gpu else "gloo") if several else None,
        ddp_find_unused_parameters=False,
        deepspeed=deepspeed,
        accelerator_config={"use_configured_state": deepspeed is not None and not on_gpu},
        remove_unused_columns=False,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="no",  # Keeper decides when
        eval_strategy="no",
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would log a mean in place of what is not finite
        report_to="none",  # Reporter writes the logs and reports progress; transformers' own callback stays off
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    pad = base.tokenizer.pad_token_id
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=PassSet(dealt, examples),
        data_collator=lambda batch: collate(batch[0], pad, packed=dealt.packed),
        processing_class=base.tokenizer,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def join_without_gpus() -> None:
    """Join the processes for DeepSpeed on CPUs. Left to itself accelerate picks no backend for DeepSpeed there, so that
    each process would train on every row, as if it were alone."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise UserMistake(
            "NoDeepSpeedOnCpu",
            "distributed.strategy: DeepSpeed needs GPUs, or a C++ compiler to build what it needs instead: set ddp",
        )
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend="gloo")
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]


def deepspeed_settings(distributed: Distributed) -> dict[str, Any] | None:
    """DeepSpeed's own settings for a strategy of it; what the trainer also knows is left to the trainer."""
    stages = {"deepspeedZero2": 2, "deepspeedZero3": 3}
    if distributed.strategy not in stages:
        return None
    return {
        "zero_optimization": {"stage": stages[distributed.strategy], "overlap_comm": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "steps_per_print": 10**9,
    }


def warm_up_steps(steps: int) -> int:
    """Steps before the learning rate is at its peak; the first of them is at zero, so one is left to train."""
    return min(math.ceil(steps * WARM_UP_SHARE), steps - 1)


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trained tensors, whole, on the CPU; where they are shared out every process must ask."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with gathered(list(trained.values())):
        return {name: weight.detach().cpu().clone() for name, weight in trained.items()}


@contextlib.contextmanager
def gathered(weights: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, weights that ZeRO shared out among the processes are whole."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(weights):
        yield


def refuse_not_finite(rate: str, step: int, **measures: float) -> None:
    """Ends a training whose measures at a step are not all finite numbers; `rate` is the field with its learning rate.
    Another attempt would come to the same."""
    wrong = [f"{name} is {value}" for name, value in measures.items() if not math.isfinite(value)]
    if wrong:
        raise UserMistake(
            "LossNotFinite",
            f"{rate}: at step {step} {', '.join(wrong)}; lower it, or look for what is wrong with baseModel",
        )


def save_adapter(model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, job: JobInput) -> None:
    """Adapter weights and configuration; the base model is named as in the spec, not by a path of this machine."""
    wrong = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    if wrong:
        raise UserMistake(
            "WeightsNotFinite",
            f"{RATE}: the adapter's {wrong[0]} is not finite; lower it",
        )
    model.peft_config["default"].base_model_name_or_path = job.base_model.path or job.base_model.hugging_face_id
    # save_embedding_layers: whether to do so would otherwise be looked up on the hub
    model.save_pretrained(
        folder,
        state_dict=weights,
        selected_adapters=["default"],
        safe_serialization=True,
        save_embedding_layers=False,
    )


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


class ValidationLoss:
    """Nats a trained token on a few rows of held-out documents; without dropout, so no random number is drawn."""

    def __init__(self, examples: Sequence[Example], pad: int, batch_size: int, packed: bool) -> None:
        self.examples, self.pad, self.batch_size, self.packed = examples, pad, batch_size, packed

    @torch.no_grad()
    def __call__(self, model: PeftModel) -> float | None:
        """None when no row fits. Every process must ask, since weights may be shared out."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        nats, tokens = 0.0, 0
        for start in range(0, len(self.examples), self.batch_size):
            inputs = collate(self.examples[start : start + self.batch_size], self.pad, packed=self.packed)
            on_device = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
            nats += model(**on_device, num_items_in_batch=1).loss.item()
            tokens += int((inputs["labels"] != IGNORED).sum())
        model.train(was_training)
        return nats / tokens if tokens else None


class Keeper(TrainerCallback):
    """Decides when a checkpoint is written, seals it, and stops the training: when a Pod is asked to end, and at the
    first measure that is not finite, before anything of that step is kept."""

    def __init__(
        self,
        work: Work,
        rank: Rank,
        folder: Path,
        staged: Path,
        provenance: dict[str, str],
        steps: int,
        measure: ValidationLoss,
        reporter: Reporter | None,
    ) -> None:
        self.work, self.rank, self.folder, self.staged, self.provenance = work, rank, folder, staged, provenance
        self.measure, self.reporter = measure, reporter
        self.every = max(1, steps // CHECKPOINTS_OF_A_RUN)
        self.last_kept = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        asked = self.work.stop.is_set() and state.global_step < state.max_steps
        late = time.monotonic() - self.last_kept >= SECONDS_BETWEEN_CHECKPOINTS
        stop, by_time = ranks.any_of(self.rank, asked, late)  # Pods are not asked at the same moment
        if stop or by_time or state.global_step % self.every == 0:
            control.should_save = True
        if stop:
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:  # means over all processes, so that all of them end here
            refuse_not_finite(RATE, state.global_step, loss=logs["loss"], gradNorm=float(logs["grad_norm"]))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PeftModel, **_: Any
    ) -> None:
        loss = self.measure(model)
        if loss is not None:
            refuse_not_finite(RATE, state.global_step, validationLoss=loss)
        ranks.wait_for_all(self.rank)  # each process wrote its part
        if self.reporter is not None:
            written = self.staged / f"checkpoint-{state.global_step}"
            checkpoints.publish(written, self.folder, state.global_step, self.provenance, loss)
            self.work.progress.kept(state.global_step)
            if loss is not None:
                self.reporter.logs.keep(state.global_step, {"validationLoss": loss})
        ranks.wait_for_all(self.rank)
        self.last_kept = time.monotonic()
