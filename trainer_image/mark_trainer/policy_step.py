"""One step of PPO: answers are drawn and judged, and policy and critic learn from them for some epochs.

Everything random follows from the seed and the number of the step, so it needs no random state to go on. It must not
know files, runs or the dataset.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mark_crds.stages import Ppo
from safetensors.torch import load_file, save_file

from mark_trainer import policy_loss
from mark_trainer.failures import UserMistake
from mark_trainer.prompts import PromptBuilder
from mark_trainer.roles import Roles
from mark_trainer.rollouts import Rollout, draw_rollouts, passes_of, show
from mark_trainer.workspace import write_json

ADAM_EPSILON = 1e-5
GRADIENT_NORM = 1.0
# How far two computations of a log-probability may lie apart, in nats: with a cache or without, in this batch or that.
SLACK = {torch.bfloat16: 1e-1, torch.float32: 1e-3, torch.float64: 1e-3}
WEIGHTS_FILE, OPTIMIZER_FILE, HISTORY_FILE = "weights.safetensors", "optimizer.pt", "history.json"

Numbers = dict[str, float]


@dataclass(frozen=True)
class Experience:
    """An answer with all that a step learns from it; vectors have a number for each of its tokens."""

    rollout: Rollout
    score: float
    """The reward model's, before anything is taken off."""
    kl: float
    """How far the policy was from the reference over the whole answer, in nats."""
    entropy: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    """Whitened over the answers of the step."""
    returns: torch.Tensor


