"""`glasspoint check` says for how many more processes PostgreSQL has connections: each term of that.

What the server really allows is tried: `test_it_says_how_many_connections_the_server_takes` opens as many
connections as `check` has promised, and one more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from copied_postgres import CopiedPostgres
from glasspoint.cli.check import Finding, run_checks
from glasspoint.embedded import EmbeddedPostgres
from steps import until

CLIENTS = """
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def clients(connection: psycopg.Connection[Any]) -> int:
    """How many connections there are, without the one that asks."""
    row = connection.execute(CLIENTS).fetchone()
    return row[0] if row else -1


async def room(url: str, **options: Any) -> Finding:
    """What `check` says of the connections."""
    checks = run_checks(url, "", saver_options=options, timeout_seconds=15.0)
    [found] = [each async for each in checks if each.name == "Connections"]
    return found


class Limits(NamedTuple):
    """What limits connections, and how many are open; `says` is what `check` says then."""

    says: str
    is_enough: bool
    pool: int = 10
    opened: int = 0
    named: str = "other"
    role: int = -1
    database: int = -1


@pytest.mark.parametrize(
    "limits",
    [
        Limits("a process; the server allows this role 197, 1 in use: room for 19 more processes", True),
        Limits("the server allows this role 197, 6 in use: room for 19 more processes", True, opened=5),
        Limits("4 in use (3 of them by Glasspoint): room for 1 more process", True, 98, 3, "glasspoint"),
        Limits("the server allows this role 197, 6 in use: no further process fits", False, 195, 5),
        Limits("the server allows this role 197, 1 in use: no second process fits", False, 100),
        Limits("LIMIT of the role checked is 20, 1 in use: room for 1 more process", True, opened=1, role=20),
        Limits("LIMIT of the role checked is 20, 11 in use: no further process", False, opened=11, role=20),
        Limits("LIMIT of the database is 15, 0 in use: no second process fits", False, database=15),
        Limits("LIMIT of the database is 20, 1 in use: room for 1 more process", True, 10, 1, database=20),
        Limits("LIMIT of the role checked is 30, 1 in use: room for 2", True, 10, 1, role=30, database=40),
        Limits("the server allows this role 197, 1 in use: room for 19 more processes", True, role=196),
    ],
)
async def test_it_says_for_how_many_processes_there_are_connections(
    limits: Limits, postgres: EmbeddedPostgres, database: str
) -> None:
    """197: of 200, three are kept for superusers. One of those in use is that of the test."""
    url = make_conninfo(database, user="checked")
    with psycopg.connect(postgres.url, autocommit=True) as admin, ExitStack() as opened:
        admin.execute(f"CREATE ROLE checked LOGIN CONNECTION LIMIT {limits.role}")
        admin.execute(f"ALTER DATABASE test CONNECTION LIMIT {limits.database}")
        try:
            for _ in range(limits.opened):
                opened.enter_context(psycopg.connect(url, application_name=limits.named))
            await until(lambda: clients(admin) == limits.opened)
            found = await room(url, pool_max_size=limits.pool)
        finally:
            admin.execute("ALTER DATABASE test CONNECTION LIMIT -1")
            admin.execute("DROP ROLE checked")
    assert found.detail.startswith(f"{limits.pool} connections a process; ")
    assert limits.says in found.detail
    assert found.status == ("ok" if limits.is_enough else "warning")
    assert limits.is_enough or "Use a smaller CHECKPOINT_POOL_MAX_SIZE" in found.detail
    assert found.detail.endswith("process") == limits.says.endswith("1 more process")


# ------------------------------------------------------------------ what the server keeps for some roles


class Reserving(CopiedPostgres):
    """A server that keeps most of its 200 connections for superusers, and some for a predefined role."""

    def _initialise(self, initdb: Path, data: Path) -> None:
        super()._initialise(initdb, data)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write("superuser_reserved_connections = 190\nreserved_connections = 3\n")


@pytest.fixture(scope="module")
def reserving() -> Iterator[Reserving]:
    with Reserving() as server:
        yield server


