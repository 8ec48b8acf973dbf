"""The vocabulary of telemetry: events that the saver, L1 and L2 emit, and observers that receive them.

The core does not know its observers. It wraps each call in an `Operation` and each round trip in a `Step`,
fills in what it learns on the way, and emits single facts with `Telemetry.note`. Observers (`metrics`,
`tracing`) turn these into metrics and spans. A new back end is a new observer; the core does not change.

If an observer fails, the error is logged and the call goes on: no conversation fails because of telemetry.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from glasspoint.logs import Throttle
from glasspoint.telemetry.interrupts import KnownInterrupts, interrupts_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from langchain_core.runnables import RunnableConfig

    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.interrupts import Interrupt, InterruptKind

__all__ = [
    "DURABLE",
    "RETIRED",
    "Audited",
    "BackgroundTaskFailed",
    "BreakerChanged",
    "BreakerState",
    "BurstEnd",
    "BurstEnded",
    "CommitResult",
    "DrainResult",
    "Drained",
    "Dropped",
    "EpochChanged",
    "Event",
    "Failures",
    "ForeignWrites",
    "ForkKind",
    "Forked",
    "IdentityChanged",
    "IdentityReason",
    "InterruptStored",
    "Invalidated",
    "InvalidationSource",
    "L1Availability",
    "L1Result",
    "L2Retried",
    "Observer",
    "Operation",
    "PoolWaited",
    "Quarantined",
    "RetentionPruned",
    "RetentionRan",
    "RetentionResult",
    "RetryReason",
    "SaverStatus",
    "Served",
    "Server",
    "ServerMoved",
    "Step",
    "TableSize",
    "TaskName",
    "Telemetry",
    "ThreadDrained",
    "Tier",
    "TierChanged",
    "TierName",
    "TurnEnded",
    "TurnOutcome",
    "Verdict",
    "WarmUpEnded",
    "WarmUpResult",
    "WarmUpSkipped",
    "WriteResult",
    "failures",
]

_log = logging.getLogger("glasspoint.telemetry")

Tier = Literal["l1", "l2"]
Server = Literal["l1", "l2", "redis"]
Served = Literal["l1", "l2", "redis", "memory"]
L1Result = Literal["hit", "miss", "absent", "busy", "historical", "bypassed", "incomplete", "unavailable"]
WarmUpResult = Literal["stored", "overtaken", "not_first", "fenced", "error"]
WriteResult = Literal[
    "announced", "covered", "contested", "discarded", "journalled", "skipped", "bypassed", "error"
]
CommitResult = Literal["applied", "kept", "discarded", "error"]
BurstEnd = Literal["applied", "kept", "discarded", "contested", "lost", "error"]
Outcome = Literal["ok", "error", "cancelled"]
TurnOutcome = Literal["ok", "error", "interrupted", "cancelled"]
InvalidationSource = Literal["delete", "prune", "copy", "journal", "audit", "tampered"]
IdentityReason = Literal["database", "timeline", "crash", "restart", "truncated", "called_off", "generation"]
ForkKind = Literal["shadows", "shadowed", "older_than_parent"]
Verdict = Literal["consistent", "stale", "raced"]
DrainResult = Literal["continued", "new", "set_aside", "refused", "lost"]
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
Dropped = Literal["metrics", "spans", "events"]

RETIRED = "retired"
"""The reason of a breaker's change to `closed` because the master of a cluster has no slots any more."""

DURABLE = frozenset(("on", "remote_apply"))
"""The settings of `synchronous_commit` with which a crash loses no acknowledged write."""


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """The breaker in front of Redis has opened, is probing Redis, or has closed.

    Attributes:
        state: The new state.
        previous: The state before. `half_open` before `open`: a probe failed, and the same outage goes on.
        reason: Why, in a word.
    """

    state: BreakerState
    previous: BreakerState
    reason: str

    @property
    def is_probe(self) -> bool:
        """Whether a probe begins or has failed, so that Redis is left alone as before."""
        return self.state != "closed" and self.previous != "closed"


@dataclass(frozen=True, slots=True)
class EpochChanged:
    """Redis is another server process than before: a restart or a failover."""


@dataclass(frozen=True, slots=True)
class ServerMoved:
    """A server has another address than before: sentinels name another master.

    Attributes:
        server: The server.
        address: Its host and port now.
    """

    server: Server
    address: tuple[str, int]


