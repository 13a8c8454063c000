"""A command in a Pod with its standard streams, over the API server's WebSocket. Bytes in, bytes out.

It reads frame by frame: the client library's own reader collects a whole answer in memory. It must not know what the
bytes mean.
"""

import select
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import yaml
from kubernetes.stream import ws_client
from websocket import ABNF, WebSocketException

from mark_operator.cli.errors import ClusterError
from mark_operator.cli.session import Session, path

_STDIN, _STDOUT, _STDERR, _ERROR, _CLOSE = 0, 1, 2, 3, 255
_CLEAN_UP_SECONDS = 5
_BROKEN = "the connection to the Pod broke"
_AGAIN = "nothing was kept; run the command again"


class ExecStream:
    """A running command. Use it as a context manager."""

    def __init__(self, session: Session, pod: str, command: list[str], *, seconds: float) -> None:
        query = [*(("command", word) for word in command), *((name, "true") for name in ("stdin", "stdout", "stderr"))]
        url = f"{session.client.configuration.host}{path('pods', session.namespace, pod)}/exec?{urlencode(query)}"
        header = session.authorization_header()
        library: Any = ws_client  # without annotations
        try:
            self._socket: Any = library.create_websocket(
                session.client.configuration,
                library.get_websocket_url(url),
                {"authorization": header} if header else None,
            )
        except (OSError, WebSocketException) as error:
            raise ClusterError(
                f"no command can be started in the Pod {pod}: {error}",
                "the right `create pods/exec` is needed in the namespace",
            ) from error
        self._socket.settimeout(seconds)
        self._stdout: deque[bytes] = deque()
        self._stderr = bytearray()
        self._status = bytearray()
        self._open = True

    def __enter__(self) -> "ExecStream":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._let_it_clean_up()
        self._socket.close()

    def write(self, data: bytes) -> None:
        """Send bytes to the command's standard input; raises when the command has ended."""
        try:
            self._socket.send(bytes([_STDIN]) + data, opcode=ABNF.OPCODE_BINARY)
        except (OSError, WebSocketException) as error:
            raise ClusterError(f"{_BROKEN}: {error}", _AGAIN) from error

    def close_input(self) -> None:
        """Say that nothing more comes, where the server knows how to hear it."""
        if self._socket.subprotocol == "v5.channel.k8s.io":
            self._socket.send(bytes([_CLOSE, _STDIN]), opcode=ABNF.OPCODE_BINARY)

    def read(self) -> Iterator[bytes]:
        """The command's standard output until it ends."""
        while True:
            while self._stdout:
                yield self._stdout.popleft()
            if not self._open:
                return
            self._receive()

    def answer(self) -> str:
        """Wait for the command's answer: the first whole line on standard error that is a JSON object.

        The end of the command is not waited for: while it has input left unread, the server may not tell.
        """
        while not (found := self._answer_line()):
            if not self._open:
                raise self._no_answer()
            self._receive()
        return found

    @property
    def has_answered(self) -> bool:
        """Whether the command has answered, or ended, as far as is known without waiting."""
        while self._open and self._frame_is_there():
            self._receive()
        return not self._open or bool(self._answer_line())

    def _receive(self) -> None:
        try:
            opcode, frame = self._socket.recv_data_frame(True)
        except (OSError, ssl.SSLError, WebSocketException) as error:
            raise ClusterError(f"{_BROKEN}: {error}", _AGAIN) from error
        if opcode == ABNF.OPCODE_CLOSE:
            self._open = False
        elif opcode in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) and frame.data:
            self._sort(frame.data[0], frame.data[1:])

    def _sort(self, channel: int, data: bytes) -> None:
        if channel == _STDOUT and data:
            self._stdout.append(data)
        elif channel == _STDERR:
            self._stderr += data
        elif channel == _ERROR:
            self._status += data

    def _let_it_clean_up(self) -> None:
        """After an interrupt: the command sees the end of its input and gets a moment to remove what it began."""
        self._socket.settimeout(_CLEAN_UP_SECONDS)
        # Whatever happens now, another error is on its way to the person already.
        with suppress(ClusterError, OSError, WebSocketException):
            self.close_input()
            self.answer()

    def _frame_is_there(self) -> bool:
        socket = self._socket.sock
        # TLS decrypts whole records: what it holds already, the socket does not announce.
        if isinstance(socket, ssl.SSLSocket) and socket.pending():
            return True
        return bool(select.select([socket], [], [], 0)[0])

    def _answer_line(self) -> str:
        lines = self._stderr.decode(errors="replace").split("\n")
        return next((line for line in lines[:-1] if line.startswith("{")), "")

    def _no_answer(self) -> ClusterError:
        said = self._stderr.decode(errors="replace").strip().rpartition("\n")[2]
        status = yaml.safe_load(bytes(self._status).decode()) if self._status else None
        if status is None:
            return ClusterError(f"{_BROKEN} before the command ended", _AGAIN)
        reason = said or status.get("message", "it said nothing")
        return ClusterError(
            f"the copy Pod could not run its program: {reason}",
            "its image needs python3; name another one with --image",
        )
