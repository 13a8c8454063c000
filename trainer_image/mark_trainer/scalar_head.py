"""A number for each token of a text: a linear head behind the hidden states of any causal model, Llama-like or Mamba.

The reward model's score is the number at a text's last token, the value of ppo's critic the number at each. It must not
know what is scored, nor which adapter is at work on the model: its caller chooses that.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from transformers import PreTrainedModel

HEAD_FILE = "head.safetensors"


class ScalarHead(torch.nn.Module):
    """The head, in float32. `offset` is taken off whatever it says; training does not move it."""

    offset: torch.Tensor

    def __init__(self, hidden: int, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter(drawn / math.sqrt(hidden + 1))
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The number of each hidden state: the last dimension is gone."""
        with torch.autocast(hidden.device.type, enabled=False):  # a score of eight bits would tie with its neighbours
            return linear(hidden.to(self.weight.dtype), self.weight, self.bias)[..., 0] - self.offset

    def save(self, folder: Path) -> None:
        save_file({name: value.cpu() for name, value in self.state_dict().items()}, folder / HEAD_FILE)


def load(folder: Path, model: PeftModel, name: str) -> ScalarHead:
    """The head of a published reward model, whose adapter is put on the model under this name, not yet at work."""
    model.load_adapter(str(folder), name, local_files_only=True)
    saved = load_file(folder / HEAD_FILE)
    head = ScalarHead(saved["weight"].shape[1])
    head.load_state_dict(saved)
    return head.to(next(model.parameters()).device)


def hidden_states(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last hidden states of a causal model, (rows, tokens, width), without the logits that nobody asks for.

    What stands at places without a token does not matter: the mask hides them.
    """
    hidden: torch.Tensor = model.base_model(
        input_ids=ids * mask, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return hidden


def score(model: PreTrainedModel, head: ScalarHead, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The score of each row: what the head says at its last token."""
    hidden = hidden_states(model, ids, mask)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    scores: torch.Tensor = head(hidden[torch.arange(len(ids), device=ids.device), last])
    return scores


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as ids and mask, (rows, longest), padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask
