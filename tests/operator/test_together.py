"""Asking together: fewer requests, never an answer older than the question, and errors reach everybody who asked."""

import asyncio

import pytest
from mark_operator.together import Together


class Server:
    """Counts the requests; each answers with its number, after a while."""

    def __init__(self) -> None:
        self.requests = 0
        self.under_way = 0
        self.most_at_once = 0

    async def answer(self) -> int:
        self.requests += 1
        number = self.requests
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        return number

    async def fail(self) -> int:
        await self.answer()
        raise ConnectionError("gone")


def test_who_asks_while_a_request_is_under_way_shares_the_next_one() -> None:
    async def story() -> None:
        server, together = Server(), Together[str, int]()
        first = asyncio.create_task(together.ask("claim", server.answer))
        await asyncio.sleep(0.002)
        assert server.requests == 1
        late = [asyncio.create_task(together.ask("claim", server.answer)) for _ in range(50)]
        assert await first == 1, "the first asker's answer is that of its own request"
        assert set(await asyncio.gather(*late)) == {2}, "an answer that was asked for earlier is not for the late"
        assert await together.ask("claim", server.answer) == 3, "nothing is kept"
        assert server.most_at_once == 1

    asyncio.run(story())


def test_different_questions_do_not_wait_for_each_other() -> None:
    async def story() -> None:
        server, together = Server(), Together[str, int]()
        await asyncio.gather(*(together.ask(f"claim {number}", server.answer) for number in range(5)))
        assert server.requests == server.most_at_once == 5

    asyncio.run(story())


def test_an_error_reaches_all_and_one_who_goes_takes_nobody_along() -> None:
    async def story() -> None:
        server, together = Server(), Together[str, int]()
        both = [asyncio.create_task(together.ask("claim", server.fail)) for _ in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [type(error) for error in found] == [ConnectionError, ConnectionError] and server.requests == 1
        impatient = asyncio.create_task(together.ask("claim", server.answer))
        patient = asyncio.create_task(together.ask("claim", server.answer))
        await asyncio.sleep(0.002)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert await patient == 2

    asyncio.run(story())
