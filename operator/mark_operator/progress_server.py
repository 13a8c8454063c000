"""Takes progress from trainers over HTTPS and writes it into the status of their runs.
It believes no post whose Pod does not live and belong to the run."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from aiohttp import web
from mark_crds import names
from mark_crds.run import Progress

from mark_operator import clock
from mark_operator.certificates import ServerContext
from mark_operator.cluster import PROGRESS_MANAGER, ApiError, Cluster
from mark_operator.job_facts import pod_is_live
from mark_operator.progress import MalformedPostError, read_post
from mark_operator.run.means import progress_audience
from mark_operator.seen import Body, RunKey

log = logging.getLogger(__name__)

LARGEST_POST_BYTES = 64 * 1024
BELIEVED_SECONDS = 15.0
POSTS_PER_MINUTE = 60
REMEMBERED = 10_000
KINDS = {plural: kind for kind, plural in names.PLURALS.items() if kind in names.KIND_LETTERS}
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Poster:
    """A Pod that was believed: the stage it works on, and until when that need not be asked again."""

    stage: str
    until: float


class ProgressServer:
    """One server for all runs; every replica has one."""

    def __init__(self, cluster: Cluster, now: Callable[[], datetime], pause_seconds: float) -> None:
        self._cluster = cluster
        self._now = now
        self._pause = pause_seconds
        self._posters: dict[str, Poster] = {}
        self._posts: dict[str, list[float]] = {}
        self._written: dict[RunKey, float] = {}
        self._pending: dict[RunKey, Progress] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, port: int, tls: ServerContext) -> web.AppRunner:
        """Start the server; the caller cleans it up."""
        app = web.Application(client_max_size=LARGEST_POST_BYTES)
        app.router.add_post("/v1/namespaces/{namespace}/{plural}/{name}/progress", self._post)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", port, ssl_context=tls.context).start()
        return runner

    async def _post(self, request: web.Request) -> web.Response:
        """Who it is comes first; only then is the body read."""
        kind = KINDS.get(request.match_info["plural"])
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind is None or scheme.lower() != "bearer" or not token:
            raise web.HTTPUnauthorized(text="a token for this run is needed\n")
        key = RunKey(kind, request.match_info["namespace"], request.match_info["name"])
        fingerprint = hashlib.sha256(f"{key} {token}".encode()).hexdigest()
        self._limit(fingerprint)
        try:
            poster = self._posters.get(fingerprint)
            if poster is None or poster.until < time.monotonic():
                poster = await self._believe(key, token)
                _remember(self._posters, fingerprint, poster)
            await self._take(key, read_post(json.loads(await request.read()), poster.stage, clock.text_of(self._now())))
        except (MalformedPostError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        except ApiError as error:
            log.warning("progress was not written: %s", error, extra={"run": str(key)})
            raise web.HTTPServiceUnavailable(text="the API server does not answer; try again\n") from error
        return web.json_response({})

    def _limit(self, fingerprint: str) -> None:
        now = time.monotonic()
        recent = [moment for moment in self._posts.get(fingerprint, []) if now - moment < 60]
        if len(recent) >= POSTS_PER_MINUTE:
            raise web.HTTPTooManyRequests(text="too many posts\n", headers={"Retry-After": "10"})
        _remember(self._posts, fingerprint, [*recent, now])

    async def _believe(self, key: RunKey, token: str) -> Poster:
        """The poster behind a token, if it was made for this run and its Pod lives and belongs to the run as it is
        now."""
        review = await self._cluster.review_token(token, progress_audience(key))
        user = review.get("user", {})
        extra = {name: values[0] for name, values in user.get("extra", {}).items() if values}
        at_home = str(user.get("username", "")).startswith(f"system:serviceaccount:{key.namespace}:")
        if not review.get("authenticated") or not at_home or POD_NAME not in extra:
            raise web.HTTPUnauthorized(text="the token is not for this run\n")
        pod, run = await asyncio.gather(
            self._cluster.get("Pod", key.namespace, extra[POD_NAME]),
            self._cluster.get(key.kind, key.namespace, key.name),
        )
        if pod is None or run is None or pod["metadata"]["uid"] != extra.get(POD_UID) or not _belongs(pod, key, run):
            raise web.HTTPForbidden(text="the Pod does not belong to this run, or has ended\n")
        return Poster(pod["metadata"]["labels"][names.STAGE_LABEL], time.monotonic() + BELIEVED_SECONDS)

    async def _take(self, key: RunKey, progress: Progress) -> None:
        """Write at once if the last write is long ago, or if this is the end;
        else a little later, and only the newest."""
        wait = self._written.get(key, float("-inf")) + self._pause - time.monotonic()
        if wait <= 0 or progress.percent == 100:
            self._pending.pop(key, None)
            await self._write(key, progress)
            return
        if key not in self._pending:
            task = asyncio.create_task(self._write_later(key, wait))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._pending[key] = progress

    async def _write_later(self, key: RunKey, wait: float) -> None:
        await asyncio.sleep(wait)
        progress = self._pending.pop(key, None)
        if progress is None:
            return
        try:
            await self._write(key, progress)
        except ApiError as error:
            log.warning("progress was not written: %s", error, extra={"run": str(key)})

    async def _write(self, key: RunKey, progress: Progress) -> None:
        _remember(self._written, key, time.monotonic())
        body = {
            "apiVersion": names.API_VERSION,
            "kind": key.kind,
            "metadata": {"name": key.name, "namespace": key.namespace},
            "status": {"progress": progress.to_dict()},
        }
        await self._cluster.apply_status(body, PROGRESS_MANAGER)


def _belongs(pod: Body, key: RunKey, run: Body) -> bool:
    labels = pod["metadata"].get("labels", {})
    mine = (labels.get(names.KIND_LABEL), labels.get(names.RUN_LABEL)) == (key.kind, key.name)
    same = labels.get(names.RUN_UID_LABEL) == run["metadata"]["uid"]
    return mine and same and pod_is_live(pod) and "finishedAt" not in run.get("status", {})


def _remember(memory: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep a value; what was kept longest goes first when there is too much."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.pop(next(iter(memory)))
