"""What concurrent callers ask of PostgreSQL goes there together, and they share the way, not their fate."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from psycopg import sql
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import L2RefusedError
from glasspoint.l2 import batching, writing
from glasspoint.l2.sql import query
from glasspoint.l2.writing import storing
from glasspoint.model import codec
from glasspoint.model.scope import Scope
from states import config_of, exact, make_pool, numbered_id, open_saver, open_upstream
from steps import Thread, keys_of, locked, put_all, settled, until

MANY = 40
SERDE = JsonPlusSerializer()

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture
def threads() -> list[Thread]:
    return [Thread(f"thread {i}") for i in range(MANY)]


async def transactions_of(database: str, table: str) -> int:
    """How many transactions made the rows of a table, as they stand there."""
    async with await psycopg.AsyncConnection.connect(database) as conn:
        query = sql.SQL("SELECT count(DISTINCT xmin::text) FROM {}").format(sql.Identifier(table))
        row = await (await conn.execute(query)).fetchone()
    assert row is not None
    count: int = row[0]
    return count


async def agree_with_upstream(saver: CachedPostgresSaver, database: str, threads: list[Thread]) -> None:
    """Read everything twice, from Redis if it is there, and from PostgreSQL by LangGraph's own saver."""
    async with open_upstream(database) as upstream:
        for thread in threads:
            assert exact(await saver.aget_tuple(thread.config)) == exact(
                await upstream.aget_tuple(thread.config)
            )


