"""The loss without full logits: the same value and gradients as torch's cross-entropy, in float64, in any chunks."""

import pytest
import torch
from mark_trainer import answer_loss
from mark_trainer.answer_loss import SummedNats, use_answer_loss
from mark_trainer.likelihood import IGNORED
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

VOCABULARY = 50


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    ids = torch.randint(VOCABULARY, (3, 11))
    return ids, torch.where(torch.rand(3, 11) < 0.4, ids, IGNORED)


@pytest.mark.parametrize("at_once", [1, 7 * VOCABULARY, 10**9], ids=["token by token", "chunks", "whole"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_value_and_gradient_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, at_once: int, softcap: float | None
) -> None:
    monkeypatch.setattr(answer_loss, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(1)
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(VOCABULARY, 8, dtype=torch.float64) * 3, torch.randn(VOCABULARY, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (23,))
    ours = SummedNats.apply(hidden, weight, bias, targets, softcap)
    (our_gradient,) = torch.autograd.grad(2 * ours, hidden)
    logits = linear(hidden, weight, bias)
    full = cross_entropy(
        logits if softcap is None else softcap * torch.tanh(logits / softcap), targets, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(2 * full, hidden)
    torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-10, atol=1e-12)


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(2)
    if family == "mamba":
        return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)).double()
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, tie_word_embeddings=True, **heads)
    ).double()


@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize("items", [None, 97])
def test_a_model_gives_the_loss_it_gave_before(
    tokens: tuple[torch.Tensor, torch.Tensor], family: str, items: int | None
) -> None:
    """Loss and every gradient, averaged over the trained tokens of the batch or over those of a whole step."""
    ids, labels = tokens
    model = model_of(family)
    model.get_output_embeddings().weight.requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    before, targets = model(input_ids=ids).logits, labels[:, 1:]
    logits = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)  # theirs are float32
    nats = cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="sum")
    full = nats / (items or (targets != IGNORED).sum())
    use_answer_loss(model)
    ours = model(input_ids=ids, labels=labels, num_items_in_batch=items).loss
    torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(full, weights)
    torch.testing.assert_close(torch.autograd.grad(ours, weights), gradients, rtol=1e-8, atol=1e-10)
    assert torch.equal(model(input_ids=ids).logits, before), "without labels nothing changes"


def test_without_a_trained_token_the_loss_is_a_zero_with_a_gradient(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = model_of("llama")
    model.get_output_embeddings().weight.requires_grad_(False)
    use_answer_loss(model)
    loss = model(input_ids=tokens[0], labels=torch.full_like(tokens[0], IGNORED)).loss
    loss.backward()
    assert loss.item() == 0 and model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() == 0


def test_a_head_that_learns_is_refused(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = model_of("llama")
    use_answer_loss(model)
    with pytest.raises(ValueError, match="head is frozen"):
        model(input_ids=tokens[0], labels=tokens[1])


def test_no_logits_of_all_tokens_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of logits holds what is allowed at once."""
    seen: list[int] = []
    monkeypatch.setattr(answer_loss, "LOGITS_AT_ONCE", 4 * VOCABULARY)
    monkeypatch.setattr(answer_loss, "linear", lambda *inputs: seen.append(len(inputs[0])) or linear(*inputs))
    hidden = torch.randn(30, 8, requires_grad=True)
    SummedNats.apply(hidden, torch.randn(VOCABULARY, 8), None, torch.zeros(30, dtype=torch.long), None)
    assert max(seen) == 4 and sum(seen) == 30
