"""Pairs of answers: what people judged, line by line, and what rules make of a dataset."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_training
from mark_trainer.dataset import Row, read_rows
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.judgements import held_out, read_judgements
from mark_trainer.preferences import EncodedPair, Pair, apart, audit_pairs, encode_pairs, gather, pairs_of
from mark_trainer.prompts import REFUSAL, PromptBuilder
from mark_trainer.publish import file_digest
from mark_trainer.workspace import Workspace
from transformers import AutoTokenizer

Line = dict[str, Any]
GOOD: Line = {"question": "Who pays?", "chosen": "The tenant.", "rejected": "The owner.", "document": "lease"}
FILE = "judged/pairs.jsonl"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return tiny_training.write_workspace(tmp_path / "workspace")


@pytest.fixture
def judged(workspace: Workspace) -> Callable[..., str]:
    """Writes the file of judgements; returns its path."""

    def write(*lines: Line | str) -> str:
        file = workspace.path(FILE)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return FILE

    return write


def rows_of(workspace: Workspace, name: str = "train_sft.jsonl") -> list[Row]:
    return read_rows(workspace.path("datasets/contracts"), name)


# ---------------------------------------------------------------------------------------------------------------------
# People


def test_judgements_are_read_as_they_are(workspace: Workspace, judged: Callable[..., str]) -> None:
    passages = {"passages": ["The tenant pays."], "annotator": 7}
    found = read_judgements(workspace, judged(GOOD | passages, "", GOOD | {"document": None, "question": " Why? "}))
    assert (found[0].chosen, found[0].passages, found[0].about) == ("The tenant.", ("The tenant pays.",), "lease")
    assert (found[1].question, found[1].passages, found[1].about) == ("Why?", None, "question Why?")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"judged/pairs\.jsonl line 2: Invalid JSON"),
        ("[]", r"line 2: .*correct it"),
        ({"question": "Who?", "chosen": "A"}, "line 2: rejected: Field required"),
        (GOOD | {"chosen": "  "}, "line 2: chosen: String should have at least 1 character"),
        (GOOD | {"chosen": 3}, "line 2: chosen: Input should be a valid string"),
        (GOOD | {"passages": "one text"}, "line 2: passages: "),
        (GOOD | {"rejected": " The tenant. "}, "line 2: .*chosen and rejected are the same answer"),
    ],
)
def test_a_bad_line_is_named(
    workspace: Workspace, judged: Callable[..., str], line: Line | str, words: str
) -> None:
    path = judged(GOOD, line, GOOD | {"document": "other"})
    with pytest.raises(BadData, match=words):
        read_judgements(workspace, path)


def test_a_file_that_is_no_text_or_not_there_or_too_small(workspace: Workspace, judged: Callable[..., str]) -> None:
    with pytest.raises(UserMistake, match=r"rlhf\.preferences\.path: there is no file judged/pairs\.jsonl"):
        read_judgements(workspace, FILE)
    with pytest.raises(BadData, match="2 judgements of 1 documents"):
        read_judgements(workspace, judged(GOOD, GOOD))
    workspace.path(FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(BadData, match="is no UTF-8"):
        read_judgements(workspace, FILE)


def test_people_s_documents_stand_on_one_side(workspace: Workspace, judged: Callable[..., str]) -> None:
    """A fifth of them is held out, the same ones whatever the order of the lines."""
    lines = [GOOD | {"question": f"{q}?", "document": f"d{d}"} for d in range(20) for q in range(3)]
    job = tiny_training.job_input(stages=["reward"], rlhf={"preferences": {"path": judged(*lines)}})
    found = gather(tiny_training.work_of(workspace, job, stage="reward"))
    sides = [{pair.document for pair in pairs} for pairs in (found.training, found.held_out)]
    assert (found.source, len(sides[0]), len(sides[1]), sides[0] & sides[1]) == ("people", 16, 4, set())
    assert len(found.training) + len(found.held_out) == 60 and found.digest == file_digest(workspace.path(FILE))
    random.shuffle(lines)
    shuffled = read_judgements(workspace, judged(*lines))
    assert held_out(shuffled, 7) == sides[1] != held_out(shuffled, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Rules


def test_rules_reject_what_is_wrong_by_construction(workspace: Workspace) -> None:
    rows = rows_of(workspace)
    pairs = [pair for pair in pairs_of(rows, 7) if pair is not None]
    assert len(pairs) == len(rows) and {pair.origin for pair in pairs} == {"otherAnswer", "passage", "refusal"}
    for row, pair in zip(rows, pairs, strict=True):
        own = {other.answer for other in rows if other.document.digest == row.document.digest}
        shown = [passage.text for passage in row.contexts or () if not passage.oracle]
        assert pair.chosen == row.answer and row.answer not in pair.rejected
        match pair.origin:
            case "otherAnswer":
                assert pair.rejected in own
            case "passage":
                assert any(pair.rejected in text for text in shown)
            case "refusal":
                assert pair.rejected == REFUSAL


def test_rules_do_not_depend_on_the_order_of_rows(workspace: Workspace) -> None:
    rows = rows_of(workspace)
    mixed = random.sample(rows, len(rows))
    first = {pair.question: pair for pair in pairs_of(rows, 7) if pair is not None}
    assert {pair.question: pair for pair in pairs_of(mixed, 7) if pair is not None} == first
    assert {pair.question: pair for pair in pairs_of(rows, 8) if pair is not None} != first


def test_an_unanswerable_row_rejects_an_answer_of_its_document(workspace: Workspace) -> None:
    rows = [Row.model_validate(row) for row in tiny_training.rows([1], "train")]
    without = [Row.model_validate(row) for row in tiny_training.unanswerable_rows([1], "train")]
    (pair,) = [pair for pair in pairs_of([*rows, *without], 7) if pair is not None and pair.chosen == REFUSAL]
    assert pair.rejected in {row.answer for row in rows} and pair.origin == "otherAnswer"
    assert list(pairs_of(without, 7)) == [None], "alone there is no answer to reject"


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [
        ("thirty days", "Thirty days of notice.", False),
        ("notice in every copy", "Every", False),
        ("thirty days", "thirty daysworth", True),
        ("no fee", "a fee", True),
    ],
)
def test_answers_are_apart_when_neither_holds_the_words_of_the_other(one: str, other: str, are: bool) -> None:
    assert apart(one, other) is apart(other, one) is are


def test_validation_rows_are_held_out(workspace: Workspace) -> None:
    found = gather(tiny_training.work_of(workspace, tiny_training.job_input(stages=["reward"]), stage="reward"))
    validation = {row.document.digest for row in rows_of(workspace, "val_sft.jsonl")}
    assert found.source == "rules" and {pair.document for pair in found.held_out} == validation
    assert not validation & {pair.document for pair in found.training}


# ---------------------------------------------------------------------------------------------------------------------
# Token ids and audit


def encoded(workspace: Workspace, max_length: int = 200) -> tuple[list[EncodedPair], int, PromptBuilder]:
    builder = PromptBuilder(AutoTokenizer.from_pretrained(workspace.path("base/tiny")), 188)
    pairs = [pair for pair in pairs_of(rows_of(workspace), 7) if pair is not None]
    return *encode_pairs(pairs, builder, max_length), builder


def test_a_side_is_prompt_answer_and_stop_token(workspace: Workspace) -> None:
    pairs, too_long, builder = encoded(workspace)
    assert too_long == 0
    for item in pairs:
        prompt = builder.prompt(item.pair.question, item.pair.passages)
        assert prompt is not None and prompt.passages == 2
        assert item.chosen == prompt.ids + builder.answer(item.pair.chosen) and item.chosen[-1] == builder.stop
        assert item.rejected == prompt.ids + builder.answer(item.pair.rejected)


def test_what_does_not_fit_is_left_out_and_counted(workspace: Workspace) -> None:
    whole, _, _ = encoded(workspace)
    longest = max(max(len(item.chosen), len(item.rejected)) for item in whole)
    kept, too_long, _ = encoded(workspace, longest - 1)
    assert too_long > 0 and len(kept) + too_long == len(whole)


def pair_of(document: str, cluster: str) -> Pair:
    return Pair("Who?", None, "A", "B", document, cluster, "people")


@pytest.mark.parametrize(
    ("training", "held_out", "words"),
    [
        ([], [EncodedPair(pair_of("b", "b"), [1, 0], [2, 0])], "no pair to train on fits"),
        ([EncodedPair(pair_of("a", "a"), [1, 0], [2, 0])], [], "no pair to measure by fits"),
        ([EncodedPair(pair_of("a", "a"), [1, 0], [1, 0])], [EncodedPair(pair_of("b", "b"), [1, 0], [2, 0])], "same tokens"),
        ([EncodedPair(pair_of("a", "a"), [1, 0], [2, 3])], [EncodedPair(pair_of("b", "b"), [1, 0], [2, 0])], "stop token"),
        ([EncodedPair(pair_of("a", "a"), [1, 0], [2, 0])], [EncodedPair(pair_of("a", "b"), [1, 0], [2, 0])], "the first is a;"),
        ([EncodedPair(pair_of("a", "c"), [1, 0], [2, 0])], [EncodedPair(pair_of("b", "c"), [1, 0], [2, 0])], "the first is cluster c"),
    ],
    ids=["nothing to learn", "nothing to measure", "equal", "no stop", "document", "cluster"],
)
def test_the_audit_refuses_in_words(training: list[EncodedPair], held_out: list[EncodedPair], words: str) -> None:
    with pytest.raises((UserMistake, BadData), match=words):
        audit_pairs(training, held_out, stop=0)


def test_the_audit_lets_good_pairs_through() -> None:
    audit_pairs(
        [EncodedPair(pair_of("a", "a"), [1, 0], [2, 0])], [EncodedPair(pair_of("b", "b"), [1, 0], [2, 0])], stop=0
    )
