"""The four who take part in PPO: policy, reference, critic and reward model. All are one frozen base model; the adapter
that is put on it tells who speaks.

Nobody drops anything out, so the same tokens always get the same numbers. It must not draw answers or learn.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from mark_crds.stages import Lora
from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mark_trainer import scalar_head
from mark_trainer.answer_loss import LOGITS_AT_ONCE
from mark_trainer.base_model import BaseModel
from mark_trainer.lora import adapted, leave_out_model_card
from mark_trainer.policy_loss import log_probs_of
from mark_trainer.rollouts import Shown
from mark_trainer.scalar_head import ScalarHead

Role = Literal["policy", "reference", "critic", "reward"]
POLICY_ADAPTER = "default"  # the one name that peft saves at the top of a folder, where lora's adapter is too


class Roles:
    """The base model with every role's adapter, one of them at work at a time."""

    def __init__(
        self, model: PeftModel, adapters: Mapping[Role, str | None], critic: ScalarHead, reward: ScalarHead
    ) -> None:
        model.eval()
        self.model = model
        self.adapters = adapters
        self.critic_head, self.reward_head = critic, reward.requires_grad_(False)
        self.trained: dict[Role, dict[str, torch.nn.Parameter]] = {
            "policy": _of_adapter(model, POLICY_ADAPTER),
            "critic": {**_of_adapter(model, "critic"), **dict(critic.named_parameters(prefix="head"))},
        }

    @classmethod
    def of(cls, base: BaseModel, settings: Lora, parent: Path | None, reward: Path) -> Self:
        """Policy and reference begin as the adapter in `parent`, without one as the base model; critic and reward model
        as the reward model in `reward`."""
        if parent is None:
            model = adapted(base, settings, packed=False)
        else:
            model = PeftModel.from_pretrained(base.model, parent, is_trainable=True, local_files_only=True)
            model.load_adapter(parent, "reference", local_files_only=True)
            leave_out_model_card(model)
        heads = {name: scalar_head.load(reward, model, name) for name in ("critic", "reward")}
        adapters: dict[Role, str | None] = {
            "policy": POLICY_ADAPTER,
            "reference": "reference" if parent is not None else None,
            "critic": "critic",
            "reward": "reward",
        }
        return cls(model, adapters, heads["critic"], heads["reward"])

    def policy_adapter(self) -> dict[str, torch.Tensor]:
        """The policy's weights on the CPU, by the names under which an adapter is saved."""
        return {name: weight.detach().cpu().clone() for name, weight in self.trained["policy"].items()}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """All that learns, in an order that does not change."""
        return [weight for weights in self.trained.values() for weight in weights.values()]

    def speak_as(self, role: Role) -> PreTrainedModel:
        """The causal model as the role has it; only what the role learns with asks for gradients. What it computed must
        have gone backward before the next one speaks."""
        adapter = self.adapters[role]
        self.model.base_model.set_adapter([] if adapter is None else [adapter], inference_mode=True)
        for weight in self.trained.get(role, {}).values():
            weight.requires_grad_(True)
        return self.model.get_base_model()

    def log_probs(self, role: Role, shown: Shown, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each drawn token, and the entropy before it, in nats."""
        model = self.speak_as(role)
        hidden = scalar_head.hidden_states(model, shown.ids, shown.mask)[shown.before]
        return token_log_probs(model, hidden, shown.drawn, temperature)

    def values(self, shown: Shown) -> torch.Tensor:
        """The critic's word before each drawn token."""
        model = self.speak_as("critic")
        return self.critic_head(scalar_head.hidden_states(model, shown.ids, shown.mask)[shown.before])

    def scores(self, shown: Shown) -> torch.Tensor:
        """The reward model's word on each answer."""
        return scalar_head.score(self.speak_as("reward"), self.reward_head, shown.ids, shown.mask)


def token_log_probs(
    model: PreTrainedModel, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_probs_of` behind the model's head, some tokens at a time: the logits are made twice rather than kept."""
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)

    def of_part(hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(hidden.to(head.weight.dtype))
        return log_probs_of(logits if softcap is None else softcap * torch.tanh(logits / softcap), tokens, temperature)

    at_once = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    parts = [
        checkpoint(of_part, hidden[start : start + at_once], tokens[start : start + at_once], use_reentrant=False)
        for start in range(0, len(tokens), at_once)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _of_adapter(model: PeftModel, name: str) -> dict[str, torch.nn.Parameter]:
    return {path: weight for path, weight in model.named_parameters() if f".{name}." in path and ".lora_" in path}
