"""A number for each token, read behind Llama and Mamba alike."""

from pathlib import Path

import pytest
import tiny_training
import torch
from mark_crds.shared import BaseModelReference
from mark_trainer import base_model, scalar_head
from mark_trainer.scalar_head import ScalarHead, hidden_states, padded, score
from transformers import PreTrainedModel

CPU = torch.device("cpu")
ROWS = [[5, 9, 3, 7, 2], [4, 8], [6, 6, 6]]


@pytest.fixture(scope="module", params=["llama", "mamba"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    root = tmp_path_factory.mktemp(request.param)
    tiny_training.write_base(root / "base/tiny", family=request.param)
    return base_model.load(BaseModelReference(path="base/tiny"), root, CPU, torch.float64).model.eval()


@pytest.fixture
def head() -> ScalarHead:
    return ScalarHead(32, seed=3).double()


def test_a_fresh_head_is_of_unit_scale() -> None:
    """Hidden states of unit size give scores of about unit size, whatever the width."""
    head = ScalarHead(4096, seed=1)
    assert head.weight.std().item() == pytest.approx(1 / 4097**0.5, rel=0.05)
    assert head.bias.item() == 0 and head.offset.item() == 0
    assert torch.equal(head.weight, ScalarHead(4096, seed=1).weight)
    assert not torch.equal(head.weight, ScalarHead(4096, seed=2).weight)


@torch.no_grad()
def test_a_score_is_read_at_the_last_token_wherever_the_padding_is(model: PreTrainedModel, head: ScalarHead) -> None:
    alone = torch.stack([head(model.base_model(torch.tensor([row])).last_hidden_state)[0, -1] for row in ROWS])
    ids, mask = padded(ROWS, CPU)
    torch.testing.assert_close(score(model, head, ids, mask), alone, atol=1e-10, rtol=1e-10)
    left = torch.stack([row.roll(5 - len(tokens)) for row, tokens in zip(ids, ROWS, strict=True)])
    left_mask = torch.stack([row.roll(5 - len(tokens)) for row, tokens in zip(mask, ROWS, strict=True)])
    # Llama's rotation is by place, so only differences of places count; transformers computes its angles in float32.
    near = 1e-6 if model.config.model_type == "llama" else 1e-10
    torch.testing.assert_close(score(model, head, left, left_mask), alone, atol=near, rtol=near)


@torch.no_grad()
def test_what_stands_under_the_padding_does_not_matter(model: PreTrainedModel, head: ScalarHead) -> None:
    ids, mask = padded(ROWS, CPU)
    assert torch.equal(score(model, head, ids + (1 - mask) * 11, mask), score(model, head, ids, mask))


@torch.no_grad()
def test_a_value_depends_on_no_later_token(model: PreTrainedModel, head: ScalarHead) -> None:
    one, other = (head(hidden_states(model, *padded([row], CPU)))[0] for row in ([5, 9, 3, 7, 2], [5, 9, 3, 6, 1]))
    torch.testing.assert_close(one[:3], other[:3], atol=1e-10, rtol=1e-10)
    assert not torch.allclose(one[3:], other[3:])


def test_the_offset_is_taken_off_and_kept(head: ScalarHead, tmp_path: Path) -> None:
    hidden = torch.randn(2, 32, dtype=torch.float64)
    before = head(hidden)
    head.offset.fill_(1.5)
    torch.testing.assert_close(head(hidden), before - 1.5)
    head.float().save(tmp_path)
    again = ScalarHead(32)
    again.load_state_dict(scalar_head.load_file(tmp_path / scalar_head.HEAD_FILE))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in head.state_dict().items())


def test_scores_keep_their_digits_where_the_model_computes_with_eight_bits() -> None:
    head, hidden = ScalarHead(32, seed=3), torch.randn(2, 32)
    exact = head(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(hidden), exact)
