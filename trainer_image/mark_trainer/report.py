"""The evaluation report: numbers from per-item records, a sentence, a page to read. It must not run a model.

Every number here is a function of the records that lie beside the report.
"""

import html
from collections.abc import Callable, Sequence
from typing import Any

from mark_trainer import metrics, statistics

Record = dict[str, Any]

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


def summarise(records: Sequence[Record], wanted: Sequence[str]) -> dict[str, Any]:
    """The grid of scores and the likelihoods, each with its interval."""
    keys = list(dict.fromkeys((record["model"], record["condition"]) for record in records))
    cells = {key: [r for r in records if (r["model"], r["condition"]) == key] for key in keys}
    scores: dict[str, dict[str, Any]] = {}
    nats: dict[str, dict[str, Any]] = {}
    for (model, condition), rows in cells.items():
        scores.setdefault(model, {})[condition] = {"items": len(rows), **_scores(rows, wanted)}
        nats.setdefault(condition, {})[model] = _nats(rows).to_dict()
    for condition, values in nats.items():
        if "tuned" in values:
            values["difference"] = _difference(cells["base", condition], cells["tuned", condition]).to_dict()
    return {"scores": scores, "answerNats": nats}


def retrieval(asked: Sequence[Any], hit: Callable[[Any], bool]) -> dict[str, Any]:
    """How often the chunk with the answer was among the retrieved ones."""
    clusters = [item.row.document.cluster for item in asked]
    rate = statistics.mean(clusters, [float(hit(item.row)) for item in asked])
    return {
        "hitRate": rate.to_dict(),
        "items": len(asked),
        "passagesCut": sum(item.prompt.cut for item in asked),
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
    """The measures of the Result: at most 23."""
    measures: dict[str, float | int] = {}
    for model, conditions in document["scores"].items():
        for condition, scores in conditions.items():
            for name, score in scores.items():
                kept = condition != "oracle" or (name == "f1" and model == "tuned")
                if kept and name not in ("items", "sentenceBleu"):
                    measures[f"{model}.{condition}.{name}"] = score["value"]
    difference = document["answerNats"][headline_condition(document)].get("difference")
    if difference:
        measures["nllDifference"] = difference["value"]
        if difference["low"] is not None:
            measures |= {"nllDifferenceLow": difference["low"], "nllDifferenceHigh": difference["high"]}
    if document["heldOutText"]:
        measures |= {f"{name}Nats": document["heldOutText"][name]["value"] for name in ("base", "unigram")}
    if document["retrieval"]:
        measures["retrievalHitRate"] = document["retrieval"]["hitRate"]["value"]
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
        "exactMatch": "SQuAD v2 rules, mean over items, 0 to 1",
        "f1": "SQuAD v2 rules, mean over items, 0 to 1",
        "rougeL": f"rouge-score F-measure, no stemming, mean over items; words: {metrics.ROUGE_TOKENIZER}",
        "bleu": "sacrebleu corpus BLEU / 100, by bleuSignature",
        "sentenceBleu": "mean of sacrebleu sentence BLEU with effective order / 100",
        "answerNats": "negative log likelihood of the reference answer and its stop token, in nats, summed over items "
        "and divided by their tokens; difference is tuned minus base on the same items, below 0 is better",
        "interval": "95 %, jackknife over clusters of near-duplicate documents, Student's t with clusters - 1 degrees",
        "hitRate": "share of items whose retrieved passages include the chunk that holds the answer",
        "oracle": "only the right passage is shown; items whose right passage is not recorded are left out",
        "heldOutText": "nats a token on the held-out passages, under the base model and under token frequencies",
    }


def _scores(rows: Sequence[Record], wanted: Sequence[str]) -> dict[str, Any]:
    clusters = [row["document"]["cluster"] for row in rows]
    found: dict[str, Any] = {}
    for name in wanted:
        values = [row["scores"][name] for row in rows]
        if name == "bleu":
            counts = [metrics.bleu_counts(row["prediction"], [row["reference"]]) for row in rows]
            found["bleu"] = statistics.estimate(clusters, counts, metrics.corpus_bleu).to_dict()
            found["sentenceBleu"] = statistics.mean(clusters, values).to_dict()
        else:
            found[name] = statistics.mean(clusters, values).to_dict()
    return found


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


