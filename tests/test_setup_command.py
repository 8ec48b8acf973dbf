"""`glasspoint setup`: an init job makes what the service needs, and the service needs no right to make it."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import make_conninfo

from command_line import assert_fits, glasspoint
from glasspoint import CachedPostgresSaver
from glasspoint.demo.embedded import EmbeddedPostgres
from states import open_saver, open_upstream
from steps import Thread

OWN = (
    "glasspoint_l1_journal",
    "glasspoint_identity",
    "glasspoint_caches",
    "glasspoint_crash_marks",
    "glasspoint_set_aside",
)


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
        before = saver._identity.identity
    done = glasspoint("setup", "--renew-signing-key", POSTGRES_URL=database)
    assert done.returncode == 0, done.stderr
    async with open_saver(database, redis_url) as saver:
        after = saver._identity.identity
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
