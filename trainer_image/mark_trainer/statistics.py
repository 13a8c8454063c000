"""Numbers with confidence intervals that respect documents. It must not know what was measured.

Answers from one document stand or fall together, so the sample is documents, not answers. Intervals come from the
jackknife over clusters of documents: the statistic is computed once without each cluster, and the spread of those
values gives the standard error, with Student's t at clusters - 1 degrees of freedom. It was chosen over a bootstrap
because held-out documents are few (a percentile bootstrap of ten clusters covers too little), needs no random
numbers, and serves means, ratios and corpus BLEU alike.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; without one where fewer than two clusters were seen."""

    value: float
    low: float | None
    high: float | None
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "clusters": self.clusters}


def estimate(
    clusters: Sequence[Hashable], parts: Sequence[Sequence[float]], of_sums: Callable[[Sequence[float]], float]
) -> Estimate:
    """A number that depends on sums over rows, with its interval. `parts` holds the summands of each row."""
    columns = range(len(parts[0]))
    sums: dict[Hashable, list[float]] = {}
    for cluster, part in zip(clusters, parts, strict=True):
        so_far = sums.setdefault(cluster, [0.0] * len(part))
        for column in columns:
            so_far[column] += part[column]
    totals = [math.fsum(part[column] for part in sums.values()) for column in columns]
    value, count = of_sums(totals), len(sums)
    if count < 2:
        return Estimate(value, None, None, count)
    without = [of_sums([totals[column] - part[column] for column in columns]) for part in sums.values()]
    centre = math.fsum(without) / count
    error = math.sqrt((count - 1) / count * math.fsum((other - centre) ** 2 for other in without))
    half_width = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    return Estimate(value, value - half_width, value + half_width, count)


def mean(clusters: Sequence[Hashable], values: Sequence[float]) -> Estimate:
    """The mean over rows."""
    return ratio(clusters, values, [1.0] * len(values))


def ratio(clusters: Sequence[Hashable], values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """The sum of the values over the sum of the weights, such as nats a token."""
    pairs = list(zip(values, weights, strict=True))
    return estimate(clusters, pairs, lambda sums: sums[0] / sums[1] if sums[1] else 0.0)
