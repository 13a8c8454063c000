"""One prompt builder: what it puts where, what it cuts, and when two builders are the same."""

from pathlib import Path

import pytest
import tiny_training
from mark_trainer.base_model import load_tokenizer
from mark_trainer.prompts import PromptBuilder
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_training.write_base(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


def test_closed_book_reads_as_written(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptBuilder(tokenizer, 100).prompt(" What shall the Author do? ")
    assert prompt is not None
    assert tokenizer.decode(prompt.ids) == ("<bos>Answer the question.\n\nQuestion: What shall the Author do?\nAnswer:")


def test_passages_stand_before_the_question_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptBuilder(tokenizer, 100).prompt("Who?", ["The Author.", "The Steward."])
    assert prompt is not None and prompt.passages == 2 and not prompt.cut
    assert tokenizer.decode(prompt.ids) == (
        "<bos>Answer the question from the passages.\n\n"
        "Passage 1: The Author.\n\nPassage 2: The Steward.\n\nQuestion: Who?\nAnswer:"
    )


def test_an_answer_ends_with_the_stop_token(tokenizer: PreTrainedTokenizerBase) -> None:
    builder = PromptBuilder(tokenizer, 100)
    ids = builder.answer("pay no fee")
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert builder.decode(ids) == "pay no fee"


@pytest.mark.parametrize("text", ["a<eos>b", "<bos>", "x <pad> y"])
def test_text_never_becomes_a_control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    builder = PromptBuilder(tokenizer, 200)
    prompt = builder.prompt(text, [text])
    assert prompt is not None
    control = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert [token for token in prompt.ids if token in control] == [tokenizer.bos_token_id]
    assert tokenizer.decode(builder.encode(text)) == text


def test_passages_give_way_and_the_question_never(tokenizer: PreTrainedTokenizerBase) -> None:
    passages = ["The Author shall keep the notice in every copy. " * 3, "The Steward shall pay no fee. " * 3]
    whole = PromptBuilder(tokenizer, 1000).prompt("Who shall pay?", passages)
    assert whole is not None
    question_alone = len(whole.ids) - len(PromptBuilder(tokenizer, 1000).encode("".join(passages)))
    for limit in range(question_alone, len(whole.ids) + 1):
        prompt = PromptBuilder(tokenizer, limit).prompt("Who shall pay?", passages)
        assert prompt is not None and len(prompt.ids) <= limit
        assert tokenizer.decode(prompt.ids).endswith("Question: Who shall pay?\nAnswer:")
        assert prompt.cut == (limit < len(whole.ids))
        assert len(prompt.shown) == prompt.passages
        text = tokenizer.decode(prompt.ids)
        for number, (shown, passage) in enumerate(zip(prompt.shown, passages, strict=False), start=1):
            assert passage.strip().startswith(shown) and f"Passage {number}: {shown}\n\n" in text


def test_a_question_that_does_not_fit_gives_no_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    assert PromptBuilder(tokenizer, 10).prompt("Who shall pay the fee to the Author?") is None


def test_digest_is_of_template_and_tokenizer_alone(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    digest = PromptBuilder(tokenizer, 100).digest()
    padded = AutoTokenizer.from_pretrained(folder)
    padded(["a", "b b b"], padding=True, truncation=True, max_length=2)  # leaves its settings in the backend
    assert PromptBuilder(padded, 50).digest() == digest
    padded.eos_token = "<pad>"
    assert PromptBuilder(padded, 50).digest() != digest
