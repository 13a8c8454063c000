"""The stage reward: which of two answers is the better one, learned from pairs as a score of each (Bradley-Terry).

It reads top to bottom: pairs, audit, model, training with checkpoints, publication, what was learned. Where lora is a
stage of the run, its adapter stays below the one that is trained here, so that the judge knows what the policy knows;
published is the sum of both as one adapter, which ppo can load beside its others on one base model. It runs as one
process. It must not write answers.
"""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mark_crds.job_input import JobInput, digest_of
from mark_crds.job_output import Artifact, Result
from mark_crds.names import REWARD_MODELS_FOLDER
from mark_crds.stages import Reward
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch.nn.functional import logsigmoid
from transformers import get_cosine_schedule_with_warmup, set_seed

from mark_trainer import base_model, checkpoints, preferences, statistics
from mark_trainer.audit import live_modules
from mark_trainer.base_model import BaseModel
from mark_trainer.dataset import training_order
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.lora import (
    CHECKPOINTS_OF_A_RUN,
    SECONDS_BETWEEN_CHECKPOINTS,
    adapter_settings,
    device_of,
    number_type,
    prompt_limit,
    refuse_not_finite,
    versions,
    warm_up_steps,
)
from mark_trainer.preferences import EncodedPair, Preferences, audit_pairs, encode_pairs
from mark_trainer.prompts import TEMPLATE_VERSION, PromptBuilder
from mark_trainer.publish import provenance_of, publish, verify_folder
from mark_trainer.ranks import Rank
from mark_trainer.scalar_head import ScalarHead, padded, score
from mark_trainer.tracking import Logs, memory_gib
from mark_trainer.workspace import Work

TRAINED, BELOW = "reward", "below"  # names of the adapters: the one that is trained, and lora's
VALIDATION_PAIRS = 16  # whose loss is measured at each checkpoint, to tell which was the best
OFFSET_ANSWERS = 256  # preferred answers whose mean score becomes zero
STATE_FILE = "state.pt"
ACCURACY = (("accuracy", "value"), ("accuracyLow", "low"), ("accuracyHigh", "high"))  # measure, part of the estimate


