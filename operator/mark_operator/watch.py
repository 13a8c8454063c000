"""Watching: a complete list of all runs first, then kopf's streams, and the list again from time to time for what they
missed."""

import asyncio
import logging
import signal
from collections.abc import Callable

import kopf
from mark_crds import names

from mark_operator.cluster import ApiError, Cluster
from mark_operator.handlers import Attention, registry, watch_settings
from mark_operator.health import Health
from mark_operator.queue import Queue
from mark_operator.reconcile import Reconciler
from mark_operator.seen import RunKey
from mark_operator.settings import Settings

log = logging.getLogger(__name__)

LIST_PAUSE_SECONDS = 5.0


async def watch(
    cluster: Cluster, settings: Settings, reconciler: Reconciler, health: Health, stop: Callable[[], object]
) -> None:
    """Look at runs until the process is told to stop. Whatever ends, ends all: it is made to crash rather than to
    limp."""
    queue: Queue[RunKey] = Queue(health.timed(reconciler.look_at))
    health.watch_queue(lambda: len(queue))
    attention = Attention(queue.add, reconciler.wrote)
    await _list_until_it_works(cluster, settings, attention, health)
    started = asyncio.Event()
    works = (queue.run(), _relist(cluster, settings, attention, health), _take_signal_back(started, stop))
    async with asyncio.TaskGroup() as group:
        background = [group.create_task(work) for work in works]
        await kopf.operator(
            registry=registry(attention, health.heard),
            settings=watch_settings(),
            standalone=True,
            ready_flag=started,
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
        )
        for task in background:
            task.cancel()


async def _take_signal_back(started: asyncio.Event, stop: Callable[[], object]) -> None:
    """kopf takes SIGTERM over, and then waits seconds for tasks that are not its own.
    Cancelled instead, it ends at once."""
    await started.wait()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)


async def _list_until_it_works(cluster: Cluster, settings: Settings, attention: Attention, health: Health) -> None:
    while True:
        try:
            await list_runs(cluster, settings, attention, health)
            return
        except ApiError as error:
            log.warning("the runs could not be listed: %s", error)
            await asyncio.sleep(LIST_PAUSE_SECONDS)


async def _relist(cluster: Cluster, settings: Settings, attention: Attention, health: Health) -> None:
    while True:
        await asyncio.sleep(settings.timings.relist_seconds)
        await _list_until_it_works(cluster, settings, attention, health)


async def list_runs(cluster: Cluster, settings: Settings, attention: Attention, health: Health) -> None:
    """Queue every run and model that may need a pass; what has ended and was noted needs none."""
    states: dict[tuple[str, str], int] = {}
    for kind in names.PLURALS:
        for namespace in settings.watch_namespaces or (None,):
            async for body in cluster.list_all(kind, namespace):
                attention.run(body)
                if kind in names.KIND_LETTERS:  # A Model has no state.
                    state = (kind, str(body.get("status", {}).get("state", "")))
                    states[state] = states.get(state, 0) + 1
    health.count_runs(states)
