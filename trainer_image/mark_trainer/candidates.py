"""Questions that may become rows: where each comes from, and which of them must not stand beside another.

It must not retrieve, and not choose among questions that are all good.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mark_trainer.chunks import page_of
from mark_trainer.collection import Content, Passage
from mark_trainer.documents import Document
from mark_trainer.near_duplicates import cluster, says
from mark_trainer.questions import Question, questions, stands_alone

GENERATOR_VERSION = 2
SAME_QUESTION_OVERLAP = 0.6

Split = Literal["train", "val"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A question that may become a row."""

    id: str
    document: Document
    question: Question
    chunk: Passage
    split: Split

    @property
    def answer(self) -> str:
        return self.document.text[slice(*self.question.answer)]

    @property
    def sentence(self) -> str:
        return self.document.text[slice(*self.question.sentence)]

    @property
    def page(self) -> int:
        """The page on which the answer begins, from 1."""
        return page_of(self.document.page_starts, self.question.answer[0])

    def held_by(self, passage: Passage) -> bool:
        """Whether a passage holds the whole answer."""
        start, end = self.question.answer
        return passage.document == self.document.digest and passage.start <= start and end <= passage.end

    def is_said_by(self, passage: Passage) -> bool:
        """Whether the words of the answer stand in a passage, be it of another document."""
        return self.held_by(passage) or says(passage.text, self.answer)

    def left_out(self, reason: str, **why: Any) -> Row:
        """What is kept of a candidate that does not become a row."""
        return {
            "id": self.id,
            "question": self.question.text,
            "document": self.document.digest,
            "page": self.page,
            "span": list(self.question.answer),
            "generator": self.question.generator,
            "split": self.split,
            "reason": reason,
            **why,
        }


def candidates(content: Content, splits: Mapping[str, Split]) -> Iterator[Candidate]:
    """Every question of every document whose answer stands whole in a passage."""
    passages: defaultdict[str, list[Passage]] = defaultdict(list)
    for passage in content.passages:
        passages[passage.document].append(passage)
    for document in content.documents:
        for question in questions(document):
            chunk = _holder(passages[document.digest], question)
            if chunk is not None:
                identity = hashlib.sha256(f"{chunk.id}:{question.answer}:{question.text}".encode()).hexdigest()[:16]
                yield Candidate(identity, document, question, chunk, splits[document.digest])


def only_standing_alone(found: Sequence[Candidate]) -> tuple[list[Candidate], list[Row]]:
    """The candidates that name their document and point at nothing a reader does not see; and the others."""
    kept, left_out = [], []
    for candidate in found:
        if names_its_document(candidate.question.text, candidate.document.title):
            kept.append(candidate)
        else:
            left_out.append(candidate.left_out("DoesNotStandAlone"))
    return kept, left_out


def names_its_document(question: str, title: str) -> bool:
    """Whether a question says by itself what it is about: `Section 4` is nothing without the title beside it."""
    return f'"{title}"' in question and stands_alone(question.replace(title, ""))


def without_repeats(found: Sequence[Candidate]) -> tuple[list[Candidate], list[Row]]:
    """One candidate of each group whose source sentences are equal or nearly so, a validation one if there is any.

    So a training row never repeats a validation row. Also returns the others.
    """
    groups = cluster({candidate.id: candidate.sentence for candidate in found}, SAME_QUESTION_OVERLAP)
    first: dict[str, Candidate] = {}
    for candidate in sorted(found, key=lambda candidate: candidate.split != "val"):
        first.setdefault(groups[candidate.id], candidate)
    kept, left_out = [], []
    for candidate in found:
        chosen = first[groups[candidate.id]]
        if chosen is candidate:
            kept.append(candidate)
        else:
            reason = "RepeatsExactly" if chosen.sentence == candidate.sentence else "RepeatsNearly"
            left_out.append(candidate.left_out(reason, of=chosen.id, ofSplit=chosen.split))
    return kept, left_out


def draw(seed: int, *words: str) -> str:
    """A value that depends on the seed and the words alone, to sort by."""
    return hashlib.sha256(":".join([str(seed), *words]).encode()).hexdigest()


def in_turns(items: Sequence[Any], kind: Any) -> list[Any]:
    """The items in an order in which kinds alternate as long as they can."""
    seen: Counter[Any] = Counter()
    turns = []
    for item in items:
        turns.append((seen[kind(item)], len(turns)))
        seen[kind(item)] += 1
    return [items[position] for _, position in sorted(turns)]


def _holder(passages: Sequence[Passage], question: Question) -> Passage | None:
    """The first passage that holds the whole sentence, else the whole answer."""
    for start, end in (question.sentence, question.answer):
        for passage in passages:
            if passage.start <= start and end <= passage.end:
                return passage
    return None
