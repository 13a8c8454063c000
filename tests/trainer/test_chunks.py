"""Sentences and chunks: exact spans, limits, determinism."""

import pytest
from mark_trainer.chunks import cut, page_breaks, page_of, sentences
from mark_trainer.documents import Document

TEXT = "\n".join(
    f"Clause {number}. The tenant, e.g. a company, pays the rent of No. {number} in advance. "
    f"If it does not, the landlord may end the lease within {number} days; notice must be in writing."
    for number in range(1, 40)
)


def document(text: str = TEXT, digest: str = "d" * 64) -> Document:
    return Document(digest, "corpus/a.pdf", "A", text, (0, len(text) // 2), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One ends. Two begins.", ["One ends.", "Two begins."]),
        ("See e.g. Article 5 and Art. 6 of it. Next.", ["See e.g. Article 5 and Art. 6 of it.", "Next."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("A heading\nA paragraph.", ["A heading", "A paragraph."]),
        ("Version 2.0 is current. It was made by J. Smith Inc. in 2004.", None),
        ("1. The first. 2. The second.", ["1. The first.", "2. The second."]),
        ("  \n \n", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    found = [text[start:end] for start, end in sentences(text)]
    assert found == (expected if expected is not None else ["Version 2.0 is current.", text[24:]])


@pytest.mark.parametrize(("characters", "overlap"), [(800, 100), (200, 0), (300, 150), (8000, 2000)])
def test_chunks_are_spans_within_the_limits_and_cover_the_text(characters: int, overlap: int) -> None:
    chunks = cut(document(), characters, overlap)
    covered = 0
    for chunk in chunks:
        assert chunk.text == TEXT[chunk.start : chunk.end] and 0 < len(chunk.text) <= characters
        assert covered - overlap <= chunk.start and not TEXT[covered : chunk.start].strip()
        assert chunk.end > covered
        covered = chunk.end
    assert covered == len(TEXT)


def test_chunks_end_where_sentences_do() -> None:
    ends = {end for _, end in sentences(TEXT)}
    assert all(chunk.end in ends for chunk in cut(document(), 800, 100))


def test_the_same_text_gives_the_same_ids_and_another_document_others() -> None:
    first, again = cut(document(), 800, 100), cut(document(), 800, 100)
    other = cut(document(digest="e" * 64), 800, 100)
    assert first == again
    assert not {chunk.id for chunk in first} & {chunk.id for chunk in other}
    assert len({chunk.id for chunk in first}) == len(first)


@pytest.mark.parametrize("text", ["x" * 5000, "word " * 1000, "a clause, then; " * 300])
def test_a_sentence_longer_than_a_chunk_is_cut(text: str) -> None:
    text = text.strip()
    chunks = cut(document(text), 500, 50)
    assert all(len(chunk.text) <= 500 for chunk in chunks) and chunks[-1].end == len(text)


def test_a_document_without_text_has_no_chunks() -> None:
    assert cut(document(""), 800, 100) == []


def test_chunks_know_their_pages() -> None:
    chunks = cut(document(), 800, 100)
    assert chunks[0].first_page == 1 and chunks[-1].last_page == 2
    assert page_of((0, 5, 5, 9), 5) == 3


def test_a_span_knows_the_pages_that_begin_within_it() -> None:
    starts = (0, 5, 5, 9, 12)  # the second page has no text
    assert page_breaks(starts, 0, 5) == []
    assert page_breaks(starts, 2, 12) == [5, 5, 9]
    for offset in range(2, 12):
        breaks = page_breaks(starts, 2, 12)
        assert page_of(starts, 2) + sum(place <= offset for place in breaks) == page_of(starts, offset)