@dataclass(frozen=True, slots=True)
class IdentityChanged:
    """The cache was filled from another state of PostgreSQL, or has moved to another Redis.

    Attributes:
        reason: `database`: another database, or tables created anew. `timeline`: PostgreSQL was promoted, or
            recovered to an earlier moment. `crash`: it crashed. `restart`: it was restarted, perhaps with
            other files. `truncated`: a table was emptied. `called_off`: PostgreSQL is the same, and the move
            of a slot of the Redis Cluster was called off. `generation`: the cache has moved to another Redis,
            or was not used for a long time.
    """

    reason: IdentityReason


@dataclass(frozen=True, slots=True)
class ForeignWrites:
    """Other software has written to a table, and the cache has dropped the scopes concerned.

    Attributes:
        table: `checkpoints` or `checkpoint_writes`.
        scopes: The number of scopes dropped.
    """

    table: str
    scopes: int


@dataclass(frozen=True, slots=True)
class Forked:
    """A put's parent was not the newest checkpoint any more, or the put is older than its parent.

    Attributes:
        kind: `shadows`: this put hides what the other run has written. `shadowed`: it is hidden by what the
            other run has written. `older_than_parent`: it is hidden because this machine's clock is behind.
        is_stored: Whether the checkpoint was stored all the same.
        checkpoint_id, parent_id: Ids of the put; without a parent, two runs have begun the thread.
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
        checkpoints, writes, blobs: The numbers of rows removed from the three tables.
    """

    checkpoints: int
    writes: int
    blobs: int


@dataclass(frozen=True, slots=True)
class RetentionRan:
    """A run of the retention is over.

    Attributes:
        result: `lost`: the lease was not renewed in time, so another process continues.
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
        end: `applied`: the image in L1 now equals L2. `kept`: none of the writes concerns the image.
            `discarded`: L1 cannot apply the writes. `contested`: another writer used the scope meanwhile.
            `lost`: Redis did not get a write, or the outcome of a write is not known. `error`: Redis did not
            answer COMMIT.
        writes: The number of its writes.
        image_bytes: The size of the image that COMMIT stored, if the burst held all of it.
    """

    end: BurstEnd
    writes: int
    image_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """A hit was compared with L2, after it was returned.

    Attributes:
        verdict: `raced`: hit and L2 differed, but a write came between the two reads.
    """

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class PoolWaited:
    """A caller has waited for a connection to PostgreSQL, and received it or not.

    Attributes:
        seconds: The length of the wait.
        error: Why the caller did not receive a connection. `None`: it received one.
        is_timeout: Whether its time was up: that of the pool, or the deadline of the call.
    """

    seconds: float
    scope: Scope | None
    error: BaseException | None = None
    is_timeout: bool = False


@dataclass(frozen=True, slots=True)
class WarmUpSkipped:
    """The result of a read was not sent to Redis, although the read was a miss.

    Attributes:
        result: `fenced`: a burst of writes is under way in PostgreSQL. `error`: Redis is left alone.
    """

    result: WarmUpResult


@dataclass(frozen=True, slots=True)
class WarmUpEnded:
    """Redis was sent the result of a read that was a miss.

    Attributes:
        result: What became of it.
        seconds: How long that took.
    """

    result: WarmUpResult
    seconds: float


@dataclass(frozen=True, slots=True)
class L1Availability:
    """Redis has begun to answer, or has stopped."""

    available: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Redis refuses the key of one scope, so PostgreSQL alone serves that scope. All others are cached.

    Attributes:
        reason: What Redis refuses, in the words of `redis.faults`.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class BackgroundTaskFailed:
    """A background task met an unexpected error. The task goes on."""

    task: TaskName
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class L2Retried:
    """A call that failed in PostgreSQL is tried again.

    Attributes:
        operation: The call: `get_tuple`, `put`, ….
        reason: The kind of failure; `l2.faults` maps errors to it.
    """

    operation: str
    reason: RetryReason


