"""Databases for tests: emptied, not made again. Making one, or its tables, takes longer than most tests.

Open this file when a test finds something in its database that it has not put there.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from glasspoint.cli.setup import run_setup
from glasspoint.embedded import EmbeddedPostgres

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

# In place of the settings of the database, which a test may have changed.
_WHATEVER_A_TEST_HAS_SET: Final = (
    "-c search_path=public -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
)

_DESERT: Final = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    ALTER DATABASE test RESET ALL
"""

# The schema as a new database has it.
_AS_NEW: Final[tuple[LiteralString, ...]] = (
    "SET client_min_messages = error",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public AUTHORIZATION pg_database_owner",
    "GRANT USAGE ON SCHEMA public TO PUBLIC",
)

# The same as long as nobody changes a table, an index, a trigger, a function or a right: that writes a row of
# a catalogue. VACUUM and ANALYZE write `reltuples` and `relpages` in place. What has grown is made again.
_STATE: Final = """
    SELECT
        (SELECT (count(*), sum(hashtextextended(concat(oid, xmin, reltuples, relpages), 0)))
         FROM pg_class WHERE oid >= 16384)::text,
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
        ) AS every)::text,
        (SELECT (count(*), sum(hashtextextended(concat(v, xmin), 0))) FROM checkpoint_migrations)::text,
        (SELECT (count(*), max(schema_version)) FROM glasspoint_identity)::text,
        pg_total_relation_size('checkpoints') + pg_total_relation_size('checkpoint_blobs')
            + pg_total_relation_size('checkpoint_writes') > 2000000
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

_made: dict[Path, tuple[tuple[object, ...], sql.Composed]] = {}
"""What `_STATE` was when setup had made the tables, and the statements that empty them, by the directory of
the server."""


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
        state, empty = _made.get(server.directory, ((), None))
        if empty is not None and _state(connection) == state:
            connection.execute(empty)
            return url
        _remove_everything(connection)
        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop
            thread.submit(lambda: asyncio.run(run_setup(url, "set up", foreign_writes="watch"))).result()
        _made[server.directory] = _state(connection), _emptying(connection)
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


def _state(connection: psycopg.Connection) -> tuple[object, ...]:
    try:
        return connection.execute(_STATE).fetchone() or ()
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
