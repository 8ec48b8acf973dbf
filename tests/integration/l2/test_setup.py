"""`setup()`: however many processes call it at once, and through whatever pooler, the tables are there
afterwards, nothing stays behind in a session, and what is there already is left alone."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from psycopg.conninfo import make_conninfo
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.errors import ConfigurationError, L2DeadlineError, SchemaError
from glasspoint.l2 import schema
from pgbouncer import PROGRAM, pgbouncer
from states import make_pool, open_saver, open_upstream
from steps import Thread, until

MIGRATIONS = BasePostgresSaver.MIGRATIONS
INDEXES = ("checkpoints_thread_id_idx", "checkpoint_blobs_thread_id_idx", "checkpoint_writes_thread_id_idx")
BEFORE_INDEXES = 5
"""The last of upstream's migrations before those that make indexes concurrently."""

OWN = {
    "glasspoint_l1_journal",
    "glasspoint_identity",
    "glasspoint_caches",
    "glasspoint_crash_marks",
    "glasspoint_fences",
    "glasspoint_retention",
    "glasspoint_set_aside",
}

pooled = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")

POOL_SIZE = 3


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


async def sql(url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        cursor = await conn.execute(statement, params or None, prepare=False)
        return await cursor.fetchall() if cursor.description else []


async def value(url: str, statement: str, *params: Any) -> Any:
    [[found]] = await sql(url, statement, *params)
    return found


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn


def record(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    """Return the list that every statement of the connection goes into from now on."""
    sent: list[str] = []

    class Recording(psycopg.AsyncCursor[Any]):
        async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            sent.append(query if isinstance(query, str) else query.as_string())
            return await super().execute(query, *args, **options)

    conn.cursor_factory = Recording
    return sent


async def set_up(url: str, foreign_writes: schema.ForeignWrites = "watch") -> None:
    async with connect(url) as conn:
        await schema.set_up(conn, foreign_writes=foreign_writes)


async def stand(url: str) -> bool:
    async with connect(url) as conn:
        return await schema.triggers_stand(conn)


async def make_old_tables(url: str, *, rows: int) -> None:
    """Upstream's tables as an old version of it has made them, before the indexes, with some rows in each."""
    for number, migration in enumerate(MIGRATIONS[: BEFORE_INDEXES + 1]):
        await sql(url, migration)
        await sql(url, "INSERT INTO checkpoint_migrations (v) VALUES (%s)", number)
    series = f"generate_series(1, {rows}) AS n"
    await sql(
        url,
        "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) "
        f"SELECT 'old', n::text, '{{}}' FROM {series}",
    )
    await sql(
        url,
        "INSERT INTO checkpoint_blobs (thread_id, channel, version, type) "
        f"SELECT 'old', 'x', n::text, 'empty' FROM {series}",
    )
    await sql(
        url,
        "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob) "
        f"SELECT 'old', n::text, 't', 0, 'x', '' FROM {series}",
    )


async def is_valid(url: str, index: str) -> bool | None:
    """Whether an index is valid; `None`: it is not there."""
    found = await sql(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", index)
    return found[0][0] if found else None


async def everything_is_there(url: str) -> bool:
    tables = await sql(url, "SELECT relname FROM pg_class WHERE relname = ANY(%s)", list(OWN))
    return (
        {name for (name,) in tables} == OWN
        and await sql(url, "SELECT v FROM checkpoint_migrations ORDER BY v")
        == [(number,) for number in range(len(MIGRATIONS))]
        and [await is_valid(url, index) for index in INDEXES] == [True, True, True]
        and await stand(url)
    )


@asynccontextmanager
async def old_snapshot(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A transaction that CREATE INDEX CONCURRENTLY waits for, until it ends."""
    async with await psycopg.AsyncConnection.connect(url) as conn:
        await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await conn.execute("SELECT count(*) FROM pg_class")
        yield conn
        await conn.rollback()


async def builder(url: str) -> int | None:
    """The backend that builds an index just now, and waits for an old snapshot."""
    found = await sql(
        url,
        "SELECT pid FROM pg_stat_progress_create_index "
        "WHERE datname = current_database() AND phase LIKE 'waiting%'",
    )
    return found[0][0] if found else None


async def leave_an_invalid_index(url: str, number: int) -> None:
    """What a crash in the middle of upstream's setup leaves."""
    async with old_snapshot(url):
        building = asyncio.create_task(sql(url, MIGRATIONS[number]))
        pid = await until(lambda: builder(url))
        await sql(url, "SELECT pg_cancel_backend(%s)", pid)
        with suppress(psycopg.errors.QueryCanceled):
            await building
    assert await is_valid(url, INDEXES[number - BEFORE_INDEXES - 1]) is False


# ------------------------------------------------------------------ through a pooler


@pytest.fixture
def pooler(postgres: EmbeddedPostgres, database: str) -> Iterator[str]:
    """The URL of the database through a PgBouncer in transaction mode."""
    with pgbouncer(postgres, "test", size=POOL_SIZE) as url:
        yield url


async def nothing_is_left_in_any_session(pooler: str, database: str) -> None:
    """Nothing is locked, and whoever gets one of the pooler's connections finds it as it was made."""
    locks = "SELECT locktype, mode FROM pg_locks WHERE pid <> pg_backend_pid() AND locktype <> 'virtualxid'"
    assert await sql(database, locks) == []
    settings = (
        "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), "
        "current_setting('search_path'), current_setting('transaction_isolation'), "
        "(SELECT count(*) FROM pg_prepared_statements)"
    )
    [plain] = await sql(database, settings)
    seen = set()
    async with AsyncExitStack() as opened:
        for _ in range(POOL_SIZE):
            conn = await opened.enter_async_context(await psycopg.AsyncConnection.connect(pooler))
            # A transaction that is open keeps its connection, so each of these gets another one.
            cursor = await conn.execute(f"{settings}, pg_backend_pid()", prepare=False)
            *found, pid = await cursor.fetchone() or ()
            assert tuple(found) == plain
            seen.add(pid)
    assert len(seen) == POOL_SIZE, "each connection of the pooler was looked at"


@pooled
@pytest.mark.parametrize("rows", [0, 3])
async def test_ten_savers_behind_a_pooler_set_up_at_once_and_leave_nothing_behind(
    rows: int, pooler: str, database: str, redis_url: str
) -> None:
    if rows:
        await make_old_tables(database, rows=rows)
    savers = await asyncio.gather(
        *(
            CachedPostgresSaver.create(pooler, redis_url, prepare_threshold=None, pool_max_size=2)
            for _ in range(10)
        )
    )
    try:
        assert await everything_is_there(database)
        await asyncio.gather(*(Thread(f"thread {i}").put(saver) for i, saver in enumerate(savers)))
    finally:
        await asyncio.gather(*(saver.close() for saver in savers))
    await until(lambda: _is_quiet(database))
    await nothing_is_left_in_any_session(pooler, database)


async def _is_quiet(database: str) -> bool:
    """What a saver was doing in the background when it was closed has ended in the server, too."""
    active = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    return bool(await value(database, active) == 0)


@pooled
@pytest.mark.parametrize("is_pooled", [True, False])
async def test_a_timeout_is_lifted_only_on_a_connection_to_postgres_itself(
    is_pooled: bool, pooler: str, database: str
) -> None:
    """Through a pooler, the setting would reach others, even where a pool of ours has set it before."""
    await make_old_tables(database, rows=3)
    async with connect(pooler if is_pooled else database) as conn:
        sent = record(conn)
        await schema.set_up(conn, foreign_writes="watch", lifts_timeout=True)
    assert await everything_is_there(database)
    assert any("SET statement_timeout" in statement for statement in sent) != is_pooled


# ------------------------------------------------------------------ at once


async def test_others_that_set_up_hold_nothing_that_a_build_waits_for(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is polled: a statement that waited for it would hold a snapshot."""
    monkeypatch.setattr(schema, "_LOG_AFTER_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "glasspoint.l2")
    async with connect(database) as holder, connect(database) as conn:
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock(%s)", [schema._SETUP_LOCK])
            setting_up = asyncio.create_task(schema.set_up(conn, foreign_writes="watch"))
            await until(lambda: "setup waits" in caplog.text)
            for _ in range(20):
                waiting = "SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted"
                assert await value(database, waiting, conn.info.backend_pid) == 0
            assert await value(database, "SELECT to_regclass('checkpoints')") is None
        await setting_up
    assert len([r for r in caplog.records if "setup waits" in r.getMessage()]) == 1, "said once"
    assert await everything_is_there(database)


async def test_a_setup_that_never_gets_its_turn_fails_and_says_why(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_TURN_SECONDS", 0.2)
    async with connect(database) as holder, holder.transaction():
        await holder.execute("SELECT pg_advisory_xact_lock(%s)", [schema._SETUP_LOCK])
        with pytest.raises(L2DeadlineError, match="another process set the tables up"):
            await set_up(database)


async def test_what_upstream_s_own_setup_is_making_at_the_moment_is_waited_for(database: str) -> None:
    """It takes no lock that others could see; what it has made and not committed is in the way."""
    async with connect(database) as other:
        async with other.transaction():
            await other.execute(MIGRATIONS[0])
            await other.execute("INSERT INTO checkpoint_migrations (v) VALUES (0)")
            setting_up = asyncio.create_task(set_up(database))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await until(lambda: value(database, waiting))
        await setting_up
    assert await everything_is_there(database)


async def test_writers_that_keep_the_tables_locked_are_waited_for(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For moments at a time, so that others that write do not queue behind the setup."""
    monkeypatch.setattr(schema, "_LOCK_TIMEOUTS_SECONDS", (0.05,))
    async with open_upstream(database):
        pass
    gave_up = 0
    really = schema._take_lock

    async def counted(*args: Any) -> bool:
        nonlocal gave_up
        gave_up += 1
        return await really(*args)

    monkeypatch.setattr(schema, "_take_lock", counted)
    async with connect(database) as writer:
        async with writer.transaction():
            await writer.execute("INSERT INTO checkpoints VALUES ('a', '', '1', NULL, NULL, '{}', '{}')")
            setting_up = asyncio.create_task(set_up(database))
            await until(lambda: gave_up > 3)
        await setting_up
    assert await everything_is_there(database)


# ------------------------------------------------------------------ indexes


async def test_ten_at_once_build_the_indexes_of_tables_with_rows(database: str) -> None:
    await make_old_tables(database, rows=100)
    await asyncio.gather(*(set_up(database) for _ in range(10)))
    assert await everything_is_there(database)


async def test_an_empty_table_gets_its_indexes_without_waiting_for_anybody(database: str) -> None:
    await make_old_tables(database, rows=0)
    async with old_snapshot(database):  # which CREATE INDEX CONCURRENTLY would wait for
        await set_up(database)
        assert await everything_is_there(database)


async def test_an_index_that_a_crash_has_left_is_built_anew(database: str) -> None:
    await make_old_tables(database, rows=3)
    await leave_an_invalid_index(database, BEFORE_INDEXES + 1)
    await set_up(database)
    assert await everything_is_there(database)


async def test_an_index_that_a_crash_has_left_on_a_table_that_is_empty_is_built_anew(database: str) -> None:
    await make_old_tables(database, rows=3)
    await leave_an_invalid_index(database, BEFORE_INDEXES + 1)
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
        await sql(database, f"DELETE FROM {table}")  # not TRUNCATE, which makes an index valid
    async with old_snapshot(database):  # which CREATE INDEX CONCURRENTLY would wait for
        await set_up(database)
        assert await everything_is_there(database)


async def test_an_index_that_another_process_builds_is_waited_for(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks invalid, too, until it is done: to drop it would be wrong, and a second one a deadlock."""
    monkeypatch.setattr(schema, "_LOG_AFTER_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "glasspoint.l2")
    await make_old_tables(database, rows=3)
    async with old_snapshot(database):
        building = asyncio.create_task(sql(database, MIGRATIONS[BEFORE_INDEXES + 1]))
        await until(lambda: builder(database))
        theirs = await value(database, "SELECT to_regclass(%s)::oid", INDEXES[0])
        setting_up = asyncio.create_task(set_up(database))
        await until(lambda: "setup waits" in caplog.text)
        newest = await value(database, "SELECT max(v) FROM checkpoint_migrations")
        assert newest == BEFORE_INDEXES, "recorded only when it is valid"
    await building
    await setting_up
    assert await value(database, "SELECT to_regclass(%s)::oid", INDEXES[0]) == theirs
    assert await everything_is_there(database)
    assert len([r for r in caplog.records if "setup waits" in r.getMessage()]) == 1, "said once"


async def test_an_index_that_is_never_done_is_not_waited_for_without_end(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_INDEX_SECONDS", 0.3)
    await make_old_tables(database, rows=3)
    async with old_snapshot(database):
        building = asyncio.create_task(sql(database, MIGRATIONS[BEFORE_INDEXES + 1]))
        await until(lambda: builder(database))
        for _ in range(2):
            with pytest.raises(L2DeadlineError, match=f"{INDEXES[0]} was not there.*pg_stat_activity"):
                await set_up(database)
    await building


async def test_a_process_that_is_about_to_build_is_waited_for_and_one_that_died_is_not(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between looking whether somebody builds and building, a claim keeps others away, for ten seconds."""
    monkeypatch.setattr(schema, "_LOG_AFTER_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "glasspoint.l2")
    await set_up(database)
    await sql(database, f"DROP INDEX {INDEXES[2]}")
    await sql(database, "DELETE FROM checkpoint_migrations WHERE v > %s", BEFORE_INDEXES + 2)
    await sql(
        database,
        "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob) "
        "VALUES ('old', '1', 't', 0, 'x', '')",
    )
    claim = "UPDATE glasspoint_identity SET index_claimed_until = now() + %s::interval"
    await sql(database, claim, "1 hour")
    setting_up = asyncio.create_task(set_up(database))
    await until(lambda: "setup waits" in caplog.text)
    assert await is_valid(database, INDEXES[2]) is None
    await sql(database, claim, "-1 s")
    await setting_up
    assert await everything_is_there(database)
    assert await value(database, "SELECT index_claimed_until FROM glasspoint_identity") is None


async def test_our_own_statement_timeout_is_lifted_for_an_index_and_put_back(
    database: str, redis_url: str
) -> None:
    await make_old_tables(database, rows=3)
    async with CachedPostgresSaver.from_conn_string(
        database, redis_url=redis_url, pool_max_size=1, write_deadline_seconds=0.3, audit_ratio=0.0
    ) as saver:
        async with old_snapshot(database):
            setting_up = asyncio.ensure_future(saver.setup())
            longer = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'test' "
                "AND query LIKE '%CREATE INDEX%' AND pid <> pg_backend_pid() AND state = 'active' "
                "AND clock_timestamp() - query_start > interval '500 ms'"
            )
            await until(lambda: value(database, longer))
        await setting_up
        async with saver._l2.connections.checkout() as conn:
            cursor = await conn.execute("SELECT current_setting('statement_timeout') AS it")
            assert (await cursor.fetchone() or {})["it"] == "300ms"
    assert await everything_is_there(database)


async def test_a_statement_timeout_that_is_not_ours_stays_and_the_error_says_what_to_run(
    database: str, redis_url: str
) -> None:
    await make_old_tables(database, rows=3)
    conninfo = make_conninfo(database, options="-c statement_timeout=200")
    async with (
        make_pool(conninfo, size=1) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        saver = CachedPostgresSaver(AsyncPostgresSaver(pool), redis, pool)
        async with old_snapshot(database):
            with pytest.raises(L2DeadlineError, match=r"DROP INDEX .*CREATE INDEX CONCURRENTLY .*setup\(\)"):
                await saver.setup()
        await saver.setup()
        async with pool.connection() as conn:
            cursor = await conn.execute("SELECT current_setting('statement_timeout') AS it")
            assert (await cursor.fetchone() or {})["it"] == "200ms"
        await saver.close()
    assert await everything_is_there(database)


async def test_every_concurrent_migration_of_the_installed_version_is_understood() -> None:
    for migration in MIGRATIONS:
        index = schema._index_of(migration)
        assert (index is not None) == ("CONCURRENTLY" in migration)


# ------------------------------------------------------------------ what is there already


async def test_a_second_setup_reads_twice_and_changes_nothing(database: str) -> None:
    await set_up(database)
    before = await sql(database, "SELECT id, content_id, signing_key FROM glasspoint_identity")
    async with connect(database) as conn:
        sent = record(conn)
        await schema.set_up(conn, foreign_writes="watch")
    assert len(sent) == 2
    assert await sql(database, "SELECT id, content_id, signing_key FROM glasspoint_identity") == before


async def test_the_identity_is_random_and_made_once(postgres: EmbeddedPostgres, database: str) -> None:
    await set_up(database)
    [(id_, content_id, key, version)] = await sql(
        database, "SELECT id, content_id, signing_key, schema_version FROM glasspoint_identity"
    )
    assert len(id_) == len(content_id) == len(key) == 32
    assert id_ != content_id
    assert version == schema.VERSION
    with pytest.raises(psycopg.errors.UniqueViolation):
        await sql(
            database,
            "INSERT INTO glasspoint_identity (id, content_id, signing_key, schema_version) "
            "VALUES ('', '', '', 1)",
        )
    other = postgres.create_database("second_of_test_setup")
    try:
        await set_up(other)
        assert not {id_, content_id, key} & set(
            (await sql(other, "SELECT id, content_id, signing_key FROM glasspoint_identity"))[0]
        )
    finally:
        postgres.drop_database("second_of_test_setup")


async def test_an_older_glasspoint_s_journal_is_migrated_with_what_stands_in_it(database: str) -> None:
    async with open_upstream(database):
        pass
    await sql(
        database,
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
    )
    add = "INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns) VALUES ('glasspoint', %s, '')"
    await sql(database, add, "a")
    await set_up(database)
    await sql(database, add, "b")  # the older one, which is still running
    assert await sql(database, "SELECT thread_id, source FROM glasspoint_l1_journal ORDER BY id") == [
        ("a", None),
        ("b", None),
    ]
    assert await everything_is_there(database)


async def test_a_table_that_somebody_has_dropped_is_made_again(database: str) -> None:
    await set_up(database)
    for table in sorted(OWN):
        await sql(database, f"DROP TABLE {table}")
        await set_up(database)
        assert await everything_is_there(database)


async def test_what_a_newer_glasspoint_has_made_is_left_alone(database: str) -> None:
    await set_up(database)
    await sql(database, "UPDATE glasspoint_identity SET schema_version = %s", schema.VERSION + 1)
    await sql(database, "DROP TRIGGER glasspoint_insert ON checkpoints")
    await set_up(database)
    assert await value(database, "SELECT schema_version FROM glasspoint_identity") == schema.VERSION + 1
    assert await value(database, "SELECT count(*) FROM pg_trigger WHERE tgname = 'glasspoint_insert'") == 1


async def test_migrations_of_a_newer_upstream_are_done_in_order(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_up(database)
    async with open_upstream(database) as upstream:
        await Thread("a").put(upstream)
    newer = [
        "ALTER TABLE checkpoints ADD COLUMN more text",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS more_idx ON checkpoints (more);",
        "DROP INDEX CONCURRENTLY IF EXISTS checkpoints_thread_id_idx",
        "ALTER TABLE checkpoints ADD COLUMN last text",
    ]
    monkeypatch.setattr(BasePostgresSaver, "MIGRATIONS", [*MIGRATIONS, *newer])
    await set_up(database)
    assert await value(database, "SELECT max(v) FROM checkpoint_migrations") == len(MIGRATIONS) + 3
    assert await is_valid(database, "more_idx")
    assert await is_valid(database, INDEXES[0]) is None
    assert await sql(database, "SELECT last FROM checkpoints") == [(None,)]


async def test_tables_of_a_newer_upstream_are_used_as_they_are(database: str) -> None:
    await set_up(database)
    await sql(database, "INSERT INTO checkpoint_migrations (v) VALUES (99)")
    await set_up(database)
    assert await value(database, "SELECT max(v) FROM checkpoint_migrations") == 99


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_what_others_have_done_just_before_our_turn_is_seen(
    isolation: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever isolation level the database has by default: with one snapshot for all, it would not be."""
    await make_old_tables(database, rows=3)
    await sql(database, f"ALTER DATABASE test SET default_transaction_isolation = '{isolation}'")
    really = schema._take_lock

    async def take_lock_late(*args: Any) -> bool:
        taken = await really(*args)
        await sql(database, "INSERT INTO checkpoint_migrations (v) VALUES (99) ON CONFLICT DO NOTHING")
        return taken

    monkeypatch.setattr(schema, "_take_lock", take_lock_late)
    await set_up(database)
    assert await sql(database, "SELECT v FROM checkpoint_migrations WHERE v > %s", BEFORE_INDEXES) == [(99,)]
    assert await is_valid(database, INDEXES[0]) is None


# ------------------------------------------------------------------ roles


@pytest.fixture
def role(postgres: EmbeddedPostgres, database: str) -> Iterator[str]:
    """The URL of the database for a role that may do nothing with it yet."""
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute('DROP ROLE IF EXISTS "service"')
        conn.execute('CREATE ROLE "service" LOGIN')
    yield make_conninfo(database, user="service")
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute('DROP OWNED BY "service"')
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute('DROP ROLE "service"')


async def test_a_role_without_any_right_to_make_something_works_with_tables_that_are_up_to_date(
    database: str, role: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With exactly those grants that the errors name."""
    async with open_saver(database, redis_url):
        pass
    for grant in schema.GRANTS.split(", and "):
        await sql(database, f'{grant} TO "service"')
    async with open_saver(role, redis_url) as saver:
        thread = Thread("a")
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        assert await thread.turn(saver) == 1
        await saver.adelete_thread("a")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_role_that_lacks_a_grant_is_told_all_that_it_needs(
    database: str, role: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url):
        pass
    with pytest.raises(SchemaError) as caught:
        await CachedPostgresSaver.create(role, redis_url)
    for table in (*OWN, "checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations"):
        assert table in str(caught.value)


async def test_a_role_that_does_not_own_upstream_s_tables_goes_on_without_triggers_and_says_so_once(
    database: str, role: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_upstream(database):
        pass
    await sql(database, 'GRANT CREATE, USAGE ON SCHEMA public TO "service"')
    await sql(database, 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "service"')
    schema._warned.clear()
    for _ in range(2):
        async with open_saver(role, redis_url) as saver:
            thread = Thread("a")
            await thread.put(saver)
            assert await thread.turn(saver) == 1
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "owner" in warnings[0]
    assert 'foreign_writes="ignore"' in warnings[0]
    assert "'service'" in warnings[0]
    assert not await stand(database)
    tables = await sql(database, "SELECT tableowner FROM pg_tables WHERE tablename LIKE 'glasspoint%'")
    assert tables == [("service",)] * len(OWN)

    await set_up(database)  # as the warning says, by the owner
    assert await stand(database)
    caplog.clear()
    async with open_saver(role, redis_url):
        pass
    assert caplog.records == []


async def test_a_role_that_may_make_triggers_but_no_functions_goes_on_without(
    database: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All or none: a savepoint takes back what was made before the refusal."""
    async with open_upstream(database):
        pass
    await sql(database, 'GRANT CREATE, USAGE ON SCHEMA public TO "service"')
    await sql(database, 'GRANT ALL ON ALL TABLES IN SCHEMA public TO "service"')
    # In the way, and somebody else's.
    await sql(
        database,
        "CREATE FUNCTION glasspoint_renew_content_id() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    )
    schema._warned.clear()
    await set_up(role)
    [said] = [r.getMessage() for r in caplog.records if "'service'" in r.getMessage()]
    assert "glasspoint_renew_content_id() belong to another role" in said
    assert await value(database, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'glasspoint%%'") == 0
    assert await value(database, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'glasspoint%%'") == 1


async def test_no_function_is_made_that_would_fail_the_writes_of_others(
    database: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It works with its owner's rights: who owns upstream's tables, but may not write to ours, makes none."""
    await set_up(database, "ignore")
    await sql(database, 'GRANT CREATE, USAGE ON SCHEMA public TO "service"')
    await sql(database, 'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "service"')
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations"):
        await sql(database, f'ALTER TABLE {table} OWNER TO "service"')
    schema._warned.clear()
    await set_up(role)
    [said] = [r.getMessage() for r in caplog.records if "'service'" in r.getMessage()]
    assert not await stand(database)
    grants = re.findall(r"GRANT [^;.]+", said)
    assert [grant.split(" TO ")[0] for grant in grants] == [
        "GRANT UPDATE ON glasspoint_identity",
        "GRANT INSERT ON glasspoint_l1_journal",
    ]
    await sql(role, "INSERT INTO checkpoints VALUES ('a', '', '1', NULL, NULL, '{}', '{}')")
    for grant in grants:  # as the warning says
        await sql(database, grant)
    await set_up(role)
    assert await stand(database)


async def test_a_role_that_may_not_remove_is_told_so_and_nothing_is_removed(database: str, role: str) -> None:
    await set_up(database)
    with pytest.raises(SchemaError, match=r"'service' may not drop Glasspoint's .*Nothing was removed"):
        async with connect(role) as conn:
            await schema.remove(conn)
    assert await stand(database)


# ------------------------------------------------------------------ schemas

ODD = 'Odd, "quoted" é; $x %s'


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def search_path(database: str, *names: str) -> None:
    """Whoever connects from now on has it, through whatever driver."""
    path = ", ".join(map(quoted, names))
    async with connect(database) as conn:
        await conn.execute(f"ALTER DATABASE test SET search_path = {path}")


async def make_schema(database: str, name: str) -> None:
    async with connect(database) as conn:
        await conn.execute(f"CREATE SCHEMA {quoted(name)}")


async def schemas_of(database: str, table: str) -> list[str]:
    found = await sql(
        database,
        "SELECT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE relname = %s ORDER BY nspname",
        table,
    )
    return [name for (name,) in found]


@pytest.mark.parametrize("rows", [0, 3])
async def test_the_tables_may_be_in_any_schema_whatever_its_name(
    rows: int, database: str, redis_url: str
) -> None:
    await make_schema(database, ODD)
    try:
        await search_path(database, ODD, "public")
        if rows:
            await make_old_tables(database, rows=rows)
        async with open_saver(database, redis_url) as saver:
            thread = Thread("a")
            await thread.put(saver)
            assert await thread.turn(saver) == 1
        assert await everything_is_there(database)
        for table in ("checkpoints", *OWN):
            assert await schemas_of(database, table) == [ODD]

        # The functions know where they belong, whatever the writer's search path is.
        await sql(
            database,
            "INSERT INTO glasspoint_caches (cache, seen_at) VALUES ('glasspoint', now()) "
            "ON CONFLICT (cache) DO UPDATE SET seen_at = now()",
        )
        async with connect(database) as conn:
            await conn.execute("SET search_path = pg_catalog")
            await conn.execute(
                f"INSERT INTO {quoted(ODD)}.checkpoints VALUES ('b', '', '1', NULL, NULL, '{{}}', '{{}}')"
            )
        noted = "SELECT thread_id FROM glasspoint_l1_journal WHERE source IS NOT NULL"
        assert await sql(database, noted) == [("b",)]

        async with connect(database) as conn:
            await schema.renew_signing_key(conn)
            await schema.remove(conn)
        assert await schemas_of(database, "glasspoint_identity") == []
        assert await schemas_of(database, "checkpoints") == [ODD]
    finally:
        async with connect(database) as conn:
            await conn.execute(f"DROP SCHEMA {quoted(ODD)} CASCADE")


async def test_the_first_schema_of_the_path_gets_tables_of_its_own(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As LangGraph's setup does it: those of another tenant, further on in the path, are not used."""
    await set_up(database)
    await make_schema(database, "tenant")
    try:
        await search_path(database, "tenant", "public")
        await set_up(database)
        for table in ("checkpoints", *OWN):
            assert await schemas_of(database, table) == ["public", "tenant"]
        assert await stand(database)
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(said) == 1
        assert "'tenant'" in said[0]
        assert "'public'" in said[0]
    finally:
        await sql(database, "DROP SCHEMA tenant CASCADE")


async def test_a_role_that_may_make_nothing_in_the_first_schema_uses_the_tables_that_its_path_leads_to(
    database: str, role: str, redis_url: str
) -> None:
    await set_up(database)
    await make_schema(database, "service")
    try:
        await sql(database, 'GRANT USAGE ON SCHEMA "service" TO "service"')
        for grant in schema.GRANTS.split(", and "):
            await sql(database, f'{grant} TO "service"')
        async with open_saver(role, redis_url) as saver:  # whose path is "$user", public
            await Thread("a").put(saver)
        assert await schemas_of(database, "checkpoints") == ["public"]
    finally:
        await sql(database, 'DROP SCHEMA "service" CASCADE')


async def test_a_path_that_leads_nowhere_is_named(database: str, redis_url: str) -> None:
    await search_path(database, "nowhere")
    with pytest.raises(SchemaError, match="search_path"):
        await CachedPostgresSaver.create(database, redis_url)


# ------------------------------------------------------------------ triggers, wanted or not


async def test_ignoring_what_others_write_makes_no_triggers_and_removes_none(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url, foreign_writes="ignore"):
        pass
    assert not await stand(database)
    assert await value(database, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'glasspoint%%'") == 0
    async with open_saver(database, redis_url):
        pass
    assert await stand(database)
    async with open_saver(database, redis_url, foreign_writes="ignore"):
        pass
    assert await stand(database)


async def test_anything_else_is_a_mistake(database: str, redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="foreign_writes"):
        await CachedPostgresSaver.create(database, redis_url, foreign_writes="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TRIGGER glasspoint_delete ON checkpoint_writes",
        "ALTER TABLE checkpoints DISABLE TRIGGER glasspoint_update",
        "CREATE OR REPLACE FUNCTION glasspoint_note_foreign_writes() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN NULL; END'",
    ],
)
async def test_triggers_that_do_not_stand_are_noticed_and_made_again(damage: str, database: str) -> None:
    await set_up(database)
    assert await stand(database)
    await sql(database, damage)
    assert not await stand(database)
    await set_up(database)
    assert await stand(database)


# ------------------------------------------------------------------ moving out, and a new key


async def catalogue(database: str) -> list[tuple[Any, ...]]:
    """All that stands in the database's own schemas."""
    return await sql(
        database,
        """
        SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'function', proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger WHERE NOT tgisinternal
        ORDER BY 1, 2
        """,
    )


async def test_removing_takes_everything_of_ours_and_nothing_of_upstream_s(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with open_upstream(database) as upstream:
        before = await catalogue(database)
        async with open_saver(database, redis_url) as saver:
            await thread.put(saver)
            await thread.put_writes(saver, "x")
        assert await catalogue(database) != before
        async with connect(database) as conn:
            await schema.remove(conn)
            await schema.remove(conn)  # again: there is nothing
        assert await catalogue(database) == before
        assert await thread.turn(upstream) == 1
        await thread.put(upstream)


async def test_writers_of_other_software_do_not_fail_when_our_tables_were_dropped_by_hand(
    database: str,
) -> None:
    thread = Thread("a")
    await set_up(database)
    for table in sorted(OWN):
        await sql(database, f"DROP TABLE {table}")
    async with open_upstream(database) as upstream:
        await thread.put(upstream)
        await thread.put_writes(upstream, "x")
        await upstream.adelete_thread("a")
    await sql(database, "TRUNCATE checkpoints")


async def test_a_new_signing_key_comes_with_a_new_content_id(database: str) -> None:
    with pytest.raises(SchemaError, match=r"setup\(\)"):
        async with connect(database) as conn:
            await schema.renew_signing_key(conn)
    await set_up(database)
    query = "SELECT id, content_id, signing_key FROM glasspoint_identity"
    [(id_, content_id, key)] = await sql(database, query)
    async with connect(database) as conn:
        await schema.renew_signing_key(conn)
    [(same_id, new_content_id, new_key)] = await sql(database, query)
    assert same_id == id_
    assert new_content_id != content_id
    assert new_key != key
    assert len(new_key) == 32
