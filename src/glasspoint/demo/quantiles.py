"""Computes percentiles of Prometheus histograms over a sliding window, as `histogram_quantile` does."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

__all__ = ["SampleWindow", "quantile"]

_Key = tuple[str, frozenset[tuple[str, str]]]


class SampleWindow:
    """The newest `length` readings of a registry: the present values, and their growth since the oldest."""

    def __init__(self, registry: CollectorRegistry, *, length: int) -> None:
        self._registry = registry
        self._readings: deque[Mapping[_Key, float]] = deque(maxlen=length)
        self.read()

    def read(self) -> None:
        """Take another reading."""
        self._readings.append(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in self._registry.collect()
                for sample in family.samples
            }
        )

    def now(self, name: str, **labels: str) -> float:
        """Return the present sum of all samples with this name and these labels."""
        return sum(value for _, value in self._matching(self._readings[-1], name, labels))

    def grown(self, name: str, **labels: str) -> float:
        """Return the growth of that sum within the window."""
        return self.now(name, **labels) - sum(v for _, v in self._matching(self._readings[0], name, labels))

    def quantiles(self, name: str, *wanted: float, **labels: str) -> list[float]:
        """Return percentiles of a histogram within the window, in its unit; NaN if it observed nothing."""
        buckets: dict[float, float] = {}
        for sign, reading in ((1, self._readings[-1]), (-1, self._readings[0])):
            for le, value in self._matching(reading, f"{name}_bucket", labels):
                buckets[le] = buckets.get(le, 0.0) + sign * value
        return [quantile(q, buckets) for q in wanted]

    @staticmethod
    def _matching(
        reading: Mapping[_Key, float], name: str, labels: Mapping[str, str]
    ) -> list[tuple[float, float]]:
        """Return (upper bound, value) of each sample with these labels; only buckets have a finite bound."""
        found = []
        for (sample_name, sample_labels), value in reading.items():
            if sample_name == name and labels.items() <= sample_labels:
                found.append((float(dict(sample_labels).get("le", "inf")), value))
        return found


def quantile(q: float, buckets: Mapping[float, float]) -> float:
    """Return the `q` quantile of cumulative buckets (upper bound -> count), interpolated within its bucket.

    Example:
        >>> quantile(0.5, {1.0: 2, 2.0: 4, float("inf"): 4})
        1.0
    """
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return math.nan
    rank, below, lower = q * total, 0.0, 0.0
    for upper, count in sorted(buckets.items()):
        if count >= rank and count > below:
            return lower if math.isinf(upper) else lower + (upper - lower) * (rank - below) / (count - below)
        below, lower = count, upper
    return lower
