"""Takes progress from trainers over HTTPS and writes it into the status and the metrics of their runs.
It believes no post whose Pod does not live and belong to the run."""

import asyncio
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from aiohttp import web
from mark_crds import names
from mark_crds.run import LastCheckpoint, Progress

from mark_operator import clock
from mark_operator.certificates import ServerContext
from mark_operator.cluster import PROGRESS_MANAGER, ApiError, Cluster
from mark_operator.job_facts import pod_is_live
from mark_operator.metrics import Told, config_map, extended, read_metrics
from mark_operator.progress import MalformedPostError, read_checkpoint, read_post, read_told
from mark_operator.run.means import progress_audience
from mark_operator.run.view import status_of
from mark_operator.seen import Body, RunKey, owned_by

log = logging.getLogger(__name__)

LARGEST_POST_BYTES = 64 * 1024
BELIEVED_SECONDS = 15.0
POSTS_PER_MINUTE = 60
# Tokens that were never believed, in any minute: each may cost the API server a review. A trainer brings one at its
# start and one whenever the kubelet renews it. So 3,000 trainers are believed within a minute of a restart, for fewer
# reviews than they cause afterwards. No address can take what the others need, though 600 may share a gateway's.
STRANGERS_PER_MINUTE = 3_000
STRANGERS_PER_ADDRESS = 600
CONFLICT_SECONDS = 1.0
# Writes of one status that somebody else comes before, until the trainer is asked to try again.
CONFLICTS = 4
REMEMBERED = 10_000
MOST_NEWS = 2_000
KINDS = {plural: kind for kind, plural in names.PLURALS.items() if kind in names.KIND_LETTERS}
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Poster:
    """A Pod that was believed: whose it is, the stage it works on, and until when that need not be asked again."""

    stage: str
    run_uid: str
    job: tuple[str, str] | None
    """Name and uid of the Pod's Job."""
    checkpoint: LastCheckpoint | None
    """What the run's status said of its checkpoint: a post that tells of none leaves it."""
    until: float


@dataclass
class Telling:
    """What one run told and nobody wrote yet, and when the next write is due."""

    progress: Progress | None = None
    checkpoint: LastCheckpoint | None = None
    news: list[Told] = field(default_factory=list)
    due: float = float("-inf")
    ended: str = ""
    annotated: LastCheckpoint | None = None
    task: asyncio.Task[None] | None = None

    @property
    def ends(self) -> bool:
        """Whether the stage's end is to be told, which does not wait for its turn."""
        return self.progress is not None and self.progress.percent == 100 and self.ended != self.progress.stage

    @property
    def waits(self) -> bool:
        """Whether anything is still to be written."""
        return self.progress is not None or bool(self.news)


