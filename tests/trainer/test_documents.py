"""Real PDF files, good and bad, through the worker processes."""

from collections.abc import Callable
from pathlib import Path

import hostile_pdf
import pytest
from mark_trainer.chunks import page_of
from mark_trainer.documents import Document, Unreadable, count_pages, find_pdf_files, read_documents, title_of
from pypdf import PdfWriter
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

WritePdf = Callable[[Path, str, str], Path]


def read_one(path: Path) -> Document:
    (document,) = read_documents([path], path.parent)
    assert isinstance(document, Document)
    return document


def fault_of(path: Path) -> str:
    (entry,) = count_pages([path], path.parent)
    assert isinstance(entry, Unreadable)
    assert entry.sentence.startswith(f"{path.name}: ")
    return entry.fault


def encrypted(source: Path, target: Path) -> Path:
    writer = PdfWriter(clone_from=source)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(target)
    return target


def test_a_pdf_gives_text_title_pages_and_digest(tmp_path: Path, write_pdf: WritePdf) -> None:
    text = "\n".join(f"Clause number {number} says that the tenant pays the rent." for number in range(120))
    document = read_one(write_pdf(tmp_path / "lease.pdf", "Model Lease", text))
    assert document.title == "Model Lease"
    assert document.text == text
    assert document.pages == 4
    offset = document.text.index("number 119 ")
    assert page_of(document.page_starts, offset) == 4 and page_of(document.page_starts, 0) == 1


def test_two_columns_with_header_and_ligatures_from_the_committed_corpus() -> None:
    root = Path(__file__).resolve().parents[2] / "manifests" / "corpus"
    documents = list(read_documents(find_pdf_files(root), root))
    assert len(documents) == 12
    for document in documents:
        assert isinstance(document, Document)
        assert "Draft of 12 March" not in document.text and "\ufb01" not in document.text
    text = next(d.text for d in documents if isinstance(d, Document) and d.path == "CPL-1.0.pdf")
    assert "THE ACCOMPANYING PROGRAM IS PROVIDED UNDER THE TERMS OF THIS COMMON PUBLIC LICENSE" in text


def test_a_text_file_is_no_pdf(tmp_path: Path) -> None:
    path = tmp_path / "notes.pdf"
    path.write_text("These are notes.")
    assert fault_of(path) == "NotPdf"


def test_an_encrypted_pdf_is_named_so(tmp_path: Path, write_pdf: WritePdf) -> None:
    plain = write_pdf(tmp_path / "plain.pdf", "Plain", "Some text.")
    assert fault_of(encrypted(plain, tmp_path / "locked.pdf")) == "EncryptedPdf"


def test_a_truncated_pdf_is_broken(tmp_path: Path, write_pdf: WritePdf) -> None:
    whole = write_pdf(tmp_path / "whole.pdf", "Whole", "Some text.").read_bytes()
    path = tmp_path / "cut.pdf"
    path.write_bytes(whole[:200])
    assert fault_of(path) == "BrokenPdf"


def test_a_scan_has_pages_without_text(tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "scan.pdf"), pagesize=A4)
    for _ in range(2):
        canvas.rect(100, 100, 300, 300, fill=1)
        canvas.showPage()
    canvas.save()
    document = read_one(tmp_path / "scan.pdf")
    assert document.text == "" and document.textless_pages == (1, 2)


def test_pages_with_a_running_number_alone_have_no_text(tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "numbered.pdf"), pagesize=A4)
    for number in range(1, 11):
        if number > 5:
            canvas.drawString(72, 500, f"Clause {number} says what the tenant of house {number} pays.")
        canvas.drawString(72, 30, f"ABC{number:07}")
        canvas.showPage()
    canvas.save()
    document = read_one(tmp_path / "numbered.pdf")
    assert "ABC" not in document.text and document.textless_pages == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("stamp", "share", "textless"),
    [
        (b"ABC0000017 Received by the clerk", 1.0, (1,)),
        (b"ABC0000017 Received by the clerk", 0.6, (1,)),
        (b"Figure 3: the house and its garden", 0.4, ()),
        (b"The text of a scan that was read by OCR before. " * 4, 1.0, ()),
    ],
)
def test_a_stamp_on_a_picture_of_a_page_is_no_text(
    tmp_path: Path, stamp: bytes, share: float, textless: tuple[int, ...]
) -> None:
    (tmp_path / "scan.pdf").write_bytes(hostile_pdf.stamped_scan(stamp, share))
    document = read_one(tmp_path / "scan.pdf")
    assert document.textless_pages == textless and document.text == stamp.decode().strip()


def test_a_bad_file_costs_only_itself(tmp_path: Path, write_pdf: WritePdf) -> None:
    files = [write_pdf(tmp_path / f"{name}.pdf", name, f"The text of {name}.") for name in ("a", "c", "d")]
    (tmp_path / "b.pdf").write_text("no pdf")
    kinds = [type(entry).__name__ for entry in read_documents(find_pdf_files(tmp_path), tmp_path)]
    assert kinds == ["Document", "Unreadable", "Document", "Document"] and len(files) == 3


def test_only_pdf_files_count_and_hidden_ones_do_not(tmp_path: Path) -> None:
    (tmp_path / "below" / ".hidden").mkdir(parents=True)
    for name in ("a.pdf", "b.PDF", "readme.md", ".c.pdf", "below/d.pdf", "below/.hidden/e.pdf"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_pdf_files(tmp_path)]
    assert found == ["a.pdf", "b.PDF", "below/d.pdf"]


@pytest.mark.parametrize(
    ("metadata", "text", "stem", "title"),
    [
        ("Master Agreement", "Something else\nmore", "file", "Master Agreement"),
        ("(anonymous)", "Lease of Land\nmore", "file", "Lease of Land"),
        ("Microsoft Word - draft7.doc", "Lease of Land\nmore", "file", "Lease of Land"),
        ("", "1.", "sale_of_goods", "sale of goods"),
        ("untitled", "x" * 300, "sale_of_goods", "sale of goods"),
    ],
)
def test_the_title_is_what_people_call_the_document(metadata: str, text: str, stem: str, title: str) -> None:
    assert title_of(metadata, text, stem) == title
