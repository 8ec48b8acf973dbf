"""Turns events into Prometheus metrics. Names, labels and help are a public contract: see `catalogue`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict, deque
from functools import partial
from itertools import product
from operator import attrgetter
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.registry import Collector

from glasspoint.errors import ConfigurationError
from glasspoint.model import traceparent
from glasspoint.telemetry import multiprocess
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.collectors import READ_AT_SCRAPE, SUCCEEDING, TIERS, SaverCollector
from glasspoint.telemetry.events import (
    Audited,
    BackgroundTaskFailed,
    BreakerChanged,
    BreakerState,
    BurstEnd,
    BurstEnded,
    Drained,
    DrainResult,
    EpochChanged,
    Event,
    ForeignWrites,
    Forked,
    ForkKind,
    IdentityChanged,
    IdentityReason,
    InterruptStored,
    Invalidated,
    InvalidationSource,
    L1Result,
    L2Retried,
    Observer,
    Operation,
    Outcome,
    PoolWaited,
    RetentionPruned,
    RetentionRan,
    RetentionResult,
    RetryReason,
    SaverStatus,
    Served,
    TaskName,
    ThreadDrained,
    TierChanged,
    TurnEnded,
    TurnOutcome,
    Verdict,
    WarmUpEnded,
    WarmUpResult,
    WarmUpSkipped,
    WriteResult,
    failures,
)
from glasspoint.telemetry.interrupts import InterruptKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

    from prometheus_client.core import Metric as Family

    from glasspoint.telemetry.catalogue import Metric

__all__ = ["BUCKETS_SECONDS", "Families", "Metrics"]

BUCKETS_SECONDS = (*(0.0001 * 2**i for i in range(3, 9)), *(0.0001 * 4**i for i in range(5, 10)))
"""Bounds of what callers wait: from 800 µs to 25.6 ms, each twice the one before; then, up to about 26 s,
each four times. They are few, because each bound is a series for each pair of operation and outcome."""

BUCKETS_OF_READS = (0.0004, *BUCKETS_SECONDS)
"""Bounds of reads by their result: a hit may take half a millisecond."""

BUCKETS_SECONDS_WIDE = tuple(0.0001 * 4**i for i in range(1, 9))
"""Bounds of times that only point at a cause: from 400 µs to about 6.6 s, each four times the one before."""

BUCKETS_BYTES = tuple(1024 * 4**i for i in range(8))
"""Bounds from 1 KiB to 16 MiB, each four times the one before."""

BUCKETS_WRITES = tuple(2**i for i in range(6))
"""Bounds from 1 to 32 writes, each twice the one before."""

BUCKETS_OF_TURNS = (0.04, 0.16, *(0.64 * 2**i for i in range(7)), 163.84, 655.36)
"""Bounds of turns, in which models and tools work: from 640 ms to 41 s, each twice the one before; below and
above, up to about 11 minutes, each four times."""

_BUCKETS: dict[str, Sequence[float]] = {
    "operation_duration_seconds": BUCKETS_SECONDS,
    "read_duration_seconds": BUCKETS_OF_READS,
    "turn_duration_seconds": BUCKETS_OF_TURNS,
    "entry_bytes": BUCKETS_BYTES,
    "burst_writes": BUCKETS_WRITES,
}
"""The bounds of each histogram; of all others `BUCKETS_SECONDS_WIDE`."""

_AT_A_TIME = 32
"""The number of calls that are counted together, unless a scrape counts them earlier. Counting many calls in
a row costs a third of counting each call when it ends, because the code stays in the processor's caches."""

_MOST_AGENTS = 50
"""The number of agents that metrics show by their names. The turns of all others are counted together."""

_OTHER_AGENTS = "other"
_NO_AGENT = "unnamed"

# From, to, reason.
_TIER_CHANGES = (
    ("cached", "redis", "postgres_unavailable"),
    ("cached", "memory", "postgres_unavailable"),
    ("redis", "memory", "redis_unavailable"),
    ("memory", "redis", "recovered"),
    ("memory", "cached", "recovered"),
    ("redis", "cached", "recovered"),
)

_HOT = ("get_tuple", "put", "put_writes")

_OF_DRAINS = frozenset({"relate", "import_checkpoints", "seal_thread", "retire_thread"})
"""The calls that move a thread between tiers. No application makes them, so they are not timed here: the
`drained_…` and `undrained_…` metrics and the spans tell of draining."""

