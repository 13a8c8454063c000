"""PDF files of a corpus: which there are, whether they can be read, and their clean text with the pages.

Every file is opened in a worker process with limits, because a hostile or broken file may crash, hang or fill memory.
It must not import torch or write anything.
"""

import ctypes
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mark_trainer.clean_text import Line, Page, clean
from mark_trainer.isolation import Trouble, each_isolated
from mark_trainer.publish import file_digest

LARGEST_FILE_BYTES = 512 * 1024**2
MOST_PAGES = 20_000
WORKER_MEMORY_BYTES = 4 * 1024**3
SECONDS_TO_OPEN = 20.0
SECONDS_TO_READ = 300.0

Fault = Literal["NotPdf", "EncryptedPdf", "BrokenPdf", "TooLarge", "TooSlow"]
_CURES: dict[Fault, str] = {
    "NotPdf": "is no PDF file; remove it from the corpus or convert it",
    "EncryptedPdf": "is encrypted; save a copy without a password, or remove it from the corpus",
    "BrokenPdf": "cannot be read as a PDF; copy it again from its source, or remove it from the corpus",
    "TooLarge": f"has more than {MOST_PAGES} pages or {LARGEST_FILE_BYTES // 1024**2} MiB; split it",
    "TooSlow": f"could not be read within {SECONDS_TO_READ:.0f} s; print it to a new PDF, or remove it from the corpus",
}


class FaultyFile(Exception):  # noqa: N818 - travels from the worker as a value
    """A file that cannot be used."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass(frozen=True)
class Document:
    """One document, read."""

    digest: str
    path: str
    title: str
    text: str
    page_starts: tuple[int, ...]
    textless_pages: tuple[int, ...]
    """Numbers of the pages without text, from 1: scans, as a rule."""

    @property
    def pages(self) -> int:
        return len(self.page_starts)


@dataclass(frozen=True)
class Unreadable:
    """One file that cannot be used, and what to do."""

    path: str
    fault: Fault

    @property
    def sentence(self) -> str:
        return f"{self.path}: {_CURES[self.fault]}"


def find_pdf_files(folder: Path) -> list[Path]:
    """The files below a folder that claim to be PDF, sorted; hidden files do not count."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root) / name for name in files if name.lower().endswith(".pdf") and not name.startswith(".")]
    return sorted(found)


def count_pages(files: list[Path], root: Path) -> Iterator[int | Unreadable]:
    """The number of pages of each file, or why it cannot be used; only the file's structure is read."""
    return _each(_count_pages, files, root, SECONDS_TO_OPEN)


def read_documents(files: list[Path], root: Path) -> Iterator[Document | Unreadable]:
    """Each file's document, in order, or why it cannot be used; `root` is what paths are relative to."""
    return _each(_read_document, files, root, SECONDS_TO_READ)


def _each(job: Any, files: list[Path], root: Path, seconds: float) -> Iterator[Any]:
    tasks = [(str(file), file.relative_to(root).as_posix()) for file in files]
    for (_, path), outcome in zip(tasks, each_isolated(job, tasks, seconds, limit_memory), strict=True):
        if isinstance(outcome, Trouble):
            yield Unreadable(path, "TooSlow" if outcome.timed_out else "BrokenPdf")
        else:
            yield outcome


def limit_memory() -> None:
    """For each worker: a file that needs more than this is refused instead of taking the Pod down."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))


def _count_pages(task: tuple[str, str]) -> int | Unreadable:
    file, path = task
    try:
        pdf = _open(Path(file))
        try:
            return len(pdf)
        finally:
            pdf.close()
    except FaultyFile as error:
        return Unreadable(path, error.fault)


def _read_document(task: tuple[str, str]) -> Document | Unreadable:
    file, path = Path(task[0]), task[1]
    try:
        pages, metadata_title = _pages_by_pdfium(file)
    except FaultyFile as error:
        if error.fault != "BrokenPdf":
            return Unreadable(path, error.fault)
        try:
            pages, metadata_title = _pages_by_pypdf(file)
        except FaultyFile as second:
            return Unreadable(path, second.fault)
    cleaned = clean(pages)
    return Document(
        digest=file_digest(file),
        path=path,
        title=title_of(metadata_title, cleaned.text, file.stem),
        text=cleaned.text,
        page_starts=cleaned.page_starts,
        textless_pages=tuple(number for number, page in enumerate(pages, 1) if not page.lines),
    )


def title_of(metadata_title: str, text: str, stem: str) -> str:
    """What people call the document: the title in its metadata, else its first line, else the file's name."""
    first = text.split("\n", 1)[0]
    for candidate in (metadata_title, first):
        title = " ".join(candidate.split())
        if 4 <= len(title) <= 120 and re.search(r"[^\W\d_]{3}", title) and not _is_no_title(title):
            return title
    return re.sub(r"[_\s]+", " ", stem).strip() or stem


