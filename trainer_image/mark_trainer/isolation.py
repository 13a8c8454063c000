"""Runs a function over many inputs in worker processes, so that an input which crashes, hangs or swallows memory costs
only itself.

It must not know what the function does.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from mark_trainer.cores import usable_cores

# A new process may wait long for a busy machine; that is not the input's fault.
SECONDS_TO_START = 120.0
_READY = "ready"


@dataclass(frozen=True)
class Trouble:
    """What became of an input that its worker did not survive."""

    timed_out: bool


@dataclass(frozen=True)
class _Raised:
    """An exception of the function, which is a mistake in it and not the input's fault."""

    text: str


class _Lane:
    """One worker process and its share of the inputs."""

    def __init__(self, function: Callable[[Any], Any], inputs: Sequence[Any], prepare: Callable[[], None]) -> None:
        self.function, self.inputs, self.prepare = function, inputs, prepare
        self.outcomes: list[Any] = []
        self.connection: Connection | None = None
        self.start()

    def start(self) -> None:
        # A fork server forks from a process that is small and has no threads, whatever the caller has loaded.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mark_trainer.documents"])
        self.connection, other = context.Pipe(duplex=False)
        arguments = (other, self.function, self.inputs[len(self.outcomes) :], self.prepare)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self.heard, self.ready = time.monotonic(), False

    def receive(self) -> None:
        """Take one outcome, or notice that the worker died of the input it was at."""
        assert self.connection is not None
        try:
            outcome = self.connection.recv()
        except EOFError:
            self.give_up(timed_out=False)
            return
        self.heard = time.monotonic()
        if not self.ready:
            self.ready = True
            return
        if isinstance(outcome, _Raised):
            raise RuntimeError(outcome.text)
        self.outcomes.append(outcome)

    def give_up(self, *, timed_out: bool) -> None:
        """Count the input at hand as trouble and go on with the next one in a new process."""
        self.stop()
        self.outcomes.append(Trouble(timed_out))
        if not self.finished:
            self.start()

    def stop(self) -> None:
        if self.connection is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.connection = None

    @property
    def finished(self) -> bool:
        return len(self.outcomes) >= len(self.inputs)


def each_isolated(
    function: Callable[[Any], Any], inputs: Sequence[Any], seconds: float, prepare: Callable[[], None]
) -> Iterator[Any]:
    """The function's value for each input, in order, or Trouble. `seconds` is the limit for one input."""
    count = max(1, min(len(inputs), usable_cores()))
    shares = [share for number in range(count) if (share := inputs[number::count])]
    lanes = [_Lane(function, share, prepare) for share in shares]
    try:
        for number in range(len(inputs)):
            lane, position = lanes[number % count], number // count
            while len(lane.outcomes) <= position:
                _advance(lanes, seconds)
            yield lane.outcomes[position]
            # Read once: a corpus does not pile up in memory.
            lane.outcomes[position] = None
    finally:
        for lane in lanes:
            lane.stop()


def _advance(lanes: list[_Lane], seconds: float) -> None:
    busy = {lane.connection: lane for lane in lanes if not lane.finished and lane.connection is not None}
    ready = wait(list(busy), timeout=min(1.0, seconds))
    for connection in ready:
        busy[connection].receive()  # type: ignore[index]
    for lane in busy.values():
        limit = seconds if lane.ready else SECONDS_TO_START
        if lane.connection is not None and not lane.finished and time.monotonic() - lane.heard > limit:
            lane.give_up(timed_out=True)


def _work(connection: Connection, function: Callable[[Any], Any], inputs: Sequence[Any], prepare: Any) -> None:
    prepare()
    connection.send(_READY)
    for value in inputs:
        try:
            connection.send(function(value))
        except MemoryError:
            # Out of the limit that `prepare` set; ending the process is what the parent takes for trouble.
            return
        except Exception:  # noqa: BLE001 - raised again in the parent
            connection.send(_Raised(traceback.format_exc()))
            return
