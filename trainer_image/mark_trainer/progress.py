"""Tells people, and the operator if there is one, how far a stage has come. It must never block, slow or fail the work.

The wire is Kubeflow Trainer's progress protocol, exactly as transformers' own KubeflowCallback speaks it, so the
operator hears our trainer and any other image alike:

    environment   KUBEFLOW_TRAINER_SERVER_URL       HTTPS address that takes the POST; absent: nothing is posted
                  KUBEFLOW_TRAINER_SERVER_CA_CERT   path of the CA certificate (PEM)
                  KUBEFLOW_TRAINER_SERVER_TOKEN     path of the token file; read anew for each post, since it rotates
    request       POST, Authorization: Bearer <token>, Content-Type: application/json
    body          {"trainerStatus": {"lastUpdatedTime": "<ISO 8601, UTC>", "progressPercentage": 0..100,
                   "estimatedRemainingSeconds": <integer>, "metrics": [{"name": "loss", "value": "3.21"}, ...]}}
    answer        200; anything else counts as a failure, which is logged once and otherwise ignored

Every post carries the metrics `step` and `steps`; the stage lora adds epoch, loss, learningRate, gradNorm and
tokensPerSecond, and a stage that keeps checkpoints adds checkpointStep and checkpointAgeSeconds. transformers' callback
names the first two current_step and total_steps, and current_epoch, learning_rate, grad_norm for the others.
"""

import http.client
import json
import logging
import math
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

SERVER_URL = "KUBEFLOW_TRAINER_SERVER_URL"
SERVER_CA = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
SERVER_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_POSTS = 5.0
LONGEST_BACK_OFF_SECONDS = 60.0
POST_TIMEOUT_SECONDS = 5.0
FLUSH_TIMEOUT_SECONDS = 2.0

log = logging.getLogger(__name__)
Number = int | float


@dataclass(frozen=True)
class Server:
    """Where progress goes: address, CA certificate and token file."""

    url: str
    ca_path: str | None
    token_path: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """The server that the Pod's environment names, or None."""
        url = environment.get(SERVER_URL)
        return cls(url, environment.get(SERVER_CA), environment.get(SERVER_TOKEN)) if url else None

    def post(self, status: dict[str, Any], timeout: float) -> None:
        """One POST; raises OSError, HTTPException or ValueError when it does not arrive."""
        headers = {"Content-Type": "application/json"}
        if self.token_path:
            headers["Authorization"] = f"Bearer {Path(self.token_path).read_text(encoding='utf-8').strip()}"
        body = json.dumps({"trainerStatus": status}).encode()
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        trust = ssl.create_default_context(cafile=self.ca_path) if self.url.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=timeout, context=trust) as answer:
            if answer.status != 200:
                raise OSError(f"answer {answer.status} instead of 200")


@dataclass(frozen=True)
class Report:
    """What was reported, and when by the monotonic clock."""

    moment: float
    step: int
    steps: int
    seconds_left: int | None
    measures: Mapping[str, Number]


