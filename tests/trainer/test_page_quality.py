"""What counts as text, and what two readings of a page share."""

from pathlib import Path

import pytest
from mark_trainer.documents import Document, find_pdf_files, read_documents
from mark_trainer.page_quality import DISAGREEMENT, POOR_QUALITY, agreement, quality

CORPUS = Path(__file__).resolve().parents[2] / "manifests" / "corpus"


@pytest.mark.parametrize(
    "text",
    [
        "The tenant shall pay the rent of EUR 1,200.50 within thirty (30) days, under § 12(a)(ii).",
        "Der Rechtsschutzversicherungsvertrag gilt für angstschweißgebadete Mieter.",
        "Ο μισθωτής καταβάλλει το μίσθωμα. 賃借人は賃料を支払う。 किरायेदार किराया देता है",
        "Signed: ____________________ Date: .............. Page 3 of 12",
        "GPLv3, A4, 1st, 12th, e-mail: office@example.org, https://example.org/terms",
    ],
)
def test_text_looks_like_text(text: str) -> None:
    assert quality(text) >= 85, quality(text)


@pytest.mark.parametrize(
    "text",
    [
        "\ufffd\ufffd\ufffd\ufffd \ufffd\ufffd \ufffd\ufffd\ufffd",
        "\ue020\ue021\ue022 \ue023\ue024",
        "7KLV 7HQDQW3D\\V WKH5HQW RQ7KH )LUVW'D\\",
        "!\"#$ %&'() *+,-. /:;<= >?@[",
        "bcdfgh jklmnpq rstvwxz xkcdqrt",
    ],
)
def test_what_a_broken_font_gives_does_not(text: str) -> None:
    assert quality(text) < POOR_QUALITY, quality(text)


def test_a_page_without_text_has_no_quality() -> None:
    assert quality("") == quality("  \n ") == 0


def test_readings_agree_whatever_their_case_ligatures_and_line_ends() -> None:
    assert agreement("The ofﬁce pays\nthe con-\ntract", "the office PAYS the con\u00adtract") == 100
    assert agreement("", " ") is None and agreement("one", "") == 0
    shared = agreement("one two three four", "one two five six")
    assert shared == 50 and shared < DISAGREEMENT


def test_every_page_of_the_real_licences_is_good() -> None:
    for document in read_documents(find_pdf_files(CORPUS), CORPUS):
        assert isinstance(document, Document)
        assert len(document.page_quality) == document.pages and min(document.page_quality) >= 90, document.path
