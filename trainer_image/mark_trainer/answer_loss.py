"""The training loss: cross-entropy of the tokens that carry loss, without ever holding the logits of all of them.

The head, which is frozen, is applied to the trained tokens alone, some at a time, and the gradient is made in the same
sweep. It must not average over anything but trained tokens.
"""

from types import MethodType
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from trl.trainer.utils import maybe_gather_lm_head_ctx

from mark_trainer.likelihood import IGNORED

LOGITS_AT_ONCE = 2**24  # 64 MiB in float32


def use_answer_loss(model: PreTrainedModel) -> None:
    """Changes what `forward` does with labels: it returns the loss and no logits. Without labels it is as before."""
    plain_forward = model.forward

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return plain_forward(input_ids=input_ids, **inputs)
        hidden = self.base_model(input_ids=input_ids, **{**inputs, "use_cache": False}).last_hidden_state
        return CausalLMOutput(loss=next_token_loss(self, hidden, labels, num_items_in_batch))

    model.forward = MethodType(forward, model)


def next_token_loss(
    model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None
) -> torch.Tensor:
    """Nats of the labels that follow each place, summed and divided by `items`, else by how many they are.

    `hidden` is (rows, places, size), `labels` (rows, places) with -100 where nothing is learned.
    """
    targets = labels[:, 1:]
    trained = targets != IGNORED
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):
        nats = SummedNats.apply(hidden[:, :-1][trained], head.weight, head.bias, targets[trained], softcap)
    return nats / (trained.sum().clamp(min=1) if items is None else items)


class SummedNats(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T + bias)[target], in nats, and its gradient by `hidden` alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        if weight.requires_grad:
            raise ValueError("the head is frozen in low-rank tuning; its gradient is not computed here")
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        gradient = torch.empty_like(hidden)
        at_once = max(1, LOGITS_AT_ONCE // weight.shape[0])
        for start in range(0, len(hidden), at_once):
            part = slice(start, start + at_once)
            logits = linear(hidden[part].to(weight.dtype), weight, bias).to(exact)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            target = targets[part, None]
            log_sum = logits.logsumexp(-1, keepdim=True)
            total += (log_sum - logits.gather(-1, target)).sum()
            # d nats / d logits = softmax - one at the target
            slope = torch.exp(logits - log_sum)
            slope.scatter_add_(-1, target, torch.full_like(log_sum, -1.0))
            if softcap is not None:
                slope *= 1 - (logits / softcap).square()
            gradient[part] = (slope.to(weight.dtype) @ weight).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None
