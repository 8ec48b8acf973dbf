"""The vocabulary: what the saver, L1 and L2 say about themselves, and to whom.

The core never knows who listens. It wraps each call in an `Operation` and each round trip in a `Step`, fills
in what it learns on the way, and tells single facts with `Telemetry.note`. Observers (`metrics`, `tracing`)
turn that into metrics and spans; a new back end is a new observer, and the core never changes.

An observer that fails is logged, and the call goes on: no conversation fails because nobody could be told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from glasspoint.model.scope import Scope

__all__ = [
    "DURABLE",
    "Audited",
    "BackgroundTaskFailed",
    "BreakerChanged",
    "BreakerState",
    "BurstEnd",
    "BurstEnded",
    "CommitResult",
    "DrainResult",
    "Drained",
    "EpochChanged",
    "Failures",
    "ForeignWrites",
    "ForkKind",
    "Forked",
    "IdentityChanged",
    "IdentityReason",
    "Invalidated",
    "InvalidationSource",
    "L1Availability",
    "L1Result",
    "L2Retried",
    "Note",
    "Observer",
    "Operation",
    "PoolTimedOut",
    "PoolWaited",
    "Quarantined",
    "RetentionPruned",
    "RetentionRan",
    "RetentionResult",
    "RetryReason",
    "Served",
    "Server",
    "Step",
    "TableSize",
    "TaskName",
    "Telemetry",
    "ThreadDrained",
    "Tier",
    "TierChanged",
    "TierName",
    "Verdict",
    "Vitals",
    "WarmUpResult",
    "WriteResult",
    "failures",
]

_log = logging.getLogger("glasspoint.telemetry")

_FAILURES_LOG_SECONDS = 60.0

Tier = Literal["l1", "l2"]
Server = Literal["l1", "l2", "redis"]
Served = Literal["l1", "l2", "redis", "memory"]
L1Result = Literal["hit", "miss", "busy", "historical", "bypassed", "incomplete", "unavailable"]
WarmUpResult = Literal["stored", "refused", "error"]
WriteResult = Literal[
    "announced", "covered", "contested", "discarded", "journalled", "skipped", "bypassed", "error"
]
CommitResult = Literal["applied", "kept", "discarded", "error"]
BurstEnd = Literal["applied", "kept", "discarded", "contested", "lost", "error"]
Outcome = Literal["ok", "error", "cancelled"]
InvalidationSource = Literal["delete", "prune", "copy", "journal", "audit", "tampered"]
IdentityReason = Literal["database", "timeline", "crash", "restart", "truncated", "generation"]
ForkKind = Literal["shadows", "shadowed", "older_than_parent"]
Verdict = Literal["consistent", "stale", "raced"]
DrainResult = Literal["continued", "new", "set_aside", "refused"]
TaskName = Literal["sweeper", "auditor", "table_sizes", "reconnector", "tier_probe", "retention"]
RetentionResult = Literal["succeeded", "failed", "lost"]
BreakerState = Literal["closed", "open", "half_open"]
RetryReason = Literal[
    "connection_lost",
    "server_restart",
    "read_only",
    "too_many_connections",
    "deadlock",
    "serialization",
    "lock_timeout",
]
TierName = Literal["cached", "redis", "memory"]

DURABLE = frozenset(("on", "remote_apply"))
"""The settings of `synchronous_commit` with which a crash loses nothing that was acknowledged."""


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """Redis is left alone, probed, or asked again."""

    state: BreakerState
    reason: str


@dataclass(frozen=True, slots=True)
class EpochChanged:
    """Redis is another server process than before: a restart or a failover."""


@dataclass(frozen=True, slots=True)
class IdentityChanged:
    """L2 is not what the cache was filled from, or the cache has moved to another Redis.

    Attributes:
        reason: `database`: another one, or tables made anew; `timeline`: promoted, or recovered to an earlier
            moment; `crash`: crashed; `restart`: restarted, perhaps with other files; `truncated`: emptied;
            `generation`: another Redis, or not used for long.
    """

    reason: IdentityReason


@dataclass(frozen=True, slots=True)
class ForeignWrites:
    """Other software has written to a table, and the cache has followed.

    Attributes:
        table: `checkpoints` or `checkpoint_writes`.
        scopes: How many scopes were dropped for it.
    """

    table: str
    scopes: int


@dataclass(frozen=True, slots=True)
class Forked:
    """A put went on from what is not the newest checkpoint any more, or is older than its parent.

    Attributes:
        kind: `shadows`: the other run's answer is not seen any more; `shadowed`: this one's is not;
            `older_than_parent`: this one's is not, because a clock is behind.
        is_stored: Whether the checkpoint was stored all the same.
        checkpoint_id, parent_id: Of the put; no parent: two runs began the thread.
        other_id: The checkpoint that is newer than the parent; `None` if there is none.
    """

    scope: Scope
    kind: ForkKind
    is_stored: bool
    checkpoint_id: str
    parent_id: str | None
    other_id: str | None


@dataclass(frozen=True, slots=True)
class RetentionPruned:
    """The retention has removed a batch.

    Attributes:
        checkpoints, writes, blobs: Rows of the three tables.
    """

    checkpoints: int
    writes: int
    blobs: int


@dataclass(frozen=True, slots=True)
class RetentionRan:
    """A run of the retention is over.

    Attributes:
        result: `lost`: its lease was not renewed in time, and another process goes on.
    """

    result: RetentionResult


@dataclass(frozen=True, slots=True)
class Invalidated:
    """An entry was dropped for another reason than a write to its scope."""

    source: InvalidationSource


@dataclass(frozen=True, slots=True)
class BurstEnded:
    """A burst of writes to one scope is over.

    Attributes:
        end: `applied`: the image in L1 is what L2 has; `kept`: none of the writes belongs to the image;
            `discarded`: L1 cannot follow; `contested`: another writer was there; `lost`: Redis was not told,
            or something was left in doubt; `error`: Redis did not answer COMMIT.
        writes: How many writes it had.
    """

    end: BurstEnd
    writes: int


@dataclass(frozen=True, slots=True)
class Audited:
    """A hit was compared with L2, after it was answered.

    Attributes:
        verdict: `raced`: they differed, but a write came between the two looks.
    """

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class PoolTimedOut:
    """No connection to PostgreSQL came free in time."""


@dataclass(frozen=True, slots=True)
class PoolWaited:
    """A connection to PostgreSQL was checked out, after waiting for so long."""

    seconds: float
    scope: Scope | None


@dataclass(frozen=True, slots=True)
class L1Availability:
    """Redis began to answer, or ceased to."""

    available: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Redis refuses the key of one scope, which PostgreSQL alone answers for now. All others are cached.

    Attributes:
        reason: What Redis refuses, in the words of `redis.faults`.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class BackgroundTaskFailed:
    """A background task met an error that nobody foresaw. It goes on."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class L2Retried:
    """A call that PostgreSQL failed is tried again.

    Attributes:
        operation: What is done: `get_tuple`, `put`, ….
        reason: What went wrong; `l2.faults` says when.
    """

    operation: str
    reason: RetryReason


