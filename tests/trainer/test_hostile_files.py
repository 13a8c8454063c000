"""Files that are broken or built to do harm: each is left out with its reason, and the rest goes on."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_pdf
import pypdf
import pytest
from mark_trainer import documents, ingest, printed_lines
from mark_trainer.collection import open_collection
from mark_trainer.documents import Unreadable, read_documents
from mark_trainer.failures import BadData
from mark_trainer.workspace import Work

MakeWork = Callable[..., Work]
WritePdf = Callable[[Path, str, str], Path]
GOOD = Path(__file__).resolve().parents[2] / "manifests" / "corpus" / "CC0-1.0.pdf"

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb.pdf": (lambda: hostile_pdf.decompression_bomb(64), "ReaderDied"),
    "crowded.pdf": (lambda: hostile_pdf.crowded(600_000), "TooLarge"),
    "tree.pdf": (hostile_pdf.page_tree_loop, "BrokenPdf"),
    "many.pdf": (lambda: hostile_pdf.many_pages(documents.MOST_PAGES + 1), "TooLarge"),
    "locked.pdf": (lambda: hostile_pdf.encrypted(GOOD), "EncryptedPdf"),
    "cut.pdf": (lambda: GOOD.read_bytes()[:3000], "BrokenPdf"),
    "image.pdf": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(2000), "NotPdf"),
    "empty.pdf": (lambda: b"", "NotPdf"),
}
LINKS = {
    "out.pdf": "OutsideWorkspace",
    "nothing.pdf": "NotFile",
    "circle.pdf": "NotFile",
    "pipe.pdf": "NotFile",
    "caf\\udce9.pdf": "BadName",
}


@pytest.mark.slow
def test_each_hostile_file_is_left_out_with_its_reason_and_the_rest_goes_on(
    make_work: MakeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Enough for any honest file, and less of this machine.
    monkeypatch.setattr(documents, "WORKER_MEMORY_BYTES", 768 * 1024**2)
    work = make_work()
    corpus = work.workspace.root / "corpus"
    corpus.mkdir()
    shutil.copy(GOOD, corpus / "good.pdf")
    shutil.copy(GOOD, tmp_path / "outside.pdf")
    for name, (content, _) in FILES.items():
        (corpus / name).write_bytes(content())
    for put in hostile_pdf.links(corpus, tmp_path / "outside.pdf").values():
        put()
    # These two look dangerous and are not.
    (corpus / "form.pdf").write_bytes(hostile_pdf.form_loop())
    (corpus / "long.pdf").write_bytes(hostile_pdf.many_pages(3000))

    result = ingest.run(work)

    report = json.loads((work.run_folder / "ingest_report.json").read_text())
    expected = {f"corpus/{name}": fault for name, (_, fault) in FILES.items()}
    expected |= {f"corpus/{name}": fault for name, fault in LINKS.items()}
    assert {entry["path"]: entry["reason"] for entry in report["leftOut"]} == expected
    assert all(entry["cure"].startswith(entry["path"] + ": ") for entry in report["leftOut"])
    assert [entry["path"] for entry in report["documents"]] == ["corpus/good.pdf"]
    assert [(entry["path"], entry["pages"]) for entry in report["withoutText"]] == [
        ("corpus/form.pdf", 1),
        ("corpus/long.pdf", 3000),
    ]
    found = {measure.name: measure.value for measure in result.measures}
    assert found["documents"] == "1" and found["leftOutFiles"] == str(len(expected))
    assert found["leftOutEncryptedPdf"] == "1" and found["leftOutNotFile"] == "3" and found["leftOutNotPdf"] == "2"
    assert f"{len(expected)} unusable files left out (1 BadName, 2 BrokenPdf" in result.message
    # What `mark status` shows in one line begins with them.
    assert [measure.name for measure in result.measures][:3] == ["documents", "leftOutFiles", "leftOutBadName"]
    assert len(result.measures) <= 24 and "see runs/run-1/ingest_report.json" in result.message
    with open_collection(work) as collection:
        (document,) = collection.read().documents
    assert "Creative Commons" in document.text


@pytest.mark.slow
def test_a_file_beyond_its_time_is_ended_and_looked_at_again_next_time(
    make_work: MakeWork, write_pdf: WritePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(ingest={"crossCheckPages": 0})
    corpus = work.workspace.root / "corpus"
    write_pdf(corpus / "lease.pdf", "Lease", "The tenant pays the rent on the first day of the month.")
    (corpus / "slow.pdf").write_bytes(hostile_pdf.crowded(3000, pages=4000))
    with monkeypatch.context() as patch:
        patch.setattr(documents, "SECONDS_TO_READ", 4.0)
        started = time.monotonic()
        result = ingest.run(work)
    assert "1 unusable files left out (1 TooSlow): corpus/slow.pdf" in result.message
    (left_out,) = json.loads((work.run_folder / "ingest_report.json").read_text())["leftOut"]
    assert left_out["cure"].startswith("corpus/slow.pdf: takes too long to open or to read; print it to a new PDF")
    assert time.monotonic() - started < 60
    with open_collection(work) as collection:
        changes = ingest.see_changes(work, ingest.see_corpus(work), collection)
    assert [file.name for file in changes.new] == ["corpus/slow.pdf"] and len(changes.unchanged) == 1


def test_without_any_usable_file_the_stage_fails_and_writes_nothing(make_work: MakeWork) -> None:
    work = make_work()
    corpus = work.workspace.root / "corpus"
    corpus.mkdir()
    (corpus / "cut.pdf").write_bytes(GOOD.read_bytes()[:3000])
    with pytest.raises(BadData, match=r"^BrokenPdf: corpus/cut.pdf: cannot be read as a PDF; copy it again"):
        ingest.run(work)
    with open_collection(work) as collection:
        assert collection.digest is None and collection.count == 0


def test_a_link_out_of_the_workspace_fails_where_bad_files_shall(make_work: MakeWork, tmp_path: Path) -> None:
    work = make_work(ingest={"onBadFile": "Fail"})
    corpus = work.workspace.root / "corpus"
    corpus.mkdir()
    for name, target in (("good.pdf", corpus), ("outside.pdf", tmp_path)):
        shutil.copy(GOOD, target / name)
    (corpus / "link.pdf").symlink_to(tmp_path / "outside.pdf")
    with pytest.raises(BadData, match=r"^OutsideWorkspace: corpus/link.pdf: leads out of the workspace"):
        ingest.run(work)
    assert not (work.run_folder / "ingest_report.json").exists()


def test_a_file_that_breaks_our_own_reader_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOOD, tmp_path / "good.pdf")
    task = (str(tmp_path / "good.pdf"), "good.pdf")

    def broken(*arguments: Any) -> None:
        raise OverflowError("a place beyond every page")

    monkeypatch.setattr(printed_lines, "lines_of", broken)
    assert documents.read_document(task) == Unreadable("good.pdf", "ReaderDied")


def test_a_file_that_pdfium_refuses_is_read_by_pypdf(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: Path) -> None:
        raise documents.FaultyFile("BrokenPdf")

    monkeypatch.setattr(documents, "_open", refused)
    document = documents.read_document((str(GOOD), "good.pdf"))
    assert isinstance(document, documents.Document)
    monkeypatch.delattr(pypdf.PageObject, "extract_text")  # to count pages no text is read
    assert documents._count_pages((str(GOOD), "good.pdf")) == document.pages == 3
    assert "Creative Commons" in document.text and min(document.page_quality) > 90


def test_the_second_reader_looks_at_evenly_spread_pages_and_agrees_on_honest_files() -> None:
    (document,) = read_documents([GOOD], GOOD.parent, cross_checked_pages=2)
    assert isinstance(document, documents.Document) and document.agreement is not None
    assert [page for page, _ in document.agreement] == [1, 3]
    assert all(shared >= 90 for _, shared in document.agreement)
    assert documents._evenly_spread(10, 2) == [2, 7] and documents._evenly_spread(2, 9) == [0, 1]


def test_a_font_that_lies_is_a_disagreement_or_a_poor_page(tmp_path: Path) -> None:
    """A font whose table says that every letter is another one: what is printed is not what is read."""
    table = b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <FF> endcodespacerange\n"
    table += b"1 beginbfrange <20> <7E> <E020> endbfrange endcmap end"
    font = hostile_pdf.FONT.replace(b">>", b"/ToUnicode 6 0 R >>")
    text = b"BT /F 12 Tf 20 700 Td (The tenant pays the rent on the first day of the month) Tj ET"
    parts = [hostile_pdf.CATALOG, hostile_pdf.PAGES, hostile_pdf.PAGE % b"", hostile_pdf.stream(text), font]
    (tmp_path / "lie.pdf").write_bytes(hostile_pdf.assembled([*parts, hostile_pdf.stream(table)]))
    (document,) = read_documents([tmp_path / "lie.pdf"], tmp_path)
    assert not isinstance(document, Unreadable) and document.page_quality == (0,)
