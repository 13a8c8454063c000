"""The rows of a dataset, and the token ids and labels that are trained on. It must not retrieve, train or judge.

Only the answer and its stop token carry loss; everything before them has the label -100.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from mark_trainer.failures import BadData
from mark_trainer.likelihood import IGNORED
from mark_trainer.prompts import PromptBuilder

TRAIN_FILE = "train_sft.jsonl"
VALIDATION_FILE = "val_sft.jsonl"
SHARE_WITH_PASSAGES = 0.5
BATCHES_SORTED_TOGETHER = 8


class _Entry(BaseModel):
    """Part of a row; fields that this trainer does not know are left alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Document(_Entry):
    """The document that a row or a passage comes from."""

    digest: str
    title: str = ""
    path: str = ""
    cluster: str


class Passage(_Entry):
    """A retrieved chunk, as it is shown with the question."""

    chunk_id: str
    text: str
    oracle: bool = False
    """Whether it is the chunk that holds the answer."""
    page: int | None = None
    """The page that it begins on, from 1."""
    document: str | None = None
    """Digest of its document."""
    title: str = ""
    path: str = ""
    span: tuple[int, int] | None = None
    """Characters of the document's text that it is; absent in datasets of earlier versions."""
    page_breaks: tuple[int, ...] = ()
    """Places in the document's text, within the passage, at which further pages begin."""

    def to_place(self) -> dict[str, Any]:
        """Where the passage stands, without its text."""
        return self.model_dump(by_alias=True, exclude={"text", "page_breaks"})


class Row(_Entry):
    """One question with its answer and where the answer stands."""

    id: str
    question: str
    answer: str
    answerable: bool = True
    """False when the document does not answer the question; the answer is then `prompts.REFUSAL`."""
    document: Document
    chunk_id: str
    """The chunk that holds the answer; empty when there is none."""
    page: int | None = None
    span: tuple[int, int] | None = None
    topic: str = ""
    generator: str = ""
    contexts: tuple[Passage, ...] | None = None
    """Passages retrieved for the question, the nearest first; absent when none were looked up."""
    oracle_passage: Passage | None = None
    """The chunk that holds the answer."""


@dataclass(frozen=True)
class Example:
    """One row as token ids: `ids[:prompt_tokens]` is the prompt, the rest the answer with its stop token."""

    row: Row
    ids: list[int]
    labels: list[int]
    prompt_tokens: int
    form: str  # closedBook or retrieved


@dataclass(frozen=True)
class Encoded:
    """The rows that fit, as examples, and the ids of those that do not."""

    examples: list[Example]
    too_long: list[str]
    cut: int
    """Examples whose passages were shortened to fit."""


def read_rows(folder: Path, name: str) -> list[Row]:
    """The rows of a file of a dataset; raises BadData that names file, line and field."""
    path = folder / name
    if not path.is_file():
        raise BadData(
            "NoDatasetFile", f"{folder.name}/{name}: there is no such file; run dataPrep, or correct spec.dataset.path"
        )
    rows = []
    # Not splitlines(): a text may hold line separators that JSON does not escape.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BadData(
                "BadRow", f"{folder.name}/{name} line {number}: {field}: {first['msg']}; correct the row"
            ) from error
    if not rows:
        raise BadData(
            "EmptyDataset",
            f"{folder.name}/{name}: has no rows; run dataPrep with more documents or a larger maxSamples",
        )
    return rows


def encode_rows(rows: Sequence[Row], builder: PromptBuilder, *, max_length: int, seed: int) -> Encoded:
    """Examples for training: about half of the rows with their passages, the others closed book."""
    examples, too_long, cut = [], [], 0
    for row in rows:
        with_passages = bool(row.contexts) and draw(seed, row.id) < SHARE_WITH_PASSAGES
        passages = [passage.text for passage in row.contexts or ()] if with_passages else None
        prompt = builder.prompt(row.question, passages)
        answer = builder.answer(row.answer)
        if prompt is None or len(prompt.ids) + len(answer) > max_length:
            too_long.append(row.id)
            continue
        cut += prompt.cut
        examples.append(
            Example(
                row=row,
                ids=prompt.ids + answer,
                labels=[IGNORED] * len(prompt.ids) + answer,
                prompt_tokens=len(prompt.ids),
                form="retrieved" if with_passages else "closedBook",
            )
        )
    return Encoded(examples, too_long, cut)


def training_order(lengths: Sequence[int], *, epochs: int, batch_size: int, seed: int) -> list[int]:
    """The row of each place in training, all epochs in one list: shuffled anew each epoch, like lengths together.

    Batches are cut from it in order. Sorting happens within a window of a few batches, so that little is padded
    and the order of batches stays random.
    """
    generator = random.Random(f"order:{seed}")
    places: list[int] = []
    for _ in range(epochs):
        rows = list(range(len(lengths)))
        generator.shuffle(rows)
        places += rows
    window = BATCHES_SORTED_TOGETHER * batch_size
    ordered: list[int] = []
    for start in range(0, len(places), window):
        rows = sorted(places[start : start + window], key=lambda row: lengths[row])
        batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        whole = [batch for batch in batches if len(batch) == batch_size]
        generator.shuffle(whole)
        ordered += [row for batch in whole + [batch for batch in batches if len(batch) < batch_size] for row in batch]
    return ordered


def draw(seed: int, row_id: str) -> float:
    """A number in [0, 1) that depends on seed and row alone, not on the order of rows."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
