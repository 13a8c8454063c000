"""/healthz, /readyz and /metrics, on leaders and standbys alike. docs/metrics.md lists what /metrics tells.
Alive means that the event loop turns and that news of runs comes in, not that a port is open."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

TICK_SECONDS = 1.0
LONGEST_LAG_SECONDS = 20.0
# A leader that missed two whole lists of all runs, and heard no event meanwhile, is deaf.
LISTS_MISSED = 2

Key = TypeVar("Key")


class Health:
    """What the probes and the metrics tell."""

    def __init__(self, relist_seconds: float) -> None:
        self.registry = CollectorRegistry()
        self._ready = False
        self._ticked = time.monotonic()
        self._longest_silence = LISTS_MISSED * relist_seconds + LONGEST_LAG_SECONDS
        self._heard: float | None = None
        self._events = Counter("mark_operator_events", "Events heard from the API server.", registry=self.registry)
        self._passes = Histogram(
            "mark_operator_pass_seconds", "Seconds of one pass over a run.", registry=self.registry
        )
        self._failures = Counter("mark_operator_failed_passes", "Passes that raised.", registry=self.registry)
        self._waiting = Gauge("mark_operator_waiting_runs", "Runs in the queue.", registry=self.registry)
        self._leading = Gauge("mark_operator_leading", "1 while this replica leads.", registry=self.registry)
        self._lag = Gauge(
            "mark_operator_loop_lag_seconds", "Lag of the event loop at its last tick.", registry=self.registry
        )
        self._watch_age = Gauge(
            "mark_operator_watch_age_seconds",
            "Seconds since the last event or complete list of runs; 0 on a standby.",
            registry=self.registry,
        )
        self._watch_age.set_function(self._silence)
        self._runs = Gauge("mark_operator_runs", "Runs by kind and state.", ["kind", "state"], registry=self.registry)
        self._calls = Counter(
            "mark_operator_api_calls",
            "Answers of the API server, by verb, resource and status; status 0 is no answer.",
            ["verb", "resource", "status"],
            registry=self.registry,
        )
        self._attempts = Counter(
            "mark_operator_attempts",
            "Attempts that ended, by kind of run, stage and outcome.",
            ["kind", "stage", "outcome"],
            registry=self.registry,
        )
        self._gpu_seconds = Counter(
            "mark_operator_gpu_seconds",
            "GPUs times seconds that attempts held them, counted when they end or their Job is deleted.",
            ["kind", "stage"],
            registry=self.registry,
        )

    def heard(self) -> None:
        self._events.inc()
        self._heard = time.monotonic()

    def answered(self, verb: str, resource: str, status: int) -> None:
        self._calls.labels(verb=verb, resource=resource, status=str(status)).inc()

    def moved(self, kind: str, before: str | None, after: str | None) -> None:
        """A run's state changed; lists set right what this cannot know, such as deletions."""
        if before == after:
            return
        if before is not None:
            self._runs.labels(kind=kind, state=before).dec()
        if after is not None:
            self._runs.labels(kind=kind, state=after).inc()

    def attempt_ended(self, kind: str, stage: str, outcome: str) -> None:
        self._attempts.labels(kind=kind, stage=stage, outcome=outcome).inc()

    def held_gpus(self, kind: str, stage: str, gpu_seconds: float) -> None:
        self._gpu_seconds.labels(kind=kind, stage=stage).inc(gpu_seconds)

    def _silence(self) -> float:
        return 0.0 if self._heard is None else time.monotonic() - self._heard

    def timed(self, work: Callable[[Key], Awaitable[float | None]]) -> Callable[[Key], Awaitable[float | None]]:
        """The same work, measured."""

        async def measured(key: Key) -> float | None:
            with self._passes.time(), self._failures.count_exceptions():
                return await work(key)

        return measured

    def ready(self, ready: bool = True) -> None:
        self._ready = ready

    def watch_queue(self, length: Callable[[], int]) -> None:
        self._waiting.set_function(length)

    def watch_lease(self, held: Callable[[], bool]) -> None:
        self._leading.set_function(lambda: float(held()))

    def count_runs(self, states: Mapping[tuple[str, str], int]) -> None:
        """What a complete list found."""
        self._heard = time.monotonic()
        self._runs.clear()
        for (kind, state), count in states.items():
            self._runs.labels(kind=kind, state=state).set(count)

    async def tick(self) -> None:
        """Keep time, until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            self._ticked = time.monotonic()
            self._lag.set(self._ticked - before - TICK_SECONDS)

    async def serve(self, port: int) -> web.AppRunner:
        """Start the server; the caller cleans it up."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", port).start()
        return runner

    async def _healthz(self, _: web.Request) -> web.Response:
        lag, silence = time.monotonic() - self._ticked, self._silence()
        alive = lag < LONGEST_LAG_SECONDS and silence < self._longest_silence
        return web.Response(status=200 if alive else 500, text=f"lag {lag:.1f} s, last news {silence:.0f} s ago\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._ready else 503, text="ready\n" if self._ready else "starting\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
