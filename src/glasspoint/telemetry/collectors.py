"""Metrics that are read at scrape time instead of being counted: pools, tier, sizes, versions.

A scrape runs in a thread of its own and reads plain numbers. It never waits for a server, or for the event
loop of a saver.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, get_args
from weakref import WeakKeyDictionary, WeakSet

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from glasspoint._version import __version__
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.events import DURABLE, Dropped, TierName, failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from glasspoint.telemetry.catalogue import Metric as Described
    from glasspoint.telemetry.events import SaverStatus

__all__ = ["READ_AT_SCRAPE", "SUCCEEDING", "TIERS", "Figure", "SaverCollector"]

TIERS: tuple[TierName, ...] = get_args(TierName)

READ_AT_SCRAPE = (
    "pool_connections",
    "pool_max_connections",
    "pool_requests_waiting",
    "pool_connections_lost_total",
    "telemetry_dropped_total",
    "last_success_timestamp_seconds",
    "redis_pool_connections",
    "l1_breaker_open",
    "l1_journal_pending",
    "l1_quarantined_scopes",
    "l2_asynchronous_commit",
    "l2_unbounded_statements",
    "active_tier",
    "undrained_threads",
    "undrained_checkpoints",
    "retention_last_success_timestamp_seconds",
    "storage_bytes",
    "storage_rows",
    "info",
)
"""The metrics that are read here, by their names in the catalogue."""

SUCCEEDING = ("get_tuple", "put")
"""The operations whose last success is shown."""

_UNKNOWN = {
    "version": __version__,
    "langgraph": version("langgraph"),
    "postgres": "",
    "redis": "",
    "database": "",
}
"""The labels of `info` before a saver is known."""


class Figure(NamedTuple):
    """One number, with the metric's name in the catalogue and the values of its labels (`saver` first)."""

    metric: str
    labels: tuple[str, ...]
    value: float


# All collectors of the process. A child after a fork must neither show nor read the savers of its parent.
_collectors: WeakSet[SaverCollector] = WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_collectors):
        each.forget_the_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)


