"""Databases for tests: emptied, not made again. Making one, or its tables, takes longer than most tests.

Open this file when a test finds something in its database that it has not put there.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

from glasspoint.embedded import EmbeddedPostgres
from glasspoint.l2.schema import set_up_script

__all__ = ["remove_others", "with_tables", "without_tables"]

_TEST: Final = "test"
"""The name of the database."""

_OTHER_DATABASES: Final = (
    "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname NOT IN ('postgres', 'test')"
)
_OTHER_ROLES: Final = "SELECT rolname FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' AND rolname <> 'postgres'"

# What a test that ended in the middle has left.
_OTHER_SCHEMAS: Final = (
    "SELECT nspname FROM pg_namespace "
    "WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('public', 'information_schema')"
)

# In place of the settings of the database, which a test may have changed. What is made here outlives a crash.
_WHATEVER_A_TEST_HAS_SET: Final = (
    "-c search_path=public -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 "
    "-c synchronous_commit=on"
)

# Not `pg_stat_activity`: planning the view takes a millisecond.
_DESERT: Final = """
    SELECT pg_terminate_backend(pg_stat_get_backend_pid(id), 5000) FROM pg_stat_get_backend_idset() AS id
    WHERE pg_stat_get_backend_dbid(id) = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND pg_stat_get_backend_pid(id) <> pg_backend_pid();
    ALTER DATABASE test RESET ALL
"""

# The schema as a new database has it.
_AS_NEW: Final[tuple[LiteralString, ...]] = (
    "SET client_min_messages = error",
    "DROP SCHEMA IF EXISTS public CASCADE",
    "CREATE SCHEMA public AUTHORIZATION pg_database_owner",
    "GRANT USAGE ON SCHEMA public TO PUBLIC",
)

# Of the tables, the rows that setup has made; and what VACUUM and ANALYZE write in place. What has grown is
# made again.
_ROWS: Final = """
    (SELECT (count(*), sum(hashtextextended(concat(oid, xmin, reltuples, relpages), 0)))
     FROM pg_class WHERE oid >= 16384)::text,
    (SELECT (count(*), sum(hashtextextended(concat(v, xmin), 0))) FROM checkpoint_migrations)::text,
    (SELECT (count(*), max(schema_version)) FROM glasspoint_identity)::text,
    pg_total_relation_size('checkpoints') + pg_total_relation_size('checkpoint_blobs')
        + pg_total_relation_size('checkpoint_writes') > 2000000
"""

# The same as long as nobody changes a table, an index, a trigger, a function or a right: that writes a row of
# a catalogue.
_STATE: Final = f"""
    SELECT
        {_ROWS},
        (SELECT (count(*), sum(hashtextextended(concat(attrelid, attnum, xmin), 0)))
         FROM pg_attribute WHERE attrelid >= 16384)::text,
        (SELECT (count(*), sum(hashtextextended(concat(oid, xmin), 0))) FROM (
            SELECT oid, xmin FROM pg_proc WHERE oid >= 16384
            UNION ALL SELECT oid, xmin FROM pg_type WHERE oid >= 16384
            UNION ALL SELECT oid, xmin FROM pg_namespace
            UNION ALL SELECT oid, xmin FROM pg_constraint
            UNION ALL SELECT oid, xmin FROM pg_trigger
            UNION ALL SELECT oid, xmin FROM pg_policy
            UNION ALL SELECT oid, xmin FROM pg_event_trigger
            UNION ALL SELECT oid, xmin FROM pg_default_acl
            UNION ALL SELECT oid, xmin FROM pg_extension
            UNION ALL SELECT oid, xmin FROM pg_publication
            UNION ALL SELECT oid, xmin FROM pg_statistic_ext
        ) AS every)::text
"""

# How often rows of these catalogues were written. Each process of the server reports that before it ends. As
# long as it stays the same, so does `_STATE`, which takes three times as long to read. A crash of the server
# forgets the numbers, and gives them another time from which they count.
_WRITES: Final = f"""
    SELECT
        {_ROWS},
        (SELECT sum(
            pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid)
            + pg_stat_get_tuples_deleted(oid)
        ) FROM unnest(
            '{{pg_class, pg_attribute, pg_proc, pg_type, pg_namespace, pg_constraint, pg_trigger, pg_policy,
            pg_event_trigger, pg_default_acl, pg_extension, pg_publication, pg_statistic_ext}}'::regclass[]
        ) AS oid),
        pg_stat_get_bgwriter_stat_reset_time()
