"""The triggers on LangGraph's tables: what other software writes is noted in the journal, in the same
transaction, with its scopes and its table; what Glasspoint writes never is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.conninfo import make_conninfo

from glasspoint import CachedPostgresSaver, l2
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.l2 import schema, schema_statements
from glasspoint.l2.sql import query
from glasspoint.l2.writing import storing
from glasspoint.model.codec import Encoded, EncodedWrite, PendingWrites, StoredCheckpoint
from glasspoint.model.scope import Scope
from states import make_pool, numbered_id, open_saver
from steps import STORING, Thread, put_all, until

NEVER = 3600.0

Connection = psycopg.AsyncConnection[Any]

CHECKPOINTS, WRITES = "checkpoints", "checkpoint_writes"


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


@asynccontextmanager
async def connect(url: str, **options: Any) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, **options) as conn:
        yield conn


async def run(url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with connect(url) as conn:
        cursor = await conn.execute(statement, params or None)
        return await cursor.fetchall() if cursor.description else []


async def noted(url: str) -> list[tuple[str, str, str]]:
    """What the triggers have noted since this was asked last: thread, namespace, table."""
    return sorted(
        await run(
            url,
            "DELETE FROM glasspoint_l1_journal WHERE source IS NOT NULL "
            "RETURNING thread_id, checkpoint_ns, source",
        )
    )


async def use_cache(url: str, cache: str = "glasspoint", *, idle: str = "0 s") -> None:
    """Make it known that a saver used a cache so long ago."""
    await run(
        url,
        "INSERT INTO glasspoint_caches (cache, seen_at) VALUES (%s, now() - %s::interval) "
        "ON CONFLICT (cache) DO UPDATE SET seen_at = EXCLUDED.seen_at",
        cache,
        idle,
    )


@pytest.fixture
async def watched(database: str) -> str:
    """The URL of a database with the triggers, which one cache belongs to."""
    async with connect(database) as conn:
        await schema.set_up(conn, foreign_writes="watch")
    await use_cache(database)
    return database


@asynccontextmanager
async def upstream_of(url: str, how: str) -> AsyncIterator[AsyncPostgresSaver]:
    """LangGraph's saver, as people open it."""
    if how == "pool":
        async with make_pool(url, size=2) as pool:
            yield AsyncPostgresSaver(pool)
    else:
        async with AsyncPostgresSaver.from_conn_string(url, pipeline=how == "pipeline") as saver:
            yield saver


# ------------------------------------------------------------------ what others write


@pytest.mark.parametrize("how", ["pool", "connection", "pipeline"])
async def test_every_write_of_upstream_s_saver_is_noted(how: str, watched: str) -> None:
    thread, inner = Thread("a"), Thread("a", "inner")
    async with upstream_of(watched, how) as upstream:
        await thread.put(upstream)
        assert await noted(watched) == [("a", "", CHECKPOINTS)]
        await inner.put(upstream)
        assert await noted(watched) == [("a", "inner", CHECKPOINTS)]
        thread.number = 0  # the same checkpoint again
        await thread.put(upstream)
        assert await noted(watched) == [("a", "", CHECKPOINTS)]
        for _ in range(2):  # the second one changes nothing
            await upstream.aput_writes(thread.newest, [("messages", "x"), ("turn", 1)], "task")
        assert set(await noted(watched)) == {("a", "", WRITES)}
        for value in ("one", "two"):  # a special write, which replaces what is there
            await upstream.aput_writes(thread.newest, [("__interrupt__", value)], "task")
            assert await noted(watched) == [("a", "", WRITES)]
        await upstream.adelete_thread("a")
        assert await noted(watched) == [
            ("a", "", WRITES),
            ("a", "", CHECKPOINTS),
            ("a", "inner", CHECKPOINTS),
        ]
        await upstream.adelete_thread("a")
        assert await noted(watched) == [], "nothing was there"


INSERT = "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint) VALUES "


async def rows(url: str, *keys: tuple[str, str, str]) -> None:
    """Checkpoints that somebody has put there before: thread, namespace, id."""
    async with connect(url) as conn, conn.cursor() as cursor:
        await cursor.executemany(f"{INSERT} (%s, %s, %s, '{{}}')", keys)
    await noted(url)