_SHOWN_READS = frozenset[L1Result]({"hit", "miss"})
"""The results of reads whose times are shown by themselves; the times of the others are one series."""

_OTHER_READS = "other"

# Metric -> the labels that it certainly gets, without the saver's name.
_KNOWN: dict[str, Sequence[str | tuple[str, ...]]] = {
    "operation_duration_seconds": tuple(product(_HOT, ("ok", "error"))),
    "read_duration_seconds": (("l1", "hit"), ("l2", "miss"), ("l2", _OTHER_READS)),
    "l1_reads_total": get_args(L1Result),
    "l1_warm_ups_total": get_args(WarmUpResult),
    "write_through_total": tuple(product(("put", "put_writes"), get_args(WriteResult))),
    "entry_bytes": (("read", "get_tuple"), ("write", "commit")),
    "write_bytes": ("put", "put_writes"),
    "serde_duration_seconds": ("read", "write"),
    "l1_identity_changes_total": get_args(IdentityReason),
    "bursts_total": get_args(BurstEnd),
    "foreign_writes_total": ("checkpoints", "checkpoint_writes"),
    "forks_total": tuple(product(get_args(ForkKind), ("stored", "refused"))),
    "l1_invalidations_total": get_args(InvalidationSource),
    "l1_breaker_transitions_total": get_args(BreakerState),
    "l1_audits_total": get_args(Verdict),
    "fallback_events_total": _TIER_CHANGES,
    "drained_checkpoints_total": TIERS[1:],
    "drained_threads_total": get_args(DrainResult),
    "retention_pruned_total": ("checkpoints", "checkpoint_writes", "checkpoint_blobs"),
    "retention_runs_total": get_args(RetentionResult),
    "l2_retries_total": tuple(product(_HOT, get_args(RetryReason))),
    "background_task_failures_total": get_args(TaskName),
    "interrupts_total": get_args(InterruptKind),
    "traceparents_ignored_total": get_args(traceparent.Unusable),
}


class Families:
    """All metric families of one registry. All savers that report there share them."""

    _lock = threading.Lock()
    _of: ClassVar[WeakKeyDictionary[CollectorRegistry, Families]] = WeakKeyDictionary()
    _of_the_process: ClassVar[Families | None] = None

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Families:
        """Return the families of a registry; create and register those that are missing.

        Raises:
            ConfigurationError: Other code has registered one of the names; the registry is left as it was.
        """
        if not isinstance(registry, CollectorRegistry):
            raise ConfigurationError(
                f"registry is a {type(registry).__name__}: it must be a prometheus_client.CollectorRegistry."
            )
        with cls._lock:
            families = cls._of.get(registry)
            if families is None and multiprocess.is_on():
                families = cls._of_the_process = cls._of_the_process or cls()
            families = families or cls()
            families.register(registry)
            cls._of[registry] = families
            return families

    @classmethod
    def find(cls, registry: CollectorRegistry) -> Families | None:
        """Return the families of a registry; `None` if no saver reports there."""
        with cls._lock:
            return cls._of.get(registry)

    def __init__(self) -> None:
        self.ended = _EndedCalls()
        self.agents: dict[str, set[str]] = {}
        """The agents that are shown by their names, for each saver's name."""
        self.counted = {
            name: _family(metric) for name, metric in METRICS.items() if name not in READ_AT_SCRAPE
        }
        """The families that events change, by their names in the catalogue."""
        self._saver_names: set[str] = set()
        self._served = {
            name: _Served(name, family, self._saver_names) for name, family in self.counted.items()
        }
        # First: it counts before the others are collected.
        self._collectors: list[Collector] = [self.ended, *self._served.values()]
        if multiprocess.is_on():
            self.savers: SaverCollector = multiprocess.SharedSaverCollector()
            self._collectors += self.savers.families
        else:
            self.savers = SaverCollector()
            self._collectors.append(self.savers)

    def collect(self, metrics: Collection[str]) -> Iterator[Family]:
        """Return some of the families that events change, as a scrape of them would.

        Args:
            metrics: Their names in the catalogue.
        """
        self.ended.collect()
        for name, family in self.counted.items():
            if name in metrics:
                self._served[name].make_zeros()
                yield from family.collect()

    def expect(self, saver_name: str) -> None:
        """Show the series of a saver's name in every scrape."""
        self._saver_names.add(saver_name)
        if multiprocess.is_on():  # another process is scraped, and reads the files of this one
            for served in self._served.values():
                served.make_zeros()

    def register(self, registry: CollectorRegistry) -> None:
        """Register all families, or none."""
        registered: list[Collector] = []
        there = getattr(registry, "_collector_to_names", {})
        try:
            for collector in self._collectors:
                if collector not in there:
                    registry.register(collector)
                    registered.append(collector)
        except ValueError as exc:
            for collector in registered:
                registry.unregister(collector)
            names = ", ".join(sorted(getattr(exc, "duplicates", ()))) or str(exc)
            raise ConfigurationError(
                f"The Prometheus registry has metrics of that name already, from somebody else: {names}. "
                "Unregister those (was Glasspoint imported twice?), or report to another registry: "
                "create_telemetry(registry=CollectorRegistry())."
            ) from exc


