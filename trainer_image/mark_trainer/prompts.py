"""The one way in which a question becomes token ids, for training and for evaluation alike.

Text never turns into control tokens: a document that contains `<eos>` is read letter by letter. It must not know
what is done with a prompt.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

TEMPLATE_VERSION = "mark-prompt-1"
CLOSED_BOOK_OPENING = "Answer the question.\n\n"
RETRIEVED_OPENING = "Answer the question from the passages.\n\n"
PASSAGE_OPENING = "Passage {number}: "
PASSAGE_END = "\n\n"
QUESTION_OPENING = "Question: "
ANSWER_OPENING = "\nAnswer:"
ANSWER_SPACE = " "
# The answer of every row whose document does not answer its question; an evaluation takes it for abstention.
REFUSAL = "The document does not say."

SHORTEST_PASSAGE_TOKENS = 16  # what is left of a passage below this says nothing


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt, and what became of its passages."""

    ids: list[int]
    passages: int
    """Passages in the prompt, the first ones of those given."""
    cut: bool
    """Whether passages were shortened or left out to fit."""
    shown: tuple[str, ...] = ()
    """The text of each passage in the prompt, as far as it is there."""


class PromptBuilder:
    """Builds prompts of at most `limit` tokens and answers that end with the stop token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.stop = tokenizer.eos_token_id
        self._start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def prompt(self, question: str, passages: Sequence[str] | None = None) -> Prompt | None:
        """The prompt of a question: closed book without passages, else with as many of them as fit.

        Passages give way from the last one on. None when the question alone is too long.
        """
        opening = CLOSED_BOOK_OPENING if passages is None else RETRIEVED_OPENING
        head = self._start + self.encode(opening)
        tail = self.encode(QUESTION_OPENING + question.strip() + ANSWER_OPENING)
        room = self.limit - len(head) - len(tail)
        if room < 0:
            return None
        middle: list[int] = []
        shown: list[str] = []
        cut = False
        for number, passage in enumerate(passages or (), start=1):
            before = self.encode(PASSAGE_OPENING.format(number=number))
            passage = passage.strip()
            text = self.encode(passage)
            after = self.encode(PASSAGE_END)
            room_for_text = room - len(middle) - len(before) - len(after)
            if room_for_text < min(len(text), SHORTEST_PASSAGE_TOKENS):
                cut = True
                break
            cut = cut or room_for_text < len(text)
            middle += before + text[:room_for_text] + after
            shown.append(passage if room_for_text >= len(text) else self._beginning(passage, text[:room_for_text]))
        return Prompt(ids=head + middle + tail, passages=len(shown), cut=cut, shown=tuple(shown))

    def _beginning(self, text: str, ids: list[int]) -> str:
        """What the first tokens of a text say: its longest beginning that they agree with."""
        decoded = str(self.tokenizer.decode(ids)).lstrip()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, decoded, strict=False))
        return text[: sum(1 for _ in same)]

    def answer(self, text: str) -> list[int]:
        """The token ids of an answer as the model shall write it, the stop token last."""
        return [*self.encode(ANSWER_SPACE + text.strip()), self.stop]

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without control tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens up to the stop token."""
        kept = list(ids)
        if self.stop in kept:
            kept = kept[: kept.index(self.stop)]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()

    def digest(self) -> str:
        """sha256 over the template and the tokenizer: equal digests give equal prompts."""
        template = [
            TEMPLATE_VERSION,
            CLOSED_BOOK_OPENING,
            RETRIEVED_OPENING,
            PASSAGE_OPENING,
            PASSAGE_END,
            QUESTION_OPENING,
            ANSWER_OPENING,
            ANSWER_SPACE,
        ]
        return hashlib.sha256(
            json.dumps([template, tokenizer_facts(self.tokenizer)], sort_keys=True).encode()
        ).hexdigest()


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """What determines the ids: vocabulary, merges, splitting and control tokens."""
    control = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # Padding and truncation are switches of the moment, not part of what the tokenizer is.
        return [{name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}, control]
    return [sorted(tokenizer.get_vocab().items()), control]
