"""Pieces of a document's clean text for retrieval: each an exact span, with borders where sentences end.

The same text and settings give the same pieces with the same ids. It must not know where pieces are kept.
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from mark_trainer.documents import Document

Span = tuple[int, int]

# Words whose full stop ends no sentence.
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|etc|vs?|inc|ltd|corp|co|mr|ms|dr|st|jan|feb|aug|sept|oct|nov|dec)"
    r"|\b[A-Z]|(?:^|\s)\(?[0-9]{1,3}(?:\.[0-9]+)*|(?:^|\s)[a-zA-Z])\.$",
    re.IGNORECASE,
)
# Those only in front of a number.
_NUMBERED = re.compile(r"\b(?:nos?|arts?|secs?|figs?|pp?)\.\s+[0-9]", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s+[\"'“‘(\[]?[A-Z0-9])")


@dataclass(frozen=True)
class Chunk:
    """A span of a document's text."""

    id: str
    text: str
    start: int
    end: int
    first_page: int
    last_page: int


def sentences(text: str) -> list[Span]:
    """The spans of the sentences; a paragraph's end always ends a sentence."""
    return list(_sentences(text))


def cut(document: Document, characters: int, overlap: int) -> list[Chunk]:
    """The chunks of a document: at most `characters` long, sharing at most `overlap` with the one before."""
    text = document.text
    units = [part for span in _sentences(text) for part in _short_enough(text, span, characters)]
    chunks = []
    begin, following = (units[0][0] if units else 0), 0
    while following < len(units):
        while following < len(units) and units[following][1] - begin <= characters:
            following += 1
        end = units[following - 1][1]
        chunks.append(_chunk(document, begin, end))
        if following < len(units):
            # The overlap leaves room for at least one new unit.
            earliest = max(end - overlap, units[following][1] - characters, begin + 1)
            begin = _overlap_start(text, units, following, earliest)
    return chunks


def chunk_id(document_digest: str, start: int, end: int, text: str) -> str:
    """The id of a chunk, from its content alone: the same file and settings give the same ids everywhere."""
    return hashlib.sha256(f"{document_digest}:{start}:{end}:{text}".encode()).hexdigest()[:32]


def page_of(page_starts: tuple[int, ...], offset: int) -> int:
    """The number, from 1, of the page on which the character at the offset stands."""
    return max(1, bisect_right(page_starts, offset))


def page_breaks(page_starts: tuple[int, ...], start: int, end: int) -> list[int]:
    """The offsets behind `start` and before `end` at which pages begin, each page's own."""
    return list(page_starts[bisect_right(page_starts, start) : bisect_left(page_starts, end)])


def _overlap_start(text: str, units: list[Span], following: int, earliest: int) -> int:
    """Where the next chunk begins: at a sentence if one begins late enough, else at a word."""
    limit = units[following][0]
    for start, _ in reversed(units[:following]):
        if start < earliest:
            break
        limit = start
    if limit < units[following][0]:
        return limit
    word = re.search(r"(?<=\s)\S", text[max(0, earliest - 1) : limit])
    return max(0, earliest - 1) + word.start() if word else limit


def _chunk(document: Document, start: int, end: int) -> Chunk:
    text = document.text[start:end]
    return Chunk(
        id=chunk_id(document.digest, start, end, text),
        text=text,
        start=start,
        end=end,
        first_page=page_of(document.page_starts, start),
        last_page=page_of(document.page_starts, end - 1),
    )


def _sentences(text: str) -> Iterator[Span]:
    offset = 0
    for paragraph in text.split("\n"):
        start = 0
        for mark in _SENTENCE_END.finditer(paragraph):
            if not _is_abbreviated(paragraph, start, mark.start() + 1):
                yield from _stripped(text, offset + start, offset + mark.end())
                start = mark.end()
        yield from _stripped(text, offset + start, offset + len(paragraph))
        offset += len(paragraph) + 1


def _is_abbreviated(paragraph: str, start: int, stop: int) -> bool:
    """Whether the full stop before `stop` belongs to an abbreviation."""
    numbered = _NUMBERED.search(paragraph, max(start, stop - 5), stop + 5)
    return bool(_ABBREVIATION.search(paragraph[start:stop])) or (numbered is not None and numbered.start() < stop)


def _stripped(text: str, start: int, end: int) -> Iterator[Span]:
    piece = text[start:end]
    if piece.strip():
        yield start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))


def _short_enough(text: str, span: Span, limit: int) -> Iterator[Span]:
    """A sentence longer than a chunk is cut where a clause ends, else at a word, else in the middle of one."""
    start, end = span
    while end - start > limit:
        window = text[start : start + limit + 1]
        clauses = [mark.end() for mark in re.finditer(r"[;:,](?=\s)", window) if mark.end() >= limit // 2]
        words = [mark.start() for mark in re.finditer(r"\s", window) if mark.start() > 0]
        border = start + (clauses or words or [limit])[-1]
        yield from _stripped(text, start, border)
        start = next((found for found, _ in _stripped(text, border, end)), end)
    if start < end:
        yield start, end
