"""Reads histories from other savers: a thread at a time, as the items that every tier stores.

| source | how it is read | what is exact |
|---|---|---|
| a PostgreSQL with LangGraph's tables | its rows, a thread in one snapshot | everything, byte for byte |
| `RedisSaver`, `MemorySaver` of Glasspoint | `export_thread` | everything, byte for byte |
| `InMemorySaver` | its dictionaries | everything, byte for byte |
| a SQLite file (see `sqlite`) | its rows, read-only | everything |
| any other saver | `alist`, or `list` in a thread | what `alist` shows: see `encode_found` |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool

from glasspoint.errors import GlasspointError, SerializationError
from glasspoint.history.saver import HistorySaver
from glasspoint.l2 import contents
from glasspoint.model.codec import (
    Encoded,
    EncodedWrite,
    PendingWrites,
    StoredCheckpoint,
    encode_found,
    version_text,
    versions_of,
)
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.l2.contents import Holding
    from glasspoint.model.batches import Item

__all__ = ["HistorySource", "ListedThread", "PostgresSource", "Source", "SourceThread", "source_of"]


class SourceThread(Protocol):
    """A thread that is about to be copied."""

    checkpoints: set[tuple[str, str]]
    """Namespace and id of each checkpoint."""

    writes: dict[tuple[str, str, str, int], bytes | None]
    """The names of the pending writes: see `Holding`."""

    async def tips(self) -> list[tuple[str, str]]:
        """Return the newest checkpoint of each namespace, the root's last; but none that needs ancestors."""

    def items(
        self, checkpoints: list[tuple[str, str]], held: Holding
    ) -> AsyncIterator[StoredCheckpoint | PendingWrites]:
        """Read some checkpoints, in this order, then the pending writes of the others.

        Args:
            checkpoints: Namespace and id of each checkpoint to read.
            held: What the target has. The source may leave it out.
        """


class Source(Protocol):
    """A store of histories."""

    serde: SerializerProtocol | None
    """The serializer of the values. `None`: the bytes are copied without a check."""

    async def thread_ids(self) -> list[str]:
        """Return the id of every thread."""

    def thread(self, thread_id: str) -> AbstractAsyncContextManager[SourceThread]:
        """Open a thread for reading: as one consistent state, if the store can provide one."""


def source_of(saver: BaseCheckpointSaver[Any]) -> Source:
    """Return the source that reads a saver."""
    if isinstance(saver, HistorySaver):
        return HistorySource(saver)
    if isinstance(saver, InMemorySaver):
        return InMemorySource(saver)
    if isinstance(saver, AsyncPostgresSaver):
        return PostgresSource(saver)
    return ListingSource(saver)


class ListedThread:
    """A thread that was read completely."""

    def __init__(self, items: Iterable[Item]) -> None:
        """Take all items of the thread.

        Args:
            items: The items, oldest first.

        Raises:
            SerializationError: PostgreSQL cannot hold the thread: a channel has two values at one version.
        """
        self._checkpoints: dict[tuple[str, str], StoredCheckpoint] = {}
        self._writes: list[PendingWrites] = []
        for item in items:
            if isinstance(item, PendingWrites):
                self._writes.append(item)
            else:
                self._checkpoints[item.scope.checkpoint_ns, item.checkpoint_id] = item
        self.checkpoints = set(self._checkpoints)
        everything: list[Item] = [*self._checkpoints.values(), *self._writes]
        self.writes = {
            (item.scope.checkpoint_ns, item.checkpoint_id, write.task_id, write.idx): contents.digest_of(
                write
            )
            for item in everything
            for write in item.writes
        }
        _check_versions(self._checkpoints.values())

    async def tips(self) -> list[tuple[str, str]]:
        """See `SourceThread`."""
        newest = sorted(_newest(self.checkpoints), reverse=True)
        return [each for each in newest if not self._checkpoints[each].needs_ancestors]

    async def items(
        self, checkpoints: list[tuple[str, str]], held: Holding
    ) -> AsyncIterator[StoredCheckpoint | PendingWrites]:
        """See `SourceThread`."""
        left_out = self.checkpoints.difference(checkpoints)
        for each in checkpoints:
            yield self._checkpoints[each]
        for each in sorted(left_out):
            known = self._checkpoints[each]
            yield PendingWrites(known.scope, known.checkpoint_id, known.writes)
        for item in self._writes:
            yield item