def _family(metric: Metric) -> Counter | Histogram | Summary:
    labels = ("saver", *metric.labels)
    if metric.kind == "summary":
        return _Summary(f"glasspoint_{metric.name}", metric.help, labels, registry=None)
    if metric.kind == "counter":
        name = metric.name.removesuffix("_total")
        return Counter(f"glasspoint_{name}", metric.help, labels, registry=None)
    buckets = _BUCKETS.get(metric.name, BUCKETS_SECONDS_WIDE)
    return _Histogram(f"glasspoint_{metric.name}", metric.help, labels, buckets=buckets, registry=None)


class _Histogram(Histogram):
    """A histogram of the Prometheus client's that takes many values at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Observe values: one change of the sum, and one of each bucket concerned."""
        if len(amounts) == 1:
            self.observe(amounts[0])
            return
        self._sum.inc(sum(amounts))
        for bucket, number in Tally(bisect_left(self._upper_bounds, each) for each in amounts).items():
            self._buckets[bucket].inc(number)


class _Summary(Summary):
    """A summary of the Prometheus client's that takes many values at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Observe values: one change of the count, and one of the sum."""
        self._count.inc(len(amounts))
        self._sum.inc(sum(amounts))


class _Served(Collector):
    """A family as a scrape sees it: without its `_created` series, which are a fifth of a scrape."""

    def __init__(self, name: str, family: Counter | Histogram | Summary, savers: Set[str]) -> None:
        """Serve a family.

        Args:
            name: Its name in the catalogue.
            family: The family.
            savers: The names of the savers that report to it. More may be added later.
        """
        self._family = family
        self._zeros = _KNOWN.get(name, ()) if METRICS[name].labels else ((),)
        self._savers = savers
        self._with_zeros: set[str] = set()

    def describe(self) -> Iterable[Family]:
        """Return the family without samples, so that the registry knows its names."""
        return self._family.describe()

    def collect(self) -> Iterator[Family]:
        """Return the family with its samples."""
        self.make_zeros()
        for family in self._family.collect():
            family.samples = [each for each in family.samples if not each.name.endswith("_created")]
            yield family

    def make_zeros(self) -> None:
        """Make the series that each saver certainly gets.

        So no part of a ratio is missing, and the first event shows as an increase. They are not made when a
        saver opens, because that takes milliseconds for all families, and not every process is scraped.
        """
        for saver in self._savers - self._with_zeros:
            for labels in self._zeros:
                self._family.labels(saver, *((labels,) if isinstance(labels, str) else labels))
            self._with_zeros.add(saver)  # not earlier: another thread may scrape at the same time


class _EndedCall(NamedTuple):
    """The facts of a call that are counted: attributes of `Operation`, under the same names.

    The operation itself is not kept: its error may refer to frames, and so to all their local variables.
    """

    name: str
    outcome: Outcome
    seconds: float
    trace_id: str | None
    l1_result: L1Result | None
    served_by: Served | None
    l1_write: WriteResult | None
    l1_seconds: float | None
    l2_seconds: float | None
    bytes_read: int | None
    bytes_written: int | None
    decode_seconds: float | None
    encode_seconds: float | None
    stored_traceparent: object


_facts_of = attrgetter(*_EndedCall._fields)


class _Batch:
    """What several calls add to the metrics. Each counter, sum and bucket changes once for all of them."""

    def __init__(self) -> None:
        self.counted: defaultdict[Counter, int] = defaultdict(int)
        """Counter -> by how much it has grown."""
        self._observed: defaultdict[_Histogram | _Summary, list[float]] = defaultdict(list)

    def observe(self, child: _Histogram | _Summary, amount: float) -> None:
        """Add a value."""
        self._observed[child].append(amount)

    def add(self) -> None:
        """Change the metrics."""
        for counter, number in self.counted.items():
            counter.inc(number)
        for child, amounts in self._observed.items():
            child.observe_all(amounts)


