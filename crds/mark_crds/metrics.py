"""The last points of a run's metrics, as they stand in its ConfigMap `<run>-t-metrics`. It must stay far below the 1 MiB that an object may have."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mark_crds.model import Model
from mark_crds.run import Number
from mark_crds.shared import Time, Word

METRICS_KEY = "metrics.json"
# 500 points of at most 57 bytes in each of 24 series: at most 684 KB.
POINTS_LIMIT = 500
SERIES_LIMIT = 24
LARGEST_NUMBER = 2**53
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_.-]*$"

Whole = Annotated[int, Field(ge=0, lt=LARGEST_NUMBER)]
Point = tuple[Whole, Whole, Number]


class Series(Model):
    """One metric of one stage."""

    stage: Word
    """The stage that told it."""
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=40)]
    """What the trainer calls it, such as `loss`, `learningRate` or `tokensPerSecond`."""
    points: Annotated[tuple[Point, ...], Field(max_length=POINTS_LIMIT)] = ()
    """Step, Unix time in seconds, value; the oldest first."""


class Metrics(Model):
    """All series of one run."""

    format_version: Literal[1] = 1
    """Version of this file."""
    updated: Time
    """When it was last written."""
    series: Annotated[tuple[Series, ...], Field(max_length=SERIES_LIMIT)] = ()
    """The metrics; that which was told of last stands last."""