class Progress:
    """The progress of one stage: a readable line every few seconds, and posts from a thread of its own.

    The thread holds one waiting status; a newer one replaces it. The first and the last are sent at once.
    """

    def __init__(self, stage: str, server: Server | None = None) -> None:
        self.stage = stage
        self._server = server
        self._started: tuple[float, int] | None = None  # time and step of the first report: a resumed run starts late
        self._last_line = -math.inf
        self._checkpoint: tuple[int, float] | None = None  # step, and when it was kept
        self._changed = threading.Condition()
        self._waiting: Report | None = None
        self._urgent = True
        self._closing = False
        self._thread: threading.Thread | None = None

    @classmethod
    def from_environment(cls, stage: str) -> Self:
        return cls(stage, Server.from_environment())

    def report(self, step: int, steps: int, **measures: Number) -> None:
        """Says that `step` of `steps` is done, with the measures of this moment."""
        now = time.monotonic()
        if self._started is None:
            self._started = (now, step)
        last = step >= steps
        seconds_left = self._seconds_left(now, step, steps)
        if last or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._line(step, steps, seconds_left, measures), flush=True)
        if self._server is not None:
            self._hand_over(Report(now, step, steps, seconds_left, measures), urgent=last)

    def kept(self, step: int) -> None:
        """Says that a checkpoint of this step has just been kept; every later post tells of it."""
        self._checkpoint = (step, time.monotonic())

    def _status(self, report: "Report") -> dict[str, Any]:
        """The body for a report, made by the thread that posts: the work itself pays for none that is not posted."""
        kept: dict[str, Number] = {}
        if self._checkpoint is not None:
            step, moment = self._checkpoint
            kept = {"checkpointStep": step, "checkpointAgeSeconds": int(time.monotonic() - moment)}
        moment_told = datetime.now(UTC) - timedelta(seconds=time.monotonic() - report.moment)
        return trainer_status(report.step, report.steps, report.seconds_left, {**report.measures, **kept}, moment_told)

    def close(self) -> None:
        """Sends what still waits, within two seconds, and ends the thread."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(FLUSH_TIMEOUT_SECONDS + 0.5)
        self._thread = None

    def _seconds_left(self, now: float, step: int, steps: int) -> int | None:
        assert self._started is not None
        time_of_first, first_step = self._started
        if step <= first_step:
            return 0 if step >= steps else None
        return math.ceil((now - time_of_first) / (step - first_step) * max(0, steps - step))

    def _line(self, step: int, steps: int, seconds_left: int | None, measures: Mapping[str, Number]) -> str:
        words = [f"{self.stage}: {percent(step, steps):3d} %  step {step}/{steps}"]
        words += [f"{name} {value:.4g}" for name, value in measures.items()]
        if seconds_left:
            words.append(f"about {seconds_left} s left")
        return "  ".join(words)

    def _hand_over(self, report: "Report", *, urgent: bool) -> None:
        with self._changed:
            # A thread that has something to post already looks by the clock.
            wake = urgent or self._waiting is None
            self._waiting = report
            self._urgent = self._urgent or urgent
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._post_forever, name="progress", daemon=True)
                self._thread.start()
            if wake:
                self._changed.notify()

    def _post_forever(self) -> None:
        """The thread: takes the newest status, posts it, waits; after a failure it waits longer."""
        assert self._server is not None
        pause, next_post, warned = SECONDS_BETWEEN_POSTS, -math.inf, False
        while True:
            with self._changed:
                while not self._closing and (
                    self._waiting is None or (not self._urgent and next_post > time.monotonic())
                ):
                    self._changed.wait(max(0.0, next_post - time.monotonic()) if self._waiting else None)
                report, self._waiting, self._urgent = self._waiting, None, False
                closing = self._closing
            if report is not None:
                try:
                    self._server.post(self._status(report), FLUSH_TIMEOUT_SECONDS if closing else POST_TIMEOUT_SECONDS)
                    pause = SECONDS_BETWEEN_POSTS
                except (OSError, http.client.HTTPException, ValueError) as error:
                    pause = min(2 * pause, LONGEST_BACK_OFF_SECONDS)
                    with self._changed:
                        self._waiting = self._waiting or report
                    if not warned:
                        log.warning(
                            "progress: %s did not take it (%s); training goes on without", self._server.url, error
                        )
                        warned = True
                next_post = time.monotonic() + pause
            if closing:
                return


def percent(step: int, steps: int) -> int:
    """Whole percent, rounded down, so that 100 means the end."""
    return 100 if steps <= 0 else max(0, min(100, 100 * step // steps))


def trainer_status(
    step: int, steps: int, seconds_left: int | None, measures: Mapping[str, Number], moment: datetime
) -> dict[str, Any]:
    """The body's `trainerStatus`."""
    numbers = {"step": step, "steps": steps, **measures}
    status: dict[str, Any] = {
        "lastUpdatedTime": moment.isoformat(),
        "progressPercentage": percent(step, steps),
        "metrics": [
            {"name": name, "value": str(value) if isinstance(value, int) else f"{value:.6g}"}
            for name, value in numbers.items()
        ],
    }
    if seconds_left is not None:
        status["estimatedRemainingSeconds"] = seconds_left
    return status
