"""Rows that share a pass do not see each other: the same logits and gradients as alone, in float64."""

import pytest
import torch
from mark_trainer import packed_attention
from mark_trainer.audit import audit_packing
from mark_trainer.failures import UserMistake
from mark_trainer.model_files import TRAINABLE_FAMILIES
from mark_trainer.packed_attention import can_pack, use_packed_attention
from mark_trainer.passes import collate
from tiny_examples import example
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

ROWS = [example([3, 4, 5, 6, 7, 8, 9], 3), example([10, 11, 12], 1), example([13, 14, 15, 16, 17], 2)]
PACKABLE = ("llama", "mistral", "qwen2", "qwen3")


def model_of(family: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(5)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **heads, **changes)
    return AutoModelForCausalLM.from_config(config).double().eval()


def losses(model: PreTrainedModel, *, packed: bool) -> list[torch.Tensor]:
    """Logits of each row, and the gradient of their sum of squares by every weight."""
    if packed:
        inputs = collate(ROWS, 0, packed=True)
        inputs.pop("labels")
        found = list(model(**inputs, use_cache=False).logits[0].split(inputs["row_lengths"]))
    else:
        found = [model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0] for row in ROWS]
    total = torch.stack([logits.square().sum() for logits in found]).sum()
    return [*found, *torch.autograd.grad(total, list(model.parameters()))]


@pytest.mark.parametrize("family", PACKABLE)
def test_packed_equals_alone(family: str) -> None:
    model = model_of(family)
    alone = losses(model, packed=False)
    use_packed_attention(model)
    torch.testing.assert_close(losses(model, packed=True), alone, rtol=1e-9, atol=1e-11)


def test_a_sliding_window_stays_within_its_row() -> None:
    model = model_of("mistral", sliding_window=3)
    alone = losses(model, packed=False)
    use_packed_attention(model)
    torch.testing.assert_close(losses(model, packed=True), alone, rtol=1e-9, atol=1e-11)
    wide = model_of("mistral", sliding_window=None)
    use_packed_attention(wide)
    assert not torch.allclose(losses(wide, packed=True)[0], alone[0]), "the window must matter here"


def test_which_families_are_packed() -> None:
    configs = {family: AutoConfig.for_model(family) for family in TRAINABLE_FAMILIES}
    assert {family for family, config in configs.items() if can_pack(config)} == set(PACKABLE)


def test_the_audit_lets_separate_rows_through_and_draws_no_random_number() -> None:
    model = model_of("llama").float()
    use_packed_attention(model)
    state = torch.get_rng_state()
    audit_packing(model, ROWS)
    audit_packing(model, ROWS[:1])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_audit_refuses_attention_across_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").float()
    use_packed_attention(model)
    apart = packed_attention.attend

    def across(*inputs: torch.Tensor, row_lengths: list[int], **others: object) -> tuple[torch.Tensor, None]:
        return apart(*inputs, row_lengths=[sum(row_lengths)], **others)

    monkeypatch.setitem(packed_attention.AttentionInterface._global_mapping, packed_attention.NAME, across)
    with pytest.raises(UserMistake, match="rows that share a forward pass move each other's logits"):
        audit_packing(model, ROWS)


def test_the_audit_refuses_a_state_that_runs_on() -> None:
    """Mamba takes the positions and ignores them."""
    torch.manual_seed(5)
    model = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2)).eval()
    with pytest.raises(UserMistake, match=r"lora\.packing"):
        audit_packing(model, ROWS)
