"""Intervals must hold what they promise, also when documents are few and unequal."""

import math
import random

import pytest
from mark_trainer import statistics


def test_equal_clusters_of_one_give_the_t_interval() -> None:
    values = [0.0, 1.0, 4.0, 7.0]
    found = statistics.mean(range(4), values)
    error = math.sqrt(sum((value - 3) ** 2 for value in values) / 3 / 4)
    assert found.value == 3
    assert found.high is not None and found.high - 3 == pytest.approx(3.182446 * error, rel=1e-6)  # t, 3 degrees
    assert found.low is not None and 3 - found.low == pytest.approx(found.high - 3)


def test_ratio_weighs_rows_by_their_weights() -> None:
    found = statistics.ratio(["a", "a", "b"], [2.0, 4.0, 10.0], [1.0, 1.0, 8.0])
    assert found.value == pytest.approx(1.6)
    assert found.clusters == 2


def test_one_cluster_has_no_interval() -> None:
    found = statistics.mean(["a", "a"], [0.0, 1.0])
    assert (found.value, found.low, found.high, found.clusters) == (0.5, None, None, 1)


@pytest.mark.parametrize("clusters", [6, 12, 30])
def test_coverage_with_few_unequal_clusters(clusters: int) -> None:
    """Rows of a document share an effect; the interval covers the truth about 95 times in 100."""
    random_of = random.Random(clusters)
    covered = naive = 0
    runs = 600
    for _ in range(runs):
        names: list[int] = []
        values: list[float] = []
        for cluster in range(clusters):
            effect = random_of.gauss(0, 1)
            for _ in range(random_of.choice((2, 4, 8))):
                names.append(cluster)
                values.append(effect + random_of.gauss(0, 0.5))
        found = statistics.mean(names, values)
        by_row = statistics.mean(range(len(values)), values)
        assert found.low is not None and found.high is not None and by_row.low is not None and by_row.high is not None
        covered += found.low <= 0 <= found.high
        naive += by_row.low <= 0 <= by_row.high
    assert 0.93 <= covered / runs <= 0.99
    assert naive / runs < 0.8  # what ignoring documents would promise
