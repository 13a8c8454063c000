"""Which rows share a forward pass, and the tensors of one. It must not know a model, nor what a step learns from them.

An optimizer step learns from the same rows however they are dealt out: packed into few passes without padding, or
padded in batches of like length; on one process or on several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from mark_trainer.dataset import Example
from mark_trainer.likelihood import IGNORED


@dataclass(frozen=True)
class Passes:
    """The forward passes of a whole training, step after step. Pass `i` of a step runs on process `i % processes`."""

    rows: list[list[int]]
    """The rows of each pass; none where the last step has fewer rows than passes."""
    a_step: int
    """Passes of a step on one process."""
    processes: int
    packed: bool

    @property
    def steps(self) -> int:
        return len(self.rows) // (self.a_step * self.processes)

    def of_step(self, step: int) -> list[list[int]]:
        """The passes of a step, counted from 0, on all processes."""
        width = self.a_step * self.processes
        return self.rows[step * width : (step + 1) * width]

    def slots(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Tokens of each step, and places that are computed for them, padding with them."""
        steps = [self.of_step(step) for step in range(self.steps)]
        return [
            (
                sum(lengths[row] for rows in step for row in rows),
                sum(places([lengths[row] for row in rows], self.packed) for rows in step),
            )
            for step in steps
        ]


def plan(
    order: Sequence[int],
    lengths: Sequence[int],
    *,
    batch_size: int,
    accumulation: int,
    processes: int,
    max_length: int,
    packed: bool,
) -> Passes:
    """Deals the rows of each step, `batch_size * accumulation` a process, out to forward passes.

    Packed, a pass holds as many tokens as `batch_size` rows of `max_length` would, so a step takes as few passes as
    that allows, never more than `accumulation`. Otherwise `batch_size` neighbours of the order make a pass.
    """
    width = batch_size * accumulation * processes
    steps = [list(order[start : start + width]) for start in range(0, len(order), width)]
    if packed:
        room = batch_size * max_length
        heaviest = max((sum(lengths[row] for row in step) for step in steps), default=0)
        for a_step in range(max(1, -(-heaviest // (room * processes))), accumulation):
            dealt = [deal(step, lengths, a_step * processes) for step in steps]
            if all(sum(lengths[row] for row in rows) <= room for step in dealt for rows in step):
                return Passes([rows for step in dealt for rows in step], a_step, processes, packed=True)
    cut = [step[start : start + batch_size] for step in steps for start in range(0, width, batch_size)]
    return Passes(cut, accumulation, processes, packed)


def deal(rows: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """The rows in so many parts of about equal tokens: the longest first, each to the part that has least."""
    dealt: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for row in sorted(rows, key=lambda row: -lengths[row]):
        part = tokens.index(min(tokens))
        dealt[part].append(row)
        tokens[part] += lengths[row]
    return dealt


def places(lengths: Sequence[int], packed: bool) -> int:
    """Token places of a pass over rows of these lengths; one without rows has one, since a model needs a token."""
    if not lengths:
        return 1
    return sum(lengths) if packed else len(lengths) * max(lengths)


def collate(examples: Sequence[Example], pad: int, *, packed: bool) -> dict[str, Any]:
    """The model's input for one pass.

    Packed: tensors of shape (1, tokens), positions that begin anew with each row, and the rows' lengths.
    Padded: tensors of shape (rows, longest), padded on the right, with an attention mask.
    """
    rows = [(example.ids, [IGNORED, *example.labels[1:]]) for example in examples] or [([pad], [IGNORED])]
    if packed:
        return {
            "input_ids": torch.tensor([[token for ids, _ in rows for token in ids]]),
            "labels": torch.tensor([[label for _, labels in rows for label in labels]]),
            "position_ids": torch.tensor([[position for ids, _ in rows for position in range(len(ids))]]),
            "row_lengths": [len(ids) for ids, _ in rows],
        }
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
    }


class PassSet(Dataset[list[Example]]):
    """The examples of each pass, as torch's loader takes them."""

    def __init__(self, passes: Passes, examples: Sequence[Example]) -> None:
        self.passes = passes
        self.examples = examples

    def __len__(self) -> int:
        return len(self.passes.rows)

    def __getitem__(self, index: int) -> list[Example]:
        return [self.examples[row] for row in self.passes.rows[index]]
