"""The operator is killed before and after, or loses the answer to, every single write of every story: the end and the writes must be those of an undisturbed run."""

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from control_plane import ApiServer
from fault_proxy import Fault, Harm
from operator_bed import ALONE, CROWDED, PATIENCE_WITH_CROWDS_SECONDS, Case, Outcome, Told, tell_all
from tally import WHOLE, Tally
from undisturbed import broken
from workloads import WORKLOADS, Workload

AT_ONCE = 4
CROWD = 40
CRASHES: tuple[Harm, ...] = ("kill-before", "kill")
LOST_ANSWERS: tuple[Harm, ...] = ("lose-answer", "time-out")
HARMS: tuple[Harm, ...] = (*CRASHES, *LOST_ANSWERS, "conflict", "too-many", "server-error", "never-sent")
# In `make test`, one write in so many of each story; `make test-faults` takes every one.
SAMPLE = 16
PARTS = 4


def groups_of(harm: Harm, whole: bool = WHOLE) -> dict[str, tuple[Workload, ...]]:
    """The stories that one test tells: where each write takes an operator of its own, one is enough; crowds are best filled from several."""
    if not whole:
        return {"sample": WORKLOADS}
    if harm in CRASHES:
        return {workload.name: (workload,) for workload in WORKLOADS}
    return {f"part-{part + 1}": WORKLOADS[part::PARTS] for part in range(PARTS)}


def cases_of(workloads: tuple[Workload, ...], harm: Harm, references: Mapping[str, Outcome], whole: bool) -> list[Case]:
    """One case for each write, or for a sample of the writes that differs from story to story and harm to harm."""
    cases, step = [], 1 if whole else SAMPLE
    for workload in workloads:
        first = 1 + (7 * HARMS.index(harm) + 5 * WORKLOADS.index(workload)) % step
        cases += [Case(workload, Fault(harm, at)) for at in range(first, references[workload.name].calls + 1, step)]
    return cases


async def each_alone(plane: ApiServer, cases: list[Case], folder: Path) -> Told:
    """Each story to an operator of its own, because the harm is done to all that it serves."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, case: Case) -> Told:
        async with gate:
            return await tell_all(plane, [case], folder / f"{number}.log", timings=ALONE)

    return Told.together(await asyncio.gather(*(one(number, case) for number, case in enumerate(cases))))


async def in_crowds(plane: ApiServer, cases: list[Case], folder: Path) -> Told:
    return Told.together(
        [
            await tell_all(
                plane, cases[at : at + CROWD], folder / f"{at}.log", timings=CROWDED, patience=PATIENCE_WITH_CROWDS_SECONDS
            )
            for at in range(0, len(cases), CROWD)
        ]
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("harm", "group"), [(harm, group) for harm in HARMS for group in groups_of(harm)])
def test_every_write_survives(
    plane: ApiServer, references: dict[str, Outcome], whole: bool, tally: Tally, group: str, harm: Harm, tmp_path: Path
) -> None:
    cases = cases_of(groups_of(harm)[group], harm, references, whole)
    with tally.of("crash points", f"{group} {harm}") as counts:
        told = asyncio.run((each_alone if harm in CRASHES else in_crowds)(plane, cases, tmp_path))
        found = broken(references, cases, told)
        assert not found, f"{len(found)} of {len(cases)} points: {found}"
        struck = sum(not isinstance(outcome, str) and outcome.struck for outcome in told.outcomes)
        # Writes of a status are sometimes taken together, so the last numbers of a story may not come up.
        assert struck >= len(cases) * 0.8
        ends = len(cases) + struck if harm in CRASHES else math.ceil(len(cases) / CROWD)
        assert told.starts == ends, "nothing but the kill ends the operator"
        assert told.raised.keys() <= {"ApiError"}, "only what the harm itself said is ever raised"
        counts[harm] = struck
        counts["conflicts with trainers"] = told.conflicts


@pytest.mark.slow
def test_there_are_points_enough(references: dict[str, Outcome]) -> None:
    for harms in (("kill",), LOST_ANSWERS):
        assert sum(len(cases_of(WORKLOADS, harm, references, whole=True)) for harm in harms) >= 300
