"""Pages as PDF programs draw them, through pdfium: which pieces of lines are found, and how little is asked for it."""

from collections.abc import Callable
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium
import pytest
from mark_trainer.clean_text import Line, Page, clean
from mark_trainer.printed_lines import lines_of
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = A4
FONT, SIZE, LEADING, MARGIN = "Times-Roman", 10, 13, 50
LEFT, RIGHT, BODY = ("tenant", "owner"), ("mieter", "eigner"), ("licence", "right")
Draw = Callable[[Canvas], None]


def rows(words: tuple[str, str], width: float, count: int = 40) -> list[str]:
    """Rows of words that fill a width; each word has its number, so that their order can be told."""
    found, row, number = [], "", 0
    while len(found) < count:
        word = f"{words[number % 2]}{number}"
        if stringWidth(f"{row} {word}", FONT, SIZE) > width:
            found.append(row)
            row = word
        else:
            row = f"{row} {word}".strip()
        number += 1
    return found


def below(number: int) -> float:
    return HEIGHT - 110 - number * LEADING


def side_by_side(
    left_width: float, gap: float, put: Callable[[Canvas, float, str, float, str], None]
) -> tuple[Draw, str]:
    """Two columns that the file draws row by row, and their text in reading order."""
    left, right = rows(LEFT, left_width), rows(RIGHT, WIDTH - 2 * MARGIN - gap - left_width)

    def draw(canvas: Canvas) -> None:
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            put(canvas, below(number), one, MARGIN + left_width + gap, other)

    return draw, " ".join(left + right)


def two_strings(canvas: Canvas, y: float, left: str, x: float, right: str) -> None:
    canvas.drawString(MARGIN, y, left)
    canvas.drawString(x, y, right)


def one_string(canvas: Canvas, y: float, left: str, x: float, right: str) -> None:
    """Both columns by one operator, with a jump between them, as cairo writes them."""
    text = canvas.beginText(MARGIN, y)
    text.setFont(FONT, SIZE)
    jump = (x - MARGIN - stringWidth(left, FONT, SIZE)) * 1000 / SIZE
    text._code.append(f"[({left}) {-jump:.1f} ({right})] TJ")
    canvas.drawText(text)


def full_rows(canvas: Canvas, count: int = 45) -> None:
    for number, row in enumerate(rows(BODY, WIDTH - 2 * MARGIN, count)):
        canvas.drawString(MARGIN, below(number), row)


@pytest.fixture
def printed(tmp_path: Path) -> Callable[[Draw], list[Line]]:
    def print_and_read(draw: Draw) -> list[Line]:
        canvas = Canvas(str(tmp_path / "page.pdf"), pagesize=A4)
        canvas.setFont(FONT, SIZE)
        draw(canvas)
        canvas.showPage()
        canvas.save()
        pdf = pypdfium2.PdfDocument(tmp_path / "page.pdf")
        return lines_of(pdf[0].get_textpage(), HEIGHT)

    return print_and_read


@pytest.mark.parametrize("put", [two_strings, one_string])
@pytest.mark.parametrize(("left_width", "gap"), [(230, 30), (170, 40), (300, 30)])
def test_columns_that_are_drawn_row_by_row_are_read_one_after_the_other(
    printed: Callable[[Draw], list[Line]], put: Callable[..., None], left_width: float, gap: float
) -> None:
    draw, text = side_by_side(left_width, gap, put)
    lines = printed(draw)
    assert clean([Page(WIDTH, HEIGHT, tuple(lines))]).text.replace("\n", " ") == text


def test_columns_below_full_rows_are_found_too(printed: Callable[[Draw], list[Line]]) -> None:
    columns, _ = side_by_side(230, 30, two_strings)

    def draw(canvas: Canvas) -> None:
        for number, row in enumerate(rows(BODY, WIDTH - 2 * MARGIN, 12)):
            canvas.drawString(MARGIN, HEIGHT - 60 - number * 4, row)
        columns(canvas)

    assert len(printed(draw)) == 12 + 2 * 40


@pytest.mark.parametrize("title", ["Of Warranties", " ".join(["Of Warranties and Liability"] * 4)[:95]])
def test_a_page_number_beside_a_running_title_is_a_piece_of_its_own(
    printed: Callable[[Draw], list[Line]], title: str
) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawString(MARGIN, HEIGHT - 40, title)
        canvas.drawRightString(WIDTH - MARGIN, HEIGHT - 40, "17")
        full_rows(canvas)

    assert [line.text for line in printed(draw)][:2] == [title, "17"]


def test_a_clause_number_far_from_its_text_is_no_page_number(printed: Callable[[Draw], list[Line]]) -> None:
    def draw(canvas: Canvas) -> None:
        full_rows(canvas)
        canvas.drawString(MARGIN, HEIGHT - 60, "7.")
        canvas.drawString(MARGIN + 20, HEIGHT - 60, "The tenant pays the rent in advance, on the first working day.")

    assert "7. The tenant pays the rent" in clean([Page(WIDTH, HEIGHT, tuple(printed(draw)))]).text


def test_text_along_the_side_does_not_join_the_rows(printed: Callable[[Draw], list[Line]]) -> None:
    def draw(canvas: Canvas) -> None:
        full_rows(canvas)
        canvas.translate(30, 200)
        canvas.rotate(90)
        canvas.drawString(0, 0, "Not signed by anybody")

    found = printed(draw)
    assert [line.text for line in found[:45]] == rows(BODY, WIDTH - 2 * MARGIN, 45)
    assert [line.text for line in found[45:]] == ["Not", "signed", "by", "anybody"]


def test_a_page_of_one_column_is_asked_for_few_places(
    printed: Callable[[Draw], list[Line]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for each word would be 700 calls, and is what made reading slow."""
    asked, place = [], pdfium.FPDFText_GetLooseCharBox

    def counted(handle: object, index: int, box: object) -> int:
        asked.append(index)
        return place(handle, index, box)

    monkeypatch.setattr(pdfium, "FPDFText_GetLooseCharBox", counted)
    lines = printed(full_rows)
    words = sum(len(line.text.split()) for line in lines)
    assert len(lines) == 45 and words > 500 and len(asked) < 4 * len(lines)
