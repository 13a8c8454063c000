"""An evaluation report as a table, base beside tuned, and the one sentence that matters. It must compute no number."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mark_operator.cli.view.formatting import clock, plain_table, short_digest

Json = dict[str, Any]

_METRICS = {
    "exactMatch": "exact match",
    "f1": "F1",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU (corpus)",
    "sentenceBleu": "BLEU (sentence mean)",
}
_CONDITIONS = {
    "closedBook": "closed book",
    "retrieved": "with retrieved passages",
    "oracle": "with the right passage",
}

_ERRORS = {
    "retrievalMissed": "wrong: retrieval missed",
    "misread": "wrong: misread",
    "invented": "wrong: invented",
}


def report_view(report: Json) -> RenderableType:
    """The whole report on one screen."""
    return Group(*_parts(report))


def verdict(report: Json) -> str:
    """Whether the tuned model is better, in words, by the condition that the system is used in."""
    condition = "retrieved" if "retrieved" in report["answerNats"] else "closedBook"
    difference = report["answerNats"][condition].get("difference")
    if difference is None:
        return f"{report['model']} was measured alone, so nothing is said about better or worse."
    if difference["low"] is None:
        return f"{report['model']} cannot be told from its base: one cluster of documents gives no interval."
    if difference["high"] < 0:
        word = "is better than its base"
    elif difference["low"] > 0:
        word = "is worse than its base"
    else:
        word = "cannot be told from its base: the interval holds 0"
    change = f"{_CONDITIONS[condition]}: {_number(difference['value'], sign=True)} nats an answer token"
    return f"{report['model']} {word} ({change})."


def _parts(report: Json) -> Iterator[RenderableType]:
    yield Text(f"Evaluation of {report['model']}, {clock(report['time'])}", style="bold")
    base = report["base"].get("path") or report["base"].get("huggingFaceId")
    yield f"base {base} · dataset {short_digest(report['dataset']['digest'])} · 95 % intervals, clustered by document"
    for condition in (condition for condition in _CONDITIONS if condition in report["answerNats"]):
        yield ""
        yield from _condition(report, condition)
    yield ""
    yield from _held_out(report)
    yield ""
    yield from _answers(report)
    yield from _retrieval(report)
    yield ""
    yield Text(verdict(report), style="bold")


def _condition(report: Json, condition: str) -> Iterator[RenderableType]:
    models = [model for model in report["scores"] if condition in report["scores"][model]]
    scores = {model: report["scores"][model][condition] for model in models}
    nats = report["answerNats"][condition]
    title = f"{_CONDITIONS[condition]}, {scores[models[0]]['items']} questions".upper()
    columns = [model.upper() for model in models]
    table = plain_table(title, *columns, *(("TUNED - BASE",) if "difference" in nats else ()))
    for name in _METRICS:
        if name in scores[models[0]]:
            table.add_row(_METRICS[name], *(_estimate(scores[model][name]) for model in models))
    difference = [_estimate(nats["difference"], sign=True)] if "difference" in nats else []
    table.add_row("nats an answer token (less is better)", *(_estimate(nats[model]) for model in models), *difference)
    yield table


def _answers(report: Json) -> Iterator[RenderableType]:
    """What became of the answers in the condition that the system is used in; reports of format 1 do not say."""
    condition = "retrieved" if "retrieved" in report["answerNats"] else "closedBook"
    parts: list[tuple[str, Json]] = []
    for model in report.get("citations", {}):
        cited, table = report["citations"][model][condition], report["abstention"][model][condition]
        errors = report["errors"].get(model, {}).get(condition, {})
        right = errors.get("rightWithoutPassages", 0) + errors.get("rightFromPassages", 0)
        rows: Json = {"right": right} | {words: errors[part] for part, words in _ERRORS.items()} if errors else {}
        rows |= {f"words {state} in the sources": cited[state] for state in ("verified", "repaired", "unverified")}
        rows["words unchecked"] = cited["unchecked"]
        rows["abstained, rightly"] = table["unanswerable"]["abstained"]
        rows["abstained, wrongly"] = table["answerable"]["abstained"]
        parts.append((model, rows))
    if not parts:
        return
    table_view = plain_table(f"ANSWERS {_CONDITIONS[condition]}".upper(), *(model.upper() for model, _ in parts))
    for name in parts[0][1]:
        table_view.add_row(name, *(str(rows[name]) for _, rows in parts))
    yield table_view
    yield ""


def _retrieval(report: Json) -> Iterator[RenderableType]:
    found = report.get("retrieval")
    if not found:
        return
    share = f"{_percent(found['hitRate'])} of {found['items']} questions"
    yield f"The right passage was among the retrieved ones for {share}."
    if found.get("atK"):
        last = found["atK"][-1]
        yield (
            f"{last['k']} passages hold {_percent(last['recall'])} of the right answers' characters; "
            f"{last['precision']['value'] * 100:.1f} % of what they show is answer."
        )


def _held_out(report: Json) -> Iterator[RenderableType]:
    text = report.get("heldOutText")
    if not text:
        return
    difference = text["difference"]
    if difference["low"] is None:
        word = "is compared with"
    elif difference["high"] < 0:
        word = "beats"
    elif difference["low"] > 0:
        word = "loses to"
    else:
        word = "cannot be told from"
    yield (
        f"On held-out text the base {word} a unigram model: {_estimate(text['base'])} against "
        f"{_number(text['unigram']['value'])} nats a token."
    )


def _estimate(estimate: Json, *, sign: bool = False) -> str:
    value = _number(estimate["value"], sign=sign)
    if estimate["low"] is None:
        return value
    return f"{value} [{_number(estimate['low'], sign=sign)}, {_number(estimate['high'], sign=sign)}]"


def _number(value: float, *, sign: bool = False) -> str:
    shown = round(value, 3) + 0.0  # so that nothing is shown as -0.000
    return f"{shown:+.3f}" if sign else f"{shown:.3f}"


def _percent(estimate: Json) -> str:
    return f"{estimate['value'] * 100:.0f} %"
