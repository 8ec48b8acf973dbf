"""Removes and copies rows: one transaction for each call. L1 is told before the commit.

Open this file when pruning removes too much or too little, or fails.

The isolation level is READ COMMITTED, on purpose. One statement decides, on one snapshot, what is removed.
Later statements name these checkpoints by primary key, and change no others. Three things may happen
meanwhile:

- A checkpoint is put. It needs what the newest one before it needs, and all of that is kept.
- A put refers to an old value. A value is only removed if no checkpoint refers to it when the statement for
  the blobs looks. This statement sees puts that REPEATABLE READ would not see.
- Another call removes the same row. One of the two waits for the other, and neither fails.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import psycopg
from psycopg.rows import tuple_row

from glasspoint.errors import DeltaChainError, ThreadExistsError, ThreadInUseError
from glasspoint.l2.sql import query
from glasspoint.l2.writing import columns
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence

    from glasspoint.l2.connections import Connections
    from glasspoint.l2.journal import Journal
    from glasspoint.l2.types import Connection


__all__ = ["Barrier", "Cutoff", "Plan", "Pruner", "Removed", "Rest"]

_LOCK_TIMEOUT_SECONDS = 5.0
_STATEMENT_TIMEOUT_SECONDS = 600.0
_NAMED_IN_ERRORS = 5


class Barrier(Protocol):
    """Keeps L1's readers away from scopes that are about to change in L2."""

    async def block(self, scopes: Collection[Scope], *, alone: Collection[str] = ()) -> None:
        """Send readers of these scopes to L2. Returns when that is certain.

        Args:
            scopes: The scopes.
            alone: Threads to which no other call may be writing.

        Raises:
            ThreadInUseError: Something is being written to one of the threads `alone`.
        """

    def untold(self) -> Collection[Scope]:
        """Return the scopes that L1 could not be told of: they are journalled together with the change."""

    def changed(self) -> Collection[Scope]:
        """Return all of the scopes."""

    def committing(self) -> None:
        """Record that L2 may change from now on, even if something fails."""


class Row(NamedTuple):
    """The primary key of a checkpoint."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str


class Value(NamedTuple):
    """The primary key of a blob."""

    thread_id: str
    checkpoint_ns: str
    channel: str
    version: str


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Defines what is old.

    Attributes:
        uuid: Checkpoints whose id is a version 6 UUID below this one are old.
        timestamp: Checkpoints with another kind of id are old if they were made before this time.
        orphans: As `uuid`, for pending writes whose checkpoint is missing.
    """

    uuid: str
    timestamp: str
    orphans: str

    def params(self) -> dict[str, str]:
        """Return the parameters for the statements."""
        return {
            "cutoff_id": self.uuid,
            "cutoff_ts": self.timestamp,
            "orphans_cutoff_id": self.orphans,
        }


