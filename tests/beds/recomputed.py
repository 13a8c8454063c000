"""The numbers of an evaluation report, computed a second time from the lines of its predictions alone.

Written from the definitions in docs/trainer.md, without any code of the trainer: other data structures, sacrebleu's own
corpus function, sets of characters instead of merged spans, and each jackknife by leaving lines out.
"""

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import scipy.stats
from sacrebleu.metrics import BLEU

Line = dict[str, Any]
Statistic = Callable[[Sequence[Line]], float | None]


def report(lines: Sequence[Line]) -> dict[str, Any]:
    """Scores, likelihoods, retrieval, abstention, citations and errors, shaped as in the report."""
    cells: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        cells.setdefault(line["model"], {}).setdefault(line["condition"], []).append(line)
    each = [
        (model, condition, cell) for model, by_condition in cells.items() for condition, cell in by_condition.items()
    ]
    whole: dict[str, Any] = {"scores": {}, "answerNats": {}, "abstention": {}, "citations": {}, "errors": {}}
    for model, condition, cell in each:
        whole["scores"].setdefault(model, {})[condition] = scores(cell)
        whole["abstention"].setdefault(model, {})[condition] = abstention(cell)
        whole["citations"].setdefault(model, {})[condition] = citations(cell)
        if condition != "closedBook":
            whole["errors"].setdefault(model, {})[condition] = errors(cell, cells[model]["closedBook"])
        answered = [line for line in cell if line["answerable"]]
        whole["answerNats"].setdefault(condition, {})[model] = estimate(answered, nats_a_token)
    for condition, values in whole["answerNats"].items():
        values["difference"] = estimate(
            [line for model in ("base", "tuned") for line in cells[model][condition] if line["answerable"]],
            lambda kept: (
                nats_a_token([line for line in kept if line["model"] == "tuned"])
                - nats_a_token([line for line in kept if line["model"] == "base"])
            ),
        )
    whole["retrieval"] = retrieval(cells["base"]["retrieved"])
    return whole


def differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The places at which two reports differ, beyond the last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differing(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differing(*pair, f"{where}.{number}")
    elif isinstance(one, float | int) and isinstance(other, float | int):
        if not math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9):
            yield f"{where}: {one} and {other}"
    elif one != other:
        yield f"{where}: {one} and {other}"


