"""How large the tables are: one query now and then, that nobody waits for and that delays nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import sleep
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from databases import with_tables
from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.l2 import sizes
from glasspoint.telemetry.events import TableSize
from states import make_pool, open_saver
from steps import Thread, away, locked, until


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


def task_of(saver: CachedPostgresSaver) -> asyncio.Task[None]:
    """The look at the tables that is under way, or was the last."""
    task = saver._parts.sizes._task
    assert task is not None
    return task


def pool_of(saver: CachedPostgresSaver) -> Any:
    pool = saver._l2.connections.pool
    assert pool is not None
    return pool


class Clock:
    """The time that `sizes` goes by."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sizes, "monotonic", clock)
    return clock


async def figures(saver: CachedPostgresSaver) -> Mapping[str, TableSize]:
    """What is known once somebody has looked."""
    assert saver.status.storage is not None
    found: Mapping[str, TableSize] = await until(saver.status.storage)
    return found


async def renewed(saver: CachedPostgresSaver, clock: Clock) -> Mapping[str, TableSize]:
    """What is known a minute later."""
    clock.seconds += 61
    before = saver._parts.sizes._found_at
    saver._parts.sizes.known()
    await until(lambda: saver._parts.sizes._found_at > before)
    return saver._parts.sizes.known()


async def execute(database: str, *statements: str) -> list[Any]:
    """Run them on a connection of their own, whose statistics are reported at once."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        for statement in statements:
            cursor = await conn.execute(statement)
            rows = await cursor.fetchall() if cursor.description else []
        await conn.execute("SELECT pg_stat_force_next_flush()")
    return rows


FILL = """
INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
SELECT 't', n::text, '{}', '{}' FROM generate_series(%s, %s) n
"""


async def test_all_tables_are_known_soon_after_opening(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        assert set(await figures(saver)) == set(sizes.TABLES)


@pytest.mark.parametrize("history", ["never analysed", "analysed, then grown", "statistics lost", "emptied"])
async def test_the_rows_are_about_right(history: str, database: str, redis_url: str, clock: Clock) -> None:
    """Nobody vacuums these tables by chance: it would make all histories alike."""
    expected = 3000
    async with open_saver(database, redis_url) as saver:
        await execute(
            database,
            "ALTER TABLE checkpoints SET (autovacuum_enabled = off)",
            FILL.replace("%s, %s", "1, 1000"),
        )
        if history != "never analysed":
            await execute(database, "VACUUM ANALYZE checkpoints")
        await execute(database, FILL.replace("%s, %s", "1001, 3000"))
        if history == "statistics lost":
            await execute(database, "SELECT pg_stat_reset_single_table_counters('checkpoints'::regclass)")
        if history == "emptied":
            await execute(database, "DELETE FROM checkpoints")
            expected = 0
        found = await renewed(saver, clock)
        [(size,)] = await execute(database, "SELECT pg_total_relation_size('checkpoints')")
    assert found["checkpoints"].rows == pytest.approx(expected, rel=0.05)
    assert found["checkpoints"].bytes == size
    assert found["checkpoint_blobs"].rows == 0


async def test_tables_are_found_as_the_saver_finds_them_partitioned_ones_too(
    database: str, redis_url: str
) -> None:
    await execute(
        database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.checkpoint_writes (n int) PARTITION BY HASH (n)",
        "CREATE TABLE own.w0 PARTITION OF own.checkpoint_writes FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE own.w1 PARTITION OF own.checkpoint_writes FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO own.checkpoint_writes SELECT generate_series(1, 500)",
        "CREATE TABLE public.checkpoints (n int)",
    )
    await execute(database, "ANALYZE")
    url = f"{database}{'&' if '?' in database else '?'}options=-csearch_path%3Down"
    async with CachedPostgresSaver.from_conn_string(url, redis_url=redis_url) as saver:
        found = await figures(saver)
    assert set(found) == {"checkpoint_writes"}
    assert found["checkpoint_writes"].rows == 500


async def test_without_tables_nothing_is_known_and_setup_makes_it_known(
    database: str, redis_url: str
) -> None:
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as saver:
        await until(lambda: saver._parts.sizes._task is not None and task_of(saver).done())
        assert saver._parts.sizes.known() == {}
        await saver.setup()
        assert set(await figures(saver)) == set(sizes.TABLES)


async def test_one_query_a_minute_and_none_if_nobody_asks(
    database: str, redis_url: str, clock: Clock
) -> None:
    async with open_saver(database, redis_url) as saver:
        await figures(saver)
        first = saver._parts.sizes._task
        for _ in range(100):
            saver._parts.sizes.known()
            clock.seconds += 0.5
        await asyncio.sleep(0)
        assert saver._parts.sizes._task is first, "50 seconds, 100 scrapes: no look"
        clock.seconds += 3000
        await asyncio.sleep(0)
        assert saver._parts.sizes._task is first, "nobody asks: no look"
        assert saver._parts.sizes.known(), "what is known, and an order for more"
        await until(lambda: saver._parts.sizes._task is not first)
        assert not task_of(saver).done() or saver._parts.sizes._found_at == clock.seconds


async def test_asking_never_waits_for_the_loop_or_a_server(
    database: str, redis_url: str, clock: Clock
) -> None:
    """This thread is the loop's: nothing can have been looked at between these lines."""
    async with (
        open_saver(database, redis_url) as saver,
        locked(database, "checkpoints", mode="ACCESS EXCLUSIVE"),
    ):
        before = await figures(saver) if saver._parts.sizes._found else {}
        clock.seconds += 61
        assert [saver._parts.sizes.known() for _ in range(1000)] == [before] * 1000
        assert saver._parts.sizes._looking


