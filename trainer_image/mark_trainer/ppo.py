"""The stage ppo: moves the policy towards answers that the reward model scores higher, and publishes its adapter.

It reads top to bottom: prompts, roles, steps with checkpoints, publication. A step draws answers, has them scored, and
learns from them for some epochs. Everything random in it follows from seed and step, so a checkpoint holds no random
state. One process does it. It must not learn from validation rows, train the reward model or evaluate.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mark_crds.job_input import digest_of
from mark_crds.job_output import Artifact, Result
from mark_crds.names import ADAPTERS_FOLDER

from mark_trainer import base_model, checkpoints, statistics
from mark_trainer.audit import refuse_shared_documents
from mark_trainer.base_model import BaseModel
from mark_trainer.dataset import TRAIN_FILE, VALIDATION_FILE, Row, read_rows
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.lora import (
    CHECKPOINTS_OF_A_RUN,
    SECONDS_BETWEEN_CHECKPOINTS,
    device_of,
    number_type,
    prompt_limit,
    save_adapter,
    versions,
)
from mark_trainer.policy_step import PolicyTrainer
from mark_trainer.prompts import TEMPLATE_VERSION, PromptBuilder
from mark_trainer.publish import provenance_of, publish, verify_folder
from mark_trainer.ranks import Rank
from mark_trainer.roles import Roles
from mark_trainer.tracking import Logs, memory_gib
from mark_trainer.workspace import Work

HELD_OUT_ROWS = 32  # whose answers are scored before the first step and after the last one
CHECKPOINTS_FOLDER = "checkpoints-ppo"
# What progress tells of a step; the logs have all of it.
TOLD = ("score", "kl", "entropy", "policyLoss", "valueLoss", "learningRate", "gradNorm", "tokensPerSecond")


@dataclass(frozen=True)
class Prompted:
    """A row and its prompt, as evaluation asks it with passages."""

    row: Row
    ids: list[int]


def run(work: Work) -> Result:
    """Optimise the policy; returns where its adapter was published and how it went."""
    started = time.monotonic()
    job, settings = work.job_input, work.job_input.rlhf.ppo
    if settings.steps == 0:
        raise UserMistake("NoSteps", "rlhf.ppo.steps: is 0, so nothing would be trained; set at least 1")
    if job.base_model is None:
        raise UserMistake("NoBaseModel", "baseModel: the stage ppo needs one; set baseModel.path")
    device = device_of(Rank())
    dtype = number_type(job.lora, device)
    base = base_model.load(job.base_model, work.workspace.root, device, dtype)

    # ---- prompts ----------------------------------------------------------------------------------------------------
    dataset_folder = work.dataset_folder()
    dataset_digest = verify_folder(dataset_folder, work.workspace.relative(dataset_folder))
    training_rows = read_rows(dataset_folder, TRAIN_FILE)
    validation_rows = read_rows(dataset_folder, VALIDATION_FILE)
    refuse_shared_documents(training_rows, validation_rows)
    limit = prompt_limit(job, base)
    builder = PromptBuilder(base.tokenizer, limit)
    prompts = prompts_of(training_rows, builder)
    held_out = prompts_of(validation_rows[:HELD_OUT_ROWS], builder)

    # ---- roles ------------------------------------------------------------------------------------------------------
    parent = work.made("adapter", "lora")
    reward = work.made("rewardModel", "reward")
    if reward is None:
        raise UserMistake("NoRewardModel", "stages: ppo needs the reward model of this run; add reward before it")
    for artifact in (parent, reward):
        refuse_foreign(work, artifact, base, builder)
    roles = Roles.of(
        base, job.lora, work.workspace.path(parent.path) if parent else None, work.workspace.path(reward.path)
    )
    provenance = {
        "baseDigest": base.digest,
        "datasetDigest": dataset_digest,
        "templateDigest": builder.digest(),
        "parentDigest": parent.digest if parent else "",
        "rewardDigest": reward.digest,
        "settingsDigest": digest_of(
            {"ppo": settings.to_dict(), "promptLimitTokens": limit, "newTokens": job.evaluation.max_new_tokens}
        ),
    }

    # ---- steps ------------------------------------------------------------------------------------------------------
    steps = settings.steps
    trainer = PolicyTrainer(
        roles,
        builder,
        settings,
        new_tokens=job.evaluation.max_new_tokens,
        tokens_a_pass=job.lora.batch_size * job.lora.max_length,
    )
    keeper = Keeper(work, trainer, provenance)
    done = keeper.resume()
    if "before" not in trainer.history:
        trainer.history["before"] = held_out_measures(trainer, held_out, work.raise_if_stopped)
    work.progress.report(done, steps)
    with contextlib.closing(Logs(work, done=done)) as logs:
        for step in range(done, steps):
            leave_if_asked = functools.partial(keeper.leave_if_asked, step)
            leave_if_asked()
            measures = trainer.step(step, ids_of(prompts), leave_if_asked) | {"memoryGiB": memory_gib(device)}
            logs.keep(step + 1, measures)
            work.progress.report(step + 1, steps, **{name: measures[name] for name in TOLD})
            keeper.keep_when_due(step + 1)
    after = held_out_measures(trainer, held_out, functools.partial(keeper.leave_if_asked, steps))
    learned = held_out_findings(held_out, trainer.history["before"], after)

    # ---- publication ------------------------------------------------------------------------------------------------
    unpublished = work.workspace.staging_folder(work.run_uid, "adapter")
    save_adapter(roles.model, roles.policy_adapter(), unpublished, job)
    manifest = {
        "kind": "adapter",
        "run": {"namespace": job.namespace, "name": job.name, "replayKey": job.replay_key},
        "base": {**job.base_model.to_dict(), "digest": base.digest, "family": base.model.config.model_type},
        "dataset": {"path": work.workspace.relative(dataset_folder), "digest": dataset_digest},
        "prompt": {"template": TEMPLATE_VERSION, "digest": provenance["templateDigest"], "limitTokens": limit},
        "parent": {"path": parent.path, "digest": parent.digest} if parent else None,
        "rewardModel": {"path": reward.path, "digest": reward.digest},
        "settings": {**settings.to_dict(), "maxNewTokens": job.evaluation.max_new_tokens},
        "schedule": {"name": "linear to zero", "steps": steps, "updates": steps * trainer.updates_a_step},
        "precision": str(dtype).removeprefix("torch."),
        "rollouts": {
            "drawn": steps * settings.rollouts_per_step,
            "prompts": len(prompts),
            "tooLong": len(training_rows) - len(prompts),
        },
        "heldOut": learned,
        "liveModules": sorted({name.split(".lora_")[0] for name in roles.trained["policy"]}),
        "versions": versions(),
    }
    published = publish(work.workspace, unpublished, ADAPTERS_FOLDER, manifest)
    first, last = trainer.history["firstStep"], trainer.history["lastStep"]
    return work.done(
        "Trained",
        f"{steps} steps of {settings.rollouts_per_step} answers; the mean score went from {first['score']:.3f} to "
        f"{last['score']:.3f}, on held-out questions from {learned['before']['score']:.3f} to "
        f"{learned['after']['score']:.3f}, {learned['after']['kl']:.2f} nats an answer away from where it began",
        (Artifact(kind="adapter", path=published.path, digest=published.digest),),
        family="reinforcementLearning",
        steps=steps,
        rollouts=steps * settings.rollouts_per_step,
        prompts=len(prompts),
        promptsTooLong=len(training_rows) - len(prompts),
        firstScore=first["score"],
        lastScore=last["score"],
        lastKl=last["kl"],
        lastEntropy=last["entropy"],
        lastStoppedShare=last["stoppedShare"],
        heldOutScoreBefore=learned["before"]["score"],
        heldOutScoreAfter=learned["after"]["score"],
        heldOutKl=learned["after"]["kl"],
        heldOutStoppedShare=learned["after"]["stoppedShare"],
        tokensPerSecond=last["tokensPerSecond"],
        seconds=round(time.monotonic() - started, 1),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What it starts from


def prompts_of(rows: Sequence[Row], builder: PromptBuilder) -> list[Prompted]:
    """The rows whose prompt fits, with the passages that were retrieved for them where there are any."""
    found = []
    for row in rows:
        passages = [passage.text for passage in row.contexts] if row.contexts else None
        prompt = builder.prompt(row.question, passages)
        if prompt is not None:
            found.append(Prompted(row, prompt.ids))
    if not found:
        raise UserMistake("NoRowFits", "lora.maxLength: no question fits the prompt; raise it")
    return found


def refuse_foreign(work: Work, artifact: Artifact | None, base: BaseModel, builder: PromptBuilder) -> None:
    """Adapter and reward model must have been trained on this base model, behind these prompts."""
    if artifact is None:
        return
    made_of = provenance_of(work.workspace.path(artifact.path), artifact.path)
    if made_of["base"]["digest"] != base.digest:
        raise BadData(
            "OtherBaseModel", f"{artifact.path}: was trained on another base model than baseModel names; name that one"
        )
    if made_of["prompt"]["digest"] != builder.digest():
        raise BadData(
            "OtherTemplate", f"{artifact.path}: was trained with another prompt template or tokenizer; train it again"
        )


# ---------------------------------------------------------------------------------------------------------------------
# What happens beside the steps


class Keeper:
    """Decides when a checkpoint is written, seals it, and leaves when a Pod is asked to end."""

    def __init__(self, work: Work, trainer: PolicyTrainer, provenance: dict[str, str]) -> None:
        self.work, self.trainer, self.provenance = work, trainer, provenance
        self.steps = trainer.settings.steps
        self.every = max(1, self.steps // CHECKPOINTS_OF_A_RUN)
        self.folder = work.run_folder / CHECKPOINTS_FOLDER
        self.staged = work.run_folder / "tmp" / f"ppo-checkpoint-attempt-{work.attempt}"
        self.last_kept: tuple[int | None, float] = (None, time.monotonic())  # step, and when it was kept

    def resume(self) -> int:
        """How many steps are done; the newest whole checkpoint of this very work is loaded."""
        self.folder.mkdir(exist_ok=True)
        newest = checkpoints.newest_after_clearing(self.staged, self.folder, self.provenance)
        if newest is None:
            return 0
        self.trainer.load(newest)
        self.last_kept = (checkpoints.step_of(newest), time.monotonic())
        print(f"ppo: goes on from {newest.name} of {self.steps} steps", flush=True)
        return checkpoints.step_of(newest)

    def keep_when_due(self, step: int) -> None:
        late = time.monotonic() - self.last_kept[1] >= SECONDS_BETWEEN_CHECKPOINTS
        if late or step % self.every == 0 or step == self.steps:
            self.keep(step)

    def keep(self, step: int) -> None:
        if self.last_kept[0] == step:
            return
        self.staged.mkdir(parents=True)
        self.trainer.save(self.staged)
        checkpoints.publish(self.staged, self.folder, step, self.provenance)
        self.work.progress.kept(step)
        self.last_kept = (step, time.monotonic())

    def leave_if_asked(self, step: int) -> None:
        """For moments in which the weights are those behind `step` steps."""
        if self.work.stop.is_set():
            self.keep(step)
            raise Stopped("StoppedAfterCheckpoint", f"ppo was asked to end and kept step {step} of {self.steps}")


def ids_of(prompts: Sequence[Prompted]) -> list[list[int]]:
    return [prompt.ids for prompt in prompts]


def held_out_measures(
    trainer: PolicyTrainer, held_out: Sequence[Prompted], before_batch: Callable[[], None]
) -> list[dict[str, float]]:
    """What becomes of each held-out question, answered by the same drawn numbers every time."""
    return [
        {"score": found.score, "kl": found.kl, "stoppedShare": float(found.rollout.stopped)}
        for found in trainer.experience(ids_of(held_out), "held out", before_batch)
    ]


def held_out_findings(
    held_out: Sequence[Prompted], before: Sequence[dict[str, float]], after: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Means over the answers to held-out questions, and how much the score rose, with its interval by cluster."""
    clusters = [prompt.row.document.cluster for prompt in held_out]
    rise = [last["score"] - first["score"] for first, last in zip(before, after, strict=True)]
    means = [
        {name: sum(measures[name] for measures in found) / len(found) for name in found[0]} for found in (before, after)
    ]
    return {
        "questions": len(held_out),
        "before": means[0],
        "after": means[1],
        "scoreRise": statistics.mean(clusters, rise).to_dict(),
    }
