"""The journal: which scopes Redis could not be told of, in the database that the writes themselves are in.

A row is made in the same transaction as the write that it stands for, so there is never one without the
other. It is taken away by `sweeping.py`, after the scope's entry was dropped in Redis, by a DROP that began
after the row was seen.

No lock is held meanwhile, and none is needed. Rows are read as they are committed, those included that
another process has in hand at the moment; so who finds none knows that every DROP has been done. Two that
sweep the same row drop the entry twice, which is harmless, and whoever dies in between leaves the row. A row
is deleted by its id, which no other row gets under the same generation (`l2.identity`): one that a write adds
meanwhile for the same scope is another row, and stays.

Rows are only added, each with an id of its own, so that writes never wait for each other here. While Redis
stays away, `compact` makes one row of all rows of a scope.
"""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.rows import tuple_row

from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from psycopg.rows import DictRow

    from glasspoint.l2.identity import JournalRow
    from glasspoint.l2.store import Store
    from glasspoint.scope import Scope
    from glasspoint.telemetry.events import Telemetry

    Connection = psycopg.AsyncConnection[DictRow]

__all__ = ["MIGRATIONS", "Journal", "is_up_to_date", "journalled"]

_log = get_logger("glasspoint.l2")

MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS glasspoint_l1_journal (
    cache text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (cache, id)
)
""",
    "ALTER TABLE glasspoint_l1_journal ADD COLUMN IF NOT EXISTS source text",
    """
CREATE TABLE IF NOT EXISTS glasspoint_identity (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton), id text NOT NULL, content_id text NOT NULL,
    signing_key bytea NOT NULL
)
""",
    """
INSERT INTO glasspoint_identity (id, content_id, signing_key)
VALUES (gen_random_uuid()::text, gen_random_uuid()::text,
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())))
ON CONFLICT DO NOTHING
""",
    """