def estimate(lines: Sequence[Line], statistic: Statistic) -> dict[str, Any] | None:
    """The statistic with its jackknife interval over clusters of documents."""
    value = statistic(lines)
    if value is None:
        return None
    clusters = {line["document"]["cluster"] for line in lines}
    if len(clusters) < 2:
        return {"value": value, "low": None, "high": None, "clusters": len(clusters)}
    without = [
        statistic([line for line in lines if line["document"]["cluster"] != cluster]) or 0.0 for cluster in clusters
    ]
    spread = sum((one - sum(without) / len(without)) ** 2 for one in without)
    half = scipy.stats.t.ppf(0.975, len(clusters) - 1) * math.sqrt((len(clusters) - 1) / len(clusters) * spread)
    return {"value": value, "low": value - half, "high": value + half, "clusters": len(clusters)}


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def nats_a_token(lines: Sequence[Line]) -> float:
    return sum(line["nats"] for line in lines) / sum(line["answerTokens"] for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def scores(lines: Sequence[Line]) -> dict[str, Any]:
    has, no = ([line for line in lines if line["answerable"] is wanted] for wanted in (True, False))

    def of(part: Sequence[Line], score: Callable[[Line], float]) -> dict[str, Any] | None:
        return estimate(part, lambda kept: mean([score(line) for line in kept]))

    def corpus(kept: Sequence[Line]) -> float | None:
        if not kept:
            return None
        said, right = [line["prediction"] for line in kept], [line["reference"] for line in kept]
        return BLEU().corpus_score(said, [right]).score / 100

    return {
        "items": len(lines),
        "exactMatch": of(lines, exact_v2),
        "f1": of(lines, f1_v2),
        "rougeL": of(has, rouge_l),
        "bleu": estimate(has, corpus),
        "sentenceBleu": of(has, sentence_bleu),
        "squadV1": {"items": len(has), "exactMatch": of(has, exact_v1), "f1": of(has, f1_v1)},
        "squadV2": {
            "hasAnswer": {"items": len(has), "exactMatch": of(has, exact_v2), "f1": of(has, f1_v2)},
            "noAnswer": {"items": len(no), "exactMatch": of(no, exact_v2), "f1": of(no, f1_v2)},
        },
    }


def words(answer: str) -> list[str]:
    """SQuAD's normalisation, word by word."""
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def pair_v2(line: Line) -> tuple[list[str], list[str]]:
    said = [] if line["abstained"] else words(line["prediction"])
    return said, words(line["reference"]) if line["answerable"] else []


def exact_v2(line: Line) -> float:
    said, right = pair_v2(line)
    return float(said == right)


def f1_v2(line: Line) -> float:
    said, right = pair_v2(line)
    return float(said == right) if not said or not right else overlap_f1(said, right)


def exact_v1(line: Line) -> float:
    return float(words(line["prediction"]) == words(line["reference"]))


def f1_v1(line: Line) -> float:
    return overlap_f1(words(line["prediction"]), words(line["reference"]))


def overlap_f1(said: list[str], right: list[str]) -> float:
    left, same = Counter(right), 0
    for word in said:
        if left[word] > 0:
            left[word] -= 1
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(right)
    return 2 * precision * recall / (precision + recall)


def rouge_l(line: Line) -> float:
    """F-measure of the longest common subsequence; the texts of the tests are in alphabets."""
    said, right = (
        "".join(letter if unicodedata.category(letter)[0] in "LNM" else " " for letter in line[side].lower()).split()
        for side in ("prediction", "reference")
    )
    lengths = [[0] * (len(right) + 1) for _ in range(len(said) + 1)]
    for i, one in enumerate(said):
        for j, other in enumerate(right):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if one == other else max(lengths[i][j + 1], lengths[i + 1][j])
    return 2 * lengths[-1][-1] / (len(said) + len(right)) if said and right else 0.0


def sentence_bleu(line: Line) -> float:
    return BLEU(effective_order=True).sentence_score(line["prediction"], [line["reference"]]).score / 100


# ---------------------------------------------------------------------------------------------------------------------
# Passages, abstentions, citations, errors


def answer_characters(line: Line) -> set[tuple[str, int]]:
    return {(line["document"]["digest"], place) for place in range(*line["span"])}


def passage_characters(line: Line, count: int, *, shown: bool = False) -> set[tuple[str, int]]:
    found = set()
    for passage in line["passages"][:count]:
        start, end = passage["span"]
        end = start + passage["shownCharacters"] if shown else end
        found |= {(passage["document"], place) for place in range(start, end)}
    return found


def retrieval(lines: Sequence[Line]) -> dict[str, Any]:
    has = [line for line in lines if line["answerable"]]

    def of(share: Callable[[Line], float]) -> dict[str, Any] | None:
        return estimate(has, lambda kept: mean([share(line) for line in kept]))

    def recall(line: Line, k: int) -> float:
        answer = answer_characters(line)
        return len(answer & passage_characters(line, k)) / len(answer)

    def precision(line: Line, k: int) -> float:
        passages = passage_characters(line, k)
        return len(answer_characters(line) & passages) / len(passages)

    at_k = [
        {
            "k": k,
            "recall": of(lambda line, k=k: recall(line, k)),
            "precision": of(lambda line, k=k: precision(line, k)),
            "wholeAnswer": of(lambda line, k=k: float(answer_characters(line) <= passage_characters(line, k))),
        }
        for k in range(1, max(len(line["passages"]) for line in has) + 1)
    ]
    return {
        "items": len(has),
        "hitRate": of(lambda line: float(line["chunkId"] in [passage["chunkId"] for passage in line["passages"]])),
        "atK": at_k,
        "itemsWithoutCharacters": 0,
        "passagesCut": sum(line["passagesCut"] for line in lines),
    }


def abstention(lines: Sequence[Line]) -> dict[str, Any]:
    def share(of: Callable[[Line], bool]) -> dict[str, Any] | None:
        if not any(of(line) for line in lines):
            return None

        def right(kept: Sequence[Line]) -> float:
            counted = [line for line in kept if of(line)]
            return mean([float(line["abstained"] and not line["answerable"]) for line in counted]) or 0.0

        return estimate(lines, right)

    table = {
        side: {
            did: sum(line["answerable"] is answerable and line["abstained"] is abstained for line in lines)
            for did, abstained in (("answered", False), ("abstained", True))
        }
        for side, answerable in (("answerable", True), ("unanswerable", False))
    }
    precision, recall = share(lambda line: line["abstained"]), share(lambda line: not line["answerable"])
    return table | {"precision": precision, "recall": recall}


def citation_state(line: Line) -> str:
    states = [citation["state"] for citation in line["citations"]]
    return min(states, key=["unverified", "repaired", "verified", "unchecked"].index)


def citations(lines: Sequence[Line]) -> dict[str, Any]:
    def supported(kept: Sequence[Line]) -> float | None:
        states = [citation_state(line) for line in kept]
        checked = [state for state in states if state != "unchecked"]
        return mean([float(state != "unverified") for state in checked])

    counts = Counter(citation_state(line) for line in lines)
    states = ("verified", "repaired", "unverified", "unchecked")
    return {state: counts[state] for state in states} | {"supported": estimate(lines, supported)}


def is_right(line: Line) -> bool:
    return (f1_v2(line) >= 0.5 and not line["abstained"]) if line["answerable"] else line["abstained"]


def errors(lines: Sequence[Line], closed_book: Sequence[Line]) -> dict[str, int]:
    known = {line["item"] for line in closed_book if is_right(line)}
    parts = dict.fromkeys(("rightWithoutPassages", "rightFromPassages", "retrievalMissed", "misread", "invented"), 0)
    for line in lines:
        if is_right(line):
            part = "rightWithoutPassages" if line["item"] in known else "rightFromPassages"
        elif line["answerable"] and answer_characters(line) - passage_characters(
            line, len(line["passages"]), shown=True
        ):
            part = "retrievalMissed"
        else:
            part = "invented" if citation_state(line) == "unverified" else "misread"
        parts[part] += 1
    return {"items": len(lines), **parts}
