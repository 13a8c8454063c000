"""Overlap, clusters and the proof that a split leaks nothing."""

import random

import pytest
from mark_trainer import near_duplicates
from mark_trainer.near_duplicates import cluster, largest_overlap, overlap, says, shingles

WORDS = [f"word{number}" for number in range(400)]


def words(seed: int, count: int = 300) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def test_equal_texts_overlap_wholly_whatever_their_case_and_punctuation() -> None:
    assert (
        overlap(shingles("The Licensor, hereby, grants You it."), shingles("the licensor hereby grants you IT")) == 1.0
    )


def test_a_part_of_a_text_overlaps_wholly_with_it() -> None:
    text = words(1)
    assert overlap(shingles(text), shingles(" ".join(text.split()[50:150]))) == 1.0


@pytest.mark.parametrize("text", ["", "one", "one two three"])
def test_short_texts_do_not_break_it(text: str) -> None:
    assert overlap(shingles(text), shingles(text)) in (0.0, 1.0)


def test_neighbours_of_neighbours_are_one_cluster() -> None:
    first, second, third = words(1), words(2), words(3)
    texts = {
        "a": first,
        "b": " ".join([*first.split()[:150], *second.split()[:150]]),
        "c": second,
        "d": third,
    }
    assert cluster(texts) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = {str(number): words(number % 4) + words(number + 10, 100) for number in range(12)}
    backwards = dict(reversed(list(texts.items())))
    assert cluster(texts) == cluster(backwards)


def test_largest_overlap_looks_across_the_split_only() -> None:
    text = words(1)
    texts = {"a": text, "b": text, "c": " ".join([*text.split()[:30], *words(2, 270).split()])}
    assert largest_overlap(texts, {"a": "train", "b": "train", "c": "val"}) == pytest.approx(26 / 296, abs=0.01)
    assert largest_overlap(texts, {"a": "train", "b": "val", "c": "val"}) == 1.0


def test_equal_words_are_found_however_few_shingles_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_COMPARED_SHINGLES", 1)
    texts = {
        f"{number}{side}": f"{mark} {words(number, 6)}"
        for number in range(9)
        for side, mark in (("a", "-"), ("b", "."))
    }
    assert cluster(texts) == {key: f"{key[0]}a" for key in texts}
    sides = dict.fromkeys(texts, "train") | {"8b": "val"}
    assert largest_overlap(texts, sides) == 1.0
    assert largest_overlap(texts, dict.fromkeys(texts, "train")) == 0.0


def test_texts_without_words_are_not_alike() -> None:
    assert cluster({"a": "", "b": "...", "c": "\u00a7"}) == {"a": "a", "b": "b", "c": "c"}


def test_a_text_says_the_words_of_another_whatever_their_case_and_punctuation() -> None:
    assert says("It is governed by the Laws of\nDelaware.", "the laws of Delaware;")
    assert not says("It is governed by the bylaws of Delaware.", "laws of delaware")
    assert not says("The laws of Delaware", "...")
