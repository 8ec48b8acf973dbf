"""The identity of L2, as PostgreSQL tells it: is this what the cache was filled from?

Open this when an entry is believed that should not be, or the other way round.

The identity is agreed, not computed: the table `glasspoint_caches` holds one *generation* for each cache (key
prefix), and all processes read it there. Beside it stand the facts that were true when it was made. A process
that sees another fact renews the generation; nothing that was stored in Redis before is believed then.

| fact | changes when |
|---|---|
| `content` | one of LangGraph's tables was truncated, or the signing key was renewed |
| `tables` | the tables were dropped and made again, or another schema is used |
| `database` | the database was dropped and made again, copied, or restored from a dump |
| `system` | the cluster is another one |
| `timeline` | a standby was promoted, or a backup was recovered to a point in time |
| `started` | the server was restarted, perhaps with the files of a backup; or this is a copy of the cluster |

More signs are no facts of a row:

- The row in `glasspoint_crash_marks`, an UNLOGGED table, is gone after a crash, a promotion or a recovery.
  Acknowledged commits may be lost then (`synchronous_commit = off`), and a server that withholds its timeline
  shows it all the same.
- PostgreSQL's log is shorter than at the last look of this process: the whole machine was set back.
- No process has used the cache for an hour: foreign writes are not noted for it any more (see `schema`).

Files that are put back, or copied, while the server is stopped say nothing of that: every fact but `started`
is as it was. So a restart always costs the cache.

A server that is managed by others may withhold `system` and `timeline`. What it withholds is not compared.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import psycopg
from psycopg.rows import tuple_row

from glasspoint.errors import GlasspointError
from glasspoint.scope import Scope
from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from glasspoint.l2.connections import Connection
    from glasspoint.l2.store import Store
    from glasspoint.telemetry.events import IdentityReason


__all__ = [
    "BARRIER",
    "Attachment",
    "CacheRow",
    "Identities",
    "JournalRow",
    "Look",
    "NoIdentityError",
    "caches_of",
]

_log = get_logger("glasspoint.l2")

NoIdentityReason = Literal["tables", "privilege", "standby", "row_security"]

# What a server may refuse to say, and how it is asked.
_WITHHOLDABLE = {
    "system": "(SELECT system_identifier::text FROM pg_control_system())",
    "timeline": "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)",
    "started": "extract(epoch FROM pg_postmaster_start_time())::text",
    "position": "(pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint",
}
_ASK_PART = "/* glasspoint */ SELECT {expression}"

# One row; none if setup() has not made the tables. They must stand beside LangGraph's: a search path may lead
# to those of another deployment.
_LOOK = """/* glasspoint */
SELECT i.id, i.content_id, i.signing_key, here.tables::text, here.database::text,
       {system}, {timeline}, {started}, {position}, current_setting('synchronous_commit'),
       extract(epoch FROM current_setting('statement_timeout')::interval)::float8,
       coalesce(
           row_security_active(here.tables) OR row_security_active('checkpoint_blobs')
           OR row_security_active('checkpoint_writes') OR row_security_active('glasspoint_l1_journal')
           OR row_security_active('glasspoint_caches'),
           false
       ),
       has_table_privilege('glasspoint_fences', 'SELECT')
           AND has_table_privilege('glasspoint_fences', 'INSERT')
           AND has_table_privilege('glasspoint_fences', 'UPDATE')
           AND has_table_privilege('glasspoint_fences', 'DELETE'),
       c.reign, c.generation, c.facts::text, extract(epoch FROM clock_timestamp() - c.seen_at)::float8,
       EXISTS (SELECT FROM glasspoint_crash_marks AS m WHERE m.generation = c.generation), c.is_purged,
       j.ids, j.thread_ids, j.namespaces,
       ARRAY(
           SELECT o.cache FROM glasspoint_caches AS o
           WHERE o.cache <> %(cache)s AND o.seen_at > clock_timestamp() - interval '1 hour'
       )