@asynccontextmanager
async def busy(saver: CachedPostgresSaver) -> AsyncIterator[None]:
    """All connections of its pool are out."""
    pool = saver._l2.connections.pool
    assert pool is not None
    async with pool.connection():
        yield


async def test_no_look_while_every_connection_is_in_use(database: str, redis_url: str, clock: Clock) -> None:
    async with open_saver(database, redis_url, pool_max_size=1, sweep_interval_seconds=3600) as saver:
        await figures(saver)
        clock.seconds += 61
        async with busy(saver):
            before = saver._parts.sizes._task
            saver._parts.sizes.known()
            await until(lambda: saver._parts.sizes._task is not before and task_of(saver).done())
            assert not pool_of(saver).get_stats().get("requests_waiting")
            assert saver._parts.sizes._found_at < clock.seconds
        saver._parts.sizes.known()  # the next scrape: at once, not in a minute
        await until(lambda: saver._parts.sizes._found_at == clock.seconds)


async def test_what_nobody_could_renew_for_five_minutes_is_not_shown(
    database: str, redis_url: str, clock: Clock
) -> None:
    async with open_saver(database, redis_url, pool_max_size=1, sweep_interval_seconds=3600) as saver:
        await figures(saver)
        async with busy(saver):
            clock.seconds += 61
            assert saver._parts.sizes.known(), "a minute old"
            clock.seconds += 299
            assert saver._parts.sizes.known()
            clock.seconds += 2
            assert not saver._parts.sizes.known()
        assert await figures(saver), "and then they are there again"
        clock.seconds += 3601
        assert not saver._parts.sizes.known(), "nobody has asked for an hour"


