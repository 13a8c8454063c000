"""PDF files into a real embedded Chroma: incremental, repeatable, and never half a collection."""

import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile_pdf
import pytest
from mark_crds.job_output import Result
from mark_trainer import documents, ingest
from mark_trainer.chunks import page_of
from mark_trainer.collection import Collection, Content, open_collection, recorded_digest
from mark_trainer.documents import find_pdf_files, read_documents
from mark_trainer.embedding import Embedder
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.workspace import Work
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

pytestmark = pytest.mark.slow

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


def test_unchanged_files_cost_no_opening_no_vector_and_no_write(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = work.workspace.root / "corpus"
    (corpus / "notes.pdf").write_text("notes")
    canvas = Canvas(str(corpus / "scan.pdf"))
    canvas.rect(100, 100, 200, 200, fill=1)
    canvas.save()
    costs: Counter[str] = Counter()

    def counted(owner: Any, name: str, amount: Callable[..., int]) -> None:
        function = getattr(owner, name)

        def count(*arguments: Any, **keywords: Any) -> Any:
            costs[name] += amount(*arguments)
            return function(*arguments, **keywords)

        monkeypatch.setattr(owner, name, count)

    counted(documents, "each_isolated", lambda steps, inputs, *rest: len(steps) * len(inputs))
    counted(Embedder, "embed", lambda self, texts, *rest: len(texts))
    counted(Collection, "begin", lambda self: 1)
    first = ingest.run(work)
    # Five files opened; the four that opened read, and checked by a second reader.
    assert costs == {"each_isolated": 5 + 4 + 4, "embed": 3, "begin": 1}
    assert measures(first)["newDocuments"] == "3"
    costs.clear()
    second = ingest.run(work)
    assert costs.total() == 0
    assert measures(second)["unchangedDocuments"] == "3" and second.artifacts == first.artifacts
    assert measures(second)["leftOutFiles"] == measures(second)["documentsWithoutText"] == "1"
    (corpus / "lease.pdf").write_bytes((corpus / "lease.pdf").read_bytes() + b"\n")
    ingest.run(work)
    assert costs == {"each_isolated": 3, "embed": 1, "begin": 1}


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


def test_where_bad_files_fail_all_are_named_and_the_collection_is_left_alone(work: Work, make_work: MakeWork) -> None:
    before = ingest.run(work).artifacts[0].digest
    corpus = work.workspace.root / "corpus"
    (corpus / "notes.pdf").write_text("notes")
    writer = PdfWriter(clone_from=corpus / "sale.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(corpus / "secret.pdf")
    with pytest.raises(BadData) as caught:
        ingest.run(make_work(ingest={"onBadFile": "Fail"}))
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
    (corpus / "stamped.pdf").write_bytes(hostile_pdf.stamped_scan(b"ABC0000017 Received by the clerk"))
    result = ingest.run(work)
    assert "without text, so left out: corpus/scan.pdf, corpus/stamped.pdf (run OCR on them)" in result.message
    assert measures(result)["documentsWithoutText"] == "2" and measures(result)["documents"] == "3"
    for name in CLAUSES:
        (corpus / f"{name}.pdf").unlink()
    with pytest.raises(BadData, match="these are scans; run OCR"):
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


def test_progress_is_in_pages_and_moves_within_a_document(
    make_work: MakeWork, write_pdf: WritePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(ingest={"chunkCharacters": 200, "chunkOverlapCharacters": 0})
    text = "\n".join(f"Clause {number}: the tenant pays the rent of month {number}." for number in range(150))
    write_pdf(work.workspace.root / "corpus" / "lease.pdf", "Lease", text)
    write_pdf(work.workspace.root / "corpus" / "sale.pdf", "Sale", CLAUSES["sale"])
    told: list[tuple[int, int]] = []
    object.__setattr__(work, "progress", SimpleNamespace(report=lambda step, steps, **_: told.append((step, steps))))
    result = ingest.run(work)
    pages = int(measures(result)["pages"])
    assert pages == 5 and told[-1] == (pages, pages) and {steps for _, steps in told} == {pages}
    assert told == sorted(told) and any(0 < step < 4 for step, _ in told)


def test_a_stop_within_a_long_document_leaves_nothing_of_it(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = Embedder.embed

    def stopped_meanwhile(self: Embedder, texts: Any, done: Any) -> Any:
        work.stop.set()
        return embed(self, texts, done)

    monkeypatch.setattr(Embedder, "embed", stopped_meanwhile)
    with pytest.raises(Stopped):
        ingest.run(work)
    with open_collection(work) as collection:
        assert collection.count == 0


def test_passages_must_be_the_spans_that_their_ids_say(work: Work) -> None:
    ingest.run(work)
    with open_collection(work) as collection:
        chroma = collection._chroma
        row = chroma.get(limit=1, include=["metadatas"])
        chroma.update(ids=row["ids"], metadatas=[row["metadatas"][0] | {"start": 1}])
    with pytest.raises(BadData, match="run the stage ingest"):
        content(work)


def test_a_collection_of_an_older_trainer_is_written_anew(work: Work) -> None:
    digest = ingest.run(work).artifacts[0].digest
    with open_collection(work) as collection:
        chroma = collection._chroma
        rows = chroma.get(include=["metadatas"])
        older = [{**metadata, "pageQuality": None} for metadata in rows["metadatas"]]
        chroma.update(ids=rows["ids"], metadatas=older)
        chroma.modify(metadata={"markFormatVersion": 1, "markComplete": True, "markDigest": digest})
        assert collection.digest is None and collection.held() == {}
    assert measures(ingest.run(work))["newDocuments"] == "3"
    assert content(work).digest == digest
