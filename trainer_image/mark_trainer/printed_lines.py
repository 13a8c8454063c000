"""The printed lines of one page with their places, asked of pdfium.

pdfium tells all characters of a page at once, but the place of one character only by a call from Python. So places are
asked for the two ends of a line, and for its words only where it may be several pieces that stand side by side. It must
not open files or decide what becomes of a line.
"""

import ctypes
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pypdfium2.raw as pdfium

from mark_trainer.clean_text import Line, in_margin

# What pdfium says where a line ends in a hyphen and the word goes on with the next line.
LINE_END_HYPHEN = "\x02"
_ROW = re.compile(r"[^\s\x02](?:[^\r\n\x02]*[^\s\x02])?\x02?|\x02")
_WORD = re.compile(r"[^\s\x02]*\x02|[^\s\x02]+")
_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
# A page number may stand beside a running title.
_NUMBER_AT_AN_END = re.compile(r"[0-9]+\s|.*\s[0-9]+\Z")
# So many rows tell whether a page has columns: where it has, more than half of the long rows show their gap.
_SAMPLE_ROWS = 5
# A row this much wider for its characters than the usual one has a gap somewhere; spaces of justified text are less.
_WIDE = 1.25
# A row this much taller than the usual one stands on several levels, or is a heading.
_TALL = 1.8
# A gap is wide from so many times the height of its line.
_GAP_HEIGHTS = 2.0
# In points; a line that is lower is a font's mistake.
_LEAST_HEIGHT = 4.0


Span = tuple[int, int]
"""The first character, by pdfium's index, and the one after the last."""


class _Characters:
    """The characters of a page, and where they stand."""

    def __init__(self, text_page: Any) -> None:
        self._handle = text_page.raw
        self.text = _text(self._handle, text_page.count_chars())
        self._begin, self._end = pdfium.FS_RECTF(), pdfium.FS_RECTF()
        self._to_begin, self._to_end = ctypes.byref(self._begin), ctypes.byref(self._end)

    def lines(self, spans: Iterable[Span]) -> list[Line]:
        """Each span with its place in points, taken from its first and last character."""
        # The loose box has the font's full height, so that lines without descenders stand level with the others.
        place, handle, begin, end = pdfium.FPDFText_GetLooseCharBox, self._handle, self._begin, self._end
        found = []
        for first, after in spans:
            text = self.text[first:after]
            # The mark for a hyphen has no place of its own.
            last = after - 2 if text[-1] == LINE_END_HYPHEN and len(text) > 1 else after - 1
            place(handle, first, self._to_begin)
            place(handle, last, self._to_end)
            bottom, top = min(begin.bottom, end.bottom), max(begin.top, end.top)
            found.append(Line(text, begin.left, end.right, bottom, top))
        return found

    def rows(self) -> list[Span]:
        return [match.span() for match in _ROW.finditer(self.text)]

    def words(self, row: Span | None = None) -> list[Span]:
        return [match.span() for match in _WORD.finditer(self.text, *(row or ()))]

    def has_wide_gap(self, row: Span) -> bool:
        """Whether two words of the row stand far from each other."""
        place, handle, begin, end = pdfium.FPDFText_GetLooseCharBox, self._handle, self._begin, self._end
        for space in _SPACE.finditer(self.text, *row):
            place(handle, space.start() - 1, self._to_begin)
            place(handle, space.end(), self._to_end)
            height = max(begin.top - begin.bottom, end.top - end.bottom, _LEAST_HEIGHT)
            if end.left - begin.right >= _GAP_HEIGHTS * height:
                return True
        return False


def lines_of(text_page: Any, page_height: float) -> list[Line]:
    """The pieces of lines of a page, in the order in which the file draws them."""
    characters = _Characters(text_page)
    spans = characters.rows()
    rows = characters.lines(spans)
    if any(characters.has_wide_gap(_middle(spans[number])) for number in _sample(rows)):
        return list(_pieces(characters.lines(characters.words())))
    usual = _Usual.of(rows)
    found: list[Line] = []
    for span, row in zip(spans, rows, strict=True):
        if usual.is_one_piece(row, page_height):
            found.append(row)
        else:
            found += _pieces(characters.lines(characters.words(span)))
    return found


def _sample(rows: Sequence[Line]) -> list[int]:
    """The positions of a few rows, evenly spread, of those that are long enough to stand in two columns."""
    longest = max((row.width for row in rows), default=0)
    long = [number for number, row in enumerate(rows) if row.width > longest / 2]
    return long[:: 1 + len(long) // _SAMPLE_ROWS]


def _middle(row: Span) -> Span:
    """The half of a row in which the gap between two columns would be."""
    quarter = (row[1] - row[0]) // 4
    return row[0] + quarter, row[1] - quarter


class _Usual(NamedTuple):
    """What rows of a page are like."""

    character_width: float
    height: float

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "_Usual":
        widths, heights = [line.width / len(line.text) for line in lines], [line.height for line in lines]
        return cls(statistics.median(widths or [0]), statistics.median(heights or [0]))

    def is_one_piece(self, line: Line, page_height: float) -> bool:
        """Whether a row surely is one piece: it runs from left to right, on one level, without a gap."""
        runs_on = 0 < line.width <= _WIDE * self.character_width * len(line.text)
        level = line.height <= _TALL * self.height
        return runs_on and level and not (in_margin(line, page_height) and _NUMBER_AT_AN_END.match(line.text))


def _pieces(words: Sequence[Line]) -> Iterator[Line]:
    """Words put together to pieces of lines: a wide gap or a new level begins a new piece."""
    piece, texts = words[0], [words[0].text]
    for word in words[1:]:
        if _goes_on(piece, word):
            texts.append(word.text)
            piece = Line("", piece.left, word.right, min(piece.bottom, word.bottom), max(piece.top, word.top))
        else:
            yield piece._replace(text=" ".join(texts))
            piece, texts = word, [word.text]
    yield piece._replace(text=" ".join(texts))


def _goes_on(piece: Line, word: Line) -> bool:
    """Whether a word stands on the level of the piece and near its end."""
    if min(piece.top, word.top) <= max(piece.bottom, word.bottom):
        return False
    height = max(piece.height, word.height, _LEAST_HEIGHT)
    return -height < word.left - piece.right < _GAP_HEIGHTS * height


def _text(handle: Any, count: int) -> str:
    """The characters of a page, each at pdfium's own index, with its mark for a hyphen at a line's end."""
    units = (ctypes.c_ushort * (count + 1))()
    written = pdfium.FPDFText_GetText(handle, 0, count, units) - 1
    text = bytes(units).decode("utf-16-le", errors="replace")[:written]
    if written == count == len(text):
        # The text at once says U+FFFE where the single character says 2.
        return text.replace("\ufffe", LINE_END_HYPHEN)
    # Characters without a place in the text, or beyond 16 bits, would shift the others.
    return "".join(chr(pdfium.FPDFText_GetUnicode(handle, index)) for index in range(count))
