"""What PPO needs beside `tiny_training`: a published reward model, made in no time, and the parts of a step by themselves.

The reward model is a real one whose weights nobody trained: what it likes is an accident, and always the same.
"""

from dataclasses import replace
from typing import Any

import tiny_training
import torch
from mark_crds.job_input import JobInput
from mark_crds.job_output import Artifact
from mark_crds.names import REWARD_MODELS_FOLDER
from mark_trainer import base_model, lora
from mark_trainer.dataset import read_rows
from mark_trainer.outcome import keep_result
from mark_trainer.policy_step import PolicyTrainer
from mark_trainer.ppo import ids_of, prompts_of
from mark_trainer.prompts import PromptBuilder
from mark_trainer.publish import publish
from mark_trainer.roles import Roles
from mark_trainer.scalar_head import ScalarHead
from mark_trainer.workspace import Workspace

CPU = torch.device("cpu")
PPO = {
    "steps": 4,
    "rolloutsPerStep": 8,
    "minibatchSize": 4,
    "epochsPerStep": 2,
    "learningRate": "3e-3",
    "temperature": "0.05",  # the tiny model's logits are near each other; so cold it has a mind of its own
}


def job_input(*, ppo: dict[str, Any] | None = None, **changes: Any) -> JobInput:
    """The work of a run of lora, reward and ppo; `ppo` takes changed settings."""
    rlhf = {"enabled": True, "reward": {"epochs": 1, "rank": 2, "alpha": 4}, "ppo": PPO | (ppo or {})}
    return tiny_training.job_input(**{"stages": ["lora", "reward", "ppo"], "rlhf": rlhf, **changes})


def write_reward_model(workspace: Workspace, job: JobInput, uid: str = "run-1", scale: float = 0.1) -> Artifact:
    """Publishes the reward model as the stage reward would, as done by this run."""
    work = tiny_training.work_of(workspace, job, stage="reward", uid=uid)
    assert job.base_model is not None
    base = base_model.load(job.base_model, workspace.root, CPU, torch.float32)
    settings = job.lora.model_copy(update={"rank": job.rlhf.reward.rank, "alpha": job.rlhf.reward.alpha})
    model = lora.adapted(base, settings, packed=False)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=scale)
    folder = workspace.staging_folder(uid, "reward-model")
    lora.save_adapter(model, lora.adapter_weights(model), folder, job)
    ScalarHead(base.model.config.hidden_size, seed=3).save(folder)
    builder = PromptBuilder(base.tokenizer, lora.prompt_limit(job, base))
    made_of = {"base": {"digest": base.digest}, "prompt": {"digest": builder.digest(), "limitTokens": builder.limit}}
    published = publish(workspace, folder, REWARD_MODELS_FOLDER, {"kind": "rewardModel", **made_of})
    artifact = Artifact(kind="rewardModel", path=published.path, digest=published.digest)
    keep_result(work, work.done("Trained", "made for a test", (artifact,)))
    return artifact


def trainer_of(
    workspace: Workspace, job: JobInput, reward: Artifact, dtype: torch.dtype = torch.float64
) -> tuple[PolicyTrainer, list[list[int]]]:
    """What does the steps, before the first one, with a fresh policy; and the prompts of the training rows."""
    assert job.base_model is not None
    base = base_model.load(job.base_model, workspace.root, CPU, dtype)
    base = replace(base, model=base.model.to(dtype))
    builder = PromptBuilder(base.tokenizer, lora.prompt_limit(job, base))
    roles = Roles.of(base, job.lora, None, workspace.path(reward.path))
    for head in (roles.critic_head, roles.reward_head):
        head.to(dtype)
    rows = read_rows(workspace.path("datasets/contracts"), "train_sft.jsonl")
    trainer = PolicyTrainer(roles, builder, job.rlhf.ppo, new_tokens=job.evaluation.max_new_tokens, tokens_a_pass=800)
    return trainer, ids_of(prompts_of(rows, builder))
