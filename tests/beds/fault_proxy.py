"""A proxy on loopback between the operator and a real API server. It does harm to the calls about one namespace at exactly one place, and keeps a ledger of all writes."""

import asyncio
import contextlib
import json
import ssl
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import aiohttp
from aiohttp import web

Answer = TypeVar("Answer")
MUTATING = ("POST", "PUT", "PATCH", "DELETE")
# Reads in disguise, and what keeps the operator itself alive: not part of a run's story.
ASIDE = ("/leases", "/events", "tokenreviews", "accessreviews", "/secrets")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "accept-encoding"}
LONGEST_LINE_BYTES = 4 * 1024 * 1024
MERGE_SECONDS = 2.0

Harm = Literal["kill-before", "kill", "lose-answer", "time-out", "conflict", "too-many", "server-error", "never-sent"]
ANSWERS = {
    "conflict": (409, "Conflict", "the object has been modified"),
    "too-many": (429, "TooManyRequests", "please try again later"),
    "server-error": (500, "InternalError", "the server is in trouble"),
    "time-out": (504, "Timeout", "the request did not finish in time"),
}
KILLING = ("kill-before", "kill")
# What is carried out although the answer says otherwise, or never comes.
DONE_ALL_THE_SAME = ("kill", "lose-answer", "time-out")

Ailment = Literal["stalled", "silent", "cut", "gone", "dropped", "merged", "stale-lists"]


@dataclass(frozen=True)
class Fault:
    """What happens at the mutating call with this number, counted from 1."""

    harm: Harm
    at: int


@dataclass(frozen=True)
class Trouble:
    """What is done to watches and lists, from the moment that so many writes were made, for so long.

    stalled: open streams never say anything again, and neither do those opened meanwhile. silent: so for all calls, which
    are never answered. cut: every connection breaks. gone: every stream is answered 410. dropped: every second event
    is lost. merged: of the events about an object in two seconds only the last arrives. stale-lists: lists are answered as they first were.
    """

    kind: Ailment
    after: int
    seconds: float


@dataclass
class Ledger:
    """Every mutating call that the API server carried out, as (verb, resource, name), and every one that was made."""

    writes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    made: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    conflicts: int = 0
    """Those that the API server itself refused, because somebody else had written in between."""

    @property
    def calls(self) -> int:
        return self.made.total()

    def of(self, verb: str) -> dict[tuple[str, str], int]:
        """How often each object was the target of a verb."""
        return {(resource, name): count for (done, resource, name), count in self.writes.items() if done == verb}


@dataclass
class Scene:
    """What happens to the calls about one namespace, or about the whole cluster."""

    ledger: Ledger = field(default_factory=Ledger)
    fault: Fault | None = None
    trouble: Trouble | None = None
    struck: bool = False
    """Whether the fault or the trouble came about."""
    ends_at: float = 0.0
    looked_after: float | None = None
    """Seconds from the end of the trouble to the first look at the run."""

    def suffers(self, *kinds: Ailment) -> bool:
        return self.trouble is not None and self.struck and self.trouble.kind in kinds and _now() < self.ends_at

    @property
    def healed(self) -> bool:
        return self.trouble is not None and self.struck and _now() >= self.ends_at


