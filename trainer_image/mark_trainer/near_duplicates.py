"""Which texts are so alike that one must not be held out while a model trains on the other. Exact, and without any
randomness.

It must not know what the texts are.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WORDS_OF_A_SHINGLE = 5
SAME_CLUSTER_OVERLAP = 0.3
# Beyond this many shingles in all, a fixed share of them is compared, the same in every text.
_COMPARED_SHINGLES = 4_000_000

Shingles = NDArray[np.uint64]


def shingles(text: str, words: int = WORDS_OF_A_SHINGLE) -> Shingles:
    """The distinct runs of `words` words as 64-bit hashes, sorted. Case and punctuation do not count."""
    hashes = np.array([_word_hash(word) for word in re.findall(r"[^\W_]+", text.casefold())], dtype=np.uint64)
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


def cluster(texts: Mapping[str, str], threshold: float = SAME_CLUSTER_OVERLAP) -> dict[str, str]:
    """For each text its cluster, named by the cluster's first text in sorted order.

    Two texts that overlap by the threshold are in one cluster, and so are the neighbours of neighbours.
    """
    keys = sorted(texts)
    sets = _compared([shingles(texts[key]) for key in keys])
    parents = list(range(len(keys)))
    for right, shared in enumerate(_shared_with_earlier(sets)):
        for left, count in enumerate(shared.tolist()):
            smaller = min(len(sets[left]), len(sets[right]))
            if count and count >= threshold * smaller:
                _join(parents, left, right)
    return {key: keys[_root(parents, index)] for index, key in enumerate(keys)}


def largest_overlap(left: Mapping[str, str], right: Mapping[str, str]) -> float:
    """The highest overlap of any text on the left with any on the right: the proof that a split leaks nothing."""
    left_sets = _compared([shingles(text) for text in left.values()])
    right_sets = _compared([shingles(text) for text in right.values()])
    return max((overlap(a, b) for a in left_sets for b in right_sets), default=0.0)


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def _compared(sets: Sequence[Shingles]) -> list[Shingles]:
    total = sum(len(entry) for entry in sets)
    if total <= _COMPARED_SHINGLES:
        return list(sets)
    limit = np.uint64(2**64 // (total // _COMPARED_SHINGLES + 1))
    return [entry[entry < limit] for entry in sets]


def _shared_with_earlier(sets: Sequence[Shingles]) -> list[NDArray[np.int64]]:
    """For each text, how many shingles it shares with each text before it."""
    everything = np.concatenate(sets) if sets else np.array([], dtype=np.uint64)
    _, numbers = np.unique(everything, return_inverse=True)
    holders: defaultdict[int, list[int]] = defaultdict(list)
    counts, start = [], 0
    for index, entry in enumerate(sets):
        own = numbers[start : start + len(entry)].tolist()
        start += len(entry)
        earlier = [holder for number in own for holder in holders[number]]
        counts.append(np.bincount(np.array(earlier, dtype=np.int64), minlength=index))
        for number in own:
            holders[number].append(index)
    return counts


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _join(parents: list[int], left: int, right: int) -> None:
    first, second = sorted((_root(parents, left), _root(parents, right)))
    parents[second] = first
