"""`setup()`: makes the tables of LangGraph and of Glasspoint, or migrates them to the installed versions.

    look      two reads. If nothing is missing, this is all: the role needs no right to make anything
    migrate   one transaction, one process at a time: everything except the next step
    build     CREATE INDEX CONCURRENTLY, if a table has rows: outside of transactions. Then `migrate` again

`set_up_script`, `renewal_script` and `removal_script` return the same as a script, to read or to run in psql.

Open this file when a setup waits, fails, or makes something in the wrong schema.

Setup leaves nothing in a session, neither a setting nor a lock. Behind a pooler in transaction mode
(PgBouncer), the next statement may run on another connection, and another application gets this one.

No statement of setup waits for longer than a few seconds; setup tries again instead. The reason: a statement
that waits holds a snapshot, and CREATE INDEX CONCURRENTLY of another process waits for all snapshots. So
neither would ever end.
"""

from __future__ import annotations

import asyncio
import random
import re
import textwrap
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, LiteralString, TypeVar, cast

import psycopg
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from psycopg import errors, sql
from psycopg.rows import tuple_row

from glasspoint.errors import L2DeadlineError, SchemaError
from glasspoint.l2 import schema_statements as statements
from glasspoint.l2.deadline import answered_within
from glasspoint.l2.sql import query
from glasspoint.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from glasspoint.l2.types import Connection

    Statement: TypeAlias = str | sql.Composable

__all__ = [
    "GRANTS",
    "VERSION",
    "ForeignWrites",
    "removal_script",
    "remove",
    "renew_signing_key",
    "renewal_script",
    "set_up",
    "set_up_script",
    "triggers_stand",
    "why_no_triggers",
]

_log = get_logger("glasspoint.l2")

_Result = TypeVar("_Result")

ForeignWrites = Literal["watch", "ignore"]
"""Whether triggers note what other software writes to LangGraph's tables."""

VERSION = 4
"""The version of Glasspoint's own tables, functions and triggers. Each change of them raises it by one."""

GRANTS = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoints, checkpoint_blobs, checkpoint_writes, "
    "glasspoint_l1_journal, glasspoint_caches, glasspoint_crash_marks, glasspoint_fences, "
    "glasspoint_set_aside, glasspoint_retention, and GRANT SELECT ON checkpoint_migrations, "
    "glasspoint_identity"
)
"""The rights of a role that uses the tables, but does not make them."""

# Any number is possible, if all versions use the same one.
_SETUP_LOCK = 0x676C617373  # "glass"

# How long setup tries while other processes are in its way, and how long an index may take.
_TURN_SECONDS = 60.0
_INDEX_SECONDS = 3600.0

# A wait that is longer is logged once.
_LOG_AFTER_SECONDS = 5.0

# How long a statement waits for the lock on a table, attempt by attempt. The first waits are short, because
# writers queue behind them. The last waits are longer than `deadlock_timeout` (1 s): PostgreSQL ends an
# autovacuum only for a statement that has waited for so long.
_LOCK_TIMEOUTS_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)

# After such a wait, setup leaves the table to the writers for so many times as long.
_PAUSES_A_LOCK_TIMEOUT = 2

# Another process is in the way: it holds a lock, or makes the same thing at the same time. PostgreSQL
# reports the latter in many ways ("tuple concurrently updated" is an InternalError).
_IN_THE_WAY = (
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.UniqueViolation,
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.DuplicateFunction,
    errors.DuplicateColumn,
    errors.InternalError_,
)

_CONCURRENTLY = re.compile(r"\s+CONCURRENTLY\b", re.IGNORECASE)
_CREATE_INDEX_CONCURRENTLY = re.compile(
    r"\s*CREATE\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS\s+(?P<name>\w+)\s+"
    r"ON\s+(?P<table>\w+)\s*(?=\()",
    re.IGNORECASE,
)

# Connections for which the warning about missing triggers was logged: host, port, database, user, schema.
_warned: set[tuple[object, ...]] = set()


