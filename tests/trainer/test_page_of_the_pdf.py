"""From one answer in a report back to the page of the PDF, checked with another PDF reader than the trainer's."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pypdf
import pytest
import tiny_training
from mark_trainer import data_prep, evaluate, report, report_page
from mark_trainer.answers import Answer
from mark_trainer.base_model import load_tokenizer
from mark_trainer.chunks import cut, page_breaks, page_of
from mark_trainer.dataset import Row
from mark_trainer.documents import Document, read_documents
from mark_trainer.prompts import PromptBuilder
from mark_trainer.publish import file_digest
from mark_trainer.retrieval import named_documents
from mark_trainer.workspace import Work, Workspace
from reportlab.lib.pagesizes import A5
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

PAGES = (
    "The Author shall keep the notice in every copy of the work. Each copy names the Author and the year.",
    "The Licensee shall give thirty days of notice before the end. The notice is written and signed by hand.",
    "The Steward shall bear the cost of every defect for three years. A defect is told within a week & in writing.",
)
ANSWERS = (
    "keep the notice in every copy",
    "give thirty days of notice before the end",
    "bear the cost of every defect",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("workspace")
    tiny_training.write_base(root / "base/tiny")
    (root / "corpus").mkdir()
    style = getSampleStyleSheet()["BodyText"]
    story: list[Any] = []
    for text in PAGES:
        story += [Paragraph(text.replace("&", "&amp;"), style), PageBreak()]
    SimpleDocTemplate(str(root / "corpus/lease & licence.pdf"), pagesize=A5, title="The Lease").build(story)
    return Workspace(root)


@pytest.fixture(scope="module")
def document(workspace: Workspace) -> Document:
    (found,) = read_documents([workspace.path("corpus/lease & licence.pdf")], workspace.root)
    assert isinstance(found, Document) and found.pages == 3
    return found


@pytest.fixture(scope="module")
def rows(document: Document) -> list[Row]:
    """As dataPrep writes them: a passage may begin on one page and end on the next."""
    passages = [
        {
            "chunkId": chunk.id,
            "text": chunk.text,
            "document": document.digest,
            "title": document.title,
            "path": document.path,
            "page": chunk.first_page,
            "span": (chunk.start, chunk.end),
            "pageBreaks": page_breaks(document.page_starts, chunk.start, chunk.end),
        }
        for chunk in cut(document, 200, 60)
    ]
    assert any(passage["pageBreaks"] for passage in passages)
    found = []
    for number, answer in enumerate(ANSWERS):
        start = document.text.index(answer)
        holder = next(p for p in passages if p["span"][0] <= start and start + len(answer) <= p["span"][1])
        others = [passage for passage in passages if passage is not holder]
        row = {
            "id": f"row-{number}",
            "question": f"Which duty does page {number + 1} name?",
            "answer": answer,
            "document": {"digest": document.digest, "title": document.title, "path": document.path, "cluster": "c"},
            "chunkId": holder["chunkId"],
            "page": page_of(document.page_starts, start),
            "span": (start, start + len(answer)),
            "contexts": [others[0], holder | {"oracle": True}],
            "oraclePassage": holder | {"oracle": True},
        }
        found.append(Row.model_validate(row))
    return found


def work_in(workspace: Workspace) -> Work:
    return tiny_training.work_of(workspace, tiny_training.job_input(), stage="eval")


def records_of(workspace: Workspace, rows: list[Row]) -> list[dict[str, Any]]:
    """What the predictions hold when a model gives the right words, written in its own way."""
    documents = named_documents(work_in(workspace), rows)
    builder = PromptBuilder(load_tokenizer(workspace.path("base/tiny")), 250)
    found = []
    for condition in ("closedBook", "retrieved", "oracle"):
        for number, item in enumerate(evaluate.ask(rows, builder, condition)):
            said = item.row.answer.upper() + "." if number == 1 else item.row.answer
            sources = evaluate.sources_of(item, documents)
            record = evaluate.record_of("base", item, Answer(said, stopped=True), (1.0, 4), sources)
            found.append(json.loads(json.dumps(record)))
    return found


def test_page_and_characters_are_those_of_the_pdf(workspace: Workspace, rows: list[Row], document: Document) -> None:
    records = records_of(workspace, rows)
    assert len(records) == 9
    for record in records:
        (cited,) = record["citations"]
        assert cited["state"] == ("repaired" if record["item"] == "row-1" else "verified")
        assert cited["source"] == ("document" if record["condition"] == "closedBook" else "passage")
        assert cited["page"] == record["page"] == int(record["item"][-1]) + 1
        assert cited["span"] == record["span"]
        assert document.text[slice(*cited["span"])] == cited["quote"] == record["reference"]
        reader = pypdf.PdfReader(workspace.path(cited["document"]["path"]))
        assert cited["quote"] in " ".join(reader.pages[cited["page"] - 1].extract_text().split())
        assert record["outcome"] == (None if record["condition"] == "closedBook" else "right")


def test_a_document_that_changed_or_is_gone_is_no_source(workspace: Workspace, rows: list[Row], tmp_path: Path) -> None:
    assert len(named_documents(work_in(workspace), rows)) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert named_documents(work_in(Workspace(empty)), rows) == {}
    (empty / "corpus").mkdir()
    (empty / "corpus/lease & licence.pdf").write_bytes(b"%PDF-1.4 another")
    assert named_documents(work_in(Workspace(empty)), rows) == {}
    outside = [
        row.model_copy(update={"document": row.document.model_copy(update={"path": "../x.pdf"})}) for row in rows
    ]
    assert named_documents(work_in(workspace), outside) == {}
    moved = [row.model_copy(update={"span": (row.span[0] + 1, row.span[1] + 1)}) for row in rows if row.span]
    assert named_documents(work_in(workspace), moved) == {}, "the text is read in another way than it was"


@pytest.mark.slow
def test_rows_of_real_licences_lead_to_their_pages(
    ingested: Path, copy_of: Callable[[Path], Path], make_work: Callable[..., Work]
) -> None:
    """Ingest, dataPrep and eval one after another, as in a run; the model is too small to say anything."""
    root = copy_of(ingested)
    tiny_training.write_base(root / "base/tiny")
    made = data_prep.run(make_work("dataPrep", root=root, dataPrep={"maxSamples": 40, "topK": 2}))
    measured = evaluate.run(
        make_work(
            "eval",
            root=root,
            kind="EvalRun",
            stages=["eval"],
            baseModel={"path": "base/tiny"},
            dataset={"path": made.artifacts[0].path},
            evaluatedModel={"name": "tiny"},
            evaluation={"maxItems": 12, "maxNewTokens": 4},
            dataPrep={"topK": 2},
        )
    )
    paths = {artifact.kind: root / artifact.path for artifact in measured.artifacts}
    lines = [json.loads(line) for line in paths["predictions"].read_text().splitlines()]
    numbers = json.loads(paths["report"].read_text())
    assert numbers["dataset"]["documentsAtHand"] == len({line["document"]["digest"] for line in lines}) > 0
    assert numbers["retrieval"]["itemsWithoutCharacters"] == 0 and len(numbers["retrieval"]["atK"]) == 2
    for line in lines:
        document = root / line["document"]["path"]
        assert file_digest(document) == line["document"]["digest"]
        page = " ".join(pypdf.PdfReader(document).pages[line["page"] - 1].extract_text().split())
        assert " ".join(line["reference"].split()[:2]) in page, line["reference"]
    links = read(paths["page"].read_text()).links
    assert all((root / "reports" / unquote(link.split("#")[0])).resolve().is_file() for link in links) and links


class Page(HTMLParser):
    """A strict reading of the page: every tag closed in its order; collects links, ids and marked words."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.marked: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        of_tag = dict(attrs)
        assert "src" not in of_tag and tag not in ("script", "link", "img", "iframe")
        if tag == "a":
            self.links.append(of_tag["href"] or "")
        if "id" in of_tag:
            self.ids.append(of_tag["id"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "path")

    def handle_data(self, data: str) -> None:
        self.text += data
        if "mark" in self.open:
            self.marked.append(data)


def read(page: str) -> Page:
    found = Page()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


def test_the_page_shows_the_way(workspace: Workspace, rows: list[Row], document: Document) -> None:
    records = records_of(workspace, rows)
    hostile = records[0] | {"item": "row-9", "prediction": "<script>alert(1)</script>", "question": 'A "<b>" & more?'}
    page = report_page.page(whole_report([*records, hostile]), [*records, hostile])
    found = read(page)
    assert found.ids == ["item-row-0", "item-row-1", "item-row-2", "item-row-9"]
    for number, answer in enumerate(ANSWERS):
        assert answer in found.marked
        assert f"../corpus/lease%20%26%20licence.pdf#page={number + 1}" in found.links
    assert f"sha256 {document.digest}" in found.text and "characters" in found.text
    assert "<script>" not in page and "<script>alert(1)</script>" in found.text
    assert "http" not in page
    assert (workspace.root / "reports" / unquote(found.links[0].split("#")[0])).resolve().is_file()


def whole_report(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": "contracts-lora",
        "time": "2026-05-04T10:25:00Z",
        "base": {"path": "base/tiny", "digest": "b" * 64},
        "adapter": None,
        "dataset": {"digest": "d" * 64},
        "prompt": {"digest": "e" * 64},
        "predictions": {"path": "reports/x.predictions.jsonl", "digest": "f" * 64},
        "bleuSignature": "nrefs:1",
        "heldOutText": None,
        "definitions": report.definitions(),
        **report.summarise(records, ("exactMatch", "f1", "rougeL", "bleu")),
    }
