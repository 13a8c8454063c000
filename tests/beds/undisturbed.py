"""What a fault must not have changed: the comparison of a told story with its undisturbed telling."""

from collections.abc import Mapping, Sequence
from typing import Any

from operator_bed import Case, Outcome, Told


def broken(references: Mapping[str, Outcome], cases: Sequence[Case], told: Told) -> dict[str, Any]:
    """Each case that did not come to the undisturbed end, with what differs: (undisturbed, told)."""
    pairs = zip(cases, told.outcomes, strict=True)
    found = {str(case): differences(references[case.workload.name], outcome) for case, outcome in pairs}
    late = {"writes in the quiet cluster": told.late_writes} if told.late_writes else {}
    return {**{case: difference for case, difference in found.items() if difference}, **late}


def differences(reference: Outcome, outcome: Outcome | str) -> dict[str, Any]:
    """What a fault changed that it must not change."""
    if isinstance(outcome, str):
        return {"never ended": outcome}
    wanted, got = reference.comparable(), outcome.comparable()
    return {key: (wanted[key], got[key]) for key in wanted if wanted[key] != got[key]}
