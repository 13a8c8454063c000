"""Likelihoods computed a second way, token by token and without batches."""

import copy
import math
from pathlib import Path

import pytest
import tiny_training
import torch
from mark_trainer import answers
from mark_trainer.answers import answer, first_line
from mark_trainer.base_model import load_tokenizer
from mark_trainer.likelihood import IGNORED, Unigram, label_nats, text_nats
from mark_trainer.prompts import PromptBuilder
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

QUESTIONS = ["Who?", "What shall the Author of Contract 7 do?", "What shall the Steward do under clause 3 of it all?"]


@pytest.fixture(scope="module", params=["llama", "mamba"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_training.write_base(folder, family=request.param)
    return folder


@pytest.fixture(scope="module")
def builder(folder: Path) -> PromptBuilder:
    return PromptBuilder(load_tokenizer(folder), 200)


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    """With sharper predictions than fresh weights give, so that a wrong position would show."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(3)
    if model.config.model_type == "llama":
        for weight in model.model.parameters():
            weight.data.mul_(20 if weight.dim() == 2 else 1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


@torch.no_grad()
def nats_one_by_one(model: PreTrainedModel, prompt: list[int], answer_ids: list[int]) -> float:
    """Each token on its own, from the probabilities behind everything before it."""
    total, seen = 0.0, list(prompt)
    for token in answer_ids:
        probabilities = model(input_ids=torch.tensor([seen])).logits[0, -1].double().softmax(-1)
        total -= math.log(probabilities[token].item())
        seen.append(token)
    return total


def test_answer_nats_are_those_of_one_token_after_another(model: PreTrainedModel, builder: PromptBuilder) -> None:
    prompts = [builder.prompt(question).ids for question in QUESTIONS]
    said = [builder.answer(text) for text in ("pay no fee", "keep the notice in every copy", "x")]
    examples = [(p + a, [IGNORED] * len(p) + a) for p, a in zip(prompts, said, strict=True)]
    for (nats, tokens), prompt, ids in zip(label_nats(model, examples), prompts, said, strict=True):
        assert tokens == len(ids)
        assert nats == pytest.approx(nats_one_by_one(model, prompt, ids), abs=1e-4)


def test_text_nats_start_anew_in_each_window(model: PreTrainedModel, builder: PromptBuilder) -> None:
    ids = builder.encode("The Author shall pay no fee for private use. " * 3)[:20]
    ((nats, tokens),) = text_nats(model, [ids], builder.tokenizer.bos_token_id)
    assert tokens == 20
    assert nats == pytest.approx(nats_one_by_one(model, [builder.tokenizer.bos_token_id], ids), abs=1e-4)


def test_unigram_is_add_one_smoothed_frequency() -> None:
    unigram = Unigram.fit([[0, 1, 1], [1]], vocabulary=3)
    assert unigram.counts == (1, 3, 0)
    assert unigram.nats([[1], [2, 0]]) == [
        (pytest.approx(-math.log(4 / 7)), 1),
        (pytest.approx(-math.log(1 / 7) - math.log(2 / 7)), 2),
    ]


def test_left_and_right_padding_agree(model: PreTrainedModel, builder: PromptBuilder) -> None:
    """The same tokens with padding on either side have the same logits where generate() and training read them."""
    prompts = [builder.prompt(question).ids for question in QUESTIONS]
    longest = max(map(len, prompts))
    for ids in prompts:
        gap = longest - len(ids)
        pad, zeros, ones = [builder.tokenizer.pad_token_id] * gap, [0] * gap, [1] * len(ids)
        positions = torch.tensor([[0] * gap + list(range(len(ids)))])
        with torch.no_grad():
            right = model(input_ids=torch.tensor([ids + pad]), attention_mask=torch.tensor([ones + zeros])).logits
            left = model(
                input_ids=torch.tensor([pad + ids]),
                attention_mask=torch.tensor([zeros + ones]),
                **({"position_ids": positions} if model.config.model_type == "llama" else {}),
            ).logits
            alone = model(input_ids=torch.tensor([ids])).logits
        torch.testing.assert_close(right[0, : len(ids)], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left[0, gap:], alone[0], atol=1e-4, rtol=1e-4)


def test_batched_answers_are_those_of_each_question_alone(model: PreTrainedModel, builder: PromptBuilder) -> None:
    prompts = [builder.prompt(question) for question in QUESTIONS]
    together = answer(model, builder, prompts, max_new_tokens=8)
    alone = [answer(model, builder, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert together == alone
    assert len({one.text for one in together}) > 1 or model.config.model_type == "mamba"
    greedy = list(prompts[1].ids)
    with torch.no_grad():
        for _ in range(8):
            greedy.append(int(model(input_ids=torch.tensor([greedy])).logits[0, -1].argmax()))
    assert together[1].text == first_line(builder.decode(greedy[len(prompts[1].ids) :]))


def test_answers_do_not_depend_on_batches_or_order(
    model: PreTrainedModel, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [
        builder.prompt(f"{question} {tail}") for question in QUESTIONS for tail in ("", "Why?", "And when? " * 5)
    ]
    heard: list[int] = []
    together = answer(model, builder, prompts, max_new_tokens=8, after_batch=heard.append)
    assert heard == [9]
    assert answer(model, builder, prompts[::-1], max_new_tokens=8) == together[::-1]
    for tokens_a_batch in (1, 150):
        monkeypatch.setattr(answers, "TOKENS_A_BATCH", tokens_a_batch)
        heard.clear()
        assert answer(model, builder, prompts, max_new_tokens=8, after_batch=heard.append) == together
        assert sum(heard) == 9 and len(heard) == (9 if tokens_a_batch == 1 else len(heard)) > 1


def test_mamba_answers_and_likelihoods_do_not_depend_on_batches(builder: PromptBuilder) -> None:
    """Its state runs through the padding, unless the mask keeps it out."""
    torch.manual_seed(5)
    tokenizer = builder.tokenizer
    config = MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    mamba = MambaForCausalLM(config).eval()
    for weight in mamba.parameters():
        weight.data.mul_(3 if weight.dim() == 2 else 1)
    prompts = [builder.prompt(question) for question in QUESTIONS]
    together = answer(mamba, builder, prompts, max_new_tokens=6)
    assert together == [answer(mamba, builder, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert len({one.text for one in together}) > 1 or model.config.model_type == "mamba"
    examples = [(p.ids + builder.answer("no fee"), [IGNORED] * len(p.ids) + builder.answer("no fee")) for p in prompts]
    for (nats, tokens), example in zip(label_nats(mamba, examples), examples, strict=True):
        ((alone, as_many),) = label_nats(mamba, [example])
        assert nats == pytest.approx(alone, abs=1e-4) and tokens == as_many
        assert nats == pytest.approx(nats_one_by_one(mamba, example[0][:-as_many], example[0][-as_many:]), abs=1e-4)


def test_ending_behind_the_first_line_changes_no_answer(model: PreTrainedModel, builder: PromptBuilder) -> None:
    """A model that likes line breaks, decoded to the full length and then read, against `answer`."""
    breaks = builder.encode("\n")
    assert len(breaks) == 1
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    model.lm_head.weight.data[breaks[0]] *= 2.5
    prompts = [builder.prompt(f"{question} {number}") for question in QUESTIONS for number in range(4)]
    cut = 0
    for written, prompt in zip(answer(model, builder, prompts, max_new_tokens=24), prompts, strict=True):
        ids = list(prompt.ids)
        with torch.no_grad():
            while len(ids) < len(prompt.ids) + 24 and ids[-1] != builder.stop:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        text = builder.tokenizer.decode(ids[len(prompt.ids) :], skip_special_tokens=True)
        assert written.text == first_line(text)
        assert written.stopped == (ids[-1] == builder.stop and "\n" not in text.lstrip())
        cut += "\n" in text.strip()
    assert cut > 0 and (cut < len(prompts) or model.config.model_type == "mamba")


@pytest.mark.parametrize(
    ("written", "read"),
    [(" pay no fee", "pay no fee"), ("\n\n pay\nQuestion: Who?", "pay"), ("", "")],
)
def test_an_answer_ends_with_its_line(written: str, read: str) -> None:
    assert first_line(written) == read
