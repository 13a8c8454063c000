"""What became of one answer: abstained or not, right or wrong and, where it was wrong, which part of the system failed.

Everything is a function of the answer's line in the predictions. It must not compute a number over several answers.

A right answer to an answerable question has a token F1 of at least 0.5 by the SQuAD v2 rules; to a question without an
answer it is an abstention. A wrong answer has one of three causes, the first that applies:

- retrievalMissed: the prompt did not hold all characters of the right answer;
- invented: the model's words stand neither in the passages shown nor in the document that the question names;
- misread: the passages were there, and the model took other words from the sources, or abstained.
"""

from collections.abc import Sequence
from typing import Any, Literal

from mark_trainer import citations
from mark_trainer.metrics import normalised
from mark_trainer.prompts import REFUSAL
from mark_trainer.spans import Place, shared

Record = dict[str, Any]
Outcome = Literal["right", "retrievalMissed", "misread", "invented"]
OUTCOMES: tuple[Outcome, ...] = ("right", "retrievalMissed", "misread", "invented")
RIGHT_FROM_F1 = 0.5


def abstains(prediction: str) -> bool:
    """Whether the model declined to answer: it said nothing, or began with the sentence that training taught it."""
    said, refusal = normalised(prediction), normalised(REFUSAL)
    return not said or said == refusal or said.startswith(f"{refusal} ")


def right(record: Record) -> bool:
    """Whether the answer counts as right."""
    if not record["answerable"]:
        return bool(record["abstained"])
    return not record["abstained"] and record["scores"]["f1"] >= RIGHT_FROM_F1


def outcome(record: Record) -> Outcome:
    """What became of an answer that was given with passages."""
    if right(record):
        return "right"
    if record["answerable"] and not answer_was_shown(record):
        return "retrievalMissed"
    if citations.state_of(record["citations"]) == "unverified":
        return "invented"
    return "misread"


def answer_was_shown(record: Record) -> bool:
    """Whether the prompt held all of the right answer; by the passages' marks where the dataset has no characters."""
    shown = [passage for passage in record["passages"] if passage["shownCharacters"]]
    answer, places = answer_place(record), passage_places(shown, only_shown=True)
    if answer is None or places is None:
        return any(passage["oracle"] for passage in shown)
    start, end = answer[1]
    return shared(places, [answer]) == end - start


def answer_place(record: Record) -> Place | None:
    """The characters of the right answer; None for a question without one, and where the dataset does not say."""
    if not record["answerable"] or record["span"] is None:
        return None
    start, end = record["span"]
    return record["document"]["digest"], (start, end)


def passage_places(passages: Sequence[Record], *, only_shown: bool = False) -> list[Place] | None:
    """The characters of passages, or of their parts in the prompt; None where the dataset does not record them."""
    places = []
    for passage in passages:
        if passage["span"] is None or passage["document"] is None:
            return None
        start, end = passage["span"]
        places.append((passage["document"], (start, start + passage["shownCharacters"] if only_shown else end)))
    return places
