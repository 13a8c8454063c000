"""Runs functions over many inputs in worker processes, so that an input which crashes, hangs or swallows memory costs
only itself.

It must not know what the functions do.
"""

import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from mark_trainer.cores import usable_bytes, usable_cores

# A new process may wait long for a busy machine; that is not the input's fault.
SECONDS_TO_START = 120.0
# What the caller itself needs beside its workers.
OWN_BYTES = 2 * 1024**3
_READY = "ready"


@dataclass(frozen=True)
class Step:
    """Something to do with every input, and the seconds that one input may take."""

    function: Callable[[Any], Any]
    seconds: float


@dataclass(frozen=True)
class Trouble:
    """What became of a step with an input that its worker did not survive."""

    timed_out: bool


@dataclass(frozen=True)
class _Raised:
    """An exception of the function, which is a mistake in it and not the input's fault."""

    text: str


_Task = tuple[Step, Any]


class _Lane:
    """One worker process and its share of the work."""

    def __init__(self, tasks: Sequence[_Task], memory_bytes: int) -> None:
        self.tasks, self.memory_bytes = tasks, memory_bytes
        self.outcomes: list[Any] = []
        self.connection: Connection | None = None
        self.start()

    def start(self) -> None:
        # A fork server forks from a process that is small and has no threads, whatever the caller has loaded.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mark_trainer.documents"])
        self.connection, other = context.Pipe(duplex=False)
        arguments = (other, self.tasks[len(self.outcomes) :], self.memory_bytes)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self.heard, self.ready = time.monotonic(), False

    def receive(self) -> None:
        """Take one outcome, or notice that the worker died of the task it was at."""
        assert self.connection is not None
        try:
            outcome = self.connection.recv()
        except (EOFError, OSError):  # it ended between two messages, or in the middle of one
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
        """Count the task at hand as trouble and go on with the next one in a new process."""
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
        return len(self.outcomes) >= len(self.tasks)

    @property
    def is_late(self) -> bool:
        """Whether the task at hand, or the start of the process, takes longer than it may."""
        if self.finished:
            return False
        step, _ = self.tasks[len(self.outcomes)]
        return time.monotonic() - self.heard > (step.seconds if self.ready else SECONDS_TO_START)


def each_isolated(steps: Sequence[Step], inputs: Sequence[Any], memory_bytes: int) -> Iterator[tuple[Any, ...]]:
    """For each input, in order, the value of each step, or Trouble.

    The steps with one input follow one another in one process, and trouble in one of them costs no other. A process may
    have `memory_bytes`, and there are as many as cores and memory allow.
    """
    count = min(most_workers(memory_bytes), len(inputs))
    lanes = [
        _Lane([(step, value) for value in inputs[number::count] for step in steps], memory_bytes)
        for number in range(count)
    ]
    try:
        for number in range(len(inputs)):
            lane, position = lanes[number % count], number // count * len(steps)
            while len(lane.outcomes) < position + len(steps):
                _advance(lanes)
            yield tuple(lane.outcomes[position : position + len(steps)])
            # Read once: a corpus does not pile up in memory.
            lane.outcomes[position : position + len(steps)] = [None] * len(steps)
    finally:
        for lane in lanes:
            lane.stop()


def most_workers(memory_bytes: int) -> int:
    """How many processes of this size fit beside the caller: a few that take all they may must not fell the Pod."""
    return max(1, min(usable_cores(), (usable_bytes() - OWN_BYTES) // memory_bytes))


def _advance(lanes: list[_Lane]) -> None:
    busy = {lane.connection: lane for lane in lanes if not lane.finished and lane.connection is not None}
    for connection in wait(list(busy), timeout=0.5):
        busy[connection].receive()  # type: ignore[index]
    for lane in busy.values():
        if lane.is_late:
            lane.give_up(timed_out=True)


def _work(connection: Connection, tasks: Sequence[_Task], memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    connection.send(_READY)
    for step, value in tasks:
        try:
            connection.send(step.function(value))
        except MemoryError:
            # Ending the process is what the parent takes for trouble.
            return
        except Exception:  # noqa: BLE001 - raised again in the parent
            connection.send(_Raised(traceback.format_exc()))
            return
