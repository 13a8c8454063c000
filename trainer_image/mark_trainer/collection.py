"""The ChromaDB collection: documents and their chunks go in, documents, passages and exact searches come out.

Everything that is needed to follow a passage back to its page is in the collection itself. It must never let Chroma
compute a vector or reach the network on its own.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from mark_crds.job_input import digest_of

from mark_trainer.chunks import Chunk
from mark_trainer.documents import Document
from mark_trainer.failures import BadData, MachineTrouble, UserMistake
from mark_trainer.locks import Lock, hold
from mark_trainer.workspace import Work

FORMAT_VERSION = 1
EMBEDDING_MODEL = "all-MiniLM-L6-v2"
LOCK_WAIT_SECONDS = 600.0
_PAGE_OF_ROWS = 2000


@dataclass(frozen=True)
class Passage:
    """A chunk as it lies in the collection."""

    id: str
    text: str
    document: str
    """The document's digest."""
    start: int
    end: int
    first_page: int


@dataclass(frozen=True)
class Content:
    """Everything in a collection, read once."""

    documents: tuple[Document, ...]
    passages: tuple[Passage, ...]
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    digest: str

    @cached_property
    def document_of(self) -> dict[str, Document]:
        return {document.digest: document for document in self.documents}

    def search(self, queries: np.ndarray[Any, Any], count: int, allowed: set[str] | None = None) -> list[list[Passage]]:
        """For each query vector the nearest passages, exactly; `allowed` restricts them to these documents' digests."""
        chosen = np.array([allowed is None or passage.document in allowed for passage in self.passages], dtype=bool)
        places = np.flatnonzero(chosen)
        similarity = queries @ self.vectors[places].T
        # Ties go to the earlier passage, so that equal vectors give one order on every machine.
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        return [[self.passages[places[place]] for place in row] for row in order]


class Collection:
    """A collection that this process alone uses."""

    def __init__(self, chroma: Any, largest_batch: int, lock: Lock | None) -> None:
        self._chroma = chroma
        self._largest_batch = largest_batch
        self._lock = lock

    @property
    def digest(self) -> str | None:
        """The digest of a collection that was written to the end, else None."""
        metadata = self._chroma.metadata or {}
        whole = metadata.get("markFormatVersion") == FORMAT_VERSION and metadata.get("markComplete") is True
        return str(metadata["markDigest"]) if whole else None

    def whole_documents(self) -> dict[str, str]:
        """For each document of which every chunk is there its digest and its state."""
        found: defaultdict[str, int] = defaultdict(int)
        expected: dict[str, tuple[int, str]] = {}
        for _, metadata, _, _ in self._rows():
            found[metadata["document"]] += 1
            expected[metadata["document"]] = (metadata["chunks"], self.state(metadata["path"], metadata["settings"]))
        return {digest: how for digest, (count, how) in expected.items() if found[digest] == count}

    @staticmethod
    def state(path: str, settings: str) -> str:
        """Differs whenever a document's chunks must be written again."""
        return f"{path} {settings}"

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return int(self._chroma.count())

    def all_documents(self) -> set[str]:
        """The digests of all documents of which anything is there."""
        return {metadata["document"] for _, metadata, _, _ in self._rows()}

    def begin(self) -> None:
        """Say that the collection is being written: until `finish`, nobody takes it for whole."""
        self._describe(complete=False, digest="")

    def add(self, document: Document, chunks: Sequence[Chunk], vectors: Any, settings: str) -> None:
        """Write a document's chunks. Doing it twice changes nothing."""
        rows = [_metadata(document, chunks, number, settings) for number in range(len(chunks))]
        for first in range(0, len(chunks), self._largest_batch):
            self._check_lock()
            part = slice(first, first + self._largest_batch)
            self._chroma.upsert(
                ids=[chunk.id for chunk in chunks[part]],
                documents=[chunk.text for chunk in chunks[part]],
                embeddings=vectors[part],
                metadatas=rows[part],
            )

    def remove(self, document_digest: str) -> None:
        """Take out all that belongs to a document."""
        self._check_lock()
        self._chroma.delete(where={"document": document_digest})

    def finish(self) -> str:
        """Say that the collection is whole; returns its digest."""
        self._check_lock()
        digest = _digest(sorted((identity, text) for identity, _, text, _ in self._rows()))
        self._describe(complete=True, digest=digest)
        return digest

    def read(self) -> Content:
        """All documents and passages, in one order whatever the order of writing."""
        digest = self.digest
        if digest is None:
            raise BadData(
                "CollectionIncomplete",
                f"collection {self._chroma.name}: was not written to its end by this trainer; run the stage ingest",
            )
        rows = sorted(self._rows(vectors=True), key=lambda row: (row[1]["path"], row[1]["document"], row[1]["number"]))
        if _digest(sorted((identity, text) for identity, _, text, _ in rows)) != digest:
            raise BadData(
                "CollectionChanged",
                f"collection {self._chroma.name}: was changed after ingest; run the stage ingest on it again",
            )
        by_document: defaultdict[str, list[Any]] = defaultdict(list)
        for row in rows:
            by_document[row[1]["document"]].append(row)
        vectors = np.array([vector for *_, vector in rows], dtype=np.float32).reshape(len(rows), -1)
        return Content(
            documents=tuple(_document(group) for group in by_document.values()),
            passages=tuple(_passage(identity, metadata, text) for identity, metadata, text, _ in rows),
            vectors=vectors,
            digest=digest,
        )

    def _rows(self, *, vectors: bool = False) -> Iterator[tuple[str, Any, str, Any]]:
        include = ["metadatas", "documents", *(["embeddings"] if vectors else [])]
        offset = 0
        while True:
            page = self._chroma.get(include=include, limit=_PAGE_OF_ROWS, offset=offset)
            embeddings = page["embeddings"] if vectors else [None] * len(page["ids"])
            yield from zip(page["ids"], page["metadatas"], page["documents"], embeddings, strict=True)
            if len(page["ids"]) < _PAGE_OF_ROWS:
                return
            offset += _PAGE_OF_ROWS

    def _describe(self, *, complete: bool, digest: str) -> None:
        self._check_lock()
        self._chroma.modify(
            metadata={
                "markFormatVersion": FORMAT_VERSION,
                "markComplete": complete,
                "markDigest": digest,
                "embeddingModel": EMBEDDING_MODEL,
            }
        )

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.raise_if_lost()