async def set_up(conn: Connection, *, foreign_writes: ForeignWrites, lifts_timeout: bool = False) -> None:
    """Make what is missing, and migrate what is older. Any number of processes may call this at once.

    Args:
        conn: A connection in no transaction.
        foreign_writes: `"watch"` makes the triggers that note what other software writes. `"ignore"` makes
            none, and removes none.
        lifts_timeout: Whether our own pool has set a `statement_timeout` on the connection. It may then be
            lifted while an index is built.

    Raises:
        SchemaError: This role may not make what is missing.
        L2DeadlineError: Other processes were in the way for too long.
    """
    watch = foreign_writes == "watch"
    async with _autocommit(conn):
        state = await _look(conn)
        if state.is_complete and (not watch or state.has_triggers):
            return
        if state.is_complete and not state.may_make_triggers:
            await _warn_of_missing_triggers(conn, state.schema)
            return
        if state.other_schema is not None and "checkpoints" not in state.tables:
            _log.warning(
                "setup makes new tables in the schema %r, which comes first in the search_path. The tables "
                "in the schema %r stay as they are, and are not used.",
                state.schema,
                state.other_schema,
            )
        while index := await _in_slot(conn, state.schema, lambda: _migrate(conn, watch=watch)):
            await _build(conn, state.schema, index, lifts_timeout=lifts_timeout)


async def triggers_stand(conn: Connection) -> bool:
    """Tell whether all triggers are there, enabled, and as this version makes them."""
    return (await _look(conn)).has_triggers


async def why_no_triggers(conn: Connection) -> str:
    """Say what keeps this role from making the triggers, and what to do. Call it if triggers are missing.

    Args:
        conn: A connection in autocommit mode.
    """
    return await _why_no_triggers(conn, (await _look(conn)).schema)


async def remove(conn: Connection) -> None:
    """Drop everything of Glasspoint's own (tables, functions, triggers), and nothing of LangGraph's.

    Args:
        conn: A connection in no transaction.

    Raises:
        SchemaError: This role may not drop them.
        L2DeadlineError: Other processes were in the way for too long.
    """
    async with _autocommit(conn):
        try:
            schema = (await _look(conn)).schema
        except errors.InsufficientPrivilege as exc:
            raise _refused_to_remove(conn, "", exc) from exc
        await _in_slot(conn, schema, lambda: _remove(conn, schema), refused=_refused_to_remove)


async def renew_signing_key(conn: Connection) -> None:
    """Make a new signing key. Savers then trust no entry in Redis that is older.

    Args:
        conn: A connection in no transaction.

    Raises:
        SchemaError: There is no key: `setup` was not called yet.
    """
    async with _autocommit(conn):
        state = await _look(conn)
        if "glasspoint_identity" not in state.tables:
            raise SchemaError(
                "There is no signing key to renew: run `glasspoint setup` (or `await saver.setup()`) once."
            )
        await _execute(conn, _with_identity(query("renew_signing_key"), state.schema))


async def set_up_script(conn: Connection, *, foreign_writes: ForeignWrites) -> str:
    """Return the SQL that `set_up` would run now, and run none of it.

    Args:
        conn: A connection in no transaction. Its role only needs the right to read.
        foreign_writes: As for `set_up`.

    Returns:
        A script for psql, and for the owner of the tables. Empty if nothing is missing.
    """
    async with _reading(conn) as state:
        return await _set_up_script(conn, state, watch=foreign_writes == "watch")


async def renewal_script(conn: Connection) -> str:
    """Return the SQL that `renew_signing_key` would run after `set_up`, and run none of it."""
    async with _reading(conn) as state:
        script = _Script(conn, state.schema)
        script.add(_with_identity(query("renew_signing_key"), state.schema))
        return script.text()


async def removal_script(conn: Connection) -> str:
    """Return the SQL that `remove` would run now, and run none of it. Empty if nothing of ours is there."""
    async with _reading(conn) as state:
        script = _Script(conn, state.schema)
        standing = await _standing_triggers(conn)
        if standing or not state.tables.isdisjoint(statements.OWN_TABLES):
            script.add(*_removal_statements(standing))
        return script.text()


# ------------------------------------------------------------------------------------------- look


@dataclass(frozen=True, slots=True)
class _State:
    """What setup has found in the database.

    Attributes:
        schema: The schema where the tables are, or will be.
        tables: The tables, upstream's and ours, that are there.
        migration: The number of upstream's last migration. -1: none.
        version: The version of our own tables. 0: none.
        triggers: The number of triggers that are there as this version makes them.
        may_make_triggers: Whether an attempt to make triggers may succeed.
        other_schema: Another schema, in which the search path finds tables. `None`: there is none.
    """

    schema: str
    tables: frozenset[str]
    migration: int
    version: int
    triggers: int
    may_make_triggers: bool
    other_schema: str | None

    @property
    def is_complete(self) -> bool:
        """Whether everything except the triggers is there."""
        return self.migration >= len(BasePostgresSaver.MIGRATIONS) - 1 and self.has_own_tables

    @property
    def has_own_tables(self) -> bool:
        """Whether our tables are there, of this version or of a newer one."""
        return self.version >= VERSION

    @property
    def has_triggers(self) -> bool:
        """Whether all triggers are there. Triggers of a newer version are not checked."""
        return self.triggers == len(statements.TRIGGERS) or self.version > VERSION