async def test_statements_of_any_other_client_are_noted_once_a_scope(watched: str) -> None:
    await run(watched, f"{INSERT} ('a', '', '1', '{{}}'), ('a', '', '2', '{{}}'), ('b', 'n', '1', '{{}}')")
    assert await noted(watched) == [("a", "", CHECKPOINTS), ("b", "n", CHECKPOINTS)]
    await run(watched, "UPDATE checkpoints SET metadata = '{}'")
    assert await noted(watched) == [("a", "", CHECKPOINTS), ("b", "n", CHECKPOINTS)]
    await run(watched, "UPDATE checkpoints SET metadata = '{}' WHERE thread_id = 'nobody'")
    assert await noted(watched) == []
    await run(watched, "DO $$ BEGIN DELETE FROM checkpoints WHERE thread_id = 'a'; END $$")
    assert await noted(watched) == [("a", "", CHECKPOINTS)]
    await run(
        watched,
        "WITH gone AS (DELETE FROM checkpoints RETURNING *) INSERT INTO checkpoint_writes "
        "(thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, blob) "
        "SELECT thread_id, checkpoint_ns, checkpoint_id, 't', 0, 'x', '' FROM gone",
    )
    assert await noted(watched) == [("b", "n", WRITES), ("b", "n", CHECKPOINTS)]


async def test_a_comment_that_stands_elsewhere_makes_no_statement_ours(watched: str) -> None:
    await run(watched, f"{INSERT} ('a', '', '1', '{{\"say\": \"/* glasspoint */\"}}') /* glasspoint */")
    assert await noted(watched) == [("a", "", CHECKPOINTS)]


async def test_what_a_trigger_of_others_writes_inside_a_statement_of_ours_is_noted(
    watched: str, redis_url: str
) -> None:
    """Our own writes beside it are not."""
    await run(
        watched,
        """
        CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE checkpoints SET metadata = '{}' WHERE thread_id = 'marked';
            INSERT INTO checkpoint_writes
                (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, blob)
                VALUES ('inner', '', NEW.checkpoint_id, 't', 0, 'x', '');
            RETURN NULL;
        END $$;
        CREATE TRIGGER mark AFTER INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION mark();
        """,
    )
    await rows(watched, ("marked", "", "1"))
    await run(watched, "DELETE FROM checkpoint_writes")
    async with open_saver(watched, redis_url, sweep_interval_seconds=NEVER) as saver:
        await saver._parts.sweeper.round()  # on a busy machine, the opening has not waited for it
        await noted(watched)
        await Thread("a").put(saver)
        assert await noted(watched) == [("inner", "", WRITES), ("marked", "", CHECKPOINTS)]


async def test_an_update_that_moves_rows_to_another_thread_notes_both(watched: str) -> None:
    await rows(watched, ("a", "", "1"), ("a", "n", "1"), ("b", "", "1"), ("c", "", "1"))
    await run(watched, "UPDATE checkpoints SET thread_id = 'moved ' || thread_id WHERE thread_id < 'c'")
    assert await noted(watched) == [
        ("a", "", CHECKPOINTS),
        ("a", "n", CHECKPOINTS),
        ("b", "", CHECKPOINTS),
        ("moved a", "", CHECKPOINTS),
        ("moved a", "n", CHECKPOINTS),
        ("moved b", "", CHECKPOINTS),
    ]


@pytest.mark.parametrize("threads", [1, 7, 500])
async def test_copy_is_noted(threads: int, watched: str) -> None:
    """Whatever the order of its rows: interleaved, here."""
    columns = "thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, blob"
    async with (
        connect(watched) as conn,
        conn.cursor() as cursor,
        cursor.copy(f"COPY checkpoint_writes ({columns}) FROM STDIN") as copy,
    ):
        for number in range(1000):
            await copy.write_row((f"t{number % threads}", "", str(number), "task", 0, "x", b""))
    found = await noted(watched)
    assert set(found) == {(f"t{number}", "", WRITES) for number in range(threads)}
    if threads < 10:
        assert len(found) == threads, "once a scope, as far as it is remembered"


async def test_scopes_of_any_name_are_noted_as_they_are(watched: str) -> None:
    names = [
        ("a", "b"),
        ('a", "b', ""),
        ('["checkpoints", "a", ""]\n', "\\n"),
        ("철수\t'", "%s \"$1\" E'\\n'"),
        ("x" * 3000, "y" * 3000),
        ("z" * 3000, ""),
        ("a", ""),
        ("", "a"),
    ]
    async with connect(watched) as conn, conn.transaction():
        for _ in range(2):
            for thread_id, namespace in names:
                await conn.execute(
                    f"{INSERT} (%s, %s, gen_random_uuid()::text, '{{}}')",
                    [thread_id, namespace],
                )
    assert {(thread_id, namespace) for thread_id, namespace, _ in await noted(watched)} == set(names)


