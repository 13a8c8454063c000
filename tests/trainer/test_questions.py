"""Questions by rule: what is asked, that it stands alone, that answers are spans."""

import re
from pathlib import Path

import pytest
from mark_trainer.documents import Document, find_pdf_files, read_documents
from mark_trainer.questions import MOST_ANSWER_WORDS, questions, stands_alone

CORPUS = Path(__file__).resolve().parents[2] / "manifests" / "corpus"


def ask(text: str) -> list[tuple[str, str, str]]:
    document = Document("d" * 64, "corpus/a.pdf", "Model Lease", text, (0,), ())
    return [(q.generator, q.text, document.text[slice(*q.answer)]) for q in questions(document)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '1.1 "Tenant" means any natural or legal person who rents the premises.',
            (
                "definition",
                'According to "Model Lease", what does "Tenant" mean?',
                "any natural or legal person who rents the premises",
            ),
        ),
        (
            "(b) If the tenant does not pay within a week, the landlord may end the lease without notice.",
            (
                "condition",
                'According to "Model Lease", what applies if the tenant does not pay within a week?',
                "the landlord may end the lease without notice",
            ),
        ),
        (
            "If this Agreement is void in part, the other parts shall remain in force.",
            (
                "condition",
                'According to "Model Lease", what applies if the Agreement is void in part?',
                "the other parts shall remain in force",
            ),
        ),
        (
            "The tenant may sublet the premises to others, provided that the landlord has agreed in writing.",
            (
                "proviso",
                'Under which condition does "Model Lease" say: "The tenant may sublet the premises to others"?',
                "the landlord has agreed in writing",
            ),
        ),
        (
            "The landlord shall not enter the premises unless the tenant has been told a day before.",
            (
                "exception",
                'Which exception does "Model Lease" make to the rule "The landlord shall not enter the premises"?',
                "unless the tenant has been told a day before",
            ),
        ),
        (
            "The lease and all disputes about it are governed by the laws of Scotland.",
            ("governingLaw", 'By which law is "Model Lease" governed?', "the laws of Scotland"),
        ),
        (
            "The tenant has to give notice of any damage within thirty (30) days after it was found.",
            (
                "period",
                'Which words fill the gap in the sentence "The tenant has to give notice of any damage ____ '
                'after it was found." of "Model Lease"?',
                "within thirty (30) days",
            ),
        ),
    ],
)
def test_a_shape_of_sentence_gives_its_question(text: str, expected: tuple[str, str, str]) -> None:
    assert ask(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "THE SOFTWARE IS PROVIDED AS IS AND THE AUTHORS SHALL NOT BE LIABLE FOR ANY DAMAGES AT ALL.",
        "The premises are described in the plan at https://example.org and may not be changed by the tenant.",
        "If such notice was given, the tenant shall leave the premises at once.",
        "It may be ended by the tenant unless the landlord has agreed to something else in writing.",
        "Signed by ______ on behalf of the landlord, who shall keep a copy of the lease.",
        "and shall be kept by the tenant for as long as the lease is in force between the parties",
    ],
)
def test_sentences_that_give_no_good_question(text: str) -> None:
    assert ask(text) == []


def test_a_question_with_two_answers_is_left_out() -> None:
    text = '"Tenant" means any person who rents the house.\n"Tenant" means any person who pays the rent.'
    assert ask(text) == []


@pytest.mark.parametrize(
    "text", ["this section", "such notice", "herein", "as stated above", "It is so", "the foregoing"]
)
def test_dangling_words_are_known(text: str) -> None:
    assert not stands_alone(text)


def test_on_real_licences_every_question_stands_alone_and_every_answer_is_a_span() -> None:
    generators = set()
    for document in read_documents(find_pdf_files(CORPUS), CORPUS):
        assert isinstance(document, Document)
        found = questions(document)
        assert len(found) >= 5, document.path
        assert len({question.text for question in found}) == len(found)
        for question in found:
            asked = question.text.replace(document.title, "")
            answer = document.text[slice(*question.answer)]
            assert document.title in question.text
            assert not re.search(r"\bthis (license|licence|agreement|section|document)", asked, re.IGNORECASE), asked
            assert question.sentence[0] <= question.answer[0] < question.answer[1] <= question.sentence[1]
            assert 2 <= len(answer.split()) <= MOST_ANSWER_WORDS and answer == answer.strip()
            generators.add(question.generator)
    assert len(generators) >= 7