@dataclass(eq=False)
class Stream:
    """One watch on its way through the proxy."""

    namespace: str
    request: web.Request
    response: web.StreamResponse
    dead: bool = False
    held: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Newest event of each object, while events are merged."""

    async def flush_later(self) -> None:
        await asyncio.sleep(MERGE_SECONDS)
        events, self.held = self.held, {}
        with contextlib.suppress(ConnectionError):  # the watcher may have gone
            for _, line in events.values():
                await self.response.write(line)


class FaultProxy:
    """Forwards everything to the API server and does the harm that it was given."""

    def __init__(self, upstream: str, certificate: str, kill: Callable[[], Awaitable[None]]) -> None:
        self.upstream = upstream
        self.ledger = Ledger()
        """All writes, whatever their namespace."""
        self.everywhere = Scene()
        """Trouble with the whole API server."""
        self.lists = 0
        """How often all TrainingRuns of a namespace, or of all, were listed."""
        self.url = ""
        self._scenes: defaultdict[str, Scene] = defaultdict(Scene)
        self._kill = kill
        self._certificate = certificate
        self._first_lists: dict[str, tuple[int, bytes, str]] = {}
        self._events: Counter[str] = Counter()
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "FaultProxy":
        context = ssl.create_default_context(cafile=self._certificate)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True, read_bufsize=LONGEST_LINE_BYTES)
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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()
        await self._session.close()

    def scene(self, namespace: str) -> Scene:
        return self._scenes[namespace]

    def begin(self, trouble: Trouble) -> None:
        """Trouble with the whole API server, from now on."""
        self.everywhere.trouble = trouble
        self._strike(self.everywhere, None)

    def plan(self, namespace: str, trouble: Trouble) -> None:
        """Trouble with one namespace, from its moment on."""
        scene = self.scene(namespace)
        scene.trouble = trouble
        if trouble.after == 0:
            self._strike(scene, namespace)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        namespace = _namespace(request.path)
        scene = self.scene(namespace)
        for one in (scene, self.everywhere):
            if one.suffers("cut"):
                return self._hang_up(request)
            if one.suffers("silent"):
                await asyncio.Event().wait()  # until the caller gives up
            if one.healed and one.looked_after is None and _is_a_look(request):
                one.looked_after = _now() - one.ends_at
        body = await request.read()
        if request.query.get("watch") in ("true", "1"):
            return await self._watch(request, namespace)
        self.lists += _is_a_list(request)
        if not _counts(request):
            return await self._read(request, scene, body)
        # What is on its way to the API server is carried out, and counted, although the caller may be gone by then.
        return await asyncio.shield(self._in_background(self._write(request, namespace, body)))

    async def _write(self, request: web.Request, namespace: str, body: bytes) -> web.StreamResponse:
        scene = self.scene(namespace)
        self.ledger.made[_call(request, body)] += 1
        scene.ledger.made[_call(request, body)] += 1
        fault = scene.fault if scene.fault and scene.fault.at == scene.ledger.calls else None
        if fault is None:
            answer = await self._carry_out(request, scene, body)
            if scene.trouble is not None and not scene.struck and scene.ledger.calls >= scene.trouble.after:
                self._strike(scene, namespace)
            return answer
        scene.struck = True
        if fault.harm in DONE_ALL_THE_SAME:
            await self._carry_out(request, scene, body)
        if fault.harm in ANSWERS:
            code, reason, message = ANSWERS[fault.harm]
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}
            return web.json_response(status, status=code, headers={"Retry-After": "1"} if code == 429 else {})
        if fault.harm in KILLING:
            await self._kill()
        return self._hang_up(request)

    def _strike(self, scene: Scene, namespace: str | None) -> None:
        """Begin a scene's trouble; open streams feel it too."""
        assert scene.trouble is not None
        scene.struck, scene.ends_at = True, _now() + scene.trouble.seconds
        for stream in list(self._streams):
            if namespace in (None, stream.namespace):
                stream.dead = scene.trouble.kind in ("stalled", "silent")
                if scene.trouble.kind in ("cut", "gone"):
                    self._hang_up(stream.request)

    async def _carry_out(self, request: web.Request, scene: Scene, body: bytes) -> web.Response:
        status, content, kind = await self._forward(request, body)
        for ledger in (self.ledger, scene.ledger):
            if status < 300:
                ledger.writes[_call(request, body)] += 1
            # A create that finds its name taken is refused with the same code.
            ledger.conflicts += status == 409 and request.method != "POST"
        return web.Response(status=status, body=content, content_type=kind)

    async def _read(self, request: web.Request, scene: Scene, body: bytes) -> web.Response:
        status, content, kind = await self._forward(request, body)
        key = request.path_qs
        if request.method == "GET" and status == 200 and b'List"' in content[:200]:
            self._first_lists.setdefault(key, (status, content, kind))
            if scene.suffers("stale-lists"):
                status, content, kind = self._first_lists[key]
        return web.Response(status=status, body=content, content_type=kind)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes, str]:
        assert self._session is not None
        url = f"{self.upstream}{request.rel_url}"
        async with self._session.request(request.method, url, data=body or None, headers=_passed_on(request)) as answer:
            return answer.status, await answer.read(), answer.content_type

    async def _watch(self, request: web.Request, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if self._suffers(namespace, "gone"):
            await response.write(_gone())
            return response
        stream = Stream(namespace, request, response, dead=self._suffers(namespace, "stalled"))
        self._streams.add(stream)
        with contextlib.suppress(asyncio.CancelledError):
            await self._in_background(self._pass_all_on(stream))
        self._streams.discard(stream)
        return response

    async def _pass_all_on(self, stream: Stream) -> None:
        assert self._session is not None
        url, headers = f"{self.upstream}{stream.request.rel_url}", _passed_on(stream.request)
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # either side may go first
            async with self._session.get(url, headers=headers) as answer:
                async for line in answer.content:
                    await self._pass_on(line, stream)
        while stream.dead:
            await asyncio.sleep(1)  # the far end is gone, and nobody says so

    async def _pass_on(self, line: bytes, stream: Stream) -> None:
        namespace = stream.namespace
        if stream.dead:
            return
        if self._suffers(namespace, "dropped"):
            self._events[namespace] += 1
            if self._events[namespace] % 2:
                return
        if self._suffers(namespace, "merged"):
            self._hold(line, stream)
            return
        await stream.response.write(line)

    def _hold(self, line: bytes, stream: Stream) -> None:
        event = json.loads(line)
        uid = event["object"].get("metadata", {}).get("uid", "")
        if not stream.held:
            self._in_background(stream.flush_later())
        earlier = stream.held.pop(uid, None)
        if event["type"] == "DELETED" and earlier is not None and earlier[0] == "ADDED":
            return  # it came and went unseen
        stream.held[uid] = (event["type"] if earlier is None else earlier[0], line)

    def _suffers(self, namespace: str, *kinds: Ailment) -> bool:
        return self.scene(namespace).suffers(*kinds) or self.everywhere.suffers(*kinds)

    def _in_background(self, work: Coroutine[Any, Any, Answer]) -> "asyncio.Task[Answer]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def _hang_up(request: web.Request) -> web.Response:
        if request.transport is not None:  # the peer may have gone first
            request.transport.abort()
        return web.Response(status=502)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _gone() -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"}
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


def _counts(request: web.Request) -> bool:
    dry_run = "dryRun" in request.query
    return request.method in MUTATING and not dry_run and not any(part in request.path for part in ASIDE)


def _is_a_look(request: web.Request) -> bool:
    """Whether this is how a pass over a run begins."""
    parts = request.path.split("/")
    return request.method == "GET" and len(parts) == 8 and parts[6] in ("trainingruns", "evalruns")


def _is_a_list(request: web.Request) -> bool:
    return request.method == "GET" and request.path.endswith("/trainingruns")


def _namespace(path: str) -> str:
    """The namespace that a call is about; empty for the whole cluster."""
    parts = path.split("/")
    at = parts.index("namespaces") + 1 if "namespaces" in parts else len(parts)
    return parts[at] if at < len(parts) else ""


def _passed_on(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}


def _call(request: web.Request, body: bytes) -> tuple[str, str, str]:
    return (request.method, *_target(request.path, body))


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