async def _look(conn: Connection) -> _State:
    params = {
        "tables": ["checkpoint_migrations", *statements.UPSTREAM_TABLES, *statements.OWN_TABLES],
        "trigger_tables": [trigger.table for trigger in statements.TRIGGERS],
        "trigger_names": [trigger.name for trigger in statements.TRIGGERS],
        "functions": [trigger.function for trigger in statements.TRIGGERS],
        "bodies": [statements.FUNCTIONS[trigger.function] for trigger in statements.TRIGGERS],
    }
    row = await _fetch_one(conn, query("look_at_schema"), params)
    if row is None:
        raise SchemaError(
            "The search_path of this connection leads to no schema: create that schema, or name another one "
            "(`options=-csearch_path=…` in the connection string)."
        )
    schema, tables, triggers, may_make_triggers, other_schema, may_read_version = row
    # A statement must not name a table that is missing.
    migration: sql.Composable = sql.SQL(query("withheld"))
    version: sql.Composable = sql.SQL(query("withheld"))
    if "checkpoint_migrations" in tables:
        migrations = sql.Identifier(schema, "checkpoint_migrations")
        migration = sql.SQL(query("last_migration")).format(migrations=migrations)
    if not may_read_version:
        # A role without rights on our tables works without the cache, and the sweeper says so. It could not
        # migrate them in any case.
        version = sql.Literal(VERSION)
    elif {*statements.OWN_TABLES} <= {*tables}:
        version = _with_identity(query("tables_version"), schema)
    versions = sql.SQL(query("look_at_versions")).format(migration=migration, version=version)
    found = await _fetch_one(conn, versions) or (None, None)
    return _State(
        schema=schema,
        tables=frozenset(tables),
        migration=-1 if found[0] is None else found[0],
        version=found[1] or 0,
        triggers=triggers,
        may_make_triggers=may_make_triggers,
        other_schema=other_schema,
    )


def _with_identity(statement: LiteralString, schema: str) -> sql.Composed:
    """Return a statement on the table `glasspoint_identity` of a schema."""
    return sql.SQL(statement).format(identity=sql.Identifier(schema, "glasspoint_identity"))


# ------------------------------------------------------------------------------------------- migrate


async def _in_slot(
    conn: Connection,
    schema: str,
    work: Callable[[], Awaitable[_Result]],
    *,
    refused: Callable[[Connection, str, errors.InsufficientPrivilege], SchemaError] | None = None,
) -> _Result:
    """Do the work in one transaction, as soon as no other process sets up or keeps the tables locked."""
    started, is_logged, attempt = monotonic(), False, 0
    while True:
        timeout = _LOCK_TIMEOUTS_SECONDS[min(attempt, len(_LOCK_TIMEOUTS_SECONDS) - 1)]
        pause = random.uniform(0.02, 0.1)
        error: BaseException | None = None
        try:
            async with conn.transaction():
                if await _take_lock(conn, timeout):
                    return await work()
            obstacle = "another process set the tables up"
        except _IN_THE_WAY as exc:
            error, attempt = exc, attempt + 1
            pause += _PAUSES_A_LOCK_TIMEOUT * timeout
            obstacle = f"others kept the tables locked, or changed them ({type(exc).__name__})"
        except errors.InsufficientPrivilege as exc:
            raise (refused or _refused)(conn, schema, exc) from exc
        waited = monotonic() - started
        if waited > _TURN_SECONDS:
            raise L2DeadlineError(
                f"Nothing was set up: for {waited:.0f} s {obstacle}. Look for a transaction that does not "
                "end, in pg_stat_activity and pg_locks, and repeat."
            ) from error
        if waited > _LOG_AFTER_SECONDS and not is_logged:
            is_logged = True
            _log.info("setup waits, for up to %.0f s: %s.", _TURN_SECONDS, obstacle)
        await asyncio.sleep(pause)


