"""The evaluation report: numbers from the per-item records, and the result as a sentence. It must not run a model.

Every score of answers is a function of the records that lie beside the report; `heldOutText` comes from its own pieces,
which the report holds. Intervals respect documents (`statistics`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mark_trainer import citations, metrics, statistics, verdicts
from mark_trainer.spans import characters, shared

Record = dict[str, Any]
Json = dict[str, Any]

FORMAT_VERSION = 2
"""Of the report and of the predictions beside it."""

TITLES = {
    "exactMatch": "Exact match",
    "f1": "F1",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU (corpus)",
    "sentenceBleu": "BLEU (sentence mean)",
    "closedBook": "closed book",
    "retrieved": "retrieved passages",
    "oracle": "right passage given",
}

ERROR_PARTS = ("rightWithoutPassages", "rightFromPassages", "retrievalMissed", "misread", "invented")


def summarise(records: Sequence[Record], wanted: Sequence[str]) -> Json:
    """All parts of the report that are computed from the predictions; `wanted` are the metrics of the spec."""
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record["model"], record["condition"]), []).append(record)
    return {
        "scores": _grid(cells, lambda rows: {"items": len(rows), **_scores(rows, wanted)}),
        "answerNats": _answer_nats(cells),
        "retrieval": _retrieval(cells["base", "retrieved"]) if ("base", "retrieved") in cells else None,
        "abstention": _grid(cells, _abstention),
        "citations": _grid(cells, _citations),
        "errors": _errors(cells),
    }


def against_unigram(pieces: Sequence[Record]) -> dict[str, Any]:
    """Nats a token of the base model and of the unigram on held-out text."""
    clusters = [piece["cluster"] for piece in pieces]
    tokens = [float(piece["tokens"]) for piece in pieces]

    def nats(values: list[float]) -> dict[str, Any]:
        return statistics.ratio(clusters, values, tokens).to_dict()

    base, unigram = ([piece[name] for piece in pieces] for name in ("nats", "unigramNats"))
    return {
        "base": nats(base),
        "unigram": nats(unigram),
        "difference": nats([one - other for one, other in zip(base, unigram, strict=True)]),
    }


def headline(document: dict[str, Any]) -> dict[str, float | int]:
    """The measures of the Result, at most 30, those that a person can do without last."""
    measures: dict[str, float | int] = {}
    for model, conditions in document["scores"].items():
        for condition, scores in conditions.items():
            for name in ("exactMatch", "f1", "rougeL", "bleu"):
                kept = condition != "oracle" or (name == "f1" and model == "tuned")
                if kept and scores.get(name):
                    measures[f"{model}.{condition}.{name}"] = scores[name]["value"]
    difference = document["answerNats"][headline_condition(document)].get("difference")
    if difference:
        measures["nllDifference"] = difference["value"]
        if difference["low"] is not None:
            measures |= {"nllDifferenceLow": difference["low"], "nllDifferenceHigh": difference["high"]}
    if document["heldOutText"]:
        measures |= {f"{name}Nats": document["heldOutText"][name]["value"] for name in ("base", "unigram")}
    retrieval = document["retrieval"]
    if retrieval:
        measures["retrievalHitRate"] = retrieval["hitRate"]["value"]
    if retrieval and retrieval["atK"] and "tuned" in document["scores"]:
        measures["tuned.retrieved.retrievalRecall"] = retrieval["atK"][-1]["recall"]["value"]
    for condition in ("closedBook", "retrieved"):
        of_tuned = {
            "citationSupport": document["citations"].get("tuned", {}).get(condition, {}).get("supported"),
            "abstentionPrecision": document["abstention"].get("tuned", {}).get(condition, {}).get("precision"),
            "abstentionRecall": document["abstention"].get("tuned", {}).get(condition, {}).get("recall"),
        }
        measures |= {f"tuned.{condition}.{name}": found["value"] for name, found in of_tuned.items() if found}
    return measures


def headline_condition(document: dict[str, Any]) -> str:
    """The condition that the system is used in: with passages where they were measured."""
    return "retrieved" if "retrieved" in document["answerNats"] else "closedBook"


def sentence(document: dict[str, Any]) -> str:
    """The result in words."""
    condition = headline_condition(document)
    where = TITLES[condition]
    items = document["scores"]["base"][condition]["items"]
    difference = document["answerNats"][condition].get("difference")
    if not difference:
        nats = document["answerNats"][condition]["base"]["value"]
        return f"{document['model']}: {nats:.3f} nats an answer token on {items} held-out questions, {where}"
    if difference["low"] is None:
        interval, verdict = "no interval from one cluster of documents", "cannot be told from the base model"
    else:
        interval = f"95 % interval {difference['low']:.3f} to {difference['high']:.3f}"
        better, worse = difference["high"] < 0, difference["low"] > 0
        verdict = (
            "is better than its base" if better else "is worse than its base" if worse else "is not told from its base"
        )
    return (
        f"{document['model']} {verdict} on {items} held-out questions, {where}: "
        f"{difference['value']:+.3f} nats an answer token ({interval})"
    )


def definitions() -> dict[str, str]:
    """What each number means, for a reader without this code."""
    return {
        "items": "questions asked; those whose prompt does not fit are left out and counted under dataset.leftOut",
        "exactMatch": 'SQuAD v2 rules over all items: a question without an answer has the reference "", an abstention '
        'says ""; mean, 0 to 1',
        "f1": "token F1 by the same rules; mean, 0 to 1",
        "squadV1": "exact match and F1 by the SQuAD v1 rules, over items with an answer, abstentions taken as text",
        "squadV2": "exact match and F1 by the SQuAD v2 rules, apart for items with and without an answer",
        "rougeL": "rouge-score F-measure, no stemming, mean over items with an answer; words: "
        f"{metrics.ROUGE_TOKENIZER}",
        "bleu": "sacrebleu corpus BLEU / 100 over items with an answer, by bleuSignature",
        "sentenceBleu": "mean of sacrebleu sentence BLEU with effective order / 100, over items with an answer",
        "answerNats": "negative log likelihood of the reference answer and its stop token, in nats, summed over items "
        "with an answer and divided by their tokens; difference: tuned minus base on the same items, less is better",
        "interval": "95 %, jackknife over clusters of near-duplicate documents, Student's t with clusters - 1 degrees",
        "hitRate": "share of items with an answer whose retrieved passages include the chunk that holds it",
        "recall": "of the right answer's characters the share that the first k passages hold, overlaps counted once",
        "precision": "of the characters of the first k passages, overlaps counted once, the share that is the answer's",
        "wholeAnswer": "share of items whose first k passages hold every character of the answer",
        "abstained": "the answer is empty or begins with the sentence that training teaches for questions without an "
        "answer; precision: share of abstentions that are right, recall: share of the questions without an answer",
        "citations": "where the answer's own words, or its quotations, stand in the passages shown or in the document "
        "that the question names: verified exactly, repaired after white space, case, hyphens at line ends and the "
        "shapes of dashes, quotation marks and letters are evened out (never a number's sign, point or dash), "
        "unverified nowhere, unchecked where nothing was said or no source is at hand; supported: verified and "
        "repaired as a share of those checked",
        "errors": f"right: F1 of at least {verdicts.RIGHT_FROM_F1}, or abstained where there is no answer (without "
        "passages: right closed book too); else retrievalMissed: the prompt did not hold all of the answer; invented: "
        "the words stand in no source; misread: other words of the sources, or a wrong abstention",
        "oracle": "only the right passage is shown; items whose right passage is not recorded are left out",
        "heldOutText": "nats a token on the held-out passages, under the base model and under token frequencies",
    }


# ---------------------------------------------------------------------------------------------------------------------
# The parts


def _grid(cells: dict[tuple[str, str], list[Record]], part: Callable[[list[Record]], Json]) -> dict[str, Json]:
    """A part for each model and condition."""
    grid: dict[str, Json] = {}
    for (model, condition), rows in cells.items():
        grid.setdefault(model, {})[condition] = part(rows)
    return grid


def _scores(rows: Sequence[Record], wanted: Sequence[str]) -> Json:
    answerable = [row for row in rows if row["answerable"]]
    found: Json = {}
    for name in wanted:
        if name in ("exactMatch", "f1"):
            found[name] = _mean_score(rows, name)
        elif name == "rougeL":
            found[name] = _mean_score(answerable, name)
        else:
            found |= {"bleu": _corpus_bleu(answerable), "sentenceBleu": _mean_score(answerable, "bleu")}
    squad = [name for name in ("exactMatch", "f1") if name in wanted]
    if squad:
        unanswerable = [row for row in rows if not row["answerable"]]
        found["squadV1"] = {"items": len(answerable)} | {name: _mean_score(answerable, f"{name}V1") for name in squad}
        found["squadV2"] = {
            part: {"items": len(of_part)} | {name: _mean_score(of_part, name) for name in squad}
            for part, of_part in (("hasAnswer", answerable), ("noAnswer", unanswerable))
        }
    return found


def _answer_nats(cells: dict[tuple[str, str], list[Record]]) -> dict[str, Json]:
    answerable = {key: [row for row in rows if row["answerable"]] for key, rows in cells.items()}
    found: dict[str, Json] = {}
    for (model, condition), rows in answerable.items():
        if not rows:
            continue
        found.setdefault(condition, {})[model] = _nats(rows).to_dict()
    for condition, values in found.items():
        if "tuned" in values:
            values["difference"] = _difference(answerable["base", condition], answerable["tuned", condition]).to_dict()
    return found


def _retrieval(rows: Sequence[Record]) -> Json:
    """What the passages hold, whatever a model makes of them: over the questions that have an answer."""
    answerable = [row for row in rows if row["answerable"]]
    hits = [
        float(any(passage["oracle"] or passage["chunkId"] == row["chunkId"] for passage in row["passages"]))
        for row in answerable
    ]
    placed = [
        (row, answer, places)
        for row in answerable
        if (answer := verdicts.answer_place(row)) is not None
        and (places := verdicts.passage_places(row["passages"])) is not None
    ]
    most = max((len(places) for _, _, places in placed), default=0)
    by_count = []
    for count in range(1, most + 1):
        both = [shared(places[:count], [answer]) for _, answer, places in placed]
        of_answers = [both[at] / characters([answer]) for at, (_, answer, _) in enumerate(placed)]
        of_passages = [both[at] / (characters(places[:count]) or 1) for at, (_, _, places) in enumerate(placed)]
        clusters = _clusters([row for row, _, _ in placed])
        by_count.append(
            {
                "k": count,
                "recall": _mean(clusters, of_answers),
                "precision": _mean(clusters, of_passages),
                "wholeAnswer": _mean(clusters, [float(share == 1) for share in of_answers]),
            }
        )
    return {
        "items": len(answerable),
        "hitRate": _mean(_clusters(answerable), hits),
        "atK": by_count,
        "itemsWithoutCharacters": len(answerable) - len(placed),
        "passagesCut": sum(row["passagesCut"] for row in rows),
    }


def _abstention(rows: Sequence[Record]) -> Json:
    clusters = _clusters(rows)
    abstained = [float(row["abstained"]) for row in rows]
    unanswerable = [float(not row["answerable"]) for row in rows]
    rightly = [float(row["abstained"] and not row["answerable"]) for row in rows]
    counts = Counter((row["answerable"], row["abstained"]) for row in rows)
    return {
        side: {"answered": counts[answerable, False], "abstained": counts[answerable, True]}
        for side, answerable in (("answerable", True), ("unanswerable", False))
    } | {"precision": _ratio(clusters, rightly, abstained), "recall": _ratio(clusters, rightly, unanswerable)}


def _citations(rows: Sequence[Record]) -> Json:
    states = [citations.state_of(row["citations"]) for row in rows]
    supported = [float(state in ("verified", "repaired")) for state in states]
    checked = [float(state != "unchecked") for state in states]
    return {state: states.count(state) for state in citations.STATES} | {
        "supported": _ratio(_clusters(rows), supported, checked)
    }


def _errors(cells: dict[tuple[str, str], list[Record]]) -> dict[str, Json]:
    """Where answers with passages were right and where they failed; the counts of a cell add up to its items."""
    found: dict[str, Json] = {}
    for (model, condition), rows in cells.items():
        if condition == "closedBook":
            continue
        known = {row["item"] for row in cells[model, "closedBook"] if verdicts.right(row)}
        counts = Counter(row["outcome"] for row in rows)
        counts["rightWithoutPassages"] = sum(row["outcome"] == "right" and row["item"] in known for row in rows)
        counts["rightFromPassages"] = counts["right"] - counts["rightWithoutPassages"]
        found.setdefault(model, {})[condition] = {"items": len(rows)} | {part: counts[part] for part in ERROR_PARTS}
    return found


def _corpus_bleu(rows: Sequence[Record]) -> Json | None:
    counts = [metrics.bleu_counts(row["prediction"], [row["reference"]]) for row in rows]
    return statistics.estimate(_clusters(rows), counts, metrics.corpus_bleu).to_dict() if rows else None


def _mean_score(rows: Sequence[Record], name: str) -> Json | None:
    return _mean(_clusters(rows), [row["scores"][name] for row in rows])


def _mean(clusters: Sequence[str], values: Sequence[float]) -> Json | None:
    """The mean with its interval; None of nothing."""
    return statistics.mean(clusters, values).to_dict() if values else None


def _ratio(clusters: Sequence[str], values: Sequence[float], weights: Sequence[float]) -> Json | None:
    """The ratio with its interval; None where it would divide by 0."""
    return statistics.ratio(clusters, values, weights).to_dict() if any(weights) else None


def _clusters(rows: Sequence[Record]) -> list[str]:
    return [row["document"]["cluster"] for row in rows]


def _nats(rows: Sequence[Record]) -> statistics.Estimate:
    clusters = [row["document"]["cluster"] for row in rows]
    return statistics.ratio(clusters, [row["nats"] for row in rows], [row["answerTokens"] for row in rows])


def _difference(base: Sequence[Record], tuned: Sequence[Record]) -> statistics.Estimate:
    """Tuned minus base, item by item."""
    before = {row["item"]: row for row in base}
    assert before.keys() == {row["item"] for row in tuned}
    clusters = [row["document"]["cluster"] for row in tuned]
    changes = [row["nats"] - before[row["item"]]["nats"] for row in tuned]
    return statistics.ratio(clusters, changes, [row["answerTokens"] for row in tuned])
