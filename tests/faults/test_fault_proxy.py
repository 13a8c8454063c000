"""The proxy's ledger is what the oracle counts with, so it must hold what the API server carried out, whoever waited for the answer."""

import asyncio

import aiohttp
import certifi
import pytest
from aiohttp import web
from fault_proxy import FaultProxy

ANSWERS_AFTER_SECONDS = 0.5


async def _slow(_: web.Request) -> web.Response:
    await asyncio.sleep(ANSWERS_AFTER_SECONDS)
    return web.json_response({}, status=201)


async def _nobody() -> None:
    """There is no operator to kill."""


def test_a_write_whose_caller_has_gone_is_counted() -> None:
    async def tell() -> tuple[int, int]:
        upstream = web.Application()
        upstream.router.add_route("*", "/{path:.*}", _slow)
        runner = web.AppRunner(upstream)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with FaultProxy(f"http://127.0.0.1:{runner.addresses[0][1]}", certifi.where(), _nobody) as proxy:
            async with aiohttp.ClientSession() as impatient:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(impatient.post(f"{proxy.url}/api/v1/namespaces/here/configmaps", json={}), 0.2)
            await asyncio.sleep(2 * ANSWERS_AFTER_SECONDS)
            ledger = proxy.scene("here").ledger
        await runner.cleanup()
        return ledger.made.total(), ledger.writes.total()

    assert asyncio.run(tell()) == (1, 1)