# ---------------------------------------------------------------------------------------------------------------------
# The page

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #d5d9de;text-align:right}
th:first-child,td:first-child{text-align:left}caption{text-align:left;font-weight:600}small{color:#57606a}
figure{margin:1rem 0}code{font-size:85%}
"""
_COLOURS = {"base": "#8c959f", "tuned": "#0b6bcb"}


def page(document: dict[str, Any]) -> str:
    """The report as one HTML file without external parts."""
    parts = [
        f"<h1>Evaluation of {_text(document['model'])}</h1>",
        f"<p>{_text(sentence(document))}.</p>",
        *(_table(document, condition) for condition in document["answerNats"]),
        _plot(document),
        _facts(document),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation of {_text(document["model"])}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _table(document: dict[str, Any], condition: str) -> str:
    models = [model for model in document["scores"] if condition in document["scores"][model]]
    items = document["scores"]["base"][condition]["items"]
    rows = []
    for name in [name for name in document["scores"]["base"][condition] if name != "items"]:
        cells = "".join(f"<td>{_estimate(document['scores'][model][condition][name])}</td>" for model in models)
        rows.append(f"<tr><td>{TITLES[name]}</td>{cells}</tr>")
    nats = document["answerNats"][condition]
    cells = "".join(f"<td>{_estimate(nats[model])}</td>" for model in models)
    rows.append(f"<tr><td>Nats an answer token (less is better)</td>{cells}</tr>")
    if "difference" in nats:
        rows.append(f"<tr><td>Tuned minus base</td><td></td><td>{_estimate(nats['difference'])}</td></tr>")
    head = "".join(f"<th>{model}</th>" for model in models)
    caption = f"{TITLES[condition].capitalize()}, {items} questions"
    return f"<table><caption>{caption}</caption><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _plot(document: dict[str, Any]) -> str:
    """Bars of F1, or else the first metric, by condition: base beside tuned, with their intervals."""
    conditions = list(document["answerNats"])
    measured = [name for name in document["scores"]["base"][conditions[0]] if name != "items"]
    name = "f1" if "f1" in measured else measured[0]
    bars = [
        (condition, model, document["scores"][model][condition][name])
        for condition in conditions
        for model in document["scores"]
    ]
    top = max(0.05, *(min(1.0, score["high"] or score["value"]) for _, _, score in bars)) * 1.1
    height, width, left = 180.0, 64.0, 50.0
    models = len(document["scores"])
    shapes = []
    for number, (condition, model, score) in enumerate(bars):
        x = left + number * width + (number // models) * 30
        y = height - height * min(top, score["value"]) / top
        shapes.append(
            f'<rect x="{x}" y="{y:.1f}" width="44" height="{height - y:.1f}" fill="{_COLOURS[model]}"/>'
            f'<text x="{x + 22}" y="{height + 16}" text-anchor="middle">{model}</text>'
        )
        if score["low"] is not None:
            low, high = (height - height * min(top, max(0.0, score[end])) / top for end in ("low", "high"))
            shapes.append(f'<path d="M{x + 22} {low:.1f}V{high:.1f}" stroke="#1b1f24" stroke-width="1.5"/>')
        if number % models == 0:
            shapes.append(f'<text x="{x}" y="{height + 34}">{TITLES[condition]}</text>')
    axis = "".join(
        f'<text x="{left - 8}" y="{height - height * part + 4}" text-anchor="end">{top * part:.2f}</text>'
        f'<path d="M{left - 4} {height - height * part}H{left}" stroke="#57606a"/>'
        for part in (0.0, 0.5, 1.0)
    )
    full = left + len(bars) * width + len(conditions) * 30
    return (
        f"<figure><figcaption>{TITLES[name]} with 95 % intervals</figcaption>"
        f'<svg viewBox="0 -10 {full} {height + 54}" width="{full}" font-size="12" font-family="sans-serif">'
        f'{axis}<path d="M{left} 0V{height}H{full - 20}" fill="none" stroke="#57606a"/>{"".join(shapes)}</svg></figure>'
    )


def _facts(document: dict[str, Any]) -> str:
    facts = {
        "Base model": document["base"].get("path") or document["base"].get("huggingFaceId"),
        "Base digest": document["base"]["digest"],
        "Adapter digest": document["adapter"]["digest"] if document["adapter"] else "none",
        "Dataset digest": document["dataset"]["digest"],
        "Prompt digest": document["prompt"]["digest"],
        "Per-item predictions": document["predictions"]["path"],
        "Time": document["time"],
    }
    if document["heldOutText"]:
        text = document["heldOutText"]
        facts["Held-out text, nats a token"] = (
            f"base {text['base']['value']:.3f}, unigram {text['unigram']['value']:.3f}, "
            f"fitted on {text['unigramFittedOn']}"
        )
    if document["retrieval"]:
        facts["Right passage retrieved"] = f"{document['retrieval']['hitRate']['value']:.0%} of the questions"
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td><code>{_text(str(fact))}</code></td></tr>" for name, fact in facts.items()
    )
    terms = "".join(f"<li><b>{_text(name)}</b>: {_text(text)}</li>" for name, text in document["definitions"].items())
    return f"<table><caption>What was measured</caption>{rows}</table><ul>{terms}</ul>"


def _estimate(value: dict[str, Any]) -> str:
    interval = "" if value["low"] is None else f" <small>{value['low']:.3f} to {value['high']:.3f}</small>"
    return f"{value['value']:.3f}{interval}"


def _text(value: str) -> str:
    return html.escape(value)
