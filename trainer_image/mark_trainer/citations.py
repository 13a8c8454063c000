"""Where an answer stands in its sources: a deterministic check, without a judge, that gives page and characters.

An answer is looked up as a whole. Where it is not found and quotes something, its quotations are looked up instead.

- verified: the words stand in a source exactly so;
- repaired: they do after differences of writing are taken away (white space, case, hyphens that a line's end put into a
  word, the shape of dashes, quotation marks and letters, punctuation at both ends); the span is that of the source's
  own words;
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
_SHAPES = str.maketrans("‘’‚‛“”„‟«»`´‐‑‒–—―−", "''''\"\"\"\"\"\"''-------")
# Characters that belong to the letter before them: marks, and the later parts of a Korean syllable.
_MARKS = "\u1160-\u11ff" + "".join(
    letter for letter in map(chr, range(0x300, 0x3100)) if unicodedata.category(letter)[0] == "M"
)
_LETTER = rf"(?:[^\W_]|[{_MARKS}])"
# What cuts a word at a line's end is no piece of the text: a hyphen there, and soft hyphens everywhere.
_PIECE = re.compile(rf"(?<=[^\W\d_])[-\u2010][^\S\n]*\n\s*(?=[^\W\d_])|\u00ad(?:[^\S\n]*\n\s*)?|(\s+|\S[{_MARKS}]*)")
# A place in the middle of a word or a number: 5-10, -5, 1,500 and 3.1 are one each.
_WITHIN = re.compile(
    rf"(?<={_LETTER})(?={_LETTER})|(?<=\d)(?=[-‐‑‒–−.,'’]\d)|(?<=\d[.,'’])(?=\d)"
    r"|(?<=[-‐‑‒–−])(?<![^\W\d_].)(?=\d)"
)
# A sign or a point may belong to a number.
_LEADING = re.compile(r"(?:[\s;:!?\"'()\[\]{}*_]|[-.,](?!\d))*")
_TRAILING = string.whitespace + ".,;:!?\"'()[]{}*_-"


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
    bare = _plain(claim).text.rstrip(_TRAILING)
    bare = bare[_LEADING.match(bare).end() :]
    for source in sources if bare else ():
        plain = _plain(source.text)
        start = _whole_words(bare, plain.text)
        if start is not None:
            return _placed(claim, "repaired", source, plain.starts[start], plain.ends[start + len(bare) - 1])
    return None


@dataclass(frozen=True)
class _Plain:
    """A text without differences of writing, and which characters of the original each of its characters is."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]


@lru_cache(maxsize=256)
def _plain(text: str) -> _Plain:
    letters: list[str] = []
    starts, ends = array("L"), array("L")
    for piece in _PIECE.finditer(text):
        for letter in _evened(piece[1]) if piece[1] else ():
            letters.append(letter)
            starts.append(piece.start())
            ends.append(piece.end())
    return _Plain("".join(letters), starts, ends)


@lru_cache(maxsize=10_000)
def _evened(piece: str) -> str:
    """White space, or one character with its marks, as one of all the ways to write it."""
    if piece.isspace():
        return " "
    # A superscript, a fraction or a number in a circle must not become digits of the number beside it.
    raised = unicodedata.decomposition(piece[0]).startswith(("<super>", "<sub>"))
    form: Literal["NFC", "NFKC"] = "NFC" if raised or unicodedata.category(piece[0]) == "No" else "NFKC"
    return unicodedata.normalize(form, piece.translate(_SHAPES)).casefold()


def _whole_words(words: str, text: str) -> int | None:
    """Where the words begin in the text, not in the middle of a word or number; None when they are not there."""
    start = text.find(words)
    while start >= 0:
        if not _WITHIN.match(text, start) and not _WITHIN.match(text, start + len(words)):
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
