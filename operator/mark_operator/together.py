"""One request for a question that many ask at the same time. Nobody gets an answer that is older than their asking; it
keeps nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")


class Together(Generic[Question, Answer]):
    """Whoever asks while a request is under way shares the next one with all others who wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[Question, asyncio.Task[Answer]] = {}
        self._under_way: WeakValueDictionary[Question, asyncio.Lock] = WeakValueDictionary()

    async def ask(self, question: Question, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to a request that is sent from now on: by `send`, or by that of another who asks the same."""
        task = self._waiting.get(question)
        if task is None:
            task = self._waiting[question] = asyncio.create_task(self._send(question, send))
        return await asyncio.shield(task)

    async def _send(self, question: Question, send: Callable[[], Awaitable[Answer]]) -> Answer:
        lock = self._under_way.get(question)
        if lock is None:
            lock = self._under_way[question] = asyncio.Lock()
        async with lock:
            del self._waiting[question]
            return await send()
