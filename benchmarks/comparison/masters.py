"""What one Redis and Redis Clusters have cost, as rows of a table: `cluster.py` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from comparison.measuring import Figure, Metric, Spread, ratio
from comparison.report import said, told

SINGLE: Final = "one Redis"

CONTENDERS: Final = {SINGLE: 0, "cluster, 1 master": 1, "cluster, 3 masters": 3}
"""How many masters each has; 0: no cluster."""

Rows = tuple[list[str], list[list[str]]]


def rows(document: dict[str, Any]) -> Rows:
    """The head and the rows of hits and turns."""
    figures = [Figure.from_json(each) for each in document["figures"]]
    found: list[list[str]] = []
    for _, group in groupby(figures, key=lambda each: each.group):
        of_name = {each.contender: each for each in group}
        first = of_name[SINGLE]
        metric: Metric = "per_second" if first.is_throughput else "p50_ms"
        unit, times = ("µs", 1000) if first.workload == "hit" else ("ms", 1)
        found += [
            [
                f"{first.workload}, {said(first.variant)}: "
                + (f"{first.workload}s/s" if first.is_throughput else "ms"),
                *(told(each.spread(metric)) for each in _ordered(of_name)),
            ],
            ["… x", "1", *_ratios(of_name, metric)],
            [f"… cpu, {unit}", *(_told(each.spread("cpu_ms"), times) for each in _ordered(of_name))],
            ["… cpu, x", "1", *_ratios(of_name, "cpu_ms")],
            [f"… Redis, {unit}", *(_told(each.counted("redis_ms"), times) for each in _ordered(of_name))],
            ["… Redis, steps", *(_told(each.counted("redis_steps")) for each in _ordered(of_name))],
        ]
    return ["", *CONTENDERS], found


def idle_rows(document: dict[str, Any]) -> Rows:
    """The head and the rows of a saver that is not called."""
    of_name = {each["contender"]: Figure.from_json(each).rounds[0] for each in document["idle"]}
    taken = [of_name[name] for name in CONTENDERS]
    return (
        ["a second without a call", *CONTENDERS],
        [
            ["cpu, ms", *(f"{each.cpu_ms:.1f}" for each in taken)],
            ["Redis, ms", *(f"{each.redis_ms or 0.0:.1f}" for each in taken)],
        ],
    )


def _ordered(of_name: dict[str, Figure]) -> Sequence[Figure]:
    return [of_name[name] for name in CONTENDERS]


def _told(spread: Spread | None, times: float = 1) -> str:
    assert spread is not None, "what is counted of Redis is counted in each round"
    return told(Spread(times * spread.low, times * spread.median, times * spread.high))


def _ratios(of_name: dict[str, Figure], metric: Metric) -> list[str]:
    return [told(ratio(of_name[name], of_name[SINGLE], metric)) for name in CONTENDERS if name != SINGLE]