@dataclass(slots=True)
class Plan:
    """The plan of what is removed from some threads.

    Attributes:
        doomed: The checkpoints to remove, oldest first. They are removed from the end, so that each
            checkpoint that is left still has the ancestors that it needs.
        over: Scopes of which nothing stays.
        newest: Scope -> its newest checkpoint.
        severed: A checkpoint that goes -> the checkpoints that stay and have it as their parent.
        whole: Threads of which no checkpoint stays.
        is_partial: Whether another plan removes more of the thread, once this one is done.
    """

    doomed: list[Row] = field(default_factory=list)
    over: set[Scope] = field(default_factory=set)
    newest: dict[Scope, str] = field(default_factory=dict)
    severed: dict[Row, list[Row]] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    is_partial: bool = False

    def batch(self, at_most: int | None) -> Plan:
        """Return a plan for the next transaction: the last `at_most` of the doomed.

        Returns:
            The plan itself, if it has no more checkpoints than that, or if it leaves nothing of a thread:
            that takes one transaction.
        """
        if at_most is None or self.whole or len(self.doomed) <= at_most:
            return self
        taken = self.doomed[-at_most:]
        severed = {row: self.severed[row] for row in taken if row in self.severed}
        return Plan(taken, self.over, self.newest, severed)

    def forget_last(self, count: int) -> None:
        """Drop the last `count` checkpoints from the plan, because they have been removed."""
        for row in self.doomed[-count:]:
            self.severed.pop(row, None)
        del self.doomed[-count:]


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left to do of a single thread after a transaction.

    Attributes:
        plan: The rest of the plan that the transaction worked on. `None`: that plan is done, and the next
            transaction makes another one.
    """

    plan: Plan | None


@dataclass(slots=True)
class Removed:
    """What one transaction removed, or would remove.

    Attributes:
        threads: The threads of which something was removed.
        bytes: The stored size of checkpoints, metadata and values.
        skipped: The threads that another run is pruning.
        rest: What is left to do of a single thread. `None`: nothing.
    """

    threads: set[str] = field(default_factory=set)
    checkpoints: int = 0
    writes: int = 0
    blobs: int = 0
    bytes: int = 0
    skipped: set[str] = field(default_factory=set)
    rest: Rest | None = None


class Pruner:
    """Removes and copies rows, in the database of a `Store`."""

    def __init__(self, connections: Connections, journal: Journal) -> None:
        """Take the connections to use.

        Args:
            connections: All statements go through them.
            journal: Records the scopes that a cache is not told of.
        """
        self._connections = connections
        self._telemetry = connections.telemetry
        self._journal = journal

    async def delete_threads(self, thread_ids: Sequence[str], barrier: Barrier) -> None:
        """Delete whole threads.

        Raises:
            ThreadInUseError: Something is being written to one of them.
        """
        params = {"thread_ids": sorted(set(thread_ids))}
        async with self._transaction("l2.prune", None, barrier) as conn:
            rows = await _fetch(conn, query("delete_threads"), params)
            await barrier.block([Scope(*row) for row in rows], alone=thread_ids)
            await self._check_gone(conn, thread_ids)

    async def keep_latest(self, thread_ids: Sequence[str], barrier: Barrier) -> None:
        """Keep the newest checkpoint of each namespace and what it needs, and delete the rest."""
        params: dict[str, Any] = {"thread_ids": sorted(set(thread_ids))}
        async with self._transaction("l2.prune", None, barrier) as conn:
            plan = _plan_of(await _fetch(conn, query("plan_keep_latest"), params))
            await _fetch(conn, query("delete_checkpoints"), _columns(plan.doomed))
            await _fetch(conn, query("delete_writes"), _columns(plan.doomed))
            if plan.over:
                over = _columns(Row(*scope, "") for scope in plan.over)
                await _execute(conn, query("delete_writes_of_scopes"), over)
            await self._drop_parents(conn, plan)
            garbage = await self._garbage(conn, params["thread_ids"])
            await _fetch(conn, query("delete_blobs"), _value_columns(garbage))
            await barrier.block(_scopes(plan, garbage))

    async def delete_for_runs(self, run_ids: Sequence[str], barrier: Barrier) -> None:
        """Delete the checkpoints of some runs.

        Raises:
            DeltaChainError: A checkpoint that stays needs one of them.
        """
        async with self._transaction("l2.delete_for_runs", None, barrier) as conn:
            params: dict[str, Any] = {"run_ids": list(run_ids)}
            found = await _fetch(conn, query("threads_of_runs"), params)
            params["thread_ids"] = thread_ids = sorted(thread_id for (thread_id,) in found)
            rows = await _fetch(conn, query("plan_runs"), params) if thread_ids else []
            if broken := sorted({thread_id for thread_id, _, _, needed in rows if needed}):
                raise DeltaChainError(
                    f"Not deleted: {_names(broken)} would lose what a DeltaChannel of a later checkpoint is "
                    "rebuilt from. Delete the whole thread, or all its runs after these as well."
                )
            doomed = [Row(*row[:3]) for row in rows]
            await _fetch(conn, query("delete_checkpoints"), _columns(doomed))
            await _fetch(conn, query("delete_writes"), _columns(doomed))
            garbage = await self._garbage(conn, thread_ids)
            await _fetch(conn, query("delete_blobs"), _value_columns(garbage))
            await barrier.block(_scopes(Plan(doomed), garbage))

    async def copy_thread(self, source: str, target: str, barrier: Barrier) -> None:
        """Copy a thread. If the source does not exist, nothing is copied, without an error.

        Raises:
            ThreadExistsError: The target exists already.
            ThreadInUseError: Something is being written to the target.
        """
        async with self._transaction("l2.copy_thread", Scope(target, ""), barrier) as conn:
            await _fetch(conn, query("lock_to_copy"), {"thread_id": target})
            if await _fetch(conn, query("thread_exists"), {"thread_id": target}) == [(True,)]:
                raise _exists(target)
            try:
                rows = await _fetch(conn, query("copy_thread"), {"source": source, "target": target})
            except psycopg.errors.UniqueViolation as exc:  # another process has put into it meanwhile
                raise _exists(target) from exc
            await barrier.block([Scope(target, namespace) for (namespace,) in rows], alone=[target])

    async def find_threads(
        self, cutoff: Cutoff, after: str | None, limit: int, *, keep_latest: bool
    ) -> list[tuple[str, int]]:
        """Return the next threads that may hold something old, with an upper bound of old checkpoints."""
        params = {**cutoff.params(), "after": after, "limit": limit, "keep_latest": keep_latest}
        async with self._connections.connection(None) as conn:
            with self._telemetry.step("l2.prune_find", None):
                async with conn.transaction():
                    await _settings(conn)
                    return cast("list[tuple[str, int]]", await _fetch(conn, query("find_threads"), params))

    async def remove_older(
        self,
        thread_ids: Sequence[str],
        cutoff: Cutoff,
        barrier: Barrier,
        *,
        keep_latest: bool,
        at_most: int,
        plan: Plan | None = None,
    ) -> Removed:
        """Remove what is old of some threads, in one transaction: lock, plan, take a batch, execute it.

        Args:
            thread_ids: The threads. Those that another run has locked are skipped.
            cutoff: Defines what is old.
            barrier: Keeps readers of L1 away from what changes.
            keep_latest: Whether the newest checkpoint of each namespace stays.
            at_most: The most checkpoints to remove from a single thread; `Removed.rest` then says what is
                left to do. Values are only removed with the last batch. So all values are searched once, not
                once for each batch, and a crash before it leaves old checkpoints, by which the next run finds
                this thread again.
            plan: What an earlier call left to do. A new plan is made if the thread has since gone on from a
                checkpoint that this plan removes.

        Raises:
            ThreadInUseError: Something is being written to a thread of which nothing would stay.
        """
        # Several threads together have few checkpoints each, so only a single thread is pruned in batches.
        batch_size = at_most if len(thread_ids) == 1 else None
        async with self._transaction("l2.prune_older_than", None, barrier) as conn:
            locked = [r[0] for r in await _fetch(conn, query("lock_threads"), {"thread_ids": thread_ids})]
            skipped = {*thread_ids} - {*locked}
            if not locked:
                return Removed(skipped=skipped)
            params = {**cutoff.params(), "thread_ids": sorted(locked)}
            if plan is None or await self._gone_on(conn, plan):
                plan = await self._plan_older(conn, params, keep_latest=keep_latest, batch_size=batch_size)
            batch = plan.batch(batch_size)
            removed = await self._execute(conn, batch, params, barrier, is_last=batch is plan)
        removed.skipped = skipped
        if batch is not plan:
            plan.forget_last(len(batch.doomed))
            removed.rest = Rest(plan)
        elif plan.is_partial:
            removed.rest = Rest(None)
        return removed

    async def _plan_older(
        self, conn: Connection, params: Mapping[str, Any], *, keep_latest: bool, batch_size: int | None
    ) -> Plan:
        """Plan what is removed.

        There are two plans for a thread of which nothing stays, but which is too large for one batch. The
        second plan removes the newest checkpoint together with what it needs. So no reader takes an older
        checkpoint for the newest one.
        """
        plan = _plan_of(await _fetch(conn, query("plan_older"), {**params, "keep_latest": keep_latest}))
        if keep_latest or batch_size is None or len(plan.doomed) <= batch_size:
            return plan
        first = _plan_of(await _fetch(conn, query("plan_older"), {**params, "keep_latest": True}))
        first.is_partial = True
        return first if first.doomed else plan

    async def _execute(
        self, conn: Connection, batch: Plan, params: Mapping[str, Any], barrier: Barrier, *, is_last: bool
    ) -> Removed:
        """Remove a batch. With the last batch, also remove what no checkpoint refers to."""
        writes = list(batch.doomed)
        if is_last:
            writes += map(Row._make, await _fetch(conn, query("orphaned_writes"), params))
        [(checkpoints, size)] = await _fetch(conn, query("delete_checkpoints"), _columns(batch.doomed))
        [(written, writes_size)] = await _fetch(conn, query("delete_writes"), _columns(writes))
        await self._drop_parents(conn, batch)
        garbage = await self._garbage(conn, params["thread_ids"]) if is_last else []
        [(blobs, blobs_size)] = await _fetch(conn, query("delete_blobs"), _value_columns(garbage))
        scopes = _scopes(batch, garbage) | {Scope(*row[:2]) for row in writes}
        await barrier.block(scopes, alone=batch.whole)
        await self._check_gone(conn, batch.whole)
        threads = {row.thread_id for row in writes} | {value.thread_id for value in garbage}
        return Removed(threads, checkpoints, written, blobs, size + writes_size + blobs_size)

    async def count_older(self, thread_ids: Sequence[str], cutoff: Cutoff, *, keep_latest: bool) -> Removed:
        """Count what `remove_older` would remove. Takes no locks."""
        async with self._connections.connection(None) as conn:
            with self._telemetry.step("l2.prune_count", None):
                async with conn.transaction():
                    await conn.execute("SET TRANSACTION READ ONLY")
                    await _settings(conn)
                    params = {
                        **cutoff.params(),
                        "thread_ids": sorted(set(thread_ids)),
                        "keep_latest": keep_latest,
                    }
                    plan = _plan_of(await _fetch(conn, query("plan_older"), params))
                    writes = [*plan.doomed]
                    writes += map(Row._make, await _fetch(conn, query("orphaned_writes"), params))
                    garbage = await self._garbage(conn, thread_ids, without=plan.doomed)
                    doomed = _columns(plan.doomed)
                    [(checkpoints, size)] = await _fetch(conn, query("checkpoint_sizes"), doomed)
                    [(written, writes_size)] = await _fetch(conn, query("write_sizes"), _columns(writes))
                    values = _value_columns(garbage)
                    [(blobs, blobs_size)] = await _fetch(conn, query("blob_sizes"), values)
        threads = {row.thread_id for row in writes} | {value.thread_id for value in garbage}
        return Removed(threads, checkpoints, written, blobs, size + writes_size + blobs_size)

    @asynccontextmanager
    async def _transaction(
        self, step: str, scope: Scope | None, barrier: Barrier
    ) -> AsyncIterator[Connection]:
        async with self._connections.connection(scope) as conn:
            with self._telemetry.step(step, scope):
                async with conn.transaction():
                    await _settings(conn)
                    yield conn
                    await self._journal.record(conn, barrier.untold(), barrier.changed())
                    barrier.committing()

    async def _garbage(
        self, conn: Connection, thread_ids: Sequence[str], *, without: Iterable[Row] = ()
    ) -> list[Value]:
        params = {"thread_ids": list(thread_ids), **_columns(without)}
        return sorted(map(Value._make, await _fetch(conn, query("garbage_blobs"), params)))

    async def _drop_parents(self, conn: Connection, plan: Plan) -> None:
        if plan.severed:
            names = ("threads", "namespaces", "ids", "parents")
            pairs = [(child, parent) for parent, children in plan.severed.items() for child in children]
            severed = columns(names, [(*child, parent.checkpoint_id) for child, parent in pairs])
            await _execute(conn, query("drop_parents"), severed)

    async def _check_gone(self, conn: Connection, thread_ids: Sequence[str]) -> None:
        """Raise an error if a put has added something since the deletion.

        Such a put began before the barrier looked for readers and writers, and had ended by then. A put that
        begins later comes after the deletion.
        """
        if not thread_ids:
            return
        there = await _fetch(conn, query("still_there"), {"thread_ids": list(thread_ids)})
        if there:
            raise in_use(t for (t,) in there)

    async def _gone_on(self, conn: Connection, plan: Plan) -> bool:
        """Tell whether the thread has gone on from a doomed checkpoint since the plan was made."""
        newest = _columns(Row(*scope, checkpoint_id) for scope, checkpoint_id in plan.newest.items())
        parents = {Row(*row) for row in await _fetch(conn, query("parents_since"), newest)}
        return bool(parents) and not parents.isdisjoint(plan.doomed)


def in_use(thread_ids: Iterable[str]) -> ThreadInUseError:
    """Return the error for threads to which something is being written."""
    threads = frozenset(thread_ids)
    return ThreadInUseError(
        f"Nothing was done: {_names(sorted(threads))} is being written to. Wait until its run is over, or "
        "cancel it, and repeat.",
        threads,
    )


async def _settings(conn: Connection) -> None:
    await conn.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    timeouts = {
        "statement_timeout_ms": str(int(_STATEMENT_TIMEOUT_SECONDS * 1000)),
        "lock_timeout_ms": str(int(_LOCK_TIMEOUT_SECONDS * 1000)),
    }
    await _fetch(conn, query("set_for_pruning"), timeouts)


# Not prepared, so each statement is planned for the arrays that it gets. A plan for arrays of any size would
# search an array from its front for every row.
async def _fetch(conn: Connection, sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    async with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
        await cursor.execute(cast("Any", sql), params, prepare=False)
        return await cursor.fetchall()


async def _execute(conn: Connection, sql: str, params: Mapping[str, Any]) -> None:
    await conn.execute(cast("Any", sql), params, prepare=False)


def _plan_of(rows: list[tuple[Any, ...]]) -> Plan:
    plan = Plan()
    for kind, thread_id, namespace, checkpoint_id, parent_id in rows:
        row = Row(thread_id, namespace, checkpoint_id)
        if kind == "newest":
            plan.newest[Scope(thread_id, namespace)] = checkpoint_id
        elif kind == "severed":
            plan.severed.setdefault(row._replace(checkpoint_id=parent_id), []).append(row)
        else:
            plan.doomed.append(row)
            if kind == "over":
                plan.over.add(Scope(thread_id, namespace))
    plan.doomed.sort(key=lambda row: (row.checkpoint_id, row))
    doomed = set(plan.doomed)
    stays: dict[str, bool] = defaultdict(bool)
    for scope, checkpoint_id in plan.newest.items():
        stays[scope.thread_id] |= Row(*scope, checkpoint_id) not in doomed
    plan.whole = [thread_id for thread_id, any_stays in stays.items() if not any_stays]
    return plan


def _scopes(plan: Plan, garbage: Iterable[Value]) -> set[Scope]:
    """Return the scopes that change by the plan, not only those whose rows were removed here.

    Another deletion under way may have removed the rows first. This one does not rely on it to tell L1.
    """
    rows = [*plan.doomed, *(row for children in plan.severed.values() for row in children)]
    return {Scope(*row[:2]) for row in rows} | {Scope(*value[:2]) for value in garbage} | plan.over


def _columns(rows: Iterable[Row]) -> dict[str, list[str]]:
    return columns(("threads", "namespaces", "ids"), rows)


def _value_columns(values: Iterable[Value]) -> dict[str, list[str]]:
    return columns(("threads", "namespaces", "channels", "versions"), values)


def _names(thread_ids: Sequence[str]) -> str:
    shown = ", ".join(repr(thread_id) for thread_id in thread_ids[:_NAMED_IN_ERRORS])
    more = len(thread_ids) - _NAMED_IN_ERRORS
    return f"thread {shown}" + (f" (and {more} more)" if more > 0 else "")


def _exists(target: str) -> ThreadExistsError:
    return ThreadExistsError(
        f"The thread {target!r} is there already: nothing was copied. Name a new one, or delete it first."
    )