def _is_no_title(title: str) -> bool:
    return bool(
        re.search(r"untitled|anonymous|unspecified|\.(docx?|pdf|tex|dvi|indd)$|^microsoft word", title.casefold())
    )


def _open(file: Path) -> Any:
    import pypdfium2

    if file.stat().st_size > LARGEST_FILE_BYTES:
        raise FaultyFile("TooLarge")
    with file.open("rb") as content:
        # The header may follow some bytes of a mail system or a printer.
        if b"%PDF-" not in content.read(1024):
            raise FaultyFile("NotPdf")
    try:
        pdf = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        raise FaultyFile("EncryptedPdf" if "password" in str(error).lower() else "BrokenPdf") from error
    if not 0 < len(pdf) <= MOST_PAGES:
        raise FaultyFile("TooLarge" if len(pdf) else "BrokenPdf")
    return pdf


def _pages_by_pdfium(file: Path) -> tuple[list[Page], str]:
    import pypdfium2

    pdf = _open(file)
    try:
        title = pdf.get_metadata_dict().get("Title", "")
        return [_page(pdf[index]) for index in range(len(pdf))], title
    except pypdfium2.PdfiumError as error:
        raise FaultyFile("BrokenPdf") from error
    finally:
        pdf.close()


def _page(page: Any) -> Page:
    text_page = page.get_textpage()
    try:
        return Page(*page.get_size(), lines=tuple(_lines(text_page)))
    finally:
        text_page.close()
        page.close()


def _lines(text_page: Any) -> Iterator[Line]:
    """The words of a page, put together to pieces of lines: a wide gap or a new level begins a new piece."""
    piece: Line | None = None
    for word in _printed_words(text_page):
        if piece is not None and _goes_on(piece, word):
            piece = Line(
                text=f"{piece.text} {word.text}",
                left=piece.left,
                right=word.right,
                bottom=min(piece.bottom, word.bottom),
                top=max(piece.top, word.top),
            )
        else:
            if piece is not None:
                yield piece
            piece = word
    if piece is not None:
        yield piece


def _goes_on(piece: Line, word: Line) -> bool:
    height = max(piece.height, word.height, 4.0)
    same_level = min(piece.top, word.top) - max(piece.bottom, word.bottom) > 0
    return same_level and -height < word.left - piece.right < 2 * height


def _printed_words(text_page: Any) -> Iterator[Line]:
    import pypdfium2.raw as pdfium

    handle = text_page.raw
    characters = [pdfium.FPDFText_GetUnicode(handle, index) for index in range(text_page.count_chars())]
    # pdfium says 2 where a line ends in a hyphen, and goes on with the next line.
    first = 0
    for index, code in enumerate([*characters, 32]):
        ends_line = code == 2
        if not ends_line and not chr(code).isspace():
            continue
        last = index if ends_line else index - 1
        if last >= first:
            text = "".join(map(chr, characters[first : last + 1]))
            yield _boxed(pdfium, handle, text, first, index - 1 if ends_line and index > first else last)
        first = index + 1


def _boxed(pdfium: Any, handle: Any, text: str, first: int, last: int) -> Line:
    # The loose box has the font's full height, so that lines without descenders stand level with the others.
    begin, end = pdfium.FS_RECTF(), pdfium.FS_RECTF()
    pdfium.FPDFText_GetLooseCharBox(handle, first, ctypes.byref(begin))
    pdfium.FPDFText_GetLooseCharBox(handle, last, ctypes.byref(end))
    return Line(text=text, left=begin.left, right=end.right, bottom=begin.bottom, top=begin.top)


def _pages_by_pypdf(file: Path) -> tuple[list[Page], str]:
    """The slow way for files that pdfium refuses. There are no places, so lines count as of equal height and width."""
    import pypdf
    from pypdf.errors import PyPdfError

    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted:
            raise FaultyFile("EncryptedPdf")
        title = str((reader.metadata or {}).get("/Title") or "")
        texts = [page.extract_text() for page in reader.pages]
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError) as error:
        raise FaultyFile("BrokenPdf") from error
    if not texts:
        raise FaultyFile("BrokenPdf")
    return [_unplaced_page(text) for text in texts], title


def _unplaced_page(text: str) -> Page:
    rows = [row for row in text.splitlines() if row.strip()]
    height = 12.0 * (len(rows) + 1)
    lines = (
        Line(text=row, left=0, right=6.0 * len(row), bottom=height - 12.0 * number, top=height - 12.0 * number + 10)
        for number, row in enumerate(rows, 1)
    )
    return Page(width=6.0 * max(map(len, rows), default=0), height=height, lines=tuple(lines))
