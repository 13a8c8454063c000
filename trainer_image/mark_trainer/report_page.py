"""The evaluation report as one HTML file without external parts, for people. It must compute no number of its own.

Below the numbers it shows item by item what was asked, what the models said, and where those words stand: document,
digest, page and characters, with the text around them.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from mark_trainer.citations import STATES
from mark_trainer.report import ERROR_PARTS, TITLES, sentence

Json = dict[str, Any]

MOST_ITEMS = 200
"""Items shown one by one; the predictions hold all of them."""

_METRICS = ("exactMatch", "f1", "rougeL", "bleu", "sentenceBleu")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #d5d9de;text-align:right}
th:first-child,td:first-child{text-align:left}caption{text-align:left;font-weight:600}small{color:#57606a}
td small{white-space:nowrap}.text small{white-space:normal}
figure{margin:1rem 0}code{font-size:85%;overflow-wrap:anywhere}.text td,.text th{text-align:left;vertical-align:top}
details{border-top:1px solid #d5d9de;padding:.4rem 0}summary{cursor:pointer}mark{background:#cfe8d5}
blockquote{margin:.2rem 0;padding-left:.7rem;border-left:3px solid #d5d9de;color:#57606a}
.verified,.right{color:#116329}.repaired{color:#7d4e00}.unverified,.invented{color:#a40e26}
"""
_COLOURS = {"base": "#8c959f", "tuned": "#0b6bcb"}
_PART_COLOURS = {
    "rightWithoutPassages": "#116329",
    "rightFromPassages": "#57ab5a",
    "retrievalMissed": "#8c959f",
    "misread": "#d4a72c",
    "invented": "#c93c37",
    "verified": "#116329",
    "repaired": "#57ab5a",
    "unverified": "#c93c37",
    "unchecked": "#d5d9de",
}
_PART_TITLES = {
    "rightWithoutPassages": "right, also without passages",
    "rightFromPassages": "right from the passages",
    "retrievalMissed": "wrong: retrieval missed",
    "misread": "wrong: misread",
    "invented": "wrong: invented",
}


