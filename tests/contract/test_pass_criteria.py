"""Every number that a pass criterion may name is one that the trainer measures, under the name that the operator reads."""

from typing import Any, get_args

import pytest
from mark_crds.job_output import Measure
from mark_crds.shared import CriterionName
from mark_operator.registry.decide import passed
from mark_trainer import metrics, report

QUESTIONS = (("bear the cost of it", True), ("pay no fee at all", True), ("The document does not say.", False))


def line(model: str, condition: str, number: int) -> dict[str, Any]:
    """A line of the predictions: the tuned model is right, its base says nothing of use."""
    reference, answerable = QUESTIONS[number]
    said = reference if model == "tuned" else "something else"
    abstained = model == "tuned" and not answerable
    passage = {"chunkId": "c", "document": "d", "span": [0, 50], "shownCharacters": 50, "oracle": answerable}
    return {
        "item": str(number),
        "model": model,
        "condition": condition,
        "answerable": answerable,
        "reference": reference,
        "prediction": said,
        "abstained": abstained,
        "scores": metrics.scores(said, reference, answerable=answerable, abstained=abstained),
        "nats": 2.0,
        "answerTokens": 4,
        "passages": [passage] if condition == "retrieved" else [],
        "passagesCut": False,
        "citations": [{"state": "verified" if model == "tuned" else "unverified"}],
        "document": {"digest": "d", "cluster": str(number)},
        "span": [10, 20] if answerable else None,
        "chunkId": "c",
        "outcome": "right" if model == "tuned" else "invented",
    }


@pytest.fixture
def measures() -> tuple[Measure, ...]:
    lines = [
        line(model, condition, number)
        for model in ("base", "tuned")
        for condition in ("closedBook", "retrieved")
        for number in range(len(QUESTIONS))
    ]
    document = report.summarise(lines, ("exactMatch", "f1", "rougeL", "bleu")) | {"heldOutText": None}
    return tuple(Measure(name=name, value=f"{value:.6g}") for name, value in report.headline(document).items())


def criterion(metric: str, condition: str, minimum: str) -> dict[str, str]:
    return {"metric": metric, "condition": condition, "minimum": minimum}


@pytest.mark.parametrize("metric", get_args(CriterionName))
@pytest.mark.parametrize("condition", ["closedBook", "retrieved"])
def test_each_criterion_is_measured_and_can_be_missed(
    metric: str, condition: str, measures: tuple[Measure, ...]
) -> None:
    if (metric, condition) == ("retrievalRecall", "closedBook"):
        assert passed([criterion(metric, condition, "0")], measures) is False  # refused when it is applied, too
        return
    assert passed([criterion(metric, condition, "1")], measures) is True
    assert passed([criterion(metric, condition, "1.01")], measures) is False


def test_all_criteria_together_decide_and_what_is_not_measured_is_not_reached(measures: tuple[Measure, ...]) -> None:
    good, bad = criterion("f1", "retrieved", "0.9"), criterion("citationSupport", "retrieved", "1.5")
    assert passed([], measures) is None
    assert passed([good], measures) is True
    assert passed([good, bad], measures) is False
    without = tuple(measure for measure in measures if "abstention" not in measure.name)
    assert passed([criterion("abstentionRecall", "retrieved", "0")], without) is False
