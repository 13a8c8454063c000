"""A connection on which somebody else is quicker. It must not change what is written."""

import asyncio
from collections.abc import Callable

from mark_operator.cluster import FIELD_MANAGER, Cluster
from mark_operator.seen import Body


class Overtaken(Cluster):
    """Somebody else is quicker: with every status, and with the creation of a Model."""

    touch: Callable[[], None] = staticmethod(lambda: None)
    quicker: Callable[[], None] = staticmethod(lambda: None)

    async def apply_status(self, body: Body, manager: str = FIELD_MANAGER) -> Body:
        await asyncio.to_thread(self.touch)
        return await super().apply_status(body, manager)

    async def create(self, body: Body, dry_run: bool = False) -> Body:
        if body["kind"] == "Model":
            await asyncio.to_thread(self.quicker)
        return await super().create(body, dry_run)
