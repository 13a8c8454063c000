"""The stage dataPrep: question-answer rows from the collection, split by cluster of near-duplicate documents.

Documents are held out before any question is made. The same collection and settings give the same bytes.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from mark_crds import names
from mark_crds.job_output import Artifact, Result

from mark_trainer.chunks import page_breaks, page_of
from mark_trainer.collection import Content, Passage, open_collection
from mark_trainer.dataset_card import dataset_card
from mark_trainer.documents import Document
from mark_trainer.failures import BadData
from mark_trainer.near_duplicates import cluster
from mark_trainer.publish import publish
from mark_trainer.questions import Question, questions
from mark_trainer.topics import Topics
from mark_trainer.workspace import Work, write_file

GENERATOR_VERSION = 1
TRAIN_FILE = "train_sft.jsonl"
VALIDATION_FILE = "val_sft.jsonl"
CARD_FILE = "dataset_card.json"
SAME_QUESTION_OVERLAP = 0.6

Split = Literal["train", "val"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A question that may become a row."""

    id: str
    document: Document
    question: Question
    chunk: Passage
    split: Split

    @property
    def answer(self) -> str:
        return self.document.text[slice(*self.question.answer)]

    @property
    def sentence(self) -> str:
        return self.document.text[slice(*self.question.sentence)]


def run(work: Work) -> Result:
    """Make the dataset and publish it under its digest."""
    settings = work.job_input.data_prep
    with open_collection(work) as collection:
        content = with_distinct_titles(collection.read())
    clusters = cluster_documents(content.documents)
    splits = hold_out(clusters, settings.validation_fraction, settings.seed)
    candidates = without_repeats(list(_candidates(content, splits, settings.seed)))
    chosen = choose(candidates, settings.max_samples, settings.validation_fraction, settings.seed)
    rows = list(_rows(work, content, clusters, splits, chosen))
    train = _shuffled([row for row in rows if row["split"] == "train"], settings.seed)
    validation = _spread([row for row in rows if row["split"] == "val"], settings.seed)
    if not train or not validation:
        raise BadData(
            "TooFewQuestions",
            f"dataPrep: {len(train)} training and {len(validation)} validation rows could be made from collection "
            f"{settings.collection}: add documents with more prose, or raise dataPrep.maxSamples",
        )
    card = dataset_card(settings, content, clusters, splits, train, validation)
    return _publish(work, train, validation, card)


def with_distinct_titles(content: Content) -> Content:
    """The content with file names added to titles that several documents share, so that a title names one document."""
    counts = Counter(document.title for document in content.documents)
    documents = tuple(
        replace(document, title=f"{document.title} ({Path(document.path).stem})")
        if counts[document.title] > 1
        else document
        for document in content.documents
    )
    return replace(content, documents=documents)


def cluster_documents(documents: Sequence[Document]) -> dict[str, str]:
    """The cluster of each document, both by digest; raises BadData when nothing could be held out."""
    clusters = cluster({document.digest: document.text for document in documents})
    if len(set(clusters.values())) < 2:
        raise BadData(
            "TooFewClusters",
            f"dataPrep: the collection's {len(documents)} documents are near-duplicates of one another, so none can be "
            "held out for validation: add documents with other texts to the corpus and run ingest again",
        )
    return clusters


def hold_out(clusters: dict[str, str], fraction: str, seed: int) -> dict[str, Split]:
    """The split of each document: the given share of the clusters validates, at least one and never all."""
    every = sorted(set(clusters.values()), key=lambda name: draw(seed, "cluster", name))
    count = min(max(round(Fraction(fraction) * len(every)), 1), len(every) - 1)
    held_out = set(every[:count])
    return {document: "val" if name in held_out else "train" for document, name in clusters.items()}


def without_repeats(candidates: list[Candidate]) -> list[Candidate]:
    """One candidate of each group whose source sentences are alike; a validation one if there is any."""
    groups = cluster({candidate.id: candidate.sentence for candidate in candidates}, SAME_QUESTION_OVERLAP)
    kept: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.split != "val"):
        kept.setdefault(groups[candidate.id], candidate)
    return [candidate for candidate in candidates if kept[groups[candidate.id]] is candidate]


def choose(candidates: list[Candidate], most: int, fraction: str, seed: int) -> list[Candidate]:
    """At most `most` candidates, shared between the splits by the fraction and evenly between the documents."""
    by_split = {split: [c for c in candidates if c.split == split] for split in ("train", "val")}
    wanted = min(round(Fraction(fraction) * most), len(by_split["val"]))
    train = min(most - wanted, len(by_split["train"]))
    validation = min(most - train, len(by_split["val"]))
    return _evenly(by_split["train"], train, seed) + _evenly(by_split["val"], validation, seed)


def draw(seed: int, *words: str) -> str:
    """A value that depends on the seed and the words alone, to sort by."""
    return hashlib.sha256(":".join([str(seed), *words]).encode()).hexdigest()


def _candidates(content: Content, splits: dict[str, Split], seed: int) -> Iterator[Candidate]:
    passages: defaultdict[str, list[Passage]] = defaultdict(list)
    for passage in content.passages:
        passages[passage.document].append(passage)
    for document in content.documents:
        for question in questions(document):
            chunk = _holder(passages[document.digest], question)
            if chunk is not None:
                identity = hashlib.sha256(f"{chunk.id}:{question.answer}:{question.text}".encode()).hexdigest()[:16]
                yield Candidate(identity, document, question, chunk, splits[document.digest])


def _holder(passages: list[Passage], question: Question) -> Passage | None:
    """The first passage that holds the whole sentence, else the whole answer."""
    for start, end in (question.sentence, question.answer):
        for passage in passages:
            if passage.start <= start and end <= passage.end:
                return passage
    return None


