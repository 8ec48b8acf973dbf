"""Computes rates, ratios and latencies from two readings of Glasspoint's metrics.

The live page and `glasspoint top` show these figures. They come from the metrics alone, so they cost calls
nothing, and they are the same for this process, for another process (the text of its `/metrics`), and for
all processes of a `PROMETHEUS_MULTIPROC_DIR`.

Three steps:

1. A reading holds the values of the metrics at one moment: `read_registry`, or `TextReader.read`.
2. A change compares two readings of one process: `Change.between`.
3. Figures sum up one change, or the changes of several processes: `Figures.of`.

A restarted process counts from 0 again, so its counters have not grown. Its first change holds present values
only, and its rates are 0 until the next reading. So no rate is ever negative, and a process that another one
has replaced, whose counters are much larger, does not look like a burst of calls.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, get_args

from prometheus_client.parser import text_string_to_metric_families

from glasspoint.telemetry import multiprocess
from glasspoint.telemetry.catalogue import COULD_BE_HITS, METRICS
from glasspoint.telemetry.events import L1Result, TierName, TurnOutcome, WarmUpResult, WriteResult
from glasspoint.telemetry.metrics import Families

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family
    from prometheus_client.samples import Sample

__all__ = [
    "Change",
    "Figures",
    "Pool",
    "Process",
    "Reading",
    "Reads",
    "RedisPool",
    "Source",
    "TextReader",
    "Timed",
    "Timing",
    "Turns",
    "Window",
    "quantile",
    "read_registry",
]

_PREFIX = "glasspoint_"

# Of the process, from the Prometheus client's `ProcessCollector`. They are no metrics of Glasspoint's.
_CPU, _RSS, _STARTED = (
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
)

_OF_THE_PROCESS = (_CPU, _RSS, _STARTED)
_FAMILIES_OF_THE_PROCESS = {name.removesuffix("_total") for name in _OF_THE_PROCESS}

_USED = frozenset(
    (
        "active_tier",
        "forks_total",
        "info",
        "l1_breaker_open",
        "l1_epoch_changes_total",
        "l1_identity_changes_total",
        "l1_journal_pending",
        "l1_quarantined_scopes",
        "l1_reads_total",
        "l1_warm_up_duration_seconds",
        "l1_warm_ups_total",
        "operation_duration_seconds",
        "pool_connections",
        "pool_max_connections",
        "pool_requests_waiting",
        "read_duration_seconds",
        "redis_pool_connections",
        "turn_duration_seconds",
        "turns_total",
        "undrained_threads",
        "write_through_duration_seconds",
        "write_through_total",
        *_OF_THE_PROCESS,
    )
)
"""The metrics that figures are made of. Every saver's name adds 400 series, half of them of other metrics."""

_WRITES = ("put", "put_writes")
_TIERS: tuple[TierName, ...] = get_args(TierName)

# The number of series that a `TextReader` remembers. A process has about 400 for each of its savers.
_MOST_SERIES = 20_000

# Rates are floats, so a count that equals the rank may come out a little smaller.
_TOLERANCE = 1e-9


_Value = TypeVar("_Value")


class Source(Protocol):
    """Anything that collects metrics: a registry, or `multiprocess.AllProcesses`."""

    def collect(self) -> Iterable[Family]:
        """Return all families with their samples."""


Labels = tuple[str, ...]
"""The values of a series' labels, in the order of the catalogue; that of `saver` first."""

Buckets = dict[float, float]
"""A histogram's series: upper bound -> the number of observations up to it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The values of one process's metrics at one moment.

    Attributes:
        at: When it was read, in seconds of a clock that never goes back.
        values: Counters and gauges, by their names in the catalogue; and those of the process.
        buckets: Histograms, by their names in the catalogue.
        is_glasspoint: Whether there are metrics of Glasspoint's at all.
        identities: The identities of PostgreSQL that the savers use; known of this process only.
        no_identity_because: Why a saver uses none, in words; known of this process only.
    """

    at: float
    values: Mapping[str, Mapping[Labels, float]]
    buckets: Mapping[str, Mapping[Labels, Buckets]]
    is_glasspoint: bool
    identities: frozenset[str] = frozenset()
    no_identity_because: str = ""


