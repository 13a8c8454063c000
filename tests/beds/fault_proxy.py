"""A proxy on loopback between the operator and a real API server, which does harm at exactly one place and keeps a ledger of all writes."""

import asyncio
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web

MUTATING = ("POST", "PUT", "PATCH", "DELETE")
# Reads in disguise, and what keeps the operator itself alive: not part of a run's story.
ASIDE = ("/leases", "/events", "tokenreviews", "accessreviews", "/secrets")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "accept-encoding"}

Harm = Literal["kill", "lose-answer", "conflict", "too-many", "server-error", "never-sent"]
ANSWERS = {
    "conflict": (409, "Conflict", "the object has been modified"),
    "too-many": (429, "TooManyRequests", "please try again later"),
    "server-error": (500, "InternalError", "the server is in trouble"),
}


@dataclass(frozen=True)
class Fault:
    """What happens at the mutating call with this number, counted from 1."""

    harm: Harm
    at: int


@dataclass
class Ledger:
    """Every mutating call that the API server carried out, as (verb, resource, name)."""

    writes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    calls: int = 0

    def of(self, verb: str) -> dict[tuple[str, str], int]:
        """How often each object was the target of a verb."""
        return {(resource, name): count for (done, resource, name), count in self.writes.items() if done == verb}


@dataclass
class WatchTrouble:
    """What is done to watch streams and lists while it is set."""

    stalled: bool = False  # streams stay open and say nothing
    gone: bool = False  # every stream is answered 410 Gone
    drop_every: int = 0  # every n-th event never arrives
    stale_lists: bool = False  # lists answer as they first did
    cut: bool = False  # no connection at all


class FaultProxy:
    """Forwards everything to the API server and does the one fault it was given."""

    def __init__(self, upstream: str, certificate: str, kill: Callable[[], Awaitable[None]]) -> None:
        self.upstream = upstream
        self.ledger = Ledger()
        self.trouble = WatchTrouble()
        self.fault: Fault | None = None
        self.fault_done = asyncio.Event()
        self.url = ""
        self._kill = kill
        self._certificate = certificate
        self._first_lists: dict[str, tuple[int, bytes, str]] = {}
        self._events_seen = 0
        self._watches: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "FaultProxy":
        context = ssl.create_default_context(cafile=self._certificate)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True)
        application = web.Application(client_max_size=16 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        assert self._session is not None
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.trouble.cut:
            return self._hang_up(request)
        body = await request.read()
        if request.query.get("watch") in ("true", "1"):
            return await self._watch(request)
        if not _counts(request):
            return await self._read(request, body)
        return await self._write(request, body)

    async def _write(self, request: web.Request, body: bytes) -> web.StreamResponse:
        self.ledger.calls += 1
        fault = self.fault if self.fault and self.fault.at == self.ledger.calls else None
        if fault is None:
            return await self._carry_out(request, body)
        self.fault_done.set()
        if fault.harm in ANSWERS:
            code, reason, message = ANSWERS[fault.harm]
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}
            return web.json_response(status, status=code, headers={"Retry-After": "1"} if code == 429 else {})
        if fault.harm == "never-sent":
            return self._hang_up(request)
        await self._carry_out(request, body)
        if fault.harm == "kill":
            await self._kill()
        return self._hang_up(request)

    async def _carry_out(self, request: web.Request, body: bytes) -> web.Response:
        status, content, kind = await self._forward(request, body)
        if status < 300:
            resource, name = _target(request.path, body)
            self.ledger.writes[(request.method, resource, name)] += 1
        return web.Response(status=status, body=content, content_type=kind)

    async def _read(self, request: web.Request, body: bytes) -> web.Response:
        status, content, kind = await self._forward(request, body)
        key = request.path_qs
        if request.method == "GET" and status == 200 and b'List"' in content[:200]:
            self._first_lists.setdefault(key, (status, content, kind))
            if self.trouble.stale_lists:
                status, content, kind = self._first_lists[key]
        return web.Response(status=status, body=content, content_type=kind)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes, str]:
        assert self._session is not None
        url = f"{self.upstream}{request.rel_url}"
        async with self._session.request(request.method, url, data=body or None, headers=_passed_on(request)) as answer:
            return answer.status, await answer.read(), answer.content_type

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if self.trouble.gone:
            await response.write(_gone())
            return response
        stream = asyncio.create_task(self._stream(request, response))
        self._watches.add(stream)
        stream.add_done_callback(self._watches.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await stream
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse) -> None:
        assert self._session is not None
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # either side may go first
            async with self._session.get(f"{self.upstream}{request.rel_url}", headers=_passed_on(request)) as answer:
                async for line in answer.content:
                    if not await self._pass_on(line, request, response):
                        return

    async def _pass_on(self, line: bytes, request: web.Request, response: web.StreamResponse) -> bool:
        if self.trouble.cut:
            self._hang_up(request)
            return False
        if self.trouble.gone:
            await response.write(_gone())
            return False
        self._events_seen += 1
        if self.trouble.stalled or (self.trouble.drop_every and self._events_seen % self.trouble.drop_every == 0):
            return True
        await response.write(line)
        return True

    @staticmethod
    def _hang_up(request: web.Request) -> web.Response:
        with contextlib.suppress(AttributeError):  # the peer may have gone first
            request.transport.abort()
        return web.Response(status=502)


def _gone() -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"}
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


def _counts(request: web.Request) -> bool:
    dry_run = "dryRun" in request.query
    return request.method in MUTATING and not dry_run and not any(part in request.path for part in ASIDE)


def _passed_on(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}


def _target(path: str, body: bytes) -> tuple[str, str]:
    """The resource (with its subresource) and the name of the object that a call is about."""
    parts = [part for part in path.split("/") if part]
    if "namespaces" in parts and len(parts) > parts.index("namespaces") + 2:
        parts = parts[parts.index("namespaces") + 2 :]
    else:
        parts = parts[3:] if parts[0] == "apis" else parts[2:]
    if len(parts) > 1:
        return "/".join([parts[0], *parts[2:]]), parts[1]
    try:
        name = json.loads(body)["metadata"]["name"]
    except (ValueError, KeyError, TypeError):
        name = "?"
    return parts[0], name
