"""The journal: a table of the scopes whose writes Redis could not be told of.

Open this file when an entry in Redis stays outdated after an outage of Redis.

A row is inserted in the same transaction as the write that it stands for, so neither exists without the
other. (`record_now` is for writes that are committed already.) The sweeper (`coherence/sweeper.py`) drops the
entry of the scope in Redis, and then deletes the row. The DROP must begin after the row was seen.

The sweeper holds no lock, and needs none:

- All committed rows are read, also those that another process is sweeping. So a process that finds no row
  knows that every DROP is done.
- Two processes that sweep the same row drop the entry twice, which is harmless.
- If a process dies between the DROP and the deletion, the row stays.
- A row is deleted by its id, which no other row gets under the same generation (`l2.identity`). So a row that
  a write adds meanwhile for the same scope stays.

Rows are only added, each with an id of its own, so writes never wait for each other here. While Redis stays
away, `compact` replaces the rows of a scope by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from psycopg.rows import tuple_row

from glasspoint.l2.sql import query
from glasspoint.l2.writing import columns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from glasspoint.l2.connections import Connections
    from glasspoint.l2.identity import JournalRow
    from glasspoint.l2.types import Connection
    from glasspoint.model.scope import Scope


__all__ = ["Journal"]


_RECORD = query("record_scopes")
_DELETE = query("delete_journal_rows")
_COUNT = query("count_journal_rows")
_COMPACT = query("compact_journal")
_RETIRE = query("retire_caches")


class Journal:
    """The rows of one cache in the journal."""

    def __init__(self, connections: Connections, *, cache: str) -> None:
        """Take the connections to use.

        Args:
            connections: All statements go through them.
            cache: The name of the cache that the rows are about: the key prefix. Deployments that share a
                database, but not a Redis, have different names, so none deletes the rows of another.
        """
        self._connections = connections
        self.cache = cache
        self.others: Collection[str] = ()
        """Other caches in use on this database. For them, our writes are writes of other software."""

    async def record(self, conn: Connection, untold: Collection[Scope], changed: Collection[Scope]) -> None:
        """Add scopes in the current transaction of `conn`.

        Args:
            untold: The scopes that our own L1 was not told of.
            changed: All scopes that the transaction changes, for the other caches.
        """
        if params := self.params(untold, changed):
            await conn.execute(_RECORD, params)

    async def record_now(self, scopes: Collection[Scope], *, caches: Collection[str] | None = None) -> None:
        """Add scopes whose writes are committed already.

        Args:
            caches: The caches to add them for. `None`: our own cache.

        Raises:
            L2UnavailableError: PostgreSQL did not respond.
            SchemaError: The table of the journal is missing.
        """
        async with self._connections.connection(None) as conn:
            told = [self.cache] if caches is None else caches
            with self._connections.telemetry.step("l2.journal", None):
                await conn.execute(_RECORD, _params((cache, scopes) for cache in told))

    async def delete(self, rows: Collection[JournalRow], generation: str) -> list[str]:
        """Delete rows. Redis was told of their scopes after the rows were seen.

        Args:
            rows: The rows.
            generation: The generation of the cache when they were seen. If it is another one now, nothing is
                deleted.

        Returns:
            For each deleted row that comes from other software: the table that it has written to.
        """
        async with self._connections.checkout() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            ids = [row.id for row in rows]
            params = {"cache": self.cache, "ids": ids, "generation": generation}
            await cursor.execute(_DELETE, params)
            return [source for (source,) in await cursor.fetchall() if source is not None]

    async def count(self) -> int:
        """Return the number of rows."""
        async with self._connections.checkout() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_COUNT, {"cache": self.cache})
            row = await cursor.fetchone()
        return 0 if row is None else cast("int", row[0])

    async def compact(self) -> None:
        """Replace the oldest rows, as many as one statement takes, by one for each scope and source."""
        async with self._connections.checkout() as conn:
            await conn.execute(_COMPACT, {"cache": self.cache})

    async def retire(self) -> None:
        """Delete the rows of caches, of any name, that no process has used for a day."""
        async with self._connections.checkout() as conn:
            await conn.execute(_RETIRE)

    def params(self, untold: Collection[Scope], changed: Collection[Scope]) -> dict[str, Any]:
        """Return the parameters of a statement that also records scopes. Empty: it need not.

        Args:
            untold, changed: As for `record`.
        """
        told = [(self.cache, _cached(untold)), *((other, _cached(changed)) for other in self.others)]
        return _params(told) if any(scopes for _, scopes in told) else {}


def _cached(scopes: Collection[Scope]) -> list[Scope]:
    """Leave out the scopes that no cache holds."""
    return [scope for scope in scopes if scope.is_cached]


def _params(told: Iterable[tuple[str, Collection[Scope]]]) -> dict[str, Any]:
    rows = [(cache, *scope) for cache, scopes in told for scope in sorted(set(scopes))]
    return columns(("untold_caches", "untold_threads", "untold_namespaces"), rows)
