"""One stage as a child process: the arguments of its rendered Job, with the Pod's paths mapped to folders here.

Ctrl-C becomes SIGTERM, as from a kubelet: the trainer keeps a checkpoint and ends. It must not know what a stage does.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mark_crds import names
from mark_crds.job_input import JobInput, canonical_json
from mark_crds.job_output import Result
from pydantic import ValidationError

from mark_operator.cli.errors import RefusedError
from mark_operator.cli.session import Json
from mark_operator.run.objects import bind

OUTPUT_FOLDER = "output"
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Place:
    """Where a run of this machine lives."""

    workspace: Path
    uid: str

    @property
    def folder(self) -> Path:
        return self.workspace / names.RUNS_FOLDER / self.uid

    def output(self, stage: str, attempt: int, suffix: str) -> Path:
        """What an attempt printed (`.log`), and the Result that it left (`.json`)."""
        return self.folder / OUTPUT_FOLDER / f"{stage}-{attempt}{suffix}"


@dataclass(frozen=True)
class Ended:
    """How a stage's process ended."""

    code: int
    result: Result | None
    log: Path
    late: bool = False
    """Whether it was stopped because the Job's activeDeadlineSeconds were over."""


class Stop:
    """Counts the requests to end: the first is passed on as SIGTERM, the second kills."""

    def __init__(self) -> None:
        self.requests = 0

    def ask(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        self.requests += 1


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A Stop that SIGINT and SIGTERM ask, while the block runs."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_one(place: Place) -> Iterator[IO[Any]]:
    """Hold the run: two trainers of one run would take each other's locks. The child inherits the hold, so that it
    lasts while the trainer lives, even if this command is killed."""
    place.folder.mkdir(parents=True, exist_ok=True)
    with (place.folder / "held").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RefusedError(
                f"this run is running already, as process {file.read().strip() or 'of another command'}",
                f"wait for it, or end it with Ctrl-C where it runs; it writes to {place.folder / OUTPUT_FOLDER}",
            ) from error
        yield file


def run_stage(
    job: Json, job_input: JobInput, place: Place, *, hold: IO[Any], stop: Stop, hear: Callable[[str], None]
) -> Ended:
    """Run one stage to its end. `hear` gets each line that the trainer prints."""
    stage = job["metadata"]["labels"][names.STAGE_LABEL]
    attempt = _next_attempt(place, stage)
    bound = bind(job, kind=job_input.kind, uid=place.uid, attempt=attempt)
    log, message = place.output(stage, attempt, ".log"), place.output(stage, attempt, ".json")
    log.parent.mkdir(exist_ok=True)
    pod = bound["spec"]["template"]["spec"]
    command = [*_command(pod["containers"][0]["args"], stage, job_input, place), "--termination-message", str(message)]
    with log.open("wb") as output:
        # A session of its own: the terminal's Ctrl-C reaches this command alone, which passes on what a Pod would get.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=[hold.fileno()], env=_environment(),
        )  # fmt: skip
    _note(hold, str(child.pid))
    grace = float(pod["terminationGracePeriodSeconds"])
    late = _follow(child, log, stop=stop, hear=hear, seconds=_seconds_of(bound), grace=grace)
    return Ended(child.returncode, _read_result(message), log, late)


def _seconds_of(job: Json) -> float:
    return float(job["spec"]["activeDeadlineSeconds"])


def _environment() -> dict[str, str]:
    """This machine's own, without a progress server: the trainer's lines tell all."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KUBEFLOW_TRAINER_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _command(arguments: list[str], stage: str, job_input: JobInput, place: Place) -> list[str]:
    """The Job's command with the Pod's mounts replaced by folders of this machine."""
    folder = place.folder / OUTPUT_FOLDER
    file = folder / f"{stage}-{names.JOB_INPUT_KEY}"
    file.write_text(canonical_json(job_input.to_dict()), encoding="utf-8")
    mapped = {names.WORKSPACE_MOUNT: str(place.workspace), f"{names.INPUT_MOUNT}/{names.JOB_INPUT_KEY}": str(file)}
    return [sys.executable, "-m", "mark_trainer", *(mapped.get(word, word) for word in arguments)]


def _next_attempt(place: Place, stage: str) -> int:
    earlier = place.folder.glob(f"{OUTPUT_FOLDER}/{stage}-*.log")
    return 1 + max((int(path.stem.rpartition("-")[2]) for path in earlier), default=0)


def _follow(
    child: subprocess.Popen[bytes],
    log: Path,
    *,
    stop: Stop,
    hear: Callable[[str], None],
    seconds: float,
    grace: float,
) -> bool:
    """Until the child's end: hand on its lines, and end it when asked or when its time is over; whether it was."""
    ends, killed_at = time.monotonic() + seconds, None
    passed_on = 0
    late = False
    with log.open(encoding="utf-8", errors="replace") as lines:
        rest = ""
        while True:
            running = child.poll() is None
            *whole, rest = (rest + lines.read()).split("\n")
            for line in whole:
                hear(line)
            if not running:
                break
            now = time.monotonic()
            if now > ends and not passed_on:
                late = True
                stop.ask()
            if stop.requests and not passed_on:
                passed_on, killed_at = 1, now + grace
                hear("asked to end: it keeps what it has done; Ctrl-C again ends it at once")
                child.send_signal(signal.SIGTERM)
            if stop.requests > 1 or (killed_at is not None and now > killed_at):
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
        if rest:
            hear(rest)
    return late


def _note(hold: IO[Any], text: str) -> None:
    hold.seek(0)
    hold.truncate()
    hold.write(text)
    hold.flush()


def _read_result(path: Path) -> Result | None:
    """What the stage left; None when it was killed before it could."""
    try:
        return Result.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, ValidationError):
        return None