@dataclass(frozen=True, slots=True)
class TierChanged:
    """The fallback chain works in another tier than before.

    Attributes:
        reason: `postgres_unavailable` or `redis_unavailable` on the way down, `recovered` on the way up.
    """

    from_tier: str
    to_tier: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Checkpoints that were written to a lower tier are in a higher one now, and were not before."""

    from_tier: str
    checkpoints: int


@dataclass(frozen=True, slots=True)
class ThreadDrained:
    """A thread of a lower tier is in a higher one now, or cannot be moved.

    Attributes:
        result: `continued`: it goes on from what was there. `new`: nothing was. `set_aside`: it does not go
            on from what was there, and is a thread of its own. `refused`: it cannot be moved.
    """

    result: DrainResult


Note = (
    Audited
    | BurstEnded
    | BackgroundTaskFailed
    | EpochChanged
    | ForeignWrites
    | Forked
    | IdentityChanged
    | Invalidated
    | PoolTimedOut
    | PoolWaited
    | L1Availability
    | Quarantined
    | RetentionPruned
    | RetentionRan
    | BreakerChanged
    | L2Retried
    | TierChanged
    | Drained
    | ThreadDrained
)


class TableSize(NamedTuple):
    """What a table takes on the disk, in bytes and with its indexes, and about how many rows it has."""

    bytes: int
    rows: int


@dataclass(slots=True, weakref_slot=True, eq=False)
class Vitals:
    """A saver's moving parts, for whoever wants to read their figures at some time of its own.

    Attributes:
        pool: The `psycopg_pool.AsyncConnectionPool`, `None` with a single connection.
        redis: The `redis.asyncio.Redis` or `RedisCluster` client.
        addresses: Server -> host (or socket path) and port, as far as they are known.
        tier: Where the saver works: `cached`, `redis`, `memory`.
        versions: What is known of the servers' versions: `postgres`, `redis`.
        active: Whether it serves calls; in a fallback chain, one of its savers does.
        since: When that began to be so, in seconds since 1970.
        check: Asks the servers how they are, now: a word each (`ok`, `unavailable`), and what else there is
            to say. To be awaited on `loop`.
        loop: The event loop that the saver works on.
        undrained: The lower tiers of its chain that may hold what is not here yet.
        undrained_threads: Lower tier -> how many threads were found there when somebody last looked.
        breaker: Where the breaker in front of L1 stands; `None` where there is none.
        journal_pending: How many rows of the journal were not swept when somebody last looked, but for those
            of scopes in quarantine.
        quarantined: Returns how many scopes are in quarantine. `None` where there is no L1.
        identity: Of L2, as it stands in the keys of L1; `None` while L1 is not used.
        no_identity_because: What keeps the identity from being used, in words; empty if nothing was found.
        withheld: The parts of the identity that PostgreSQL does not tell this role.
        synchronous_commit: PostgreSQL's setting, on the saver's connections; `None` if it is not known.
        has_unbounded_statements: Whether PostgreSQL lets a statement run for longer than readers heed its
            writer's intent (`statement_timeout`); `None` if that is not known.
        reopen: Opens the saver in a child after a fork, where it is of no use as it is, and waits until it is
            open. `None` if it cannot be opened again.
        retention_succeeded_at: When a run of the retention succeeded last, in any process, in seconds since
            1970; 0 if none has, `None` if this saver has no retention.
        storage: Returns what is known of the tables' sizes, and sees that it is renewed. From any thread;
            waits for nobody. `None` where there is no PostgreSQL.
    """

    pool: Any
    redis: Any
    addresses: dict[Server, tuple[str | None, int | None]] = field(default_factory=dict)
    tier: str = "cached"
    versions: dict[str, str] = field(default_factory=dict)
    active: bool = True
    since: float = field(default_factory=time)
    check: Callable[[], Coroutine[Any, Any, dict[str, Any]]] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    undrained: tuple[str, ...] = ()
    undrained_threads: Mapping[str, int] = field(default_factory=dict)
    breaker: BreakerState | None = None
    journal_pending: int = 0
    identity: str | None = None
    no_identity_because: str = ""
    withheld: tuple[str, ...] = ()
    synchronous_commit: str | None = None
    has_unbounded_statements: bool | None = None
    quarantined: Callable[[], int] | None = None
    reopen: Callable[[], object] | None = None
    retention_succeeded_at: float | None = None
    storage: Callable[[], Mapping[str, TableSize]] | None = None
    _announcement: Callable[[], object] | None = field(default=None, init=False)

    def set_active(self, active: bool) -> None:
        """Say that it serves calls from now on, or no longer."""
        self.active, self.since = active, time()
        self._make_announcement()

    def announce(self, log: Callable[[], object]) -> None:
        """Log that the saver is open once it serves calls: now, or when it begins to.

        A fallback chain also opens savers that never do, to look for what they hold.
        """
        self._announcement = log
        self._make_announcement()

    def _make_announcement(self) -> None:
        if self.active and self._announcement is not None:
            log, self._announcement = self._announcement, None
            log()


class _Timed:
    """What operations and steps have in common: a start, an end, and how it ended."""

    __slots__ = ("_listeners", "_started", "error", "name", "outcome", "scope", "seconds", "trace")

    def __init__(self, listeners: _Listeners, name: str, scope: Scope | None) -> None:
        self._listeners = listeners
        self.name = name
        self.scope = scope
        self.outcome: Outcome = "ok"
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.trace: Any = None
        """Left here by the tracer between start and end."""
        self._started = 0.0

    def _end(self, error: BaseException | None) -> None:
        self.seconds = perf_counter() - self._started
        if error is not None:
            self.error = error
            self.outcome = "cancelled" if isinstance(error, asyncio.CancelledError) else "error"


class Operation(_Timed):
    """One call of the saver, from its start to its answer.

    Attributes:
        name: `get_tuple`, `put`, `put_writes`, `list`, `list_threads`, `delta_history`, `delete_thread`,
            `delete_for_runs`, `copy_thread`, `prune`, `prune_older_than`, `import_checkpoints`,
            `seal_thread`, `retire_thread`.
        tier: Where the saver works: `cached`, `redis`, `memory`.
        checkpoint_id, step, source: Of the checkpoint read or written, where there is one.
        l1_result: What L1 answered to a read.
        served_by: Where the answer came from.
        l1_write: What became of a write in L1.
        l1_seconds, l2_seconds: Time that a write spent on each tier; what overlaps counts for both.
        encode_seconds, decode_seconds: Time spent on (de)serialising.
        bytes_read, bytes_written: Size of the state, as serialised.
        trace_id: The trace this call belongs to, 32 hexadecimal digits, if it is recorded.
        traceparent: What a put is to store of the span that writes, left here by the tracer.
        stored_traceparent: What a read has found of the span that wrote, as it stood there.
    """

    __slots__ = (
        "bytes_read",
        "bytes_written",
        "checkpoint_id",
        "decode_seconds",
        "encode_seconds",
        "l1_result",
        "l1_seconds",
        "l1_write",
        "l2_seconds",
        "served_by",
        "source",
        "step",
        "stored_traceparent",
        "tier",
        "trace_id",
        "traceparent",
    )

    def __init__(self, listeners: _Listeners, name: str, scope: Scope | None) -> None:
        super().__init__(listeners, name, scope)
        self.checkpoint_id: str | None = None
        self.step: int | None = None
        self.source: str | None = None
        self.l1_result: L1Result | None = None
        self.served_by: Served | None = None
        self.tier = "cached"
        self.l1_write: WriteResult | None = None
        self.l1_seconds: float | None = None
        self.l2_seconds: float | None = None
        self.encode_seconds: float | None = None
        self.decode_seconds: float | None = None
        self.bytes_read: int | None = None
        self.bytes_written: int | None = None
        self.trace_id: str | None = None
        self.traceparent: str | None = None
        self.stored_traceparent: object = None

    def __enter__(self) -> Operation:
        _tell(self._listeners.operation_started, self)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)
        _tell(self._listeners.operation_ended, self)


class Step(_Timed):
    """One round trip, or one wait, inside an operation.

    Attributes:
        name: `l1.read`, `l1.begin`, …; `l2.select`, `l2.put`, …; `l2.acquire`; `warm_up`; `redis.read`, ….
        result: The answer in one word, where there is one.
    """

    __slots__ = ("result",)

    def __init__(self, listeners: _Listeners, name: str, scope: Scope | None) -> None:
        super().__init__(listeners, name, scope)
        self.result: str | None = None

    def __enter__(self) -> Step:
        _tell(self._listeners.step_started, self)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)
        _tell(self._listeners.step_ended, self)


class Observer:
    """Who is told. A method must be quick and must not block; what it raises is logged, and ends there.

    To be inherited from: what an observer leaves out costs nothing.
    """

    def operation_started(self, operation: Operation) -> None:
        """A call begins; only its name and scope are known."""

    def operation_ended(self, operation: Operation) -> None:
        """A call was answered, failed or was cancelled; all that is known of it stands in it."""

    def step_started(self, step: Step) -> None:
        """A round trip begins."""

    def step_ended(self, step: Step) -> None:
        """A round trip ended."""

    def noted(self, note: Note) -> None:
        """Something happened once."""

    def opened(self, vitals: Vitals) -> None:
        """A saver was opened."""

    def closed(self, vitals: Vitals) -> None:
        """It was closed, and its pools are about to be."""


class Telemetry:
    """Hands what the core says to every observer.

    Example:
        >>> with Telemetry("default", ()).operation("get_tuple", None) as operation:
        ...     operation.l1_result = "hit"
        >>> operation.outcome
        'ok'
    """

    def __init__(
        self,
        saver_name: str,
        observers: Sequence[Observer],
        *,
        standby: bool = False,
        show_thread: Callable[[str], str | None] = str,
    ) -> None:
        """Take the observers.

        Args:
            standby: The savers that report here serve no calls until somebody says so (`Vitals.set_active`).
            show_thread: Returns how a thread id stands in spans and logs, `None` if it must not be shown.
        """
        self.show_thread = show_thread
        self.saver_name = saver_name
        self._observers = tuple(observers)
        self._listeners = _Listeners.of(self._observers)
        self._standby = standby

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who is told."""
        return self._observers

    def for_standby(self) -> Telemetry:
        """Return the same for savers that serve no calls yet: the tiers of a fallback chain."""
        return Telemetry(self.saver_name, self._observers, standby=True, show_thread=self.show_thread)

    def operation(self, name: str, scope: Scope | None) -> Operation:
        """Wrap one call of the saver: `with telemetry.operation("put", scope) as operation:`."""
        return Operation(self._listeners, name, scope)

    def step(self, name: str, scope: Scope | None) -> Step:
        """Wrap one round trip."""
        return Step(self._listeners, name, scope)

    def note(self, note: Note) -> None:
        """Tell a single fact."""
        _tell(self._listeners.noted, note)

    def opened(self, vitals: Vitals) -> None:
        """Say that a saver is there to be watched."""
        vitals.active = not self._standby
        _tell(self._listeners.opened, vitals)

    def closed(self, vitals: Vitals) -> None:
        """Say that a saver is about to go."""
        _tell(self._listeners.closed, vitals)


