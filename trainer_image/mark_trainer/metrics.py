"""Exact match, F1, ROUGE-L and BLEU of answers, each as a number from 0 to 1. It must not read files or models.

Exact match and F1 follow SQuAD's scripts, written anew: lower case, ASCII punctuation away, the articles a, an and
the away, spaces squeezed; the best of several references counts. The scripts of v1 and v2 differ in three places:

- F1 where nothing is left of prediction or reference: v2 gives 1 if both are empty and else 0, v1 gives 0 in both
  cases, though its exact match of two empty answers is 1;
- v2 does not compare with references of which nothing is left, unless there is no other; v1 does;
- v2 knows questions without an answer: their one reference is "", and a model that abstains says "". v1 does not.

(v1 also counts a missing prediction as 0, v2 skips it; we always have one.)

ROUGE-L is rouge-score's F-measure without stemming, reference first. Its own tokenizer drops every character beyond
a-z and 0-9, so that equal Greek answers score 0; ours keeps the letters of every script and is the same on ASCII text.

BLEU is sacrebleu's, divided by 100. Corpus BLEU of short answers is often 0 even where they are right, since it wants
four-word matches; the mean of sentence BLEU with effective order stands beside it.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

ROUGE_TOKENIZER = (
    "lower-cased runs of Unicode letters, digits and their marks (NFC); Han, Hiragana and Katakana one by one; on "
    "ASCII text the same as rouge-score's default"
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WITHOUT_SPACES = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def normalised(answer: str) -> str:
    """An answer as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if prediction and a reference are the same after normalisation."""
    return max(float(normalised(prediction) == normalised(reference)) for reference in golden(references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the words, for the best reference."""
    return max(_f1(normalised(prediction).split(), normalised(reference).split()) for reference in golden(references))


def exact_match_v1(prediction: str, references: Sequence[str]) -> float:
    """Exact match by the rules of SQuAD v1."""
    return max(float(normalised(prediction) == normalised(reference)) for reference in references)


def f1_v1(prediction: str, references: Sequence[str]) -> float:
    """F1 by the rules of SQuAD v1."""
    words = normalised(prediction).split()
    return max(_shared_f1(words, normalised(reference).split()) for reference in references)


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


def scores(prediction: str, reference: str, *, answerable: bool, abstained: bool) -> dict[str, float | None]:
    """All scores of one answer. A question without an answer has only those of SQuAD v2, and an abstention says ""."""
    said, right = "" if abstained else prediction, reference if answerable else ""
    overlap = {name: score(prediction, [reference]) if answerable else None for name, score in OF_TEXT.items()}
    return {"exactMatch": exact_match(said, [right]), "f1": f1(said, [right]), **overlap}


OF_TEXT: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exactMatchV1": exact_match_v1,
    "f1V1": f1_v1,
    "rougeL": rouge_l,
    "bleu": sentence_bleu,
}
"""The scores that compare an answer with a text, whether it abstains or not."""


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    return _shared_f1(prediction, reference)


def _shared_f1(prediction: list[str], reference: list[str]) -> float:
    shared = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0


class _Words:
    """A tokenizer in the shape that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        lower = unicodedata.normalize("NFC", text.lower())
        words = "".join(letter if unicodedata.category(letter)[0] in "LNM" else " " for letter in lower)
        return _WITHOUT_SPACES.sub(r" \1 ", words).split()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words())


@cache
def _bleu(*, effective_order: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=effective_order)
