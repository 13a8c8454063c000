"""Characters of documents: overlaps count once, and documents are never mixed."""

import random

from mark_trainer.spans import characters, merged, shared


def test_spans_that_overlap_or_touch_are_one() -> None:
    places = [("a", (5, 9)), ("a", (0, 3)), ("b", (2, 4)), ("a", (3, 4)), ("a", (8, 12)), ("a", (7, 7))]
    assert merged(places) == {"a": [(0, 4), (5, 12)], "b": [(2, 4)]}
    assert characters(places) == 13


def test_the_same_place_of_another_document_is_another_place() -> None:
    assert shared([("a", (0, 10))], [("b", (0, 10))]) == 0
    assert shared([("a", (0, 10)), ("b", (0, 4))], [("b", (2, 10))]) == 2


def test_passages_that_overlap_do_not_count_twice() -> None:
    answer, passages = [("a", (40, 60))], [("a", (0, 50)), ("a", (45, 100)), ("a", (30, 55))]
    assert shared(passages, answer) == 20  # added up without merging it would be 10 + 15 + 15
    assert characters(passages) == 100


def test_against_sets_of_characters() -> None:
    random_of = random.Random(5)

    def draw() -> list[tuple[str, tuple[int, int]]]:
        starts = [random_of.randrange(40) for _ in range(random_of.randrange(6))]
        return [(random_of.choice("ab"), (start, start + random_of.randrange(12))) for start in starts]

    for _ in range(300):
        some, others = draw(), draw()
        of_some, of_others = ({(d, c) for d, span in places for c in range(*span)} for places in (some, others))
        assert characters(some) == len(of_some)
        assert shared(some, others) == shared(others, some) == len(of_some & of_others)
