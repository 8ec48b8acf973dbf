"""The journal: which scopes Redis could not be told of, in the database that the writes themselves are in.

A row is made in the same transaction as the write that it stands for, so there is never one without the
other. The sweeper (`coherence/sweeper.py`) takes it away after the scope's entry was dropped in Redis, by a
DROP that began after the row was seen.

No lock is held meanwhile, and none is needed. Rows are read as they are committed, those included that
another process has in hand at the moment; so who finds none knows that every DROP has been done. Two that
sweep the same row drop the entry twice, which is harmless, and whoever dies in between leaves the row. A row
is deleted by its id, which no other row gets under the same generation (`l2.identity`): one that a write adds
meanwhile for the same scope is another row, and stays.

Rows are only added, each with an id of its own, so that writes never wait for each other here. While Redis
stays away, `compact` makes one row of all rows of a scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from psycopg.rows import tuple_row

from glasspoint.l2.sql import query
from glasspoint.l2.statements import JOURNALLED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from glasspoint.l2.connections import Connections
    from glasspoint.l2.identity import JournalRow
    from glasspoint.l2.types import Connection
    from glasspoint.model.scope import Scope


__all__ = ["Journal", "journalled"]


_RECORD = query("record_scopes")
_DELETE = query("delete_journal_rows")
_COUNT = query("count_journal_rows")
_COMPACT = query("compact_journal")
_RETIRE = query("retire_caches")


class Journal:
    """The rows of one cache."""

    def __init__(self, connections: Connections, *, cache: str) -> None:
        """Take the connections that are used.

        Args:
            connections: All statements go through them.
            cache: The name of the cache that the rows are about: the key prefix. Deployments that share a
                database, but not a Redis, have different ones, and none takes away what another must see.
        """
        self._connections = connections
        self.cache = cache
        self.others: Collection[str] = ()
        """Other caches in use on this database. To them each write of ours is one of other software."""

    async def record(self, conn: Connection, untold: Collection[Scope], changed: Collection[Scope]) -> None:
        """Add scopes, in the transaction that `conn` is in.

        Args:
            untold: Those that our own L1 was not told of.
            changed: All that the transaction changes, for the other caches.
        """
        if params := self.params(untold, changed):
            await conn.execute(_RECORD, params)

    async def record_now(self, scopes: Collection[Scope], *, caches: Collection[str] | None = None) -> None:
        """Add scopes whose writes are committed already.

        Args:
            caches: Who is to be told; our own cache, unless it is said.

        Raises:
            L2UnavailableError: PostgreSQL did not answer.
            SchemaError: There is no journal.
        """
        async with self._connections.connection(None) as conn:
            told = [self.cache] if caches is None else caches
            with self._connections.telemetry.step("l2.journal", None):
                await conn.execute(_RECORD, _params((cache, scopes) for cache in told))

    async def delete(self, rows: Collection[JournalRow], generation: str) -> list[str]:
        """Take rows away, whose scopes Redis was told of after they were seen.

        Args:
            rows: The rows.
            generation: That of the cache when they were seen. If it is another one now, nothing is done.

        Returns:
            The tables that other software has written to, one for each row that it is to blame for.
        """
        async with self._connections.checkout() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            ids = [row.id for row in rows]
            params = {"cache": self.cache, "ids": ids, "generation": generation}
            await cursor.execute(_DELETE, params)
            return [source for (source,) in await cursor.fetchall() if source is not None]

    async def count(self) -> int:
        """Return how many rows there are."""
        async with self._connections.checkout() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_COUNT, {"cache": self.cache})
            row = await cursor.fetchone()
        return 0 if row is None else cast("int", row[0])

    async def compact(self) -> None:
        """Make one row of all rows of a scope, as far as one statement gets."""
        async with self._connections.checkout() as conn:
            await conn.execute(_COMPACT, {"cache": self.cache})

    async def retire(self) -> None:
        """Delete what is left of caches, of any name, that no process has used for a day."""
        async with self._connections.checkout() as conn:
            await conn.execute(_RETIRE)

    def params(self, untold: Collection[Scope], changed: Collection[Scope]) -> dict[str, Any] | None:
        """Return what a statement needs that records scopes: see `journalled`. `None`: nothing to record.

        Args:
            untold, changed: As for `record`.
        """
        told = [(self.cache, _cached(untold)), *((other, _cached(changed)) for other in self.others)]
        return _params(told) if any(scopes for _, scopes in told) else None


def _cached(scopes: Collection[Scope]) -> list[Scope]:
    """Leave out what no cache holds."""
    return [scope for scope in scopes if scope.is_cached]


def _params(told: Iterable[tuple[str, Collection[Scope]]]) -> dict[str, Any]:
    rows = [(cache, *scope) for cache, scopes in told for scope in sorted(set(scopes))]
    names = ("untold_caches", "untold_threads", "untold_namespaces")
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}


def journalled(statement: str) -> str:
    """Return the statement that does the same, and records scopes (`Journal.params`) in the same transaction.

    Args:
        statement: One that stores what callers write: a key of `statements.JOURNALLED`.
    """
    return JOURNALLED[statement]
