"""Whether a question finds the passage that it was made from, and which other passages it finds: by exact search, with
the very embeddings that retrieval uses.

It must not build rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mark_crds.stages import DataPrep

from mark_trainer.candidates import Candidate, Row, Split, draw
from mark_trainer.collection import Content, Passage

# How far down a question's own passage is looked for.
DEEPEST_RANK = 50
# Questions of a document that are looked up together: few, because most are never needed.
_BLOCK = 8


@dataclass(frozen=True)
class Found:
    """A candidate with what its question finds."""

    candidate: Candidate
    contexts: tuple[Passage, ...]
    """The passages to show with the question, the nearest first."""
    rank: int | None
    """Place, from 1, of the first passage that holds the answer; None beyond the deepest rank that was looked at."""
    retrieved: bool
    """Whether that place is within topK."""


class RoundTrip:
    """Looks candidates up as they are needed, and leaves out those that the settings do not allow."""

    def __init__(
        self, settings: DataPrep, content: Content, training: set[str], after_block: Callable[[], None]
    ) -> None:
        # Imported late: what can fail on the documents alone has failed by now.
        from mark_trainer.embedding import Embedder

        self.left_out: list[Row] = []
        self._settings = settings
        self._content = content
        self._training = training
        self._embedder = Embedder()
        self._after_block = after_block

    def passing(self, candidates: Sequence[Candidate]) -> Iterator[Found]:
        """The candidates, in order, that find their own passage or need not."""
        strict = {"Off": (), "Train": ("train",), "All": ("train", "val")}[self._settings.round_trip_filter]
        for first in range(0, len(candidates), _BLOCK):
            self._after_block()
            for found in self._look(candidates[first : first + _BLOCK]):
                if found.retrieved or found.candidate.split not in strict:
                    yield found
                else:
                    self.left_out.append(found.candidate.left_out("NotRetrieved", retrievalRank=found.rank))

    def nearest(self, questions: Sequence[str], split: Split, count: int) -> list[list[Passage]]:
        """The nearest passages of each question; training sees passages of training documents alone."""
        if not questions:
            return []
        allowed = self._training if split == "train" else None
        return self._content.search(self._embedder.embed(questions), count, allowed)

    def _look(self, candidates: Sequence[Candidate]) -> Iterator[Found]:
        split = candidates[0].split
        passages = self.nearest([candidate.question.text for candidate in candidates], split, DEEPEST_RANK)
        for candidate, found in zip(candidates, passages, strict=True):
            ranks = (rank for rank, passage in enumerate(found, 1) if candidate.held_by(passage))
            rank = next(ranks, None)
            retrieved = rank is not None and rank <= self._settings.top_k
            contexts = self._training_contexts if split == "train" else self._validation_contexts
            yield Found(candidate, tuple(contexts(candidate, found, retrieved)), rank, retrieved)

    def _validation_contexts(self, candidate: Candidate, found: list[Passage], retrieved: bool) -> list[Passage]:
        return found[: self._settings.top_k]

    def _training_contexts(self, candidate: Candidate, found: list[Passage], retrieved: bool) -> list[Passage]:
        """The topK nearest, the answer's own always among them, and then hard negatives."""
        top_k = self._settings.top_k
        shown = found[:top_k]
        if not retrieved:
            place = int(draw(self._settings.seed, "oracle", candidate.id), 16) % len(shown)
            shown = shown[:-1]
            shown.insert(place, candidate.chunk)
        negatives = (passage for passage in found[len(shown) :] if not candidate.is_said_by(passage))
        return [*shown, *islice(negatives, self._settings.hard_negatives)]
