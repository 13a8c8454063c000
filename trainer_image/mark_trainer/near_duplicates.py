"""Which texts are so alike that one must not be held out while a model trains on the other. Exact, and without any
randomness.

It must not know what the texts are.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WORDS_OF_A_SHINGLE = 5
SAME_CLUSTER_OVERLAP = 0.3
# Beyond this many shingles in all, a fixed share of them is compared, the same in every text; equal texts always are.
_COMPARED_SHINGLES = 4_000_000

Shingles = NDArray[np.uint64]


def shingles(text: str, words: int = WORDS_OF_A_SHINGLE) -> Shingles:
    """The distinct runs of `words` words as 64-bit hashes, sorted. Case and punctuation do not count."""
    hashes = np.array([_word_hash(word) for word in _words(text)], dtype=np.uint64)
    if len(hashes) < words:
        words = max(1, len(hashes))
    runs = max(0, len(hashes) - words + 1)
    total = np.zeros(runs, dtype=np.uint64)
    for offset in range(words):
        # Wraps around at 2**64 on purpose: a polynomial hash.
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + runs]
    return np.unique(total)


def overlap(left: Shingles, right: Shingles) -> float:
    """The share of the smaller text's shingles that the other text has too, from 0 to 1."""
    smaller = min(len(left), len(right))
    return len(np.intersect1d(left, right, assume_unique=True)) / smaller if smaller else 0.0


def says(text: str, words: str) -> bool:
    """Whether the words stand in the text, one after the other. Case and punctuation do not count."""
    wanted = _run_of_words(words)
    return bool(wanted.strip()) and wanted in _run_of_words(text)


def cluster(texts: Mapping[str, str], threshold: float = SAME_CLUSTER_OVERLAP) -> dict[str, str]:
    """For each text its cluster, named by the cluster's first text in sorted order.

    Two texts that overlap by the threshold are in one cluster, and so are the neighbours of neighbours.
    """
    keys = sorted(texts)
    parents = list(range(len(keys)))
    for left, right, share in _overlaps([texts[key] for key in keys]):
        if share >= threshold:
            _join(parents, left, right)
    return {key: keys[_root(parents, index)] for index, key in enumerate(keys)}


def largest_overlap(texts: Mapping[str, str], sides: Mapping[str, str]) -> float:
    """The highest overlap of two texts on different sides: the proof that a split leaks nothing."""
    keys = sorted(texts)
    pairs = _overlaps([texts[key] for key in keys])
    return max((share for left, right, share in pairs if sides[keys[left]] != sides[keys[right]]), default=0.0)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


@lru_cache(maxsize=10_000)
def _run_of_words(text: str) -> str:
    return f" {' '.join(_words(text))} "


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def _compared(sets: Sequence[Shingles]) -> list[Shingles]:
    total = sum(len(entry) for entry in sets)
    if total <= _COMPARED_SHINGLES:
        return list(sets)
    limit = np.uint64(2**64 // (total // _COMPARED_SHINGLES + 1))
    return [entry[entry < limit] for entry in sets]


def _overlaps(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Every pair of texts that shares a compared shingle, by position, with its overlap; equal ones in any case."""
    # Short texts may have none of the shingles that are compared.
    yield from ((left, right, 1.0) for left, right in _equal(texts))
    sets = _compared([shingles(text) for text in texts])
    everything = np.concatenate(sets) if sets else np.array([], dtype=np.uint64)
    _, numbers = np.unique(everything, return_inverse=True)
    holders: defaultdict[int, list[int]] = defaultdict(list)
    start = 0
    for right, entry in enumerate(sets):
        own = numbers[start : start + len(entry)].tolist()
        start += len(entry)
        for left, count in Counter(holder for number in own for holder in holders[number]).items():
            yield left, right, count / min(len(sets[left]), len(entry))
        for number in own:
            holders[number].append(right)


def _equal(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Each text that has the very words of earlier ones, behind the last of these."""
    last: dict[bytes, int] = {}
    for right, text in enumerate(texts):
        words = " ".join(_words(text))
        if words:
            digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
            if digest in last:
                yield last[digest], right
            last[digest] = right


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _join(parents: list[int], left: int, right: int) -> None:
    first, second = sorted((_root(parents, left), _root(parents, right)))
    parents[second] = first
