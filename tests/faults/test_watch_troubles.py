"""Watches that stall, lose, merge or expire, and partitions: the end and the writes must be those of an undisturbed run, soon after healing."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from control_plane import ApiServer
from fault_proxy import Ailment, Trouble
from operator_bed import AS_INSTALLED, CROWDED, PATIENCE_WITH_CROWDS_SECONDS, Case, Outcome, Partition, tell_all
from tally import WHOLE, Tally
from undisturbed import broken
from workloads import WORKLOADS

Body = dict[str, Any]
CROWD = 35
LONGEST_UNTIL_A_LOOK_SECONDS = 90
# A busy machine does not cost the operator its Lease, which no trouble with one namespace touches.
PATIENT: Body = {**AS_INSTALLED, "leaseSeconds": 60, "renewSeconds": 5}
# What a healthy stream loses is found by the next list or look, so their periods are the limit; the API server itself loses nothing.
WATCHFUL: Body = {**PATIENT, "relistSeconds": 60, "checkSeconds": 60, "activeSeconds": 60}
# The loss of a Lease is the partition's doing then, not that of other stories on the same machine.
PARTITIONED: Body = {**AS_INSTALLED, "leaseSeconds": 30}
TROUBLES: dict[Ailment, tuple[float, Body]] = {
    "stalled": (10, PATIENT),
    "silent": (10, PATIENT),
    "cut": (10, PATIENT),
    "gone": (15, PATIENT),
    "merged": (20, PATIENT),
    "dropped": (20, WATCHFUL),
    "stale-lists": (10, PATIENT),
}
# When it begins, as the share of an undisturbed run's writes that were made before.
MOMENTS = (0.0, 0.4, 0.8)
# The share of the troubles that come about at least: a write may be spared, so that the last ones of a story do not come up.
STRUCK = 0.9
# In `make test`, one case in so many.
SAMPLE = 7
PARTITIONS = (Partition("cut", 8, 10), Partition("silent", 8, 120))
LONG_PARTITIONS = (Partition("silent", 8, 10), Partition("cut", 8, 120), Partition("cut", 8, 900))
HEAD_STARTS_SECONDS = (0.0, 2.0, 4.0)
# A longer partition is told once, not with each head start.
LONGEST_TOLD_AGAIN_SECONDS = 120


def cases_of(kind: Ailment, references: Mapping[str, Outcome], whole: bool = WHOLE) -> list[Case]:
    seconds, _ = TROUBLES[kind]
    cases = [
        Case(workload, trouble=Trouble(kind, int(references[workload.name].calls * moment), seconds))
        for workload in WORKLOADS
        for moment in MOMENTS
    ]
    return cases if whole else cases[list(TROUBLES).index(kind) :: SAMPLE]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", TROUBLES)
def test_every_trouble_heals(
    plane: ApiServer, references: dict[str, Outcome], tally: Tally, kind: Ailment, tmp_path: Path
) -> None:
    all_cases, (_, timings) = cases_of(kind, references), TROUBLES[kind]
    with tally.of("watch troubles", kind) as counts:
        for at in range(0, len(all_cases), CROWD):
            cases, log = all_cases[at : at + CROWD], tmp_path / f"{at}.log"
            told = asyncio.run(tell_all(plane, cases, log, patience=PATIENCE_WITH_CROWDS_SECONDS, timings=timings, afterwards=CROWDED))
            assert not (found := broken(references, cases, told)), f"{len(found)} of {len(cases)}: {found}"
            outcomes = [outcome for outcome in told.outcomes if not isinstance(outcome, str)]
            # When the story is over before the trouble is, or ends by a pass that had begun before, nothing is left to look for.
            after = {str(case): outcome.went_on_after for case, outcome in zip(cases, outcomes, strict=True) if outcome.struck}
            slow = {case: seconds for case, seconds in after.items() if seconds is None or seconds > LONGEST_UNTIL_A_LOOK_SECONDS}
            assert not slow, f"seconds from healing until the story went on: {slow}"
            assert told.starts == 1, "trouble with a watch ends no process"
            assert told.raised.keys() <= {"ApiError"}
            counts[kind] += len(after)
            counts["went on after healing"] += sum(seconds is not None and seconds > 0 for seconds in after.values())
        assert counts[kind] >= len(all_cases) * STRUCK


@pytest.mark.slow
def test_there_are_cases_enough(references: dict[str, Outcome]) -> None:
    assert sum(len(cases_of(kind, references, whole=True)) for kind in TROUBLES) * STRUCK >= 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "partition", PARTITIONS + LONG_PARTITIONS * WHOLE, ids=lambda partition: f"{partition.kind}-{partition.seconds}-s"
)
def test_every_partition_heals(
    plane: ApiServer, references: dict[str, Outcome], tally: Tally, partition: Partition, tmp_path: Path
) -> None:
    turns = len(HEAD_STARTS_SECONDS) if WHOLE and partition.seconds <= LONGEST_TOLD_AGAIN_SECONDS else 1
    with tally.of("partitions", f"{partition.kind} {partition.seconds} s") as counts:
        for turn in range(turns):
            cases = [
                Case(workload, begins_after=HEAD_STARTS_SECONDS[(number + turn) % len(HEAD_STARTS_SECONDS)])
                for number, workload in enumerate(WORKLOADS)
            ]
            told = asyncio.run(
                tell_all(
                    plane,
                    cases,
                    tmp_path / f"{turn}.log",
                    patience=PATIENCE_WITH_CROWDS_SECONDS + partition.seconds,
                    partition=partition,
                    timings=PARTITIONED,
                    afterwards=CROWDED,
                )
            )
            assert not (found := broken(references, cases, told)), f"{len(found)} of {len(cases)}: {found}"
            assert told.looked_after is not None and told.looked_after <= LONGEST_UNTIL_A_LOOK_SECONDS
            # Without the API server it loses its Lease, and ends for that alone; the next one stands by until the server is back.
            assert told.starts == 1 + told.raised["LeaseLostError"] <= 2
            assert told.raised.keys() <= {"LeaseLostError", "ApiError"}
            counts[f"{partition.seconds} s"] += len(cases)
