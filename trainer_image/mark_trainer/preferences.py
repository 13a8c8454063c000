"""Pairs of answers, the better one known: what people judged, else made from a dataset's rows by rules.

A rule puts beside the reference answer one that is wrong by construction. Such pairs are no human feedback, so every
set of pairs carries its source. It must not know how a pair is learned from.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mark_trainer.candidates import draw
from mark_trainer.chunks import sentences
from mark_trainer.dataset import TRAIN_FILE, VALIDATION_FILE, Row, read_rows
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.judgements import held_out, judgements_digest, read_judgements
from mark_trainer.prompts import REFUSAL, PromptBuilder
from mark_trainer.publish import verify_folder
from mark_trainer.workspace import Work

Origin = Literal["people", "otherAnswer", "passage", "refusal"]
"""Who or what rejected an answer: people, or the rule that chose it."""


@dataclass(frozen=True)
class Pair:
    """Two answers to a question."""

    question: str
    passages: tuple[str, ...] | None
    """Shown with the question; None asks it closed book."""
    chosen: str
    rejected: str
    document: str
    cluster: str
    """Documents of one cluster resemble each other: they stand on one side of the split."""
    origin: Origin


@dataclass(frozen=True)
class Preferences:
    """The pairs of a run and where they come from."""

    source: Literal["people", "rules"]
    path: str
    digest: str
    training: list[Pair]
    held_out: list[Pair]
    without_rejected: int = 0
    """Rows for which no rule found a wrong answer."""


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids: each side is the prompt, the answer and the stop token."""

    pair: Pair
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)


def gather(work: Work) -> Preferences:
    """What people judged where the spec names it, else pairs by rules from the run's dataset."""
    settings = work.job_input.rlhf
    if settings.preferences is None:
        return by_rules(work, settings.reward.seed)
    path = settings.preferences.path
    judgements = read_judgements(work.workspace, path)
    kept_back = held_out(judgements, settings.reward.seed)
    pairs = [
        Pair(found.question, found.passages, found.chosen, found.rejected, found.about, found.about, "people")
        for found in judgements
    ]
    return Preferences(
        source="people",
        path=path,
        digest=judgements_digest(work.workspace, path),
        training=[pair for pair in pairs if pair.document not in kept_back],
        held_out=[pair for pair in pairs if pair.document in kept_back],
    )


def by_rules(work: Work, seed: int) -> Preferences:
    """Pairs from the dataset: those of its validation rows are held out."""
    folder = work.dataset_folder()
    path = work.workspace.relative(folder)
    digest = verify_folder(folder, path)
    sides = [read_rows(folder, name) for name in (TRAIN_FILE, VALIDATION_FILE)]
    training, kept_back = ([pair for pair in pairs_of(rows, seed) if pair is not None] for rows in sides)
    without = sum(map(len, sides)) - len(training) - len(kept_back)
    return Preferences("rules", path, digest, training, kept_back, without)


def pairs_of(rows: Sequence[Row], seed: int) -> Iterator[Pair | None]:
    """The pair of each row, whatever the order of the rows; None where no rule finds a wrong answer."""
    answers: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.answerable:
            answers[row.document.digest].append(row)
    anywhere = [row for its_rows in answers.values() for row in its_rows]
    for row in rows:
        own = answers.get(row.document.digest, [])
        wrong = dict(wrong_answers(row, own if row.answerable else own or anywhere, seed))
        if not wrong:
            yield None
            continue
        origin = min(wrong, key=lambda name: draw(seed, "rule", name, row.id))
        yield Pair(
            question=row.question,
            passages=tuple(passage.text for passage in row.contexts) if row.contexts else None,
            chosen=row.answer,
            rejected=wrong[origin],
            document=row.document.digest,
            cluster=row.document.cluster,
            origin=origin,
        )


def wrong_answers(row: Row, neighbours: Sequence[Row], seed: int) -> Iterator[tuple[Origin, str]]:
    """By each rule that applies one answer that is wrong for the row: the answer to another question, of the same
    document where it has one; a sentence of a passage without the answer; the refusal to answer."""
    others = {other.answer for other in neighbours if other.id != row.id and apart(other.answer, row.answer)}
    if others:
        yield "otherAnswer", min(others, key=lambda text: draw(seed, "answer", row.id, text))
    if not row.answerable:
        return
    texts = [passage.text for passage in row.contexts or () if not passage.oracle and apart(row.answer, passage.text)]
    said = {text[start:end].strip() for text in texts for start, end in sentences(text)} - {""}
    if said:
        yield "passage", min(said, key=lambda text: draw(seed, "sentence", row.id, text))
    yield "refusal", REFUSAL


def apart(one: str, other: str) -> bool:
    """Whether neither text holds the words of the other."""
    first, second = (" ".join(["", *re.findall(r"\w+", text.casefold()), ""]) for text in (one, other))
    return first not in second and second not in first


def encode_pairs(pairs: Sequence[Pair], builder: PromptBuilder, max_length: int) -> tuple[list[EncodedPair], int]:
    """The pairs whose two sides fit, as token ids, and how many do not."""
    encoded = []
    for pair in pairs:
        prompt = builder.prompt(pair.question, pair.passages)
        if prompt is None:
            continue
        chosen, rejected = (prompt.ids + builder.answer(text) for text in (pair.chosen, pair.rejected))
        if max(len(chosen), len(rejected)) <= max_length:
            encoded.append(EncodedPair(pair, chosen, rejected))
    return encoded, len(pairs) - len(encoded)


def audit_pairs(training: Sequence[EncodedPair], held_out: Sequence[EncodedPair], stop: int) -> None:
    """Refuses, before the first step, pairs that could teach nothing or whose measure would be worth nothing."""
    for name, pairs in (("train on", training), ("measure by", held_out)):
        if not pairs:
            raise UserMistake(
                "NoPairFits",
                f"evaluation.maxNewTokens: no pair to {name} fits; raise it, since it is the room for an answer behind "
                "a full prompt, or raise lora.maxLength",
            )
    for encoded in (*training, *held_out):
        name = f"the pair of {encoded.pair.question[:80]!r}"
        if encoded.chosen == encoded.rejected:
            raise BadData("EqualAnswers", f"{name}: both answers have the same tokens; correct or remove it")
        if encoded.chosen[-1] != stop or encoded.rejected[-1] != stop:
            raise BadData("NoStop", f"{name}: an answer does not end with the stop token, where its score is read")
    sides = [
        {mark for item in pairs for mark in (item.pair.document, f"cluster {item.pair.cluster}")}
        for pairs in (training, held_out)
    ]
    if shared := sorted(sides[0] & sides[1]):
        raise BadData(
            "SplitOverlap",
            f"{len(shared)} documents stand in both training and held-out pairs, the first is {shared[0]}; "
            "make the dataset again, it must be split by cluster of documents",
        )


def origins(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many pairs each origin has."""
    return dict(sorted(Counter(pair.origin for pair in pairs).items()))