def read_registry(
    registry: CollectorRegistry, *, source: Source | None = None, metrics: Collection[str] = _USED
) -> Reading:
    """Read the metrics of this process.

    Args:
        registry: The registry that the savers report to.
        source: What to collect instead of the registry: `multiprocess.AllProcesses()`, for example.
        metrics: The metrics to read, by their names in the catalogue; by default those of the figures.
    """
    found, known = _Found(), _known_samples()
    families = Families.find(registry)
    collected: Iterable[Family] = ()
    if source is None and families is not None and not multiprocess.is_on():
        found.is_glasspoint = True
        for metric, labels, value in families.savers.figures(storage=False):
            if metric in metrics:
                found.add(_Place(metric, labels), value)
        collected = families.collect(metrics)
        source = registry.restricted_registry(_OF_THE_PROCESS)
    for family in chain(collected, (source or registry).collect()):
        is_ours = f"{family.name}_".startswith(_PREFIX)  # the family of glasspoint_info is named without it
        found.is_glasspoint = found.is_glasspoint or is_ours
        if is_ours or family.name in _FAMILIES_OF_THE_PROCESS:
            for sample in family.samples:
                if (of := known.get(sample.name)) is not None and of[0] in metrics:
                    found.add(_known_place(sample), sample.value)
    status = [each for _, each in families.savers.active()] if families is not None else []
    cached = [each for each in status if each.tier == "cached"]
    return Reading(
        monotonic(),
        found.values,
        found.buckets,
        found.is_glasspoint,
        frozenset(each.identity for each in cached if each.identity is not None),
        next((each.no_identity_because for each in cached if each.no_identity_because), ""),
    )


class TextReader:
    """Reads the text of one process's `/metrics`, again and again.

    The Prometheus client's parser is slow: about 20 µs a line. Names and labels of a series are the same in
    each reading, so they are parsed once.
    """

    def __init__(self) -> None:
        self._places: dict[str, _Place | None] = {}

    def read(self, text: str) -> Reading:
        """Read a text in the Prometheus format.

        Raises:
            ValueError: The text has another format.
        """
        found = _Found()
        for line in text.split("\n"):
            if line.startswith("#"):
                found.is_glasspoint = found.is_glasspoint or line.startswith(f"# TYPE {_PREFIX}")
            elif line.startswith((_PREFIX, *_OF_THE_PROCESS)):
                series, _, value = line.rpartition(" ")
                if " " in series.rpartition("}")[2]:  # a timestamp stands after the value
                    sample = _parse(line)
                    found.add(_place(sample), sample.value)
                else:
                    found.add(self._place(series), float(value))
        return Reading(monotonic(), found.values, found.buckets, found.is_glasspoint)

    def _place(self, series: str) -> _Place | None:
        try:
            return self._places[series]
        except KeyError:
            if len(self._places) >= _MOST_SERIES:
                self._places.clear()
            place = self._places[series] = _place(_parse(f"{series} 0"))
            return place


class Window:
    """The newest readings of one process: their change tells what happened lately."""

    def __init__(self, *, length: int = 2) -> None:
        """Keep so many readings, 2 or more."""
        self._readings: deque[Reading] = deque(maxlen=length)

    def add(self, reading: Reading) -> Change:
        """Add a reading, and return the change within the window; of the first reading, without rates."""
        is_restart = bool(self._readings) and _is_restart(self._readings[-1], reading)
        if is_restart:
            self._readings.clear()
        self._readings.append(reading)
        oldest = self._readings[0]
        return Change(reading, None if oldest is reading else oldest, is_restart)


