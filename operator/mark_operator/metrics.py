"""From posts to a run's last metric points, and how they lie in their ConfigMap. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mark_crds import names
from mark_crds.metrics import METRICS_KEY, NAME_PATTERN, POINTS_LIMIT, SERIES_LIMIT, Metrics, Point, Series
from pydantic import ValidationError

from mark_operator.run.objects import owned
from mark_operator.seen import Body, RunKey

NAME = re.compile(NAME_PATTERN)
LONGEST_NAME = 40


@dataclass(frozen=True)
class Told:
    """One number that one post told."""

    stage: str
    name: str
    step: int
    at: int
    """Unix time in seconds, by the operator's clock."""
    value: str


def is_name(text: str) -> bool:
    """Whether a metric of this name is kept."""
    return len(text) <= LONGEST_NAME and NAME.fullmatch(text) is not None


def extended(old: Metrics | None, news: Iterable[Told], now: str) -> Metrics:
    """The series with the news in them. Only the last points of each stay, and only the series told of last."""
    series = {(item.stage, item.name): item.points for item in (old.series if old else ())}
    for key, points in _by_series(news).items():
        series[key] = _in_order((*series.pop(key, ()), *points))
    kept = list(series.items())[-SERIES_LIMIT:]
    found = (Series(stage=stage, name=name, points=points) for (stage, name), points in kept)
    return Metrics(updated=now, series=tuple(found))


def _by_series(news: Iterable[Told]) -> dict[tuple[str, str], list[Point]]:
    """The news of each series; the one that was told of last comes last."""
    found: dict[tuple[str, str], list[Point]] = {}
    # Two replicas hear parts of one story, so a point may come late: time tells where it belongs.
    for told in sorted(news, key=lambda item: item.at):
        points = found.pop((told.stage, told.name), [])
        points.append((told.step, told.at, told.value))
        found[told.stage, told.name] = points
    return found


def _in_order(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The points by time. One whose step is not beyond the former one's replaces what it repeats: a stage that goes on
    from a checkpoint tells the steps after that anew."""
    told: list[Point] = []
    for point in sorted(points, key=lambda item: (item[1], item[0])):
        while told and told[-1][0] >= point[0]:
            told.pop()
        told.append(point)
    return tuple(told[-POINTS_LIMIT:])


def read_metrics(config_map: Body) -> Metrics | None:
    """The metrics in a ConfigMap; None when it holds none that can be read, so that they begin anew."""
    try:
        return Metrics.model_validate_json(config_map.get("data", {}).get(METRICS_KEY, ""))
    except ValidationError:
        return None


def config_map(key: RunKey, run_uid: str, metrics: Metrics, version: str | None) -> Body:
    """The run's metrics as an object that the run owns; with a resourceVersion, only on top of exactly that one."""
    metadata = {
        "name": names.metrics_name(key.kind, key.name),
        "namespace": key.namespace,
        "labels": {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name},
        **({"resourceVersion": version} if version else {}),
    }
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {METRICS_KEY: metrics.model_dump_json(by_alias=True)},
    }
    return owned(body, kind=key.kind, run=key.name, uid=run_uid)
