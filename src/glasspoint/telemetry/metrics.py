"""Turns events into Prometheus metrics. Names, labels and help are a public contract: see `catalogue`."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar, get_args
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector

from glasspoint.errors import ConfigurationError
from glasspoint.model import traceparent
from glasspoint.telemetry import multiprocess
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.collectors import TIERS, SaverCollector
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
    ForeignWrites,
    Forked,
    ForkKind,
    IdentityChanged,
    IdentityReason,
    Invalidated,
    InvalidationSource,
    L1Result,
    L2Retried,
    Note,
    Observer,
    Operation,
    Outcome,
    PoolTimedOut,
    PoolWaited,
    RetentionPruned,
    RetentionRan,
    RetentionResult,
    RetryReason,
    Step,
    TaskName,
    ThreadDrained,
    TierChanged,
    Verdict,
    Vitals,
    WarmUpResult,
    WriteResult,
    failures,
)

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase

    from glasspoint.telemetry.catalogue import Metric, MetricKind

__all__ = ["BUCKETS_BYTES", "BUCKETS_SECONDS", "Families", "Metrics"]

BUCKETS_SECONDS = tuple(0.0001 * 2**i for i in range(19))
"""Bounds from 100 µs to about 26 s, each twice the one before."""

BUCKETS_BYTES = tuple(256 * 4**i for i in range(11))
"""Bounds from 256 bytes to 256 MiB, each four times the one before."""

_AT_A_TIME = 32
"""The number of calls that are counted together, unless a scrape counts them earlier. Counting many calls in
a row costs a third of counting each call when it ends, because the code stays in the processor's caches."""

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
_ERRORS = tuple((operation, "error") for operation in _HOT)
_WRITES = tuple((operation, l1) for operation in ("put", "put_writes") for l1 in get_args(WriteResult))
_FORKS = tuple((kind, outcome) for kind in get_args(ForkKind) for outcome in ("stored", "refused"))
_RETRIES = tuple((operation, reason) for operation in _HOT for reason in get_args(RetryReason))

_Metric = TypeVar("_Metric", bound="MetricWrapperBase")


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
        self._collectors: list[Collector] = [self.ended]  # first: it counts before the others are collected

        def counter(name: str) -> Counter:
            metric = _described(name, "counter")
            name = f"glasspoint_{name.removesuffix('_total')}"
            family = Counter(name, metric.help, ("saver", *metric.labels), registry=None)
            self._collectors.append(family)
            return family

        def histogram(name: str, buckets: tuple[float, ...] = BUCKETS_SECONDS) -> Histogram:
            metric = _described(name, "histogram")
            labels = ("saver", *metric.labels)
            family = Histogram(f"glasspoint_{name}", metric.help, labels, buckets=buckets, registry=None)
            self._collectors.append(family)
            return family

        self.operation_duration = histogram("operation_duration_seconds")
        self.l1_reads = counter("l1_reads_total")
        self.l1_warm_ups = counter("l1_warm_ups_total")
        self.l1_warm_up_duration = histogram("l1_warm_up_duration_seconds")
        self.write_through_duration = histogram("write_through_duration_seconds")
        self.write_through = counter("write_through_total")
        self.entry_bytes = histogram("entry_bytes", BUCKETS_BYTES)
        self.serde_duration = histogram("serde_duration_seconds")
        self.l1_epoch_changes = counter("l1_epoch_changes_total")
        self.l1_identity_changes = counter("l1_identity_changes_total")
        self.bursts = counter("bursts_total")
        self.burst_writes = counter("burst_writes_total")
        self.foreign_writes = counter("foreign_writes_total")
        self.forks = counter("forks_total")
        self.l1_invalidations = counter("l1_invalidations_total")
        self.l1_breaker_transitions = counter("l1_breaker_transitions_total")
        self.l1_audits = counter("l1_audits_total")
        self.fallback_events = counter("fallback_events_total")
        self.drained_checkpoints = counter("drained_checkpoints_total")
        self.drained_threads = counter("drained_threads_total")
        self.retention_pruned = counter("retention_pruned_total")
        self.retention_runs = counter("retention_runs_total")
        self.l2_retries = counter("l2_retries_total")
        self.pool_wait = histogram("pool_wait_seconds")
        self.pool_timeouts = counter("pool_timeouts_total")
        self.background_task_failures = counter("background_task_failures_total")
        self.traceparents_ignored = counter("traceparents_ignored_total")
        if multiprocess.is_on():
            self.savers: SaverCollector = multiprocess.SharedSaverCollector()
            self._collectors += self.savers.families
        else:
            self.savers = SaverCollector()
            self._collectors.append(self.savers)

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


