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
    examples, owners, count = [], [], 0
    for number, ids in enumerate(documents):
        count += 1
        for start in range(0, len(ids), WINDOW_TOKENS):
            window = list(ids[start : start + WINDOW_TOKENS])
            examples.append(
                ([bos, *window], [IGNORED, *window]) if bos is not None else (window, [IGNORED, *window[1:]])
            )
            owners.append(number)
    totals: list[Nats] = [(0.0, 0)] * count
    for owner, (nats, tokens) in zip(owners, label_nats(model, examples), strict=True):
        totals[owner] = (totals[owner][0] + nats, totals[owner][1] + tokens)
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
        # Most places are prompt, and the scores of a large vocabulary are the most memory that a forward pass takes:
        # they are made only where a label follows.
        before_label = torch.zeros_like(labels, dtype=torch.bool)
        before_label[:, :-1] = labels[:, 1:] != IGNORED
        device = model.device
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            use_cache=False,
            logits_to_keep=before_label.to(device),
        ).logits.float()
        targets = labels[:, 1:][before_label[:, :-1]].to(device)
        nats = cross_entropy(logits, targets, reduction="none").double()
        counts = before_label.sum(dim=1).tolist()
        for index, of_example in zip(batch, nats.split(counts), strict=True):
            results[index] = (of_example.sum().item(), len(of_example))
    return results
