"""Answers of a model to prompts: greedy, in batches of like length. It must not judge them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mark_trainer.prompts import Prompt, PromptBuilder

TOKENS_A_BATCH = 8192


@dataclass(frozen=True)
class Answer:
    """What the model wrote."""

    text: str
    """Up to the stop token or the first line break."""
    tokens: int
    stopped: bool
    """Whether the model ended by itself."""


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    builder: PromptBuilder,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    after_batch: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """The answers, in the order of the prompts. `after_batch` hears how many each batch brought."""
    results: list[Answer | None] = [None] * len(prompts)
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    while waiting:
        longest = len(prompts[waiting[-1]].ids)
        take = max(1, TOKENS_A_BATCH // (longest + max_new_tokens))
        batch, waiting = waiting[-take:], waiting[:-take]
        # Padding is on the left, so that all answers begin at the same place; generate() numbers the positions from
        # the attention mask.
        ids = torch.full((len(batch), longest), builder.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            prompt = torch.tensor(prompts[index].ids)
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=builder.stop,
            pad_token_id=builder.tokenizer.pad_token_id,
        )[:, longest:].tolist()
        for row, index in enumerate(batch):
            results[index] = _read(written[row], builder)
        after_batch(len(batch))
    return [result for result in results if result is not None]


def _read(ids: list[int], builder: PromptBuilder) -> Answer:
    stopped = builder.stop in ids
    kept = ids[: ids.index(builder.stop)] if stopped else ids
    return Answer(text=first_line(builder.decode(kept)), tokens=len(kept), stopped=stopped)


def first_line(text: str) -> str:
    """An answer up to its first line break: a base model does not stop by itself, it writes the next question."""
    return text.strip().split("\n", 1)[0].strip()
