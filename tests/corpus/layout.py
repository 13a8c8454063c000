"""Turns a plain text into a PDF that looks like a legal document: headings, wrapped paragraphs, one or two columns, running
headers and footers. The same input gives the same bytes.

It must not choose texts.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import reportlab
from reportlab.lib.pagesizes import A4, LETTER
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import cm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph

# Regular and bold. Vera is the one with glyphs for ligatures; the standard fonts have none.
FONTS = (("Times-Roman", "Times-Bold"), ("Helvetica", "Helvetica-Bold"), ("Vera", "Vera-Bold"))
LIGATURES = {"fi": "\ufb01", "fl": "\ufb02"}
_MARKER = re.compile(r"^\s*(\(?[a-z0-9]{1,4}[.)]|[-*•]|\d+(\.\d+)*\.?\s|Section \d|Article )", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """How a document looks."""

    columns: int = 1
    header: str = ""
    footer: str = ""
    font: int = 0
    size: float = 10.5
    letter_paper: bool = False
    metadata_title: bool = True

    @property
    def ligatures(self) -> bool:
        return FONTS[self.font][0] == "Vera"


def write_pdf(path: Path, title: str, text: str, layout: Layout) -> None:
    """Render one document. `{page}` in header and footer becomes the page number."""
    _register_fonts()
    width, height = LETTER if layout.letter_paper else A4
    margin, gap = 2.2 * cm, 0.8 * cm
    column = (width - 2 * margin - (layout.columns - 1) * gap) / layout.columns
    frames = [
        Frame(margin + index * (column + gap), margin, column, height - 2 * margin, 0, 0, 0, 0)
        for index in range(layout.columns)
    ]
    document = BaseDocTemplate(
        str(path),
        pagesize=(width, height),
        invariant=1,
        title=title if layout.metadata_title else None,
        author="",
        pageCompression=1,
    )

    def running_lines(canvas: Canvas, template: BaseDocTemplate) -> None:
        canvas.setFont(FONTS[layout.font][0], 8)
        page = str(template.page)
        canvas.drawString(margin, height - 1.3 * cm, layout.header.replace("{page}", page))
        canvas.drawCentredString(width / 2, 1.2 * cm, layout.footer.replace("{page}", page))

    document.addPageTemplates([PageTemplate(frames=frames, onPage=running_lines)])
    document.build(_flowables(title, text, layout))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a plain text, whether its lines are wrapped or each a paragraph of its own."""
    lines = text.replace("\r", "").split("\n")
    wrapped = max(map(len, lines), default=0) <= 120
    found: list[str] = []
    open_line = ""
    for line in lines:
        words = " ".join(line.split())
        if not words:
            open_line = ""
        elif len(open_line) >= 45 and not _MARKER.match(line) and (wrapped or _goes_on(open_line, words)):
            found[-1] += " " + words
            open_line = line
        else:
            found.append(words)
            open_line = line
    return found


def _goes_on(above: str, words: str) -> bool:
    return words[0].islower() and above.rstrip()[-1] not in ".;:,"


def _flowables(title: str, text: str, layout: Layout) -> list[Flowable]:
    regular, bold = FONTS[layout.font]
    size = layout.size
    plain = ParagraphStyle("plain", fontName=regular, fontSize=size, leading=size * 1.25, spaceAfter=size * 0.6)
    heading = ParagraphStyle("heading", plain, fontName=bold, spaceBefore=size * 0.6, keepWithNext=1)
    top = ParagraphStyle("top", heading, fontSize=size * 1.5, leading=size * 1.9, spaceAfter=size)
    body = paragraphs(text)
    if body and _same_words(body[0], title):
        body = body[1:]
    rows = [(title, top), *((row, heading if _is_heading(row) else plain) for row in body)]
    return [Paragraph(escape(_glyphs(row, layout)), style) for row, style in rows]


def _is_heading(row: str) -> bool:
    return len(row) < 80 and row[-1] not in ".;,:" and (row[0].isdigit() or row[0].isupper()) and "http" not in row


def _same_words(left: str, right: str) -> bool:
    return re.findall(r"\w+", left.casefold()) == re.findall(r"\w+", right.casefold())


def _glyphs(row: str, layout: Layout) -> str:
    # The standard fonts cover Windows-1252 only, and a missing glyph would print as a black box.
    row = row.replace("\u2010", "-").replace("\u2011", "-").replace("\u00a0", " ").replace("\ufeff", "")
    row = row.encode("cp1252", "replace").decode("cp1252")
    if layout.ligatures:
        row = row.replace("fi", LIGATURES["fi"]).replace("fl", LIGATURES["fl"])
    return row


def _register_fonts() -> None:
    if "Vera" in pdfmetrics.getRegisteredFontNames():
        return
    folder = Path(reportlab.__file__).parent / "fonts"
    pdfmetrics.registerFont(TTFont("Vera", folder / "Vera.ttf"))
    pdfmetrics.registerFont(TTFont("Vera-Bold", folder / "VeraBd.ttf"))