def page(document: Json, records: Sequence[Json]) -> str:
    """The whole page. `document` is the report, `records` the lines of its predictions."""
    title = f"Evaluation of {_text(document['model'])}"
    parts = [
        f"<h1>{title}</h1><p>{_text(sentence(document))}.</p>",
        *(_scores(document, condition) for condition in document["answerNats"]),
        _score_bars(document),
        _retrieval(document),
        _stacks("What became of the answers with passages", document["errors"], ERROR_PARTS),
        _abstention(document),
        _stacks("Where the answers' words stand", document["citations"], STATES),
        _facts(document),
        _items(records),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def _scores(document: Json, condition: str) -> str:
    models = [model for model in document["scores"] if condition in document["scores"][model]]
    cells = {model: document["scores"][model][condition] for model in models}
    rows = [
        [TITLES[name], *(_estimate(cells[model][name]) for model in models)]
        for name in _METRICS
        if name in cells["base"]
    ]
    if cells["base"].get("squadV2", {}).get("noAnswer", {}).get("items"):
        rows += [
            [f"{TITLES[name]}, {words}", *(_estimate(cells[model]["squadV2"][part][name]) for model in models)]
            for part, words in (("hasAnswer", "questions with an answer"), ("noAnswer", "questions without one"))
            for name in cells["base"]["squadV2"][part]
            if name != "items"
        ]
    nats = document["answerNats"][condition]
    rows.append(["Nats an answer token (less is better)", *(_estimate(nats[model]) for model in models)])
    if "difference" in nats:
        rows.append(["Tuned minus base", "", _estimate(nats["difference"])])
    caption = f"{TITLES[condition].capitalize()}, {cells['base']['items']} questions"
    return _table(caption, ["", *models], rows)


def _retrieval(document: Json) -> str:
    found = document["retrieval"]
    if not found:
        return ""
    rows = [
        [str(row["k"]), *(_estimate(row[name]) for name in ("recall", "precision", "wholeAnswer"))]
        for row in found["atK"]
    ]
    words = (
        f"<p>The right passage was among the retrieved ones for {found['hitRate']['value']:.0%} of {found['items']} "
        f"questions with an answer; {found['passagesCut']} prompts had no room for all passages.</p>"
    )
    head = ["First passages", "recall", "precision", "whole answer"]
    return (_table("Retrieval, by characters of the answer", head, rows) if rows else "") + words


def _abstention(document: Json) -> str:
    rows = []
    for model, condition, cell in _cells(document["abstention"]):
        if condition == "oracle":
            continue
        counts = [str(cell[side][did]) for side in ("answerable", "unanswerable") for did in ("answered", "abstained")]
        rows.append([f"{model}, {TITLES[condition]}", *counts, *(_estimate(cell[n]) for n in ("precision", "recall"))])
    head = ["", "has answer: answered", "abstained", "no answer: answered", "abstained", "precision", "recall"]
    return _table("Abstention", head, rows)


def _facts(document: Json) -> str:
    facts = {
        "Base model": document["base"].get("path") or document["base"].get("huggingFaceId"),
        "Base digest": document["base"]["digest"],
        "Adapter digest": document["adapter"]["digest"] if document["adapter"] else "none",
        "Dataset digest": document["dataset"]["digest"],
        "Prompt digest": document["prompt"]["digest"],
        "Per-item predictions": document["predictions"]["path"],
        "Their sha256": document["predictions"]["digest"],
        "BLEU": document["bleuSignature"],
        "Time": document["time"],
    }
    if document["heldOutText"]:
        text = document["heldOutText"]
        facts["Held-out text, nats a token"] = (
            f"base {text['base']['value']:.3f}, unigram {text['unigram']['value']:.3f}, "
            f"fitted on {text['unigramFittedOn']}"
        )
    rows = [[_text(name), f"<code>{_text(str(fact))}</code>"] for name, fact in facts.items()]
    terms = "".join(f"<li><b>{_text(name)}</b>: {_text(text)}</li>" for name, text in document["definitions"].items())
    return _table("What was measured", [], rows) + f"<h2>What the numbers mean</h2><ul>{terms}</ul>"


# ---------------------------------------------------------------------------------------------------------------------
# Plots


def _score_bars(document: Json) -> str:
    """Bars of F1, or else the first metric, by condition: base beside tuned, with their intervals."""
    conditions = list(document["answerNats"])
    name = next(name for name in ("f1", *_METRICS) if name in document["scores"]["base"][conditions[0]])
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
    full = left + len(bars) * width + len(conditions) * 30 + 40
    drawing = f'{axis}<path d="M{left} 0V{height}H{full - 20}" fill="none" stroke="#57606a"/>{"".join(shapes)}'
    return _figure(f"{TITLES[name]} with 95 % intervals", drawing, (0, -10, full, height + 54))


def _stacks(title: str, grid: Json, parts: Sequence[str]) -> str:
    """A bar of shares for each model and condition, with the counts written beside it."""
    rows = [(f"{model}, {TITLES[condition]}", cell) for model, condition, cell in _cells(grid)]
    if not rows:
        return ""
    left, width, step = 190.0, 420.0, 26.0
    shapes = []
    for number, (name, cell) in enumerate(rows):
        y, x = number * step, left
        total = sum(cell[part] for part in parts)
        shapes.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>')
        for part in parts:
            wide = width * cell[part] / total
            shapes.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="19" fill="{_PART_COLOURS[part]}">'
                f"<title>{_PART_TITLES.get(part, part)}: {cell[part]}</title></rect>"
            )
            x += wide
        shapes.append(f'<text x="{left + width + 8}" y="{y + 14}">{total}</text>')
    words = "".join(f'<tspan fill="{_PART_COLOURS[part]}">■</tspan> {_PART_TITLES.get(part, part)}  ' for part in parts)
    shapes.append(f'<text x="0" y="{len(rows) * step + 16}" xml:space="preserve">{words}</text>')
    counts = [[name, *(str(cell[part]) for part in parts)] for name, cell in rows]
    head = ["", *(_PART_TITLES.get(part, part) for part in parts)]
    drawing = _figure(title, "".join(shapes), (0, 0, left + width + 200, len(rows) * step + 26))
    return drawing + _table(f"{title}: counts", head, counts)