FROM (
    SELECT to_regclass('checkpoints')::oid AS tables,
           (SELECT oid FROM pg_database WHERE datname = current_database()) AS database,
           (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('checkpoints')) AS schema
) AS here
JOIN pg_class AS own ON own.oid = 'glasspoint_identity'::regclass AND own.relnamespace = here.schema
CROSS JOIN glasspoint_identity AS i
LEFT JOIN glasspoint_caches AS c ON c.cache = %(cache)s
LEFT JOIN LATERAL (
    SELECT array_agg(p.id ORDER BY p.id) AS ids, array_agg(p.thread_id ORDER BY p.id) AS thread_ids,
           array_agg(p.checkpoint_ns ORDER BY p.id) AS namespaces
    FROM (
        SELECT id, thread_id, checkpoint_ns FROM glasspoint_l1_journal
        WHERE cache = %(cache)s AND id > %(after)s ORDER BY id LIMIT %(limit)s
    ) AS p
) AS j ON true
"""

# A standby has no unlogged tables.
_NO_IDENTITY: tuple[tuple[type[psycopg.Error], NoIdentityReason], ...] = (
    (psycopg.errors.UndefinedTable, "tables"),
    (psycopg.errors.UndefinedColumn, "tables"),
    (psycopg.errors.InsufficientPrivilege, "privilege"),
    (psycopg.errors.FeatureNotSupported, "standby"),
    (psycopg.errors.ObjectNotInPrerequisiteState, "standby"),
)

# Only from what the caller has seen: of several processes that renew at once, one does.
_RENEW = """/* glasspoint */
WITH renewed AS (
    INSERT INTO glasspoint_caches AS c (cache, reign, generation, facts, seen_at)
    VALUES (%(cache)s, %(reign)s, %(generation)s, %(facts)s::jsonb, clock_timestamp())
    ON CONFLICT (cache) DO UPDATE
      SET reign = EXCLUDED.reign, generation = EXCLUDED.generation, facts = EXCLUDED.facts,
          seen_at = EXCLUDED.seen_at, is_purged = false, purging_at = NULL
      WHERE c.generation IS NOT DISTINCT FROM %(seen)s
    RETURNING generation
), unmarked AS (
    DELETE FROM glasspoint_crash_marks WHERE generation = %(seen)s AND EXISTS (SELECT FROM renewed)
)
INSERT INTO glasspoint_crash_marks (generation) SELECT generation FROM renewed
"""

_SEEN = """/* glasspoint */
UPDATE glasspoint_caches SET seen_at = clock_timestamp()
WHERE cache = %(cache)s AND generation = %(generation)s
"""

_CACHES = """/* glasspoint */
SELECT cache, reign, coalesce(extract(epoch FROM clock_timestamp() - seen_at)::float8, 'infinity')
FROM glasspoint_caches
"""

BARRIER = "1735159667, 'glasspoint_caches'::regclass::oid::int"
"""The advisory lock that a foreign write shares until its transaction ends: see `schema`."""

_TAKE_TURN = """/* glasspoint */
UPDATE glasspoint_caches SET purging_at = clock_timestamp()
WHERE cache = %(cache)s AND generation = %(generation)s AND NOT is_purged
  AND (%(continues)s OR purging_at IS NULL OR purging_at < clock_timestamp() - interval '1 minute')
