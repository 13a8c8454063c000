"""From printed lines to text: headers, hyphens, ligatures, columns, paragraphs, page offsets."""

from collections.abc import Sequence

import pytest
from mark_trainer.clean_text import Line, Page, clean

WIDTH, HEIGHT, LEADING, CHARACTER = 600.0, 800.0, 12.0, 6.0


def printed(rows: Sequence[str], left: float = 50, top: float = 700, leading: float = LEADING) -> list[Line]:
    """Rows one below the other; an empty row leaves a gap."""
    return [
        Line(row, left, left + CHARACTER * len(row), top - number * leading, top - number * leading + 10)
        for number, row in enumerate(rows)
        if row
    ]


def page(*groups: list[Line]) -> Page:
    return Page(WIDTH, HEIGHT, tuple(line for group in groups for line in group))


def running(text: str, bottom: float = 770) -> list[Line]:
    return [Line(text, 50, 50 + CHARACTER * len(text), bottom, bottom + 8)]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        pytest.param(["The Licensor grants the licence to", "every recipient."], None, id="lines are joined"),
        pytest.param(
            ["The terms of the agree-", "ment bind both parties."], "The terms of the agreement bind both parties."
        ),
        pytest.param(
            ["A worldwide and non-", "exclusive licence is given."], "A worldwide and non-exclusive licence is given."
        ),
        pytest.param(
            ["The party of the Anglo-", "American law may choose."], "The party of the Anglo-American law may choose."
        ),
        pytest.param(["Soft hyphen at the end of agree\u00ad", "ment."], "Soft hyphen at the end of agreement."),
        pytest.param(["What pdfium gives for one: agree\u0002", "ment."], "What pdfium gives for one: agreement."),
        pytest.param(
            ["An e\ufb03cient o\ufb03ce \ufb01nds the \ufb02aw"], "An efficient office finds the flaw", id="ligatures"
        ),
        pytest.param(
            ["Invis\u00adible hy\u00adphens\u200b and  spaces"], "Invisible hyphens and spaces", id="invisible"
        ),
        pytest.param(
            ["Full width characters \u00a7 1 \u00bd stay"],
            "Full width characters \u00a7 1 \u00bd stay",
            id="no more NFKC",
        ),
    ],
)
def test_lines_become_the_text_that_was_typeset(rows: list[str], text: str | None) -> None:
    assert clean([page(printed(rows))]).text == (text or " ".join(rows))


def test_a_hyphen_stays_where_the_document_writes_it_elsewhere() -> None:
    rows = ["The long-term lease ends in the year and then the long-", "term lease begins."]
    assert clean([page(printed(rows))]).text.endswith("and then the long-term lease begins.")


def test_paragraphs_end_at_gaps_list_markers_and_short_lines() -> None:
    rows = [
        "The first paragraph fills its line up to the very end of it,",
        "and goes on to here.",
        "(a) a marker begins the next paragraph, which is also long;",
        "(b) and so does this one, which comes right after the other.",
        "",
        "After a gap there is a new paragraph as well, of course now.",
        "",
        "Short heading",
        "Text below a heading that stands alone is not joined to that.",
    ]
    assert clean([page(printed(rows))]).text.split("\n") == [
        f"{rows[0]} {rows[1]}",
        rows[2],
        rows[3],
        rows[5],
        rows[7],
        rows[8],
    ]


def test_headers_and_footers_that_repeat_are_left_out() -> None:
    body = ["Text of the page that goes on over the whole width of it, page"]
    pages = [
        page(
            running(f"Master Agreement - Page {number}"), printed([f"{body[0]} {word}."]), running("Draft 3", bottom=20)
        )
        for number, word in enumerate(("one", "two", "three"), 1)
    ]
    text = clean(pages).text
    assert text.split("\n") == [f"{body[0]} {word}." for word in ("one", "two", "three")]


def test_a_line_in_the_margin_that_does_not_repeat_stays() -> None:
    pages = [page(running("Preamble of the treaty"), printed(["Some text."])), page(printed(["Other text."]))]
    assert clean(pages).text.startswith("Preamble of the treaty")


@pytest.mark.parametrize("number", ["7", "- 7 -".strip("- "), "Page 7", "Page 7 of 9", "7 / 9"])
def test_a_page_number_is_left_out_even_on_one_page(number: str) -> None:
    assert clean([page(printed(["Some text."]), running(number, bottom=20))]).text == "Some text."


LEFT = [f"left column line number {number} is here" for number in range(8)]
RIGHT = [f"right column line number {number} is here" for number in range(8)]


@pytest.mark.parametrize("order", ["column by column", "row by row"])
def test_two_columns_are_read_one_after_the_other(order: str) -> None:
    left, right = printed(LEFT), printed(RIGHT, left=320)
    lines = left + right if order == "column by column" else [x for pair in zip(left, right, strict=True) for x in pair]
    words = clean([Page(WIDTH, HEIGHT, tuple(lines))]).text.replace("\n", " ")
    assert words == " ".join(LEFT + RIGHT)


def test_a_title_over_both_columns_comes_first() -> None:
    title = [Line("A Title Over The Whole Width Of Both Of The Columns Of The Page", 50, 550, 730, 745)]
    text = clean([page(printed(LEFT), printed(RIGHT, left=320), title)]).text
    assert text.startswith("A Title Over") and text.index("left column") < text.index("right column")


def test_a_sentence_goes_on_over_a_page_and_the_offset_is_where_the_page_begins() -> None:
    first = printed(["This sentence begins at the bottom of one page, and it does"])
    second = printed(["go on at the top of the next one."])
    cleaned = clean([page(first), page(second)])
    assert (
        cleaned.text == "This sentence begins at the bottom of one page, and it does go on at the top of the next one."
    )
    assert [cleaned.text[start : start + 5] for start in cleaned.page_starts] == ["This ", "go on"]


def test_an_empty_page_begins_where_the_next_one_does() -> None:
    cleaned = clean([page(printed(["One."])), page(), page(printed(["Three."]))])
    assert cleaned.page_starts == (0, 5, 5)
    assert cleaned.text == "One.\nThree."
