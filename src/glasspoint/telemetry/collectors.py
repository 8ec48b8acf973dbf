"""What is read at scrape time rather than counted as it happens: the pools, the tier, the versions.

A scrape runs in a thread of its own and reads plain numbers; it never waits for a server.
"""

from __future__ import annotations

import threading
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from glasspoint._version import __version__
from glasspoint.telemetry.catalogue import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from glasspoint.telemetry.catalogue import Metric as Described
    from glasspoint.telemetry.events import Vitals

__all__ = ["TIERS", "SaverCollector"]

TIERS = ("cached", "redis", "memory")

_READ_AT_SCRAPE = (
    "pool_connections",
    "pool_max_connections",
    "pool_requests_waiting",
    "pool_connections_lost_total",
    "redis_pool_connections",
    "l1_breaker_open",
    "l1_journal_pending",
    "active_tier",
    "info",
)

_VERSIONS = {"version": __version__, "langgraph": version("langgraph"), "postgres": "", "redis": ""}


class SaverCollector(Collector):
    """The figures of all open savers that report to one registry; savers of one name are added up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, WeakSet[Vitals]] = {}
        self._lost: Counter[str] = Counter()  # connections lost by pools that are closed by now

    def add(self, saver_name: str, vitals: Vitals) -> None:
        """Watch a saver for as long as it lives."""
        with self._lock:
            self._open.setdefault(saver_name, WeakSet()).add(vitals)

    def remove(self, saver_name: str, vitals: Vitals) -> None:
        """Watch it no longer; what its pool has counted stays counted."""
        with self._lock:
            self._open.get(saver_name, WeakSet()).discard(vitals)
            self._lost[saver_name] += _lost(_pool_stats(vitals))

    def active(self) -> list[tuple[str, Vitals]]:
        """Return the open savers that serve calls, with their names."""
        with self._lock:
            return [(name, v) for name, open_ in sorted(self._open.items()) for v in open_ if v.active]

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering does not collect."""
        return self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Read every open saver."""
        families = self._families()
        with self._lock:
            savers = {name: list(open_) for name, open_ in self._open.items()}
            lost = dict(self._lost)
        for name, open_ in savers.items():
            _add_pool(families, name, [_pool_stats(v) for v in open_], lost.get(name, 0))
            _add_redis_pool(families, name, [_redis_connections(v.redis) for v in open_])
            cached = [v for v in open_ if v.breaker is not None]
            if cached:
                is_open = any(v.breaker != "closed" for v in cached)
                families["l1_breaker_open"].add_metric([name], float(is_open))
                pending = max(v.journal_pending for v in cached)  # they look at one table
                families["l1_journal_pending"].add_metric([name], pending)
            tiers = {v.tier for v in open_ if v.active}
            for tier in TIERS:
                families["active_tier"].add_metric([name, tier], float(tier in tiers))
            if open_:
                known = {key: value for v in open_ for key, value in v.versions.items()}
                families["info"].add_metric([name], _VERSIONS | known)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, Any]:
        """What is read at scrape time, without samples: name in the catalogue -> family."""
        return {name: _empty(METRICS[name]) for name in _READ_AT_SCRAPE}


def _empty(metric: Described) -> GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily:
    name, labels = f"glasspoint_{metric.name}", ["saver", *metric.labels]
    if metric.kind == "counter":
        return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=labels)
    if metric.kind == "info":  # its labels are the samples' own; the client adds `_info`
        return InfoMetricFamily(name.removesuffix("_info"), metric.help, labels=["saver"])
    return GaugeMetricFamily(name, metric.help, labels=labels)


def _add_pool(families: dict[str, Any], name: str, stats: list[dict[str, int]], lost: int) -> None:
    total: Counter[str] = Counter()
    for one in stats:
        total.update(one)
    idle = total["pool_available"]
    families["pool_connections"].add_metric([name, "idle"], idle)
    families["pool_connections"].add_metric([name, "in_use"], max(0, total["pool_size"] - idle))
    families["pool_max_connections"].add_metric([name], total["pool_max"])
    families["pool_requests_waiting"].add_metric([name], total["requests_waiting"])
    families["pool_connections_lost_total"].add_metric([name], lost + _lost(total))


def _lost(stats: Mapping[str, int]) -> int:
    """Found broken when they were to be used, or when they came back."""
    return stats.get("connections_lost", 0) + stats.get("returns_bad", 0)


def _add_redis_pool(families: dict[str, Any], name: str, connections: list[Counter[str]]) -> None:
    for state in ("idle", "in_use"):
        families["redis_pool_connections"].add_metric([name, state], sum(c[state] for c in connections))


def _pool_stats(vitals: Vitals) -> dict[str, int]:
    return vitals.pool.get_stats() if vitals.pool is not None else {}


def _redis_connections(redis: Any) -> Counter[str]:
    nodes = getattr(redis, "nodes_manager", None)
    if nodes is not None:  # a cluster: each node has connections of its own
        all_, free = 0, 0
        for node in list(nodes.nodes_cache.values()):
            all_ += len(getattr(node, "_connections", ()))
            free += len(getattr(node, "_free", ()))
        return Counter(idle=free, in_use=max(0, all_ - free))
    # redis-py has a public way to ask since 7.3, but says it in words of its own; both lists are older.
    pool = getattr(redis, "connection_pool", None)
    idle, in_use = getattr(pool, "_available_connections", ()), getattr(pool, "_in_use_connections", ())
    return Counter(idle=len(idle), in_use=len(in_use))