class SaverCollector(Collector):
    """The figures of all open savers that report to one registry; savers of one name are combined."""

    def __init__(self) -> None:
        _collectors.add(self)
        self.succeeded_at: dict[tuple[str, str], float] = {}
        """Saver and operation -> when such a call succeeded last in this process, in seconds since 1970."""
        self.to_reopen: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._open: dict[str, WeakSet[SaverStatus]] = {}
        self._lost = Counter[str]()  # lost connections, by the saver's name; a closed pool's stay counted
        self._lost_before: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()

    def add(self, saver_name: str, status: SaverStatus) -> None:
        """Watch a saver for as long as it lives."""
        with self._lock:
            self._open.setdefault(saver_name, WeakSet()).add(status)

    def remove(self, saver_name: str, status: SaverStatus) -> None:
        """Stop watching a saver. The connections that its pool has lost stay counted."""
        with self._lock:
            self._open.get(saver_name, WeakSet()).discard(status)
            if status.pool is not None:
                self._count_lost(saver_name, status.pool, status.pool.get_stats())

    def forget_the_parent(self) -> None:
        """In a child after a fork, forget the parent's savers, but remember which can be reopened."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        status = [each for open_ in self._open.values() for each in open_]
        self.to_reopen += [each.reopen for each in status if each.reopen is not None and each.active]
        self._open = {}
        self._lost.clear()
        self.succeeded_at.clear()
        failures.dropped.clear()

    def reopen(self) -> None:
        """Reopen the savers that were open before a fork, without waiting for their next call.

        Raises:
            Exception: One of them cannot be opened now. The next call of this method tries again.
        """
        for reopen in list(self.to_reopen):
            reopen()
            with suppress(ValueError):  # another thread has removed it
                self.to_reopen.remove(reopen)

    @property
    def watched(self) -> int:
        """The number of open savers."""
        with self._lock:
            return sum(len(open_) for open_ in self._open.values())

    def active(self) -> list[tuple[str, SaverStatus]]:
        """Return the open savers that serve calls, with their names."""
        with self._lock:
            return [(name, v) for name, open_ in sorted(self._open.items()) for v in open_ if v.active]

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering this collector reads nothing."""
        return self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Read every open saver."""
        families = self._families()
        for metric, labels, value in self.figures():
            if metric == "info":
                known = dict(zip(METRICS["info"].labels, labels[1:], strict=True))
                families[metric].add_metric(labels[:1], known)
            else:
                families[metric].add_metric(labels, value)
        yield from families.values()

    def figures(self, *, storage: bool = True) -> Iterator[Figure]:
        """Read every open saver.

        Args:
            storage: Whether to include the sizes of the tables. Old sizes are then measured again.
        """
        with self._lock:
            savers = {name: list(open_) for name, open_ in self._open.items()}
        for name, open_ in savers.items():
            # Savers may share a pool, or a client.
            yield from self._of_pools(name, {id(v.pool): v.pool for v in open_ if v.pool is not None})
            yield from _of_redis(name, {id(v.redis): v.redis for v in open_})
            waiting = sum(v.waiting() for v in open_ if v.waiting is not None)
            yield Figure("pool_requests_waiting", (name,), waiting)
            for operation in SUCCEEDING:
                at = self.succeeded_at.get((name, operation), 0.0)
                yield Figure("last_success_timestamp_seconds", (name, operation), at)
            # Telemetry fails in a process, not in a saver: so all savers show the same.
            for what in get_args(Dropped):
                yield Figure("telemetry_dropped_total", (name, what), failures.dropped[what])
            cached = [v for v in open_ if v.breaker is not None]
            if cached:
                is_open = any(v.breaker != "closed" for v in cached)
                yield Figure("l1_breaker_open", (name,), float(is_open))
                pending = max(v.journal_pending for v in cached)  # all savers read the same table
                yield Figure("l1_journal_pending", (name,), pending)
                quarantined = max(v.quarantined() if v.quarantined else 0 for v in cached)
                yield Figure("l1_quarantined_scopes", (name,), quarantined)
            settings = {v.synchronous_commit for v in cached if v.synchronous_commit is not None}
            if settings:
                yield Figure("l2_asynchronous_commit", (name,), float(not settings <= DURABLE))
            unbounded = {v.has_unbounded_statements for v in cached} - {None}
            if unbounded:
                yield Figure("l2_unbounded_statements", (name,), float(True in unbounded))
            succeeded = [v.retention_succeeded_at for v in open_ if v.retention_succeeded_at is not None]
            if succeeded:
                yield Figure("retention_last_success_timestamp_seconds", (name,), max(succeeded))
            tiers = {v.tier for v in open_ if v.active}
            for tier in TIERS:
                yield Figure("active_tier", (name, tier), float(tier in tiers))
            for tier in TIERS[1:]:
                # Not the sum, because all savers of a name share one Redis, and the process's memory.
                for what in ("undrained_threads", "undrained_checkpoints"):
                    most = max((getattr(v, what).get(tier, 0) for v in open_ if v.active), default=0)
                    yield Figure(what, (name, tier), float(most))
            if storage:
                yield from _of_storage(name, open_)
            if open_:
                known = dict(_UNKNOWN)
                for each in open_:
                    known |= dict(each.versions)  # a copy: another thread adds to it while a saver is opened
                    if (database := each.databases.get("l2")) is not None:
                        known["database"] = database
                yield Figure("info", (name, *(known[label] for label in METRICS["info"].labels)), 1)

    def _of_pools(self, name: str, pools: Mapping[int, Any]) -> Iterator[Figure]:
        total = Counter[str]()
        with self._lock:
            for pool in pools.values():
                stats = pool.get_stats()
                total.update(stats)
                self._count_lost(name, pool, stats)
            lost = self._lost[name]
        idle = total["pool_available"]
        yield Figure("pool_connections", (name, "idle"), idle)
        yield Figure("pool_connections", (name, "in_use"), max(0, total["pool_size"] - idle))
        yield Figure("pool_max_connections", (name,), total["pool_max"])
        yield Figure("pool_connections_lost_total", (name,), lost)

    def _count_lost(self, name: str, pool: Any, stats: Mapping[str, int]) -> None:
        """Count the connections that the pool found broken, at check-out or return, since the last look."""
        lost = stats.get("connections_lost", 0) + stats.get("returns_bad", 0)
        before = self._lost_before.setdefault(pool, Counter())
        # Less than before: the application has reset the pool's own counters (`pop_stats`).
        self._lost[name] += lost - before[name] if lost >= before[name] else lost
        before[name] = lost

    @staticmethod
    def _families() -> dict[str, Any]:
        """The families that are read at scrape time, without samples: name in the catalogue -> family."""
        return {name: _empty(METRICS[name]) for name in READ_AT_SCRAPE}


def _empty(metric: Described) -> GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily:
    name, labels = f"glasspoint_{metric.name}", ["saver", *metric.labels]
    if metric.kind == "counter":
        return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=labels)
    if metric.kind == "info":  # its labels are the samples' own; the client adds `_info`
        return InfoMetricFamily(name.removesuffix("_info"), metric.help, labels=["saver"])
    return GaugeMetricFamily(name, metric.help, labels=labels)


def _of_redis(name: str, clients: Mapping[int, Any]) -> Iterator[Figure]:
    connections = [_redis_connections(client) for client in clients.values()]
    for state in ("idle", "in_use"):
        yield Figure("redis_pool_connections", (name, state), sum(each[state] for each in connections))


def _of_storage(name: str, savers: Iterable[SaverStatus]) -> Iterator[Figure]:
    found = [v.storage() for v in savers if v.storage is not None]
    for table in sorted({table for sizes in found for table in sizes}):
        # The largest: savers of one name measure the same database, though not at the same moment.
        known = [sizes[table] for sizes in found if table in sizes]
        yield Figure("storage_bytes", (name, table), max(size.bytes for size in known))
        yield Figure("storage_rows", (name, table), max(size.rows for size in known))


def _redis_connections(redis: Any) -> Counter[str]:
    clients = getattr(redis, "clients", None)
    if clients is not None:  # one for each master of a cluster
        return sum(map(_redis_connections, clients), Counter(idle=0, in_use=0))
    nodes = getattr(redis, "nodes_manager", None)
    if nodes is not None:  # a cluster: each node has connections of its own
        all_, free = 0, 0
        for node in list(nodes.nodes_cache.values()):
            all_ += len(getattr(node, "_connections", ()))
            free += len(getattr(node, "_free", ()))
        return Counter(idle=free, in_use=max(0, all_ - free))
    # redis-py has a public method for this since 7.3, with names of its own; both lists are older than that.
    pool = getattr(redis, "connection_pool", None)
    idle, in_use = getattr(pool, "_available_connections", ()), getattr(pool, "_in_use_connections", ())
    return Counter(idle=len(idle), in_use=len(in_use))
