"""Inputs that crash, hang or swallow memory."""

import pytest
from mark_trainer import isolation
from mark_trainer.isolation import Step, Trouble, each_isolated
from misbehaving import misbehave, number_of_this_process

LIMIT = 768 * 1024**2


def test_crash_hang_and_memory_are_trouble_of_one_input() -> None:
    inputs = ["a", "crash", "b", "hang", "swallow", "half a message", "c"]
    outcomes = [outcome for (outcome,) in each_isolated([Step(misbehave, 1.5)], inputs, LIMIT)]
    assert outcomes == ["A", Trouble(False), "B", Trouble(True), Trouble(False), Trouble(False), "C"]


def test_trouble_in_one_step_costs_no_other_step_of_the_input() -> None:
    steps = [Step(str.upper, 5), Step(misbehave, 1.5)]
    outcomes = list(each_isolated(steps, ["a", "crash", "hang", "b"], LIMIT))
    assert outcomes == [("A", "A"), ("CRASH", Trouble(False)), ("HANG", Trouble(True)), ("B", "B")]


def test_there_are_no_more_workers_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "usable_cores", lambda: 2)
    for extra, workers in ((0, 1), (LIMIT, 1), (2 * LIMIT, 2), (9 * LIMIT, 2)):
        monkeypatch.setattr(isolation, "usable_bytes", lambda extra=extra: isolation.OWN_BYTES + extra)
        found = list(each_isolated([Step(number_of_this_process, 5)] * 2, range(6), LIMIT))
        assert len({number for pair in found for number in pair}) == workers
        assert all(first == second for first, second in found)


def test_the_memory_of_a_worker_is_limited() -> None:
    (hungry, modest) = each_isolated([Step(bytes, 20)], [2 * LIMIT, 3], LIMIT)
    assert (hungry, modest) == ((Trouble(False),), (b"\0\0\0",))


def test_a_mistake_of_ours_is_not_blamed_on_the_file() -> None:
    with pytest.raises(RuntimeError, match="our own mistake"):
        list(each_isolated([Step(misbehave, 5)], ["a", "mistake"], LIMIT))
