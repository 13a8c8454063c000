"""The stage ingest: the PDF files of the corpus into the collection. Only what changed since the last time is computed.

It must leave a collection that is either whole or marked as not, and a report that names every file it left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mark_crds.job_output import Artifact, Result

from mark_trainer.chunks import cut
from mark_trainer.collection import Collection, LeftOut, open_collection
from mark_trainer.documents import (
    Document,
    Unreadable,
    count_pages,
    find_pdf_files,
    path_text,
    read_documents,
    seen_fault,
)
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.ingest_report import IngestReport
from mark_trainer.publish import file_digest
from mark_trainer.workspace import Work, write_json

# Goes up when the same file would give other chunks or other facts, so that documents are read anew.
READER_VERSION = 4
REPORT_FILE = "ingest_report.json"
_NAMED_FILES = 5


@dataclass(frozen=True)
class File:
    """A usable file, as far as can be seen without opening it."""

    path: Path
    name: str
    """Its path in the workspace."""
    digest: str


@dataclass(frozen=True)
class Corpus:
    """The files of the corpus folder, each content once."""

    files: tuple[File, ...]
    copies: dict[str, str]
    """Files that have the same bytes as another one, with the name of that one."""
    unreadable: tuple[Unreadable, ...]
    """Those that must not even be opened."""


@dataclass(frozen=True)
class Changes:
    """What has to be done to bring a collection to the state of the corpus."""

    unchanged: frozenset[str]
    """Digests of the documents that are there already, as they would be written now."""
    remove: frozenset[str]
    still_out: dict[str, LeftOut]
    """By digest what an earlier ingest found unusable and would find so again."""
    new: tuple[File, ...]


def run(work: Work) -> Result:
    """Bring the collection to the state of the corpus folder."""
    corpus = see_corpus(work)
    with open_collection(work, create=True) as collection:
        changes = see_changes(work, corpus, collection)
        readable, pages, left_out = _opened(work, changes)
        _raise_if_not_wanted(work, corpus, changes, readable, left_out)
        if readable or changes.remove or left_out != collection.left_out or collection.digest is None:
            collection.begin()
            for digest in sorted(changes.remove):
                collection.remove(digest)
            _add(work, collection, readable, pages, left_out)
            collection.finish(left_out)
        return _result(work, collection, corpus, changes)


# ---------------------------------------------------------------------------------------------------------------------
# What there is to do


def see_corpus(work: Work) -> Corpus:
    """The corpus by content, without opening a PDF."""
    first: dict[str, File] = {}
    copies: dict[str, str] = {}
    unreadable = []
    for path in corpus_files(work):
        name = path_text(path, work.workspace.root)
        fault = seen_fault(path, work.workspace.root)
        if fault is not None:
            unreadable.append(Unreadable(name, fault))
            continue
        digest = file_digest(path)
        if digest in first:
            copies[name] = first[digest].name
        else:
            first[digest] = File(path, name, digest)
    return Corpus(tuple(first.values()), copies, tuple(unreadable))


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
    files = find_pdf_files(folder)
    if not files:
        raise UserMistake(
            "EmptyCorpus",
            f"ingest.path: no PDF file in folder {name} of the workspace; put some with `mark put DIR {name}`",
        )
    return files


def see_changes(work: Work, corpus: Corpus, collection: Collection) -> Changes:
    """What changed since the collection was written. No file is opened for it."""
    held, known_out = collection.held(), collection.left_out
    settings = _settings_text(work)
    unchanged, still_out, new = set(), {}, []
    for file in corpus.files:
        out = known_out.get(file.digest)
        if file.digest in held and held[file.digest].state == Collection.state(file.name, settings):
            unchanged.add(file.digest)
        # A file that was too slow for a busy machine deserves another look.
        elif out is not None and out.settings == settings and out.fault != "TooSlow":
            still_out[file.digest] = replace(out, path=file.name)
        else:
            new.append(file)
    return Changes(
        unchanged=frozenset(unchanged),
        remove=frozenset(collection.all_documents() - unchanged),
        still_out=still_out,
        new=tuple(new),
    )


def unusable_files(faulty: Sequence[Unreadable]) -> BadData:
    """The failure that names the first files that cannot be used, and counts the rest."""
    rest = f"; and {len(faulty) - _NAMED_FILES} more" if len(faulty) > _NAMED_FILES else ""
    return BadData(faulty[0].fault, "; ".join(entry.sentence for entry in faulty[:_NAMED_FILES]) + rest)


def _opened(work: Work, changes: Changes) -> tuple[list[File], dict[str, int], dict[str, LeftOut]]:
    """The new files that open, their numbers of pages by digest, and all files that are left out so far."""
    counts = count_pages([file.path for file in changes.new], work.workspace.root)
    readable, pages, left_out = [], {}, dict(changes.still_out)
    for file, count in zip(changes.new, counts, strict=True):
        if isinstance(count, Unreadable):
            left_out[file.digest] = LeftOut(file.name, _settings_text(work), count.fault, 0)
        else:
            readable.append(file)
            pages[file.digest] = count
    return readable, pages, left_out


def _raise_if_not_wanted(
    work: Work, corpus: Corpus, changes: Changes, readable: list[File], left_out: dict[str, LeftOut]
) -> None:
    """Bad files end the stage before anything is written when the spec says so, or when nothing else is there."""
    faulty = _faulty(corpus, left_out)
    scans = any(entry.fault is None for entry in left_out.values())
    nothing_else = not readable and not changes.unchanged and not scans
    if faulty and (work.job_input.ingest.on_bad_file == "Fail" or nothing_else):
        raise unusable_files(faulty)


def _faulty(corpus: Corpus, left_out: dict[str, LeftOut]) -> list[Unreadable]:
    read = [Unreadable(entry.path, entry.fault) for entry in left_out.values() if entry.fault is not None]
    return sorted([*corpus.unreadable, *read], key=lambda entry: entry.path)


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def _add(
    work: Work, collection: Collection, files: list[File], pages: dict[str, int], left_out: dict[str, LeftOut]
) -> None:
    """Read the files and add their chunks; those that turn out to be of no use go to `left_out`."""
    if not files:
        return
    # Imported late: a corpus without changes needs no model.
    from mark_trainer.embedding import Embedder

    settings = work.job_input.ingest
    embedder, total, done = Embedder(), sum(pages[file.digest] for file in files), 0
    documents = read_documents([file.path for file in files], work.workspace.root, settings.cross_check_pages)
    for number, (file, document) in enumerate(zip(files, documents, strict=True), 1):
        work.raise_if_stopped()
        if isinstance(document, Unreadable):
            if settings.on_bad_file == "Fail":
                raise unusable_files([document])
            left_out[file.digest] = LeftOut(file.name, _settings_text(work), document.fault, pages[file.digest])
        elif len(document.textless_pages) == document.pages:
            left_out[file.digest] = LeftOut(file.name, _settings_text(work), None, pages[file.digest])
        else:
            _add_document(work, collection, embedder, document, done, total)
        done += pages[file.digest]
        work.progress.report(done, total, documents=number)


def _add_document(work: Work, collection: Collection, embedder: Any, document: Document, done: int, total: int) -> None:
    settings = work.job_input.ingest
    chunks = cut(document, settings.chunk_characters, settings.chunk_overlap_characters)

    def after_batch(count: int) -> None:
        work.raise_if_stopped()
        work.progress.report(done + document.pages * count // len(chunks), total)

    # With its title, a passage is found by questions that name the document.
    vectors = embedder.embed([f"{document.title}\n{chunk.text}" for chunk in chunks], after_batch)
    collection.add(document, chunks, vectors, _settings_text(work))


def _settings_text(work: Work) -> str:
    settings = work.job_input.ingest
    return f"{READER_VERSION}/{settings.chunk_characters}/{settings.chunk_overlap_characters}"


# ---------------------------------------------------------------------------------------------------------------------
# What it has to say


def _result(work: Work, collection: Collection, corpus: Corpus, changes: Changes) -> Result:
    held, left_out, digest = collection.held(), collection.left_out, collection.digest
    assert digest is not None
    faulty = _faulty(corpus, left_out)
    scans = sorted(entry.path for entry in left_out.values() if entry.fault is None)
    if not held and not scans:
        raise unusable_files(faulty)
    if not held:
        raise BadData(
            "NoText",
            f"ingest.path: no page of {work.job_input.ingest.path} has text, so these are scans; run OCR on them first",
        )
    report = IngestReport(held, changes.unchanged, left_out, faulty, corpus.copies)
    path = work.run_folder / REPORT_FILE
    write_json(path, report.to_dict(work.job_input, digest))
    # A document under a new name or with new settings is written anew, and counts as removed and new.
    gone = changes.remove - set(held)
    message = (
        f"collection {work.job_input.data_prep.collection} holds {len(held)} documents in {collection.count} chunks: "
        f"{len(held) - len(changes.unchanged)} new, {len(changes.unchanged)} unchanged, {len(gone)} removed"
    )
    if faulty:
        reasons = ", ".join(f"{count} {fault}" for fault, count in sorted(Counter(f.fault for f in faulty).items()))
        message += f"; {len(faulty)} unusable files left out ({reasons}): {_names([f.path for f in faulty])}"
    if scans:
        message += f"; without text, so left out: {_names(scans)} (run OCR on them)"
    if report.poor_pages or report.disagreements:
        message += (
            f"; {report.poor_pages} pages hardly look like text and on {report.disagreements} two readers disagree"
        )
    if faulty or scans or report.poor_pages or report.disagreements:
        message += f"; see {work.workspace.relative(path)}"
    artifact = Artifact(kind="collection", path=work.job_input.data_prep.chroma.path, digest=digest)
    return work.done(
        "Ingested",
        message[:1000],
        (artifact,),
        **report.counts(),
        newDocuments=len(held) - len(changes.unchanged),
        unchangedDocuments=len(changes.unchanged),
        removedDocuments=len(gone),
    )


def _names(paths: list[str]) -> str:
    rest = f" and {len(paths) - _NAMED_FILES} more" if len(paths) > _NAMED_FILES else ""
    return ", ".join(path[-80:] for path in paths[:_NAMED_FILES]) + rest
