"""Sets of characters of documents: spans merged, so that overlapping passages count once. It must not know what is
measured with them.
"""

from collections import defaultdict
from collections.abc import Iterable

Span = tuple[int, int]
"""First character and the one behind the last, in the document's text."""
Place = tuple[str, Span]
"""A document's digest and a span of its text."""


def merged(places: Iterable[Place]) -> dict[str, list[Span]]:
    """For each document its characters as spans that neither overlap nor touch, in order."""
    by_document: defaultdict[str, list[Span]] = defaultdict(list)
    for document, (start, end) in places:
        if start < end:
            by_document[document].append((start, end))
    return {document: _merged(spans) for document, spans in by_document.items()}


def characters(places: Iterable[Place]) -> int:
    """How many characters there are, each counted once."""
    return sum(end - start for spans in merged(places).values() for start, end in spans)


def shared(some: Iterable[Place], others: Iterable[Place]) -> int:
    """How many characters both have."""
    first, second = merged(some), merged(others)
    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for document, spans in first.items()
        for start, end in spans
        for other_start, other_end in second.get(document, ())
    )


def _merged(spans: list[Span]) -> list[Span]:
    whole: list[Span] = []
    for start, end in sorted(spans):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((start, end))
    return whole
