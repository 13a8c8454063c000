"""What people should know of a corpus after ingest: how well each document was read, and what was left out and why.

It must not open a file or the collection.
"""

from collections import Counter
from collections.abc import Collection as Sized
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mark_crds.job_input import JobInput

from mark_trainer.collection import Held, LeftOut
from mark_trainer.documents import Unreadable
from mark_trainer.page_quality import DISAGREEMENT, POOR_QUALITY


@dataclass(frozen=True)
class IngestReport:
    """The facts of one ingest, for the report and its headline numbers."""

    held: Mapping[str, Held]
    unchanged: Sized[str]
    left_out: Mapping[str, LeftOut]
    faulty: Sequence[Unreadable]
    copies: Mapping[str, str]

    @property
    def poor_pages(self) -> int:
        """Pages with text that hardly looks like text."""
        return sum(len(_poor_pages(entry)) for entry in self.held.values())

    @property
    def disagreements(self) -> int:
        """Pages that two readers read differently."""
        return sum(shared < DISAGREEMENT for entry in self.held.values() for _, shared in entry.agreement or ())

    def counts(self) -> dict[str, int]:
        """The headline numbers, of the whole collection and not only of what is new in it.

        A short view shows the first few, so files that were left out come early.
        """
        every = self.held.values()
        by_fault = sorted(Counter(entry.fault for entry in self.faulty).items())
        return {
            "documents": len(every),
            "leftOutFiles": len(self.faulty),
            **{f"leftOut{fault}": count for fault, count in by_fault},
            "documentsWithoutText": sum(entry.fault is None for entry in self.left_out.values()),
            "chunks": sum(entry.chunks for entry in every),
            "pages": sum(entry.pages for entry in every),
            "pagesWithoutText": sum(len(entry.textless_pages) for entry in every),
            "poorPages": self.poor_pages,
            "checkedPages": sum(len(entry.agreement or ()) for entry in every),
            "pagesInDisagreement": self.disagreements,
            "copies": len(self.copies),
        }

    def to_dict(self, job_input: JobInput, collection_digest: str) -> dict[str, Any]:
        """The whole report as JSON."""
        digests = {entry.path: digest for digest, entry in self.left_out.items()}
        return {
            "formatVersion": 1,
            "collection": {"name": job_input.data_prep.collection, "digest": collection_digest},
            "settings": job_input.ingest.to_dict(),
            "counts": self.counts(),
            "definitions": {
                "quality": "percent of a page's printed characters that stand in words which look like text; "
                f"below {POOR_QUALITY} it is poor",
                "agreement": "percent of a page's words that pdfium and pypdf both read; "
                f"below {DISAGREEMENT} they disagree",
            },
            "documents": [
                {
                    "path": entry.path,
                    "digest": digest,
                    "state": "unchanged" if digest in self.unchanged else "new",
                    "chunks": entry.chunks,
                    "pages": entry.pages,
                    "pagesWithoutText": list(entry.textless_pages),
                    "pageQuality": list(entry.page_quality),
                    "poorPages": _poor_pages(entry),
                    "crossCheck": None
                    if entry.agreement is None
                    else [{"page": page, "agreement": shared} for page, shared in entry.agreement],
                }
                for digest, entry in sorted(self.held.items(), key=lambda item: item[1].path)
            ],
            "withoutText": [
                {"path": entry.path, "digest": digest, "pages": entry.pages, "cure": "run OCR on it"}
                for digest, entry in sorted(self.left_out.items(), key=lambda item: item[1].path)
                if entry.fault is None
            ],
            "leftOut": [
                {"path": entry.path, "digest": digests.get(entry.path), "reason": entry.fault, "cure": entry.sentence}
                for entry in self.faulty
            ],
            "copies": [{"path": path, "sameAs": other} for path, other in sorted(self.copies.items())],
        }


def _poor_pages(entry: Held) -> list[int]:
    """Numbers, from 1, of the pages whose text hardly looks like text."""
    return [
        number
        for number, quality in enumerate(entry.page_quality, 1)
        if quality < POOR_QUALITY and number not in entry.textless_pages
    ]