@dataclass(frozen=True, slots=True)
class Change:
    """What changed in one process between two readings, and its present values.

    Attributes:
        now: The newer reading.
        before: The older reading. `None`: nothing is known to have grown.
        is_restart: Whether `now` is of another process than the reading before it.
    """

    now: Reading
    before: Reading | None = None
    is_restart: bool = False

    @classmethod
    def between(cls, before: Reading, after: Reading) -> Change:
        """Compare two readings of one process, the older one first."""
        is_restart = _is_restart(before, after)
        return cls(after, None if is_restart else before, is_restart)

    @property
    def seconds(self) -> float:
        """The time between the readings, in seconds."""
        return 0.0 if self.before is None else max(0.0, self.now.at - self.before.at)

    def present(self, metric: str) -> Mapping[Labels, float]:
        """Return the present values of a counter or a gauge, by its name in the catalogue."""
        return self.now.values.get(metric, {})

    def grown(self, metric: str, **only: Sequence[str]) -> dict[Labels, float]:
        """Return how much each series of a counter has grown, or how often that of a histogram observed.

        Args:
            metric: Its name in the catalogue.
            only: Label -> the values that count.
        """
        if metric in METRICS and METRICS[metric].kind == "histogram":
            return {labels: _total(buckets) for labels, buckets in self.observed(metric, **only).items()}
        now = _chosen(metric, self.present(metric), only)
        if self.before is None:
            return dict.fromkeys(now, 0.0)
        before = self.before.values.get(metric, {})
        return {labels: max(0.0, value - before.get(labels, 0.0)) for labels, value in now.items()}

    def observed(self, metric: str, **only: Sequence[str]) -> dict[Labels, Buckets]:
        """Return what each series of a histogram has observed, by bucket. The arguments are as in `grown`."""
        now = _chosen(metric, self.now.buckets.get(metric, {}), only)
        if self.before is None:
            return {labels: dict.fromkeys(buckets, 0.0) for labels, buckets in now.items()}
        before = self.before.buckets.get(metric, {})
        return {labels: _since(before.get(labels, {}), buckets) for labels, buckets in now.items()}


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """Return the `q` quantile of cumulative buckets, as PromQL's `histogram_quantile` does.

    Within a bucket, observations are taken to be spread evenly. Above the last finite bound, the quantile is
    that bound.

    Args:
        q: Between 0 and 1.
        buckets: Upper bound -> the number of observations, or their rate, up to it. The last is infinity.

    Returns:
        The quantile, in the unit of the bounds; `None` if nothing was observed.

    Example:
        >>> quantile(0.5, {1.0: 2, 2.0: 4, float("inf"): 4})
        1.0
    """
    total = max(buckets.values(), default=0.0)
    if total <= 0 or len(buckets) < 2:
        return None
    rank, below, lower = q * total, 0.0, 0.0
    for upper, count in sorted(buckets.items()):
        if count >= rank * (1 - _TOLERANCE) and count > below:
            share = min(1.0, (rank - below) / (count - below))
            return lower if math.isinf(upper) else lower + (upper - lower) * share
        below, lower = max(below, count), upper
    return lower


@dataclass(frozen=True, slots=True)
class Timing:
    """How often something happened, and how long it took.

    Attributes:
        rate: Times a second.
        p50, p99: Percentiles, in seconds; `None` if it did not happen.
    """

    rate: float = 0.0
    p50: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, changes: Iterable[Change], metric: str, **only: Sequence[str]) -> Timing:
        """Return the rate and the percentiles of a histogram; those of several processes added by bucket.

        Args:
            changes: One of each process.
            metric: The histogram's name in the catalogue.
            only: Label -> the values that count.
        """
        added: Buckets = {}
        for change in changes:
            for buckets in change.observed(metric, **only).values():
                for le, count in buckets.items():
                    added[le] = added.get(le, 0.0) + _per_second(count, change)
        return Timing(_total(added), quantile(0.5, added), quantile(0.99, added))