class _EndedCalls(Collector):
    """The uncounted calls of all savers of a registry. A scrape counts them first.

    Any thread may append, count and scrape: exactly one thread takes each call out and counts it.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Metrics, _EndedCall]] = deque()
        """The uncounted calls, each with the metrics that will count it."""

    def count(self) -> None:
        """Count all waiting calls."""
        batch = _Batch()
        try:
            while True:
                try:
                    metrics, call = self.waiting.popleft()
                except IndexError:
                    return
                metrics.count(call, batch)
        finally:
            batch.add()

    def describe(self) -> tuple[()]:
        """Return nothing: this collector has no metrics of its own."""
        return ()

    def collect(self) -> tuple[()]:
        """Count the waiting calls before the other collectors are read."""
        try:
            self.count()
        except Exception as exc:
            failures.report("Metrics.count", exc, "metrics")
        return ()


def _observe_with_exemplar(trace_id: str, child: _Histogram, amount: float) -> None:
    child.observe(amount, {"trace_id": trace_id})


def _check_label(saver_name: object) -> None:
    """Refuse a saver's name that the text formats cannot carry: it would fail every scrape."""
    problem = (
        "is not a text"
        if not isinstance(saver_name, str)
        else "is empty"
        if not saver_name
        else "holds what is no character"
        if _has_no_character(saver_name)
        else ""
    )
    if problem:
        raise ConfigurationError(f"saver_name is {saver_name!r}, which {problem}: it labels every metric.")


def _has_no_character(text: str) -> bool:
    return any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)