async def test_a_look_that_meets_a_lock_ends_soon_and_says_nothing(
    database: str, redis_url: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_saver(database, redis_url) as saver:
        before = await figures(saver)
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE"):
            clock.seconds += 61
            with caplog.at_level(logging.DEBUG, "glasspoint.l2"):
                saver._parts.sizes.known()
                await until(lambda: task_of(saver).done() and not saver._parts.sizes._looking)
        assert "not known (QueryCanceled)" in caplog.text
        assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
        assert saver._parts.sizes.known() == before
        async with saver._l2.connections.checkout() as conn:
            row = await (await conn.execute("SHOW statement_timeout")).fetchone()
        assert row == {"statement_timeout": "10s"}, "it was for that look alone"


async def test_a_server_that_refuses_is_a_warning_once(
    database: str,
    redis_url: str,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizes, "_SIZES", "SELECT no_such_function(%(tables)s)")
    async with open_saver(database, redis_url) as saver:
        for _ in range(3):
            clock.seconds += 61
            saver._parts.sizes.known()
            await until(lambda: task_of(saver).done() and not saver._parts.sizes._looking)
    warnings = [record.message for record in caplog.records if "sizes of the tables" in record.message]
    assert warnings == ["The sizes of the tables are not known (UndefinedFunction)."]


async def test_closing_breaks_a_look_off(database: str, redis_url: str, clock: Clock) -> None:
    async with open_saver(database, redis_url) as saver:
        await figures(saver)
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE") as waiter:
            clock.seconds += 61
            saver._parts.sizes.known()
            await waiter()
            await saver.close()
        assert task_of(saver).cancelled()
        clock.seconds += 61
        saver._parts.sizes.known()
        await asyncio.sleep(0)
        assert task_of(saver).done(), "no look after close"


def test_a_synchronous_saver_is_looked_at_on_its_own_loop(database: str, redis_url: str) -> None:
    with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as saver:
        saver.setup()
        for _ in range(1000):
            if found := saver._parts.sizes.known():
                break
            sleep(0.005)
        assert set(found) == set(sizes.TABLES)


def test_a_saver_whose_loop_has_ended_only_tells_what_was_known(database: str, redis_url: str) -> None:
    async def open_and_forget() -> CachedPostgresSaver:
        async with open_saver(database, redis_url) as saver:
            await figures(saver)
        saver._parts.sizes._stopped = False  # as if nobody had closed it
        return saver

    saver = asyncio.run(open_and_forget())
    saver._parts.sizes._ask_from = 0.0
    assert saver._parts.sizes.known()
    assert saver._parts.sizes.known()


@pytest.mark.parametrize("outage", ["down", "frozen"])
async def test_while_postgres_is_away_the_looks_end_and_the_figures_go_and_come_back(
    outage: str, own_postgres: EmbeddedPostgres, redis_url: str, clock: Clock
) -> None:
    async with open_saver(with_tables(own_postgres), redis_url, pool_timeout_seconds=1) as saver:
        await figures(saver)
        clock.seconds += 61
        with away(own_postgres, outage):
            assert saver._parts.sizes.known(), "a minute old"
            await until(lambda: not saver._parts.sizes._looking)
            assert saver._parts.sizes._found_at < clock.seconds, "in vain"
            clock.seconds += 301
            assert saver._parts.sizes.known() == {}
            await until(lambda: not saver._parts.sizes._looking)
        clock.seconds += 61
        assert await figures(saver)


async def test_one_connection_alone_is_left_to_calls(database: str, redis_url: str, clock: Clock) -> None:
    async with (
        Redis.from_url(redis_url) as redis,
        AsyncPostgresSaver.from_conn_string(database) as upstream,
    ):
        saver = CachedPostgresSaver(upstream, redis, sweep_interval_seconds=3600)
        await saver.setup()
        await Thread("a").put(saver)
        await figures(saver)
        clock.seconds += 61
        async with upstream.lock:
            before = saver._parts.sizes._task
            saver._parts.sizes.known()
            await until(lambda: saver._parts.sizes._task is not before and task_of(saver).done())
            assert saver._parts.sizes._found_at < clock.seconds
        await saver.close()


async def test_a_pool_that_is_not_open_is_no_error(database: str, redis_url: str) -> None:
    pool = make_pool(database, size=1)
    async with Redis.from_url(redis_url) as redis:
        saver = CachedPostgresSaver(AsyncPostgresSaver(pool), redis)
        saver._parts.sizes.known()
        await until(lambda: saver._parts.sizes._task is not None and task_of(saver).done())
        assert saver._parts.sizes.known() == {}
        await saver.close()