async def test_what_is_rolled_back_is_not_noted_and_what_follows_is(watched: str) -> None:
    """A transaction remembers what it has noted; what a savepoint takes back, it forgets."""
    async with connect(watched) as conn:
        async with conn.transaction(force_rollback=True):
            await conn.execute(f"{INSERT} ('a', '', '1', '{{}}')")
        assert await noted(watched) == []
        async with conn.transaction():
            async with conn.transaction(force_rollback=True):
                await conn.execute(f"{INSERT} ('a', '', '1', '{{}}')")
            await conn.execute(f"{INSERT} ('a', '', '1', '{{}}')")
        assert await noted(watched) == [("a", "", CHECKPOINTS)]
        await conn.execute(f"{INSERT} ('a', '', '2', '{{}}')")
        assert await noted(watched) == [("a", "", CHECKPOINTS)], "another transaction is noted by itself"
        cursor = await conn.execute("SELECT coalesce(current_setting('glasspoint.noted', true), '')")
        assert await cursor.fetchone() == ("",), "nothing is left in the session"


async def test_writers_need_no_right_to_our_tables(postgres: EmbeddedPostgres, watched: str) -> None:
    await run(postgres.url, "DROP ROLE IF EXISTS outsider")
    await run(postgres.url, "CREATE ROLE outsider LOGIN")
    try:
        tables = "checkpoints, checkpoint_blobs, checkpoint_writes"
        await run(watched, f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {tables} TO outsider")
        outsider = make_conninfo(watched, user="outsider")
        thread = Thread("a")
        async with upstream_of(outsider, "pool") as upstream:
            await thread.put(upstream)
            await thread.put_writes(upstream, "x")
            assert await noted(watched) == [("a", "", WRITES), ("a", "", CHECKPOINTS)]
            await run(outsider, "UPDATE checkpoints SET thread_id = 'b'")
            await upstream.adelete_thread("b")
            assert [thread_id for thread_id, _, _ in await noted(watched)] == ["a", "b", "b"]
        before = await run(watched, "SELECT content_id FROM glasspoint_identity")
        await run(outsider, "TRUNCATE checkpoints")
        assert await run(watched, "SELECT content_id FROM glasspoint_identity") != before
        for table in ("glasspoint_l1_journal", "glasspoint_identity", "glasspoint_caches"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await run(outsider, f"SELECT * FROM {table}")
        # Nor can it use their rights for a table of its own.
        await run(watched, "GRANT CREATE ON SCHEMA public TO outsider")
        await run(outsider, "CREATE TABLE own (thread_id text, checkpoint_ns text)")
        for function in schema_statements.FUNCTIONS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await run(
                    outsider,
                    f"CREATE TRIGGER x AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION {function}()",
                )
        # Nor put something of its own in their way.
        async with connect(outsider) as conn:
            await conn.execute("CREATE TEMP TABLE glasspoint_l1_journal (LIKE own)")
            await conn.execute("CREATE TEMP TABLE glasspoint_caches (LIKE own)")
            await conn.execute(f"{INSERT} ('c', '', '1', '{{}}')")
        assert await noted(watched) == [("c", "", CHECKPOINTS)]
    finally:
        await run(watched, "DROP OWNED BY outsider")
        await run(postgres.url, "DROP ROLE outsider")


@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_blobs", "checkpoint_writes"])
async def test_truncating_a_table_renews_the_content_id_and_nothing_else(table: str, watched: str) -> None:
    query = "SELECT content_id, id, signing_key FROM glasspoint_identity"
    [(before, *rest)] = await run(watched, query)
    await run(watched, f"TRUNCATE {table}")
    [(after, *same)] = await run(watched, query)
    assert after != before
    assert len(after) == len(before) == 32
    assert same == rest


# ------------------------------------------------------------------ for whom


async def test_each_cache_that_is_in_use_is_told(watched: str) -> None:
    await use_cache(watched, "other")
    await run(watched, f"{INSERT} ('a', '', '1', '{{}}'), ('b', '', '1', '{{}}')")
    told = await run(watched, "SELECT cache, thread_id FROM glasspoint_l1_journal ORDER BY 1, 2")
    assert told == [("glasspoint", "a"), ("glasspoint", "b"), ("other", "a"), ("other", "b")]


@pytest.mark.parametrize(("idle", "is_told"), [("59 min", True), ("61 min", False)])
async def test_a_cache_that_nobody_has_used_for_an_hour_is_not_told(
    idle: str, is_told: bool, watched: str
) -> None:
    """Its generation is renewed when it comes back, and rows would pile up for one that never does."""
    await use_cache(watched, idle=idle)
    await run(watched, f"{INSERT} ('a', '', '1', '{{}}')")
    await run(watched, "UPDATE checkpoints SET metadata = '{}'")
    await run(watched, "DELETE FROM checkpoints")
    assert len(await noted(watched)) == (3 if is_told else 0)


async def test_without_a_cache_nothing_is_noted(database: str) -> None:
    async with connect(database) as conn:
        await schema.set_up(conn, foreign_writes="watch")
    await run(database, f"{INSERT} ('a', '', '1', '{{}}')")
    assert await noted(database) == []


@pytest.mark.parametrize(
    "statement",
    [
        f"{INSERT} ('a', '', gen_random_uuid()::text, '{{}}')",
        "UPDATE checkpoints SET metadata = '{}'",
        "DELETE FROM checkpoints WHERE ctid IN (SELECT ctid FROM checkpoints LIMIT 1)",
    ],
)
async def test_a_cache_that_comes_back_waits_for_writers_that_have_not_told_it_or_is_told(
    statement: str, watched: str
) -> None:
    """It takes exclusively the lock that writers share, and says then that it is back."""
    lock = "SELECT {}(1735159667, 'glasspoint_caches'::regclass::oid::int)"
    await rows(watched, ("a", "", "1"), ("a", "", "2"))
    await use_cache(watched, idle="2 hours")
    async with connect(watched) as writer, connect(watched) as cache:
        async with writer.transaction():
            await writer.execute(statement)
            tried = await cache.execute(lock.format("pg_try_advisory_xact_lock"))
            assert await tried.fetchone() == (False,)
        assert await noted(watched) == []
        async with cache.transaction():
            await cache.execute(lock.format("pg_advisory_xact_lock"))
            writing = asyncio.create_task(writer.execute(statement))
            await until(lambda: _waits(watched, writer.info.backend_pid))
            await cache.execute("UPDATE glasspoint_caches SET seen_at = now()")
        await writing
    assert await noted(watched) == [("a", "", CHECKPOINTS)]


async def _waits(url: str, pid: int) -> bool:
    return bool(await run(url, "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", pid))


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel)[2:])
async def test_a_writer_with_one_snapshot_tells_a_cache_that_has_come_back_since(
    level: psycopg.IsolationLevel, watched: str
) -> None:
    await use_cache(watched, idle="2 hours")
    async with await psycopg.AsyncConnection.connect(watched) as writer:
        await writer.set_isolation_level(level)
        await writer.execute("SELECT count(*) FROM checkpoints")  # its snapshot
        await use_cache(watched)
        await writer.execute(f"{INSERT} ('a', '', '1', '{{}}')")
    assert await noted(watched) == [("a", "", CHECKPOINTS)]


