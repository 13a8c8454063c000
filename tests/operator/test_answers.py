"""Answers that are not the API server's, as a proxy in between gives them: errors like any other, and passing ones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client
from mark_operator.cluster import ApiError, Cluster

PAGE = b"<html><body>Please log in</body></html>"


async def a_read(cluster: Cluster) -> Any:
    return await cluster.get("Job", "legal", "one")


async def a_list(cluster: Cluster) -> Any:
    return [job async for job in cluster.list_all("Job", "legal")]


async def a_write(cluster: Cluster) -> Any:
    return await cluster.create({"kind": "Job", "metadata": {"namespace": "legal"}})


def error_of(call: Callable[[Cluster], Awaitable[Any]], status: int, body: bytes) -> ApiError:
    """What comes of a call that is answered so."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async def go() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        cluster = Cluster(client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
        try:
            await call(cluster)
        finally:
            await cluster.close()
            await runner.cleanup()

    with pytest.raises(ApiError) as raised:
        asyncio.run(go())
    return raised.value


@pytest.mark.parametrize("call", [a_read, a_list, a_write])
@pytest.mark.parametrize("body", [PAGE, b"", b"[]", b'"ok"'])
def test_a_success_in_words_that_no_api_server_has_is_a_passing_error(
    call: Callable[[Cluster], Awaitable[Any]], body: bytes
) -> None:
    error = error_of(call, 200, body)
    assert error.is_transient and body.decode() in error.message


@pytest.mark.parametrize("body", [b'{"kind": "Status"}', b'{"items": null, "metadata": {}}'])
def test_a_list_without_items_is_a_passing_error(body: bytes) -> None:
    assert error_of(a_list, 200, body).is_transient


@pytest.mark.parametrize(
    "body", [PAGE, b"[]", b'{"reason": {"code": 7}, "message": {"text": "x"}, "details": "upstream"}']
)
def test_an_error_in_words_that_no_api_server_has_keeps_them(body: bytes) -> None:
    error = error_of(a_write, 502, body)
    assert (error.reason, error.message) == ("Unknown", body.decode())
