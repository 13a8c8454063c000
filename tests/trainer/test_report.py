"""The report's numbers over answers of every kind, computed twice; and what becomes of one answer."""

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
import recomputed
import tiny_training
from mark_trainer import evaluate, report, verdicts
from mark_trainer.answers import Answer
from mark_trainer.base_model import load_tokenizer
from mark_trainer.citations import Source
from mark_trainer.dataset import Row
from mark_trainer.prompts import REFUSAL, PromptBuilder

Record = dict[str, Any]
METRICS = ("exactMatch", "f1", "rougeL", "bleu")
DOCUMENTS = range(100, 107)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    folder = tmp_path_factory.mktemp("base")
    tiny_training.write_base(folder)
    return PromptBuilder(load_tokenizer(folder), 75)  # so that some prompts have no room for all passages


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """With unequal documents, and one whose passages retrieval missed."""
    found = tiny_training.rows(DOCUMENTS, "validation") + tiny_training.unanswerable_rows(DOCUMENTS, "validation")
    for row in found:
        row["oraclePassage"] = next((passage for passage in row["contexts"] if passage["oracle"]), None)
        if row["document"]["title"] == "Contract 101" and row["span"]:
            row["contexts"] = [passage | {"oracle": False} for passage in found[0]["contexts"]]
    return [Row.model_validate(row) for row in found if not (row["id"].endswith("-2") and row["id"] < "104")]


def said_by(random_of: random.Random, row: Row) -> str:
    """What some model might say."""
    clause = random_of.choice(row.contexts or ()).text
    shape = random_of.choice((str, str.upper, lambda text: text.replace(" ", "  ")))
    return str(
        random_of.choice(
            (
                shape(row.answer),
                shape(" ".join(row.answer.split()[:-2])),
                shape(" ".join(clause.split()[2:-3])),
                "pay a fine of ten coins on Sunday",
                f'it says "{" ".join(clause.split()[1:6])}" and "what nobody wrote down"',
                REFUSAL,
                REFUSAL.upper().strip("."),
                "",
                "the",
            )
        )
    )


@pytest.fixture(scope="module")
def records(rows: list[Row], builder: PromptBuilder) -> list[Record]:
    """Predictions of two models that say anything."""
    random_of = random.Random(11)
    texts = {number: "\n".join(tiny_training.contract(number)) for number in DOCUMENTS}
    documents = {f"{number:064x}": Source(text, f"{number:064x}") for number, text in texts.items() if number != 103}
    found = []
    for model in ("base", "tuned"):
        for condition in ("closedBook", "retrieved", "oracle"):
            for item in evaluate.ask(rows, builder, condition):
                sources = evaluate.sources_of(item, documents)
                nats = (random_of.uniform(1, 9), len(item.row.answer.split()))
                written = Answer(said_by(random_of, item.row), stopped=True)
                found.append(evaluate.record_of(model, item, written, nats, sources))
    return [json.loads(json.dumps(record)) for record in found]


def test_every_number_is_the_same_when_it_is_computed_another_way(records: list[Record]) -> None:
    once, again = report.summarise(records, METRICS), recomputed.report(records)
    assert list(recomputed.differing(once, again)) == []
    found = {record["outcome"] for record in records if record["condition"] != "closedBook"}
    assert found == {"right", "retrievalMissed", "misread", "invented"}
    states = once["citations"]["tuned"]["retrieved"]
    assert all(states[state] for state in ("verified", "repaired", "unverified", "unchecked"))
    assert 0 < once["abstention"]["tuned"]["retrieved"]["precision"]["value"] < 1
    first, last = once["retrieval"]["atK"][0], once["retrieval"]["atK"][-1]
    assert 0 < first["recall"]["value"] < last["recall"]["value"] < 1
    assert once["retrieval"]["passagesCut"] > 0


def test_the_order_of_predictions_does_not_matter(records: list[Record]) -> None:
    shuffled = [record for record in records if record["model"] == "tuned"]
    random.Random(2).shuffle(shuffled)
    shuffled = [record for record in records if record["model"] == "base"] + shuffled
    once, again = report.summarise(records, METRICS), report.summarise(shuffled, METRICS)
    assert list(recomputed.differing(once, again)) == []


def test_outcomes_add_up_to_the_questions(records: list[Record]) -> None:
    for conditions in report.summarise(records, METRICS)["errors"].values():
        for cell in conditions.values():
            assert cell["items"] == sum(cell[part] for part in report.ERROR_PARTS)


