"""Answers are greedy: the likeliest token each time, whatever the base model's folder says about generation."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from mark_crds.shared import BaseModelReference
from mark_trainer import answers, base_model
from mark_trainer.base_model import BaseModel
from mark_trainer.prompts import PromptBuilder

NEW_TOKENS = 12
QUESTIONS = [f"What shall the Author of Contract {number} do?" for number in range(2)]
HABITS: list[dict[str, Any]] = [
    {"repetition_penalty": 4.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 5.0, "num_beams": 3},
    {"min_new_tokens": 9, "forced_eos_token_id": 5},
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    tiny_training.write_base(root / "base")
    return root


def likeliest(base: BaseModel, ids: list[int], stop: int) -> str:
    """Token by token without generate()."""
    prompt = len(ids)
    while len(ids) < prompt + NEW_TOKENS:
        with torch.inference_mode():
            ids = [*ids, int(base.model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == stop:
            break
    return answers.first_line(str(base.tokenizer.decode(ids[prompt:], skip_special_tokens=True)))


@pytest.mark.parametrize("habits", HABITS)
def test_an_answer_is_the_likeliest_token_each_time(workspace: Path, habits: dict[str, Any]) -> None:
    (workspace / "base" / "generation_config.json").write_text(json.dumps(habits))
    base = base_model.load(BaseModelReference(path="base"), workspace, torch.device("cpu"), torch.float32)
    base.model.eval()
    builder = PromptBuilder(base.tokenizer, 200)
    prompts = [prompt for question in QUESTIONS if (prompt := builder.prompt(question)) is not None]
    found = answers.answer(base.model, builder, prompts, max_new_tokens=NEW_TOKENS)
    expected = [likeliest(base, prompt.ids, builder.stop) for prompt in prompts]
    assert [one.text for one in found] == expected and any(expected)