# ------------------------------------------------------------------ what we write


@pytest.fixture
async def seen(watched: str) -> Callable[[], Awaitable[list[tuple[Any, ...]]]]:
    """All rows with a source that were ever made in the journal, whether somebody has swept them or not."""
    await run(watched, "CREATE TABLE seen AS SELECT * FROM glasspoint_l1_journal")
    await run(
        watched,
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.seen SELECT NEW.*; RETURN NULL; END $$",
    )
    await run(
        watched,
        "CREATE TRIGGER see AFTER INSERT ON glasspoint_l1_journal FOR EACH ROW "
        "WHEN (NEW.source IS NOT NULL) EXECUTE FUNCTION see()",
    )

    async def all_rows() -> list[tuple[Any, ...]]:
        return await run(watched, "SELECT thread_id, source FROM seen")

    return all_rows


async def _put_with_run(saver: CachedPostgresSaver, thread: Thread, run_id: str) -> None:
    config, checkpoint, metadata, versions = thread.next_put(saver)
    metadata["run_id"] = run_id
    thread.newest = await saver.aput(config, checkpoint, metadata, versions)


def _stored(thread_id: str) -> StoredCheckpoint:
    value = Encoded("msgpack", b"\x01")
    return StoredCheckpoint(
        scope=Scope(thread_id, ""),
        checkpoint_id=numbered_id(1),
        parent_id=None,
        document={},
        metadata={},
        values={"x": ("1", value)},
        writes=[EncodedWrite("t", 0, "x", value, ""), EncodedWrite("t", -1, "__error__", value, "")],
        document_json='{"v": 4, "id": "1", "channel_versions": {"x": "1"}}',
        metadata_json="{}",
        document_bytes=2,
    )


