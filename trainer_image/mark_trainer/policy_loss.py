"""The arithmetic of PPO: from logits and a score to advantages and losses. It must not know a model or a batch.

There is no padding here, so nothing to mask. A vector holds drawn tokens alone: those of one answer where their order
counts (rewards, advantages), else those of many answers, one behind another, and a mean is a mean over drawn tokens.
"""

import torch

SMALLEST_VARIANCE = 1e-8  # below it advantages are as good as equal, and whitening would blow up their rounding


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token, and the entropy of what it was drawn from, both in nats.

    `logits` is (tokens, vocabulary). They are divided by the temperature that the tokens are drawn at: the policy is
    what is drawn from. The entropy carries no gradient.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    of_all = torch.log_softmax(logits.to(exact) / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(of_all.exp() * of_all.clamp(min=torch.finfo(exact).min)).sum(-1)
    return of_all.gather(-1, tokens[:, None])[:, 0], entropy


def kl_k1(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(policy, reference) by tokens that the policy drew, unbiased; below zero where the reference likes one more."""
    return log_probs - reference


def kl_k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """As unbiased as `kl_k1`, never below zero and of less variance."""
    difference = reference - log_probs
    return torch.expm1(difference) - difference


def token_rewards(
    score: float, log_probs: torch.Tensor, reference: torch.Tensor, kl_coefficient: float
) -> torch.Tensor:
    """Rewards of an answer's tokens: each pays for leaving the reference, the last one earns the score."""
    rewards = -kl_coefficient * kl_k1(log_probs, reference)
    rewards[-1] += score
    return rewards


def advantages_of(
    rewards: torch.Tensor, values: torch.Tensor, discount: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantages of an answer's tokens, and the returns that the critic shall foretell.

    `values[t]` is the critic's word before token t is drawn; behind the last token nothing is to be had.
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros((), dtype=rewards.dtype)
    for place in reversed(range(len(rewards))):
        surprise = rewards[place] + discount * next_value - values[place]
        next_advantage = surprise + discount * gae_lambda * next_advantage
        next_value = values[place]
        advantages[place] = next_advantage
    return advantages, advantages + values


def whitened(values: torch.Tensor) -> torch.Tensor:
    """The values with mean 0 and variance 1, by the unbiased variance; equal values, or a single one, become 0."""
    centred = values - values.mean()
    variance = centred.square().sum() / max(1, len(values) - 1)
    return centred * torch.rsqrt(variance + SMALLEST_VARIANCE)


def policy_losses(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Loss of each token: its ratio to the policy that drew it, by its advantage; no gain beyond the clip range."""
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Loss of each token's value: half the squared error, without gain beyond the clip range around the old value."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def clip_fraction(log_probs: torch.Tensor, old_log_probs: torch.Tensor, clip_range: float) -> torch.Tensor:
    """Share of the tokens whose ratio lies outside the clip range."""
    ratio = (log_probs - old_log_probs).exp()
    return ((ratio - 1).abs() > clip_range).double().mean()


def approximate_kl(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """How far the policy has moved since it drew the tokens: half the mean squared difference, in nats a token."""
    return 0.5 * (log_probs - old_log_probs).square().mean()
