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


def estimate(clusters: Sequence[Hashable], statistic: Callable[[Sequence[int]], float]) -> Estimate:
    """The statistic over all rows, with its interval. `statistic` takes the positions of the rows to use."""
    members: dict[Hashable, list[int]] = {}
    for position, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(position)
    value = statistic(range(len(clusters)))
    count = len(members)
    if count < 2:
        return Estimate(value, None, None, count)
    without = [
        statistic([position for position, other in enumerate(clusters) if other != cluster]) for cluster in members
    ]
    centre = sum(without) / count
    error = math.sqrt((count - 1) / count * sum((part - centre) ** 2 for part in without))
    half_width = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    return Estimate(value, value - half_width, value + half_width, count)


def mean(clusters: Sequence[Hashable], values: Sequence[float]) -> Estimate:
    """The mean over rows."""
    return ratio(clusters, values, [1.0] * len(values))


def ratio(clusters: Sequence[Hashable], values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """The sum of the values over the sum of the weights, such as nats a token."""

    def statistic(rows: Sequence[int]) -> float:
        weight = sum(weights[row] for row in rows)
        return sum(values[row] for row in rows) / weight if weight else 0.0

    return estimate(clusters, statistic)
