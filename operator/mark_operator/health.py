"""/healthz, /readyz and /metrics, on leaders and standbys alike.
Alive means that the event loop turns, not that a port is open."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

TICK_SECONDS = 1.0
LONGEST_LAG_SECONDS = 20.0

Key = TypeVar("Key")


class Health:
    """What the probes and the metrics tell."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ready = False
        self._ticked = time.monotonic()
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
        self._runs = Gauge(
            "mark_operator_runs",
            "Runs by kind and state, as of the last list.",
            ["kind", "state"],
            registry=self.registry,
        )

    def heard(self) -> None:
        self._events.inc()

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
        lag = time.monotonic() - self._ticked
        return web.Response(status=200 if lag < LONGEST_LAG_SECONDS else 500, text=f"lag {lag:.1f} s\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._ready else 503, text="ready\n" if self._ready else "starting\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