class HistorySource:
    """A `RedisSaver` or a `MemorySaver`. Copying does not extend the threads' time to live."""

    def __init__(self, saver: HistorySaver, *, copies_bytes: bool = False) -> None:
        """Take the saver to read.

        Args:
            saver: The saver.
            copies_bytes: See `PostgresSource`.
        """
        self._saver = saver
        self.serde: SerializerProtocol | None = None if copies_bytes else saver.serde

    async def thread_ids(self) -> list[str]:
        """See `Source`."""
        return sorted([each async for each in self._saver.thread_ids(only_reads=True)])

    @asynccontextmanager
    async def thread(self, thread_id: str) -> AsyncIterator[ListedThread]:
        """See `Source`."""
        try:
            items = [each async for each in self._saver.export_thread(thread_id, keeps_ttl=True)]
        except GlasspointError:
            raise
        except (ValueError, LookupError) as exc:
            raise SerializationError(
                f"The thread cannot be read as it is in Redis ({type(exc).__name__}): if it is signed, give "
                "the saver, with its signing_key, to glasspoint.migrate()."
            ) from exc
        yield ListedThread(items)


class InMemorySource:
    """LangGraph's `InMemorySaver`. Its dictionaries are read, because its tuples have no task paths."""

    def __init__(self, saver: InMemorySaver) -> None:
        self._saver = saver
        self.serde: SerializerProtocol | None = saver.serde

    async def thread_ids(self) -> list[str]:
        """See `Source`."""
        with_writes = {thread_id for (thread_id, _, _), writes in self._saver.writes.items() if writes}
        with_checkpoints = {
            thread_id for thread_id, namespaces in self._saver.storage.items() if any(namespaces.values())
        }
        return sorted(with_writes | with_checkpoints)

    @asynccontextmanager
    async def thread(self, thread_id: str) -> AsyncIterator[ListedThread]:
        """See `Source`."""
        yield ListedThread(self._read(thread_id))

    def _read(self, thread_id: str) -> list[Item]:
        saver = self._saver
        items: list[Item] = []
        for ns, checkpoints in saver.storage.get(thread_id, {}).items():
            scope = Scope(thread_id, ns)
            for id_ in sorted(checkpoints):
                found = saver.get_tuple({"configurable": {**scope._asdict(), "checkpoint_id": id_}})
                assert found is not None
                stored = encode_found(saver.serde, found._replace(pending_writes=None))
                versions = versions_of(stored.document)
                values = {
                    channel: (version, Encoded(*saver.blobs[thread_id, ns, channel, versions[channel]]))
                    for channel, (version, _) in stored.values.items()
                }
                items.append(replace(stored, values=values, writes=self._writes(scope, id_)))
        for (owner, ns, id_), writes in saver.writes.items():
            if owner == thread_id and writes and id_ not in saver.storage.get(thread_id, {}).get(ns, {}):
                scope = Scope(thread_id, ns)
                items.append(PendingWrites(scope, id_, self._writes(scope, id_)))
        return items

    def _writes(self, scope: Scope, checkpoint_id: str) -> list[EncodedWrite]:
        return [
            EncodedWrite(task_id, idx, channel, Encoded(*value), path)
            for (task_id, idx), (_, channel, value, path) in self._saver.writes.get(
                (*scope, checkpoint_id), {}
            ).items()
        ]