def _figure(title: str, drawing: str, box: tuple[float, float, float, float]) -> str:
    view = " ".join(f"{number:g}" for number in box)
    return (
        f'<figure><figcaption><b>{title}</b></figcaption><svg viewBox="{view}" width="{box[2]:g}" role="img" '
        f'aria-label="{title}" font-size="12" font-family="sans-serif">{drawing}</svg></figure>'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Items


def _items(records: Sequence[Json]) -> str:
    by_item: dict[str, list[Json]] = {}
    for record in records:
        by_item.setdefault(record["item"], []).append(record)
    shown = list(by_item.values())[:MOST_ITEMS]
    rest = f"; the predictions hold the other {len(by_item) - len(shown)}" if len(by_item) > len(shown) else ""
    intro = (
        f"<h2>Question by question</h2><p>{len(shown)} of {len(by_item)} questions{rest}. Characters count from the "
        "beginning of the document's clean text, as the collection holds it; the link opens the page where the PDF "
        "lies beside this report's folder, as it does in the workspace.</p>"
    )
    return intro + "".join(_item(lines) for lines in shown)


def _item(lines: list[Json]) -> str:
    first = lines[0]
    if first["answerable"]:
        where = _where(first["document"], first["page"], first["span"])
        reference = f"{_text(first['reference'])}<br><small>{where}</small>"
    else:
        reference = f"<i>the document does not say</i><br><small>{_where(first['document'], None, None)}</small>"
    rows = "".join(
        f"<tr><td>{line['model']}, {TITLES[line['condition']]}</td><td>{_said(line)}</td>"
        f"<td>{''.join(_citation(citation) for citation in line['citations'])}</td></tr>"
        for line in lines
    )
    return (
        f'<details id="item-{_text(first["item"])}"><summary>{_text(first["question"])}</summary>'
        f"<p><b>Reference:</b> {reference}</p>"
        f'<table class="text"><tr><th></th><th>answer</th><th>where its words stand</th></tr>{rows}</table></details>'
    )


def _said(line: Json) -> str:
    scores = [f"F1 {line['scores']['f1']:.2f}"] + (["abstained"] if line["abstained"] else [])
    outcome = f' · <span class="{line["outcome"]}">{line["outcome"]}</span>' if line["outcome"] else ""
    return f"{_text(line['prediction']) or '<i>nothing</i>'}<br><small>{', '.join(scores)}{outcome}</small>"


def _citation(citation: Json) -> str:
    state = f'<span class="{citation["state"]}">{citation["state"]}</span>'
    if "quote" not in citation:
        claim = f" “{_text(citation['claim'])}”" if citation["state"] == "unverified" else ""
        return f"{state}:{claim} {citation['why']}<br>"
    around = f"{_text(citation['before'])}<mark>{_text(citation['quote'])}</mark>{_text(citation['after'])}"
    where = _where(citation["document"], citation["page"], citation["span"])
    return f"{state}, {where}<blockquote>{around}</blockquote>"


def _where(document: Json, page_number: int | None, span: Sequence[int] | None) -> str:
    """Document, page, characters and digest; the document's name leads to the page."""
    path = document.get("path") or document.get("title") or "document"
    anchor = f"#page={page_number}" if page_number else ""
    link = f'<a href="../{quote(path)}{anchor}">{_text(path)}</a>' if document.get("path") else _text(path)
    parts = [
        link,
        *([f"page {page_number}"] if page_number else []),
        *([f"characters {span[0]} to {span[1]}"] if span else []),
        f"<code>sha256 {_text(document['digest'])}</code>",
    ]
    return ", ".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


def _cells(grid: Json) -> Iterable[tuple[str, str, Json]]:
    return ((model, condition, cell) for model, cells in grid.items() for condition, cell in cells.items())


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heading = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{caption}</caption>{heading}{body}</table>"


def _estimate(value: Json | None) -> str:
    if value is None:
        return "-"
    interval = "" if value["low"] is None else f" <small>{value['low']:.3f} to {value['high']:.3f}</small>"
    return f"{value['value']:.3f}{interval}"


def _text(value: str) -> str:
    return html.escape(value)
