"""What people should know of a dataset before they train on it: what it is made of, and the proof that nothing leaks.

It must not change a row.
"""

from collections import Counter
from collections.abc import Mapping

from mark_crds.stages import DataPrep

from mark_trainer.candidates import SAME_QUESTION_OVERLAP, Row
from mark_trainer.collection import Content
from mark_trainer.near_duplicates import SAME_CLUSTER_OVERLAP, WORDS_OF_A_SHINGLE, largest_overlap


def dataset_card(
    settings: DataPrep,
    content: Content,
    clusters: Mapping[str, str],
    splits: Mapping[str, str],
    train: list[Row],
    validation: list[Row],
    left_out: list[Row],
    candidates: int,
) -> Row:
    """The card of a dataset; `clusters` and `splits` are by document, `candidates` is how many questions were made."""
    texts = {document.digest: document.text for document in content.documents}
    by_side = {
        side: {clusters[document] for document in clusters if splits[document] == side} for side in ("train", "val")
    }
    rows = train + validation
    return {
        "formatVersion": 2,
        "settings": settings.to_dict(),
        "collection": {"name": settings.collection, "digest": content.digest},
        "rows": {"train": len(train), "val": len(validation)},
        "unanswerableRows": {
            side: sum(not row["answerable"] for row in part) for side, part in (("train", train), ("val", validation))
        },
        "candidates": candidates,
        "leftOut": dict(sorted(Counter(entry["reason"] for entry in left_out).items())),
        "documents": [
            {
                "digest": document.digest,
                "path": document.path,
                "title": document.title,
                "cluster": clusters[document.digest],
                "split": splits[document.digest],
                "rows": sum(row["document"]["digest"] == document.digest for row in rows),
            }
            for document in content.documents
        ],
        "clusters": {side: len(found) for side, found in by_side.items()},
        "generators": dict(sorted(Counter(row["generator"] for row in rows).items())),
        "topics": dict(sorted(Counter(row["topic"] for row in rows).items())),
        "retrievedShare": {side: _retrieved_share(part) for side, part in (("train", train), ("val", validation))},
        "leakage": {
            "clustersInBothSplits": len(by_side["train"] & by_side["val"]),
            "documentsInBothSplits": len(
                {row["document"]["digest"] for row in train} & {row["document"]["digest"] for row in validation}
            ),
            "questionsInBothSplits": len({row["question"] for row in train} & {row["question"] for row in validation}),
            "largestDocumentOverlap": f"{largest_overlap(texts, splits):.4f}",
            "largestQuestionOverlap": f"{_largest_question_overlap(content, rows):.4f}",
            "allowedQuestionOverlap": f"{SAME_QUESTION_OVERLAP:.4f}",
            "allowedDocumentOverlap": f"{SAME_CLUSTER_OVERLAP:.4f}",
            "measure": f"share of the shorter document's runs of {WORDS_OF_A_SHINGLE} words that the other has too",
        },
    }


def _retrieved_share(rows: list[Row]) -> str:
    """Among the answerable rows those whose question finds its own passage."""
    found = [row["retrieved"] for row in rows if row["answerable"]]
    return f"{sum(found) / len(found):.4f}" if found else "0.0000"


def _largest_question_overlap(content: Content, rows: list[Row]) -> float:
    """The highest overlap of two sentences that questions on different sides were made from."""
    answerable = [row for row in rows if row["answerable"]]
    texts = {
        row["id"]: content.document_of[row["document"]["digest"]].text[slice(*row["sentence"])] for row in answerable
    }
    return largest_overlap(texts, {row["id"]: row["split"] for row in answerable})
