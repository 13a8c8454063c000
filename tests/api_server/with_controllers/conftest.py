"""A control plane whose Jobs make Pods and whose garbage goes, for what needs more than an API server. No node: PretendKubelet plays it."""

import asyncio
from collections.abc import Iterator

import pytest
from control_plane import ApiServer, control_plane
from pretend_kubelet import make_node
from rest import Rest


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with control_plane(tmp_path_factory.mktemp("with-controllers"), controllers=True) as server:
        asyncio.run(_with_node(server))
        yield server


async def _with_node(server: ApiServer) -> None:
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        await make_node(rest)