@dataclass(frozen=True, slots=True)
class TierChanged:
    """The fallback chain has changed its tier.

    Attributes:
        reason: `postgres_unavailable` or `redis_unavailable` on the way down, `recovered` on the way up.
    """

    from_tier: str
    to_tier: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Checkpoints of a lower tier were copied to a higher tier, which did not have them before."""

    from_tier: str
    checkpoints: int


@dataclass(frozen=True, slots=True)
class ThreadDrained:
    """A thread of a lower tier was moved to a higher tier, or can never be moved, or Redis has lost its end.

    Attributes:
        result: `continued`: it continues what the higher tier had of the thread. `new`: the higher tier had
            nothing of it. `set_aside`: it does not continue what the higher tier had, and became a thread of
            its own. `refused`: it cannot be moved. `lost`: a failover or a restart of Redis has lost what was
            acknowledged last; what is left of it is moved later.
    """

    result: DrainResult


@dataclass(frozen=True, slots=True)
class InterruptStored:
    """A task's question to the user of the graph was stored, or an answer that the task has received.

    Attributes:
        scope: The scope of the task.
        task_id: The task. A question of a subgraph is stored for each task around it, too.
        kind: `raised`: a question. `resumed`: an answer.
        is_new: Whether it is stored for the first time, as far as this process knows.
    """

    scope: Scope
    task_id: str
    kind: InterruptKind
    is_new: bool


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A turn of `conversation_turn` is over.

    Attributes:
        agent_name: The agent that the application has named, if any.
        outcome: `interrupted`: the graph waits for an answer of its user.
        seconds: How long the turn took.
        trace_id: The trace of the turn, as 32 hexadecimal digits, if the turn is sampled.
    """

    agent_name: str | None
    outcome: TurnOutcome
    seconds: float
    trace_id: str | None


Event = (
    Audited
    | BurstEnded
    | BackgroundTaskFailed
    | EpochChanged
    | ForeignWrites
    | Forked
    | IdentityChanged
    | InterruptStored
    | Invalidated
    | PoolWaited
    | L1Availability
    | Quarantined
    | RetentionPruned
    | RetentionRan
    | ServerMoved
    | BreakerChanged
    | L2Retried
    | TierChanged
    | WarmUpEnded
    | WarmUpSkipped
    | Drained
    | ThreadDrained
    | TurnEnded
)


class TableSize(NamedTuple):
    """The size of a table on disk, in bytes with its indexes, and its approximate number of rows."""

    bytes: int
    rows: int


@dataclass(slots=True, weakref_slot=True, eq=False)
class SaverStatus:
    """The current status of an open saver. Collectors and `/readyz` read it whenever they want.

    Attributes:
        pool: The `psycopg_pool.AsyncConnectionPool`; `None` with a single connection.
        waiting: Returns the number of callers that wait for a connection to PostgreSQL now. `None` if there
            is no PostgreSQL. (The pool's own figure also counts callers that have left.)
        redis: The `redis.asyncio.Redis` or `RedisCluster` client, or an object whose `clients` are the
            clients of the masters of a cluster.
        addresses: Server -> host (or socket path) and port, as far as they are known. Change one with `move`.
        databases: Server -> the name or the number of the database there, as far as they are known.
        tier: The tier that the saver is: `cached`, `redis`, `memory`.
        versions: The known versions of the servers: `postgres`, `redis`.
        active: Whether the saver serves calls; in a fallback chain, one of the savers does.
        since: When `active` got its value, in seconds since 1970.
        check: Checks the servers now. Returns one word for each (`ok`, `unavailable`), and further facts.
            Await it on `loop`.
        loop: The event loop that the saver works on.
        undrained: The lower tiers of its chain that may hold threads that are not here yet.
        undrained_threads, undrained_checkpoints: Lower tier -> the number of threads, and of their
            checkpoints, found there at the last look.
        breaker: The state of the breaker in front of L1; `None` if there is no breaker. In a cluster, it is
            `closed` if all masters are asked.
        shards: Returns the state of the breaker of each master of a cluster, by host and port. `None`: L1 is
            not in a cluster.
        journal_pending: The number of unswept rows in the journal at the last look, without those of scopes
            in quarantine.
        quarantined: Returns the number of scopes in quarantine. `None` if there is no L1.
        identity: The identity of L2 that is part of the keys of L1; `None` while L1 is not used.
        no_identity_because: Why the identity is not used, in words; empty if no reason was found.
        withheld: The parts of the identity that PostgreSQL does not show to this role.
        synchronous_commit: PostgreSQL's setting on the saver's connections; `None` if it is not known.
        has_unbounded_statements: Whether PostgreSQL (`statement_timeout`) lets a statement run for longer
            than readers heed its writer's intent; `None` if that is not known.
        reopen: Opens the saver again in a child after a fork, where it cannot be used as it is, and waits
            until it is open. `None` if it cannot be opened again.
        retention_succeeded_at: When the retention last succeeded, in any process, in seconds since 1970; 0 if
            never, `None` if this saver has no retention.
        storage: Returns the known sizes of the tables, and starts measuring them again if they are old. May
            be called in any thread, and never waits. `None` if there is no PostgreSQL.
        moved: Called after an address has changed.
    """

    pool: Any
    redis: Any
    addresses: dict[Server, tuple[str | None, int | None]] = field(default_factory=dict)
    databases: dict[Server, str] = field(default_factory=dict)
    tier: str = "cached"
    versions: dict[str, str] = field(default_factory=dict)
    active: bool = True
    since: float = field(default_factory=time)
    check: Callable[[], Coroutine[Any, Any, dict[str, Any]]] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    undrained: tuple[str, ...] = ()
    undrained_threads: Mapping[str, int] = field(default_factory=dict)
    undrained_checkpoints: Mapping[str, int] = field(default_factory=dict)
    breaker: BreakerState | None = None
    shards: Callable[[], Mapping[str, BreakerState]] | None = None
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
    waiting: Callable[[], int] | None = None
    moved: list[Callable[[SaverStatus], object]] = field(default_factory=list)
    _announcement: Callable[[], object] | None = field(default=None, init=False)

    def move(self, server: Server, host: str | None, port: int | None) -> None:
        """Record that the connections to a server lead to another address now."""
        self.addresses[server] = (host, port)
        for hear in self.moved:
            hear(self)

    def set_active(self, active: bool) -> None:
        """Record that the saver serves calls from now on, or no longer."""
        self.active, self.since = active, time()
        self._make_announcement()

    def announce(self, log: Callable[[], object]) -> None:
        """Log that the saver is open, as soon as it serves calls: now or later.

        A fallback chain also opens savers that never serve calls, to look for the threads that they hold.

        Args:
            log: Writes the line to the log.
        """
        self._announcement = log
        self._make_announcement()

    def _make_announcement(self) -> None:
        if self.active and self._announcement is not None:
            log, self._announcement = self._announcement, None
            log()