class ListingSource:
    """Any other saver. Its listing is read."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._saver = saver
        self.serde: SerializerProtocol | None = saver.serde

    async def thread_ids(self) -> list[str]:
        """See `Source`."""
        seen: dict[str, None] = {}
        async for each in self._list(None):
            seen[each.config["configurable"]["thread_id"]] = None
        return sorted(seen)

    @asynccontextmanager
    async def thread(self, thread_id: str) -> AsyncIterator[ListedThread]:
        """See `Source`."""
        found = [each async for each in self._list({"configurable": {"thread_id": thread_id}})]
        items = [encode_found(self._saver.serde, each) for each in found]
        yield ListedThread(sorted(items, key=lambda each: (each.scope.checkpoint_ns, each.checkpoint_id)))

    async def _list(self, config: Any) -> AsyncIterator[CheckpointTuple]:
        listing = self._saver.alist(config)
        try:
            first = await anext(listing, None)
        except NotImplementedError:  # a synchronous saver
            for each in await asyncio.to_thread(lambda: list(self._saver.list(config))):
                yield each
            return
        if first is not None:
            yield first
            async for each in listing:
                yield each


class PostgresSource:
    """LangGraph's tables in a PostgreSQL. Only the rows that the target lacks are read."""

    def __init__(self, saver: AsyncPostgresSaver, *, copies_bytes: bool = False) -> None:
        """Take a saver of the source.

        Args:
            saver: The saver, whose connection or pool is used.
            copies_bytes: Whether the bytes of values are copied without a check. The readers of the target
                must then have the right serde.
        """
        self._saver = saver
        self.serde: SerializerProtocol | None = None if copies_bytes else saver.serde

    async def thread_ids(self) -> list[str]:
        """See `Source`."""
        async with self._connection() as conn:
            return await contents.thread_ids_of(conn)

    @asynccontextmanager
    async def thread(self, thread_id: str) -> AsyncIterator[_TableThread]:
        """See `Source`."""
        async with self._connection() as conn, conn.transaction():
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await conn.execute("SET LOCAL statement_timeout = 0")
            yield _TableThread(conn, thread_id, await contents.holding_of(conn, thread_id))

    def _connection(self) -> AbstractAsyncContextManager[contents.Connection]:
        conn = self._saver.conn
        return conn.connection() if isinstance(conn, AsyncConnectionPool) else _under(self._saver.lock, conn)


@asynccontextmanager
async def _under(lock: AbstractAsyncContextManager[Any], conn: Any) -> AsyncIterator[Any]:
    async with lock:
        yield conn


class _TableThread:
    def __init__(self, conn: contents.Connection, thread_id: str, here: Holding) -> None:
        self._conn = conn
        self._thread_id = thread_id
        self._here = here
        self.checkpoints = here.checkpoints
        self.writes = here.writes

    async def tips(self) -> list[tuple[str, str]]:
        wanted, tips = sorted(_newest(self.checkpoints), reverse=True), []
        async for item in contents.read_missing(
            self._conn, self._thread_id, checkpoints=wanted, writes=(), held_values=self._here.values
        ):
            if isinstance(item, StoredCheckpoint):
                ns, names = item.scope.checkpoint_ns, versions_of(item.document).items()
                item.values = {
                    channel: (text, Encoded("", b""))
                    for channel, version in names
                    if (ns, channel, text := version_text(version)) in self._here.values
                }
                if not item.needs_ancestors:
                    tips.append((ns, item.checkpoint_id))
        return tips

    def items(
        self, checkpoints: list[tuple[str, str]], held: Holding
    ) -> AsyncIterator[StoredCheckpoint | PendingWrites]:
        return contents.read_missing(
            self._conn,
            self._thread_id,
            checkpoints=checkpoints,
            writes=[
                name
                for name, digest in self._here.writes.items()
                if name not in held.writes or held.writes[name] != digest
            ],
            held_values=held.values,
        )


def _newest(checkpoints: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the newest checkpoint of each namespace."""
    return list(dict(sorted(checkpoints)).items())


def _check_versions(checkpoints: Iterable[StoredCheckpoint]) -> None:
    """Check that a channel has only one value at each version, in all checkpoints of a namespace.

    PostgreSQL has one row for each version: with two values, one checkpoint would show the value of another.
    A snapshot of a delta channel is the value of its version. So it may appear in a checkpoint without it.
    """
    known: dict[tuple[str, str, str], Encoded | None] = {}
    snapshots: set[tuple[str, str, str]] = set()
    for each in checkpoints:
        inline = each.document.get("channel_values") or {}
        for channel, version in versions_of(each.document).items():
            name = (each.scope.checkpoint_ns, channel, version_text(version))
            value = each.values[channel][1] if channel in each.values else None
            if value is not None and inline.get(channel) is True:
                snapshots.add(name)
            before = known.setdefault(name, value)
            if before == value:
                continue
            if name not in snapshots or None not in (before, value):
                raise SerializationError(
                    f"The channel {channel!r} has two values at one version, in two checkpoints of one "
                    "namespace: PostgreSQL cannot hold both."
                )
            known[name] = before or value
