"""A queue of keys: each key is worked on by one worker at a time, never lost, tried again with growing pauses. What
changed comes before what is only looked at again, but not for ever. It knows nothing of runs."""

import asyncio
import itertools
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

WORKERS = 32
# Every fourth turn belongs to what is only looked at again: news without end would keep it waiting without end.
FAIR_TURN = 4
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

Key = TypeVar("Key", bound=Hashable)


class Queue(Generic[Key]):
    """Keys that wait for a pass. A key that is added while it is worked on gets one more pass afterwards."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], *, workers: int = WORKERS) -> None:
        self._work = work
        self._workers = workers
        self._changed: OrderedDict[Key, None] = OrderedDict()
        self._looked_at_again: OrderedDict[Key, None] = OrderedDict()
        self._ready = asyncio.Semaphore(0)
        self._turns = itertools.count(1)
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
            self._line_up(key, self._changed)

    def add_later(self, key: Key, seconds: float) -> None:
        """Look at this key after a pause, unless something happens to it earlier."""
        if key in self._changed or key in self._looked_at_again or key in self._again:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._ring, key)

    def __len__(self) -> int:
        return len(self._changed) + len(self._looked_at_again)

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
            self._line_up(key, self._looked_at_again)

    def _line_up(self, key: Key, line: OrderedDict[Key, None]) -> None:
        """Let the key wait at the end of this line, unless it waits already; what changed moves forward."""
        if key in self._changed:
            return
        if key in self._looked_at_again:
            del self._looked_at_again[key]
        else:
            self._ready.release()
        line[key] = None

    def _next(self) -> Key:
        """The key whose turn it is; one waits."""
        lines = self._changed, self._looked_at_again
        first, then = reversed(lines) if next(self._turns) % FAIR_TURN == 0 else lines
        key, _ = (first or then).popitem(last=False)
        return key

    async def _worker(self) -> None:
        while True:
            await self._ready.acquire()
            key = self._next()
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
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_told_to_end():
                raise
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(failures, 20)) * random.uniform(0.5, 1.0)
            log.exception("the pass failed, next one in %.1f s: %s", delay, error, extra={"run": str(key)})
            return float(delay)
        self._failures.pop(key, None)
        return pause


def _is_told_to_end() -> bool:
    """Whether somebody cancelled this task. What is raised when something that it waits for is cancelled looks the
    same, and would end a worker without a word."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