def test_only_the_metrics_asked_for_are_in_the_report(records: list[Record]) -> None:
    scores = report.summarise(records, ("bleu",))["scores"]["base"]["closedBook"]
    assert scores.keys() == {"items", "bleu", "sentenceBleu"}
    scores = report.summarise(records, ("f1",))["scores"]["base"]["closedBook"]
    assert scores.keys() == {"items", "f1", "squadV1", "squadV2"}
    assert scores["squadV1"].keys() == {"items", "f1"}


def test_numbers_that_cannot_be_had_are_null(records: list[Record]) -> None:
    answerable = [record for record in records if record["answerable"]]
    found = report.summarise(answerable, METRICS)
    assert found["scores"]["base"]["closedBook"]["squadV2"]["noAnswer"] == {"items": 0, "exactMatch": None, "f1": None}
    assert found["abstention"]["base"]["closedBook"]["recall"] is None


def test_datasets_without_characters_are_judged_by_their_marks(records: list[Record]) -> None:
    old = json.loads(json.dumps(records))
    for record in old:
        record["span"] = None
        for passage in record["passages"]:
            passage["span"] = None
    found = report.summarise(old, ("f1",))["retrieval"]
    assert found["atK"] == [] and found["itemsWithoutCharacters"] == found["items"]
    assert 0 < found["hitRate"]["value"] < 1
    assert all(
        verdicts.answer_was_shown(record) == any(p["oracle"] and p["shownCharacters"] for p in record["passages"])
        for record in old
    )


@pytest.mark.parametrize(
    ("said", "abstained"),
    [
        (REFUSAL, True),
        ("the document does not say", True),
        ("The document does not say. Question: who", True),
        ("", True),
        ("...", True),
        ("The document does not say who pays", True),
        ("The document does not sayings", False),
        ("It is said that the document does not say.", False),
        ("no fee", False),
    ],
)
def test_what_counts_as_abstention(said: str, abstained: bool) -> None:
    assert verdicts.abstains(said) is abstained


def an_answer(**parts: Any) -> Record:
    passage = {"document": "d", "span": [100, 200], "shownCharacters": 100, "oracle": True}
    record = {
        "answerable": True,
        "abstained": False,
        "scores": {"f1": 0.2},
        "passages": [passage],
        "document": {"digest": "d"},
        "span": [150, 170],
        "citations": [{"state": "verified"}],
    }
    return record | parts


def part_of_a_passage(characters: int) -> list[Record]:
    return [{"document": "d", "span": [100, 200], "shownCharacters": characters, "oracle": True}]


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        ({"scores": {"f1": 0.5}}, "right"),
        ({"scores": {"f1": 0.49}}, "misread"),
        ({"scores": {"f1": 0.0}, "abstained": True, "citations": [{"state": "unchecked"}]}, "misread"),
        ({"citations": [{"state": "verified"}, {"state": "unverified"}]}, "invented"),
        ({"passages": part_of_a_passage(69)}, "retrievalMissed"),  # one character of the answer was cut away
        ({"passages": part_of_a_passage(70)}, "misread"),
        ({"passages": [], "citations": [{"state": "unverified"}]}, "retrievalMissed"),  # the first cause counts
        ({"passages": [*part_of_a_passage(60), {"document": "d", "span": [155, 300], "shownCharacters": 50, "oracle": False}]}, "misread"),
        ({"passages": [{"document": "e", "span": [100, 200], "shownCharacters": 100, "oracle": False}]}, "retrievalMissed"),
        ({"answerable": False, "abstained": True}, "right"),
        ({"answerable": False, "span": None, "passages": []}, "misread"),
        ({"answerable": False, "span": None, "citations": [{"state": "unverified"}]}, "invented"),
    ],
)  # fmt: skip
def test_the_first_cause_that_applies_is_the_outcome(parts: Record, outcome: str) -> None:
    assert verdicts.outcome(an_answer(**parts)) == outcome


def test_two_runs_that_measure_one_model_in_the_same_second_write_two_reports() -> None:
    clock = datetime(2026, 3, 12, 9, 30, 5, tzinfo=UTC)
    uids = ("5a1e1c5e-7d0f-4c58-9d3b-0f6f4f0c1a2b", "5a1e1c5e-7d0f-4c58-9d3b-0f6f4f0c1a2c")
    names = [evaluate.report_name("contracts", clock, uid) for uid in uids]
    assert names == ["eval_contracts_20260312T093005Z_4f0c1a2b", "eval_contracts_20260312T093005Z_4f0c1a2c"]