@dataclass(frozen=True, slots=True)
class Timed(Timing):
    """The same, with its results: result -> times a second."""

    results: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads of one checkpoint.

    Attributes:
        rate: Calls a second, failed ones included.
        results: Results of L1, and the lower tiers `redis` and `memory` -> reads a second.
        hit_ratio: Hits among the reads that could have been hits; `None` if there were none of those.
    """

    rate: float = 0.0
    results: Mapping[str, float] = field(default_factory=dict)
    hit_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Turns(Timing):
    """Turns of conversations, and how they ended: outcome -> turns a second."""

    outcomes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pool:
    """Connections to PostgreSQL: in use, idle and allowed; and the callers that wait for one."""

    in_use: int
    idle: int
    max: int
    waiting: int


@dataclass(frozen=True, slots=True)
class RedisPool:
    """Connections to Redis."""

    in_use: int
    idle: int


@dataclass(frozen=True, slots=True)
class Process:
    """The process, or several: the share of one core (0.5: half of it), and the memory in bytes."""

    cpu: float
    rss: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What one process does, or several together.

    Attributes:
        savers: The names of the open savers.
        reads, writes: Calls of `get_tuple`, and of `put` and `put_writes`. The percentiles are of what
            callers waited.
        hit, miss: Reads that Redis answered, and reads that could have been such.
        l1, l2: Time that writes spent on Redis, and on PostgreSQL; `None` if there is no such level.
        warm_ups: Entries stored in Redis after a miss, or why not.
        errors: Operation -> failed calls a second; only those that failed.
        pool, redis_pool: Connections now; `None` if there is no pool.
        tier: The tier in use. If savers differ: tier -> number of savers. `None`: no saver is open.
        breaker: `closed`, or `open` if any saver leaves Redis alone; `None` if there is no breaker.
        identity: The identity of PostgreSQL that the cache works with. `None` if there is none, if savers
            differ, or of another process.
        no_identity_because: Why there is none, in words.
        epoch_changes, identity_changes, forks: Totals since the process was started.
        open_bursts: `None`: no metric tells.
        journal_pending, quarantined: Entries that Redis is yet to be told to drop; scopes that Redis refuses.
            All processes see the same journal, so of several processes the largest count is taken.
        undrained_threads: Lower tier -> threads that are not in PostgreSQL yet.
        turns: Turns of conversations.
        process: `None` if the registry has no `ProcessCollector`.
    """

    savers: Sequence[str]
    reads: Reads
    hit: Timing
    miss: Timing
    writes: Timed
    l1: Timing | None
    l2: Timing | None
    warm_ups: Timed
    errors: Mapping[str, float]
    pool: Pool | None
    redis_pool: RedisPool | None
    tier: str | Mapping[str, int] | None
    breaker: str | None
    identity: str | None
    no_identity_because: str
    epoch_changes: int
    identity_changes: int
    open_bursts: int | None
    journal_pending: int
    quarantined: int
    undrained_threads: Mapping[str, int]
    forks: int
    turns: Turns
    process: Process | None

    @classmethod
    def of(cls, *changes: Change, saver: str | None = None) -> Figures:
        """Sum up the changes of several processes, or of one. No change: figures of nothing.

        Args:
            changes: One of each process.
            saver: Only the saver of this name; all by default. CPU and memory are the process's anyway.
        """
        return _Summary(changes, saver).figures()

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, texts, lists and dicts, for JSON."""
        return asdict(self)


class _Summary:
    """Adds up the changes of several processes, of all their savers or of those with one name."""

    def __init__(self, changes: Sequence[Change], saver: str | None) -> None:
        self._changes = changes
        self._only: dict[str, Sequence[str]] = {} if saver is None else {"saver": (saver,)}

    def figures(self) -> Figures:
        results = self._rates("l1_reads_total", "result", get_args(L1Result))
        could_be_hits = sum(results[each] for each in COULD_BE_HITS.split("|"))
        written = self._rates("write_through_total", "l1", get_args(WriteResult))
        put = self._timing("operation_duration_seconds", operation=_WRITES)
        warmed = self._rates("l1_warm_ups_total", "result", get_args(WarmUpResult))
        warm_up = self._timing("l1_warm_up_duration_seconds")
        turn = self._timing("turn_duration_seconds")
        outcomes = self._rates("turns_total", "outcome", get_args(TurnOutcome))
        failed = self._rates("operation_duration_seconds", "operation", outcome=("error",))
        now = [each.now for each in self._changes]
        identities = frozenset[str]().union(*(each.identities for each in now))
        return Figures(
            savers=sorted({labels[0] for labels, _ in self._now("info")}),
            reads=Reads(
                self._timing("operation_duration_seconds", operation=("get_tuple",)).rate,
                results | self._in_lower_tiers("l1_reads_total", ("get_tuple",)),
                results["hit"] / could_be_hits if could_be_hits else None,
            ),
            hit=self._timing("read_duration_seconds", result=("hit",)),
            miss=self._timing("read_duration_seconds", result=("miss",)),
            writes=Timed(
                put.rate, put.p50, put.p99, written | self._in_lower_tiers("write_through_total", _WRITES)
            ),
            l1=self._level("l1"),
            l2=self._level("l2"),
            # Not the rate of the durations: a warm-up that is not tried has none.
            warm_ups=Timed(sum(warmed.values()), warm_up.p50, warm_up.p99, warmed),
            errors={operation: rate for operation, rate in sorted(failed.items()) if rate > 0},
            pool=self._pool(),
            redis_pool=self._redis_pool(),
            tier=self._tier(),
            breaker=self._breaker(),
            identity=next(iter(identities)) if len(identities) == 1 else None,
            no_identity_because=next((each.no_identity_because for each in now if not each.identities), ""),
            epoch_changes=self._sum("l1_epoch_changes_total"),
            identity_changes=self._sum("l1_identity_changes_total"),
            open_bursts=None,
            journal_pending=self._largest("l1_journal_pending"),
            quarantined=self._largest("l1_quarantined_scopes"),
            undrained_threads=self._undrained(),
            forks=self._sum("forks_total"),
            turns=Turns(turn.rate, turn.p50, turn.p99, outcomes),
            process=self._process(),
        )

    # ---------------------------------------------------------------- what happened

    def _rates(
        self, metric: str, label: str, known: Iterable[str] = (), **only: Sequence[str]
    ) -> dict[str, float]:
        """Return the rates of a counter or a histogram, by one of its labels; 0 for known values of it."""
        at, only = _index(metric, label), {**self._only, **only}
        rates = dict.fromkeys(known, 0.0)
        for change in self._changes:
            for labels, grown in change.grown(metric, **only).items():
                rates[labels[at]] = rates.get(labels[at], 0.0) + _per_second(grown, change)
        return rates

    def _timing(self, metric: str, **only: Sequence[str]) -> Timing:
        return Timing.of(self._changes, metric, **self._only, **only)

    def _level(self, tier: str) -> Timing | None:
        metric = "write_through_duration_seconds"
        only = {**self._only, "tier": (tier,)}
        series = (labels for each in self._changes for labels in each.now.buckets.get(metric, {}))
        return self._timing(metric, tier=(tier,)) if any(_is_among(metric, s, only) for s in series) else None

    def _in_lower_tiers(self, counter: str, operations: Sequence[str]) -> dict[str, float]:
        """Return the rates of calls in the tiers `redis` and `memory`.

        Only the tier `cached` counts the results of its calls. So these are the successful calls without such
        a result, of savers that work in a lower tier now. When the tier changes, one reading may show some
        calls in the wrong tier.
        """
        rates: dict[str, float] = dict.fromkeys(_TIERS[1:], 0.0)
        wanted = {"operation": operations, "outcome": ("ok",)}
        for change in self._changes:
            for saver, tiers in self._lower_tiers(change).items():
                calls = _sum_of(change, "operation_duration_seconds", {**wanted, "saver": (saver,)})
                others = max(0.0, calls - _sum_of(change, counter, {"saver": (saver,)}))
                for tier in tiers:
                    rates[tier] += _per_second(others, change) / len(tiers)
        return rates

    def _lower_tiers(self, change: Change) -> dict[str, list[str]]:
        """Return the tiers below `cached` that are in use, by saver."""
        at = _index("active_tier", "tier")
        found: dict[str, list[str]] = {}
        for labels, value in change.present("active_tier").items():
            if value and labels[at] in _TIERS[1:] and _is_among("active_tier", labels, self._only):
                found.setdefault(labels[0], []).append(labels[at])
        return found

    # ---------------------------------------------------------------- how it stands

    def _now(self, metric: str) -> Iterator[tuple[Labels, float]]:
        for change in self._changes:
            for labels, value in change.present(metric).items():
                if _is_among(metric, labels, self._only):
                    yield labels, value

    def _sum(self, metric: str) -> int:
        return int(sum(value for _, value in self._now(metric)))

    def _by(self, metric: str, label: str) -> Counter[str]:
        at, found = _index(metric, label), Counter[str]()
        for labels, value in self._now(metric):
            found[labels[at]] += int(value)
        return found

    def _largest(self, metric: str, **only: Sequence[str]) -> int:
        """Return the sum over the savers' names of what all processes see alike."""
        most: dict[str, float] = {}
        for labels, value in self._now(metric):
            if _is_among(metric, labels, only):
                most[labels[0]] = max(value, most.get(labels[0], 0.0))
        return int(sum(most.values()))

    def _pool(self) -> Pool | None:
        allowed = self._sum("pool_max_connections")
        if not allowed:
            return None
        states = self._by("pool_connections", "state")
        return Pool(states["in_use"], states["idle"], allowed, self._sum("pool_requests_waiting"))

    def _redis_pool(self) -> RedisPool | None:
        states = self._by("redis_pool_connections", "state")
        return RedisPool(states["in_use"], states["idle"]) if states else None

    def _tier(self) -> str | dict[str, int] | None:
        active = {tier: count for tier, count in self._by("active_tier", "tier").items() if count}
        return next(iter(active), None) if len(active) < 2 else active

    def _breaker(self) -> str | None:
        states = [value for _, value in self._now("l1_breaker_open")]
        return None if not states else "open" if any(states) else "closed"

    def _undrained(self) -> dict[str, int]:
        """Add up: all processes see the same Redis, but each has a memory of its own."""
        memory = self._by("undrained_threads", "tier")["memory"]
        return {"redis": self._largest("undrained_threads", tier=("redis",)), "memory": memory}

    def _process(self) -> Process | None:
        cpu = [_per_second(used, each) for each in self._changes for used in each.grown(_CPU).values()]
        rss = [used for each in self._changes for used in each.present(_RSS).values()]
        return Process(sum(cpu), sum(rss)) if cpu and rss else None