@asynccontextmanager
async def refusing(database: str, thread_id: str) -> AsyncIterator[None]:
    """PostgreSQL takes no rows of a thread."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        for table in TABLES:
            await conn.execute(
                sql.SQL("ALTER TABLE {} ADD CONSTRAINT refused CHECK (thread_id <> {})").format(
                    sql.Identifier(table), sql.Literal(thread_id)
                )
            )
        yield
        for table in TABLES:
            await conn.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT refused").format(sql.Identifier(table))
            )


# ------------------------------------------------------------------ together


async def test_the_puts_of_concurrent_callers_are_few_transactions(
    database: str, redis_url: str, threads: list[Thread], registry: CollectorRegistry
) -> None:
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        await put_all(saver, threads)
        assert await transactions_of(database, "checkpoints") <= MANY // 4
        assert await transactions_of(database, "checkpoint_blobs") <= MANY // 4
        assert [await thread.turn(saver) for thread in threads] == [1] * MANY
        await agree_with_upstream(saver, database, threads)
    # And each was told of by itself.
    for metric in ("operation_duration_seconds_count", "write_through_total"):
        labels = {"saver": "default", "operation": "put"}
        labels |= {"outcome": "ok"} if "duration" in metric else {"l1": "announced"}
        assert registry.get_sample_value(f"glasspoint_{metric}", labels) == MANY
    assert registry.get_sample_value("glasspoint_l1_reads_total", {"saver": "default", "result": "hit"}) == (
        2 * MANY
    )


@pytest.mark.parametrize("channel", ["messages", "__error__"], ids=["plain", "special"])
async def test_the_pending_writes_of_concurrent_tasks_are_few_transactions(
    channel: str, database: str, redis_url: str, threads: list[Thread]
) -> None:
    """Plain ones stay as first written, special ones as last."""
    assert (channel in WRITES_IDX_MAP) is (channel == "__error__")
    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)

        async def write(thread: Thread, task: str, value: str) -> None:
            await saver.aput_writes(thread.newest, [(channel, value)], task, f"path of {task}")

        for value in ("first", "second"):
            # Several tasks of a thread, too: LangGraph runs them side by side.
            await asyncio.gather(
                *(write(thread, f"{thread.thread_id}/{n}", value) for thread in threads for n in range(3))
            )
            assert await transactions_of(database, "checkpoint_writes") <= MANY // 4
        kept = "first" if channel == "messages" else "second"
        for thread in threads:
            found = await saver.aget_tuple(thread.config)
            assert found is not None
            assert found.pending_writes == [(f"{thread.thread_id}/{n}", channel, kept) for n in range(3)]
        await agree_with_upstream(saver, database, threads)


async def test_each_put_is_judged_by_what_stands_there_for_it(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    """Where others have stored what L1 does not know of, the image must not follow the put."""
    async with (
        open_saver(database, redis_url) as saver,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
    ):
        await put_all(saver, threads)
        await put_all(saver, threads[10:])
        blob = (
            "INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob) "
            "VALUES (%s, %s, %s, 'msgpack', '\\x2a')"
        )
        newer = (
            "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata) "
            "SELECT thread_id, %s, checkpoint, metadata FROM checkpoints WHERE thread_id = %s LIMIT 1"
        )
        for number, thread in enumerate(threads):
            version = f"{thread.number + 1:032}.5"
            match number % 4:
                case 1:
                    await conn.execute(blob, [thread.thread_id, "messages", version])
                case 2:
                    await conn.execute(blob, [thread.thread_id, "turn", version])
                case 3:
                    await conn.execute(newer, [numbered_id(9), thread.thread_id])
        await put_all(saver, threads)
        await settled(saver)
        images = [(await keys_of_thread(redis_url, thread)).get(b"id") for thread in threads]
        followed = [numbered_id(thread.number).encode() for thread in threads]
        assert images == [None if i % 4 else followed[i] for i in range(MANY)]
        await agree_with_upstream(saver, database, threads)


async def test_a_pending_write_that_came_before_its_put_is_known_to_it(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    async with open_saver(database, redis_url) as saver, open_upstream(database) as upstream:
        await put_all(saver, threads)
        for thread in threads[::2]:
            config = config_of(thread.thread_id, "", numbered_id(2))
            await upstream.aput_writes(config, [("messages", "early")], "task")
        await put_all(saver, threads)
        await agree_with_upstream(saver, database, threads)


async def keys_of_thread(redis_url: str, thread: Thread) -> dict[bytes, bytes]:
    name = thread.thread_id.replace(" ", "%20").encode()
    keys = await keys_of(redis_url)
    return next((fields for key, fields in keys.items() if b"{" + name + b"}" in key), {})


async def test_the_same_write_by_several_callers_at_once_is_stored_once(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    """A statement takes each only once; so they go one after the other."""
    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)
        thread = threads[0]
        again = [
            saver.aput_writes(thread.newest, [("__error__", i)], "task", f"path {i}") for i in range(MANY)
        ]
        await asyncio.gather(*again)
        put = thread.next_put(saver)
        await asyncio.gather(*(saver.aput(*put) for _ in range(MANY)))
        assert await thread.turn(saver) == 2
        await agree_with_upstream(saver, database, threads)


async def test_the_reads_of_concurrent_callers_are_right_each(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    """After everything was lost from Redis, also of threads that there are none of, and twice of some."""
    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)
        await put_all(saver, threads[::2])
        async with Redis.from_url(redis_url) as redis:
            await redis.flushall()
        asked = [*threads, *(Thread(f"nobody {i}") for i in range(5)), *threads[:5]]
        expected = [*([2, 1] * (MANY // 2)), *[None] * 5, 2, 1, 2, 1, 2]
        assert await asyncio.gather(*(thread.turn(saver) for thread in asked)) == expected
        await agree_with_upstream(saver, database, threads)


async def test_a_single_connection_takes_them_too(
    empty_database: str, redis_url: str, threads: list[Thread]
) -> None:
    async with (
        AsyncPostgresSaver.from_conn_string(empty_database) as upstream,
        Redis.from_url(redis_url) as redis,
    ):
        await upstream.setup()
        saver = CachedPostgresSaver(upstream, redis, audit_ratio=0.0)
        try:
            await saver.setup()
            await put_all(saver, threads)
            assert [await thread.turn(saver) for thread in threads] == [1] * MANY
        finally:
            await saver.close()


async def test_a_pool_whose_connections_do_not_commit_by_themselves_is_committed(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    async with open_saver(database, redis_url):
        pass  # the tables
    pool = make_pool(database, size=3)
    pool.kwargs["autocommit"] = False  # type: ignore[index]
    async with pool, Redis.from_url(redis_url) as redis:
        saver = CachedPostgresSaver(AsyncPostgresSaver(pool), redis, pool, audit_ratio=0.0)
        try:
            await put_all(saver, threads)
            await agree_with_upstream(saver, database, threads)
        finally:
            await saver.close()
    assert await transactions_of(database, "checkpoints") <= MANY


# ------------------------------------------------------------------ not their fate


async def test_what_postgres_refuses_of_one_is_refused_to_that_one(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    async with open_saver(database, redis_url) as saver, refusing(database, threads[20].thread_id):
        outcomes = await asyncio.gather(*(thread.put(saver) for thread in threads), return_exceptions=True)
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert [type(outcome) for outcome in refused] == [L2RefusedError]
        assert outcomes[20] is refused[0]
        turns = [await thread.turn(saver) for thread in threads]
        assert turns == [None if i == 20 else 1 for i in range(MANY)]


async def test_a_row_that_somebody_keeps_locked_holds_up_who_wants_it_alone(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    async with (
        open_saver(database, redis_url) as saver,
        await psycopg.AsyncConnection.connect(database) as holder,
    ):
        await put_all(saver, threads)
        stuck = threads[20]
        puts = [thread.next_put(saver) for thread in threads]
        await holder.execute(
            "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES (%s, %s, '{}')",
            (stuck.thread_id, puts[20][1]["id"]),
        )
        writing = [asyncio.create_task(saver.aput(*put)) for put in puts]
        others = [task for i, task in enumerate(writing) if i != 20]
        await asyncio.wait_for(asyncio.gather(*others), 5)
        assert not writing[20].done()
        await holder.rollback()
        await writing[20]
        assert [await thread.turn(saver) for thread in threads] == [2] * MANY
        await agree_with_upstream(saver, database, threads)
    assert "set_config('lock_timeout', '100ms', true)" in storing("put_together")


_HOLD = """
CREATE TABLE held (thread_id text);
INSERT INTO held VALUES ({});
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WHILE EXISTS (SELECT FROM held WHERE thread_id = NEW.thread_id) LOOP PERFORM pg_sleep(0.01); END LOOP;
    RETURN NEW;