@dataclass(slots=True)
class _EndedCall:
    """The facts of a call that are counted: attributes of `Operation`, under the same names.

    The operation itself is not kept: its error may refer to frames, and so to all their local variables.
    """

    name: str
    outcome: Outcome
    seconds: float
    trace_id: str | None
    l1_result: L1Result | None
    l1_write: WriteResult | None
    l1_seconds: float | None
    l2_seconds: float | None
    bytes_read: int | None
    bytes_written: int | None
    decode_seconds: float | None
    encode_seconds: float | None
    stored_traceparent: object

    @classmethod
    def of(cls, operation: Operation) -> _EndedCall:
        """Copy the facts of an operation that has ended."""
        return cls(
            name=operation.name,
            outcome=operation.outcome,
            seconds=operation.seconds,
            trace_id=operation.trace_id,
            l1_result=operation.l1_result,
            l1_write=operation.l1_write,
            l1_seconds=operation.l1_seconds,
            l2_seconds=operation.l2_seconds,
            bytes_read=operation.bytes_read,
            bytes_written=operation.bytes_written,
            decode_seconds=operation.decode_seconds,
            encode_seconds=operation.encode_seconds,
            stored_traceparent=operation.stored_traceparent,
        )


class _EndedCalls(Collector):
    """The uncounted calls of all savers of a registry. A scrape counts them first.

    Any thread may append, count and scrape: exactly one thread takes each call out and counts it.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Metrics, _EndedCall]] = deque()
        """The uncounted calls, each with the metrics that will count it."""

    def count(self) -> None:
        """Count all waiting calls."""
        while True:
            try:
                metrics, call = self.waiting.popleft()
            except IndexError:
                return
            metrics.count(call)

    def describe(self) -> tuple[()]:
        """Return nothing: this collector has no metrics of its own."""
        return ()

    def collect(self) -> tuple[()]:
        """Count the waiting calls before the other collectors are read."""
        try:
            self.count()
        except Exception as exc:
            failures.report("Metrics.count", exc)
        return ()


def _described(name: str, kind: MetricKind) -> Metric:
    metric = METRICS[name]
    assert metric.kind == kind
    return metric


def _check_label(saver_name: object) -> None:
    """Refuse a saver's name that the text formats cannot carry: it would fail every scrape."""
    problem = (
        "is not a text"
        if not isinstance(saver_name, str)
        else "is empty"
        if not saver_name
        else "holds what is no character"
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in saver_name)
        else ""
    )
    if problem:
        raise ConfigurationError(f"saver_name is {saver_name!r}, which {problem}: it labels every metric.")


