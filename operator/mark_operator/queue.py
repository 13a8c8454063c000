"""A queue of keys: each key is worked on by one worker at a time, never lost, tried again with growing pauses. What
changed comes before what is only looked at again. It knows nothing of runs."""

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

WORKERS = 32
CHANGED, LOOKED_AT_AGAIN = 0, 1
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

Key = TypeVar("Key", bound=Hashable)


class Queue(Generic[Key]):
    """Keys that wait for a pass. A key that is added while it is worked on gets one more pass afterwards."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], *, workers: int = WORKERS) -> None:
        self._work = work
        self._workers = workers
        self._ready: asyncio.PriorityQueue[tuple[int, int, Key]] = asyncio.PriorityQueue()
        self._turns = itertools.count()
        self._waiting: dict[Key, int] = {}
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        """Look at this key as soon as a worker is free."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        else:
            self._wait(key, CHANGED)

    def add_later(self, key: Key, seconds: float) -> None:
        """Look at this key after a pause, unless something happens to it earlier."""
        if key in self._waiting or key in self._again:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._ring, key)

    def __len__(self) -> int:
        return len(self._waiting)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._worker())
        finally:
            for timer in self._timers.values():
                timer.cancel()

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        if key in self._working:
            self._again.add(key)
        else:
            self._wait(key, LOOKED_AT_AGAIN)

    def _wait(self, key: Key, urgency: int) -> None:
        """Line the key up, unless it waits already; what becomes more urgent moves forward."""
        if urgency < self._waiting.get(key, LOOKED_AT_AGAIN + 1):
            self._waiting[key] = urgency
            self._ready.put_nowait((urgency, next(self._turns), key))

    async def _worker(self) -> None:
        while True:
            urgency, _, key = await self._ready.get()
            if self._waiting.get(key) != urgency:
                continue  # it moved forward and had its turn
            del self._waiting[key]
            self._working.add(key)
            try:
                pause = await self._pass(key)
            finally:
                self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif pause is not None:
                self.add_later(key, pause)

    async def _pass(self, key: Key) -> float | None:
        """One pass; the pause until the next one."""
        try:
            pause = await self._work(key)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(failures, 20)) * random.uniform(0.5, 1.0)
            log.exception("the pass failed, next one in %.1f s: %s", delay, error, extra={"run": str(key)})
            return float(delay)
        self._failures.pop(key, None)
        return pause
