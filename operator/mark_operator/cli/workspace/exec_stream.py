"""A command in a Pod with its standard streams, over the API server's WebSocket. Bytes in, bytes out.

It reads frame by frame: the client library's own reader collects a whole answer in memory. It must not know what the
bytes mean.
"""

import ssl
from collections import deque
from collections.abc import Iterator
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
            self._drain_after_failure()
            raise ClusterError(f"{_BROKEN}: {error}", self.stderr.strip()) from error

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

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        for _ in self.read():
            continue
        return self._exit_code()

    @property
    def stderr(self) -> str:
        """What the command has written to standard error so far."""
        return self._stderr.decode(errors="replace")

    def _receive(self) -> None:
        try:
            opcode, frame = self._socket.recv_data_frame(True)
        except (OSError, ssl.SSLError, WebSocketException) as error:
            raise ClusterError(f"{_BROKEN}: {error}", "run the command again") from error
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
        try:
            self._socket.settimeout(_CLEAN_UP_SECONDS)
            self.close_input()
        except (OSError, WebSocketException):
            return
        self._drain_after_failure()

    def _drain_after_failure(self) -> None:
        """Take what the command said before its end."""
        try:
            for _ in self.read():
                continue
        except ClusterError:
            self._open = False

    def _exit_code(self) -> int:
        status = yaml.safe_load(bytes(self._status).decode()) if self._status else None
        if status is None:
            raise ClusterError(f"{_BROKEN} before the command ended", "run the command again")
        if status["status"] == "Success":
            return 0
        causes = status.get("details", {}).get("causes", [])
        codes = [cause["message"] for cause in causes if cause.get("reason") == "ExitCode"]
        if not codes:
            raise ClusterError(f"the command in the Pod could not be run: {status.get('message')}")
        return int(codes[0])
