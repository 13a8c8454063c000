"""A way to the API server on loopback that counts bytes and changes nothing: what passes is encrypted."""

import asyncio
from contextlib import suppress


class CountedRelay:
    """Passes connections on; `sent` and `received` as the client sees them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self.port = 0
        self.sent = 0
        self.received = 0

    async def __aenter__(self) -> "CountedRelay":
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        with suppress(ConnectionError, asyncio.CancelledError):  # either side may go first
            await asyncio.gather(self._pump(reader, their_writer, "sent"), self._pump(their_reader, writer, "received"))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while data := await reader.read(65536):
            setattr(self, way, getattr(self, way) + len(data))
            writer.write(data)
            await writer.drain()
        writer.close()