END $$;
CREATE TRIGGER hold BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION hold();
"""


@asynccontextmanager
async def stuck(
    database: str, redis_url: str, threads: list[Thread]
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Puts of many threads are under way; PostgreSQL has the statement of those that are told here, and works
    on it until this is over."""
    async with (
        open_saver(database, redis_url) as saver,  # one that has seen no crowd yet
        await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
    ):

        async def is_held() -> bool:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query ~ 'ORDINALITY'"
            )
            return await (await conn.execute(query)).fetchone() == (1,)

        await conn.execute(sql.SQL(_HOLD).format(sql.Literal(threads[batching.ALONE].thread_id)))
        writing = [asyncio.create_task(thread.put(saver)) for thread in threads]
        try:
            await until(is_held)
            yield writing[batching.ALONE : batching.ALONE + 32]
        finally:
            await conn.execute("DELETE FROM held")
            await asyncio.gather(*writing, return_exceptions=True)


async def test_who_gives_up_takes_nobody_along(database: str, redis_url: str, threads: list[Thread]) -> None:
    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)
        async with stuck(database, redis_url, threads) as writing:
            for task in writing[1::2]:
                task.cancel()
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert outcomes[::2] == [None] * len(outcomes[::2])
        assert {type(outcome) for outcome in outcomes[1::2]} <= {asyncio.CancelledError}
        stayed = threads[batching.ALONE :][: len(writing) : 2]
        assert [await thread.turn(saver) for thread in stayed] == [2] * len(stayed)
        await agree_with_upstream(saver, database, threads)


async def test_a_statement_that_nobody_waits_for_any_more_is_ended(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)
        async with stuck(database, redis_url, threads) as writing:
            for task in writing:
                task.cancel()
            async with asyncio.timeout(5):  # sooner than any deadline would end it
                outcomes = await asyncio.gather(*writing, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        turns = [await thread.turn(saver) for thread in threads[batching.ALONE :][: len(writing)]]
        assert turns == [1] * len(writing)
        await put_all(saver, threads)  # every connection is back
        await agree_with_upstream(saver, database, threads)


async def test_a_connection_that_breaks_under_many_is_ridden_out(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    async def end_them() -> int:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE NOT granted"
            row = await (await conn.execute(query)).fetchone()
        assert row is not None
        ended: int = row[0]
        return ended

    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)
        async with locked(database, "checkpoints") as waiter:
            writing = asyncio.gather(*(thread.put(saver) for thread in threads))
            await waiter()
            assert await end_them() >= 1
        await writing
        assert [await thread.turn(saver) for thread in threads] == [2] * MANY
        await agree_with_upstream(saver, database, threads)


async def test_what_redis_cannot_be_told_of_stands_in_the_journal_each(
    database: str, own_redis: EmbeddedRedis, threads: list[Thread]
) -> None:
    async with open_saver(database, own_redis.url) as saver:
        await put_all(saver, threads)
        await settled(saver)
        own_redis.stop()
        await put_all(saver, threads)
        async with await psycopg.AsyncConnection.connect(database) as conn:
            query = "SELECT thread_id FROM glasspoint_l1_journal WHERE cache = 'glasspoint'"
            journalled = {row[0] for row in await (await conn.execute(query)).fetchall()}
        assert journalled == {thread.thread_id for thread in threads}
        own_redis.start()
        assert [await thread.turn(saver) for thread in threads] == [2] * MANY


async def test_a_large_value_makes_nobody_wait(database: str, redis_url: str, threads: list[Thread]) -> None:
    """Only that they all arrive; what goes with what is measured, not tested."""
    async with open_saver(database, redis_url) as saver:
        large = "x" * 3_000_000
        await asyncio.gather(
            *(
                thread.put(saver, **({"file": [large]} if i % 10 == 0 else {}))
                for i, thread in enumerate(threads)
            )
        )
        found = await saver.aget_tuple(config_of(threads[10].thread_id))
        assert found is not None
        assert found.checkpoint["channel_values"]["file"] == [large]
        assert [await thread.turn(saver) for thread in threads] == [1] * MANY


# ------------------------------------------------------------------ flat as history grows


@pytest.mark.parametrize("plan_cache_mode", ["force_generic_plan", "force_custom_plan"])
async def test_no_statement_does_more_the_longer_the_history(
    plan_cache_mode: str, database: str, redis_url: str
) -> None:
    """Told by the pages that PostgreSQL looks at: in tables that were never analysed, the worst that it can
    know of them, and after ANALYZE, where one thread is nearly all. In statements of other forms it looked at
    every row of the thread, in one case or the other; and such a plan may be kept while tables grow."""

    async def pages(conn: psycopg.AsyncConnection[Any], statement: str, params: dict[str, Any]) -> int:
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON, TIMING off) " + statement
        row = await (await conn.execute(explain.encode(), params, prepare=True)).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        await conn.rollback()
        looked_up = set(re.findall(r"'(?:Index|Relation) Name': '(\w+)'", str(plan)))
        assert looked_up <= {*TABLES, *(f"{table}_pkey" for table in TABLES)}, statement
        assert "Seq Scan" not in str(plan)
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])

    others = [Thread(f"other {i}") for i in range(3)]
    async with (
        open_saver(database, redis_url) as saver,
        await psycopg.AsyncConnection.connect(database) as conn,
    ):
        for table in TABLES:
            query = sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(sql.Identifier(table))
            await conn.execute(query)
        await conn.execute(f"SET plan_cache_mode = {plan_cache_mode}".encode())
        await conn.commit()
        deep = Thread("deep")
        await put_all(saver, [deep, *others])
        seen: dict[str, list[int]] = {}
        for depth in (10, 1000, 30_000):
            await conn.execute(_MORE_HISTORY, {"from": deep.number + 1, "to": depth})
            if depth == 30_000:
                await conn.execute("ANALYZE")
            await conn.commit()
            deep.number = depth
            scopes = [Scope(thread.thread_id, "") for thread in (deep, *others)]
            for name, (statement, params) in _statements(deep, scopes).items():
                seen.setdefault(name, []).append(await pages(conn, statement, params))
        assert len(seen) == 12
        # A deeper tree has a page or two more on the way down, a few times over.
        assert {name: counts for name, counts in seen.items() if max(counts) > 3 * counts[0]} == {}