class PolicyTrainer:
    """Policy and critic, their optimizer, and what a step does to them."""

    def __init__(
        self, roles: Roles, builder: PromptBuilder, settings: Ppo, *, new_tokens: int, tokens_a_pass: int
    ) -> None:
        self.roles, self.settings = roles, settings
        self.new_tokens, self.tokens_a_pass = new_tokens, tokens_a_pass
        self.stop, self.pad = builder.stop, builder.tokenizer.pad_token_id
        self.temperature = float(settings.temperature)
        self.updates_a_step = settings.epochs_per_step * -(-settings.rollouts_per_step // settings.minibatch_size)
        self.optimizer = torch.optim.AdamW(roles.weights, lr=0.0, eps=ADAM_EPSILON, weight_decay=0.0)
        self.history: dict[str, Any] = {}
        """What the stage has to say at its end: measures of the first and the last step, and what it adds itself."""

    def step(self, step: int, prompts: Sequence[list[int]], before_batch: Callable[[], None]) -> Numbers:
        """Step number `step`, from 0; returns its measures. No weight has changed while `before_batch` is called."""
        started = time.monotonic()
        rate = float(self.settings.learning_rate) * (1 - step / self.settings.steps)
        experiences = self.experience(chosen_prompts(prompts, step, self.settings), f"step {step}", before_batch)
        learned = self.learn(experiences, step, rate)
        tokens = sum(len(experience.rollout.answer) for experience in experiences)
        measures = {
            **described(experiences),
            **learned,
            "learningRate": rate,
            "tokensPerSecond": tokens / (time.monotonic() - started),
        }
        self.history.setdefault("firstStep", measures)
        self.history["lastStep"] = measures
        return measures

    def experience(
        self, prompts: Sequence[list[int]], what_for: str, before_batch: Callable[[], None]
    ) -> list[Experience]:
        """An answer to each prompt, drawn by numbers that follow from the seed and what they are for, and judged."""
        source = torch.Generator().manual_seed(random.Random(f"{self.settings.seed}:{what_for}").getrandbits(63))
        rollouts = draw_rollouts(
            self.roles.speak_as("policy"),
            prompts,
            torch.rand(len(prompts), self.new_tokens, generator=source),
            stop=self.stop,
            pad=self.pad,
            temperature=self.temperature,
            before_batch=before_batch,
        )
        return self.judge(rollouts)

    @torch.no_grad()
    def judge(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        """What each role says of the answers, and the advantages that follow from it."""
        said: list[tuple[int, float, tuple[torch.Tensor, ...]]] = []
        for indexes in passes_of(rollouts, self.tokens_a_pass):
            shown = show([rollouts[index] for index in indexes], self.roles.device)
            log_probs, entropy = self.roles.log_probs("policy", shown, self.temperature)
            reference, _ = self.roles.log_probs("reference", shown, self.temperature)
            columns = (log_probs, entropy, reference, self.roles.values(shown))
            vectors = zip(*(column.cpu().split(shown.lengths) for column in columns), strict=True)
            said += zip(indexes, self.roles.scores(shown).tolist(), vectors, strict=True)
        said.sort(key=lambda of_one: of_one[0])
        found = [
            self.experience_of(rollout, score, *vectors)
            for rollout, (_, score, vectors) in zip(rollouts, said, strict=True)
        ]
        refuse_unlike_drawing(found, SLACK[self.roles.model.dtype])
        white = policy_loss.whitened(torch.cat([one.advantages for one in found]))
        parts = white.split([len(one.advantages) for one in found])
        return [replace(one, advantages=part) for one, part in zip(found, parts, strict=True)]

    def experience_of(
        self,
        rollout: Rollout,
        score: float,
        log_probs: torch.Tensor,
        entropy: torch.Tensor,
        reference: torch.Tensor,
        values: torch.Tensor,
    ) -> Experience:
        """One answer's rewards and what follows from them, its advantages not yet whitened."""
        settings = self.settings
        for name, said in {"score": torch.tensor(score), "log-probability": log_probs, "value": values}.items():
            refuse_no_number(said, f"a {name} of an answer")
        earned = score if rollout.stopped else score - float(settings.missing_stop_penalty)
        rewards = policy_loss.token_rewards(earned, log_probs, reference, float(settings.kl_coefficient))
        advantages, returns = policy_loss.advantages_of(
            rewards, values, float(settings.discount), float(settings.gae_lambda)
        )
        kl = policy_loss.kl_k3(log_probs, reference).sum().item()
        return Experience(rollout, score, kl, entropy, log_probs, values, advantages, returns)

    def learn(self, experiences: Sequence[Experience], step: int, rate: float) -> Numbers:
        """Some epochs of minibatches; returns the means of their measures."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        found: list[Numbers] = []
        for minibatch in minibatches(experiences, step, self.settings):
            measures = self.gradients(minibatch)
            if not found:
                refuse_moved(measures, SLACK[self.roles.model.dtype])
            norm = torch.nn.utils.clip_grad_norm_(self.roles.weights, GRADIENT_NORM)
            refuse_no_number(norm, "the gradient")
            if not self.optimizer.state:  # the very first update
                refuse_dead(self.roles)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            found.append(measures | {"gradNorm": norm.item()})
        return {name: sum(measures[name] for measures in found) / len(found) for name in found[0]}

    def gradients(self, minibatch: Sequence[Experience]) -> Numbers:
        """Adds the gradient of both losses, means over the minibatch's tokens, to the weights; returns the measures.

        Policy and critic share no weight, so each goes backward by itself, and only its own activations are held.
        """
        settings = self.settings
        tokens = sum(len(experience.advantages) for experience in minibatch)
        said: list[tuple[torch.Tensor, torch.Tensor]] = []
        policy = value = 0.0
        for indexes in passes_of([experience.rollout for experience in minibatch], self.tokens_a_pass):
            part = [minibatch[index] for index in indexes]
            shown = show([experience.rollout for experience in part], self.roles.device)

            old = flat([experience.log_probs for experience in part], shown.ids.device)
            advantages = flat([experience.advantages for experience in part], shown.ids.device)
            log_probs, _ = self.roles.log_probs("policy", shown, self.temperature)
            losses = policy_loss.policy_losses(log_probs, old, advantages, float(settings.clip_range))
            (losses.sum() / tokens).backward()
            policy += losses.sum().item() / tokens
            said.append((log_probs.detach(), old))

            old_values = flat([experience.values for experience in part], shown.ids.device)
            returns = flat([experience.returns for experience in part], shown.ids.device)
            losses = policy_loss.value_losses(
                self.roles.values(shown), old_values, returns, float(settings.value_clip_range)
            )
            (float(settings.value_coefficient) * losses.sum() / tokens).backward()
            value += losses.sum().item() / tokens
        new, old = (torch.cat(column) for column in zip(*said, strict=True))
        return {
            "policyLoss": policy,
            "valueLoss": value,
            "ratio": (new - old).exp().mean().item(),
            "clipFraction": policy_loss.clip_fraction(new, old, float(settings.clip_range)).item(),
            "approximateKl": policy_loss.approximate_kl(new, old).item(),
        }

    def save(self, folder: Path) -> None:
        """All that a step changes."""
        weights = {
            f"{role}.{name}": weight.detach().cpu().contiguous()
            for role, weights in self.roles.trained.items()
            for name, weight in weights.items()
        }
        save_file(weights, folder / WEIGHTS_FILE)
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER_FILE)
        write_json(folder / HISTORY_FILE, self.history)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        saved = load_file(folder / WEIGHTS_FILE)
        for role, weights in self.roles.trained.items():
            for name, weight in weights.items():
                weight.copy_(saved[f"{role}.{name}"])
        optimizer = torch.load(folder / OPTIMIZER_FILE, weights_only=True, map_location=self.roles.device)
        self.optimizer.load_state_dict(optimizer)
        self.history = json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))


def refuse_moved(measures: Numbers, slack: float) -> None:
    """The first update of a step must see the very policy that drew the answers."""
    limits = {
        "ratio": (abs(measures["ratio"] - 1), slack),
        "clipFraction": (measures["clipFraction"], slack),
        "approximateKl": (measures["approximateKl"], slack**2),
    }
    for name, (away, limit) in limits.items():
        if away > limit:
            raise UserMistake(
                "PolicyMoved",
                f"baseModel: {name} is {measures[name]:.3g} before the first update of a step, so the same tokens do "
                "not get the same probabilities twice; set lora.precision: float32, or use another base model",
            )


def refuse_dead(roles: Roles) -> None:
    """A gradient must reach every tensor that shall learn; where B is still zero it cannot reach A."""
    dead = [
        name
        for weights in roles.trained.values()
        for name, weight in weights.items()
        if weight.grad is None or (".lora_B." in name and not bool(weight.grad.abs().sum() > 0))
    ]
    if dead:
        raise UserMistake(
            "DeadAdapter",
            f"no gradient reaches {len(dead)} tensors of policy and critic, the first is {dead[0]}: "
            "this model family needs other target modules",
        )


def chosen_prompts(prompts: Sequence[list[int]], step: int, settings: Ppo) -> list[list[int]]:
    """The prompts of a step: all of them in a new order, then again in another one, cut into steps."""
    first = step * settings.rollouts_per_step
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(first, first + settings.rollouts_per_step):
        turn, within = divmod(place, len(prompts))
        if turn not in orders:
            orders[turn] = random.Random(f"prompts:{settings.seed}:{turn}").sample(range(len(prompts)), len(prompts))
        chosen.append(prompts[orders[turn][within]])
    return chosen


def minibatches(experiences: Sequence[Experience], step: int, settings: Ppo) -> Iterator[list[Experience]]:
    """Each epoch all answers of the step, in an order of its own."""
    for epoch in range(settings.epochs_per_step):
        shuffled = random.Random(f"minibatches:{settings.seed}:{step}:{epoch}").sample(experiences, len(experiences))
        for start in range(0, len(shuffled), settings.minibatch_size):
            yield shuffled[start : start + settings.minibatch_size]


def described(experiences: Sequence[Experience]) -> Numbers:
    """Means over the answers of a step; of the entropy, over their tokens."""
    count = len(experiences)
    return {
        "score": sum(experience.score for experience in experiences) / count,
        "kl": sum(experience.kl for experience in experiences) / count,
        "entropy": torch.cat([experience.entropy for experience in experiences]).mean().item(),
        "answerTokens": sum(len(experience.rollout.answer) for experience in experiences) / count,
        "stoppedShare": sum(experience.rollout.stopped for experience in experiences) / count,
    }


def flat(vectors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    return torch.cat(list(vectors)).to(device)


def refuse_unlike_drawing(experiences: Sequence[Experience], slack: float) -> None:
    """What is learned from must be what the answers were drawn from: cache, padding and batches may change nothing."""
    drawn = torch.cat([experience.rollout.log_probs for experience in experiences])
    seen = torch.cat([experience.log_probs for experience in experiences])
    apart = (drawn - seen).abs().mean().item()
    if apart > slack:
        raise UserMistake(
            "DrawnOtherwise",
            f"baseModel: a token's log-probability is {apart:.2g} nats another when an answer is drawn than when it is "
            "read as a whole; set lora.precision: float32, or use another base model",
        )


def refuse_no_number(values: torch.Tensor, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise UserMistake(
            "NotFinite",
            f"rlhf.ppo.learningRate: {name} became infinite or no number, and would again; lower it, or look for what "
            "is wrong with baseModel",
        )
