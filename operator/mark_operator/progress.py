"""From a post in Kubeflow Trainer's progress protocol to a run's progress, checkpoint and metrics. Pure."""

import itertools
import math
import re
from datetime import datetime, timedelta
from typing import Any

from mark_crds.metrics import SERIES_LIMIT
from mark_crds.run import LastCheckpoint, Progress

from mark_operator import clock
from mark_operator.metrics import Told, is_name

TEXT_LIMIT = 24
# What float() takes besides (spaces, line ends, underscores, digits of other scripts) is no number to anybody else.
NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
# What transformers' own callback calls a number, beside what our trainer calls it.
SPELLINGS = {
    "step": ("step", "current_step"),
    "steps": ("steps", "total_steps"),
    "epoch": ("epoch", "current_epoch"),
    "loss": ("loss",),
    "tokens_per_second": ("tokensPerSecond", "tokens_per_second"),
    "checkpoint_step": ("checkpointStep",),
    "checkpoint_age": ("checkpointAgeSeconds",),
}
# They say where a stage stands; a curve of them tells nothing.
COUNTERS = frozenset(
    name for field in ("step", "steps", "epoch", "checkpoint_step", "checkpoint_age") for name in SPELLINGS[field]
)
LONGEST_AGE_SECONDS = 10 * 365 * 86400


class MalformedPostError(Exception):
    """The post is not what the protocol says."""


def read_post(post: Any, stage: str, now: str) -> Progress:
    """The progress that a post tells; our own clock dates it, because a node's may be wrong."""
    status = _status(post)
    metrics = _metrics(status)
    step, steps = _whole(_pick(metrics, "step")), _whole(_pick(metrics, "steps"))
    return Progress(
        stage=stage,
        percent=_percent(status.get("progressPercentage"), step, steps),
        step=step,
        steps=steps,
        epoch=_text(_pick(metrics, "epoch")),
        loss=_text(_pick(metrics, "loss")),
        tokens_per_second=_text(_pick(metrics, "tokens_per_second")),
        eta_seconds=_whole(status.get("estimatedRemainingSeconds")),
        updated=now,
    )


def read_checkpoint(post: Any, stage: str, now: datetime) -> LastCheckpoint | None:
    """The newest checkpoint that a post tells of. The trainer says how old it is, so that its clock does not matter."""
    metrics = _metrics(_status(post))
    step, age = _whole(_pick(metrics, "checkpoint_step")), _whole(_pick(metrics, "checkpoint_age"))
    if step is None or age is None or age > LONGEST_AGE_SECONDS:
        return None
    return LastCheckpoint(stage=stage, step=step, time=clock.text_of(now - timedelta(seconds=age)))


def read_told(post: Any, stage: str, now: datetime) -> tuple[Told, ...]:
    """The numbers of a post that make curves. Without a step there is nothing to draw them over."""
    metrics = _metrics(_status(post))
    step, at = _whole(_pick(metrics, "step")), int(now.timestamp())
    if step is None:
        return ()
    numbers = ((name, _text(value)) for name, value in metrics.items() if name not in COUNTERS and is_name(name))
    told = (Told(stage, name, step, at, value) for name, value in numbers if value is not None)
    return tuple(itertools.islice(told, SERIES_LIMIT))


def _status(post: Any) -> dict[str, Any]:
    status = post.get("trainerStatus") if isinstance(post, dict) else None
    if not isinstance(status, dict):
        raise MalformedPostError("the body must be {trainerStatus: {...}}")
    return status


def _metrics(status: dict[str, Any]) -> dict[str, Any]:
    items = status.get("metrics", [])
    if not isinstance(items, list):
        raise MalformedPostError("trainerStatus.metrics must be a list of {name, value}")
    return {str(item.get("name")): item.get("value") for item in items if isinstance(item, dict)}


def _pick(metrics: dict[str, Any], field: str) -> Any:
    return next((metrics[name] for name in SPELLINGS[field] if name in metrics), None)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) and 0 <= number < 2**53 else None


def _number(value: Any) -> float | None:
    """A number, or a text that is one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and NUMBER.fullmatch(value) is None:
        return None
    try:
        return float(value)
    except OverflowError as error:
        raise MalformedPostError("a number is too large") from error


def _text(value: Any) -> str | None:
    """The number as it was written, `nan` too: a person wants to see that. One that is too long is written anew, since
    what is left of it after a cut may be another number. Anything else is left out."""
    number = _number(value)
    if number is None:
        return None
    return str(value) if len(str(value)) <= TEXT_LIMIT else str(number)


def _percent(value: Any, step: int | None, steps: int | None) -> int:
    number = _whole(value)
    if number is None and step is not None and steps:
        number = step * 100 // steps
    return min(100, number or 0)
