"""Where an answer stands in its sources: a deterministic check, without a judge, that gives page and characters.

An answer is looked up as a whole. Where it is not found and quotes something, its quotations are looked up instead.

- verified: the words stand in a source exactly so;
- repaired: they do after differences of writing are taken away (white space, case, hyphens, the shape of quotation
  marks and letters, punctuation at both ends); the span is that of the source's own words;
- unverified: they stand in none of the sources. That is not yet to say that they are wrong;
- unchecked: there is nothing to look up, or nothing to look it up in.

It must not read files, and not judge whether an answer is right.
"""

import re
import string
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

State = Literal["verified", "repaired", "unverified", "unchecked"]
STATES: tuple[State, ...] = ("verified", "repaired", "unverified", "unchecked")
FEWEST_QUOTED_WORDS = 3
CHARACTERS_AROUND = 80

_QUOTATION = re.compile(r"“([^“”]+)”|\"([^\"]+)\"|«([^«»]+)»|„([^„“”]+)[“”]")
_HYPHENS = "-\u00ad\u2010\u2011\u2012\u2013\u2014"
_SHAPES = str.maketrans("‘’‚‛“”„‟«»`´", "''''\"\"\"\"\"\"''")
_AT_ENDS = string.punctuation + string.whitespace


@dataclass(frozen=True)
class Source:
    """A text that an answer may stand in: a passage as it was shown, or a whole document."""

    text: str
    document: str
    """Digest of the document."""
    start: int | None = 0
    """Place of the text's first character in the document's text; None where it is not known."""
    page: int | None = 1
    """Page of that character, from 1; None where it is not known."""
    page_breaks: tuple[int, ...] = ()
    """Places in the document's text, behind `start`, at which further pages begin."""
    path: str = ""
    title: str = ""
    chunk_id: str | None = None
    """Set for a passage."""

    def span_of(self, start: int, end: int) -> tuple[int, int] | None:
        """Characters of the text as characters of the document."""
        return None if self.start is None else (self.start + start, self.start + end)

    def page_of(self, start: int) -> int | None:
        """The page of a character of the text."""
        if self.start is None or self.page is None:
            return self.page
        return self.page + bisect_right(self.page_breaks, self.start + start)


def check(answer: str, sources: Sequence[Source], *, nothing_said: bool = False) -> list[dict[str, Any]]:
    """The citations of an answer, as the predictions record them: one, or one for each quotation in it."""
    if nothing_said or not _says_something(answer):
        return [_without_place(answer, "unchecked", "the model gave no answer")]
    if not sources:
        return [_without_place(answer, "unchecked", "no source is at hand")]
    whole = find(answer, sources)
    quoted = [next(filter(None, found)).strip() for found in _QUOTATION.findall(answer)]
    quoted = [quotation for quotation in quoted if len(quotation.split()) >= FEWEST_QUOTED_WORDS]
    if whole is not None or not quoted:
        return [whole or _without_place(answer, "unverified", "stands in no source")]
    return [find(part, sources) or _without_place(part, "unverified", "stands in no source") for part in quoted]


def state_of(citations: Sequence[dict[str, Any]]) -> State:
    """The state of an answer: that of its worst citation."""
    found = {citation["state"] for citation in citations}
    return next(state for state in ("unverified", "repaired", "verified", "unchecked") if state in found)


def find(claim: str, sources: Sequence[Source]) -> dict[str, Any] | None:
    """The first place where the words stand, exactly in any source before nearly in any; None when in none."""
    exact = claim.strip()
    for source in sources:
        start = _whole_words(exact, source.text)
        if start is not None:
            return _placed(claim, "verified", source, start, start + len(exact))
    bare = _plain(claim).text.strip(_AT_ENDS)
    for source in sources if bare else ():
        plain = _plain(source.text)
        start = _whole_words(bare, plain.text)
        if start is not None:
            last = plain.places[start + len(bare) - 1]
            return _placed(claim, "repaired", source, plain.places[start], last + 1)
    return None


@dataclass(frozen=True)
class _Plain:
    """A text without differences of writing, and the place that each of its characters has in the original."""

    text: str
    places: Sequence[int]


@lru_cache(maxsize=256)
def _plain(text: str) -> _Plain:
    letters: list[str] = []
    places = array("L")
    behind_hyphen = False
    for place, character in enumerate(text):
        if character in _HYPHENS:
            behind_hyphen = True  # white space behind it is the end of a line that cuts a word
            continue
        if character.isspace():
            if not behind_hyphen and letters and letters[-1] != " ":
                letters.append(" ")
                places.append(place)
            continue
        behind_hyphen = False
        for letter in unicodedata.normalize("NFKC", character).casefold().translate(_SHAPES):
            letters.append(letter)
            places.append(place)
    return _Plain("".join(letters), places)


def _whole_words(words: str, text: str) -> int | None:
    """Where the words begin in the text, not in the middle of a word; None when they are not there."""
    start = text.find(words)
    while start >= 0:
        end = start + len(words)
        cuts_first = start > 0 and text[start - 1].isalnum() and words[0].isalnum()
        cuts_last = end < len(text) and text[end].isalnum() and words[-1].isalnum()
        if not cuts_first and not cuts_last:
            return start
        start = text.find(words, start + 1)
    return None


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _without_place(claim: str, state: State, why: str) -> dict[str, Any]:
    return {"claim": claim, "state": state, "why": why}


def _placed(claim: str, state: State, source: Source, start: int, end: int) -> dict[str, Any]:
    text = source.text
    return {
        "claim": claim,
        "state": state,
        "source": "document" if source.chunk_id is None else "passage",
        "chunkId": source.chunk_id,
        "document": {"digest": source.document, "path": source.path, "title": source.title},
        "page": source.page_of(start),
        "span": source.span_of(start, end),
        "quote": text[start:end],
        "before": text[max(0, start - CHARACTERS_AROUND) : start],
        "after": text[end : end + CHARACTERS_AROUND],
    }