# -------------------------------------------------------------------- readings


class _Place(NamedTuple):
    """Where a sample belongs: its metric and labels, and of a histogram the upper bound of its bucket."""

    metric: str
    labels: Labels
    le: float | None = None


class _Found:
    """The samples of a reading, so far."""

    def __init__(self) -> None:
        self.values: dict[str, dict[Labels, float]] = {}
        self.buckets: dict[str, dict[Labels, Buckets]] = {}
        self.is_glasspoint = False

    def add(self, place: _Place | None, value: float) -> None:
        """Add a sample, if it is one of ours and a number."""
        if place is None or not math.isfinite(value):
            return
        metric, labels, le = place
        if le is None:
            self.values.setdefault(metric, {})[labels] = value
        else:
            self.buckets.setdefault(metric, {}).setdefault(labels, {})[le] = value


@cache
def _known_samples() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name of a sample -> the metric in the catalogue, and the names of its labels without `le`."""
    known: dict[str, tuple[str, tuple[str, ...]]] = {name: (name, ()) for name in _OF_THE_PROCESS}
    for metric in METRICS.values():
        name = f"{_PREFIX}{metric.name}{'_bucket' if metric.kind == 'histogram' else ''}"
        known[name] = metric.name, ("saver", *metric.labels)
    return known


_places: dict[tuple[str, tuple[tuple[str, str], ...]], _Place | None] = {}


def _known_place(sample: Sample) -> _Place | None:
    """Return where a sample of this process belongs. Its series are the same in each reading."""
    series = sample.name, tuple(sample.labels.items())
    try:
        return _places[series]
    except KeyError:
        if len(_places) >= _MOST_SERIES:
            _places.clear()
        return _places.setdefault(series, _place(sample))


def _place(sample: Sample) -> _Place | None:
    """Return where a sample belongs; `None` if no figure is made of it."""
    if (known := _known_samples().get(sample.name)) is None:
        return None
    metric, names = known
    labels = tuple(sample.labels.get(name, "") for name in names)
    if not sample.name.endswith("_bucket"):
        return _Place(metric, labels)
    try:
        le = float(sample.labels["le"])
    except (KeyError, ValueError):
        return None
    return None if math.isnan(le) else _Place(metric, labels, le)


def _parse(line: str) -> Sample:
    try:
        return next(each for family in text_string_to_metric_families(line + "\n") for each in family.samples)
    except (ValueError, IndexError, StopIteration):
        raise ValueError(f"this is no sample: {line[:80]!r}") from None


# -------------------------------------------------------------------- changes


def _is_restart(before: Reading, after: Reading) -> bool:
    """Tell whether two readings are of different processes: something that only grows has shrunk."""
    if before.values.get(_STARTED) != after.values.get(_STARTED):
        return True
    for metric, series in before.values.items():
        if metric.endswith("_total"):
            now = after.values.get(metric, {})
            if any(now.get(labels, -1.0) < value for labels, value in series.items()):
                return True
    for metric, histograms in before.buckets.items():
        now_ = after.buckets.get(metric, {})
        if any(_total(now_.get(labels, {})) < _total(each) for labels, each in histograms.items()):
            return True
    return False


def _since(before: Buckets, after: Buckets) -> Buckets:
    return {le: max(0.0, count - before.get(le, 0.0)) for le, count in after.items()}


def _total(buckets: Buckets) -> float:
    """Return the number of all observations: buckets are cumulative."""
    return max(buckets.values(), default=0.0)


def _per_second(grown: float, change: Change) -> float:
    return grown / change.seconds if change.seconds else 0.0


def _sum_of(change: Change, metric: str, only: Mapping[str, Sequence[str]]) -> float:
    return sum(change.grown(metric, **only).values())


def _chosen(
    metric: str, series: Mapping[Labels, _Value], only: Mapping[str, Sequence[str]]
) -> Mapping[Labels, _Value]:
    if not only:
        return series
    return {labels: value for labels, value in series.items() if _is_among(metric, labels, only)}


def _is_among(metric: str, labels: Labels, only: Mapping[str, Sequence[str]]) -> bool:
    return all(labels[_index(metric, label)] in values for label, values in only.items())


@cache
def _index(metric: str, label: str) -> int:
    """Return where a label's value stands among those of a series."""
    return ("saver", *METRICS[metric].labels).index(label)