_Told = tuple[Callable[[Any], None], ...]


class _Listeners(NamedTuple):
    """The methods of all observers, looked up once; what begins with the first ends with the last."""

    operation_started: _Told
    operation_ended: _Told
    step_started: _Told
    step_ended: _Told
    noted: _Told
    opened: _Told
    closed: _Told

    @classmethod
    def of(cls, observers: Sequence[Observer]) -> _Listeners:
        def told(what: str) -> _Told:
            default = getattr(Observer, what)
            found = tuple(
                getattr(each, what) for each in observers if getattr(type(each), what) is not default
            )
            return found[::-1] if what.endswith("_ended") else found

        return cls(*map(told, cls._fields))


def _tell(listeners: _Told, what: object) -> None:
    for listener in listeners:
        try:
            listener(what)
        except Exception as exc:
            failures.report(getattr(listener, "__qualname__", "an observer"), exc)


class Failures:
    """What went wrong while somebody was told: counted, and a line a minute at most, for it may be each call.

    Of the error only the class is logged; its text may quote what was said.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = Lock()
        self._logged_at = -_FAILURES_LOG_SECONDS
        self._logged_count = 0

    def report(self, where: str, error: Exception) -> None:
        """Count a failure, and log it if none was logged lately."""
        with self._lock:
            self.count += 1
            if monotonic() - self._logged_at < _FAILURES_LOG_SECONDS:
                return
            since, self._logged_count = self.count - self._logged_count, self.count
            self._logged_at = monotonic()
        _log.warning(
            "Telemetry failed in %s (%s): the call goes on, but metrics or spans of it are missing. (%d such "
            "failures since the last such line; at most one in %d s.)",
            where,
            type(error).__qualname__,
            since,
            _FAILURES_LOG_SECONDS,
        )


failures = Failures()
"""Of the whole process."""
