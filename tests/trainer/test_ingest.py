"""PDF files into a real embedded Chroma: incremental, repeatable, and never half a collection."""

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_output import Result
from mark_trainer import ingest
from mark_trainer.chunks import page_of
from mark_trainer.collection import Collection, Content, open_collection, recorded_digest
from mark_trainer.documents import find_pdf_files, read_documents
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.workspace import Work
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

MakeWork = Callable[..., Work]
WritePdf = Callable[[Path, str, str], Path]
CopyOf = Callable[[Path], Path]

CLAUSES = {
    "lease": "The tenant pays the rent on the first day of the month.\nThe landlord keeps the house in repair.",
    "sale": "The seller delivers the goods to the buyer.\nThe buyer pays the price within ten days.",
    "loan": "The bank lends a sum of money to the borrower.\nThe borrower pays it back with interest.",
}


@pytest.fixture
def work(make_work: MakeWork, write_pdf: WritePdf) -> Work:
    """Three one-page contracts, not yet ingested."""
    made = make_work()
    for name, text in CLAUSES.items():
        write_pdf(made.workspace.root / "corpus" / f"{name}.pdf", f"Model {name}", text)
    return made


def measures(result: Result) -> dict[str, str]:
    return {measure.name: measure.value for measure in result.measures}


def content(work: Work) -> Content:
    with open_collection(work) as collection:
        return collection.read()


def test_the_collection_holds_every_document_whole_and_with_its_pages(
    ingested: Path, copy_of: CopyOf, make_work: MakeWork
) -> None:
    read = content(make_work(root=copy_of(ingested)))
    expected = list(read_documents(find_pdf_files(ingested / "corpus"), ingested))
    assert list(read.documents) == expected
    for passage in read.passages:
        document = read.document_of[passage.document]
        assert passage.text == document.text[passage.start : passage.end]
        page = PdfReader(ingested / document.path).pages[passage.first_page - 1].extract_text()
        assert passage.text.split()[0] in unicodedata.normalize("NFKC", page)
        assert page_of(document.page_starts, passage.start) == passage.first_page


