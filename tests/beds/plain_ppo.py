"""PPO a second time, written for reading: float64, padded matrices and masks, sums where the trainer has a recursion.

It shares no code with the trainer. Matrices are (answers, places); `mask` is 1 where a token was drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    kl_coefficient: float
    clip_range: float
    value_clip_range: float
    value_coefficient: float
    discount: float
    gae_lambda: float
    temperature: float


def masked_mean(matrix: Tensor, mask: Tensor) -> Tensor:
    return (matrix * mask).sum() / mask.sum()


def rewards(scores: Tensor, log_probs: Tensor, reference: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    result = -coefficient * (log_probs - reference) * mask
    for row, last in enumerate(mask.sum(1).long() - 1):
        result[row, last] += scores[row]
    return result


def advantages(reward: Tensor, values: Tensor, mask: Tensor, discount: float, decay: float) -> Tensor:
    """A(t) as the sum over l of (discount * decay)^l * delta(t + l)."""
    result = torch.zeros_like(reward)
    for row, length in enumerate(mask.sum(1).long().tolist()):
        behind = [*values[row, 1:length].tolist(), 0.0]
        delta = [float(reward[row, t]) + discount * behind[t] - float(values[row, t]) for t in range(length)]
        for t in range(length):
            result[row, t] = sum((discount * decay) ** (later - t) * delta[later] for later in range(t, length))
    return result


def whiten(matrix: Tensor, mask: Tensor) -> Tensor:
    chosen = matrix[mask.bool()]
    return (matrix - chosen.mean()) / (chosen.var(unbiased=True) + 1e-8).sqrt() * mask


def loss(
    logits: Tensor, values: Tensor, tokens: Tensor, mask: Tensor, old: dict[str, Tensor], settings: Settings
) -> tuple[Tensor, Tensor]:
    """Policy loss and value loss of (answers, places, vocabulary) logits and (answers, places) values."""
    probabilities = torch.softmax(logits / settings.temperature, -1)
    log_probs = probabilities.gather(-1, tokens[..., None])[..., 0].log()
    ratio = torch.exp(log_probs - old["log_probs"])
    low, high = 1 - settings.clip_range, 1 + settings.clip_range
    gain = torch.minimum(ratio * old["advantages"], ratio.clip(low, high) * old["advantages"])
    near = torch.min(
        torch.max(values, old["values"] - settings.value_clip_range), old["values"] + settings.value_clip_range
    )
    error = torch.maximum((values - old["returns"]) ** 2, (near - old["returns"]) ** 2)
    return -masked_mean(gain, mask), 0.5 * masked_mean(error, mask)
