"""One control plane with controllers for all stories, each story told once undisturbed, and a tally of what was done."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import ApiServer, control_plane
from operator_bed import CROWDED, Case, Outcome, tell_all
from pretend_kubelet import make_node
from rest import Rest
from tally import WHOLE, Tally, totals_since
from workloads import WORKLOADS

STARTED = time.time()


@pytest.fixture(scope="session")
def tally() -> Tally:
    return Tally()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for (suite, name), count in sorted(totals_since(STARTED).items()):
        terminalreporter.write_line(f"{suite}: {count} {name}")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with control_plane(tmp_path_factory.mktemp("control-plane"), controllers=True) as server:
        asyncio.run(_with_node(server))
        yield server


@pytest.fixture(scope="session")
def references(plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The undisturbed outcome of each story."""
    log = tmp_path_factory.mktemp("references") / "operator.log"
    told = asyncio.run(tell_all(plane, [Case(workload) for workload in WORKLOADS], log, timings=CROWDED))
    assert not told.late_writes and told.late_lists > 0, told.late_writes
    assert told.starts == 1 and not told.raised, told.raised
    assert told.conflicts > 0, "nobody wrote between a look and a write, as trainers do"
    outcomes = dict(zip((workload.name for workload in WORKLOADS), told.outcomes, strict=True))
    broken = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
    assert not broken, broken
    return {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, str)}


@pytest.fixture(scope="session")
def whole() -> bool:
    """Whether everything is tried (make test-faults), or a sample of it (make test)."""
    return WHOLE


async def _with_node(server: ApiServer) -> None:
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        await make_node(rest)
