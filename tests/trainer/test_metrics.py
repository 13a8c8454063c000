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


@pytest.mark.parametrize(
    ("prediction", "references", "v1", "v2"),
    [
        ("laws of Delaware", ["the laws of Delaware"], (1, 1), (1, 1)),  # they agree wherever words are left
        ("the", [""], (1, 0), (1, 1)),  # both sides are empty: v1 has nothing in common, v2 calls it right
        ("", ["the"], (1, 0), (1, 1)),
        ("", ["the", "Delaware"], (1, 0), (0, 0)),  # v2 leaves out a reference of which nothing is left
        ("a", ["an", "Delaware law"], (1, 0), (0, 0)),
        ("Delaware", ["", "Delaware law"], (0, 2 / 3), (0, 2 / 3)),
        ("something", [""], (0, 0), (0, 0)),
    ],
)
def test_cases_that_tell_squad_v1_from_v2(
    prediction: str, references: list[str], v1: tuple[float, float], v2: tuple[float, float]
) -> None:
    assert metrics.exact_match_v1(prediction, references) == v1[0]
    assert metrics.f1_v1(prediction, references) == pytest.approx(v1[1])
    assert metrics.exact_match(prediction, references) == v2[0]
    assert metrics.f1(prediction, references) == pytest.approx(v2[1])


REFUSAL = "The document does not say."


@pytest.mark.parametrize(
    ("prediction", "answerable", "abstained", "v2", "v1"),
    [
        ("Delaware", True, False, 1, 1),
        (REFUSAL, True, True, 0, 0),  # there was an answer
        ("", True, True, 0, 0),
        (REFUSAL, False, True, 1, None),  # v1 has no such questions
        ("", False, True, 1, None),
        ("Delaware", False, False, 0, None),
    ],
)
def test_questions_without_an_answer_are_scored_by_v2_alone(
    prediction: str, answerable: bool, abstained: bool, v2: int, v1: int | None
) -> None:
    found = metrics.scores(
        prediction, "Delaware" if answerable else REFUSAL, answerable=answerable, abstained=abstained
    )
    assert (found["exactMatch"], found["f1"]) == (v2, v2)
    assert (found["exactMatchV1"], found["f1V1"]) == (v1, v1)
    assert (found["rougeL"] is None) == (found["bleu"] is None) == (not answerable)


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


@pytest.mark.parametrize(
    ("prediction", "f_measure"),
    [("testing one", 4 / 5), ("testing two", 4 / 5), ("testing", 1 / 2), ("", 0), ("/", 0), ("TESTING, one: two!", 1)],
)
def test_cases_of_rouge_scores_own_suite(prediction: str, f_measure: float) -> None:
    """Reference "testing one two"; the longest common subsequence need not be in one piece."""
    assert metrics.rouge_l(prediction, ["testing one two"]) == pytest.approx(f_measure)


@pytest.mark.parametrize("text", ["ΟΔΟΣ ΑΘΗΝΩΝ", "अनुबंध का उल्लंघन", "Größe und Maß", "違反 した 場合", "صاحب العمل"])
def test_equal_answers_score_1_in_any_alphabet(text: str) -> None:
    assert metrics.rouge_l(text, [text]) == 1
    assert 0 < metrics.rouge_l(text, [f"{text} 2024"]) < 1
    assert metrics.f1(text, [text]) == 1
    assert metrics.sentence_bleu(text, [text]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("अनुबंध का", ["अनुबंध", "का"]),  # vowel signs are no letters, yet they do not end a word
        ("違反した場合 2024年", ["違", "反", "し", "た", "場", "合", "2024", "年"]),
        ("E\u0301tat_libre", ["état", "libre"]),
        ("§ 12(a), État's", ["12", "a", "état", "s"]),
    ],
)
def test_words_of_other_scripts(text: str, words: list[str]) -> None:
    """One of n words in common has F1 2/(n+1), which tells how many words there are."""
    assert metrics.rouge_l(words[0], [text]) == pytest.approx(2 / (len(words) + 1))
    assert metrics.rouge_l(" ".join(words), [text]) == 1


# The cases of sacrebleu's own suite: its README's three sentences with two references each, and its issue 98.
_DOGS = [
    ("The dog bit the man.", ["The dog bit the man.", "The dog had bit the man."]),
    ("It wasn't surprising.", ["It was not unexpected.", "No one was surprised."]),
    ("The man had just bitten him.", ["The man bit him first.", "The man had bitten the dog."]),
]


@pytest.mark.parametrize(("said", "bleu"), [([row[0] for row in _DOGS], 48.530827), (["", "", ""], 0.0)])
def test_corpus_cases_of_sacrebleus_own_suite(said: list[str], bleu: float) -> None:
    counts = [metrics.bleu_counts(text, references) for text, (_, references) in zip(said, _DOGS, strict=True)]
    assert metrics.corpus_bleu([sum(column) for column in zip(*counts, strict=True)]) * 100 == pytest.approx(bleu)


@pytest.mark.parametrize(
    ("prediction", "reference", "bleu"),
    [
        (
            "Producția de zahăr primă va fi exprimată în ceea ce privește zahărul alb;",
            "producţia de zahăr brut se exprimă în zahăr alb;",
            8.493,
        ),
        ("this is a cat", "okay thanks", 0.0),
        ("test", "a test", 36.78794411714425),
        ("a test", "a test", 100.0),
    ],
)
def test_sentence_cases_of_sacrebleus_own_suite(prediction: str, reference: str, bleu: float) -> None:
    assert metrics.sentence_bleu(prediction, [reference]) * 100 == pytest.approx(bleu, abs=1e-3)


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
    right = metrics.scores("the fee is due at once", "the fee is due at once", answerable=True, abstained=False)
    assert all(score == pytest.approx(1) for score in right.values())
    wrong = metrics.scores("", "the fee", answerable=True, abstained=True)
    assert all(score == 0 for score in wrong.values())
