"""Reads and writes the truth: the hot path in one statement each, concurrently; the rest by upstream's code.

Open this file when a read or a write in PostgreSQL has a wrong result, and to see which statement it sends.

`AsyncPostgresSaver` holds one lock during every operation of an instance, so it never uses more than one
connection of a pool. Here each call checks out a connection of its own, and the calls of a crowd share one
(see `batching`). Upstream's code runs in a new instance of its own on that connection.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import tuple_row

from glasspoint.errors import (
    ConfigurationError,
    DeltaChainError,
    ThreadInUseError,
)
from glasspoint.l2 import contents, journal, schema
from glasspoint.l2.batching import Batcher, Call
from glasspoint.l2.connections import Connections
from glasspoint.l2.identity import Identities
from glasspoint.l2.pool import bounds_statements
from glasspoint.l2.sql import query
from glasspoint.l2.writing import (
    FenceParams,
    FenceResult,
    PutResult,
    WritesResult,
    columns,
    put_answers,
    put_statement,
    writes_answers,
    writes_statement,
)
from glasspoint.model import traceparent
from glasspoint.model.codec import Encoded, EncodedPut, EncodedWrite, PendingWrites, StoredCheckpoint
from glasspoint.model.lineage import SetAside, relation_of
from glasspoint.model.scope import Scope
from glasspoint.model.threads import summary_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import timedelta

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.l2.contents import Holding, Namespace, Outline
    from glasspoint.l2.fences import Fences
    from glasspoint.l2.types import Connection
    from glasspoint.l2.writing import Ready
    from glasspoint.model.generics import ItemT, ResultT
    from glasspoint.model.lineage import Branch
    from glasspoint.model.threads import ThreadChoice, ThreadSummary
    from glasspoint.telemetry.events import Telemetry

    _Select = Call[bool, StoredCheckpoint | None]
    _Put = Call[EncodedPut, PutResult]
    _PutWrites = Call[PendingWrites, WritesResult]

__all__ = ["PutResult", "Store", "WritesResult"]


# The errors where the fences cannot be used: on a standby, which cannot read unlogged tables; after the
# tables were removed; after a right was taken away.
_WITHOUT_FENCES = (
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InsufficientPrivilege,
)

_NO_FENCES = FenceResult(identity="")
"""For a write of a burst without fences. This is another PostgreSQL than before, or it can have no cache."""


class Store:
    """Upstream's tables in one PostgreSQL database."""

    def __init__(
        self,
        upstream: AsyncPostgresSaver,
        telemetry: Telemetry,
        *,
        cache: str = "glasspoint",
        foreign_writes: schema.ForeignWrites = "watch",
        refuses_forks: bool = False,
    ) -> None:
        """Take upstream's saver, whose connections and tables are used.

        Args:
            upstream: The saver whose connection or pool is used. With a single connection, calls queue on its
                lock.
            telemetry: Receives events for every statement and every wait.
            cache: The name of L1 in the journal: see `Journal`.
            foreign_writes: See `schema.set_up`.
            refuses_forks: Whether a put that would fork its thread is not stored: see `PutResult.forked_by`.

        Raises:
            ConfigurationError: With this saver, a call would return before its write is durable.
        """
        if upstream.pipe is not None:
            raise ConfigurationError(
                "The AsyncPostgresSaver is in pipeline mode, where a write returns before it is durable: "
                "give it a pool, or a connection without pipeline=True."
            )
        if isinstance(upstream.conn, psycopg.AsyncConnection) and not upstream.conn.autocommit:
            raise ConfigurationError(
                "The AsyncPostgresSaver works on a connection without autocommit, where a write returns "
                "before it is durable: connect with autocommit=True, or give it a pool."
            )
        self._telemetry = telemetry
        self._foreign_writes: schema.ForeignWrites = foreign_writes
        self._refuses_forks = refuses_forks
        self.connections = Connections(upstream, telemetry)
        """The connections that the whole package uses."""
        self.fences: Fences | None = None
        """The fences of the saver's bursts. `None`: the saver has no bursts."""
        self.journal = journal.Journal(self.connections, cache=cache)
        self.identities = Identities(self.connections, cache=cache)
        self._selects: Batcher[bool, StoredCheckpoint | None] = self._batcher("l2.select", self._select_all)
        self._puts: Batcher[EncodedPut, PutResult] = self._batcher("l2.put", self._put_all)
        self._writes, self._upserts = (
            self._batcher("l2.put_writes", functools.partial(self._put_all_writes, upsert=upsert))
            for upsert in (False, True)
        )

    async def setup(self) -> int:
        """Make the tables and triggers, or bring them up to date: see `schema.set_up`.

        Returns:
            The server's version, as libpq numbers it (180004).

        Raises:
            SchemaError: This role may not make them.
            L2DeadlineError: Other transactions were in the way for too long.
        """
        async with self.connections.connection(None) as conn:
            await schema.set_up(
                conn,
                foreign_writes=self._foreign_writes,
                lifts_timeout=bounds_statements(self.connections.pool),
            )
            return conn.info.server_version

    async def ping(self) -> bool:
        """Check that PostgreSQL responds.

        Returns:
            Whether PostgreSQL takes writes.
        """
        async with self.connections.connection(None) as conn:
            row = await _fetch_one(conn, query("takes_writes"), {})
            return row == (True,)

    async def select(
        self, scope: Scope, checkpoint_id: str | None, *, warms_up: bool = False
    ) -> StoredCheckpoint | None:
        """Read the newest checkpoint of a scope, or one by its id, with its pending writes.

        Args:
            warms_up: Whether L1 is to be warmed up with the checkpoint. Then the fences are looked for.
        """
        if checkpoint_id is None:
            return await self._selects.run(Call(scope, warms_up, None, 0, None))
        params = {**scope._asdict(), "checkpoint_id": checkpoint_id}
        async with self.connections.connection(scope) as conn:
            with self._telemetry.step("l2.select", scope):
                row = await _fetch_one(conn, query("select_by_id"), params)
        return None if row is None else _stored_checkpoint(scope, row)

    async def _select_all(self, conn: Connection, calls: Sequence[_Select]) -> list[StoredCheckpoint | None]:
        scopes = [call.scope for call in calls]
        if len(scopes) == 1:
            params: dict[str, Any] = scopes[0]._asdict()
            plain, fenced = query("select_newest"), query("select_newest_fenced")
        else:
            params = columns(("thread_ids", "namespaces"), scopes)
            plain, fenced = query("select_newest_together"), query("select_newest_together_fenced")
        rows = None
        if any(call.item for call in calls):
            rows = await _fetch_fenced(conn, fenced, params)
        if rows is None:
            rows = await _fetch_all(conn, plain, params)
        if len(scopes) == 1:
            rows = rows or [(None,)]
        return [
            None if row[0] is None else _stored_checkpoint(scope, row)
            for scope, row in zip(scopes, rows, strict=True)
        ]

    async def put(self, scope: Scope, put: EncodedPut, ready: Ready) -> PutResult:
        """Store a checkpoint, together with those of concurrent callers.

        Args:
            ready: See `Ready`.
        """
        return await self._puts.run(Call(scope, put, scope, put.size, ready))

    async def put_writes(
        self,
        scope: Scope,
        checkpoint_id: str,
        writes: list[EncodedWrite],
        ready: Ready,
        *,
        upsert: bool,
    ) -> WritesResult:
        """Store a task's pending writes, together with those of concurrent callers.

        Args:
            writes: Writes of one task. No `idx` occurs twice.
            upsert: Whether they replace what is there. Otherwise it stays.
            ready: See `Ready`.
        """
        batcher: Batcher[PendingWrites, WritesResult] = self._upserts if upsert else self._writes
        task = PendingWrites(scope, checkpoint_id, writes)
        size = sum(len(w.value.data) for w in writes)
        company = (scope, checkpoint_id)
        return await batcher.run(Call(scope, task, writes[0].task_id, size, ready, company))

    async def _put_all(self, conn: Connection, calls: Sequence[_Put]) -> Sequence[PutResult]:
        puts = [(call.scope, call.item) for call in calls]
        fences, recorded = self._fence_params(calls), self._recorded(calls)
        options = {"refuses_forks": self._refuses_forks, "is_journalled": bool(recorded)}
        if fences is not None:
            statement, params = put_statement(puts, fences, **options)
            rows = await _fetch_fenced(conn, statement, params | recorded)
            if rows is not None:
                return put_answers(puts, rows)
        statement, params = put_statement(puts, None, **options)
        rows = await _fetch_all(conn, statement, params | recorded)
        results = put_answers(puts, rows)
        return results if fences is None else [each._replace(fence=_NO_FENCES) for each in results]

    async def _put_all_writes(
        self, conn: Connection, calls: Sequence[_PutWrites], *, upsert: bool
    ) -> Sequence[WritesResult]:
        tasks = [call.item for call in calls]
        fences, recorded = self._fence_params(calls), self._recorded(calls)
        options = {"upsert": upsert, "is_journalled": bool(recorded)}
        if fences is not None:
            statement, params = writes_statement(tasks, fences=fences, **options)
            rows = await _fetch_fenced(conn, statement, params | recorded)
            if rows is not None:
                return writes_answers(tasks, rows)
        statement, params = writes_statement(tasks, fences=None, **options)
        rows = await _fetch_all(conn, statement, params | recorded)
        results = writes_answers(tasks, rows)
        return results if fences is None else [each._replace(fence=_NO_FENCES) for each in results]

    def _fence_params(self, calls: Sequence[Call[Any, Any]]) -> FenceParams | None:
        """Return the parameters for the fences of some writes. `None`: none of them belongs to a burst."""
        if self.fences is None or not any(call.announced.burst for call in calls):
            return None
        return self.fences.params([call.announced for call in calls])

    async def import_items(
        self,
        scope: Scope,
        items: Sequence[StoredCheckpoint | PendingWrites],
        ready: Ready,
        *,
        branch: Branch | None = None,
    ) -> int:
        """Store what another tier held of a scope: all of it or nothing. A second call changes nothing.

        Args:
            items: The checkpoints and pending writes.
            ready: See `Ready`.
            branch: The branch that the items begin. It must not be apart from what is stored here. A lock
                keeps others from importing the beginning of another branch at the same time.

        Returns:
            How many checkpoints were not there before.

        Raises:
            ThreadInUseError: The branch is apart from what is stored here. Nothing was stored.
        """
        cursors = []
        async with self.connections.connection(scope) as conn:
            announced = await ready(conn)
            untold = [scope] if announced.is_journalled else []
            with self._telemetry.step("l2.import", scope):
                async with conn.transaction(), conn.pipeline():
                    if self.fences is not None and announced.burst:
                        of_burst = scope._asdict() | self.fences.params([announced]).alone()
                        await conn.execute(cast("Any", query("set_fence")), of_burst)
                    if branch is not None:
                        await self._check_that_fits(conn, scope, branch)
                    await self.journal.record(conn, untold, [scope])
                    for item in items:
                        sql, params = _import_statement(item)
                        cursors.append(await _execute(conn, sql, params))
                return sum([new for cursor in cursors for (new,) in await cursor.fetchall()])

    async def _check_that_fits(self, conn: Connection, scope: Scope, branch: Branch) -> None:
        params = {**scope._asdict(), "checkpoint_ns": branch.namespace, "tip": branch.tip}
        await conn.execute(query("lock_to_import"), params)
        rows = await _fetch_all(conn, query("newest_and_whether"), params)
        newest, has_tip = rows[0] if rows else (None, False)
        if relation_of(branch, newest, has_tip=has_tip) == "apart":
            raise ThreadInUseError("Something else was stored in this thread meanwhile.")

    async def newest_and_whether(self, scope: Scope, *, tip: str) -> tuple[str | None, bool]:
        """Return the newest checkpoint of a scope, and whether the scope has the tip of a branch.

        The checkpoint is `None` if the scope has none. The scope has the tip if one of its checkpoints is the
        tip, or has it as its parent.
        """
        params = {**scope._asdict(), "tip": tip}
        async with self.connections.connection(scope) as conn:
            with self._telemetry.step("l2.relate", scope):
                rows = await _fetch_all(conn, query("newest_and_whether"), params)
        return rows[0] if rows else (None, False)

    async def newest_of(self, scope: Scope, ids: Collection[str]) -> str | None:
        """Return the newest of these checkpoints that a scope has. `None`: it has none of them."""
        async with self.connections.connection(scope) as conn:
            with self._telemetry.step("l2.relate", scope):
                params = {**scope._asdict(), "ids": list(ids)}
                rows = await _fetch_all(conn, query("newest_of"), params)
        return rows[0][0] if rows else None

    async def namespaces_of(self, thread_id: str) -> list[Namespace]:
        """Return the namespaces of a thread that have checkpoints."""
        async with self.connections.connection(Scope(thread_id, "")) as conn:
            return await contents.namespaces_of(conn, thread_id)

    async def outlines_of(self, scope: Scope, *, limit: int) -> list[Outline]:
        """Return the newest checkpoints of a scope without their values, newest first."""
        async with self.connections.connection(scope) as conn:
            return await contents.outlines_of(conn, scope, limit=limit)

    async def parents_of(self, scope: Scope) -> dict[str, str | None]:
        """Return the parent of each checkpoint of a scope."""
        async with self.connections.connection(scope) as conn:
            return await contents.parents_of(conn, scope)

    async def holding_of(self, thread_id: str) -> Holding:
        """Return the names of what is stored of a thread."""
        async with self.connections.connection(Scope(thread_id, "")) as conn, conn.transaction():
            await conn.execute("SET LOCAL statement_timeout = 0")  # the timeout is for the hot path
            return await contents.holding_of(conn, thread_id)

    async def note_set_aside(self, set_aside: SetAside) -> None:
        """Record that a thread was made from what was written to another thread in an outage."""
        async with self.connections.connection(Scope(set_aside.original, "")) as conn:
            await conn.execute(query("note_set_aside"), set_aside._asdict())

    async def set_aside_from(self, thread_id: str) -> list[SetAside]:
        """Return the threads that were made from what was written to a thread in outages, newest first."""
        async with self.connections.connection(Scope(thread_id, "")) as conn:
            rows = await _fetch_all(conn, query("set_aside_from"), {"original": thread_id})
        return [SetAside(*row) for row in rows]

    async def set_aside_since(self, age: timedelta) -> list[SetAside]:
        """Return the threads that were set aside, no longer ago than this."""
        async with self.connections.connection(None) as conn:
            return [SetAside(*row) for row in await _fetch_all(conn, query("set_aside_since"), {"age": age})]

    async def delete_thread(
        self, thread_id: str, before_commit: Callable[[list[str]], Awaitable[Collection[Scope]]]
    ) -> None:
        """Delete a thread.

        Args:
            before_commit: Awaited with the namespaces that the thread had: exactly these are the scopes that
                L1 must block and forget. They are deleted by then, but no other transaction can see that yet.
                Returns the scopes that L1 could not be told of.
        """
        root = Scope(thread_id, "")
        async with self.connections.connection(root) as conn:
            with self._telemetry.step("l2.delete_thread", root):
                async with conn.transaction():
                    await conn.execute("SET LOCAL statement_timeout = 0")
                    rows = await _fetch_all(conn, query("delete_thread"), {"thread_id": thread_id})
                    changed = [Scope(thread_id, namespace) for (namespace,) in rows]
                    untold = await before_commit([scope.checkpoint_ns for scope in changed])
                    await self.journal.record(conn, untold, changed)

    async def get_tuple(
        self, scope: Scope, serde: SerializerProtocol, config: RunnableConfig
    ) -> CheckpointTuple | None:
        """Read a checkpoint by upstream's own code: for the old formats, which take more than one query."""
        async with self.connections.connection(scope) as conn:
            with self._telemetry.step("l2.get_tuple", scope):
                found = await AsyncPostgresSaver(conn, serde=serde).aget_tuple(config)
        return None if found is None else _as_callers_see(found)

    async def list(
        self, scope: Scope | None, serde: SerializerProtocol, config: RunnableConfig | None, **options: Any
    ) -> list[CheckpointTuple]:
        """List checkpoints by upstream's own code, reading all of them before the connection goes back.

        A consumer may call the saver while it iterates. Then it must not wait for a connection that it holds
        itself.
        """
        async with self.connections.connection(scope) as conn:
            with self._telemetry.step("l2.list", scope):
                async with conn.transaction():
                    await conn.execute("SET LOCAL statement_timeout = 0")  # the timeout is for the hot path
                    upstream = AsyncPostgresSaver(conn, serde=serde)
                    return [_as_callers_see(each) async for each in upstream.alist(config, **options)]

    async def list_threads(self, choice: ThreadChoice) -> Sequence[ThreadSummary]:
        """List threads, sorted by their newest checkpoint, newest first."""
        statement = query("list_matching_threads") if choice.filter else query("list_threads")
        params = {"filter": json.dumps(choice.filter), "limit": choice.limit, "before": choice.before}
        async with self.connections.connection(None) as conn:
            with self._telemetry.step("l2.list_threads", None):
                async with conn.transaction():
                    await conn.execute("SET LOCAL statement_timeout = 0")  # the timeout is for the hot path
                    rows = await _fetch_all(conn, statement, params)
        return [summary_of(thread_id, newest, json.loads(metadata)) for thread_id, newest, metadata in rows]

    async def delta_history(
        self, scope: Scope, serde: SerializerProtocol, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Walk a checkpoint's ancestors by upstream's own code."""
        async with self.connections.connection(scope) as conn:
            with self._telemetry.step("l2.delta_history", scope):
                upstream = _Walker(conn, serde=serde)
                return await upstream.aget_delta_channel_history(config=config, channels=channels)

    def _recorded(self, calls: Sequence[Call[Any, Any]]) -> dict[str, Any]:
        """Return the parameters that record the scopes that a cache was not told of; empty: none are."""
        untold = [call.scope for call in calls if call.announced.is_journalled]
        return self.journal.params(untold, [call.scope for call in calls])

    def _batcher(
        self,
        step_name: str,
        execute: Callable[[Connection, Sequence[Call[ItemT, ResultT]]], Awaitable[Sequence[ResultT]]],
    ) -> Batcher[ItemT, ResultT]:
        return Batcher(
            step_name,
            execute,
            connection=self.connections.checked_out,
            waited_in_vain=self.connections.waited_in_vain,
            start=self.connections.start,
            telemetry=self._telemetry,
        )


class _Walker(AsyncPostgresSaver):
    """Upstream's walk to a checkpoint's ancestors. A checkpoint that is its own ancestor is an error here.

    Upstream's walk would never end, and would block the event loop.
    """

    @staticmethod
    def _try_advance_walks(
        target_id: str, channels: Sequence[str], parent_of: Mapping[str, str | None], *rest: Any
    ) -> None:
        passed: dict[str, None] = {}
        at = parent_of.get(target_id)
        while at is not None and at in parent_of and at not in passed:
            passed[at] = None
            at = parent_of[at]
        if at is not None and at in passed:
            _, has_blobs, inlines, *_, seeded = rest
            for has_blob, inline, channel in zip(has_blobs, inlines, channels, strict=True):
                has_value = (has_blob.get(each) or inline.get(each) is not None for each in passed)
                if channel not in seeded and not any(has_value):
                    raise DeltaChainError.of_circle(at)
        AsyncPostgresSaver._try_advance_walks(target_id, channels, parent_of, *rest)


async def _fetch_one(conn: Connection, sql: str, params: Mapping[str, Any]) -> tuple[Any, ...] | None:
    return await (await _execute(conn, sql, params)).fetchone()


async def _fetch_all(conn: Connection, sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return await (await _execute(conn, sql, params)).fetchall()


async def _fetch_fenced(
    conn: Connection, sql: str, params: Mapping[str, Any]
) -> list[tuple[Any, ...]] | None:
    """Do as `_fetch_all` does, for a statement that uses the fences.

    Returns `None` if there are no fences here (any more). Then nothing was done.
    """
    try:
        return await _fetch_all(conn, sql, params)
    except _WITHOUT_FENCES:
        if not conn.autocommit:  # the transaction has failed, and is not ours to end
            raise
        return None


async def _execute(
    conn: Connection, sql: str, params: Mapping[str, Any]
) -> psycopg.AsyncCursor[tuple[Any, ...]]:
    # The cursor need not be closed: it has all rows.
    return await conn.cursor(binary=True, row_factory=tuple_row).execute(cast("Any", sql), params)


def _as_callers_see(found: CheckpointTuple) -> CheckpointTuple:
    return found._replace(metadata=cast("Any", traceparent.without(cast("Any", found.metadata))))


def _import_statement(item: StoredCheckpoint | PendingWrites) -> tuple[str, dict[str, Any]]:
    names = ("task_ids", "task_paths", "idxs", "write_channels", "write_types", "write_blobs")
    writes = [(w.task_id, w.task_path, w.idx, w.channel, *w.value) for w in item.writes]
    params: dict[str, Any] = {
        **item.scope._asdict(),
        "checkpoint_id": item.checkpoint_id,
        **columns(names, writes),
    }
    if isinstance(item, PendingWrites):
        return query("import_writes"), params
    values = [(channel, version, *value) for channel, (version, value) in sorted(item.values.items())]
    return query("import_checkpoint"), params | {
        "parent_id": item.parent_id,
        "checkpoint": item.document_json,
        "metadata": item.metadata_json,
        **columns(("channels", "versions", "types", "blobs"), values),
    }


def _stored_checkpoint(scope: Scope, row: tuple[Any, ...]) -> StoredCheckpoint:
    checkpoint_id, parent_id, document_json, metadata_json = row[:4]
    blobs = zip(*row[4:8], strict=True) if row[4] else ()
    writes = zip(*row[8:14], strict=True) if row[8] else ()
    return StoredCheckpoint(
        scope=scope,
        checkpoint_id=checkpoint_id,
        parent_id=parent_id,
        document=json.loads(document_json),
        metadata=json.loads(metadata_json),
        # An "empty" blob has no bytes, and means that there is no value.
        values={
            channel: (version, Encoded(type_, blob))
            for channel, version, type_, blob in blobs
            if type_ != "empty"
        },
        writes=[
            EncodedWrite(task_id, idx, channel, Encoded(type_, blob), path)
            for task_id, idx, channel, type_, blob, path in writes
        ],
        document_json=document_json,
        metadata_json=metadata_json,
        document_bytes=len(document_json) + len(metadata_json),
        is_fenced=row[14],
    )
