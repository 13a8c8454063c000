"""From the lines of pages, with their places, to the text a lawyer would read: columns one after the other, no running
headers, no hyphens of the typesetter, one line a paragraph.

It must not open files or know a PDF library.
"""

import re
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

# What a PDF library may give for a hyphen or soft hyphen at the end of a line.
_LINE_END_HYPHENS = "\u0002\u00ad\ufffe"
_LIGATURES = str.maketrans(
    {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st", "\ufb06": "st"}
)
_SPACES = re.compile(r"[\s\u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MARKER = re.compile(r"(\(?([0-9]{1,3}|[a-zA-Z]|[ivxIVX]{1,4})[.)]|[0-9]+(\.[0-9]+)+\.?|[•*–-])\s")
_PAGE_NUMBER = re.compile(r"(.*\bpage\s+)?[0-9]+(\s*(of|/)\s*[0-9]+)?", re.IGNORECASE)
_TERMINAL = (".", ";", ":", "!", "?")
_CLOSING = "\"'”’)]"
# Running lines stand in this share of the page, at its top and at its bottom.
_MARGIN_ZONE = 0.12
# A prefix that keeps its hyphen when a line ends after it.
_HYPHENATED_PREFIXES = frozenset(["non", "self", "co", "third", "royalty", "cross", "well", "sub", "ex", "quasi"])


class Line(NamedTuple):
    """A piece of one printed line, in points from the page's lower left corner."""

    text: str
    left: float
    right: float
    bottom: float
    top: float

    @property
    def height(self) -> float:
        return self.top - self.bottom

    @property
    def width(self) -> float:
        return self.right - self.left


@dataclass(frozen=True)
class Page:
    """The lines of a page in the order in which the file draws them."""

    width: float
    height: float
    lines: tuple[Line, ...]
    scan: bool = False
    """Whether it is a picture with at most a stamp on it."""


@dataclass(frozen=True)
class CleanText:
    """One paragraph a line, and where each page begins in it."""

    text: str
    page_starts: tuple[int, ...]


def clean(pages: Sequence[Page]) -> CleanText:
    """The text of a document. An empty page begins where the next one does."""
    pages = without_running_lines([_tidied(page) for page in pages])
    text = _GrowingText(pages)
    starts: list[int | None] = []
    gutter = None
    for page in pages:
        start = None
        # The last page of two columns may have only one, which is no wider for that.
        gutter = gutter_of(page) or (gutter if gutter is not None and _is_free(page, gutter) else None)
        for column in columns(page, gutter):
            right, leading = max(line.right for line in column), _leading(column)
            for line in column:
                offset = text.add(line, right, leading)
                start = offset if start is None else start
        starts.append(start)
    following, page_starts = text.length, []
    for start in reversed(starts):
        following = following if start is None else start
        page_starts.append(following)
    return CleanText(text="".join(text.parts), page_starts=tuple(reversed(page_starts)))


def without_running_lines(pages: Sequence[Page]) -> list[Page]:
    """The pages without headers and footers: lines in the margins that repeat, and page numbers."""
    # Few lines stand in a margin, so only these are looked at twice.
    margins = [
        {line: _places(line, number) for line in page.lines if in_margin(line, page.height)}
        for number, page in enumerate(pages)
    ]
    counts = Counter(place for margin in margins for place in set().union(*margin.values()))
    needed = max(2, (len(pages) + 1) // 2)

    def runs(line: Line, places: set[tuple[str, int]]) -> bool:
        return any(counts[place] >= needed for place in places) or bool(_PAGE_NUMBER.fullmatch(line.text))

    return [
        replace(page, lines=tuple(line for line in page.lines if line not in margin or not runs(line, margin[line])))
        for page, margin in zip(pages, margins, strict=True)
    ]


def columns(page: Page, gutter: float | None) -> list[list[Line]]:
    """The lines of a page in reading order, grouped by column; lines across the gutter are a group of their own."""
    if gutter is None:
        return [_whole_lines(page.lines)] if page.lines else []
    found: list[list[Line]] = []
    full: list[Line] = []
    left: list[Line] = []
    right: list[Line] = []

    def finish(*groups: list[Line]) -> None:
        for group in groups:
            if group:
                found.append(_whole_lines(group))
                group.clear()

    for line in sorted(page.lines, key=lambda line: (-line.top, line.left)):
        if line.left < gutter < line.right:
            finish(left, right)
            full.append(line)
        else:
            finish(full)
            (left if line.right <= gutter else right).append(line)
    finish(full, left, right)
    return found


class _GrowingText:
    """Joins lines to paragraphs as they come."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self.parts: list[str] = []
        self.length = 0
        self._pages = pages
        self._last: Line | None = None

    @cached_property
    def _words(self) -> Counter[str]:
        """How often the document has each word; many documents have no hyphen that asks for it."""
        return Counter(_words("\n".join(line.text for page in self._pages for line in page.lines)))

    def add(self, line: Line, column_right: float, leading: float) -> int:
        """Append a line; returns the offset at which it begins."""
        if self._last is not None:
            if _begins_paragraph(self._last, line, column_right, leading):
                self._append("\n")
            else:
                self._join(line.text)
        offset = self.length
        self._append(line.text)
        # A line at the end of one column is compared with the first of the next by its own column's width.
        self._last = line._replace(right=column_right) if _reaches(line, column_right) else line
        return offset

    def _join(self, following: str) -> None:
        ends_in_hyphen = self.parts[-1][-1] == "-"
        before = re.search(r"([^\W\d_]+)-$", self.parts[-1]) if ends_in_hyphen else None
        after = re.match(r"[^\W\d_]+", following) if before else None
        if before is None or after is None:
            self._append(" ")
        elif not self._keeps_hyphen(before[1].casefold(), after[0]):
            self.parts[-1] = self.parts[-1][:-1]
            self.length -= 1

    def _keeps_hyphen(self, before: str, after: str) -> bool:
        if self._words[before + after.casefold()]:
            return False
        compound = f"{before}-{after.casefold()}"
        return bool(self._words[compound]) or before in _HYPHENATED_PREFIXES or not after[0].islower()

    def _append(self, piece: str) -> None:
        self.parts.append(piece)
        self.length += len(piece)


def _begins_paragraph(above: Line, line: Line, column_right: float, leading: float) -> bool:
    ended = above.text.rstrip(_CLOSING).endswith(_TERMINAL)
    if (ended or above.text.endswith((",", " and", " or"))) and _MARKER.match(line.text):
        return True
    distance = above.bottom - line.bottom
    if distance <= 0 or distance > 12 * line.height:
        # A new column or page: the sentence goes on unless it ended.
        return ended or (above.right < column_right and line.text[0].isupper())
    if distance > 1.3 * leading or abs(above.height - line.height) > 0.25 * max(above.height, line.height):
        return True
    if ended and distance > 1.4 * line.height and line.text[0].isupper():
        # Paragraphs of one line each have no other leading; in a double-spaced text this ends only a sentence.
        return True
    # The first word would have fitted on the line above, so somebody broke the line on purpose.
    first_word = len(line.text.partition(" ")[0])
    return above.right + (first_word + 2) * _character_width(line) < column_right


def _reaches(line: Line, column_right: float) -> bool:
    return line.right > column_right - 12 * _character_width(line)


def _character_width(line: Line) -> float:
    return line.width / max(1, len(line.text))


def _leading(column: Sequence[Line]) -> float:
    """The usual distance from line to line, in points."""
    distances = [above.bottom - below.bottom for above, below in pairwise(column)]
    return statistics.median_low([distance for distance in distances if distance > 0] or [1e9])


def gutter_of(page: Page) -> float | None:
    """Where the space between two columns is, or None for a page with one."""
    lines = page.lines
    if len(lines) < 6:
        return None
    begins, ends = sorted(line.left for line in lines), sorted(line.right for line in lines)
    left, right = begins[0], ends[-1]
    places = [left + (right - left) * step / 100 for step in range(35, 66)]
    crossing = [bisect_left(begins, place) - bisect_right(ends, place) for place in places]
    fewest = min(crossing)
    best = [place for place, count in zip(places, crossing, strict=True) if count == fewest]
    gutter = best[len(best) // 2]
    lefts = [line for line in lines if line.right <= gutter]
    rights = [line for line in lines if line.left >= gutter]
    if min(len(lefts), len(rights)) < 3 or fewest > 0.25 * len(lines):
        return None
    bottoms = sorted(line.bottom for line in lefts)
    beside = sum(_stands_beside(line, bottoms) for line in rights)
    # A list whose numbers stand alone looks like two columns, but its left one is narrow.
    wide = statistics.median(line.width for line in lefts) > 0.2 * (right - left)
    return gutter if wide and beside >= 0.5 * len(rights) else None


def _stands_beside(line: Line, bottoms: Sequence[float]) -> bool:
    """Whether one of the lines with these lower borders, in ascending order, is level with this one."""
    above = bisect_left(bottoms, line.bottom - line.height / 2)
    return above < len(bottoms) and bottoms[above] < line.bottom + line.height / 2


def _is_free(page: Page, gutter: float) -> bool:
    return sum(line.left < gutter < line.right for line in page.lines) <= 0.25 * len(page.lines)


def _whole_lines(pieces: Sequence[Line]) -> list[Line]:
    """Pieces that stand side by side, joined to lines."""
    lines: list[Line] = []
    for piece in pieces:
        if lines and _same_level(lines[-1], piece) and piece.left >= lines[-1].right - 1:
            last = lines[-1]
            lines[-1] = Line(
                text=f"{last.text} {piece.text}",
                left=last.left,
                right=piece.right,
                bottom=min(last.bottom, piece.bottom),
                top=max(last.top, piece.top),
            )
        else:
            lines.append(piece)
    return lines


def _same_level(left: Line, right: Line) -> bool:
    shared = min(left.top, right.top) - max(left.bottom, right.bottom)
    return shared > 0.5 * min(left.height, right.height)


def _tidied(page: Page) -> Page:
    lines = (line if _is_tidy(line.text) else line._replace(text=_tidy(line.text)) for line in page.lines)
    return replace(page, lines=tuple(line for line in lines if line.text))


def _is_tidy(text: str) -> bool:
    """Whether `_tidy` would surely change nothing; it is so for most lines, and costs a tenth."""
    return text.isascii() and text.isprintable() and "  " not in text and text == text.strip()


def _tidy(text: str) -> str:
    text = text.translate(_LIGATURES).rstrip()
    if text and text[-1] in _LINE_END_HYPHENS:
        text = text[:-1] + "-"
    return _SPACES.sub(" ", _INVISIBLE.sub("", text)).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text.casefold())


def _places(line: Line, page_number: int) -> set[tuple[str, int]]:
    """The line's words and height (in tenths of an inch), as they are and with a number that may count the pages."""
    height = round(line.bottom / 7)
    found = {(line.text, height)}
    numbers = list(re.finditer(r"[0-9]{1,12}", line.text))
    for number in numbers[:1] + numbers[-1:]:
        ahead = int(number[0]) - page_number
        found.add((f"{line.text[: number.start()]}page+{ahead}{line.text[number.end() :]}", height))
    return found


def in_margin(line: Line, page_height: float) -> bool:
    """Whether a line stands where running headers and footers do."""
    return line.bottom > page_height * (1 - _MARGIN_ZONE) or line.top < page_height * _MARGIN_ZONE
