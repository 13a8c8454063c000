"""The stage dataPrep: question-answer rows from the collection, split by cluster of near-duplicate documents.

It reads top to bottom: split, questions, filters, choice, rows, card. Documents are held out before any question is
made. The same collection and settings give the same bytes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

from mark_crds import names
from mark_crds.job_output import Artifact, Result
from mark_crds.stages import DataPrep

from mark_trainer.candidates import (
    GENERATOR_VERSION,
    Candidate,
    Row,
    Split,
    candidates,
    draw,
    in_turns,
    only_standing_alone,
    without_repeats,
)
from mark_trainer.chunks import page_breaks
from mark_trainer.collection import Content, Passage, open_collection
from mark_trainer.dataset_card import dataset_card
from mark_trainer.documents import Document
from mark_trainer.failures import BadData
from mark_trainer.near_duplicates import cluster
from mark_trainer.publish import publish
from mark_trainer.round_trip import Found, RoundTrip
from mark_trainer.topics import Topics
from mark_trainer.unanswerable import GENERATOR, Moved, moved_questions
from mark_trainer.workspace import Work, write_file

TRAIN_FILE = "train_sft.jsonl"
VALIDATION_FILE = "val_sft.jsonl"
LEFT_OUT_FILE = "left_out.jsonl"
CARD_FILE = "dataset_card.json"


def run(work: Work) -> Result:
    """Make the dataset and publish it under its digest."""
    settings = work.job_input.data_prep
    with open_collection(work) as collection:
        content = with_distinct_titles(collection.read())

    # ---- split, then questions --------------------------------------------------------------------------------------
    clusters = cluster_documents(content.documents)
    splits = hold_out(clusters, settings.validation_fraction, settings.seed)
    made = list(candidates(content, splits))

    # ---- filters and choice -----------------------------------------------------------------------------------------
    alone, dangling = only_standing_alone(made)
    kept, repeats = without_repeats(alone)
    training = {document for document, split in splits.items() if split == "train"}
    round_trip = RoundTrip(settings, content, training, work.raise_if_stopped)
    most_answerable = settings.max_samples - round(Fraction(settings.unanswerable_fraction) * settings.max_samples)
    chosen: list[Found] = []
    total = min(most_answerable, len(kept))
    for found in choose(kept, most_answerable, settings, round_trip):
        chosen.append(found)
        work.progress.report(min(len(chosen), total), total)
    moved = choose_unanswerable(chosen, kept, content, clusters, splits, settings)

    # ---- rows -------------------------------------------------------------------------------------------------------
    topics = Topics(content.passages)
    rows = [_row(content, clusters, found, topics) for found in chosen]
    for split in ("train", "val"):
        rows += _unanswerable_rows(content, clusters, moved[split], split, topics, round_trip, settings)
    train = _shuffled([row for row in rows if row["split"] == "train"], settings.seed)
    validation = _spread([row for row in rows if row["split"] == "val"], settings.seed)
    if not train or not validation:
        raise BadData(
            "TooFewQuestions",
            f"dataPrep: {len(train)} training and {len(validation)} validation rows could be made from collection "
            f"{settings.collection}: add documents with more prose, raise dataPrep.maxSamples or topK, "
            "or set dataPrep.roundTripFilter to Off",
        )
    left_out = sorted(dangling + repeats + round_trip.left_out, key=lambda entry: (entry["reason"], entry["id"]))
    card = dataset_card(settings, content, clusters, splits, train, validation, left_out, len(made))
    return _publish(work, train, validation, left_out, card)


def with_distinct_titles(content: Content) -> Content:
    """The content with file names added to titles that several documents share, so that a title names one document."""
    documents = content.documents
    for name in (lambda path: Path(path).stem, lambda path: path):
        counts = Counter(document.title for document in documents)
        documents = tuple(
            replace(document, title=f"{document.title} ({name(document.path)})")
            if counts[document.title] > 1
            else document
            for document in documents
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


def choose(found: Sequence[Candidate], most: int, settings: DataPrep, round_trip: RoundTrip) -> Iterator[Found]:
    """At most `most` candidates that pass, shared between the splits by the fraction and evenly between documents."""
    turns = {
        split: _evenly([candidate for candidate in found if candidate.split == split], settings.seed, round_trip)
        for split in ("train", "val")
    }
    count = 0
    for split, share in (("val", round(Fraction(settings.validation_fraction) * most)), ("train", most), ("val", most)):
        for taken in islice(turns[split], min(share, most - count)):
            count += 1
            yield taken


def choose_unanswerable(
    chosen: Sequence[Found],
    found: Sequence[Candidate],
    content: Content,
    clusters: dict[str, str],
    splits: dict[str, Split],
    settings: DataPrep,
) -> dict[Split, list[Moved]]:
    """As many unanswerable questions as make the set share of all rows, at the same rate on both sides."""
    fraction = Fraction(settings.unanswerable_fraction)
    counts = Counter(found.candidate.split for found in chosen)
    # No more than what maxSamples leaves; less when there are fewer answerable rows than that.
    total = min(round(fraction * len(chosen) / (1 - fraction)), settings.max_samples - len(chosen))
    validation = round(Fraction(total * counts["val"], max(1, len(chosen))))
    moved: dict[Split, list[Moved]] = {}
    for split, wanted in (("train", total - validation), ("val", validation)):
        documents = [document for document in content.documents if splits[document.digest] == split]
        asked = [candidate for candidate in found if candidate.split == split] if wanted else []
        moved[split] = list(islice(moved_questions(asked, documents, clusters, settings.seed), wanted))
    return moved


def _evenly(found: Sequence[Candidate], seed: int, round_trip: RoundTrip) -> Iterator[Found]:
    """The candidates that pass, in turns from each document and, within it, from each generator."""
    by_document: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=lambda candidate: draw(seed, candidate.id)):
        by_document[candidate.document.digest].append(candidate)
    queues = [
        round_trip.passing(in_turns(queue, lambda candidate: candidate.question.generator))
        for _, queue in sorted(by_document.items(), key=lambda item: draw(seed, "document", item[0]))
    ]
    while queues:
        going_on = []
        for queue in queues:
            taken = next(queue, None)
            if taken is not None:
                going_on.append(queue)
                yield taken
        queues = going_on


def _row(content: Content, clusters: dict[str, str], found: Found, topics: Topics) -> Row:
    candidate = found.candidate
    return {
        "id": candidate.id,
        "question": candidate.question.text,
        "answer": candidate.answer,
        "answerable": True,
        "topic": topics.of(candidate.chunk, candidate.question.heading),
        "document": _document(candidate.document, clusters),
        "page": candidate.page,
        "span": list(candidate.question.answer),
        "sentence": list(candidate.question.sentence),
        "chunkId": candidate.chunk.id,
        "contexts": [_passage(content, passage, candidate.held_by(passage)) for passage in found.contexts],
        "retrieved": found.retrieved,
        "oraclePassage": _passage(content, candidate.chunk, True),
        "generator": f"{candidate.question.generator}/{GENERATOR_VERSION}",
        "filters": {"standsAlone": True, "answerIsSpan": True, "repeats": False, "retrievalRank": found.rank},
        "split": candidate.split,
    }


def _unanswerable_rows(
    content: Content,
    clusters: dict[str, str],
    moved: Sequence[Moved],
    split: Split,
    topics: Topics,
    round_trip: RoundTrip,
    settings: DataPrep,
) -> Iterator[Row]:
    if not moved:
        return
    # Imported late: it brings a model library along.
    from mark_trainer.prompts import REFUSAL

    count = settings.top_k + (settings.hard_negatives if split == "train" else 0)
    passages = round_trip.nearest([entry.text for entry in moved], split, count)
    for entry, found in zip(moved, passages, strict=True):
        source = entry.source
        yield {
            "id": entry.id,
            "question": entry.text,
            "answer": REFUSAL,
            "answerable": False,
            "topic": topics.of(source.chunk, source.question.heading),
            "document": _document(entry.document, clusters),
            "page": None,
            "span": None,
            "chunkId": "",
            "contexts": [_passage(content, passage, False) for passage in found],
            "retrieved": False,
            "oraclePassage": None,
            "generator": GENERATOR,
            "madeFrom": {
                "row": source.id,
                "document": source.document.digest,
                "page": source.page,
                "span": list(source.question.answer),
            },
            "filters": {"standsAlone": True, "largestShareInOneSentence": f"{entry.largest_share:.4f}"},
            "split": split,
        }


def _document(document: Document, clusters: dict[str, str]) -> Row:
    return {
        "digest": document.digest,
        "title": document.title,
        "path": document.path,
        "cluster": clusters[document.digest],
    }


def _passage(content: Content, passage: Passage, oracle: bool) -> Row:
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
        "oracle": oracle,
    }


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: draw(seed, "order", row["id"]))


def _spread(rows: list[Row], seed: int) -> list[Row]:
    """Shuffled so that the first rows are from as many clusters, and then documents, as possible."""
    by_document = in_turns(_shuffled(rows, seed), lambda row: row["document"]["digest"])
    return in_turns(by_document, lambda row: row["document"]["cluster"])


def _publish(work: Work, train: list[Row], validation: list[Row], left_out: list[Row], card: Row) -> Result:
    folder = work.workspace.staging_folder(work.run_uid, "dataset")
    write_file(folder / TRAIN_FILE, _lines(train))
    write_file(folder / VALIDATION_FILE, _lines(validation))
    write_file(folder / LEFT_OUT_FILE, _lines(left_out))
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
        unanswerableRows=sum(card["unanswerableRows"].values()),
        candidates=card["candidates"],
        **{f"leftOut{reason}": count for reason, count in card["leftOut"].items()},
        clustersInBothSplits=leakage["clustersInBothSplits"],
        largestDocumentOverlap=leakage["largestDocumentOverlap"],
        trainRetrievedShare=card["retrievedShare"]["train"],
        validationRetrievedShare=card["retrievedShare"]["val"],
    )


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
