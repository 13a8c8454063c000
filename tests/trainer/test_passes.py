"""Dealing rows out to forward passes: each row of a step once, within the tokens of a pass, the same for every way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mark_trainer.likelihood import IGNORED
from mark_trainer.passes import collate, deal, plan
from tiny_examples import example

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=60)
SIZES = st.integers(1, 5)


@given(LENGTHS, SIZES, SIZES, st.integers(1, 3), st.booleans())
def test_each_step_has_its_rows_once(
    lengths: list[int], batch_size: int, accumulation: int, processes: int, packed: bool
) -> None:
    order = list(range(len(lengths)))
    passes = plan(
        order,
        lengths,
        batch_size=batch_size,
        accumulation=accumulation,
        processes=processes,
        max_length=60,
        packed=packed,
    )
    width = batch_size * accumulation * processes
    assert passes.steps == -(-len(order) // width)
    assert len(passes.rows) == passes.steps * passes.a_step * processes, (
        "every process has as many passes in every step"
    )
    for step in range(passes.steps):
        rows = [row for rows in passes.of_step(step) for row in rows]
        assert sorted(rows) == order[step * width : (step + 1) * width]
    assert passes.a_step == accumulation or (packed and passes.a_step < accumulation)
    assert all(sum(lengths[row] for row in rows) <= batch_size * 60 for rows in passes.rows)
    for tokens, places in passes.slots(lengths):
        assert tokens <= places


def test_short_rows_share_one_pass() -> None:
    arguments = {"batch_size": 4, "accumulation": 4, "processes": 1, "max_length": 100}
    short, full = [20] * 32, [100] * 32
    assert plan(range(32), short, packed=True, **arguments).a_step == 1
    assert plan(range(32), full, packed=True, **arguments).a_step == 4
    assert plan(range(32), short, packed=False, **arguments).a_step == 4


def test_packing_leaves_no_padding() -> None:
    arguments = {"batch_size": 2, "accumulation": 2, "processes": 1, "max_length": 100}
    lengths = [10, 30, 50, 20]
    assert plan(range(4), lengths, packed=True, **arguments).slots(lengths) == [(110, 110)]
    assert plan(range(4), lengths, packed=False, **arguments).slots(lengths) == [(110, 2 * 30 + 2 * 50)]


def test_parts_are_about_equal() -> None:
    lengths = [9, 1, 8, 2, 7, 3]
    parts = deal(range(6), lengths, 3)
    assert [sum(lengths[row] for row in part) for part in parts] == [10, 10, 10]


def test_packed_positions_begin_anew_and_no_row_teaches_the_next() -> None:
    one, two = example([5, 6, 7], 1), example([8, 9], 1)
    inputs = collate([one, two], 0, packed=True)
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert inputs["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert inputs["row_lengths"] == [3, 2]


def test_padded_rows_are_masked() -> None:
    inputs = collate([example([5, 6, 7], 2), example([8, 9], 1)], 0, packed=False)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert inputs["labels"].tolist() == [[IGNORED, IGNORED, 7], [IGNORED, 9, IGNORED]]


@pytest.mark.parametrize("packed", [True, False])
def test_a_pass_without_rows_has_one_token_and_no_loss(packed: bool) -> None:
    inputs = collate([], 3, packed=packed)
    assert inputs["input_ids"].tolist() == [[3]]
    assert torch.equal(inputs["labels"], torch.tensor([[IGNORED]]))