def _statements(deep: Thread, scopes: list[Scope]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Everything that the hot path asks, of the deep thread alone and together with others."""
    newest = numbered_id(deep.number)

    def put_of(**more_values: Any) -> codec.EncodedPut:
        _, checkpoint, metadata, versions = deep.next_put(None, **more_values)  # type: ignore[arg-type]
        deep.number -= 1
        return codec.encode_put(SERDE, deep.config, newest, checkpoint, metadata, versions)

    made: dict[str, tuple[str, dict[str, Any]]] = {
        "SELECT_NEWEST": (query("select_newest"), scopes[0]._asdict()),
        "SELECT_NEWEST_TOGETHER": (
            query("select_newest_together"),
            writing.columns(("thread_ids", "namespaces"), scopes),
        ),
        "SELECT_BY_ID": (query("select_by_id"), {**scopes[0]._asdict(), "checkpoint_id": newest}),
        "PUT": writing.put_statement([(scopes[0], put_of(a=[1], b=[2], c=[3], d=[4]))]),
        "PUT_FEW": writing.put_statement([(scopes[0], put_of())]),
        "PUT_TOGETHER": writing.put_statement([(scope, put_of()) for scope in scopes]),
    }
    for upsert in (False, True):
        for tasks, writes in ((1, 1), (1, 5), (4, 1)):
            pending = [
                codec.PendingWrites(
                    scope,
                    newest,
                    codec.encode_writes(SERDE, [("messages", 1)] * writes, task, "", last_wins=False),
                )
                for task, scope in zip("abcd"[:tasks], scopes, strict=False)
            ]
            made[f"{upsert=} {tasks=} {writes=}"] = writing.writes_statement(pending, upsert=upsert)
    assert len({statement for statement, _ in made.values()}) == len(made)
    return made


_MORE_HISTORY = """
WITH more AS (
    SELECT lpad(n::text, 32, '0') || '.5' AS version,
           '1f000000-0000-6000-8000-' || lpad(to_hex(n), 12, '0') AS id
    FROM generate_series(%(from)s::int, %(to)s::int) AS n
), blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT 'deep', '', 'messages', version, 'msgpack', '\\x90' FROM more
), writes AS (
    INSERT INTO checkpoint_writes
      (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
    SELECT 'deep', '', id, 'task', 0, 'messages', 'msgpack', '\\x90' FROM more
)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT 'deep', '', id, jsonb_build_object('v', 4, 'id', id, 'channel_versions',
    jsonb_build_object('messages', version, 'turn', version)), '{}' FROM more
"""