@pytest.mark.parametrize(
    ("role", "options", "allowed"),
    [
        ("", "", 7),
        ("IN ROLE pg_use_reserved_connections", "", 10),
        ("IN ROLE pg_use_reserved_connections NOINHERIT", "", 7),
        ("IN ROLE pg_use_reserved_connections, other", "-c role=other", 10),
    ],
    ids=["ordinary", "may use them", "does not inherit that", "takes another role"],
)
async def test_it_says_how_many_connections_the_server_takes(
    role: str, options: str, allowed: int, reserving: Reserving
) -> None:
    url = make_conninfo(reserving.url, user="checked", options=options)
    with psycopg.connect(reserving.url, autocommit=True) as admin, ExitStack() as opened:
        admin.execute("CREATE ROLE other")
        admin.execute(f"CREATE ROLE checked LOGIN {role}")
        try:
            found = await room(url, pool_max_size=1)
            await until(lambda: not clients(admin))
            for _ in range(allowed - 1):
                opened.enter_context(psycopg.connect(url))
            with pytest.raises(psycopg.OperationalError, match="remaining connection slots"):
                psycopg.connect(url)
        finally:
            opened.close()
            admin.execute("DROP ROLE checked, other")
    assert f"the server allows this role {allowed}, 1 in use: room for {allowed - 1} more" in found.detail


async def test_nothing_is_kept_from_a_superuser(reserving: Reserving) -> None:
    url = make_conninfo(reserving.url, user="checked")
    with psycopg.connect(reserving.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE checked LOGIN SUPERUSER CONNECTION LIMIT 4")
        admin.execute("ALTER DATABASE postgres CONNECTION LIMIT 4")
        try:
            found = await room(url)
        finally:
            admin.execute("ALTER DATABASE postgres CONNECTION LIMIT -1")
            admin.execute("DROP ROLE checked")
    assert "the server allows this role 200, 1 in use: room for 19 more" in found.detail


# ------------------------------------------------------------------ what is no client

Session = tuple[int, str | None, str | None, str, str | None]
"""Process, role, database, name and kind, as `pg_stat_activity` shows them to a role without rights."""

_BACKGROUND: list[Session] = [
    (1, None, None, "", None),  # the launcher of autovacuum
    (2, None, "test", "", None),  # one of its workers
    (3, "postgres", None, "", None),  # the launcher of logical replication
    (4, "checked", "test", "", "parallel worker"),
]
_CLIENTS: list[Session] = [
    (5, "checked", "test", "glasspoint", "client backend"),
    (6, "postgres", "test", "", None),  # of another role
]


async def room_beside(database: str, sessions: list[Session], *, limit: int = -1, **options: Any) -> Finding:
    """What `check` says of these sessions.

    They are made up, in a table that stands before the view: nobody can wait for a worker of autovacuum.
    """
    url = make_conninfo(database, user="checked", options="-c search_path=seen,pg_catalog")
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE checked LOGIN CONNECTION LIMIT {limit}")
        try:
            admin.execute("CREATE SCHEMA seen AUTHORIZATION checked")
            admin.execute(
                "CREATE TABLE seen.pg_stat_activity "
                "(pid int, usesysid oid, datid oid, application_name text, backend_type text)"
            )
            admin.execute("GRANT SELECT ON seen.pg_stat_activity TO checked")
            for pid, role, name, application, kind in sessions:
                admin.execute(
                    "INSERT INTO seen.pg_stat_activity VALUES (%s, (SELECT oid FROM pg_roles WHERE rolname "
                    "= %s), (SELECT oid FROM pg_database WHERE datname = %s), %s, %s)",
                    (pid, role, name, application, kind),
                )
            return await room(url, **options)
        finally:
            admin.execute("DROP SCHEMA IF EXISTS seen CASCADE")
            admin.execute("DROP ROLE checked")


async def test_background_processes_are_no_clients(database: str) -> None:
    found = await room_beside(database, [*_BACKGROUND, *_CLIENTS])
    assert "allows this role 197, 2 in use (1 of them by Glasspoint)" in found.detail


async def test_with_more_clients_than_a_limit_that_was_lowered_there_is_no_room(database: str) -> None:
    of_role: list[Session] = [(n, "checked", "test", "", "client backend") for n in range(5)]
    found = await room_beside(database, of_role, limit=3, pool_max_size=1)
    assert found.status == "warning"
    assert "the role checked is 3, 5 in use: no further process fits" in found.detail


async def test_a_process_of_replication_is_no_client(database: str) -> None:
    """It has a role and a database, and `max_wal_senders` counts it, not `max_connections`."""
    url = make_conninfo(database, user="checked")
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE ROLE checked LOGIN REPLICATION CONNECTION LIMIT 20")
        try:
            with psycopg.connect(url, replication="database", autocommit=True):
                found = await room(url)
        finally:
            admin.execute("DROP ROLE checked")
    assert re.search(r"LIMIT of the role checked is 20, 0 in use: room for 2 more", found.detail)