"""

_TABLES: Final = """
    SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
    AND relname NOT IN ('checkpoint_migrations', 'glasspoint_identity')
"""

# As in other tables that setup has made: see `init_identity` in setup.sql.
_ANOTHER_IDENTITY: Final = """
    UPDATE glasspoint_identity SET
        id = replace(gen_random_uuid()::text, '-', ''),
        content_id = replace(gen_random_uuid()::text, '-', ''),
        signing_key = sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')),
        index_claimed_until = NULL
"""


@dataclass
class _Made:
    """The tables of a server.

    Attributes:
        state: What `_STATE` was when setup had made them.
        writes: What `_WRITES` was when the state was as that the last time.
        empty: The statements that empty them.
    """

    state: tuple[object, ...]
    writes: tuple[object, ...]
    empty: sql.Composed

    def stand(self, connection: psycopg.Connection) -> bool:
        """Tell whether nobody has changed them."""
        writes = _read(connection, _WRITES)
        if writes != self.writes:
            if _read(connection, _STATE) != self.state:
                return False
            self.writes = writes
        return True


_made: dict[Path, _Made] = {}
"""By the directory of the server."""


def without_tables(server: EmbeddedPostgres) -> str:
    """Make the database `test` as empty as a new one; return its URL. Nobody is connected to it."""
    with _deserted(server) as connection:
        _remove_everything(connection)
    return _url(server)


def with_tables(server: EmbeddedPostgres) -> str:
    """Make the tables in the database `test` as `setup` makes them, without rows; return its URL.

    Nobody is connected to it, and its identity is another one each time. A test of how tables are made takes
    an empty database.
    """
    url = _url(server)
    with _deserted(server) as connection:
        made = _made.get(server.directory)
        if made is not None and made.stand(connection):
            connection.execute(made.empty)
            return url
        _remove_everything(connection)
        connection.execute(_script(url))
        state, writes = _read(connection, _STATE), _read(connection, _WRITES)
        _made[server.directory] = _Made(state, writes, _emptying(connection))
    return url


def remove_others(server: EmbeddedPostgres) -> None:
    """Remove what a test has made in a server of its own: all but the database `test`."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        for (name,) in connection.execute(_OTHER_DATABASES).fetchall():
            server.drop_database(name)
        if roles := connection.execute(_OTHER_ROLES).fetchall():
            server.drop_database(_TEST)  # they may have rights there
        for (name,) in roles:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
        _remove_everything(connection)


def _deserted(server: EmbeddedPostgres) -> psycopg.Connection:
    """Connect to the database, disconnect everybody else, and take its settings back.

    Make the database if it is not there.
    """
    conninfo = make_conninfo(_url(server), options=_WHATEVER_A_TEST_HAS_SET)
    try:
        connection = psycopg.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as exc:
        if "does not exist" not in str(exc):
            raise
        server.create_database(_TEST)
        connection = psycopg.connect(conninfo, autocommit=True)
    connection.execute(_DESERT)
    return connection


def _url(server: EmbeddedPostgres) -> str:
    return server.url.replace("/postgres?", f"/{_TEST}?")


def _remove_everything(connection: psycopg.Connection) -> None:
    for (schema,) in connection.execute(_OTHER_SCHEMAS).fetchall():
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    for statement in _AS_NEW:
        connection.execute(statement)


@functools.cache
def _script(url: str) -> LiteralString:
    """Return what `setup` runs in an empty database, as one text: it takes half the time of `setup`."""

    async def read() -> str:
        connect = psycopg.AsyncConnection[DictRow].connect
        async with await connect(url, autocommit=True, row_factory=dict_row) as connection:
            return await set_up_script(connection, foreign_writes="watch")

    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop
        return thread.submit(lambda: asyncio.run(read())).result()


def _read(connection: psycopg.Connection, query: LiteralString) -> tuple[object, ...]:
    try:
        return connection.execute(query).fetchone() or ()
    except psycopg.errors.UndefinedTable:
        return ("no tables",)


def _emptying(connection: psycopg.Connection) -> sql.Composed:
    tables = [sql.Identifier(name) for (name,) in connection.execute(_TABLES)]
    return sql.SQL("; ").join(
        [
            sql.SQL("SET session_replication_role = replica"),  # no trigger notes it
            *(sql.SQL("DELETE FROM {}").format(table) for table in tables),
            sql.SQL("SELECT setval(pg_get_serial_sequence('glasspoint_l1_journal', 'id'), 1, false)"),
            sql.SQL(_ANOTHER_IDENTITY),
        ]
    )
