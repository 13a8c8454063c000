"""Attention over rows that share a forward pass and must not see each other. It must not know what the rows are.

Each row attends within itself alone, so no mask over all tokens exists and nothing is computed for pairs of rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "mark_rows_apart"


def can_pack(config: PretrainedConfig) -> bool:
    """Whether rows of this family can be kept apart: a state that runs on would leak, and SDPA has no soft cap."""
    return hasattr(config, "num_attention_heads") and getattr(config, "attn_logit_softcapping", None) is None


def use_packed_attention(model: PreTrainedModel) -> None:
    """From now on the model takes packed passes, with `position_ids` and `row_lengths`, and no others."""
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in each row. Takes (1, heads, tokens, head size), returns (1, tokens, heads, head size)."""
    rows = zip(*(tensor.split(list(row_lengths), dim=2) for tensor in (query, key, value)), strict=True)
    attended = [
        sdpa_attention_forward(
            module, *row, window_mask(row[0], sliding_window), dropout=dropout, scaling=scaling, is_causal=True
        )[0]
        for row in rows
    ]
    return torch.cat(attended, dim=1), None


def window_mask(query: torch.Tensor, sliding_window: int | None) -> torch.Tensor | None:
    """What each token of a row may see when the model looks back only so far; None when the row is shorter."""
    tokens = query.shape[2]
    if sliding_window is None or tokens <= sliding_window:
        return None
    everything = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=query.device)
    return everything.tril().triu(1 - sliding_window)
