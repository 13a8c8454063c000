"""Inputs that crash, hang or swallow memory."""

import pytest
from mark_trainer.isolation import Trouble, each_isolated
from misbehaving import misbehave, nothing


def test_crash_hang_and_memory_are_trouble_of_one_input() -> None:
    inputs = ["a", "crash", "b", "hang", "swallow", "c"]
    outcomes = list(each_isolated(misbehave, inputs, 1.5, nothing))
    assert outcomes == ["A", Trouble(False), "B", Trouble(True), Trouble(False), "C"]


def test_a_mistake_of_ours_is_not_blamed_on_the_file() -> None:
    with pytest.raises(RuntimeError, match="our own mistake"):
        list(each_isolated(misbehave, ["a", "mistake"], 5, nothing))