def _evenly(candidates: list[Candidate], count: int, seed: int) -> list[Candidate]:
    """`count` of the candidates, taken in turns from each document and, within it, from each generator."""
    by_document: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda candidate: draw(seed, candidate.id)):
        by_document[candidate.document.digest].append(candidate)
    queues = [
        _in_turns(queue, lambda candidate: candidate.question.generator)
        for _, queue in sorted(by_document.items(), key=lambda item: draw(seed, "document", item[0]))
    ]
    taken = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return taken[:count]


def _in_turns(items: Sequence[Any], kind: Any) -> list[Any]:
    """The items in an order in which kinds alternate as long as they can."""
    seen: Counter[Any] = Counter()
    turns = []
    for item in items:
        turns.append((seen[kind(item)], len(turns)))
        seen[kind(item)] += 1
    return [items[position] for _, position in sorted(turns)]


def _rows(
    work: Work, content: Content, clusters: dict[str, str], splits: dict[str, Split], chosen: list[Candidate]
) -> Iterator[Row]:
    # Imported late: what can fail on the documents alone has failed by now.
    from mark_trainer.embedding import Embedder

    total = len(chosen)
    vectors = Embedder().embed(
        [candidate.question.text for candidate in chosen], lambda done: work.progress.report(done, total)
    )
    training = {document for document, split in splits.items() if split == "train"}
    topics = Topics(content.passages)
    top_k = work.job_input.data_prep.top_k
    for split, allowed in (("train", training), ("val", None)):
        places = [place for place, candidate in enumerate(chosen) if candidate.split == split]
        for place, found in zip(places, content.search(vectors[places], top_k, allowed), strict=True):
            candidate = chosen[place]
            contexts = _contexts(content, candidate, found, work.job_input.data_prep.seed)
            yield _row(content, clusters, candidate, topics.of(candidate.chunk, candidate.question.heading), contexts)


def _contexts(content: Content, candidate: Candidate, found: list[Passage], seed: int) -> tuple[list[Row], bool]:
    """The passages shown with the question, and whether retrieval found the answer's own."""
    retrieved = any(_holds(passage, candidate) for passage in found)
    if candidate.split == "train" and not retrieved:
        place = int(draw(seed, "oracle", candidate.id), 16) % len(found)
        found = found[:-1]
        found.insert(place, candidate.chunk)
    return [_passage(content, passage, candidate) for passage in found], retrieved


def _holds(passage: Passage, candidate: Candidate) -> bool:
    start, end = candidate.question.answer
    return passage.document == candidate.document.digest and passage.start <= start and end <= passage.end


def _passage(content: Content, passage: Passage, candidate: Candidate) -> Row:
    document = content.document_of[passage.document]
    return {
        "chunkId": passage.id,
        "text": passage.text,
        "document": passage.document,
        "title": document.title,
        "path": document.path,
        "page": passage.first_page,
        "span": [passage.start, passage.end],
        "pageBreaks": page_breaks(document.page_starts, passage.start, passage.end),
        "oracle": _holds(passage, candidate),
    }


def _row(
    content: Content, clusters: dict[str, str], candidate: Candidate, topic: str, contexts: tuple[list[Row], bool]
) -> Row:
    document = candidate.document
    return {
        "id": candidate.id,
        "question": candidate.question.text,
        "answer": candidate.answer,
        "topic": topic,
        "document": {
            "digest": document.digest,
            "title": document.title,
            "path": document.path,
            "cluster": clusters[document.digest],
        },
        "page": page_of(document.page_starts, candidate.question.answer[0]),
        "span": list(candidate.question.answer),
        "chunkId": candidate.chunk.id,
        "contexts": contexts[0],
        "retrieved": contexts[1],
        "oraclePassage": _passage(content, candidate.chunk, candidate),
        "generator": f"{candidate.question.generator}/{GENERATOR_VERSION}",
        "split": candidate.split,
    }


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: draw(seed, "order", row["id"]))


def _spread(rows: list[Row], seed: int) -> list[Row]:
    """Shuffled so that the first rows are from as many clusters, and then documents, as possible."""
    by_document = _in_turns(_shuffled(rows, seed), lambda row: row["document"]["digest"])
    return _in_turns(by_document, lambda row: row["document"]["cluster"])


def _publish(work: Work, train: list[Row], validation: list[Row], card: Row) -> Result:
    folder = work.workspace.staging_folder(work.run_uid, "dataset")
    write_file(folder / TRAIN_FILE, _lines(train))
    write_file(folder / VALIDATION_FILE, _lines(validation))
    write_file(folder / CARD_FILE, json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    provenance = {
        "stage": "dataPrep",
        "generatorVersion": GENERATOR_VERSION,
        "collectionDigest": card["collection"]["digest"],
        "settings": card["settings"],
    }
    published = publish(work.workspace, folder, names.DATASETS_FOLDER, provenance)
    clusters, leakage = card["clusters"], card["leakage"]
    return work.done(
        "DatasetMade",
        f"{published.path}: {len(train)} training and {len(validation)} validation rows from "
        f"{len(card['documents'])} documents; {clusters['val']} of {clusters['train'] + clusters['val']} clusters "
        "are held out and share no document with training",
        (Artifact(kind="dataset", path=published.path, digest=published.digest),),
        trainRows=len(train),
        validationRows=len(validation),
        documents=len(card["documents"]),
        clusters=clusters["train"] + clusters["val"],
        validationClusters=clusters["val"],
        topics=len(card["topics"]),
        clustersInBothSplits=leakage["clustersInBothSplits"],
        largestDocumentOverlap=leakage["largestDocumentOverlap"],
        trainRetrievedShare=card["retrievedShare"]["train"],
        validationRetrievedShare=card["retrievedShare"]["val"],
    )


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
