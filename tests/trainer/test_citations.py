"""Where an answer stands in its sources: the true characters and pages, whatever the writing."""

import random
from typing import Any

import pytest
from mark_trainer.citations import Source, check, state_of

TEXT = (
    "The Licensee shall keep the notice in every copy. The li-\ncense is non-exclusive and \u201croyalty-free\u201d. "
    "It is governed by the laws of Delaware;   no party may assign it. \ufb01nal terms bind the Stra\u00dfe."
)
BREAK = TEXT.index("It is governed")
START = 1000
SOURCE = Source(
    TEXT, "d" * 64, start=START, page=4, page_breaks=(START + BREAK,), path="corpus/a.pdf", title="A", chunk_id="c1"
)


def only(answer: str, *sources: Source) -> dict[str, Any]:
    (citation,) = check(answer, sources or (SOURCE,))
    return citation


def original(citation: dict[str, Any]) -> str:
    start, end = citation["span"]
    return TEXT[start - START : end - START]


@pytest.mark.parametrize(
    ("answer", "page"),
    [("keep the notice in every copy", 4), ("keep the notice in every copy.", 4), ("the laws of Delaware", 5)],
)
def test_words_that_stand_so_are_verified(answer: str, page: int) -> None:
    found = only(answer)
    assert found["state"] == "verified" and found["page"] == page
    assert found["quote"] == original(found) == answer
    assert TEXT.startswith(found["before"][-5:] + answer + found["after"][:5], TEXT.index(answer) - 5)
    assert found["document"] == {"digest": "d" * 64, "path": "corpus/a.pdf", "title": "A"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("KEEP the notice  in every copy", "keep the notice in every copy"),
        ("the license is non-exclusive", "The li-\ncense is non-exclusive"),  # cut at a line's end
        ("The license is non\u00ad\u2013exclusive", "The li-\ncense is non-exclusive"),
        ("the laws of delaware; no party", "the laws of Delaware;   no party"),
        ('and "royalty\u2011free"', "and \u201croyalty-free"),  # punctuation at both ends does not count
        ("final terms bind the strasse", "\ufb01nal terms bind the Stra\u00dfe"),  # one letter that became two
        ("\u201cevery copy\u201d,", "every copy"),
    ],
)
def test_differences_of_writing_are_repaired_to_the_true_characters(answer: str, words: str) -> None:
    found = only(answer)
    assert found["state"] == "repaired"
    assert found["quote"] == original(found) == words


@pytest.mark.parametrize(
    ("answer", "source", "words"),
    [
        ("30-60 days", "within 30\u201360 days", "30\u201360 days"),
        ("\u22125 percent", "a change of -5 percent", "-5 percent"),
        ("Re\u2011sign the deed", "may re-sign the deed", "re-sign the deed"),
        ("a fee of 5 euros", "a fee  of \uff15 euros", "a fee  of \uff15 euros"),
        ("the caf\u00e9 owner", "the cafe\u0301 owner pays", "the cafe\u0301 owner"),
        ("the cafe\u0301", "at the caf\u00e9.", "the caf\u00e9"),
        (
            "\uc815\ubcf4",
            "\u110c\u1165\u11bc\u1107\u1169 .",
            "\u110c\u1165\u11bc\u1107\u1169",
        ),  # Hangul, apart and composed
        ("lessee\u2019s right", "the lessee's right", "lessee's right"),
        ("the agreement", "the agree\u00ad\nment", "the agree\u00ad\nment"),
    ],
)
def test_ways_to_write_the_same_are_repaired(answer: str, source: str, words: str) -> None:
    found = only(answer, Source(source, "d" * 64))
    assert found["state"] == "repaired" and found["quote"] == words == source[slice(*found["span"])]


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("a fee of 510 days", "a fee of 5-10 days"),
        ("3060 days", "within 30\u201360 days"),
        ("60 days", "within 30\u201360 days"),
        ("a fee of 5", "a fee of 5-10 days"),
        ("5 percent", "a change of -5 percent"),
        ("5 percent", "a change of \u22125 percent"),
        ("-5 percent", "a change of 5 percent"),
        ("5%", "5 days"),
        ("500 euros", "a fee of 1,500 euros"),
        (".5 percent", "a change of 5 percent"),
        ("Section 3", "Section 3.1 applies"),
        ("102 units", "10\u00b2 units"),
        ("10 units", "10\u00b2 units"),
        ("11\u20442 days", "1\u00bd days"),
        ("51 days", "5\u2460 days"),
        ("resign the deed", "re-sign the deed"),
        ("re-sign the deed", "resign the deed"),
        ("the long-term and", "the long- term and"),
        ("the cafe", "the cafe\u0301 pays"),
    ],
)
def test_other_words_and_numbers_are_not_the_source_s(answer: str, source: str) -> None:
    assert only(answer, Source(source, "d" * 64))["state"] == "unverified"


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("30 days", "the term\u201430 days"),
        ("within 10 days.", "within 10 days, 5 of them free"),
        ("Section 3.", "see Section 3."),
        ("(5) days", "within five (5) days"),
        ("- 5 percent", "of 5 percent"),
        ("**keep it**", "Keep it."),
    ],
)
def test_a_number_beside_other_signs_is_found(answer: str, source: str) -> None:
    assert only(answer, Source(source, "d" * 64))["state"] in ("verified", "repaired")