class Rate:
    """So many in any minute, and no more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._moments: deque[float] = deque()

    def take(self) -> None:
        """Count one more, or refuse it."""
        now = time.monotonic()
        while self._moments and now - self._moments[0] >= 60:
            self._moments.popleft()
        if len(self._moments) >= self._most:
            raise web.HTTPTooManyRequests(text="too many posts\n", headers={"Retry-After": "10"})
        self._moments.append(now)


class ProgressServer:
    """One server for all runs; every replica has one."""

    def __init__(self, cluster: Cluster, now: Callable[[], datetime], pause_seconds: float) -> None:
        self._cluster = cluster
        self._now = now
        self._pause = pause_seconds
        self._posters: dict[str, Poster] = {}
        self._posts: dict[str, Rate] = {}
        self._addresses: dict[str, Rate] = {}
        self._strangers = Rate(STRANGERS_PER_MINUTE)
        self._tellings: dict[str, Telling] = {}

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
        poster = self._posters.get(fingerprint)
        if poster is None:
            _counted(self._addresses, str(request.remote), STRANGERS_PER_ADDRESS)
            self._strangers.take()
        _counted(self._posts, fingerprint, POSTS_PER_MINUTE)
        try:
            if poster is None or poster.until < time.monotonic():
                poster = await self._believe(key, token)
                _remember(self._posters, fingerprint, poster)
            await self._take(key, poster, json.loads(await request.read()))
        except (MalformedPostError, ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        except ApiError as error:
            log.warning("progress was not written: %s", error, extra={"run": str(key)})
            raise web.HTTPServiceUnavailable(text="the API server does not answer; try again\n") from error
        return web.json_response({})

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
        return Poster(
            stage=pod["metadata"]["labels"][names.STAGE_LABEL],
            run_uid=run["metadata"]["uid"],
            job=_job_of(pod),
            checkpoint=status_of(run).last_checkpoint,
            until=time.monotonic() + BELIEVED_SECONDS,
        )

    async def _take(self, key: RunKey, poster: Poster, post: Any) -> None:
        """Write at once if the last write is long ago, or if this is a stage's end; else a little later."""
        now = self._now()
        progress, checkpoint = (
            read_post(post, poster.stage, clock.text_of(now)),
            read_checkpoint(post, poster.stage, now),
        )
        news = read_told(post, poster.stage, now)
        telling = self._tellings.get(poster.run_uid) or Telling()
        _remember(self._tellings, poster.run_uid, telling)
        telling.progress = progress
        telling.checkpoint = _newer(telling.checkpoint or poster.checkpoint, checkpoint)
        telling.news = [*telling.news, *news][-MOST_NEWS:]
        if telling.ends or telling.due <= time.monotonic():
            await self._write(key, poster, telling)
        else:
            self._write_later(key, poster, telling)

    def _write_later(self, key: RunKey, poster: Poster, telling: Telling) -> None:
        if telling.task is None or telling.task.done():
            telling.task = asyncio.create_task(self._write_when_due(key, poster, telling))

    async def _write_when_due(self, key: RunKey, poster: Poster, telling: Telling) -> None:
        while telling.waits:
            await asyncio.sleep(max(0.0, telling.due - time.monotonic()))
            try:
                await self._write(key, poster, telling)
            except ApiError as error:
                log.warning("progress was not written: %s", error, extra={"run": str(key)})
                if not error.is_transient:
                    return

    async def _write(self, key: RunKey, poster: Poster, telling: Telling) -> None:
        """Write what waits, unless another replica wrote just now: the run's metrics tell when, and who was first."""
        telling.due = time.monotonic() + self._pause
        run = await self._cluster.get(key.kind, key.namespace, key.name)
        if run is None or run["metadata"]["uid"] != poster.run_uid:
            telling.progress, telling.news = None, []  # The collector would take it away, again and again.
            return
        written = status_of(run).progress
        if telling.progress and written and written.updated > telling.progress.updated:
            telling.progress = None  # Another replica told what came later.
        if await self._write_metrics(key, poster, telling) and (progress := telling.progress):
            telling.progress = None
            await self._write_run(key, run, poster, telling, progress)
        if telling.waits:
            self._write_later(key, poster, telling)

    async def _write_run(self, key: RunKey, run: Body, poster: Poster, telling: Telling, progress: Progress) -> None:
        told = {"progress": progress, "lastCheckpoint": telling.checkpoint}
        try:
            said = {name: value.to_dict() for name, value in told.items() if value is not None}
            await self._write_status(key, run, said)
            await self._annotate(key, poster, telling)
        except ApiError:
            telling.progress = telling.progress or progress
            raise
        telling.ended = progress.stage if progress.percent == 100 else ""

    async def _write_metrics(self, key: RunKey, poster: Poster, telling: Telling) -> bool:
        """Add the news to the run's metrics; False when it is not this replica's turn to write, so that all waits."""
        found = await self._cluster.get("ConfigMap", key.namespace, names.metrics_name(key.kind, key.name))
        if found is not None and not owned_by(found, poster.run_uid):
            telling.news = []  # An earlier run's, which is about to go, or somebody else's, which is left alone.
            return True
        old = read_metrics(found) if found else None
        age = clock.seconds_since(old.updated, self._now()) if old else self._pause
        if not telling.ends and 0 <= age < self._pause - 1:
            telling.due = time.monotonic() + self._pause - age
            return False
        news, telling.news = telling.news, []
        # Whoever has no progress to tell must not take a turn: replicas could keep each other from ever telling any.
        updated = old.updated if old and telling.progress is None else clock.text_of(self._now())
        version = found["metadata"]["resourceVersion"] if found else None
        body = config_map(key, poster.run_uid, extended(old, news, updated), version)
        try:
            await self._cluster.apply(body, PROGRESS_MANAGER)
        except ApiError as error:
            if not error.is_transient:  # Such as a quota on ConfigMaps: the progress itself has another place.
                log.warning("the metrics were not written: %s", error, extra={"run": str(key)})
                return True
            telling.news = [*news, *telling.news]
            if error.reason != "Conflict":
                raise
            telling.due = time.monotonic() + CONFLICT_SECONDS
            return False
        if found is None:
            telling.news = [*news, *telling.news]  # Another replica may have made it, too, and lost them: once more.
        return True

    async def _write_status(self, key: RunKey, run: Body, status: Body) -> None:
        """Write on this very run; one that was created again under its name has a story of its own. The API server
        compares no uid here, only versions."""
        body = {"apiVersion": names.API_VERSION, "kind": key.kind, "status": status}
        now: Body | None = run
        for left in reversed(range(CONFLICTS)):
            if now is None or now["metadata"]["uid"] != run["metadata"]["uid"]:
                return
            version = {"resourceVersion": now["metadata"]["resourceVersion"]}
            metadata = {"name": key.name, "namespace": key.namespace, **version}
            try:
                await self._cluster.apply_status({**body, "metadata": metadata}, PROGRESS_MANAGER)
                return
            except ApiError as error:
                if error.reason != "Conflict" or not left:
                    raise
            now = await self._cluster.get(*key)

    async def _annotate(self, key: RunKey, poster: Poster, telling: Telling) -> None:
        """Tell schedulers, on the Job that they look at, what stopping it now would cost."""
        kept = telling.checkpoint
        if kept is None or kept == telling.annotated or kept.stage != poster.stage or poster.job is None:
            return
        name, uid = poster.job
        said = {names.CHECKPOINT_STEP_ANNOTATION: str(kept.step), names.CHECKPOINT_TIME_ANNOTATION: kept.time}
        await self._cluster.annotate("Job", key.namespace, name, uid, said)
        telling.annotated = kept