CREATE TABLE IF NOT EXISTS glasspoint_caches (
    cache text PRIMARY KEY, reign text NOT NULL, generation text NOT NULL, facts jsonb NOT NULL,
    seen_at timestamptz NOT NULL
)
""",
    "CREATE UNLOGGED TABLE IF NOT EXISTS glasspoint_crash_marks (generation text PRIMARY KEY)",
)
"""Each may run again. The table is up to date if it has all `_COLUMNS`: a later version adds a statement here
(`ALTER TABLE … ADD COLUMN IF NOT EXISTS …`) and its column there."""

_COLUMNS = ("cache", "id", "thread_id", "checkpoint_ns", "created_at", "source")

_IS_UP_TO_DATE = """
SELECT count(*) = cardinality(%(columns)s::text[]) FROM pg_attribute
WHERE attrelid = to_regclass('glasspoint_l1_journal') AND attname = ANY(%(columns)s) AND NOT attisdropped
"""

_RECORD = """
INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns)
SELECT %(cache)s, thread_id, checkpoint_ns
FROM unnest(%(untold_threads)s::text[], %(untold_namespaces)s::text[]) AS s (thread_id, checkpoint_ns)
"""

# What another process is deleting just now is skipped: it has dropped the entry, too. Waiting for it, in
# another order than it takes the rows, would be a deadlock. After a recovery to an earlier moment ids come again,
# hence the generation: these may be other rows by now.
_DELETE = """
DELETE FROM glasspoint_l1_journal WHERE cache = %(cache)s AND id IN (
    SELECT id FROM glasspoint_l1_journal WHERE cache = %(cache)s AND id = ANY(%(ids)s::bigint[])
      AND EXISTS (SELECT FROM glasspoint_caches WHERE cache = %(cache)s AND generation = %(generation)s)
    FOR UPDATE SKIP LOCKED
)
RETURNING source
"""

_COUNT = "SELECT count(*) FROM glasspoint_l1_journal WHERE cache = %(cache)s"

# The new rows have ids that nobody has seen, so nobody who dropped an entry before can delete them. To leave
# one of the old rows in place would be wrong: ids do not say in which order rows were committed, and somebody
# may have dropped the entry for that one before the write of another one was there.
_COMPACT = """
WITH gone AS (
    DELETE FROM glasspoint_l1_journal WHERE cache = %(cache)s AND id IN (
        SELECT id FROM glasspoint_l1_journal WHERE cache = %(cache)s ORDER BY id LIMIT 20000
        FOR UPDATE SKIP LOCKED
    )
    RETURNING thread_id, checkpoint_ns, source
)
INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns, source)
SELECT DISTINCT %(cache)s, thread_id, checkpoint_ns, source FROM gone
"""


class Journal:
    """The rows of one cache."""

    def __init__(self, store: Store, telemetry: Telemetry, *, cache: str) -> None:
        """Args:
        store: Whose connections are used.
        telemetry: Who is told of the statements of calls.
        cache: The name of the cache that the rows are about: the key prefix. Deployments that share a
            database, but not a Redis, have different ones, and none takes away what another must see.
        """
        self._store = store
        self._telemetry = telemetry
        self.cache = cache
        self._warned = False

    async def record(self, conn: Connection, scopes: Collection[Scope]) -> None:
        """Add scopes, in the transaction that `conn` is in."""
        if scopes:
            await conn.execute(cast("Any", _RECORD), self.params(scopes))

    async def record_now(self, scopes: Collection[Scope]) -> None:
        """Add scopes whose writes are committed already.

        Raises:
            L2UnavailableError: PostgreSQL did not answer.
            SchemaError: There is no journal.
        """
        async with self._store._connection(None) as conn:
            with self._telemetry.step("l2.journal", None):
                await self.record(conn, scopes)

    async def delete(self, rows: Collection[JournalRow], generation: str) -> list[str]:
        """Take rows away, whose scopes Redis was told of after they were seen.

        Args:
            rows: The rows.
            generation: That of the cache when they were seen. If it is another one now, nothing is done.

        Returns:
            The tables that other software has written to, one for each row that it is to blame for.
        """
        async with self._quietly() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            ids = [row.id for row in rows]
            params = {"cache": self.cache, "ids": ids, "generation": generation}
            await cursor.execute(cast("Any", _DELETE), params)
            return [source for (source,) in await cursor.fetchall() if source is not None]

    async def count(self) -> int:
        """Return how many rows there are."""
        async with self._quietly() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_COUNT, {"cache": self.cache})
            row = await cursor.fetchone()
        return 0 if row is None else cast("int", row[0])

    async def compact(self) -> None:
        """Make one row of all rows of a scope, as far as one statement gets."""
        async with self._quietly() as conn:
            await conn.execute(cast("Any", _COMPACT), {"cache": self.cache})

    def params(self, scopes: Collection[Scope]) -> dict[str, Any]:
        """Return what a statement needs that records scopes: see `journalled`."""
        listed = sorted(set(scopes))
        return {
            "cache": self.cache,
            "untold_threads": [scope.thread_id for scope in listed],
            "untold_namespaces": [scope.checkpoint_ns for scope in listed],
        }

    @asynccontextmanager
    async def _quietly(self) -> AsyncIterator[Connection]:
        """A connection for what nobody called for: its waits are not those of callers, and not counted."""
        try:
            async with self._store._checkout() as conn:
                yield conn
        except psycopg.errors.InsufficientPrivilege:
            self._warn(
                "The role that the saver connects with may not use the table glasspoint_l1_journal, so the "
                "cache is not used: PostgreSQL answers alone. GRANT SELECT, INSERT, UPDATE, DELETE ON "
                "glasspoint_l1_journal."
            )
            raise

    def _warn(self, message: str) -> None:
        """Log it, once."""
        if not self._warned:
            self._warned = True
            _log.warning(message)


async def is_up_to_date(conn: Connection) -> bool:
    """Tell whether the journal's table is there as this version needs it."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(cast("Any", _IS_UP_TO_DATE), {"columns": list(_COLUMNS)})
        row = await cursor.fetchone()
    return row is not None and bool(row[0])


@functools.cache
def journalled(statement: str) -> str:
    """Return a statement that also records scopes (`Journal.params`), in one and the same transaction."""
    text = statement.strip()
    rest = f", {text.removeprefix('WITH ')}" if text.startswith("WITH ") else f" {text}"
    return f"WITH journalled AS ({_RECORD}){rest}"
