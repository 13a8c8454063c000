"""A plain client of the Kubernetes API for tests: a few verbs over JSON, no models. What an overloaded API server refuses is asked for again, since every verb here may be repeated."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
LONGEST_LINE_BYTES = 4 * 1024 * 1024
OVERLOADED = (429, 503, 504)
TRIES, PAUSE_SECONDS = 5, 1.0


class Refused(Exception):  # noqa: N818 - named for what it is
    """The API server answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Rest:
    """Talks to one API server as one user."""

    def __init__(self, url: str, token: str, certificate: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._certificate = certificate
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Rest":
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._certificate), limit=0)
        # A watch brings whole objects as single lines.
        self._session = aiohttp.ClientSession(
            self._url, headers=self._headers, connector=connector, read_bufsize=LONGEST_LINE_BYTES
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str) -> dict[str, Any]:
        return await self._call("GET", path)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create; an object that is there already is left as it is."""
        return await self._call("POST", path, body, allowed=(409,))

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Merge-patch; an object that is gone is fine."""
        return await self._call("PATCH", path, body, allowed=(404,), content_type=MERGE)

    async def apply(self, path: str, body: dict[str, Any], manager: str) -> dict[str, Any]:
        """Server-side apply, by force."""
        return await self._call("PATCH", f"{path}?fieldManager={manager}&force=true", body, content_type=APPLY)

    async def delete(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Delete; an object that is gone is fine."""
        return await self._call("DELETE", path, body, allowed=(404,))

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Every object that is there and every change after that, as (type, object), until the server ends the stream;
        nothing, after a pause, while the server is not ready to watch."""
        assert self._session is not None
        forever = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(path, params={"watch": "true", **query}, timeout=forever) as answer:
            if answer.status == 429:
                await asyncio.sleep(0.5)
                return
            if answer.status != 200:
                raise Refused(answer.status, (await answer.text())[:500])
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]

    async def _call(
        self, verb: str, path: str, body: Any = None, *, allowed: tuple[int, ...] = (), content_type: str = "application/json"
    ) -> dict[str, Any]:
        headers = {"Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        for _ in range(TRIES):
            status, content = await self._ask(verb, path, data, headers)
            if status not in OVERLOADED:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        if status >= 300 and status not in allowed:
            raise Refused(status, content.get("message", ""))
        return content

    async def _ask(self, verb: str, path: str, data: str | None, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        assert self._session is not None
        async with self._session.request(verb, path, data=data, headers=headers) as answer:
            return answer.status, await answer.json()
