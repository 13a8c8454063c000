"""What a fault must not have changed: the comparison of a told story with its undisturbed telling."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from operator_bed import Case, Outcome, Told

# Whether these are told is chance, also undisturbed: they say what was seen of a Pod that works for a moment, and a late look sees other moments. Each is the
# state of the run at that look; what follows from it is compared.
OF_A_MOMENT = frozenset({"Starting", "Running", "Waiting", "Queued", "Stopping", "WaitingForPods", "Cancelling"})
# How often this is told is chance, but not whether: a suspended run may be seen stopping in between.
OF_SOME = frozenset({"Suspended"})


def broken(references: Mapping[str, Outcome], cases: Sequence[Case], told: Told) -> dict[str, Any]:
    """Each case that did not come to the undisturbed end, with what differs: (undisturbed, told)."""
    pairs = zip(cases, told.outcomes, strict=True)
    found = {str(case): differences(references[case.workload.name], outcome) for case, outcome in pairs}
    late = {"writes in the quiet cluster": dict(told.late_writes)} if told.late_writes else {}
    unseen = {} if told.late_lists else {"looks at the quiet cluster": 0}
    return {**{case: difference for case, difference in found.items() if difference}, **late, **unseen}


def differences(reference: Outcome, outcome: Outcome | str) -> dict[str, Any]:
    """What a fault changed that it must not change."""
    if isinstance(outcome, str):
        return {"never ended": outcome}
    wanted, got = reference.comparable(), outcome.comparable()
    found = {key: (wanted[key], got[key]) for key in wanted if wanted[key] != got[key]}
    more = events_too_many(reference.events, outcome.events)
    return {**found, "events": (dict(reference.events), more)} if more else found


def events_too_many(reference: Counter[str], told: Counter[str]) -> dict[str, int]:
    """Reasons that were told though nothing of the kind happened, or more often than it happened. Fewer are fine: an Event is never sent again."""
    found = {reason: count for reason, count in told.items() if reason not in OF_A_MOMENT and count > reference[reason]}
    return {reason: count for reason, count in found.items() if not (reason in OF_SOME and reference[reason])}
