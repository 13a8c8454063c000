"""The trainer's progress lines, such as `lora:  42 %  step 42/100  loss 2.1`, and how they are shown.

On a terminal each stage is a bar; elsewhere the lines go on as they are. It must not start or read the trainer.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mark_operator.cli.options import console

_LINE = re.compile(r"(?P<stage>\w+): +\d+ %  step (?P<step>\d+)/(?P<steps>\d+)(?:  (?P<rest>.*))?")


@dataclass(frozen=True)
class Told:
    """How far a stage is, as its line tells."""

    stage: str
    step: int
    steps: int
    rest: str
    """The measures and the time left, as the trainer words them."""


def read_line(line: str) -> Told | None:
    """The progress of a line, or None when it is about something else."""
    found = _LINE.fullmatch(line)
    return found and Told(found["stage"], int(found["step"]), int(found["steps"]), found["rest"] or "")


class Lines:
    """Passes lines on, for a log or a pipe."""

    def start(self, stage: str) -> None:
        """Say nothing; the stage's first line will."""

    def line(self, line: str) -> None:
        click.echo(line)

    def end(self) -> None:
        """Nothing to close."""


class Bars:
    """One bar a stage; what the trainer says besides stands above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", visible=False, total=None, rest="")

    def start(self, stage: str) -> None:
        self._task = self._progress.add_task(stage, total=None, rest="")

    def line(self, line: str) -> None:
        told = read_line(line)
        if told is None:
            self._progress.console.print(line)
        else:
            self._progress.update(self._task, completed=told.step, total=max(1, told.steps), rest=told.rest)

    def end(self) -> None:
        self._progress.update(self._task, rest="")
        self._progress.stop_task(self._task)


@contextmanager
def shown() -> Iterator[Bars | Lines]:
    """Where the lines of a run's stages go."""
    target = console()
    if not target.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description:9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[rest]}"),
    )  # fmt: skip
    with Progress(*columns, console=target) as progress:
        yield Bars(progress)
