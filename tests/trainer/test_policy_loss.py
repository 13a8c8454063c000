"""The arithmetic of PPO: tables worked out by hand, and the same numbers from a second implementation."""

import math
import random

import plain_ppo
import pytest
import torch
from mark_trainer import policy_loss

SETTINGS = plain_ppo.Settings(0.05, 0.2, 0.2, 0.1, 0.98, 0.95, 0.7)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("discount", "decay", "advantages"),
    [
        (1.0, 0.95, (0.432, 0.56, 0.8)),
        (0.5, 0.8, (-0.292, 0.02, 0.8)),
        (1.0, 1.0, (0.5, 0.6, 0.8)),  # the return, less what was foretold
        (1.0, 0.0, (-0.1, -0.2, 0.8)),  # the surprise of one token alone
    ],
)
def test_three_tokens_by_hand(discount: float, decay: float, advantages: tuple[float, ...]) -> None:
    values = double(0.5, 0.4, 0.2)
    found, returns = policy_loss.advantages_of(double(0, 0, 1), values, discount, decay)
    torch.testing.assert_close(found, double(*advantages))
    torch.testing.assert_close(returns, double(*advantages) + values)


def test_the_score_is_earned_by_the_last_token_and_each_token_pays_for_its_kl() -> None:
    rewards = policy_loss.token_rewards(2.0, double(-1, -2, -3), double(-1.5, -2, -2), 0.1)
    torch.testing.assert_close(rewards, double(-0.05, 0.0, 2.1))


def test_kl_has_the_sign_of_a_policy_that_moved_away() -> None:
    """Over all tokens of a distribution both estimators are the divergence itself; k3 is never below zero."""
    policy, reference = double(0.7, 0.2, 0.1), double(0.5, 0.25, 0.25)
    divergence = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    assert divergence > 0
    for estimator in (policy_loss.kl_k1, policy_loss.kl_k3):
        assert float((policy * estimator(policy.log(), reference.log())).sum()) == pytest.approx(divergence)
        assert float(estimator(policy.log(), policy.log()).abs().max()) == 0
    assert policy_loss.kl_k1(policy.log(), reference.log()).tolist()[2] < 0
    assert min(policy_loss.kl_k3(policy.log(), reference.log()).tolist()) > 0


def test_whitening() -> None:
    torch.testing.assert_close(policy_loss.whitened(double(1, 2, 3)), double(-1, 0, 1))
    assert policy_loss.whitened(double(5, 5, 5)).tolist() == [0, 0, 0]
    assert policy_loss.whitened(double(5)).tolist() == [0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "learns"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # good, and liked enough by now
        (0.5, 2.0, -1.0, True),  # good, and liked less than before
        (1.5, -2.0, 3.0, True),  # bad, and liked more than before
        (0.5, -2.0, 1.6, False),  # bad, and shunned enough by now
    ],
)
def test_the_ratio_is_clipped_only_where_more_would_be_gained(
    ratio: float, advantage: float, loss: float, learns: bool
) -> None:
    log_probs = double(math.log(ratio) - 1.0).requires_grad_()
    found = policy_loss.policy_losses(log_probs, double(-1.0), double(advantage), 0.2)
    assert found.item() == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(found.sum(), log_probs)
    assert bool(gradient.item()) is learns


@pytest.mark.parametrize(
    ("value", "loss", "learns"),
    [
        (1.1, 0.5 * 0.9**2, True),
        (1.5, 0.5 * 0.8**2, False),  # nearer than the clip range lets it come
        (0.5, 0.5 * 1.5**2, True),
    ],
)
def test_the_value_is_clipped_only_where_more_would_be_gained(value: float, loss: float, learns: bool) -> None:
    values = double(value).requires_grad_()
    found = policy_loss.value_losses(values, double(1.0), double(2.0), 0.2)
    assert found.item() == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert bool(gradient.item()) is learns


def test_the_temperature_divides_the_logits() -> None:
    """At 0.5 odds of 3 to 1 become 9 to 1; a token that cannot be drawn leaves the entropy a number."""
    logits = double(math.log(3), 0.0, -math.inf)[None]
    log_probs, entropy = policy_loss.log_probs_of(logits, torch.tensor([0]), 0.5)
    assert log_probs.exp().item() == pytest.approx(0.9)
    assert entropy.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


def test_a_policy_that_has_not_moved_is_neither_clipped_nor_away() -> None:
    log_probs = double(-1, -2, -3)
    assert policy_loss.clip_fraction(log_probs, log_probs, 0.2).item() == 0
    assert policy_loss.approximate_kl(log_probs, log_probs).item() == 0
    moved = log_probs + double(0.3, 0.0, -0.1)
    assert policy_loss.clip_fraction(moved, log_probs, 0.2).item() == pytest.approx(1 / 3)
    assert policy_loss.approximate_kl(moved, log_probs).item() == pytest.approx(0.5 * (0.09 + 0.01) / 3)


@pytest.mark.parametrize("seed", range(10))
def test_a_second_implementation_finds_the_same(seed: int) -> None:
    """Answers of random lengths: flat vectors here, padded matrices and masks there; numbers and gradients."""
    torch.manual_seed(seed)
    lengths = [random.Random(seed).randint(1, 9) for _ in range(5)]
    vocabulary, settings = 11, SETTINGS
    mask = torch.tensor([[float(place < length) for place in range(max(lengths))] for length in lengths]).double()
    shape, flat = mask.shape, mask.bool()
    logits = torch.randn(*shape, vocabulary, dtype=torch.float64, requires_grad=True)
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    tokens, scores = torch.randint(vocabulary, shape), torch.randn(len(lengths), dtype=torch.float64)
    old_log_probs, reference = -3 * torch.rand(shape).double(), -3 * torch.rand(shape).double()
    old_values = values.detach() + 0.5 * torch.randn(shape)

    reward = plain_ppo.rewards(scores, old_log_probs, reference, mask, settings.kl_coefficient)
    raw = plain_ppo.advantages(reward, old_values, mask, settings.discount, settings.gae_lambda)
    old = {
        "log_probs": old_log_probs,
        "values": old_values,
        "returns": raw + old_values,
        "advantages": plain_ppo.whiten(raw, mask),
    }
    theirs = plain_ppo.loss(logits, values, tokens, mask, old, settings)

    parts = []
    for row, length in enumerate(lengths):
        of_row = policy_loss.token_rewards(
            float(scores[row]), old_log_probs[row, :length], reference[row, :length], settings.kl_coefficient
        )
        parts.append(
            policy_loss.advantages_of(of_row, old_values[row, :length], settings.discount, settings.gae_lambda)
        )
    advantages = policy_loss.whitened(torch.cat([part[0] for part in parts]))
    returns = torch.cat([part[1] for part in parts])
    log_probs, _ = policy_loss.log_probs_of(logits[flat], tokens[flat], settings.temperature)
    ours = (
        policy_loss.policy_losses(log_probs, old_log_probs[flat], advantages, settings.clip_range).mean(),
        policy_loss.value_losses(values[flat], old_values[flat], returns, settings.value_clip_range).mean(),
    )
    for our, their, by in zip(ours, theirs, (logits, values), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, by, retain_graph=True)[0] for loss in (our, their)), rtol=1e-10, atol=1e-12
        )