@dataclass(slots=True, eq=False, repr=False)
class _Timed:
    """The common part of operations and steps: start, end and outcome."""

    _listeners: _Listeners
    name: str
    scope: Scope | None
    outcome: Outcome = field(default="ok", init=False)
    error: BaseException | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)
    trace: Any = field(default=None, init=False)
    """The tracer keeps its span here between start and end."""
    _started: float = field(default=0.0, init=False)

    def _end(self, error: BaseException | None) -> None:
        self.seconds = perf_counter() - self._started
        if error is not None:
            self.error = error
            self.outcome = "cancelled" if isinstance(error, asyncio.CancelledError) else "error"


@dataclass(slots=True, eq=False, repr=False)
class Operation(_Timed):
    """One call of the saver, from its start to its end.

    Attributes:
        name: `get_tuple`, `put`, `put_writes`, `list`, `list_threads`, `delta_history`, `delete_thread`,
            `delete_for_runs`, `copy_thread`, `prune`, `prune_older_than`, `import_checkpoints`,
            `seal_thread`, `retire_thread`.
        tier: The tier that serves the call: `cached`, `redis`, `memory`.
        config: The config that LangGraph gave with the call, for what caused it.
        task_id, task_path: The task whose writes are stored, as LangGraph names it.
        checkpoint_id, step, source: Facts of the checkpoint that was read or written, if there is one.
        l1_result: The result of a read in L1.
        served_by: The store that the result came from.
        l1_write: The result of a write in L1.
        l1_seconds, l2_seconds: Time that a write spent on each level; overlapping time counts for both.
        encode_seconds, decode_seconds: Time spent on serialising and on deserialising.
        bytes_read, bytes_written: Size of the serialised state.
        trace_id: The trace of this call, as 32 hexadecimal digits, if the call is recorded.
        traceparent: The traceparent that a put has to store; the tracer sets it.
        stored_traceparent: The traceparent that a read has found in the checkpoint, as it was stored.
    """

    config: RunnableConfig | None = None
    task_id: str | None = None
    task_path: str = ""
    checkpoint_id: str | None = None
    step: int | None = None
    source: str | None = None
    l1_result: L1Result | None = None
    served_by: Served | None = None
    tier: str = "cached"
    l1_write: WriteResult | None = None
    l1_seconds: float | None = None
    l2_seconds: float | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    trace_id: str | None = None
    traceparent: str | None = None
    stored_traceparent: object = None

    @property
    def emit(self) -> Callable[[Event], None]:
        """A function that emits an event to the observers of this call, also after the call has ended."""
        return partial(_emit, self._listeners.emitted)

    def __enter__(self) -> Operation:
        _emit(self._listeners.operation_started, self)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)
        _emit(self._listeners.operation_ended, self)


