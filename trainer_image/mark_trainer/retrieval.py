"""The texts that go with validation rows: the passages that the dataset recorded, else an exact search in the
collection; and the documents themselves.

It must not build prompts or judge answers.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mark_trainer.chunks import page_breaks
from mark_trainer.citations import Source
from mark_trainer.dataset import Passage, Row
from mark_trainer.documents import Document, read_documents
from mark_trainer.failures import UserMistake
from mark_trainer.publish import file_digest
from mark_trainer.workspace import Work

if TYPE_CHECKING:
    from mark_trainer.collection import Passage as Found


def with_passages(work: Work, rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its `topK` nearest passages. The collection is opened only for rows that record none."""
    count = work.job_input.data_prep.top_k
    recorded = [
        row.model_copy(update={"contexts": row.contexts[:count]})
        if row.contexts is not None and len(row.contexts) >= count
        else None
        for row in rows
    ]
    missing = [row for row, found in zip(rows, recorded, strict=True) if found is None]
    searched = iter(_search(work, missing, count) if missing else [])
    return [next(searched) if found is None else found for found in recorded]


def oracle(row: Row) -> Passage | None:
    """The chunk that holds the answer, where the row records it."""
    if row.oracle_passage is not None:
        return row.oracle_passage
    held = [passage for passage in row.contexts or () if passage.oracle or passage.chunk_id == row.chunk_id]
    return held[0] if held else None


def named_documents(work: Work, rows: Sequence[Row]) -> dict[str, Source]:
    """By digest the whole text of the rows' documents: of those whose file lies in the workspace as it was ingested,
    and that give the text today that the rows were made from.
    """
    of_document: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_document[row.document.digest].append(row)
    files = {
        digest: file
        for digest, its_rows in of_document.items()
        if (file := _file_in_workspace(work, its_rows[0].document.path)) is not None and file_digest(file) == digest
    }
    found = read_documents(list(files.values()), work.workspace.root)
    return {
        digest: Source(
            text=document.text,
            document=digest,
            page_breaks=document.page_starts[1:],
            path=document.path,
            title=of_document[digest][0].document.title,
        )
        for digest, document in zip(files, found, strict=True)
        if isinstance(document, Document) and _holds_answers(document, of_document[digest])
    }


def _file_in_workspace(work: Work, relative: str) -> Path | None:
    file = (work.workspace.root / relative).resolve()
    return file if relative and file.is_relative_to(work.workspace.root) and file.is_file() else None


def _holds_answers(document: Document, rows: Sequence[Row]) -> bool:
    return all(document.text[slice(*row.span)] == row.answer for row in rows if row.answerable and row.span is not None)


def _search(work: Work, rows: Sequence[Row], count: int) -> list[Row]:
    from mark_trainer.collection import open_collection
    from mark_trainer.embedding import Embedder

    with open_collection(work) as collection:
        content = collection.read()
    if not content.passages:
        raise UserMistake("EmptyCollection", "dataPrep.collection: has no passages; run the stage ingest on it")
    found = content.search(Embedder().embed([row.question for row in rows]), count)
    return [
        row.model_copy(
            update={
                "contexts": tuple(
                    _recorded(content.document_of[passage.document], passage, row) for passage in passages
                )
            }
        )
        for row, passages in zip(rows, found, strict=True)
    ]


def _recorded(document: Document, passage: "Found", row: Row) -> Passage:
    return Passage(
        chunk_id=passage.id,
        text=passage.text,
        oracle=passage.id == row.chunk_id,
        page=passage.first_page,
        document=passage.document,
        title=document.title,
        path=document.path,
        span=(passage.start, passage.end),
        page_breaks=tuple(page_breaks(document.page_starts, passage.start, passage.end)),
    )