class Metrics(Observer):
    """Observes the savers of one name for Prometheus. It binds each child of a family once."""

    drops = "metrics"

    def __init__(self, saver_name: str, registry: CollectorRegistry | None = None) -> None:
        """Begin to observe.

        Args:
            saver_name: The `saver` label of all metrics.
            registry: The registry to report to; the process's default registry if `None`.

        Raises:
            ConfigurationError: The name cannot be a label, or other code has registered our metrics' names.
        """
        _check_label(saver_name)
        families = Families.of(REGISTRY if registry is None else registry)
        # In multiprocess mode, other processes may read our files at any moment, so no call may wait.
        self._at_a_time = 1 if multiprocess.is_on() else _AT_A_TIME
        self._ended, self._waiting = families.ended, families.ended.waiting
        self._saver = saver_name
        self._savers = families.savers
        self._children = _Children(families.counted, saver_name)
        self._agents = families.agents.setdefault(saver_name, set())
        families.expect(saver_name)

    def operation_ended(self, operation: Operation) -> None:
        """Queue a call for `count`."""
        if operation.outcome == "ok" and operation.name in SUCCEEDING:
            self._savers.succeeded_at[self._saver, operation.name] = time()
        waiting = self._waiting
        waiting.append((self, _EndedCall._make(_facts_of(operation))))
        if len(waiting) >= self._at_a_time:
            self._ended.count()

    def count(self, call: _EndedCall, batch: _Batch) -> None:
        """Add a call to a batch. Values with an exemplar are observed at once."""
        children, observe, name = self._children, batch.observe, call.name
        observe_time = observe if call.trace_id is None else partial(_observe_with_exemplar, call.trace_id)
        if name not in _OF_DRAINS:
            observe_time(children["operation_duration_seconds", name, call.outcome], call.seconds)
            if call.l1_seconds is not None:
                observe_time(children["write_through_duration_seconds", name, "l1"], call.l1_seconds)
            if call.l2_seconds is not None:
                observe_time(children["write_through_duration_seconds", name, "l2"], call.l2_seconds)
        if call.l1_result is not None:
            batch.counted[children["l1_reads_total", call.l1_result]] += 1
            if call.outcome == "ok" and call.served_by is not None:
                result = call.l1_result if call.l1_result in _SHOWN_READS else _OTHER_READS
                observe_time(children["read_duration_seconds", call.served_by, result], call.seconds)
        if call.l1_write is not None:
            batch.counted[children["write_through_total", name, call.l1_write]] += 1
        if call.bytes_read is not None and name == "get_tuple":
            observe(children["entry_bytes", "read", name], call.bytes_read)
        if call.bytes_written is not None:
            observe(children["write_bytes", name], call.bytes_written)
        if call.decode_seconds is not None:
            observe(children["serde_duration_seconds", "read"], call.decode_seconds)
        if call.encode_seconds is not None:
            observe(children["serde_duration_seconds", "write"], call.encode_seconds)
        if call.stored_traceparent is not None:
            problem = traceparent.problem_of(call.stored_traceparent)
            if problem is not None:
                batch.counted[children["traceparents_ignored_total", problem]] += 1

    def emitted(self, event: Event) -> None:
        """Count a single event."""
        children = self._children
        match event:
            case PoolWaited():
                children["pool_wait_seconds"].observe(event.seconds)
                if event.is_timeout:
                    children["pool_timeouts_total"].inc()
            case WarmUpEnded():
                children["l1_warm_ups_total", event.result].inc()
                children["l1_warm_up_duration_seconds"].observe(event.seconds)
            case WarmUpSkipped():
                children["l1_warm_ups_total", event.result].inc()
            case EpochChanged():
                children["l1_epoch_changes_total"].inc()
            case IdentityChanged():
                children["l1_identity_changes_total", event.reason].inc()
            case ForeignWrites():
                children["foreign_writes_total", event.table].inc(event.scopes)
            case Forked():
                children["forks_total", event.kind, "stored" if event.is_stored else "refused"].inc()
            case RetentionPruned():
                children["retention_pruned_total", "checkpoints"].inc(event.checkpoints)
                children["retention_pruned_total", "checkpoint_writes"].inc(event.writes)
                children["retention_pruned_total", "checkpoint_blobs"].inc(event.blobs)
            case RetentionRan():
                children["retention_runs_total", event.result].inc()
            case Invalidated():
                children["l1_invalidations_total", event.source].inc()
            case BreakerChanged():
                if event.state != "open" or not event.is_probe:  # one outage, one opening
                    children["l1_breaker_transitions_total", event.state].inc()
            case L2Retried():
                children["l2_retries_total", event.operation, event.reason].inc()
            case BurstEnded():
                children["bursts_total", event.end].inc()
                children["burst_writes"].observe(event.writes)
                if event.image_bytes is not None:
                    children["entry_bytes", "write", "commit"].observe(event.image_bytes)
            case Audited():
                children["l1_audits_total", event.verdict].inc()
            case TierChanged():
                children["fallback_events_total", event.from_tier, event.to_tier, event.reason].inc()
            case BackgroundTaskFailed():
                children["background_task_failures_total", event.task].inc()
            case Drained():
                children["drained_checkpoints_total", event.from_tier].inc(event.checkpoints)
            case ThreadDrained():
                children["drained_threads_total", event.result].inc()
            case InterruptStored():
                if event.is_new:
                    children["interrupts_total", event.kind].inc()
            case TurnEnded():
                self._count_turn(event)

    def _count_turn(self, turn: TurnEnded) -> None:
        agent = self._label_of(turn.agent_name)
        exemplar = {"trace_id": turn.trace_id} if turn.trace_id else None
        for outcome in get_args(TurnOutcome):
            self._children["turns_total", agent, outcome]  # so that no part of a ratio is missing
        self._children["turns_total", agent, turn.outcome].inc()
        self._children["turn_duration_seconds", agent, turn.outcome].observe(turn.seconds, exemplar)

    def _label_of(self, agent_name: str | None) -> str:
        """Return the label of an agent. The number of labels is bounded, whatever the application does."""
        if not agent_name:
            return _NO_AGENT
        if agent_name in self._agents:
            return agent_name
        if len(self._agents) >= _MOST_AGENTS or _has_no_character(agent_name):
            return _OTHER_AGENTS
        self._agents.add(agent_name)
        return agent_name

    def opened(self, status: SaverStatus) -> None:
        """Read this saver at every scrape from now on."""
        self._savers.add(self._saver, status)

    def closed(self, status: SaverStatus) -> None:
        """Stop reading this saver, after its calls are counted."""
        self._ended.count()
        self._savers.remove(self._saver, status)


class _Children(dict[str | tuple[str, ...], Any]):
    """The children of all families for one saver's name: each is bound once.

    A key is the name of a metric in the catalogue, alone or followed by its labels without the saver's name.
    """

    def __init__(self, families: Mapping[str, Counter | Histogram | Summary], saver_name: str) -> None:
        super().__init__()
        self._families = families
        self._saver = saver_name

    def __missing__(self, key: str | tuple[str, ...]) -> Any:
        name, *labels = (key,) if isinstance(key, str) else key
        child = self[key] = self._families[name].labels(self._saver, *labels)
        return child
