"""What a passage is about, in a few words: its section's heading, else the terms that set it apart from other passages.

It must not use a model, so that topics are the same everywhere.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from mark_trainer.collection import Passage

_LONGEST_HEADING_WORDS = 6


class Topics:
    """Names the topics of a collection's passages."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._count = len(passages)
        self._holders = Counter(term for passage in passages for term in set(_terms(passage.text)))

    def of(self, passage: Passage, heading: str) -> str:
        """The topic of a passage below a heading; the heading may be empty."""
        words = re.sub(r"^(?:section|article|part|exhibit)?\s*[0-9ivx.]*\s*[–—:-]?\s*", "", heading.casefold()).split()
        if 0 < len(words) <= _LONGEST_HEADING_WORDS and _terms(heading):
            return " ".join(words).strip(" .:;,")
        return " / ".join(self._distinctive(passage.text, 2)) or "other"

    def _distinctive(self, text: str, count: int) -> list[str]:
        weights = {
            term: times * math.log((1 + self._count) / (1 + self._holders[term]))
            for term, times in Counter(_terms(text)).items()
        }
        return sorted(weights, key=lambda term: (-weights[term], term))[:count]


def _terms(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{4,}", text.casefold())
