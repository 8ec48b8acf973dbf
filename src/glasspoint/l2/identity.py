"""The identity of L2: whether this PostgreSQL is still the one that the cache was filled from.

Open this file when an entry is trusted that should not be, or the other way round.

The identity is agreed, not computed. The table `glasspoint_caches` holds one *generation* for each cache (key
prefix), and all processes read it there. Beside it are the facts that were true when it was made. A process
that sees another fact renews the generation. Then nothing is trusted that was stored in Redis before.

| fact | changes when |
|---|---|
| `content` | one of LangGraph's tables was truncated, or the signing key was renewed |
| `tables` | the tables were dropped and made again, or another schema is used |
| `database` | the database was dropped and made again, copied, or restored from a dump |
| `system` | the cluster is another one |
| `timeline` | a standby was promoted, or a backup was recovered to a point in time |
| `started` | the server was restarted, perhaps with the files of a backup; or this is a copy of the cluster |

Three more signs are not facts in that row:

- The row in `glasspoint_crash_marks`, an UNLOGGED table, is gone after a crash, a promotion or a recovery.
  Acknowledged commits may be lost then (`synchronous_commit = off`). This sign also works if the server
  withholds its timeline.
- PostgreSQL's log is shorter than at the last look of this process: the whole machine was set back.
- No process has used the cache for an hour: foreign writes are not noted for it any more (see `schema`).

If files are restored or copied while the server is stopped, `started` is the only fact that changes. So every
restart costs the cache.

A managed server may withhold facts, such as `system` and `timeline`. A fact that is withheld is not compared.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from glasspoint.errors import GlasspointError
from glasspoint.l2.sql import query
from glasspoint.logs import get_logger
from glasspoint.model.identity import next_era
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from glasspoint.l2.connections import Connections
    from glasspoint.l2.types import Connection
    from glasspoint.telemetry.events import IdentityReason


__all__ = [
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

# A part of the look that a server may refuse -> the statement that asks for it alone; the text of the part.
_WITHHOLDABLE: Final = {
    "system": (query("ask_system"), query("told_system")),
    "timeline": (query("ask_timeline"), query("told_timeline")),
    "started": (query("ask_started"), query("told_started")),
    "position": (query("ask_position"), query("told_position")),
}
_WITHHELD: Final = query("withheld")
_ASK_ALL: Final = query("ask_all")

_IN_RECOVERY: Final = query("ask_in_recovery")
_LOOK: Final = query("look_at_identity")
_SET_LOCK_TIMEOUT: Final = query("set_lock_timeout")
_WAIT_FOR_FOREIGN_WRITES: Final = query("wait_for_foreign_writes")
_RENEW: Final = query("renew_generation")
_SEEN: Final = query("say_seen")
_CACHES: Final = query("list_caches")
_CLAIM_PURGE: Final = query("claim_purge")
_SAY_PURGED: Final = query("say_purged")

# The errors of a look -> why there is no identity. A standby has no unlogged tables.
_NO_IDENTITY: tuple[tuple[type[psycopg.Error], NoIdentityReason], ...] = (
    (psycopg.errors.UndefinedTable, "tables"),
    (psycopg.errors.UndefinedColumn, "tables"),
    (psycopg.errors.InsufficientPrivilege, "privilege"),
    (psycopg.errors.FeatureNotSupported, "standby"),
    (psycopg.errors.ObjectNotInPrerequisiteState, "standby"),
)

# How long a renewal waits until foreign transactions have ended: they may have seen that no process uses this
# cache, and not note their writes for it.
_BARRIER_TIMEOUT = "200ms"

# The key of the reason, which is stored beside the facts.
_REASON = "reason"

# The triggers note foreign writes for an hour after a cache was in use. This is some minutes less, because
# the two are not compared at the same moment.
_FORGOTTEN_SECONDS = 55 * 60.0


class NoIdentityError(GlasspointError):
    """PostgreSQL tells no identity, so there can be no cache.

    Attributes:
        reason: `tables`: they are missing, call `setup`. `privilege`: this role may not use them. `standby`:
            this server lags behind its primary. `row_security`: this role sees only a part of the rows, and
            an entry would show them to roles that see other rows.
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
    """The row of a cache in `glasspoint_caches`.

    Attributes:
        reign: The Redis that the generation belongs to.
        generation: The name of the generation.
        facts: What was true when the generation was made.
        unseen_seconds: How long ago a process last said that it uses this cache.
        is_marked: Whether the crash mark is there: PostgreSQL has lost nothing since.
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
        """Whether foreign writes may be missing from the journal."""
        return self.unseen_seconds > _FORGOTTEN_SECONDS


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one look at L2.

    Attributes:
        database: See `Identity.database`.
        facts: What is true now, without the facts that the server withholds.
        signing_key: PostgreSQL's key, 32 bytes.
        synchronous_commit: The setting on this connection.
        attachment: The cache's row. `None`: no process has attached the cache yet.
        rows: The oldest rows of the journal, as many as were asked for.
        statement_timeout_seconds: The setting on this connection. 0: none.
        others: Other caches (key prefixes) that were in use within the last hour.
        position: The length of PostgreSQL's log in bytes. `None`: the server withholds it. If the log has
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
        """What the statement of a write returns, as long as PostgreSQL is this one. Empty: no crash mark."""
        row = self.attachment
        return f"{row.generation}:{self.facts['content']}" if row is not None and row.is_marked else ""

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """The facts that differ from those in the row: name -> (then, now)."""
        then = self.attachment.facts if self.attachment else {}
        return {
            name: (then[name], now) for name, now in self.facts.items() if name in then and then[name] != now
        }


class Identities:
    """Reads and renews the identity of one cache."""

    def __init__(self, connections: Connections, *, cache: str) -> None:
        """Take the connections to use.

        Args:
            connections: All statements go through them.
            cache: The name of the cache: the key prefix.
        """
        self._connections = connections
        self._cache = cache
        self._parts: dict[str, str] | None = None
        self._reported: list[str] = []

    @property
    def withheld(self) -> list[str]:
        """The facts that the server has refused to tell, as far as it was asked."""
        return [name for name, part in (self._parts or {}).items() if part == _WITHHELD]

    async def look(self, *, limit: int = 0, after: int = 0) -> Look:
        """Look at the identity and at the journal, in one statement.

        Args:
            limit: How many rows of the journal to return at most.
            after: Only rows with a greater id.

        Raises:
            NoIdentityError: PostgreSQL tells no identity.
            psycopg.Error: PostgreSQL does not respond, or refuses for another reason.
        """
        try:
            async with self._connections.checkout() as conn:
                return await self.look_on(conn, limit=limit, after=after)
        except NoIdentityError as exc:
            if exc.reason == "standby":
                await self._connections.leave_standby()
            raise

    async def look_on(self, conn: Connection, *, limit: int = 0, after: int = 0) -> Look:
        """Do as `look` does, on this connection."""
        params = {"cache": self._cache, "limit": limit, "after": after}
        try:
            if self._parts is None:
                self._parts = await _askable(conn)
                self._report_withheld()
            async with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
                parts = {name: sql.SQL(part) for name, part in self._parts.items()}
                await cursor.execute(sql.SQL(_LOOK).format(**parts), params)
                row = await cursor.fetchone()
        except psycopg.Error as exc:
            self._parts = None  # perhaps another server, which tells less
            if not conn.closed:
                await conn.rollback()
            for kind, reason in _NO_IDENTITY:
                if isinstance(exc, kind) and (reason != "standby" or await _is_standby(conn)):
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
        """Make a new generation, attached to a Redis; if a move was called off, a new era of the same one.

        Args:
            look: The look on which this is based. Its facts are stored.
            reign: The Redis.
            reason: The reason under which other processes count this.

        Returns:
            The generation. `None`: another process was faster, so look again.

        Raises:
            psycopg.Error: PostgreSQL does not respond, or refuses.
        """
        seen = look.attachment
        generation = secrets.token_hex(8)
        if reason == "called_off" and seen is not None:
            generation = next_era(seen.generation, generation)
        params = {
            "cache": self._cache,
            "reign": reign,
            "generation": generation,
            "facts": json.dumps({**look.facts, _REASON: reason}),
            "seen": seen and seen.generation,
        }
        async with self._connections.checkout() as conn, conn.transaction():
            if seen is None or seen.is_forgotten:
                await conn.execute(_SET_LOCK_TIMEOUT, {"timeout": _BARRIER_TIMEOUT})
                await conn.execute(_WAIT_FOR_FOREIGN_WRITES)
            cursor = await conn.execute(_RENEW, params)
            return generation if cursor.rowcount else None

    async def say_seen(self, generation: str) -> None:
        """Say that the cache is in use."""
        await self._update(_SEEN, generation)

    async def take_turn(self, generation: str, *, continues: bool) -> bool:
        """Claim, for a minute, the purge of what older generations have left. Returns whether that worked.

        Args:
            continues: Whether this process has the claim already.
        """
        return await self._update(_CLAIM_PURGE, generation, continues=continues)

    async def say_purged(self, generation: str) -> None:
        """Record that nothing is left of older generations."""
        await self._update(_SAY_PURGED, generation)

    async def _update(self, statement: str, generation: str, **params: Any) -> bool:
        async with self._connections.checkout() as conn:
            cursor = await conn.execute(statement, {"cache": self._cache, "generation": generation, **params})
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
    # Made without what a server may withhold: it is a part of the keys, which all processes must agree on.
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


async def _is_standby(conn: Connection) -> bool:
    """Tell whether the server is a standby, which its error does not say.

    The primary of Aurora refuses to tell the position of its log with the same error.
    """
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_IN_RECOVERY)
        return await cursor.fetchone() == (True,)


async def _askable(conn: Connection) -> dict[str, str]:
    """Return name -> the text of the part, or NULL if the server withholds it.

    All parts are asked for at once. A refusal of one fails the whole statement, and only comes at run time.
    Then each is asked for alone.
    """
    try:
        await conn.execute(_ASK_ALL, prepare=False)
    except psycopg.Error as exc:
        if _is_gone(exc):
            raise
        await conn.rollback()
        return await _askable_one_by_one(conn)
    return {name: part for name, (_, part) in _WITHHOLDABLE.items()}


async def _askable_one_by_one(conn: Connection) -> dict[str, str]:
    parts = {}
    for name, (alone, part) in _WITHHOLDABLE.items():
        try:
            await conn.execute(alone)
        except psycopg.Error as exc:
            if _is_gone(exc):
                raise
            await conn.rollback()
            # A standby may be a primary a moment later, and tell everything.
            if isinstance(exc, psycopg.errors.ObjectNotInPrerequisiteState) and await _is_standby(conn):
                raise
            parts[name] = _WITHHELD
        else:
            parts[name] = part
    return parts


def _is_gone(error: psycopg.Error) -> bool:
    """Tell whether the connection has failed, or the server shuts down or cancels."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57"))