@dataclass(slots=True, eq=False, repr=False)
class Step(_Timed):
    """One round trip, or one wait, inside an operation.

    Attributes:
        name: `l1.read`, `l1.begin`, …; `l2.select`, `l2.put`, …; `l2.acquire`; `warm_up`; `redis.read`, …;
            `drain`.
        result: The result in one word, if there is one.
        batch_size: How many calls the statement serves.
        facts: Further facts for the span, by the ends of their names. A step of background work is shown only
            if there are any.
        at: The host and the port of the server, if the saver has several; `None`: it has one.
    """

    result: str | None = None
    batch_size: int = 1
    at: tuple[str, int] | None = None
    facts: dict[str, str | int] = field(default_factory=dict)

    def __enter__(self) -> Step:
        _emit(self._listeners.step_started, self)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)
        _emit(self._listeners.step_ended, self)


class Observer:
    """Receives all events. Inherit from it; methods that you do not override cost nothing.

    A method must be quick and must not block. An exception in it is logged, and does not reach the caller.

    Attributes:
        drops: What is missing after such an exception, for `telemetry_dropped_total`.
    """

    drops: Dropped = "events"

    def joined(self, telemetry: Telemetry) -> None:
        """Receive the telemetry that passes its events to this observer from now on."""

    def operation_started(self, operation: Operation) -> None:
        """Receive the start of a call. Only its name and scope are known."""

    def operation_ended(self, operation: Operation) -> None:
        """Receive the end of a call: it succeeded, failed or was cancelled. All its facts are known."""

    def step_started(self, step: Step) -> None:
        """Receive the start of a round trip."""

    def step_ended(self, step: Step) -> None:
        """Receive the end of a round trip."""

    def emitted(self, event: Event) -> None:
        """Receive a single event."""

    def opened(self, status: SaverStatus) -> None:
        """Receive a saver that was opened."""

    def closed(self, status: SaverStatus) -> None:
        """Receive a saver that is closed. Its pools are closed after this."""


