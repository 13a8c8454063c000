"""Which events ask for a look: all that may be news, and none that is an echo of the operator's own doing."""

from typing import Any

import pytest
from mark_crds import names
from mark_operator.handlers import Attention
from mark_operator.seen import Body, RunKey

KEY = RunKey("TrainingRun", "legal", "contracts")
LABELS = {names.KIND_LABEL: KEY.kind, names.RUN_LABEL: KEY.name, names.RUN_UID_LABEL: "uid-1"}


def run(version: str = "7", *, ended: bool = False, uid: str = "uid-1", **spec: Any) -> Body:
    metadata = {"name": KEY.name, "namespace": KEY.namespace, "uid": uid, "resourceVersion": version, "generation": 1}
    status = {"observedGeneration": 1, "finishedAt": "2026-01-31T12:00:00Z"} if ended else {}
    return {"kind": KEY.kind, "metadata": metadata, "spec": spec, "status": status}


def working(version: str, reason: str = "Running", **status: Any) -> Body:
    """A run at work, of which its trainer or somebody else has just told something."""
    body = run(version)
    body["metadata"]["managedFields"] = [{"manager": "mark-progress", "time": version}]
    return {**body, "status": {"conditions": [{"type": "Progressing", "reason": reason}], **status}}


def child(kind: str, uid: str = "uid-1") -> Body:
    labels = {**LABELS, names.RUN_UID_LABEL: uid}
    return {"kind": kind, "metadata": {"name": "child", "namespace": KEY.namespace, "labels": labels}}


class Looks:
    """What was asked to be looked at; the operator itself wrote version 7 of the run."""

    def __init__(self) -> None:
        self.asked: list[RunKey] = []
        self.attention = Attention(self.asked.append, lambda key, body: body["metadata"]["resourceVersion"] == "7")


@pytest.mark.parametrize(
    ("version", "event", "looked"),
    [
        ("8", "MODIFIED", True),
        ("7", "MODIFIED", False),  # as our own pass left it
        ("7", None, True),  # a list repairs what was missed, so it takes nothing for known
        ("7", "DELETED", True),
    ],
)
def test_an_echo_is_not_looked_at_but_a_list_is(version: str, event: str | None, looked: bool) -> None:
    looks = Looks()
    looks.attention.run(run(version), event)
    assert looks.asked == [KEY] * looked


TOLD = {"progress": {"step": 2}, "lastCheckpoint": {"step": 1}}


@pytest.mark.parametrize(
    ("before", "after", "looked"),
    [
        (working("5"), working("6", **TOLD), False),
        (working("7"), working("8", **TOLD), False),  # our own write tells what the run looked like, too
        (working("5"), working("6", **TOLD, state="Running"), True),
        (working("5"), working("6", reason="Waiting"), True),
        (working("5"), {**working("6"), "spec": {"suspend": True}}, True),
        (working("5", reason="NoProgress"), working("6", reason="NoProgress", **TOLD), True),
        (run("5", ended=True), working("6", **TOLD), True),
    ],
)
def test_what_a_trainer_tells_asks_for_no_look_unless_it_had_fallen_silent(
    before: Body, after: Body, looked: bool
) -> None:
    looks = Looks()
    looks.attention.run(before, "MODIFIED")
    looks.asked.clear()
    looks.attention.run(after, "MODIFIED")
    assert looks.asked == [KEY] * looked


@pytest.mark.parametrize("event", [None, "DELETED", "ADDED"])
def test_a_list_and_an_end_are_looked_at_though_nothing_changed(event: str | None) -> None:
    looks = Looks()
    looks.attention.run(working("5"), "MODIFIED")
    looks.attention.run(working("5"), event)
    assert looks.asked == [KEY] * 2
    looks.attention.run(working("6"), "MODIFIED")
    assert looks.asked == [KEY] * (3 if event == "DELETED" else 2)


@pytest.mark.parametrize(
    ("kind", "event", "looked"),
    [
        ("Job", "ADDED", False),  # the pass that created it knows
        ("Job", None, True),
        ("Job", "MODIFIED", True),
        ("Job", "DELETED", True),
        ("Pod", "ADDED", True),
    ],
)
def test_a_child_of_a_run_that_goes_on(kind: str, event: str | None, looked: bool) -> None:
    looks = Looks()
    looks.attention.child(child(kind), event)
    assert looks.asked == [KEY] * looked


def test_children_of_an_ended_run_are_left_alone_until_it_is_news_again() -> None:
    looks = Looks()
    looks.attention.run(run(ended=True), None)
    looks.attention.child(child("Pod"), "MODIFIED")
    assert looks.asked == []
    looks.attention.child(child("Pod", uid="uid-2"), "MODIFIED")
    assert looks.asked == [KEY], "a run of the same name that came after it"
    looks.attention.run(run("9", ended=True, ttlSecondsAfterFinished=60), "MODIFIED")
    looks.attention.child(child("Job"), "DELETED")
    assert looks.asked == [KEY] * 3, "it is to be tidied up"
