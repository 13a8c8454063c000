"""Rows to token ids: masks, the mix of prompts, the order, and what the audit refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_training
from mark_trainer import audit, dataset
from mark_trainer.base_model import load_tokenizer
from mark_trainer.dataset import Row, encode_rows, read_rows, training_order
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.likelihood import IGNORED
from mark_trainer.prompts import PromptBuilder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.write_workspace(tmp_path_factory.mktemp("workspace")).root


@pytest.fixture(scope="module")
def builder(folder: Path) -> PromptBuilder:
    return PromptBuilder(load_tokenizer(folder / "base/tiny"), 188)


@pytest.fixture(scope="module")
def training(folder: Path) -> list[Row]:
    return read_rows(folder / "datasets/contracts", dataset.TRAIN_FILE)


@pytest.fixture(scope="module")
def validation(folder: Path) -> list[Row]:
    return read_rows(folder / "datasets/contracts", dataset.VALIDATION_FILE)


def test_only_the_answer_and_its_stop_token_carry_loss(training: list[Row], builder: PromptBuilder) -> None:
    for example in encode_rows(training, builder, max_length=200, seed=7).examples:
        answer = [*builder.encode(" " + example.row.answer), builder.stop]
        prompt = example.ids[: -len(answer)]
        assert example.ids == prompt + answer
        assert example.labels == [IGNORED] * len(prompt) + answer  # token by token
        assert builder.tokenizer.decode(prompt).endswith(example.row.question + "\nAnswer:")


def test_rows_are_asked_both_ways_by_a_draw_that_ignores_their_order(
    training: list[Row], builder: PromptBuilder
) -> None:
    examples = encode_rows(training, builder, max_length=200, seed=7).examples
    forms = {example.row.id: example.form for example in examples}
    assert set(forms.values()) == {"closedBook", "retrieved"}
    backwards = encode_rows(training[::-1], builder, max_length=200, seed=7).examples
    assert {example.row.id: example.form for example in backwards} == forms
    other = encode_rows(training, builder, max_length=200, seed=8).examples
    assert {example.row.id: example.form for example in other} != forms
    for example in examples:
        assert ("Passage 1:" in builder.tokenizer.decode(example.ids)) == (example.form == "retrieved")


def test_rows_that_do_not_fit_are_counted_not_cut(training: list[Row], builder: PromptBuilder) -> None:
    lengths = [len(example.ids) for example in encode_rows(training, builder, max_length=200, seed=7).examples]
    limit = sorted(lengths)[len(lengths) // 2]
    encoded = encode_rows(training, builder, max_length=limit, seed=7)
    assert len(encoded.too_long) == sum(length > limit for length in lengths)
    assert all(example.ids[-1] == builder.stop for example in encoded.examples)


def test_the_order_holds_every_row_once_an_epoch() -> None:
    lengths = [7 * row % 31 for row in range(50)]
    order = training_order(lengths, epochs=3, batch_size=4, seed=7)
    assert sorted(order) == sorted([*range(50)] * 3)
    assert order == training_order(lengths, epochs=3, batch_size=4, seed=7)
    assert order != training_order(lengths, epochs=3, batch_size=4, seed=8)
    padded = sum(4 * max(lengths[row] for row in order[at : at + 4]) for at in range(0, 148, 4))
    unsorted = sum(4 * max(lengths[row % 50] for row in range(at, at + 4)) for at in range(0, 148, 4))
    assert padded < 0.8 * unsorted


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "1"}', "line 1: question"),
        ("no json", "line 1"),
        ("", "has no rows"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "train_sft.jsonl").write_text(line + "\n")
    with pytest.raises(BadData, match=words):
        read_rows(tmp_path, "train_sft.jsonl")


def test_a_row_is_a_line_whatever_separators_its_text_has(tmp_path: Path, training: list[Row]) -> None:
    answers = [f"one{separator}two" for separator in "\u2028\u2029\x85\x1c\x0b\x0c"]
    rows = [training[0].model_copy(update={"answer": answer}) for answer in answers]
    lines = [json.dumps(row.model_dump(mode="json", by_alias=True), ensure_ascii=False) for row in rows]
    (tmp_path / "train_sft.jsonl").write_text("\r\n".join([*lines, "", '{"id": 1}']), newline="")
    with pytest.raises(BadData, match="line 8: id"):
        read_rows(tmp_path, "train_sft.jsonl")
    (tmp_path / "train_sft.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert read_rows(tmp_path, "train_sft.jsonl") == rows


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"val_sft\.jsonl: there is no such file"):
        read_rows(tmp_path, "val_sft.jsonl")


def test_the_audit_passes_what_we_build(training: list[Row], validation: list[Row], builder: PromptBuilder) -> None:
    examples = encode_rows(training, builder, max_length=200, seed=7).examples
    findings = audit.audit_examples(examples, training, validation, builder)
    assert findings.prompt_mismatches == 0 and findings.shared_clusters == 0
    assert 0 < findings.trained_share < 0.5


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("StopNotTrained", lambda e: replace(e, ids=e.ids[:-1], labels=e.labels[:-1])),
        ("PromptTrained", lambda e: replace(e, labels=list(e.ids))),
        ("MaskWrong", lambda e: replace(e, labels=[*e.labels[:-1], IGNORED])),
        ("PromptMismatch", lambda e: replace(e, ids=[e.ids[1], *e.ids[1:]])),
        ("EmptyAnswer", lambda e: replace(e, row=e.row.model_copy(update={"answer": " "}))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_audit_refuses(reason: str, change, training: list[Row], builder: PromptBuilder) -> None:
    examples = encode_rows(training, builder, max_length=200, seed=7).examples
    with pytest.raises(BadData, match=reason):
        audit.audit_examples([change(examples[0]), *examples[1:]], training, [], builder)


def test_the_audit_refuses_a_document_on_both_sides(training: list[Row], builder: PromptBuilder) -> None:
    examples = encode_rows(training, builder, max_length=200, seed=7).examples
    with pytest.raises(BadData, match="SplitOverlap"):
        audit.audit_examples(examples, training, training[:1], builder)
    # Another file of the same cluster is as bad as the same file.
    sibling = training[0].model_copy(update={"document": training[0].document.model_copy(update={"digest": "f" * 64})})
    with pytest.raises(BadData, match="cluster contract-100"):
        audit.audit_examples(examples, training, [sibling], builder)


def test_the_audit_refuses_an_empty_training(builder: PromptBuilder) -> None:
    with pytest.raises(UserMistake, match=r"lora\.maxLength"):
        audit.audit_examples([], [], [], builder)