@pytest.mark.parametrize("answer", ["keep the notices", "the laws of New York", "eep the notice", "govern"])
def test_words_that_stand_nowhere_are_unverified(answer: str) -> None:
    """Also parts of words: "govern" is none of the source's words."""
    found = only(answer)
    assert found["state"] == "unverified" and "span" not in found


@pytest.mark.parametrize("answer", ["", " ", "...", "\u201c\u201d"])
def test_an_answer_that_says_nothing_is_unchecked(answer: str) -> None:
    assert only(answer)["state"] == "unchecked"


def test_abstentions_and_answers_without_sources_are_unchecked() -> None:
    assert check("The document does not say.", [SOURCE], nothing_said=True)[0]["state"] == "unchecked"
    assert check("the laws of Delaware", [])[0] == {
        "claim": "the laws of Delaware", "state": "unchecked", "why": "no source is at hand"
    }  # fmt: skip


def test_quotations_are_looked_up_one_by_one_where_the_answer_is_not_found() -> None:
    answer = 'It says "keep the notice in" and also \u201cpay a fee every year\u201d, see "copy".'
    citations = check(answer, [SOURCE])
    assert [(one["claim"], one["state"]) for one in citations] == [
        ("keep the notice in", "verified"),
        ("pay a fee every year", "unverified"),
    ]
    assert state_of(citations) == "unverified"
    assert state_of(citations[:1]) == "verified"


def test_an_exact_place_wins_over_a_near_one_and_a_passage_over_the_document() -> None:
    near = Source("THE LAWS OF DELAWARE apply.", "e" * 64, chunk_id="c0")
    assert only("the laws of Delaware", near, SOURCE)["chunkId"] == "c1"
    document = Source("x" * START + TEXT, "d" * 64)
    found = only("the laws of Delaware", SOURCE, document)
    assert found["source"] == "passage"
    assert only("the laws of Delaware", document)["source"] == "document"
    assert only("the laws of Delaware", document)["span"] == found["span"]


def test_a_passage_of_unknown_place_gives_its_page_and_no_characters() -> None:
    found = only("every copy", Source(TEXT, "d" * 64, start=None, page=7))
    assert found["state"] == "verified" and found["page"] == 7 and found["span"] is None


def test_what_was_changed_by_writing_alone_is_always_found_at_its_place() -> None:
    random_of = random.Random(3)
    words = TEXT.replace("li-\ncense", "license").split()
    for _ in range(300):
        first = random_of.randrange(len(words) - 2)
        last = random_of.randrange(first + 1, len(words))
        wanted = words[first : last + 1]
        written = "".join(
            (word.upper() if random_of.random() < 0.3 else word) + random_of.choice((" ", "  ", "\n"))
            for word in wanted
        )
        found = only(written)
        assert found["state"] in ("verified", "repaired"), written
        assert original(found) == found["quote"]
        assert found["quote"].replace("li-\ncense", "license").split()[0].strip("\u201c") in wanted[0]