def run(work: Work) -> Result:
    """Train the reward model; returns where it was published and how often it is right on pairs it did not see."""
    started = time.monotonic()
    job, settings = work.job_input, work.job_input.rlhf.reward
    if settings.epochs == 0:
        raise UserMistake("NoEpochs", "rlhf.reward.epochs: is 0, so nothing would be trained; set at least 1")
    if job.base_model is None:
        raise UserMistake("NoBaseModel", "baseModel: the stage reward needs one; set baseModel.path")
    set_seed(settings.seed)
    device = device_of(Rank())
    dtype = number_type(job.lora, device)
    base = base_model.load(job.base_model, work.workspace.root, device, dtype)

    # ---- pairs to token ids -----------------------------------------------------------------------------------------
    limit = prompt_limit(job, base)
    builder = PromptBuilder(base.tokenizer, limit)
    source = preferences.gather(work)
    training, too_long = encode_pairs(source.training, builder, job.lora.max_length)
    held_out, held_out_too_long = encode_pairs(source.held_out, builder, job.lora.max_length)
    audit_pairs(training, held_out, builder.stop)
    say_what_is_learned(training[0], source)

    # ---- model ------------------------------------------------------------------------------------------------------
    below = adapter_below(work, base, builder)
    scorer = new_scorer(base, settings, below.folder if below else None)
    if job.lora.gradient_checkpointing:
        scorer.model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    live = live_modules(scorer.model, lambda: -logsigmoid(scorer.margins(training[:1])).sum(), "the first pair")
    provenance = {
        "baseDigest": base.digest,
        "preferencesDigest": source.digest,
        "belowDigest": below.digest if below else "",
        "templateDigest": builder.digest(),
        "settingsDigest": digest_of(
            {
                "reward": settings.to_dict(),
                "promptLimitTokens": limit,
                "maxLength": job.lora.max_length,
                "precision": str(dtype),
            }
        ),
    }

    # ---- training ---------------------------------------------------------------------------------------------------
    learner = Learner(scorer, settings, training)
    folder = work.run_folder / "checkpoints-reward"
    folder.mkdir(exist_ok=True)
    learn(work, learner, Keeping(work, folder, provenance, held_out[:VALIDATION_PAIRS]))

    # ---- publication ------------------------------------------------------------------------------------------------
    preferred = [pair.chosen for pair in training[:OFFSET_ANSWERS]]
    scorer.head.offset += scorer.all_scores(preferred, settings.batch_size).mean()
    learned = measured(scorer, held_out, settings.batch_size)
    unpublished = work.workspace.staging_folder(work.run_uid, "reward-model")
    save_sum(scorer.model, unpublished, job)
    scorer.head.save(unpublished)
    manifest = {
        "kind": "rewardModel",
        "run": {"namespace": job.namespace, "name": job.name, "replayKey": job.replay_key},
        "base": {**job.base_model.to_dict(), "digest": base.digest, "family": base.model.config.model_type},
        "parent": {"path": below.path, "digest": below.digest} if below else None,
        "preferences": {
            "source": source.source,
            "path": source.path,
            "digest": source.digest,
            "origins": preferences.origins(source.training),
            "heldOutOrigins": preferences.origins(source.held_out),
            "withoutRejected": source.without_rejected,
        },
        "prompt": {"template": TEMPLATE_VERSION, "digest": provenance["templateDigest"], "limitTokens": limit},
        "settings": settings.to_dict(),
        "schedule": {"name": "cosine", "warmUpSteps": warm_up_steps(learner.steps), "steps": learner.steps},
        "precision": str(dtype).removeprefix("torch."),
        "pairs": {
            "trained": len(training),
            "tooLong": too_long,
            "heldOut": len(held_out),
            "heldOutTooLong": held_out_too_long,
            "tokens": sum(pair.tokens for pair in training),
        },
        "offset": {"value": float(scorer.head.offset), "answers": min(len(training), OFFSET_ANSWERS)},
        "heldOut": learned,
        "liveModules": list(live),
        "versions": versions(),
    }
    published = publish(work.workspace, unpublished, REWARD_MODELS_FOLDER, manifest)
    accuracy, best = learned["accuracy"], checkpoints.best(folder)
    by_whom = "judged by people" if source.source == "people" else "made by rules, not by people"
    return work.done(
        "Trained",
        f"{learner.steps} steps on {len(training)} pairs {by_whom}; of {len(held_out)} held-out pairs "
        f"{accuracy['value']:.1%} in the right order; {too_long + held_out_too_long} pairs were too long",
        (Artifact(kind="rewardModel", path=published.path, digest=published.digest),),
        source=source.source,
        steps=learner.steps,
        epochs=settings.epochs,
        pairs=len(training),
        pairsTooLong=too_long + held_out_too_long,
        firstLoss=learner.first_loss,
        lastLoss=learner.last_loss,
        heldOutPairs=len(held_out),
        **{name: accuracy[end] for name, end in ACCURACY if accuracy[end] is not None},
        margin=learned["margin"]["value"],
        longerChosen=learned["longerChosen"],
        **({"bestStep": best["step"], "bestValidationLoss": best["loss"]} if best else {}),
        tokensPerSecond=learner.tokens_per_second,
        seconds=round(time.monotonic() - started, 1),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Model


@dataclass(frozen=True)
class Below:
    """The run's lora adapter, which stays below the one that is trained."""

    path: str
    folder: Path
    digest: str


def adapter_below(work: Work, base: BaseModel, builder: PromptBuilder) -> Below | None:
    """The adapter of the run's stage lora, of this base model and these prompts; None where lora is no stage of it."""
    if "lora" not in work.job_input.stages:
        return None
    made = work.made("adapter", "lora")
    if made is None:
        raise UserMistake("NoAdapter", "stages: the run's stage lora has published no adapter; run lora first")
    folder = work.workspace.path(made.path)
    digest, provenance = verify_folder(folder, made.path), provenance_of(folder, made.path)
    if provenance["base"]["digest"] != base.digest or provenance["prompt"]["digest"] != builder.digest():
        raise BadData("OtherBaseModel", f"{made.path}: was trained on another base model or template; create a new run")
    return Below(made.path, folder, digest)


@dataclass(frozen=True)
class Scorer:
    """The model with the adapters at work, and the head behind it."""

    model: PeftModel
    head: ScalarHead

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """All that learns, by name."""
        adapter = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        return {**adapter, **dict(self.head.named_parameters(prefix="head"))}

    def of_rows(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The scores of rows of token ids, in one forward pass."""
        causal = self.model.get_base_model()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=causal.dtype == torch.bfloat16):
            return score(causal, self.head, *padded(rows, self.device))

    def margins(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        """By how much each chosen answer scores above the rejected one, in one forward pass."""
        chosen, rejected = self.of_rows([*(p.chosen for p in pairs), *(p.rejected for p in pairs)]).chunk(2)
        return chosen - rejected

    @torch.no_grad()
    def all_scores(self, rows: Sequence[Sequence[int]], batch_size: int) -> torch.Tensor:
        """The scores of any number of rows, without dropout."""
        self.model.eval()
        return torch.cat([self.of_rows(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)])

    @torch.no_grad()
    def all_margins(self, pairs: Sequence[EncodedPair], batch_size: int) -> torch.Tensor:
        """The margins of any number of pairs, without dropout."""
        self.model.eval()
        return torch.cat(
            [self.margins(pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)]
        )


def new_scorer(base: BaseModel, settings: Reward, below: Path | None) -> Scorer:
    """The base model, frozen, with a fresh adapter and head; the adapter in `below` is at work too, unchanged."""
    fresh = adapter_settings(base, settings)
    torch.manual_seed(settings.seed)
    if below is None:
        model = get_peft_model(base.model, fresh, adapter_name=TRAINED)
    else:
        still = LoraConfig.from_pretrained(str(below))
        still.lora_dropout = 0.0
        model = PeftModel.from_pretrained(base.model, below, adapter_name=BELOW, config=still, local_files_only=True)
        model.add_adapter(TRAINED, fresh)
        model.base_model.set_adapter([BELOW, TRAINED])
    for name, weight in model.named_parameters():
        weight.requires_grad_(f".{TRAINED}." in name)
    head = ScalarHead(base.model.config.hidden_size, settings.seed)
    return Scorer(model, head.to(base.model.device))


def save_sum(model: PeftModel, folder: Path, job: JobInput) -> None:
    """Writes all adapters at work as the one adapter that does what they do together: their matrices side by side."""
    names = model.base_model.active_adapters
    weights = {}
    for place, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            down = torch.cat([layer.lora_A[name].weight * layer.scaling[name] for name in names])
            up = torch.cat([layer.lora_B[name].weight for name in names], dim=1)
            weights[f"base_model.model.{place}.lora_A.weight"] = down.detach().cpu().contiguous()
            weights[f"base_model.model.{place}.lora_B.weight"] = up.detach().cpu().contiguous()
    rank = sum(model.peft_config[name].r for name in names)
    assert job.base_model is not None
    LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(model.peft_config[TRAINED].target_modules),
        base_model_name_or_path=job.base_model.path or job.base_model.hugging_face_id,
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors")


def say_what_is_learned(first: EncodedPair, source: Preferences) -> None:
    """Prints the first pair, so that a wrong one meets the eye."""
    pair = first.pair
    print(
        f"reward: pairs from {source.source}; first: {pair.question[:120]!r}, chosen {pair.chosen[:120]!r}, "
        f"rejected {pair.rejected[:120]!r}",
        flush=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Learner:
    """Adapter and head, their optimizer, and the place in the order of pairs: all that a checkpoint has to hold."""

    def __init__(self, scorer: Scorer, settings: Reward, pairs: Sequence[EncodedPair]) -> None:
        lengths = [max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
        self.scorer, self.settings, self.pairs = scorer, settings, pairs
        self.order = training_order(lengths, epochs=settings.epochs, batch_size=settings.batch_size, seed=settings.seed)
        self.width = settings.batch_size * settings.gradient_accumulation_steps
        self.steps = math.ceil(len(self.order) / self.width)
        self.weights = scorer.trained
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=float(settings.learning_rate), weight_decay=0.0)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warm_up_steps(self.steps), self.steps)
        self.step = 0
        self.first_loss = self.last_loss = self.tokens_per_second = 0.0
        self._begun, self._tokens = time.monotonic(), 0

    def of_step(self, step: int) -> list[EncodedPair]:
        """The pairs of a step, counted from 0."""
        return [self.pairs[place] for place in self.order[step * self.width : (step + 1) * self.width]]

    def advance(self) -> dict[str, float]:
        """One optimizer step over the mean of its pairs, in as many forward passes as accumulation asks for."""
        pairs, size = self.of_step(self.step), self.settings.batch_size
        self.scorer.model.train()
        self.optimizer.zero_grad()
        margins, loss = [], 0.0
        for start in range(0, len(pairs), size):
            found = self.scorer.margins(pairs[start : start + size])
            part = -logsigmoid(found).sum() / len(pairs)
            part.backward()
            loss += part.item()
            margins.append(found.detach())
        gradient = torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0).item()
        refuse_not_finite("rlhf.reward.learningRate", self.step + 1, loss=loss, gradNorm=gradient)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        margin = torch.cat(margins)
        self._tokens += sum(pair.tokens for pair in pairs)
        self.tokens_per_second = self._tokens / max(1e-9, time.monotonic() - self._begun)
        self.first_loss = loss if self.step == 1 else self.first_loss
        self.last_loss = loss
        return {
            "epoch": self.settings.epochs * self.step / self.steps,
            "loss": loss,
            "accuracy": (margin > 0).float().mean().item(),
            "margin": margin.mean().item(),
            "learningRate": rate,
            "gradNorm": gradient,
            "tokensPerSecond": self.tokens_per_second,
        }

    def save(self, folder: Path) -> None:
        """Everything that the next step depends on."""
        state = {
            "step": self.step,
            "firstLoss": self.first_loss,
            "lastLoss": self.last_loss,
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(self.scorer.device),
        }
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint was kept."""
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        self.step, self.first_loss, self.last_loss = state["step"], state["firstLoss"], state["lastLoss"]
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        set_random_state(state["random"], self.scorer.device)


@dataclass(frozen=True)
class Keeping:
    """Where checkpoints go, what they belong to, and the held-out pairs that tell which was the best."""

    work: Work
    folder: Path
    provenance: dict[str, str]
    validation: Sequence[EncodedPair]

    @property
    def staged(self) -> Path:
        return self.work.run_folder / "tmp" / f"checkpoint-reward-attempt-{self.work.attempt}"

    def newest(self) -> Path | None:
        return checkpoints.newest_after_clearing(self.staged, self.folder, self.provenance)

    def keep(self, learner: Learner) -> float:
        """Keeps a checkpoint; returns the loss on the held-out pairs."""
        margins = learner.scorer.all_margins(self.validation, learner.settings.batch_size)
        loss = -logsigmoid(margins).mean().item()
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir(parents=True)
        learner.save(self.staged)
        checkpoints.publish(self.staged, self.folder, learner.step, self.provenance, loss)
        self.work.progress.kept(learner.step)
        return loss


def learn(work: Work, learner: Learner, keeping: Keeping) -> None:
    """All steps from the newest checkpoint on; raises Stopped behind a checkpoint when asked to end."""
    resume = keeping.newest()
    if resume is not None:
        learner.load(resume)
        print(f"reward: goes on from {resume.name} of {learner.steps} steps", flush=True)
    logs = Logs(work, done=learner.step)
    try:
        work.progress.report(learner.step, learner.steps)
        every, kept_at = max(1, learner.steps // CHECKPOINTS_OF_A_RUN), time.monotonic()
        while learner.step < learner.steps:
            stop = work.stop.is_set()
            if not stop:
                measures = learner.advance()
                logs.keep(learner.step, measures | {"memoryGiB": memory_gib(learner.scorer.device)})
                work.progress.report(learner.step, learner.steps, **measures)
            late = time.monotonic() - kept_at >= SECONDS_BETWEEN_CHECKPOINTS
            if stop or late or learner.step % every == 0 or learner.step == learner.steps:
                logs.keep(learner.step, {"validationLoss": keeping.keep(learner)})
                kept_at = time.monotonic()
            if stop:
                raise Stopped(
                    "StoppedAfterCheckpoint", f"reward was asked to end and kept step {learner.step} of {learner.steps}"
                )
    finally:
        logs.close()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the random numbers that dropout draws."""
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


# ---------------------------------------------------------------------------------------------------------------------
# What was learned


def measured(scorer: Scorer, held_out: Sequence[EncodedPair], batch_size: int) -> dict[str, Any]:
    """How often the better one of two answers scores higher, with an interval clustered by document, by whole and by
    origin; and how often it is the longer one, which a judge of length alone would live on."""
    margins = scorer.all_margins(held_out, batch_size).tolist()
    clusters = [item.pair.cluster for item in held_out]
    right = [float(margin > 0) for margin in margins]
    origins = sorted({item.pair.origin for item in held_out})
    return {
        "accuracy": statistics.mean(clusters, right).to_dict(),
        "margin": statistics.mean(clusters, margins).to_dict(),
        "longerChosen": sum(len(item.chosen) > len(item.rejected) for item in held_out) / len(held_out),
        "accuracyByOrigin": {
            origin: statistics.ratio(
                clusters,
                [value if item.pair.origin == origin else 0.0 for value, item in zip(right, held_out, strict=True)],
                [float(item.pair.origin == origin) for item in held_out],
            ).to_dict()
            for origin in origins
        },
    }