async def test_nothing_of_our_own_is_noted(
    watched: str,
    own_redis: EmbeddedRedis,
    seen: Callable[[], Awaitable[list[tuple[Any, ...]]]],
) -> None:
    """Every operation that changes something, each alone and many at once, with Redis and without."""
    async with open_saver(watched, own_redis.url, sweep_interval_seconds=NEVER, pool_max_size=4) as saver:
        thread = Thread("a")
        for _ in range(3):
            await thread.put(saver)
        thread.number -= 1
        await thread.put(saver)  # again, which updates
        for value in ("one", "two"):
            await thread.put_writes(saver, value)
            await saver.aput_writes(thread.newest, [("__interrupt__", value)], "task")
        assert await seen() == [], "single statements"

        many = [Thread(f"many {i}") for i in range(60)]
        async with count_statements(saver) as sent:
            await put_all(saver, many)
            # Calls of one task never go together.
            await asyncio.gather(*(each.put_writes(saver, "x", f"task {each.thread_id}") for each in many))
            for value in ("one", "two"):
                await asyncio.gather(
                    *(
                        saver.aput_writes(each.newest, [("__interrupt__", value)], f"task {each.thread_id}")
                        for each in many
                    )
                )
        for batch in (
            "put_together_fenced",
            "put_writes_together_fenced",
            "upsert_writes_together_fenced",
        ):
            assert storing(batch) in sent, "batches have formed"
        assert await seen() == [], "batches"

        items: list[StoredCheckpoint | PendingWrites] = [
            _stored("imported"),
            PendingWrites(Scope("imported", ""), "2", _stored("").writes),
        ]
        for _ in range(2):
            await saver.import_checkpoints(items)
        await saver.acopy_thread("a", "copy")
        for run_id in ("one", "two"):
            await _put_with_run(saver, Thread("of a run"), run_id)
        await saver.adelete_for_runs(["one", "two"])
        await saver.aprune(["a"], strategy="keep_latest")
        await saver.aprune(["copy"], strategy="delete")
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await saver.aprune_older_than(timedelta(seconds=1))
        await saver.aprune_older_than(timedelta(seconds=1), keep_latest=False)
        await saver.adelete_thread("many 1")
        assert await seen() == [], "whole threads"

        own_redis.kill()
        for each in (thread, *many):
            each.number += 10
        await thread.put(saver)
        await thread.put_writes(saver, "y")
        await saver.aput_writes(thread.newest, [("__interrupt__", "y")], "task")
        await put_all(saver, many)
        await saver.import_checkpoints(items)
        await saver.aprune(["a"], strategy="keep_latest")
        await saver.adelete_thread("a")
        journalled = await run(watched, "SELECT DISTINCT thread_id FROM glasspoint_l1_journal")
        assert {"a", "many 7", "imported"} <= {thread_id for (thread_id,) in journalled}
        assert await seen() == [], "with Redis away"

    await use_cache(watched)
    async with upstream_of(watched, "pool") as upstream:
        await Thread("b").put(upstream)
    assert await seen() == [("b", CHECKPOINTS)], "somebody else's is, in this very database"


@asynccontextmanager
async def count_statements(saver: CachedPostgresSaver) -> AsyncIterator[set[str]]:
    """The statements of the store's own that are sent in the block."""
    from glasspoint.l2 import store

    sent: set[str] = set()
    really = store._fetch_all

    async def recorded(conn: Any, statement: str, params: Any) -> Any:
        sent.add(statement)
        return await really(conn, statement, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_fetch_all", recorded)
        yield sent


_CHANGES = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM)\s+(checkpoints|checkpoint_writes)\b")


def test_every_statement_that_changes_the_tables_begins_with_the_comment() -> None:
    code = "\n".join(path.read_text("utf-8") for path in Path(l2.__file__).parent.rglob("*.py"))
    texts = [query(name) for name in re.findall(r'\bquery\("(\w+)"\)', code)]
    changing = [text for text in texts if _CHANGES.search(text)]
    assert len(changing) >= 10
    for text in [*changing, *map(storing, STORING)]:
        assert text.startswith(query("own"))


def test_the_statements_that_also_record_scopes_begin_with_the_comment() -> None:
    assert len(STORING) == 24
    for text in (storing(name, is_journalled=True) for name in STORING):
        assert text.startswith(query("own"))
        assert text.count(query("own")) == 1
        assert "glasspoint_l1_journal" in text


def test_the_comment_is_the_one_that_the_triggers_look_for() -> None:
    assert query("own") == "/* glasspoint */"
    for trigger in schema_statements.TRIGGERS:
        if "TRUNCATE" not in trigger.create:
            assert f"NOT LIKE '{query('own')[:13]}%'" in trigger.create
