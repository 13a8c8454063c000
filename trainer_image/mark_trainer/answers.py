"""Answers of a model to prompts: greedy, in batches of like length. It must not judge them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from mark_trainer.prompts import Prompt, PromptBuilder

TOKENS_A_BATCH = 8192


@dataclass(frozen=True)
class Answer:
    """What the model wrote."""

    text: str
    """Up to the stop token or the first line break."""
    stopped: bool
    """Whether the model ended by itself, with the stop token on the first line."""


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
            stopping_criteria=StoppingCriteriaList([_FirstLine(builder.tokenizer, longest)]),
        )[:, longest:].tolist()
        for row, index in enumerate(batch):
            results[index] = _read(written[row], builder)
        after_batch(len(batch))
    return [result for result in results if result is not None]


class _FirstLine(StoppingCriteria):
    """Ends each answer of a batch behind its first line: what follows is not read, so it is not written either."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens
        self._breaks_line: dict[int, bool] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        done = [
            self._breaks(token) and "\n" in self._tokenizer.decode(input_ids[row, self._prompt_tokens :]).lstrip()
            for row, token in enumerate(input_ids[:, -1].tolist())
        ]
        return torch.tensor(done, device=input_ids.device)

    def _breaks(self, token: int) -> bool:
        if token not in self._breaks_line:
            self._breaks_line[token] = "\n" in self._tokenizer.decode([token])
        return self._breaks_line[token]


def _read(ids: list[int], builder: PromptBuilder) -> Answer:
    stopped = builder.stop in ids
    kept = ids[: ids.index(builder.stop)] if stopped else ids
    text = str(builder.tokenizer.decode(kept, skip_special_tokens=True))
    # Behind the first line there is padding, and some models pad with their stop token.
    return Answer(text=first_line(text), stopped=stopped and "\n" not in text.lstrip())


def first_line(text: str) -> str:
    """An answer up to its first line break: a base model does not stop by itself, it writes the next question."""
    return text.strip().split("\n", 1)[0].strip()
