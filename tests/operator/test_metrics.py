"""The last points of a run's metrics: what is kept of posts, in which order, and that it stays small."""

import json
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mark_crds.metrics import METRICS_KEY, POINTS_LIMIT, SERIES_LIMIT, Metrics
from mark_operator.metrics import Told, config_map, extended, is_name, read_metrics
from mark_operator.progress import read_checkpoint, read_told
from run_builders import KEY, NOON, UID

NOW = "2026-01-31T12:00:00Z"
LARGEST_BYTES = 900 * 1024


def told(step: int, value: str = "1", *, at: int | None = None, name: str = "loss", stage: str = "lora") -> Told:
    return Told(stage, name, step, step if at is None else at, value)


def points(metrics: Metrics, name: str = "loss", stage: str = "lora") -> list[tuple[int, str]]:
    (found,) = [series for series in metrics.series if (series.stage, series.name) == (stage, name)]
    return [(step, value) for step, _, value in found.points]


def post(**metrics: Any) -> dict[str, Any]:
    return {"trainerStatus": {"metrics": [{"name": name, "value": value} for name, value in metrics.items()]}}


def test_only_the_last_points_of_each_metric_stay() -> None:
    metrics = extended(None, [told(step) for step in range(1, 601)], NOW)
    metrics = extended(metrics, [told(3, name="gradNorm")], NOW)
    assert [step for step, _ in points(metrics)] == list(range(101, 601)) and len(points(metrics)) == POINTS_LIMIT
    assert points(metrics, "gradNorm") == [(3, "1")]


def test_a_stage_that_goes_on_from_a_checkpoint_tells_its_steps_anew() -> None:
    metrics = extended(None, [told(step, "old", at=step) for step in (10, 20, 30)], NOW)
    metrics = extended(metrics, [told(20, "new", at=100)], NOW)
    assert points(metrics) == [(10, "old"), (20, "new")]


def test_a_step_that_is_told_twice_makes_one_point() -> None:
    metrics = extended(None, [told(10, "a", at=1), told(10, "b", at=6)], NOW)
    assert points(metrics) == [(10, "b")]


def test_what_another_replica_heard_goes_where_it_belongs() -> None:
    metrics = extended(None, [told(10), told(30)], NOW)
    assert [step for step, _ in points(extended(metrics, [told(20)], NOW))] == [10, 20, 30]
    at_once = extended(extended(None, [told(8, at=5)], NOW), [told(7, at=5)], NOW)
    assert [step for step, _ in points(at_once)] == [7, 8], "within one second"


def test_series_that_were_told_of_last_push_the_oldest_out() -> None:
    metrics = extended(None, [told(1, name=f"m{number}", at=number) for number in range(SERIES_LIMIT + 5)], NOW)
    assert [series.name for series in metrics.series] == [f"m{number}" for number in range(5, SERIES_LIMIT + 5)]


@pytest.mark.parametrize("name", ["loss\n", "\nloss", "1loss", "lo ss", "löss", "", "x" * 41])
def test_what_is_no_name_is_not_kept(name: str) -> None:
    assert not is_name(name) and is_name("loss") and is_name("eval_rouge-L.f1")


def test_the_worst_trainer_cannot_make_it_large() -> None:
    longest = [f"m{number:02}".ljust(40, "x") for number in range(SERIES_LIMIT)]
    assert all(map(is_name, longest))
    first = 2**53 - 1 - POINTS_LIMIT
    news = [
        Told("preflight", name, first + number, first + number, "-1." + "9" * 21)
        for name in longest
        for number in range(POINTS_LIMIT)
    ]
    body = config_map(KEY, UID, extended(None, news, NOW), None)
    size = len(json.dumps(body).encode())
    assert LARGEST_BYTES / 2 < size < LARGEST_BYTES


@pytest.mark.parametrize("text", ["", "{", "[]", '{"updated": 1}', json.dumps({"updated": NOW, "series": [{}]})])
def test_what_cannot_be_read_begins_anew(text: str) -> None:
    assert read_metrics({"data": {METRICS_KEY: text}}) is None and read_metrics({}) is None


def test_it_is_read_as_it_was_written_and_belongs_to_the_run() -> None:
    metrics = extended(None, [told(1, "nan"), told(2, "2.5e-05", name="learning_rate")], NOW)
    body = config_map(KEY, UID, metrics, "7")
    assert read_metrics(body) == metrics
    assert body["metadata"]["name"] == "contracts-t-metrics" and body["metadata"]["resourceVersion"] == "7"
    assert body["metadata"]["ownerReferences"][0]["uid"] == UID


def test_counters_odd_names_and_words_make_no_curve() -> None:
    odd = {"loss": "2.5", "grad_norm": 1.25, "epoch": "0.5", "steps": 9, "1st": 1, "x" * 41: 1, "a b": 1, "note": "fine"}
    found = read_told(post(step=4, checkpointStep=2, checkpointAgeSeconds=1, **odd), "lora", NOON)
    assert [(item.name, item.value, item.step) for item in found] == [("loss", "2.5", 4), ("grad_norm", "1.25", 4)]
    assert read_told(post(loss=1), "lora", NOON) == (), "no step, no point"
    assert len(read_told(post(step=1, **{f"m{number}": 1 for number in range(500)}), "lora", NOON)) == SERIES_LIMIT


def test_a_checkpoint_is_as_old_as_the_trainer_says_by_our_clock() -> None:
    kept = read_checkpoint(post(checkpointStep="120", checkpointAgeSeconds="90"), "lora", NOON)
    assert kept is not None and (kept.stage, kept.step, kept.time) == ("lora", 120, "2026-01-31T11:58:30Z")
    for senseless in ({"checkpointStep": 1}, {"checkpointStep": 1, "checkpointAgeSeconds": 1e15}):
        assert read_checkpoint(post(**senseless), "lora", NOON) is None


values = st.none() | st.floats() | st.integers() | st.text(max_size=8)
names_told = st.sampled_from(["step", "loss", "checkpointStep", "checkpointAgeSeconds", "x"])


@given(st.lists(st.dictionaries(names_told, values, max_size=5), max_size=4))
def test_no_post_breaks_what_is_stored(bodies: list[dict[str, Any]]) -> None:
    metrics = None
    for number, body in enumerate(bodies):
        moment = NOON + timedelta(seconds=number)
        metrics = extended(metrics, read_told(post(**body), "lora", moment), NOW)
        kept = read_checkpoint(post(**body), "lora", moment)
        assert kept is None or 0 <= kept.step < math.inf
    if metrics is not None:
        assert read_metrics(config_map(KEY, UID, metrics, None)) == metrics
