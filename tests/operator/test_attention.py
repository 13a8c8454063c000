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