async def _take_lock(conn: Connection, timeout_seconds: float) -> bool:
    """Prepare a transaction, and try to be the only process that sets up."""
    # The default may be another one, but each statement must see what others have just committed.
    await _execute(conn, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    params = {"lock_timeout_ms": str(int(timeout_seconds * 1000)), "key": _SETUP_LOCK}
    row = await _fetch_one(conn, query("take_setup_lock"), params)
    return row is not None and bool(row[-1])


async def _enter(conn: Connection, schema: str) -> None:
    """Make every name in this transaction refer to this schema."""
    await _fetch_one(conn, query("enter_schema"), {"schema": schema})


async def _migrate(conn: Connection, *, watch: bool) -> _Index | None:
    """Make everything that is missing and that a transaction can make.

    Returns:
        An index that has to be built before the rest, because its table has rows. `None`: nothing is left.
    """
    state = await _look(conn)
    await _enter(conn, state.schema)
    index = await _migrate_upstream(conn, state)
    is_older = not state.has_own_tables
    if is_older:
        for statement in statements.TABLES:
            await _execute(conn, statement)
        await _execute(conn, _init_identity())
    if index is not None:
        return index  # while it is built, perhaps by another process, the table cannot get triggers
    # Triggers of an older version are replaced in any case: they may not fit the new tables.
    wanted = (watch and not state.has_triggers) or (is_older and await _standing_triggers(conn))
    if wanted and not await _make_triggers(conn):
        await _warn_of_missing_triggers(conn, state.schema)
    return None


async def _migrate_upstream(conn: Connection, state: _State) -> _Index | None:
    """Run upstream's migrations in their order, because only the greatest recorded number counts."""
    for number in range(state.migration + 1, len(BasePostgresSaver.MIGRATIONS)):
        migration = BasePostgresSaver.MIGRATIONS[number]
        index = _index_of(migration)
        if index is None:
            await _execute(conn, _CONCURRENTLY.sub("", migration))
        elif not await _make_index_if_empty(conn, index):
            return index
        await _execute(conn, _record_migration(number))
    return None


def _init_identity() -> sql.Composed:
    return sql.SQL(query("init_identity")).format(version=sql.Literal(VERSION))


def _record_migration(number: int) -> sql.Composed:
    return sql.SQL(query("record_migration")).format(number=sql.Literal(number))


async def _make_index_if_empty(conn: Connection, index: _Index) -> bool:
    """Make an index in this transaction, unless its table has rows, or another process builds it.

    Returns whether a valid index is there.
    """
    status = await _status_of(conn, None, index)
    if status.is_valid or status.workers:
        return bool(status.is_valid)
    has_rows = sql.SQL(query("has_rows")).format(table=sql.Identifier(index.table))
    if await _fetch_one(conn, has_rows) == (True,):
        return False
    await _execute(conn, sql.SQL(query("drop_index")).format(index=sql.Identifier(index.name)))
    await _execute(conn, _CONCURRENTLY.sub("", index.migration))
    return True


async def _make_triggers(conn: Connection) -> bool:
    """Make the functions and triggers anew, all or none. Returns whether this role may do that."""
    try:
        async with conn.transaction():
            if await _fetch_one(conn, query("may_note")) != (True,):
                return False
            for statement in _trigger_statements(await _standing_triggers(conn)):
                await _execute(conn, statement)
    except errors.InsufficientPrivilege:
        return False
    return True


def _trigger_statements(standing: Sequence[tuple[Any, ...]]) -> Iterator[Statement]:
    """Make the functions and triggers anew, in place of the triggers that are there."""
    yield from statements.MAKE_FUNCTIONS
    yield from _drop_statements(standing)
    for trigger in statements.TRIGGERS:
        yield sql.SQL(trigger.create).format(table=sql.Identifier(trigger.table))


def _drop_statements(standing: Sequence[tuple[Any, ...]]) -> Iterator[Statement]:
    drop = sql.SQL(query("drop_trigger"))
    for table, name in standing:
        yield drop.format(trigger=sql.Identifier(name), table=sql.Identifier(table))


async def _standing_triggers(conn: Connection) -> list[tuple[Any, ...]]:
    names = sorted({trigger.name for trigger in statements.TRIGGERS})
    params = {"tables": list(statements.UPSTREAM_TABLES), "names": names}
    return await _fetch_all(conn, query("standing_triggers"), params)


async def _remove(conn: Connection, schema: str) -> None:
    await _enter(conn, schema)
    for statement in _removal_statements(await _standing_triggers(conn)):
        await _execute(conn, statement)


def _removal_statements(standing: Sequence[tuple[Any, ...]]) -> Iterator[Statement]:
    yield from _drop_statements(standing)
    for name in statements.FUNCTIONS:
        yield sql.SQL(query("drop_function")).format(function=sql.Identifier(name))
    for table in statements.OWN_TABLES:
        yield sql.SQL(query("drop_table")).format(table=sql.Identifier(table))


# ------------------------------------------------------------------------------------------- build


@dataclass(frozen=True, slots=True)
class _Index:
    """An index that upstream makes with CREATE INDEX CONCURRENTLY.

    Attributes:
        migration: Upstream's statement.
        before, after: The text of that statement before and after the table's name.
    """

    name: str
    table: str
    migration: str
    before: str
    after: str

    def create_in(self, schema: str) -> sql.Composable:
        """Return the statement for the table in this schema."""
        return sql.SQL(self.before) + sql.Identifier(schema, self.table) + sql.SQL(self.after)


@dataclass(frozen=True, slots=True)
class _IndexStatus:
    """The state of an index.

    Attributes:
        is_valid: Whether it is valid. `None`: no index has this name.
        workers: The ids of server processes that build it, or would be in the way of a build.
    """

    is_valid: bool | None
    workers: tuple[int, ...]


def _index_of(migration: str) -> _Index | None:
    """Parse a migration. `None`: it makes no index concurrently."""
    found = _CREATE_INDEX_CONCURRENTLY.match(migration)
    if found is None:
        return None
    before, after = migration[: found.start("table")], migration[found.end("table") :]
    return _Index(found["name"], found["table"], migration, before, after)


async def _status_of(conn: Connection, schema: str | None, index: _Index) -> _IndexStatus:
    params = {"schema": schema, "table": index.table, "index": index.name}
    row = await _fetch_one(conn, query("index_status"), params) or (None, ())
    return _IndexStatus(row[0], tuple(row[1]))


async def _build(conn: Connection, schema: str, index: _Index, *, lifts_timeout: bool) -> None:
    """Return when the index is valid: build it, or wait until another process has built it.

    Raises:
        SchemaError: This role may not build it.
        L2DeadlineError: It took too long.
    """
    late = (
        f"The index {index.name} was not there after {_INDEX_SECONDS:.0f} s. CREATE INDEX CONCURRENTLY waits "
        "for every transaction that was open when it began: look for old ones in pg_stat_activity, and "
        "repeat."
    )
    started, is_logged = monotonic(), False
    async with answered_within(_INDEX_SECONDS, late):
        while not (status := await _status_of(conn, schema, index)).is_valid:
            if not status.workers:
                try:
                    if await _try_build(conn, schema, index, status, lifts_timeout=lifts_timeout):
                        continue
                except errors.InsufficientPrivilege as exc:
                    raise _refused(conn, schema, exc) from exc
            if monotonic() - started > _LOG_AFTER_SECONDS and not is_logged:
                is_logged = True
                _log.info(
                    "setup waits, for up to %.0f s, for the index %s: another process builds it, or keeps "
                    "the table %s locked (pid in pg_stat_activity: %s).",
                    _INDEX_SECONDS,
                    index.name,
                    index.table,
                    ", ".join(map(str, status.workers)) or "not known",
                )
            await asyncio.sleep(random.uniform(0.05, 0.25))


async def _try_build(
    conn: Connection, schema: str, index: _Index, status: _IndexStatus, *, lifts_timeout: bool
) -> bool:
    """Build an index, unless another process is about to. Returns whether it was built.

    Two builds that begin at the same time are a deadlock: one holds the lock on the table and waits for every
    snapshot, the other holds a snapshot and waits for the lock. So a process first claims the index, then
    looks whether another one holds the lock, and keeps the claim until it holds the lock itself.
    """
    if await _fetch_one(conn, _with_identity(query("claim_index"), schema)) is None:
        return False
    try:
        if (await _status_of(conn, schema, index)) != status:
            return False
        _log.info(
            "setup builds the index %s on a table with rows. Others can read and write meanwhile. It may "
            "take minutes.",
            index.name,
        )
        async with _timeout_lifted(conn, lifts_timeout):
            if status.is_valid is False:
                drop = sql.SQL(query("drop_index_concurrently"))
                await _execute(conn, drop.format(index=sql.Identifier(schema, index.name)))
                await _execute(conn, _with_identity(query("extend_claim"), schema))
            await _execute(conn, index.create_in(schema))
    except _IN_THE_WAY as exc:
        _log.debug("the index %s will be tried again (%s)", index.name, type(exc).__name__)
        return False
    except errors.QueryCanceled as exc:
        raise L2DeadlineError(
            f"The index {index.name} was not built: its statement was cancelled, by a statement_timeout that "
            "is not Glasspoint's, or by somebody. Without a timeout, run `DROP INDEX CONCURRENTLY IF EXISTS "
            f"{index.name}; {index.migration.strip()}`, and then setup() again."
        ) from exc
    finally:
        if conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE:
            await _execute(conn, _with_identity(query("end_claim"), schema))
    return True


@asynccontextmanager
async def _timeout_lifted(conn: Connection, is_ours: bool) -> AsyncIterator[None]:
    """Lift the statement timeout that our own pool has set.

    It is not lifted if a pooler is in between: the setting would reach other clients.
    """
    row = await _fetch_one(conn, query("server_process"))
    if row is None or not is_ours or row[0] != conn.info.backend_pid:
        yield
        return
    await _execute(conn, "SET statement_timeout = 0")
    try:
        yield
    finally:
        if not conn.closed:
            put_back = query("put_statement_timeout_back")
            await conn.execute(put_back, {"value": row[1]}, prepare=False)


# ------------------------------------------------------------------------------------------- as a script


class _Script:
    """Statements for psql, in transactions that do what `_take_lock` and `_enter` do."""

    def __init__(self, conn: Connection, schema: str) -> None:
        self._conn = conn
        self._schema = schema
        self._lines: list[str] = []
        self._is_in_transaction = False

    def add(self, *added: Statement) -> None:
        """Add statements to the transaction of those before them."""
        for statement in added:
            if not self._is_in_transaction:
                self._is_in_transaction = True
                self._add("BEGIN")
                self._add(sql.SQL(query("wait_for_setup")).format(key=sql.Literal(_SETUP_LOCK)))
                self._add(sql.SQL("SET LOCAL search_path = {}, pg_temp").format(sql.Identifier(self._schema)))
            self._add(statement)

    def add_alone(self, statement: Statement) -> None:
        """Add a statement that cannot run in a transaction, after all those before it."""
        self._commit()
        self._add(statement)

    def text(self) -> str:
        """Return the whole script."""
        self._commit()
        return "\n".join(self._lines)

    def _commit(self) -> None:
        if self._is_in_transaction:
            self._is_in_transaction = False
            self._add("COMMIT")

    def _add(self, statement: Statement) -> None:
        # Nothing else is changed: the body of a function is compared with ours, byte by byte.
        text = statement if isinstance(statement, str) else statement.as_string(self._conn)
        self._lines.append(text.strip().rstrip(";") + ";")


@asynccontextmanager
async def _reading(conn: Connection) -> AsyncIterator[_State]:
    """Look at the database in a read-only transaction, and keep that transaction for the block."""
    async with _autocommit(conn), conn.transaction():
        await _execute(conn, "SET TRANSACTION READ ONLY")
        state = await _look(conn)
        await _enter(conn, state.schema)
        yield state


async def _set_up_script(conn: Connection, state: _State, *, watch: bool) -> str:
    script = _Script(conn, state.schema)
    for number in range(state.migration + 1, len(BasePostgresSaver.MIGRATIONS)):
        migration = BasePostgresSaver.MIGRATIONS[number]
        index = _index_of(migration)
        if index is None:
            script.add(_in_transaction(migration))
        else:
            await _add_index(script, conn, state, index)
        script.add(_record_migration(number))
    standing = await _standing_triggers(conn)
    if not state.has_own_tables:
        script.add(*statements.TABLES, _init_identity())
    if (watch and not state.has_triggers) or (standing and not state.has_own_tables):
        script.add(*_trigger_statements(standing))
    return script.text()


async def _add_index(script: _Script, conn: Connection, state: _State, index: _Index) -> None:
    """Add an index as `set_up` would make it: a table with rows stays open to readers and writers."""
    status = _IndexStatus(None, ())
    has_rows = False
    if index.table in state.tables:
        status = await _status_of(conn, state.schema, index)
        found = sql.SQL(query("has_rows")).format(table=sql.Identifier(index.table))
        has_rows = await _fetch_one(conn, found) == (True,)
    if status.is_valid:
        return
    name = sql.Identifier(state.schema, index.name)
    if not has_rows:
        script.add(sql.SQL(query("drop_index")).format(index=name), _in_transaction(index.migration))
        return
    script.add_alone(sql.SQL(query("drop_index_concurrently")).format(index=name))
    script.add_alone(index.create_in(state.schema))


def _in_transaction(migration: str) -> str:
    """Return a migration of upstream's as it can run in a transaction, without its indentation."""
    return textwrap.dedent(_CONCURRENTLY.sub("", migration))


# ------------------------------------------------------------------------------------------- what is said


def _refused(conn: Connection, schema: str, error: errors.InsufficientPrivilege) -> SchemaError:
    user = sql.Identifier(conn.info.user).as_string()
    return SchemaError(
        f"The role {conn.info.user!r} may not create the checkpoint tables in the database "
        f"{conn.info.dbname!r}, or may not change them ({error.diag.message_primary}): run setup() once with "
        "a role that may, such as the owner of the tables, or let this one: GRANT CREATE ON SCHEMA "
        f"{sql.Identifier(schema).as_string()} TO {user}. A role that only uses the tables needs: {GRANTS}."
    )


def _refused_to_remove(conn: Connection, schema: str, error: errors.InsufficientPrivilege) -> SchemaError:
    return SchemaError(
        f"The role {conn.info.user!r} may not drop Glasspoint's triggers, functions and tables in the "
        f"database {conn.info.dbname!r} ({error.diag.message_primary}). Nothing was removed. Run "
        "`glasspoint setup --remove` with a role that owns them and LangGraph's tables."
    )


async def _why_no_triggers(conn: Connection, schema: str) -> str:
    params = {
        "schema": schema,
        "tables": list(statements.UPSTREAM_TABLES),
        "functions": list(statements.FUNCTIONS),
        "triggers": sorted({trigger.name for trigger in statements.TRIGGERS}),
    }
    row = await _fetch_one(conn, query("lacking_rights"), params)
    grants, functions, tables = row or ([], [], [])
    role = sql.Identifier(conn.info.user).as_string()
    lacks = [f"GRANT {right} TO {role}" for right in grants]
    lacks += [f"the functions {', '.join(functions)} belong to another role"] if functions else []
    lacks += [f"older triggers on {', '.join(tables)} belong to another role"] if tables else []
    why = f"what it lacks: {'; '.join(lacks)}. Or let" if lacks else "let"
    return (
        f"The role {conn.info.user!r} may not make the triggers that tell the cache: {why} the owner of "
        "checkpoints, checkpoint_blobs and checkpoint_writes call setup() once."
    )


async def _warn_of_missing_triggers(conn: Connection, schema: str) -> None:
    about = (conn.info.host, conn.info.port, conn.info.dbname, conn.info.user, schema)
    if about in _warned:
        return
    _warned.add(about)
    _log.warning(
        "The cache is not told what other software writes to the checkpoint tables (AsyncPostgresSaver, "
        "psql, a restore): until an entry expires, reads may return the state before such a write. %s "
        'If no other software writes there, set foreign_writes="ignore".',
        await _why_no_triggers(conn, schema),
    )


# ------------------------------------------------------------------------------------------- helpers


@asynccontextmanager
async def _autocommit(conn: Connection) -> AsyncIterator[None]:
    """Make every statement a transaction of its own, except in `conn.transaction()`.

    This is a setting of psycopg, not of the server.
    """
    autocommit = conn.autocommit
    await conn.rollback()
    await conn.set_autocommit(True)
    try:
        yield
    finally:
        if not conn.closed:
            await conn.set_autocommit(autocommit)


# Never prepared: a prepared statement stays in the session. `None` for no parameters: then `%` has no special
# meaning, and a schema's name may contain it.
async def _execute(conn: Connection, statement: Statement) -> None:
    await conn.execute(cast("Any", statement), prepare=False)


async def _fetch_one(
    conn: Connection, statement: Statement, params: Mapping[str, Any] | None = None
) -> tuple[Any, ...] | None:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(cast("Any", statement), params or None, prepare=False)
        return await cursor.fetchone()


async def _fetch_all(
    conn: Connection, statement: Statement, params: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(cast("Any", statement), params or None, prepare=False)
        return await cursor.fetchall()