def test_unchanged_documents_cost_nothing(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ingest.run(work)
    assert measures(first)["newDocuments"] == "3"
    monkeypatch.setattr(ingest, "_add_new", None)
    second = ingest.run(work)
    assert measures(second)["unchangedDocuments"] == "3" and second.artifacts == first.artifacts


def test_new_removed_and_changed_documents(work: Work, write_pdf: WritePdf) -> None:
    first = ingest.run(work)
    corpus = work.workspace.root / "corpus"
    (corpus / "sale.pdf").unlink()
    write_pdf(corpus / "loan.pdf", "Model loan", CLAUSES["loan"] + "\nThe interest is three percent a year.")
    write_pdf(corpus / "work.pdf", "Model work", "The worker does the work and the employer pays the wage for it.")
    second = ingest.run(work)
    found = measures(second)
    assert (found["newDocuments"], found["unchangedDocuments"], found["removedDocuments"]) == ("2", "1", "2")
    assert {document.path for document in content(work).documents} == {
        f"corpus/{name}.pdf" for name in ("lease", "loan", "work")
    }
    assert second.artifacts[0].digest != first.artifacts[0].digest


def test_other_chunk_settings_write_the_documents_anew(make_work: MakeWork, work: Work) -> None:
    ingest.run(work)
    other = make_work(ingest={"chunkCharacters": 200, "chunkOverlapCharacters": 0})
    assert measures(ingest.run(other))["newDocuments"] == "3"
    assert measures(ingest.run(other))["newDocuments"] == "0"


def test_the_same_file_twice_is_one_document(work: Work) -> None:
    corpus = work.workspace.root / "corpus"
    shutil.copy(corpus / "sale.pdf", corpus / "copy.pdf")
    found = measures(ingest.run(work))
    assert (found["documents"], found["copies"]) == ("3", "1")


@pytest.mark.parametrize("documents_before", [0, 1, 2])
def test_killed_in_the_middle_and_run_again_gives_the_same_collection(
    work: Work, make_work: MakeWork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, documents_before: int
) -> None:
    straight = make_work(root=Path(shutil.copytree(work.workspace.root, tmp_path / "straight")))
    expected = ingest.run(straight).artifacts[0].digest
    add, count = Collection.add, 0

    def add_until_killed(self: Collection, *arguments: Any) -> None:
        nonlocal count
        if count == documents_before:
            document, chunks, vectors, settings = arguments
            add(self, document, chunks[: len(chunks) // 2], vectors[: len(chunks) // 2], settings)
            raise KeyboardInterrupt
        count += 1
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "add", add_until_killed)
        with pytest.raises(KeyboardInterrupt):
            ingest.run(work)
    assert recorded_digest(work) is None
    with pytest.raises(BadData, match="was not written to its end"):
        content(work)
    assert ingest.run(work).artifacts[0].digest == expected
    assert content(work).digest == expected


def test_asked_to_stop_it_keeps_what_is_written(work: Work) -> None:
    work.stop.set()
    with pytest.raises(Stopped):
        ingest.run(work)
    work.stop.clear()
    assert measures(ingest.run(work))["documents"] == "3"


def test_an_empty_corpus_says_how_to_fill_it(make_work: MakeWork) -> None:
    work = make_work()
    (work.workspace.root / "corpus").mkdir()
    with pytest.raises(
        UserMistake, match=r"ingest.path: no PDF file in folder corpus .*`mark put DIR corpus`"
    ) as caught:
        ingest.run(work)
    assert caught.value.reason == "EmptyCorpus"


def test_bad_files_are_all_named_and_the_collection_is_left_alone(work: Work) -> None:
    before = ingest.run(work).artifacts[0].digest
    corpus = work.workspace.root / "corpus"
    (corpus / "notes.pdf").write_text("notes")
    writer = PdfWriter(clone_from=corpus / "sale.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(corpus / "secret.pdf")
    with pytest.raises(BadData) as caught:
        ingest.run(work)
    assert caught.value.message == (
        "corpus/notes.pdf: is no PDF file; remove it from the corpus or convert it; "
        "corpus/secret.pdf: is encrypted; save a copy without a password, or remove it from the corpus"
    )
    assert recorded_digest(work) == before


def test_scans_are_reported_and_a_corpus_of_scans_fails(work: Work) -> None:
    corpus = work.workspace.root / "corpus"
    canvas = Canvas(str(corpus / "scan.pdf"))
    canvas.rect(100, 100, 200, 200, fill=1)
    canvas.save()
    result = ingest.run(work)
    assert "without text, so left out: corpus/scan.pdf (run OCR on them)" in result.message
    assert measures(result)["documentsWithoutText"] == "1" and measures(result)["documents"] == "3"
    for name in CLAUSES:
        (corpus / f"{name}.pdf").unlink()
    with pytest.raises(BadData, match="these are scans; run OCR"):
        ingest.run(work)


def test_a_link_out_of_the_workspace_is_refused(work: Work, write_pdf: WritePdf, tmp_path: Path) -> None:
    outside = write_pdf(tmp_path / "outside.pdf", "Outside", "Not for this run.")
    (work.workspace.root / "corpus" / "link.pdf").symlink_to(outside)
    with pytest.raises(UserMistake, match=r"corpus/link.pdf: leads out of the workspace"):
        ingest.run(work)


def test_a_changed_collection_is_noticed(work: Work) -> None:
    ingest.run(work)
    with open_collection(work) as collection:
        collection.remove(collection.read().documents[0].digest)
    with pytest.raises(BadData, match="was changed after ingest"):
        content(work)


def test_search_is_exact_and_stays_within_the_allowed_documents(
    ingested: Path, copy_of: CopyOf, make_work: MakeWork
) -> None:
    read = content(make_work(root=copy_of(ingested)))
    (found,) = read.search(read.vectors[5:6], 4)
    assert found[0] == read.passages[5] and len(found) == 4
    allowed = {read.documents[1].digest}
    (within,) = read.search(read.vectors[5:6], 4, allowed)
    assert {passage.document for passage in within} == allowed
