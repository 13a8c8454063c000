"""Answers that a policy draws at random, and the tensors that show them to a model again. It must not judge or learn.

What is drawn depends on the model and on the numbers that the caller brings, one for each token that may be drawn: not
on the device's random numbers, the other prompts of a batch, or the base model's own habits of generation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mark_trainer.policy_loss import log_probs_of

TOKENS_A_BATCH = 8192


@dataclass(frozen=True)
class Rollout:
    """A prompt and the answer that was drawn for it."""

    prompt: list[int]
    answer: list[int]
    """Token ids, nothing behind the stop token."""
    log_probs: torch.Tensor
    """Nats of each token of the answer in the moment it was drawn, at the temperature of the drawing."""
    stopped: bool
    """Whether the answer ends with the stop token, and not where its room did."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


@torch.no_grad()
def draw_rollouts(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    numbers: torch.Tensor,
    *,
    stop: int,
    pad: int,
    temperature: float,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """An answer to each prompt, in their order; batches are of like length, padded on the left.

    `numbers` is (prompts, tokens of an answer at most), each in [0, 1). `pad` may be the stop token: what belongs to
    an answer is told by its first stop token alone.
    """
    # What the base model's folder says of generation, such as a penalty for repetition, is no part of the policy.
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=pad)
    results: list[Rollout | None] = [None] * len(prompts)
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    while waiting:
        before_batch()
        longest = len(prompts[waiting[-1]])
        take = max(1, TOKENS_A_BATCH // (longest + numbers.shape[1]))
        batch, waiting = waiting[-take:], waiting[:-take]
        ids = torch.full((len(batch), longest), pad)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, longest - len(prompts[index]) :] = 1
        drawing = Drawing(numbers[batch].to(model.device), longest, temperature)
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=numbers.shape[1],
            do_sample=False,  # Drawing leaves the drawn token alone
            logits_processor=LogitsProcessorList([drawing]),
        )[:, longest:].tolist()
        log_probs = torch.stack(drawing.log_probs, dim=1).cpu()
        for row, index in enumerate(batch):
            answer = up_to_stop(written[row], stop)
            results[index] = Rollout(prompts[index], answer, log_probs[row, : len(answer)], answer[-1] == stop)
    return [result for result in results if result is not None]


class Drawing(LogitsProcessor):
    """Draws the next token of each row and leaves generation no other choice."""

    def __init__(self, numbers: torch.Tensor, prompt_tokens: int, temperature: float) -> None:
        self.numbers, self.prompt_tokens, self.temperature = numbers, prompt_tokens, temperature
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self.prompt_tokens
        tokens = tokens_at(scores / self.temperature, self.numbers[:, place])
        self.log_probs.append(log_probs_of(scores, tokens, self.temperature)[0])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def tokens_at(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The token of each row whose stretch of the cumulated probabilities holds the number."""
    cumulated = logits.double().softmax(-1).cumsum(-1)
    # The sum is 1 but for rounding; scaled by it, a number below 1 stays below the end.
    ends = numbers[:, None].double() * cumulated[:, -1:]
    return torch.searchsorted(cumulated, ends, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def up_to_stop(ids: list[int], stop: int) -> list[int]:
    """The ids up to the first stop token, with it; all of them where there is none."""
    return ids[: ids.index(stop) + 1] if stop in ids else ids


@dataclass(frozen=True)
class Shown:
    """Rollouts as a model reads them in one forward pass."""

    ids: torch.Tensor
    """(rollouts, longest), padded on the right."""
    mask: torch.Tensor
    """1 where a token stands."""
    before: torch.Tensor
    """Whether the token behind this place was drawn: there a policy chooses it, and a critic values the choice."""
    drawn: torch.Tensor
    """The drawn tokens of all rollouts, one behind another, as `hidden[before]` has their places."""
    lengths: list[int]
    """Drawn tokens of each rollout."""


def show(rollouts: Sequence[Rollout], device: torch.device) -> Shown:
    """The tensors of a forward pass; padding holds token 0, which no mask depends on."""
    longest = max(len(rollout.ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), longest, dtype=torch.long)
    mask, before = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        end = len(rollout.ids)
        ids[row, :end] = torch.tensor(rollout.ids)
        mask[row, :end] = 1
        before[row, len(rollout.prompt) - 1 : end - 1] = True
    drawn = torch.tensor([token for rollout in rollouts for token in rollout.answer])
    lengths = [len(rollout.answer) for rollout in rollouts]
    return Shown(ids.to(device), mask.to(device), before.to(device), drawn.to(device), lengths)


def passes_of(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """The rollouts' places in the list, dealt out to forward passes of like lengths; the longest ones first."""
    passes: list[list[int]] = []
    for index in sorted(range(len(rollouts)), key=lambda index: -len(rollouts[index].ids)):
        room = TOKENS_A_BATCH // len(rollouts[passes[-1][0]].ids) if passes else 0
        if passes and len(passes[-1]) < max(1, room):
            passes[-1].append(index)
        else:
            passes.append([index])
    return passes
