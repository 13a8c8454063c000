"""Questions that their document does not answer: one of another document, asked of one that says nothing of the kind.

Nothing in the passages gives the answer either, though they may look as if they did. It must not touch answerable rows.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mark_trainer.candidates import Candidate, draw, names_its_document
from mark_trainer.chunks import sentences
from mark_trainer.documents import Document

GENERATOR = "unanswerable/1"
# By which law a document is governed can be asked of any, and its words say nothing of the answer.
_STAYS = frozenset(["governingLaw"])
# A document speaks of the matter when one of its sentences has this share of the question's words.
SPEAKS_OF_IT_SHARE = 0.4
# Words of the questions' own shapes.
_FRAME = frozenset(
    re.findall(
        r"\w+",
        "according what does mean applies when where whenever unless once under which condition "
        "exception make rule purpose reason words fill sentence continue section first",
    )
)


@dataclass(frozen=True)
class Moved:
    """A question that is asked of a document which does not answer it."""

    id: str
    text: str
    document: Document
    source: Candidate
    """Where it was made, and what it was answered by."""
    largest_share: float
    """The largest share of the question's words in any one sentence of the document."""


def moved_questions(
    found: Sequence[Candidate], documents: Sequence[Document], clusters: Mapping[str, str], seed: int
) -> Iterator[Moved]:
    """Each candidate's question at most once, asked of a document of another cluster that says nothing about it.

    Documents get about equally many. All candidates and documents must be of one side of the split.
    """
    indexes = {document.digest: _SentenceIndex(document) for document in documents}
    given: Counter[str] = Counter()
    movable = [candidate for candidate in found if candidate.question.generator not in _STAYS]
    for candidate in sorted(movable, key=lambda candidate: draw(seed, "moved", candidate.id)):
        words = _words(candidate.question.text.replace(candidate.document.title, "")) - _FRAME
        targets = sorted(
            documents, key=lambda document: (given[document.digest], draw(seed, candidate.id, document.digest))
        )
        for document in targets:
            if clusters[document.digest] == clusters[candidate.document.digest]:
                continue
            share = indexes[document.digest].largest_share(words)
            text = candidate.question.text.replace(f'"{candidate.document.title}"', f'"{document.title}"')
            if share < SPEAKS_OF_IT_SHARE and names_its_document(text, document.title):
                given[document.digest] += 1
                identity = hashlib.sha256(f"{candidate.id}:{document.digest}".encode()).hexdigest()[:16]
                yield Moved(identity, text, document, candidate, share)
                break


class _SentenceIndex:
    """In which sentences of a document a word stands."""

    def __init__(self, document: Document) -> None:
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for number, (start, end) in enumerate(sentences(document.text)):
            for word in _words(document.text[start:end]):
                self._places[word].append(number)

    def largest_share(self, words: set[str]) -> float:
        """The share of the words that the sentence with most of them has; 1 for no words at all."""
        counts = Counter(number for word in words for number in self._places.get(word, ()))
        return max(counts.values(), default=0) / len(words) if words else 1.0


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{4,}", text.casefold()))
