"""How well a page was read: how much of it looks like text, and how far two readers agree on it.

It must not open files or decide what becomes of a page.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

POOR_QUALITY = 60
"""A page below this percentage is reported: its letters are coded in a way that no reader can know, as a rule."""
DISAGREEMENT = 80
"""Two readers that share a lower percentage of a page's words disagree."""

_LONGEST_WORD = 45
_VOWELS = frozenset("aeiouy")
_MOST_CONSONANTS = 8
_FILL = re.compile(r"[._…·-]{4,}")
_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]+")
# Not assigned, for private use, half a character, or a control: no writer means to print these.
_NO_TEXT = frozenset(["Cn", "Co", "Cs", "Cc"])


def quality(text: str) -> int:
    """Percent of a page's printed characters that stand in words which look like text; 0 for a page without any.

    Rows of dots and lines to write on count for nothing.
    """
    printed = like_text = 0
    for word in text.split():
        counted, looking = _counted(word)
        printed += counted
        like_text += looking
    return 100 * like_text // printed if printed else 0


def agreement(left: str, right: str) -> int | None:
    """Percent of the words that two readings of a page share, of those of the longer one; None when both are empty."""
    counts = [Counter(_words(text)) for text in (left, right)]
    longer = max(count.total() for count in counts)
    return 100 * (counts[0] & counts[1]).total() // longer if longer else None


def _words(text: str) -> list[str]:
    """Runs of letters and digits; a word that is broken at a line's end counts as its two parts in both readings."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold().replace("\u00ad", " "))


@lru_cache(maxsize=100_000)
def _counted(word: str) -> tuple[int, int]:
    """How many of a word's characters count, and how many of these look like text."""
    printed = 0 if _FILL.fullmatch(word) else len(word)
    return printed, printed if _looks_like_text(word) else 0


def _looks_like_text(word: str) -> bool:
    if "\ufffd" in word or any(unicodedata.category(character) in _NO_TEXT for character in word):
        return False
    if "://" in word or "@" in word:
        return word.isascii()
    parts = re.findall(r"[^\W_]+", word)
    # A mark alone, such as § or a dash; several in a row come from a font without a table of its letters.
    return all(map(_is_part_of_text, parts)) if parts else len(word) <= 2


def _is_part_of_text(part: str) -> bool:
    if part.isdecimal() or re.fullmatch(r"[0-9]+[^\W\d_]{1,2}|[^\W\d_]{1,8}[0-9]+", part):
        return True
    if not part.isalpha() or len(part) > _LONGEST_WORD:
        return False
    plain = unicodedata.normalize("NFD", part.casefold())
    if not plain[0].isascii():
        # Another script than the Latin one, whose words this cannot judge.
        return True
    if len(part) <= 3 or (part.isupper() and len(part) <= 5):
        return True
    runs = _CONSONANTS.findall(plain)
    return bool(_VOWELS & set(plain)) and max(map(len, runs), default=0) <= _MOST_CONSONANTS
