"""What the Pod's limits leave of the machine."""

import os
from pathlib import Path

import pytest
from mark_trainer.cores import usable_bytes, usable_cores

MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", MACHINE_BYTES), ("1073741824", 1024**3), (str(2 * MACHINE_BYTES), MACHINE_BYTES), (None, MACHINE_BYTES)],
)
def test_memory_is_the_smaller_of_limit_and_machine(tmp_path: Path, limit: str | None, expected: int) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert usable_bytes(tmp_path / "memory.max") == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), (None, None)]
)
def test_cores_are_at_least_one_and_at_most_the_machine_s(
    tmp_path: Path, quota: str | None, expected: int | None
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path / "cpu.max") == (expected or len(os.sched_getaffinity(0)))