class Metrics(Observer):
    """Observes the savers of one name for Prometheus. It binds the children of every family once."""

    def __init__(self, saver_name: str, registry: CollectorRegistry | None = None) -> None:
        """Bind the children of every family to a saver's name.

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
        self._ended = families.ended
        self._saver = saver_name
        self._savers = families.savers
        self._operations = _Children(families.operation_duration, saver_name)
        self._reads = _Children(families.l1_reads, saver_name)
        self._warm_ups = _Children(families.l1_warm_ups, saver_name)
        self._warm_up_seconds = families.l1_warm_up_duration.labels(saver_name)
        self._tier_seconds = _Children(families.write_through_duration, saver_name)
        self._writes = _Children(families.write_through, saver_name)
        self._bytes_read = families.entry_bytes.labels(saver_name, "read")
        self._bytes_written = families.entry_bytes.labels(saver_name, "write")
        self._decode_seconds = families.serde_duration.labels(saver_name, "read")
        self._encode_seconds = families.serde_duration.labels(saver_name, "write")
        self._epoch_changes = families.l1_epoch_changes.labels(saver_name)
        self._identity_changes = _Children(families.l1_identity_changes, saver_name)
        self._bursts = _Children(families.bursts, saver_name)
        self._burst_writes = families.burst_writes.labels(saver_name)
        self._foreign_writes = _Children(families.foreign_writes, saver_name)
        self._forks = _Children(families.forks, saver_name)
        self._invalidations = _Children(families.l1_invalidations, saver_name)
        self._breaker = _Children(families.l1_breaker_transitions, saver_name)
        self._audits = _Children(families.l1_audits, saver_name)
        self._fallbacks = _Children(families.fallback_events, saver_name)
        self._drained = _Children(families.drained_checkpoints, saver_name)
        self._drained_threads = _Children(families.drained_threads, saver_name)
        self._retention_pruned = _Children(families.retention_pruned, saver_name)
        self._retention_runs = _Children(families.retention_runs, saver_name)
        self._retries = _Children(families.l2_retries, saver_name)
        self._background = _Children(families.background_task_failures, saver_name)
        self._traceparents = _Children(families.traceparents_ignored, saver_name)
        self._pool_wait = families.pool_wait.labels(saver_name)
        self._pool_timeouts = families.pool_timeouts.labels(saver_name)
        for children, known in (
            (self._operations, _ERRORS),
            (self._reads, get_args(L1Result)),
            (self._warm_ups, get_args(WarmUpResult)),
            (self._writes, _WRITES),
            (self._identity_changes, get_args(IdentityReason)),
            (self._bursts, get_args(BurstEnd)),
            (self._foreign_writes, ("checkpoints", "checkpoint_writes")),
            (self._forks, _FORKS),
            (self._invalidations, get_args(InvalidationSource)),
            (self._breaker, get_args(BreakerState)),
            (self._audits, get_args(Verdict)),
            (self._fallbacks, _TIER_CHANGES),
            (self._drained, TIERS[1:]),
            (self._drained_threads, get_args(DrainResult)),
            (self._retention_pruned, ("checkpoints", "checkpoint_writes", "checkpoint_blobs")),
            (self._retention_runs, get_args(RetentionResult)),
            (self._retries, _RETRIES),
            (self._background, get_args(TaskName)),
            (self._traceparents, get_args(traceparent.Unusable)),
        ):
            for labels in known:
                # Created at once: so no part of a ratio is missing, and the first event shows as an increase.
                children[labels]

    def operation_ended(self, operation: Operation) -> None:
        """Queue a call for `count`."""
        self._ended.waiting.append((self, _EndedCall.of(operation)))
        if len(self._ended.waiting) >= self._at_a_time:
            self._ended.count()

    def count(self, call: _EndedCall) -> None:
        """Count and time a call."""
        exemplar = {"trace_id": call.trace_id} if call.trace_id else None
        name = call.name
        self._operations[name, call.outcome].observe(call.seconds, exemplar)
        if call.l1_result is not None:
            self._reads[call.l1_result].inc()
        if call.l1_write is not None:
            self._writes[name, call.l1_write].inc()
        if call.l1_seconds is not None:
            self._tier_seconds[name, "l1"].observe(call.l1_seconds, exemplar)
        if call.l2_seconds is not None:
            self._tier_seconds[name, "l2"].observe(call.l2_seconds, exemplar)
        if call.bytes_read is not None:
            self._bytes_read.observe(call.bytes_read)
        if call.bytes_written is not None:
            self._bytes_written.observe(call.bytes_written)
        if call.decode_seconds is not None:
            self._decode_seconds.observe(call.decode_seconds)
        if call.encode_seconds is not None:
            self._encode_seconds.observe(call.encode_seconds)
        if call.stored_traceparent is not None:
            problem = traceparent.problem_of(call.stored_traceparent)
            if problem is not None:
                self._traceparents[problem].inc()

    def step_ended(self, step: Step) -> None:
        """Count and time a warm-up; metrics ignore other steps."""
        if step.name == "warm_up" and step.result is not None:
            self._warm_ups[step.result].inc()
            self._warm_up_seconds.observe(step.seconds)

    def noted(self, note: Note) -> None:
        """Count a single event."""
        match note:
            case PoolWaited():
                self._pool_wait.observe(note.seconds)
            case PoolTimedOut():
                self._pool_timeouts.inc()
            case EpochChanged():
                self._epoch_changes.inc()
            case IdentityChanged():
                self._identity_changes[note.reason].inc()
            case ForeignWrites():
                self._foreign_writes[note.table].inc(note.scopes)
            case Forked():
                self._forks[note.kind, "stored" if note.is_stored else "refused"].inc()
            case RetentionPruned():
                self._retention_pruned["checkpoints"].inc(note.checkpoints)
                self._retention_pruned["checkpoint_writes"].inc(note.writes)
                self._retention_pruned["checkpoint_blobs"].inc(note.blobs)
            case RetentionRan():
                self._retention_runs[note.result].inc()
            case Invalidated():
                self._invalidations[note.source].inc()
            case BreakerChanged():
                self._breaker[note.state].inc()
            case L2Retried():
                self._retries[note.operation, note.reason].inc()
            case BurstEnded():
                self._bursts[note.end].inc()
                self._burst_writes.inc(note.writes)
            case Audited():
                self._audits[note.verdict].inc()
            case TierChanged():
                self._fallbacks[note.from_tier, note.to_tier, note.reason].inc()
            case BackgroundTaskFailed():
                self._background[note.task].inc()
            case Drained():
                self._drained[note.from_tier].inc(note.checkpoints)
            case ThreadDrained():
                self._drained_threads[note.result].inc()

    def opened(self, vitals: Vitals) -> None:
        """Read this saver at every scrape from now on."""
        self._savers.add(self._saver, vitals)

    def closed(self, vitals: Vitals) -> None:
        """Stop reading this saver, after its calls are counted."""
        self._ended.count()
        self._savers.remove(self._saver, vitals)


class _Children(dict[str | tuple[str, ...], _Metric]):
    """The children of one family for one saver's name, by their other labels; each is bound once."""

    def __init__(self, family: _Metric, saver_name: str) -> None:
        super().__init__()
        self._family = family
        self._saver = saver_name

    def __missing__(self, labels: str | tuple[str, ...]) -> _Metric:
        others = (labels,) if isinstance(labels, str) else labels
        child = self[labels] = self._family.labels(self._saver, *others)
        return child
