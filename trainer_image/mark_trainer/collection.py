"""The ChromaDB collection: documents and their chunks go in, documents, passages and exact searches come out.

Everything that is needed to follow a passage back to its page is in the collection itself. It must never let Chroma
compute a vector or reach the network on its own.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from mark_crds.job_input import digest_of

from mark_trainer.chunks import Chunk, chunk_id
from mark_trainer.documents import Document, Fault
from mark_trainer.failures import BadData, MachineTrouble, UserMistake
from mark_trainer.locks import Lock, hold
from mark_trainer.workspace import Work

FORMAT_VERSION = 2
EMBEDDING_MODEL = "all-MiniLM-L6-v2"
LOCK_WAIT_SECONDS = 600.0
_PAGE_OF_ROWS = 2000


@dataclass(frozen=True)
class Held:
    """What the collection knows of a document, apart from its text."""

    path: str
    state: str
    chunks: int
    textless_pages: tuple[int, ...]
    page_quality: tuple[int, ...]
    agreement: tuple[tuple[int, int], ...] | None

    @property
    def pages(self) -> int:
        return len(self.page_quality)


@dataclass(frozen=True)
class LeftOut:
    """A file of the corpus that was read and of which the collection holds nothing, so that it is not read again."""

    path: str
    settings: str
    fault: Fault | None
    """What is wrong with it; None for a document without any text, a scan as a rule."""
    pages: int


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

    def held(self) -> dict[str, Held]:
        """By digest the documents of which every chunk is there."""
        found: defaultdict[str, int] = defaultdict(int)
        firsts: dict[str, Any] = {}
        for _, metadata, _, _ in self._rows(texts=False):
            found[metadata["document"]] += 1
            if metadata["number"] == 0:
                firsts[metadata["document"]] = metadata
        whole = {
            digest: first
            for digest, first in firsts.items()
            # Without a quality the document was written by an older trainer.
            if found[digest] == first["chunks"] and "pageQuality" in first
        }
        return {digest: _held(first) for digest, first in whole.items()}

    @staticmethod
    def state(path: str, settings: str) -> str:
        """Differs whenever a document's chunks must be written again."""
        return f"{path} {settings}"

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """By digest the files that an earlier ingest read and could not use."""
        text = (self._chroma.metadata or {}).get("markLeftOut") or "{}"
        return {digest: LeftOut(**entry) for digest, entry in json.loads(text).items()}

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return int(self._chroma.count())

    def all_documents(self) -> set[str]:
        """The digests of all documents of which anything is there."""
        return {metadata["document"] for _, metadata, _, _ in self._rows(texts=False)}

    def begin(self) -> None:
        """Say that the collection is being written: until `finish`, nobody takes it for whole."""
        self._describe(complete=False, digest="", left_out=self.left_out)

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

    def finish(self, left_out: Mapping[str, LeftOut]) -> str:
        """Say that the collection is whole; returns its digest."""
        self._check_lock()
        digest = _digest(self._rows())
        self._describe(complete=True, digest=digest, left_out=left_out)
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
        if _digest(rows) != digest:
            raise BadData(
                "CollectionChanged",
                f"collection {self._chroma.name}: was changed after ingest; run the stage ingest on it again",
            )
        by_document: defaultdict[str, list[Any]] = defaultdict(list)
        for row in rows:
            by_document[row[1]["document"]].append(row)
        vectors = np.array([vector for *_, vector in rows], dtype=np.float32).reshape(len(rows), -1)
        documents = {group[0][1]["document"]: _document(group) for group in by_document.values()}
        return Content(
            documents=tuple(documents.values()),
            passages=tuple(_passage(row, documents[row[1]["document"]]) for row in rows),
            vectors=vectors,
            digest=digest,
        )

    def _rows(self, *, texts: bool = True, vectors: bool = False) -> Iterator[Any]:
        """Id, metadata, text and vector of every chunk; None for those that are not asked for."""
        include = ["metadatas", *(["documents"] if texts else []), *(["embeddings"] if vectors else [])]
        offset = 0
        while True:
            page = self._chroma.get(include=include, limit=_PAGE_OF_ROWS, offset=offset)
            nothing = [None] * len(page["ids"])
            documents, embeddings = page["documents"] if texts else nothing, page["embeddings"] if vectors else nothing
            yield from zip(page["ids"], page["metadatas"], documents, embeddings, strict=True)
            if len(page["ids"]) < _PAGE_OF_ROWS:
                return
            offset += _PAGE_OF_ROWS

    def _describe(self, *, complete: bool, digest: str, left_out: Mapping[str, LeftOut]) -> None:
        self._check_lock()
        self._chroma.modify(
            metadata={
                "markFormatVersion": FORMAT_VERSION,
                "markComplete": complete,
                "markDigest": digest,
                # Chroma keeps numbers and text only.
                "markLeftOut": json.dumps({key: asdict(left_out[key]) for key in sorted(left_out)}),
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
    import httpx
    from chromadb.config import Settings

    chroma = work.job_input.data_prep.chroma
    settings = Settings(anonymized_telemetry=False)
    if chroma.server is None:
        folder = work.workspace.path(chroma.path)
        folder.mkdir(parents=True, exist_ok=True)
        with chromadb.PersistentClient(path=str(folder), settings=settings) as client:
            yield client
        return
    host, port = chroma.server.host, chroma.server.port
    try:
        with chromadb.HttpClient(host=host, port=port, settings=settings) as client:
            yield client
    except (httpx.TransportError, ValueError) as error:
        # Chroma turns a refused connection into a ValueError while it connects.
        if isinstance(error, ValueError) and "connect" not in str(error).lower():
            raise
        raise MachineTrouble(
            "ChromaUnreachable",
            f"dataPrep.chroma.server: {host}:{port} does not answer ({error}); what is written is kept, "
            "and the next attempt goes on there; start the server, or correct host and port",
        ) from error


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
        metadata["pageQuality"] = json.dumps(document.page_quality)
        metadata["agreement"] = json.dumps(document.agreement)
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
        page_quality=tuple(json.loads(first["pageQuality"])),
        agreement=_agreement(first),
    )


def _held(first: Any) -> Held:
    return Held(
        path=first["path"],
        state=Collection.state(first["path"], first["settings"]),
        chunks=first["chunks"],
        textless_pages=tuple(json.loads(first["textlessPages"])),
        page_quality=tuple(json.loads(first["pageQuality"])),
        agreement=_agreement(first),
    )


def _agreement(first: Any) -> tuple[tuple[int, int], ...] | None:
    pairs = json.loads(first["agreement"])
    return None if pairs is None else tuple((page, shared) for page, shared in pairs)


def _passage(row: Any, document: Document) -> Passage:
    """A chunk, when it is the very span of its document's text that it says it is."""
    identity, metadata, text, _ = row
    start, end = metadata["start"], metadata["end"]
    if text != document.text[start:end] or identity != chunk_id(document.digest, start, end, text):
        raise BadData(
            "CollectionChanged",
            f"{document.path}: chunk {identity} is not what its id says; run the stage ingest on a new collection",
        )
    return Passage(identity, text, document.digest, start, end, metadata["firstPage"])


def _digest(rows: Iterable[Any]) -> str:
    """Over all that a dataset is made of: each chunk with its text, and each document's path, title and pages."""
    return digest_of(
        sorted(
            [identity, _sha256(text), metadata["path"], metadata["title"], metadata.get("pageStarts", "")]
            for identity, metadata, text, _ in rows
        )
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
