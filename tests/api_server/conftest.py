"""One real API server for the whole session; a fresh namespace for each test."""

from collections.abc import Iterator

import pytest
from control_plane import ApiServer, control_plane


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with control_plane(tmp_path_factory.mktemp("api-server")) as server:
        yield server


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    return api_server.fresh_namespace()