"""

_SAY_PURGED = """/* glasspoint */
UPDATE glasspoint_caches SET is_purged = true WHERE cache = %(cache)s AND generation = %(generation)s
"""

# Foreign transactions under way may have decided already that nobody uses this cache: they end first.
_BARRIER_TIMEOUT = "200ms"

# Beside the facts in the row.
_REASON = "reason"

# The triggers note foreign writes for an hour after a cache was seen last. Some minutes less, because the
# two are not compared at the same moment.
_FORGOTTEN_SECONDS = 55 * 60.0


class NoIdentityError(GlasspointError):
    """PostgreSQL tells no identity, so that there can be no cache.

    Attributes:
        reason: `tables`: `setup` has not made them; `privilege`: this role may not use them; `standby`: this
            server lags behind its primary; `row_security`: this role sees a part of the rows only, and an
            entry would show them to roles that see others.
    """

    def __init__(self, reason: NoIdentityReason) -> None:
        super().__init__(f"PostgreSQL tells no identity: {reason}")
        self.reason = reason


class JournalRow(NamedTuple):
    """One row of the journal."""

    id: int
    scope: Scope


class CacheRow(NamedTuple):
    """One row of `glasspoint_caches`: see `Attachment`."""

    cache: str
    reign: str
    unseen_seconds: float


async def caches_of(conn: psycopg.AsyncConnection[Any]) -> list[CacheRow]:
    """Return the caches of a database.

    Args:
        conn: A connection in autocommit mode.
    """
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_CACHES, prepare=False)
        return [CacheRow(*row) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Attachment:
    """The row of a cache.

    Attributes:
        facts: What was true when the generation was made.
        unseen_seconds: How long ago a process said that it uses this cache.
        is_marked: Whether PostgreSQL has lost nothing since.
        is_purged: Whether the entries of older generations were deleted: see `coherence.purging`.
        reason: Why the generation was made.
    """

    reign: str
    generation: str
    facts: Mapping[str, str]
    unseen_seconds: float
    is_marked: bool
    is_purged: bool = False
    reason: IdentityReason = "generation"

    @property
    def is_forgotten(self) -> bool:
        """Whether foreign writes may have gone unnoted."""
        return self.unseen_seconds > _FORGOTTEN_SECONDS


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at L2 has shown.

    Attributes:
        database: See `Identity.database`.
        facts: What is true now; a fact that the server withholds is not there.
        signing_key: PostgreSQL's key, 32 bytes.
        synchronous_commit: The setting, on this connection.
        attachment: The cache's row, `None` before the first process has attached it.
        rows: The oldest rows of the journal that were asked for.
        statement_timeout_seconds: The setting, on this connection; 0 for none.
        others: Other caches (key prefixes) that were in use lately.
        position: How many bytes the log of PostgreSQL has; `None` if the server withholds it. If it has
            become shorter, the server was set back.
    """

    database: str
    facts: Mapping[str, str]
    signing_key: bytes = field(repr=False)
    synchronous_commit: str
    attachment: Attachment | None
    rows: list[JournalRow]
    statement_timeout_seconds: float = 0.0
    others: frozenset[str] = frozenset()
    position: int | None = None

    @property
    def mark(self) -> str:
        """What the statement of a write answers, as long as PostgreSQL is this one."""
        row = self.attachment
        return f"{row.generation}:{self.facts['content']}" if row is not None and row.is_marked else ""

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """The facts that are not as the row has them: name -> (then, now)."""
        then = self.attachment.facts if self.attachment else {}
        return {
            name: (then[name], now) for name, now in self.facts.items() if name in then and then[name] != now
        }


class Identities:
    """Reads and renews the identity of one cache."""

    def __init__(self, store: Store, *, cache: str) -> None:
        """Take the store whose connections are used.

        Args:
            store: Whose connections are used.
            cache: The name of the cache: the key prefix.
        """
        self._store = store
        self._cache = cache
        self._parts: dict[str, str] | None = None
        self._reported: list[str] = []

    @property
    def withheld(self) -> list[str]:
        """The facts that the server refuses to tell, as far as it was asked."""
        return [name for name, part in (self._parts or {}).items() if part == "NULL"]

    async def look(self, *, limit: int = 0, after: int = 0) -> Look:
        """Look at the identity and at the journal, in one statement.

        Args:
            limit: How many rows of the journal to return at most.
            after: Only rows with a greater id.

        Raises:
            NoIdentityError: PostgreSQL tells none.
            psycopg.Error: PostgreSQL does not answer, or refuses otherwise.
        """
        async with self._store.checkout() as conn:
            return await self.look_on(conn, limit=limit, after=after)

    async def look_on(self, conn: Connection, *, limit: int = 0, after: int = 0) -> Look:
        """As `look`, on a connection at hand."""
        params = {"cache": self._cache, "limit": limit, "after": after}
        try:
            if self._parts is None:
                self._parts = await _askable(conn)
                self._report_withheld()
            async with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
                await cursor.execute(cast("Any", _LOOK.format(**self._parts)), params)
                row = await cursor.fetchone()
        except psycopg.Error as exc:
            self._parts = None  # perhaps another server, which tells less
            if not conn.closed:
                await conn.rollback()
            for kind, reason in _NO_IDENTITY:
                if isinstance(exc, kind):
                    raise NoIdentityError(reason) from exc
            raise
        if row is None:
            raise NoIdentityError("tables")
        look, is_subject_to_row_security, may_fence = _look(row)
        if is_subject_to_row_security:
            raise NoIdentityError("row_security")
        if not may_fence:
            raise NoIdentityError("privilege")
        return look

    def _report_withheld(self) -> None:
        """Log what the server withholds, once."""
        if self.withheld and self.withheld != self._reported:
            self._reported = self.withheld
            _log.warning(
                "PostgreSQL does not tell this role its %s: the cache does not notice what changes there "
                "alone. (A promotion or a recovery is still noticed by the table glasspoint_crash_marks.)",
                " and ".join(self.withheld),
            )

    async def renew(self, look: Look, reign: str, reason: IdentityReason) -> str | None:
        """Make a new generation, attached to a Redis.

        Args:
            look: What was seen; its facts are stored.
            reign: The Redis.
            reason: What other processes are to count this as.

        Returns:
            The generation; `None` if another process was faster, so that another look is due.

        Raises:
            psycopg.Error: PostgreSQL does not answer, or refuses.
        """
        seen = look.attachment
        params = {
            "cache": self._cache,
            "reign": reign,
            "generation": secrets.token_hex(8),
            "facts": json.dumps({**look.facts, _REASON: reason}),
            "seen": seen and seen.generation,
        }
        async with self._store.checkout() as conn, conn.transaction():
            if seen is None or seen.is_forgotten:
                await conn.execute(
                    "SELECT set_config('lock_timeout', %(timeout)s, true)", {"timeout": _BARRIER_TIMEOUT}
                )
                await conn.execute(cast("Any", f"SELECT pg_advisory_xact_lock({BARRIER})"))
            cursor = await conn.execute(cast("Any", _RENEW), params)
            return cast("str", params["generation"]) if cursor.rowcount else None

    async def say_seen(self, generation: str) -> None:
        """Say that the cache is in use."""
        await self._update(_SEEN, generation)

    async def take_turn(self, generation: str, *, continues: bool) -> bool:
        """Ask for the turn to purge what older generations have left, for a minute.

        Args:
            continues: This process has it already.
        """
        return await self._update(_TAKE_TURN, generation, continues=continues)

    async def say_purged(self, generation: str) -> None:
        """Say that nothing is left of older generations."""
        await self._update(_SAY_PURGED, generation)

    async def _update(self, statement: str, generation: str, **params: Any) -> bool:
        async with self._store.checkout() as conn:
            cursor = await conn.execute(
                cast("Any", statement), {"cache": self._cache, "generation": generation, **params}
            )
            return cursor.rowcount > 0


