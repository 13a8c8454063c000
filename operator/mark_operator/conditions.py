"""The six conditions of a run, and the one word derived with them.
A condition keeps its time while its status stays."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mark_crds.run import State
from mark_crds.shared import Condition

from mark_operator.messages import Note

Truth = Literal["True", "False", "Unknown"]
# Conditions as they are decided: each with its type, its truth and why.
Decided = tuple[tuple[str, Truth, Note], ...]
ADMITTED = "Admitted"


@dataclass(frozen=True)
class Meaning:
    """What a state says in conditions."""

    progressing: Truth
    succeeded: Truth
    ready: Truth
    stalled: Truth


# Ready is true when all that was asked for is reached or under way: a tool that waits for health must not wait for
# hours of
# training, nor for a person. Only a run that cannot go on by itself is stalled.
MEANINGS: dict[State, Meaning] = {
    "Planning": Meaning("False", "Unknown", "False", "False"),
    "PlanReady": Meaning("False", "Unknown", "True", "False"),
    "AwaitingConfirmation": Meaning("False", "Unknown", "True", "False"),
    "Queued": Meaning("True", "Unknown", "True", "False"),
    "Starting": Meaning("True", "Unknown", "True", "False"),
    "Running": Meaning("True", "Unknown", "True", "False"),
    "Suspended": Meaning("False", "Unknown", "True", "False"),
    "Succeeded": Meaning("False", "True", "True", "False"),
    "Adopted": Meaning("False", "True", "True", "False"),
    "Failed": Meaning("False", "False", "False", "True"),
    "Cancelled": Meaning("False", "False", "True", "False"),
}
# A run that seems to hang still holds its Pods, so its state does not change; only this condition tells.
HUNG = "NoProgress"
ACTIVE: frozenset[State] = frozenset({"Queued", "Starting", "Running"})


def conditions_of(state: State, why: Note, *, stalled: bool = False) -> Decided:
    """What a state says, but for Planned and Confirmed.
    `stalled` marks a spec that must be edited before anything can go on."""
    meaning = MEANINGS[state]
    progressing: Truth = "False" if why.reason == HUNG else meaning.progressing
    ready = Note("Running", why.message) if state in ACTIVE else why
    return (
        ("Progressing", progressing, why),
        ("Succeeded", meaning.succeeded, why),
        ("Ready", meaning.ready, ready),
        ("Stalled", "True" if stalled else meaning.stalled, why),
    )


def merge(
    old: Iterable[Condition], new: Iterable[tuple[str, Truth, Note]], *, now: str, generation: int
) -> tuple[Condition, ...]:
    """The old conditions with the new ones in place; each keeps its time while its status stays."""
    merged = {condition.type: condition for condition in old}
    for kind, truth, why in new:
        before = merged.get(kind)
        merged[kind] = Condition(
            type=kind,
            status=truth,
            reason=why.reason,
            message=why.message,
            last_transition_time=before.last_transition_time if before and before.status == truth else now,
            observed_generation=generation,
        )
    return tuple(merged.values())
