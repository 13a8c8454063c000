"""PDF files of a corpus: which there are, whether they can be read, and their clean text with the pages.

Every file is opened in a worker process with limits, because a hostile or broken file may crash, hang or fill memory.
It must not import torch or write anything.
"""

import logging
import os
import re
import stat
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mark_trainer.clean_text import Line, Page, clean
from mark_trainer.isolation import Step, Trouble, each_isolated
from mark_trainer.page_quality import agreement, quality
from mark_trainer.publish import file_digest

LARGEST_FILE_BYTES = 512 * 1024**2
MOST_PAGES = 20_000
# A sheet of the smallest print holds some 20,000.
MOST_CHARACTERS_OF_A_PAGE = 500_000
WORKER_MEMORY_BYTES = 2 * 1024**3
SECONDS_TO_OPEN = 20.0
SECONDS_TO_READ = 300.0
SECONDS_TO_CHECK = 20.0
# A page with no more characters than these, on pictures over more than this share of it, is a scan with a stamp.
STAMP_CHARACTERS = 150
PICTURE_SHARE = 0.5

Fault = Literal[
    "NotPdf",
    "EncryptedPdf",
    "BrokenPdf",
    "TooLarge",
    "TooSlow",
    "ReaderDied",
    "NotFile",
    "NoAccess",
    "BadName",
    "OutsideWorkspace",
]
_CURES: dict[Fault, str] = {
    "NotPdf": "is no PDF file; remove it from the corpus or convert it",
    "EncryptedPdf": "is encrypted; save a copy without a password, or remove it from the corpus",
    "BrokenPdf": "cannot be read as a PDF; copy it again from its source, or remove it from the corpus",
    "TooLarge": f"has more than {MOST_PAGES} pages, {LARGEST_FILE_BYTES // 1024**2} MiB, or "
    f"{MOST_CHARACTERS_OF_A_PAGE} characters on a page; split it",
    "TooSlow": "takes too long to open or to read; print it to a new PDF, or remove it from the corpus",
    "ReaderDied": f"makes its reader fail, or needs more than {WORKER_MEMORY_BYTES // 1024**3} GiB of memory; "
    "print it to a new PDF, or remove it from the corpus",
    "NotFile": "is no regular file, or a link to nothing; remove it from the corpus",
    "NoAccess": "may not be read by the trainer's user; give the group of the volume read access",
    "BadName": "has a name that is no UTF-8 text; rename it",
    "OutsideWorkspace": "leads out of the workspace through a symbolic link; copy the file itself into the corpus",
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
    """Numbers of the pages without text, from 1: scans, as a rule. A stamp on a picture is no text."""
    page_quality: tuple[int, ...] = ()
    """For each page the percentage of its characters that look like text."""
    agreement: tuple[tuple[int, int], ...] | None = field(default=None, compare=False)
    """Page number and percentage of shared words of each page that a second reader read too; None when it could not."""

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


def seen_fault(file: Path, root: Path) -> Fault | None:
    """What is wrong with a file as far as that can be seen without opening it."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return "BadName"
    try:
        if not Path(os.path.realpath(file, strict=True)).is_relative_to(root):
            return "OutsideWorkspace"
        facts = file.stat()
    except PermissionError:
        return "NoAccess"
    except OSError:  # a link to nothing, or links in a circle
        return "NotFile"
    if not stat.S_ISREG(facts.st_mode):
        return "NotFile"
    if facts.st_size > LARGEST_FILE_BYTES:
        return "TooLarge"
    return None if os.access(file, os.R_OK) else "NoAccess"


def path_text(file: Path, root: Path) -> str:
    """The path of a file below `root` as people and JSON can read it, links not followed."""
    return file.relative_to(root).as_posix().encode(errors="backslashreplace").decode()


def count_pages(files: Sequence[Path], root: Path) -> Iterator[int | Unreadable]:
    """The number of pages of each file, or why it cannot be used; only the file's structure is read."""
    for (count,) in _each([Step(_count_pages, SECONDS_TO_OPEN)], files, root):
        yield count


def read_documents(files: Sequence[Path], root: Path, cross_checked_pages: int = 0) -> Iterator[Document | Unreadable]:
    """Each file's document, in order, or why it cannot be used; `root` is what paths are relative to.

    With `cross_checked_pages`, up to so many pages of each, evenly spread, are read by pypdf too, and the document says
    how far the readings agree. Trouble in that costs no document.
    """
    check = Step(partial(cross_check_document, cross_checked_pages), SECONDS_TO_CHECK)
    steps = [Step(read_document, SECONDS_TO_READ), *([check] if cross_checked_pages else [])]
    for document, *checked in _each(steps, files, root):
        if isinstance(document, Document):
            agreement = checked[0] if checked else ()
            document = replace(document, agreement=None if isinstance(agreement, Unreadable) else agreement)
        yield document


def _each(steps: Sequence[Step], files: Sequence[Path], root: Path) -> Iterator[Sequence[Any]]:
    tasks = [(str(file), path_text(file, root)) for file in files]
    for (_, path), outcomes in zip(tasks, each_isolated(steps, tasks, WORKER_MEMORY_BYTES), strict=True):
        yield [_without_trouble(outcome, path) for outcome in outcomes]


def _without_trouble(outcome: Any, path: str) -> Any:
    if isinstance(outcome, Trouble):
        return Unreadable(path, "TooSlow" if outcome.timed_out else "ReaderDied")
    return outcome


def _count_pages(task: tuple[str, str]) -> int | Unreadable:
    file, path = Path(task[0]), task[1]
    try:
        pdf = _open(file)
    except FaultyFile as error:
        if error.fault != "BrokenPdf":
            return Unreadable(path, error.fault)
        try:
            return len(_open_by_pypdf(file).pages)
        except FaultyFile as second:
            return Unreadable(path, second.fault)
    try:
        return len(pdf)
    finally:
        pdf.close()


def read_document(task: tuple[str, str]) -> Document | Unreadable:
    """One file, named by its own path and the one to show: what a worker does with it."""
    try:
        return _document(Path(task[0]), task[1])
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a file can be built to break its reader anywhere
        traceback.print_exc()
        return Unreadable(task[1], "ReaderDied")


def _document(file: Path, path: str) -> Document | Unreadable:
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
    ends = (*cleaned.page_starts[1:], len(cleaned.text))
    spans = zip(pages, cleaned.page_starts, ends, strict=True)
    return Document(
        digest=file_digest(file),
        path=path,
        title=title_of(metadata_title, cleaned.text, file.stem),
        text=cleaned.text,
        page_starts=cleaned.page_starts,
        textless_pages=tuple(number for number, (page, start, end) in enumerate(spans, 1) if page.scan or start == end),
        page_quality=tuple(quality(" ".join(line.text for line in page.lines)) for page in pages),
    )


def cross_check_document(wanted: int, task: tuple[str, str]) -> tuple[tuple[int, int], ...] | None:
    """Page number and percentage of shared words of `wanted` pages of one file; None where pypdf cannot read it."""
    file = Path(task[0])
    try:
        pdf, reader = _open(file), _pypdf_reader(file)
        if reader.is_encrypted:
            reader.decrypt("")
        found = []
        for index in _evenly_spread(len(pdf), wanted):
            words = " ".join(line.text for line in _page(pdf[index]).lines)
            shared = agreement(words, reader.pages[index].extract_text())
            if shared is not None:
                found.append((index + 1, shared))
        return tuple(found)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - pypdf answers broken files with exceptions of every kind
        return None


def _evenly_spread(pages: int, wanted: int) -> list[int]:
    """Positions of `wanted` pages, each from the middle of an equal share of the document."""
    wanted = min(wanted, pages)
    return [(2 * number + 1) * pages // (2 * wanted) for number in range(wanted)]


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
        title = pdf.get_metadata_value("Title")
        return [_page(pdf[index]) for index in range(len(pdf))], title
    except pypdfium2.PdfiumError as error:
        raise FaultyFile("BrokenPdf") from error
    finally:
        pdf.close()


def _page(page: Any) -> Page:
    from mark_trainer.printed_lines import lines_of

    text_page = page.get_textpage()
    try:
        if text_page.count_chars() > MOST_CHARACTERS_OF_A_PAGE:
            raise FaultyFile("TooLarge")
        width, height = page.get_size()
        scan = text_page.count_chars() <= STAMP_CHARACTERS and _is_picture(page)
        return Page(width, height, tuple(lines_of(text_page, height)), scan)
    finally:
        text_page.close()
        page.close()


def _is_picture(page: Any) -> bool:
    """Whether pictures cover most of a page."""
    import pypdfium2.raw

    left, bottom, right, top = page.get_bbox()
    covered = 0.0
    for picture in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        first, low, last, high = picture.get_bounds()
        covered += max(0.0, min(last, right) - max(first, left)) * max(0.0, min(high, top) - max(low, bottom))
    return covered > PICTURE_SHARE * (right - left) * (top - bottom)


def _pages_by_pypdf(file: Path) -> tuple[list[Page], str]:
    """The slow way for files that pdfium refuses. There are no places, so lines count as of equal height and width."""
    reader = _open_by_pypdf(file)
    try:
        title = str((reader.metadata or {}).get("/Title") or "")
        return [_unplaced_page(page.extract_text()) for page in reader.pages], title
    except MemoryError:
        raise
    except Exception as error:  # pypdf answers broken files with exceptions of every kind
        raise FaultyFile("BrokenPdf") from error


def _open_by_pypdf(file: Path) -> Any:
    try:
        reader = _pypdf_reader(file)
        encrypted, pages = reader.is_encrypted, 0 if reader.is_encrypted else len(reader.pages)
    except MemoryError:
        raise
    except Exception as error:
        raise FaultyFile("BrokenPdf") from error
    if encrypted:
        raise FaultyFile("EncryptedPdf")
    if not 0 < pages <= MOST_PAGES:
        raise FaultyFile("TooLarge" if pages else "BrokenPdf")
    return reader


def _pypdf_reader(file: Path) -> Any:
    import pypdf

    # What it grumbles about on the way, the fault or the agreement of the pages tells.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    return pypdf.PdfReader(file)


def _unplaced_page(text: str) -> Page:
    rows = [row for row in text.splitlines() if row.strip()]
    height = 12.0 * (len(rows) + 1)
    lines = (
        Line(text=row, left=0, right=6.0 * len(row), bottom=height - 12.0 * number, top=height - 12.0 * number + 10)
        for number, row in enumerate(rows, 1)
    )
    return Page(width=6.0 * max(map(len, rows), default=0), height=height, lines=tuple(lines))
