"""A queue of keys: each key is worked on by one worker at a time, never lost, tried again with growing pauses. It
knows nothing of runs."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

WORKERS = 16
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

Key = TypeVar("Key", bound=Hashable)


class Queue(Generic[Key]):
    """Keys that wait for a pass. A key that is added while it is worked on gets one more pass afterwards."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], *, workers: int = WORKERS) -> None:
        self._work = work
        self._workers = workers
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
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
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

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
        self.add(key)

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
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
