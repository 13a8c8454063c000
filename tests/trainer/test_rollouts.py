"""Drawing answers: what stops one, what padding does, and that the numbers alone decide what is drawn."""

from collections.abc import Sequence

import pytest
import torch
from mark_trainer import rollouts
from mark_trainer.policy_loss import log_probs_of
from mark_trainer.rollouts import Rollout
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

VOCABULARY, STOP, PAD = 40, 1, 2
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(2)
    shared = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3}
    if family == "mamba":
        return MambaForCausalLM(MambaConfig(state_size=4, **shared)).eval()
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(**heads, **shared)).eval()


def numbers_of(count: int, tokens: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, tokens, generator=torch.Generator().manual_seed(seed))


def draw(model: PreTrainedModel, prompts: Sequence[list[int]], numbers: torch.Tensor, **changes) -> list[Rollout]:
    return rollouts.draw_rollouts(model, prompts, numbers, **{"stop": STOP, "pad": PAD, "temperature": 0.7, **changes})


def test_a_token_is_drawn_as_often_as_it_is_probable() -> None:
    logits = torch.tensor([0.5, 0.3, 0.0, 0.2]).log()
    numbers = (torch.arange(1000) + 0.5) / 1000
    drawn = rollouts.tokens_at(logits.expand(1000, -1), numbers)
    assert torch.bincount(drawn, minlength=4).tolist() == [500, 300, 0, 200]
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert rollouts.tokens_at(torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2), ends).tolist() == [1, 1]


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_forward_pass_finds_the_log_probabilities_of_the_drawing(family: str) -> None:
    """Left padding and cache there, right padding and the whole answer at once here: the same numbers."""
    model = model_of(family)
    found = draw(model, PROMPTS, numbers_of(4))
    shown = rollouts.show(found, torch.device("cpu"))
    logits = model(input_ids=shown.ids, attention_mask=shown.mask).logits
    log_probs, _ = log_probs_of(logits[shown.before], shown.drawn, 0.7)
    torch.testing.assert_close(log_probs, torch.cat([rollout.log_probs for rollout in found]), atol=1e-4, rtol=1e-4)
    assert shown.lengths == [len(rollout.answer) for rollout in found]


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_an_answer_depends_on_its_own_prompt_and_numbers_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its neighbours, the batches, the device's random numbers or what the model's folder says."""
    model, numbers = model_of(family), numbers_of(4)
    together = draw(model, PROMPTS, numbers)
    torch.manual_seed(99)
    monkeypatch.setattr(rollouts, "TOKENS_A_BATCH", 1)
    model.generation_config = GenerationConfig(repetition_penalty=5.0, top_k=1, eos_token_id=7)
    alone = draw(model, PROMPTS, numbers)
    assert [rollout.answer for rollout in alone] == [rollout.answer for rollout in together]
    others = draw(model, PROMPTS, numbers_of(4, seed=1))
    assert [rollout.answer for rollout in others] != [rollout.answer for rollout in together]


@pytest.mark.parametrize("pad", [PAD, STOP], ids=["pad", "pad is stop"])
def test_nothing_follows_the_stop_token(pad: int) -> None:
    model = model_of("llama")
    found = draw(model, PROMPTS * 8, numbers_of(32), pad=pad)
    stopped = [rollout for rollout in found if rollout.stopped]
    assert 0 < len(stopped) < 32
    for rollout in found:
        assert rollout.answer.count(STOP) == rollout.stopped == (rollout.answer[-1] == STOP)
        assert len(rollout.answer) == len(rollout.log_probs) <= 12
        assert rollout.stopped or len(rollout.answer) == 12
    assert [rollout.answer for rollout in found] == [r.answer for r in draw(model, PROMPTS * 8, numbers_of(32))]


def test_a_lower_temperature_draws_likelier_tokens() -> None:
    model = model_of("llama")

    def mean(temperature: float) -> float:
        found = draw(model, PROMPTS * 8, numbers_of(32), temperature=temperature)
        shown = rollouts.show(found, torch.device("cpu"))
        logits = model(input_ids=shown.ids, attention_mask=shown.mask).logits
        return log_probs_of(logits[shown.before], shown.drawn, 1.0)[0].mean().item()

    assert mean(0.2) > mean(1.0) > mean(3.0)


def test_the_places_of_a_pass() -> None:
    """Padding on the right; the place before each drawn token, the last one of the prompt among them."""
    found = [
        Rollout([5, 6, 7], [8, STOP], torch.zeros(2), stopped=True),
        Rollout([9], [3, 3, 3], torch.zeros(3), stopped=False),
    ]
    shown = rollouts.show(found, torch.device("cpu"))
    assert shown.ids.tolist() == [[5, 6, 7, 8, STOP], [9, 3, 3, 3, 0]]
    assert shown.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert shown.before.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert shown.drawn.tolist() == [8, STOP, 3, 3, 3]
    assert shown.lengths == [2, 3]


def test_each_rollout_is_in_one_pass_and_no_pass_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "TOKENS_A_BATCH", 20)
    found = [Rollout([5] * length, [STOP], torch.zeros(1), stopped=True) for length in (3, 30, 8, 3, 9, 2)]
    passes = rollouts.passes_of(found)
    assert sorted(index for indexes in passes for index in indexes) == list(range(6))
    assert passes == [[1], [4, 2], [0, 3, 5]]
