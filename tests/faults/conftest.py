"""One control plane with controllers for all stories, and each story told once undisturbed."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import ApiServer, control_plane
from operator_bed import Outcome, tell
from pretend_kubelet import make_node
from rest import Rest
from workloads import Workload

WHOLE = os.environ.get("MARK_FAULTS") == "whole"


class References:
    """The undisturbed outcome of each workload, told at its first asking."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._outcomes: dict[str, Outcome] = {}

    def of(self, workload: Workload) -> Outcome:
        if workload.name not in self._outcomes:
            log = self._folder / f"{workload.name}.log"
            self._outcomes[workload.name] = asyncio.run(tell(self._server, workload, log))
        return self._outcomes[workload.name]


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with control_plane(tmp_path_factory.mktemp("control-plane"), controllers=True) as server:
        asyncio.run(_with_node(server))
        yield server


@pytest.fixture(scope="session")
def references(plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(plane, tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="session")
def whole() -> bool:
    """Whether every point is tried (make test-faults), or a sample of them (make test)."""
    return WHOLE


async def _with_node(server: ApiServer) -> None:
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        await make_node(rest)