class Telemetry:
    """Passes the events of the core to every observer.

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
        known_interrupts: KnownInterrupts | None = None,
    ) -> None:
        """Take the observers.

        Args:
            standby: Whether the savers that report here serve no calls until `set_active` of their status.
            show_thread: Returns a thread id as spans and logs show it; `None` if it must not be shown.
            known_interrupts: The interrupts that were counted before. By default, none.
        """
        self.show_thread = show_thread
        self.saver_name = saver_name
        self.observers = tuple(observers)
        self._listeners = _Listeners.of(self.observers)
        self._standby = standby
        self._interrupts = known_interrupts or KnownInterrupts()
        _emit(tuple(each.joined for each in self.observers), self)

    def attach(self, observers: Sequence[Observer]) -> None:
        """Pass the events of later calls to these observers, too, instead of those attached before.

        A call that is under way keeps its observers. An operation knows them from its start, so changing
        them costs a call nothing.

        Args:
            observers: What is attached from now on. None: only the observers that were there at first.
        """
        self._listeners = _Listeners.of((*self.observers, *observers))

    def for_standby(self) -> Telemetry:
        """Return a copy for savers that serve no calls yet: the tiers of a fallback chain."""
        return Telemetry(
            self.saver_name,
            self.observers,
            standby=True,
            show_thread=self.show_thread,
            known_interrupts=self._interrupts,
        )

    def operation(
        self,
        name: str,
        scope: Scope | None,
        config: RunnableConfig | None = None,
        *,
        checkpoint_id: str | None = None,
        step: int | None = None,
        task_id: str | None = None,
        task_path: str = "",
    ) -> Operation:
        """Wrap one call of the saver: `with telemetry.operation("put", scope) as operation:`.

        Args:
            name, scope: See `Operation`.
            config, checkpoint_id, step, task_id, task_path: What is known before the call; see `Operation`.
        """
        return Operation(
            self._listeners,
            name,
            scope,
            config=config,
            task_id=task_id,
            task_path=task_path,
            checkpoint_id=checkpoint_id,
            step=step,
        )

    def step(
        self, name: str, scope: Scope | None, *, batch_size: int = 1, at: tuple[str, int] | None = None
    ) -> Step:
        """Wrap one round trip, which serves so many calls, to the server `at`."""
        return Step(self._listeners, name, scope, batch_size=batch_size, at=at)

    def emit(self, event: Event) -> None:
        """Emit a single event."""
        _emit(self._listeners.emitted, event)

    def read_writes(self, scope: Scope, pending: Iterable[tuple[str, str, Any]]) -> None:
        """Learn which interrupts another process has stored, from the pending writes of a checkpoint.

        Args:
            scope: The scope of the checkpoint.
            pending: Task ids, channels and values.
        """
        try:
            for task_id, channel, value in pending:
                if found := interrupts_in(scope, task_id, ((channel, value),)):
                    self._interrupts.read(found)
        except Exception as exc:
            failures.report("interrupts_in", exc, "spans")

    def storing_writes(
        self, scope: Scope, task_id: str, writes: Iterable[Sequence[Any]]
    ) -> Sequence[Interrupt]:
        """Return the interrupts in the writes of a task, before they are stored: pass them to `stored`."""
        try:
            found = interrupts_in(scope, task_id, writes)
        except Exception as exc:
            failures.report("interrupts_in", exc, "spans")
            return ()
        if found:
            self._interrupts.storing(found)
        return found

    def stored(self, scope: Scope, task_id: str, interrupts: Sequence[Interrupt]) -> None:
        """Emit the interrupts of a task that were stored; answers first, because questions follow them."""
        for each in sorted(interrupts, key=lambda found: found.kind, reverse=True):
            self.emit(InterruptStored(scope, task_id, each.kind, self._interrupts.stored(each)))

    def opened(self, status: SaverStatus) -> None:
        """Emit that a saver was opened, and can be watched."""
        status.active = not self._standby
        _emit(self._listeners.opened, status)

    def closed(self, status: SaverStatus) -> None:
        """Emit that a saver is about to close."""
        _emit(self._listeners.closed, status)


_Receivers = tuple[Callable[[Any], None], ...]


class _Listeners(NamedTuple):
    """The methods of all observers, looked up once; the observer that starts first ends last."""

    operation_started: _Receivers
    operation_ended: _Receivers
    step_started: _Receivers
    step_ended: _Receivers
    emitted: _Receivers
    opened: _Receivers
    closed: _Receivers

    @classmethod
    def of(cls, observers: Sequence[Observer]) -> _Listeners:
        def receivers(what: str) -> _Receivers:
            default = getattr(Observer, what)
            found = tuple(
                getattr(each, what) for each in observers if getattr(type(each), what) is not default
            )
            return found[::-1] if what.endswith("_ended") else found

        return cls(*map(receivers, cls._fields))


def _emit(receivers: _Receivers, what: object) -> None:
    for receiver in receivers:
        try:
            receiver(what)
        except Exception as exc:
            drops: Dropped = getattr(getattr(receiver, "__self__", None), "drops", "events")
            failures.report(getattr(receiver, "__qualname__", "an observer"), exc, drops)


class Failures:
    """Counts the failures of observers, and logs them: at most one line a minute, since each call may fail.

    Only the error's class is logged: its text may quote messages.

    Attributes:
        count: The number of failures.
        dropped: What was lost by failures, and how often. Spans that could not be sent are counted one by
            one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.dropped = Counter[Dropped]()
        self._lock = Lock()
        self._lines = Throttle()

    def drop(self, what: Dropped, number: int) -> None:
        """Count what was lost, without a log line."""
        with self._lock:
            self.dropped[what] += number

    def report(self, where: str, error: Exception, what: Dropped) -> None:
        """Count a failure, and log it if none was logged in the last minute."""
        with self._lock:
            self.count += 1
            self.dropped[what] += 1
            since = self._lines.due()
        if since:
            _log.warning(
                "Telemetry failed in %s (%s): the call goes on, but metrics or spans of it are missing. (%d "
                "such failures since the last such line; at most one in %d s.)",
                where,
                type(error).__qualname__,
                since,
                self._lines.seconds,
            )


failures = Failures()
"""The failures of the whole process."""
