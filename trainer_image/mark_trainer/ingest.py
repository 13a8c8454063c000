"""The stage ingest: the PDF files of the corpus into the collection. Only what changed since the last time is computed.

It must leave a collection that is either whole or marked as not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mark_crds.job_output import Artifact, Result

from mark_trainer.chunks import cut
from mark_trainer.collection import Collection, open_collection
from mark_trainer.documents import Unreadable, count_pages, find_pdf_files, read_documents
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.publish import file_digest
from mark_trainer.workspace import Work

# Goes up when the same file would give other chunks, so that documents are read anew.
READER_VERSION = 1
_NAMED_FILES = 5


@dataclass(frozen=True)
class Corpus:
    """The usable files of the corpus folder, each content once."""

    files: tuple[Path, ...]
    digests: tuple[str, ...]
    pages: tuple[int, ...]
    copies: int
    """Files that are left out because another one has the same bytes."""


@dataclass
class _Written:
    chunks: int = 0
    scans: list[str] = field(default_factory=list)
    textless_pages: int = 0


def run(work: Work) -> Result:
    """Bring the collection to the state of the corpus folder."""
    corpus = see_corpus(work)
    with open_collection(work, create=True) as collection:
        there = collection.whole_documents()
        states = {digest: _state(work, file) for file, digest in zip(corpus.files, corpus.digests, strict=True)}
        unchanged = {digest for digest, state in states.items() if there.get(digest) == state}
        every = collection.all_documents()
        written = _Written()
        if every != set(states) or unchanged != every or collection.digest is None:
            collection.begin()
            for digest in sorted(every - unchanged):
                collection.remove(digest)
            _add_new(work, collection, corpus, unchanged, written)
            collection.finish()
        return _result(work, collection, corpus, len(unchanged), len(every - set(states)), written)


def see_corpus(work: Work) -> Corpus:
    """The corpus, when every file of it can be used; raises BadData that names those that cannot."""
    files = corpus_files(work)
    counts = list(count_pages(files, work.workspace.root))
    faulty = [count for count in counts if isinstance(count, Unreadable)]
    if faulty:
        raise unusable_files(faulty)
    first: dict[str, tuple[Path, int]] = {}
    for file, count in zip(files, counts, strict=True):
        assert isinstance(count, int)
        first.setdefault(file_digest(file), (file, count))
    return Corpus(
        files=tuple(file for file, _ in first.values()),
        digests=tuple(first),
        pages=tuple(count for _, count in first.values()),
        copies=len(files) - len(first),
    )


def corpus_files(work: Work) -> list[Path]:
    """The PDF files of the corpus folder; raises UserMistake when there is none."""
    name = work.job_input.ingest.path
    folder = work.workspace.path(name)
    if not folder.is_dir():
        raise UserMistake(
            "NoCorpus",
            f"ingest.path: there is no folder {name} in the workspace; make it with `mark put DIR {name}`, "
            f"or name another folder{work.workspace.neighbours(name)}",
        )
    files = [work.workspace.path(file) for file in find_pdf_files(folder)]
    if not files:
        raise UserMistake(
            "EmptyCorpus",
            f"ingest.path: no PDF file in folder {name} of the workspace; put some with `mark put DIR {name}`",
        )
    return files


def unusable_files(faulty: Sequence[Unreadable]) -> BadData:
    """The failure that names the first files that cannot be used, and counts the rest."""
    rest = f"; and {len(faulty) - _NAMED_FILES} more" if len(faulty) > _NAMED_FILES else ""
    return BadData(faulty[0].fault, "; ".join(entry.sentence for entry in faulty[:_NAMED_FILES]) + rest)


def _add_new(work: Work, collection: Collection, corpus: Corpus, unchanged: set[str], written: _Written) -> None:
    # Imported late: a corpus without changes needs no model.
    from mark_trainer.embedding import Embedder

    settings = work.job_input.ingest
    new = [
        (file, pages)
        for file, digest, pages in zip(corpus.files, corpus.digests, corpus.pages, strict=True)
        if digest not in unchanged
    ]
    embedder, total, done = Embedder(), sum(pages for _, pages in new), 0
    documents = read_documents([file for file, _ in new], work.workspace.root)
    for number, ((_, pages), document) in enumerate(zip(new, documents, strict=True), 1):
        work.raise_if_stopped()
        if isinstance(document, Unreadable):
            raise unusable_files([document])
        chunks = cut(document, settings.chunk_characters, settings.chunk_overlap_characters)
        if chunks:
            # With its title, a passage is found by questions that name the document.
            vectors = embedder.embed([f"{document.title}\n{chunk.text}" for chunk in chunks])
            collection.add(document, chunks, vectors, _settings_text(work))
        else:
            written.scans.append(document.path)
        written.chunks += len(chunks)
        written.textless_pages += len(document.textless_pages)
        done += pages
        work.progress.report(done, total, documents=number)


def _state(work: Work, file: Path) -> str:
    return Collection.state(work.workspace.relative(file), _settings_text(work))


def _settings_text(work: Work) -> str:
    settings = work.job_input.ingest
    return f"{READER_VERSION}/{settings.chunk_characters}/{settings.chunk_overlap_characters}"


def _result(
    work: Work, collection: Collection, corpus: Corpus, unchanged: int, removed: int, written: _Written
) -> Result:
    name, digest = work.job_input.data_prep.collection, collection.digest
    documents = len(corpus.files) - len(written.scans)
    assert digest is not None
    if not collection.count:
        raise BadData(
            "NoText",
            f"ingest.path: no page of {work.job_input.ingest.path} has text, so these are scans; run OCR on them first",
        )
    new = documents - unchanged
    message = (
        f"collection {name} holds {documents} documents in {collection.count} chunks: "
        f"{new} new, {unchanged} unchanged, {removed} removed"
    )
    if written.scans:
        message += f"; without text, so left out: {', '.join(written.scans[:_NAMED_FILES])} (run OCR on them)"
    return work.done(
        "Ingested",
        message,
        (Artifact(kind="collection", path=work.job_input.data_prep.chroma.path, digest=digest),),
        documents=documents,
        pages=sum(corpus.pages),
        chunks=collection.count,
        newDocuments=new,
        unchangedDocuments=unchanged,
        removedDocuments=removed,
        copies=corpus.copies,
        documentsWithoutText=len(written.scans),
        newPagesWithoutText=written.textless_pages,
    )
