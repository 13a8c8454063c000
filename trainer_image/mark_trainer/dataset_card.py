"""What people should know of a dataset before they train on it: what it is made of, and the proof that nothing leaks.

It must not change a row.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mark_crds.stages import DataPrep

from mark_trainer.collection import Content
from mark_trainer.near_duplicates import SAME_CLUSTER_OVERLAP, WORDS_OF_A_SHINGLE, largest_overlap

Row = dict[str, Any]


def dataset_card(
    settings: DataPrep,
    content: Content,
    clusters: Mapping[str, str],
    splits: Mapping[str, str],
    train: list[Row],
    validation: list[Row],
) -> Row:
    """The card of a dataset; `clusters` and `splits` are by document."""
    texts = {document.digest: document.text for document in content.documents}
    by_side = {
        side: {clusters[document] for document in clusters if splits[document] == side} for side in ("train", "val")
    }
    rows = train + validation
    return {
        "formatVersion": 1,
        "settings": settings.to_dict(),
        "collection": {"name": settings.collection, "digest": content.digest},
        "rows": {"train": len(train), "val": len(validation)},
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
        "retrievedShare": {
            side: f"{sum(row['retrieved'] for row in part) / len(part):.4f}"
            for side, part in (("train", train), ("val", validation))
        },
        "leakage": {
            "clustersInBothSplits": len(by_side["train"] & by_side["val"]),
            "documentsInBothSplits": len(
                {row["document"]["digest"] for row in train} & {row["document"]["digest"] for row in validation}
            ),
            "questionsInBothSplits": len({row["question"] for row in train} & {row["question"] for row in validation}),
            "largestDocumentOverlap": f"{largest_overlap(texts, splits):.4f}",
            "allowedDocumentOverlap": f"{SAME_CLUSTER_OVERLAP:.4f}",
            "measure": f"share of the shorter document's runs of {WORDS_OF_A_SHINGLE} words that the other has too",
        },
    }