def _newer(known: LastCheckpoint | None, told: LastCheckpoint | None) -> LastCheckpoint | None:
    """A checkpoint that is told of again keeps its time: posts take a moment, now more, now less."""
    again = known is not None and told is not None and (known.stage, known.step) == (told.stage, told.step)
    return known if again or told is None else told


def _job_of(pod: Body) -> tuple[str, str] | None:
    owners = pod["metadata"].get("ownerReferences", ())
    return next(((owner["name"], owner["uid"]) for owner in owners if owner["kind"] == "Job"), None)


def _belongs(pod: Body, key: RunKey, run: Body) -> bool:
    labels = pod["metadata"].get("labels", {})
    mine = (labels.get(names.KIND_LABEL), labels.get(names.RUN_LABEL)) == (key.kind, key.name)
    same = labels.get(names.RUN_UID_LABEL) == run["metadata"]["uid"]
    return mine and same and pod_is_live(pod) and "finishedAt" not in run.get("status", {})


def _counted(rates: dict[str, Rate], key: str, most: int) -> None:
    """Count one more of this key, or refuse it."""
    _remember(rates, key, rates.get(key) or Rate(most))
    rates[key].take()


def _remember(memory: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep a value; what was kept longest goes first when there is too much."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.pop(next(iter(memory)))
