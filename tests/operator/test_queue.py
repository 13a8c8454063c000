"""The queue: one pass per key at a time, nothing lost, and one bad key harms no other."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from mark_operator.queue import Queue


def run(
    work: Callable[[str], Awaitable[float | None]], story: Callable[[Queue[str]], Awaitable[None]], workers: int = 4
) -> None:
    async def main() -> None:
        queue: Queue[str] = Queue(work, workers=workers)
        running = asyncio.create_task(queue.run())
        await story(queue)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_key_is_never_worked_on_twice_at_once_and_no_news_is_lost() -> None:
    busy: set[str] = set()
    seen: list[int] = []
    state = {"version": 0}

    async def work(key: str) -> None:
        assert key not in busy
        busy.add(key)
        seen.append(state["version"])
        await asyncio.sleep(0.005)
        busy.discard(key)

    async def story(queue: Queue[str]) -> None:
        for version in range(1, 40):
            state["version"] = version
            queue.add("a")
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)

    run(work, story)
    assert seen[-1] == 39 and len(seen) < 39, "the last state was seen, and many were joined"


def test_a_pass_whose_awaited_future_is_cancelled_ends_no_worker() -> None:
    """What it raises looks like the cancellation of the worker itself."""
    passes: Counter[str] = Counter()

    async def work(key: str) -> None:
        passes[key] += 1
        if passes[key] == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    async def story(queue: Queue[str]) -> None:
        for key in "abc":
            queue.add(key)
        await asyncio.sleep(2.5)

    run(work, story, workers=1)
    assert passes == {"a": 2, "b": 2, "c": 2}


def test_a_failing_key_is_tried_again_and_delays_no_other() -> None:
    passes: Counter[str] = Counter()

    async def work(key: str) -> None:
        passes[key] += 1
        if key == "poisoned":
            raise RuntimeError("always")

    async def story(queue: Queue[str]) -> None:
        queue.add("poisoned")
        started = time.monotonic()
        for number in range(200):
            queue.add(f"healthy-{number}")
        while len(passes) < 201:
            await asyncio.sleep(0.005)
        assert time.monotonic() - started < 2
        while passes["poisoned"] < 2:
            await asyncio.sleep(0.05)

    run(work, story)
    assert all(count == 1 for key, count in passes.items() if key != "poisoned")


def test_a_later_look_comes_once_and_an_event_comes_before_it() -> None:
    moments: list[float] = []

    async def work(_: str) -> float | None:
        moments.append(time.monotonic())
        return 0.2 if len(moments) == 1 else None

    async def story(queue: Queue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(0.05)
        queue.add("a")
        await asyncio.sleep(0.4)

    run(work, story)
    assert len(moments) == 2, "the event took the place of the look by the clock"


def test_the_earlier_of_two_later_looks_counts() -> None:
    moments: list[float] = []

    async def work(_: str) -> None:
        moments.append(time.monotonic())

    async def story(queue: Queue[str]) -> None:
        started = time.monotonic()
        queue.add_later("a", 5)
        queue.add_later("a", 0.05)
        queue.add_later("a", 3)
        await asyncio.sleep(0.2)
        assert len(moments) == 1 and moments[0] - started < 2

    run(work, story)


@pytest.mark.parametrize("workers", [1, 16])
def test_all_keys_are_served(workers: int) -> None:
    served: set[str] = set()

    async def work(key: str) -> None:
        await asyncio.sleep(0)
        served.add(key)

    async def story(queue: Queue[str]) -> None:
        for number in range(500):
            queue.add(str(number))
        while len(queue) or len(served) < 500:
            await asyncio.sleep(0.005)

    run(work, story, workers)
    assert len(served) == 500


def test_what_changed_comes_before_what_is_only_looked_at_again() -> None:
    seen: list[str] = []

    async def work(key: str) -> None:
        seen.append(key)
        await asyncio.sleep(0.01)

    async def story(queue: Queue[str]) -> None:
        for number in range(5):
            queue.add_later(f"old {number}", 0)
        queue.add("first")
        await asyncio.sleep(0.005)
        queue.add("old 4")
        queue.add("new")
        await asyncio.sleep(0.2)

    run(work, story, workers=1)
    assert seen == ["first", "old 4", "new", "old 0", "old 1", "old 2", "old 3"]


def test_news_without_end_lets_every_fourth_turn_to_what_is_looked_at_again() -> None:
    seen: list[str] = []
    waiting: list[Queue[str]] = []

    async def work(key: str) -> None:
        seen.append(key)
        for number in range(2):
            waiting[0].add(f"new {len(seen)} {number}")
        await asyncio.sleep(0)

    async def story(queue: Queue[str]) -> None:
        waiting.append(queue)
        for number in range(5):
            queue.add_later(f"old {number}", 0)
        await asyncio.sleep(0.01)
        while len(seen) < 40:
            await asyncio.sleep(0.001)

    run(work, story, workers=1)
    assert [key for key in seen if key.startswith("old")] == [f"old {number}" for number in range(5)]
    assert seen.index("old 4") < 24
