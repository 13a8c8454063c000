"""The operator is killed after, or loses the answer to, every single write of every story: the end and the writes must be those of an undisturbed run."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from control_plane import ApiServer
from fault_proxy import Fault, Harm
from operator_bed import Outcome, tell
from workloads import WORKLOADS, Workload

AT_ONCE = 4
# In `make test`, one point in so many of each story; `make test-faults` tries every one.
SAMPLE = 24
HARMS: tuple[Harm, ...] = ("kill", "lose-answer", "conflict", "too-many", "server-error", "never-sent")


def points(calls: int, whole: bool, offset: int) -> list[int]:
    """The numbers of the writes at which harm is done."""
    return list(range(1, calls + 1)) if whole else list(range(1 + offset % SAMPLE, calls + 1, SAMPLE))


async def tell_all(plane: ApiServer, workload: Workload, faults: list[Fault], folder: Path) -> list[tuple[Fault, Outcome | str]]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(fault: Fault) -> tuple[Fault, Outcome | str]:
        async with gate:
            try:
                return fault, await tell(plane, workload, folder / f"{fault.harm}-{fault.at}.log", fault)
            except AssertionError as error:
                return fault, str(error)

    return await asyncio.gather(*(one(fault) for fault in faults))


def differences(reference: Outcome, outcome: Outcome | str) -> dict[str, Any]:
    """What a fault changed that it must not change."""
    if isinstance(outcome, str):
        return {"never ended": outcome}
    wanted, got = reference.comparable(), outcome.comparable()
    return {key: (wanted[key], got[key]) for key in wanted if wanted[key] != got[key]}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_write_survives(plane, references, whole: bool, workload: Workload, harm: Harm, tmp_path: Path) -> None:
    reference = references.of(workload)
    offset = HARMS.index(harm) + WORKLOADS.index(workload)
    faults = [Fault(harm, at) for at in points(reference.calls, whole, offset)]
    outcomes = asyncio.run(tell_all(plane, workload, faults, tmp_path))
    broken = {str(fault): found for fault, outcome in outcomes if (found := differences(reference, outcome))}
    assert not broken, f"{len(broken)} of {len(faults)} points: {broken}"