def _look(row: tuple[Any, ...]) -> tuple[Look, bool, bool]:
    id_, content, signing_key, tables, database, system, timeline, started, position, *rest = row
    commit, statement_timeout, is_subject_to_row_security, may_fence, *rest = rest
    reign, generation, facts, unseen_seconds, is_marked, is_purged, ids, thread_ids, namespaces, others = rest
    of_the_row = (reign, generation, unseen_seconds, is_marked, is_purged)
    all_facts = {
        "content": content,
        "tables": tables,
        "database": database,
        "system": system,
        "timeline": timeline,
        "started": started,
    }
    # Of nothing that a server may withhold: it stands in the keys, which all processes must agree on.
    lineage = hashlib.sha256(f"{id_}\0{database}".encode())
    scopes = map(Scope, thread_ids or (), namespaces or ())
    look = Look(
        database=lineage.hexdigest()[:12],
        facts={name: str(fact) for name, fact in all_facts.items() if fact is not None},
        signing_key=bytes(signing_key),
        synchronous_commit=commit,
        attachment=None if generation is None else _attachment(json.loads(facts), *of_the_row),
        rows=[JournalRow(*each) for each in zip(ids or (), scopes, strict=True)],
        statement_timeout_seconds=statement_timeout,
        others=frozenset(others),
        position=position,
    )
    return look, is_subject_to_row_security, may_fence


def _attachment(
    facts: dict[str, str],
    reign: str,
    generation: str,
    unseen_seconds: float,
    is_marked: bool,
    is_purged: bool,
) -> Attachment:
    reason = cast("IdentityReason", facts.pop(_REASON, "generation"))
    return Attachment(reign, generation, facts, unseen_seconds, is_marked, is_purged, reason)


async def _askable(conn: Connection) -> dict[str, str]:
    """Ask for each part by itself: name -> how to ask, `NULL` for what the server withholds.

    A refusal inside a larger statement would fail all of it, and whether it comes is only known at run time.
    """
    parts = {}
    for name, expression in _WITHHOLDABLE.items():
        try:
            await conn.execute(cast("Any", _ASK_PART.format(expression=expression)))
        except psycopg.errors.ObjectNotInPrerequisiteState:
            raise  # a standby: it may be a primary a moment later, and tell everything
        except psycopg.Error as exc:
            if exc.sqlstate is None or exc.sqlstate.startswith(("08", "57")):
                raise
            await conn.rollback()
            parts[name] = "NULL"
        else:
            parts[name] = expression
    return parts
