"""Metrics against the cases in which their references disagree with each other or with intuition."""

import pytest
from mark_trainer import metrics
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "f1"),
    [
        ("The Delaware law.", "delaware law", 1.0, 1.0),
        ("laws of Delaware", "the laws of the State of Delaware", 0.0, 2 * 3 / (3 + 5)),
        ("New York", "Delaware", 0.0, 0.0),
        ("a an the", "", 1.0, 1.0),  # v1: exact match 1, F1 0
        ("something", "", 0.0, 0.0),
        ("", "something", 0.0, 0.0),
        ("of of law", "of law law", 0.0, 2 / 3),  # words count as often as both have them
        ("non-exclusive", "nonexclusive", 1.0, 1.0),  # punctuation goes, it leaves no space
        ("Ελλάδα", "ελλάδα", 1.0, 1.0),
    ],
)
def test_exact_match_and_f1_by_squad_v2(prediction: str, reference: str, exact: float, f1: float) -> None:
    assert metrics.exact_match(prediction, [reference]) == exact
    assert metrics.f1(prediction, [reference]) == pytest.approx(f1)


def test_the_best_reference_counts_and_empty_ones_do_not() -> None:
    assert metrics.f1("New York law", ["Delaware law", "New York law"]) == 1
    # v2 keeps only references with an answer; an unanswerable question has the one reference "".
    assert metrics.exact_match("", ["the", "Delaware"]) == 0
    assert metrics.exact_match("", ["the"]) == 1


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("the licensee shall pay", "the licensee must pay a fee"),
        ("pay; keep the notice", "keep the notice, pay"),
        ("Section 2(a) of the Act", "section 2 (a)"),
        ("", "x"),
    ],
)
def test_rouge_l_is_rouge_scores_on_ascii(prediction: str, reference: str) -> None:
    default = RougeScorer(["rougeL"], use_stemmer=False).score(reference, prediction)["rougeL"].fmeasure
    assert metrics.rouge_l(prediction, [reference]) == pytest.approx(default)


def test_rouge_l_reads_other_alphabets() -> None:
    assert RougeScorer(["rougeL"]).score("ο νόμος", "ο νόμος")["rougeL"].fmeasure == 0  # the trap
    assert metrics.rouge_l("ο νόμος", ["ο νόμος"]) == 1


def test_bleu_of_one_right_word() -> None:
    assert (
        metrics.corpus_bleu(metrics.bleu_counts("Delaware", ["Delaware"])) == 0
    )  # the trap: there is no four-word match
    assert metrics.sentence_bleu("Delaware", ["Delaware"]) == pytest.approx(1)


def test_corpus_bleu_is_sacrebleus() -> None:
    predictions = ["the licensee shall pay the fee at once", "keep the notice in every copy"]
    references = ["the licensee shall pay a fee at once", "keep this notice in every copy"]
    expected = BLEU().corpus_score(predictions, [references]).score / 100
    counts = [metrics.bleu_counts(*pair) for pair in zip(predictions, [[text] for text in references], strict=True)]
    assert metrics.corpus_bleu([sum(column) for column in zip(*counts, strict=True)]) == expected > 0
    assert metrics.bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_all_scores_lie_between_0_and_1() -> None:
    for score in metrics.PER_ANSWER.values():
        assert score("the fee is due at once", ["the fee is due at once"]) == pytest.approx(1)
        assert score("", ["the fee"]) == 0