@contextmanager
def open_collection(work: Work, *, create: bool = False) -> Iterator[Collection]:
    """The run's collection, for this process alone: an embedded database does not bear a second process."""
    with hold(work, lock_name(work), LOCK_WAIT_SECONDS) as lock, _client(work) as client:
        name = work.job_input.data_prep.collection
        if create:
            chroma = client.get_or_create_collection(name, embedding_function=None)
        else:
            names = sorted(collection.name for collection in client.list_collections())
            if name not in names:
                raise UserMistake("NoCollection", no_collection(work, names))
            chroma = client.get_collection(name, embedding_function=None)
        yield Collection(chroma, client.get_max_batch_size(), lock)


def recorded_digest(work: Work) -> str | None:
    """The digest of the run's collection, or None when there is no whole one."""
    try:
        with open_collection(work) as collection:
            return collection.digest
    except UserMistake:
        return None


def lock_name(work: Work) -> str:
    """The lock that guards the database: an embedded one as a whole, a server's by collection."""
    data_prep = work.job_input.data_prep
    return f"collection-{data_prep.collection}" if data_prep.chroma.server else f"chroma-{data_prep.chroma.path}"


def no_collection(work: Work, names: Sequence[str]) -> str:
    """What to say when the collection is not there; `names` are those that are."""
    data_prep = work.job_input.data_prep
    server = data_prep.chroma.server
    where = f"on {server.host}:{server.port}" if server else f"in {data_prep.chroma.path}"
    others = f"; there are: {', '.join(names[:10])}" if names else ""
    return (
        f"dataPrep.collection: no collection {data_prep.collection} {where}: add ingest to spec.stages, "
        f"or name another collection{others}"
    )


@contextmanager
def _client(work: Work) -> Iterator[Any]:
    import chromadb
    from chromadb.config import Settings

    chroma = work.job_input.data_prep.chroma
    settings = Settings(anonymized_telemetry=False)
    if chroma.server is None:
        folder = work.workspace.path(chroma.path)
        folder.mkdir(parents=True, exist_ok=True)
        client = chromadb.PersistentClient(path=str(folder), settings=settings)
    else:
        address = f"{chroma.server.host}:{chroma.server.port}"
        try:
            client = chromadb.HttpClient(host=chroma.server.host, port=chroma.server.port, settings=settings)
        except (ValueError, OSError) as error:
            raise MachineTrouble("ChromaUnreachable", f"dataPrep.chroma.server: no answer from {address}") from error
    try:
        yield client
    finally:
        client.close()


def _metadata(document: Document, chunks: Sequence[Chunk], number: int, settings: str) -> dict[str, Any]:
    chunk = chunks[number]
    following = chunks[number + 1].start if number + 1 < len(chunks) else chunk.end
    metadata = {
        "document": document.digest,
        "path": document.path,
        "title": document.title,
        "settings": settings,
        "chunks": len(chunks),
        "number": number,
        "start": chunk.start,
        "end": chunk.end,
        "firstPage": chunk.first_page,
        "lastPage": chunk.last_page,
        # What stands between this chunk and the next, so that the document's text can be put together again.
        "gap": document.text[chunk.end : following],
    }
    if number == 0:
        metadata["pageStarts"] = json.dumps(document.page_starts)
        metadata["textlessPages"] = json.dumps(document.textless_pages)
        metadata["textDigest"] = _sha256(document.text)
    return metadata


def _document(rows: list[Any]) -> Document:
    first = rows[0][1]
    text = ""
    for _, metadata, piece, _ in rows:
        text += piece[max(0, len(text) - metadata["start"]) :] + metadata["gap"]
    if _sha256(text) != first["textDigest"]:
        raise BadData(
            "CollectionChanged", f"{first['path']}: its chunks do not make its text; run the stage ingest again"
        )
    return Document(
        digest=first["document"],
        path=first["path"],
        title=first["title"],
        text=text,
        page_starts=tuple(json.loads(first["pageStarts"])),
        textless_pages=tuple(json.loads(first["textlessPages"])),
    )


def _passage(identity: str, metadata: Any, text: str) -> Passage:
    return Passage(identity, text, metadata["document"], metadata["start"], metadata["end"], metadata["firstPage"])


def _digest(pairs: list[tuple[str, str]]) -> str:
    return digest_of([[identity, _sha256(text)] for identity, text in pairs])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
