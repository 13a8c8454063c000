"""How probable a text is: in nats, under a causal model and under a unigram. It must not generate or judge anything."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

UNIGRAM_FILE = "unigram.json"
IGNORED = -100  # the label of a token that carries no loss
WINDOW_TOKENS = 512
TOKENS_A_BATCH = 4096

Nats = tuple[float, int]
"""Negative log likelihood of some tokens, in nats, and how many tokens they were."""


@dataclass(frozen=True)
class Unigram:
    """Token frequencies with add-one smoothing: the least that a language model has to beat."""

    counts: tuple[int, ...]  # by token id, over the whole vocabulary

    @classmethod
    def fit(cls, documents: Iterable[Sequence[int]], vocabulary: int) -> Self:
        counts = torch.zeros(vocabulary, dtype=torch.long)
        for ids in documents:
            counts += torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=vocabulary)
        return cls(tuple(counts.tolist()))

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(tuple(json.loads(path.read_text())["counts"]))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "unigram", "smoothing": "add-one", "counts": list(self.counts)}

    def nats(self, documents: Iterable[Sequence[int]]) -> list[Nats]:
        """Nats and tokens of each document."""
        smoothed = torch.tensor(self.counts, dtype=torch.double) + 1
        cost = smoothed.sum().log() - smoothed.log()  # nats of each token id
        return [(cost[torch.tensor(ids, dtype=torch.long)].sum().item(), len(ids)) for ids in documents]


def text_nats(model: PreTrainedModel, documents: Iterable[Sequence[int]], bos: int | None) -> list[Nats]:
    """Nats and tokens of each document under the model, read in windows that each start anew behind a bos token.

    Without a bos token the first token of a window is not counted.
    """
    totals = []
    for ids in documents:
        windows = [list(ids[start : start + WINDOW_TOKENS]) for start in range(0, len(ids), WINDOW_TOKENS)]
        if bos is not None:
            examples = [([bos, *window], [IGNORED, *window]) for window in windows]
        else:
            examples = [(window, [IGNORED, *window[1:]]) for window in windows]
        nats = label_nats(model, examples)
        totals.append((sum(value for value, _ in nats), sum(tokens for _, tokens in nats)))
    return totals


@torch.inference_mode()
def label_nats(model: PreTrainedModel, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Nats]:
    """Nats and tokens of the labels of each (input ids, labels), in the order given.

    Batches are made by length; padding is on the right, where a causal model cannot see it.
    """
    results: list[Nats] = [(0.0, 0)] * len(examples)
    by_length = sorted(range(len(examples)), key=lambda index: len(examples[index][0]))
    while by_length:
        longest = len(examples[by_length[-1]][0])
        take = max(1, TOKENS_A_BATCH // max(1, longest))
        batch, by_length = by_length[-take:], by_length[:-take]
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels = torch.full((len(batch), longest), IGNORED)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, index in enumerate(batch):
            length = len(examples[index][0])
            ids[row, :length] = torch.tensor(examples[index][0])
            labels[row, :length] = torch.tensor(examples[index][1])
            mask[row, :length] = 1
        device = model.device
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits.float()
        targets = labels[:, 1:].to(device)
        nats = cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        for row, index in enumerate(batch):
            results[index] = (nats[row].double().sum().item(), int((targets[row] != IGNORED).sum()))
    return results
