"""From a post in Kubeflow Trainer's progress protocol to a run's progress. Pure."""

import math
from typing import Any

from mark_crds.run import Progress

TEXT_LIMIT = 24
# What transformers' own callback calls a number, beside what our trainer calls it.
SPELLINGS = {
    "step": ("step", "current_step"),
    "steps": ("steps", "total_steps"),
    "epoch": ("epoch", "current_epoch"),
    "loss": ("loss",),
    "tokens_per_second": ("tokensPerSecond", "tokens_per_second"),
}


class MalformedPostError(Exception):
    """The post is not what the protocol says."""


def read_post(post: Any, stage: str, now: str) -> Progress:
    """The progress that a post tells; our own clock dates it, because a node's may be wrong."""
    status = post.get("trainerStatus") if isinstance(post, dict) else None
    if not isinstance(status, dict):
        raise MalformedPostError("the body must be {trainerStatus: {...}}")
    metrics = _metrics(status.get("metrics", []))
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


def _metrics(items: Any) -> dict[str, Any]:
    if not isinstance(items, list):
        raise MalformedPostError("trainerStatus.metrics must be a list of {name, value}")
    return {str(item.get("name")): item.get("value") for item in items if isinstance(item, dict)}


def _pick(metrics: dict[str, Any], field: str) -> Any:
    return next((metrics[name] for name in SPELLINGS[field] if name in metrics), None)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) and 0 <= number < 2**53 else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str | None:
    """The number as it was written, `nan` too: a person wants to see that. Anything else is left out."""
    return str(value)[:TEXT_LIMIT] if _number(value) is not None else None


def _percent(value: Any, step: int | None, steps: int | None) -> int:
    number = _whole(value)
    if number is None and step is not None and steps:
        number = step * 100 // steps
    return min(100, number or 0)
