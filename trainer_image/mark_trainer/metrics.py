"""Exact match, F1, ROUGE-L and BLEU of answers, each as a number from 0 to 1. It must not read files or models.

Exact match and F1 follow SQuAD v2's script, written anew: lower case, ASCII punctuation away, the articles a, an and
the away, spaces squeezed; the best of several references counts. SQuAD v1's script differs in one place that shows:
where nothing is left of prediction or reference, v2's F1 is 1 if both are empty and else 0, while v1's is 0 in both
cases though its exact match of two empty answers is 1. (v1 also counts a missing prediction as 0, v2 skips it; we
always have one.)

ROUGE-L is rouge-score's F-measure without stemming, reference first. Its own tokenizer drops every character beyond
a-z and 0-9, so that equal Greek answers score 0; ours keeps all letters and digits and is the same on ASCII text.

BLEU is sacrebleu's, divided by 100. Corpus BLEU of short answers is often 0 even where they are right, since it wants
four-word matches; the mean of sentence BLEU with effective order stands beside it.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

ROUGE_TOKENIZER = "lower-cased runs of Unicode letters and digits; on ASCII text the same as rouge-score's default"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")


def normalised(answer: str) -> str:
    """An answer as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if prediction and a reference are the same after normalisation."""
    return max(float(normalised(prediction) == normalised(reference)) for reference in golden(references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the words, for the best reference."""
    return max(_f1(normalised(prediction).split(), normalised(reference).split()) for reference in golden(references))


def golden(references: Sequence[str]) -> Sequence[str]:
    """The references that say something; none of them means that the right answer is the empty one."""
    return [reference for reference in references if normalised(reference)] or [""]


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure, for the best reference."""
    return max(float(_rouge().score(reference, prediction)["rougeL"].fmeasure) for reference in references)


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """BLEU of one answer over the n-grams it is long enough for."""
    return float(_bleu(effective_order=True).sentence_score(prediction, list(references)).score) / 100


def bleu_counts(prediction: str, references: Sequence[str]) -> list[float]:
    """What one answer adds to corpus BLEU: matched n-grams, n-grams, and the lengths of both sides."""
    score = _bleu(effective_order=True).sentence_score(prediction, list(references))
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def corpus_bleu(counts: Sequence[float]) -> float:
    """BLEU of all answers together, from the sums of their counts; the same as sacrebleu's corpus_score."""
    from sacrebleu.metrics import BLEU

    whole = [round(count) for count in counts]
    orders = (len(whole) - 2) // 2
    correct, total, lengths = whole[:orders], whole[orders : 2 * orders], whole[2 * orders :]
    return float(BLEU.compute_bleu(correct, total, *lengths, smooth_method="exp", max_ngram_order=orders).score) / 100


def bleu_signature() -> str:
    """What sacrebleu needs to give the same corpus BLEU again."""
    bleu = _bleu(effective_order=False)
    bleu.corpus_score(["a"], [["a"]])
    return str(bleu.get_signature())


PER_ANSWER: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exactMatch": exact_match,
    "f1": f1,
    "rougeL": rouge_l,
    "bleu": sentence_bleu,
}


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)  # SQuAD v2; v1 gives 0
    shared = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * shared / (len(prediction) + len(reference))


class _Words:
    """A tokenizer in the shape that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words())


@cache
def _bleu(*, effective_order: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=effective_order)
