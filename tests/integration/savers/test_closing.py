"""Closing a saver closes its connections, also when whoever waits for it is cancelled; and soon, also when a
server is away. Every connection of a pool that was passed in is back in it then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from conversations import execute
from databases import with_tables
from glasspoint import CachedPostgresSaver, RedisSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.l2 import connection_health
from glasspoint.l2.store import Store
from glasspoint.model import home
from glasspoint.model.cancellation import run_to_the_end
from glasspoint.model.scope import Scope
from glasspoint.telemetry.events import Telemetry
from states import config_of, make_pool, numbered_id, open_saver
from steps import OTHER_CONNECTIONS, Thread, away, until

if TYPE_CHECKING:
    from psycopg.rows import DictRow
    from psycopg_pool import AsyncConnectionPool

    from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

    Pool = AsyncConnectionPool[psycopg.AsyncConnection[DictRow]]

# More turns of the event loop than closing takes before its last answer is there.
_TURNS = 40


async def opened(kind: str, postgres_url: str, redis_url: str) -> Any:
    telemetry = create_telemetry(registry=CollectorRegistry())
    match kind:
        case "CachedPostgresSaver":
            return await CachedPostgresSaver.create(postgres_url, redis_url, telemetry=telemetry)
        case "RedisSaver":
            return await RedisSaver.create(redis_url, telemetry=telemetry)
    settings = Settings(postgres_url=postgres_url, redis_url=redis_url)
    return await get_checkpointer(settings, telemetry=telemetry).__aenter__()


@pytest.mark.parametrize("kind", ["CachedPostgresSaver", "RedisSaver", "get_checkpointer"])
async def test_a_close_that_is_cancelled_leaves_no_connection_behind(
    kind: str, database: str, own_redis: EmbeddedRedis
) -> None:
    async with (
        Redis.from_url(own_redis.url) as redis,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
    ):

        async def connections() -> int:
            row = await (await conn.execute(OTHER_CONNECTIONS)).fetchone()
            assert row is not None
            return len(await redis.client_list()) - 1 + int(row[0])

        for turns in range(1, _TURNS):
            saver = await opened(kind, database, own_redis.url)
            await asyncio.gather(*(saver.aget_tuple(config_of(f"{number}")) for number in range(4)))
            assert await connections() > 0
            closing = asyncio.ensure_future(saver.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            if closing.done():  # the turns before were all that a close takes
                closing.result()
                return
            closing.cancel()
            await asyncio.wait({closing})
            await until(lambda: none(connections))


async def test_an_opening_that_is_cancelled_as_it_fails_leaves_no_connection_behind(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is open, PostgreSQL is away, and the caller gives up while the opening cleans up."""
    close = Redis.aclose

    async def cancelled(client: Redis, *args: Any) -> None:
        opening.cancel()
        await asyncio.sleep(0)
        await close(client)

    telemetry = create_telemetry(registry=CollectorRegistry())
    async with Redis.from_url(own_redis.url) as redis:

        async def connections() -> int:
            return len(await redis.client_list()) - 1

        with monkeypatch.context() as patch:
            patch.setattr(Redis, "aclose", cancelled)
            opening = asyncio.ensure_future(
                CachedPostgresSaver.create("postgresql://127.0.0.1:1/x", own_redis.url, telemetry=telemetry)
            )
            await asyncio.wait({opening})
            assert opening.cancelled()
        await until(lambda: none(connections))


async def none(connections: Any) -> bool:
    return await connections() == 0


# ------------------------------------------------------------------ while connections cannot be had

# A close that waits for a checkout takes as long as the pool lets one wait: 30 s, and an own pool 10 s.
SOON_SECONDS = 8.0


@asynccontextmanager
async def over_a_foreign_pool(
    database: str, redis_url: str, *, size: int = 3, autocommit: bool = True
) -> AsyncIterator[tuple[CachedPostgresSaver, Pool]]:
    async with open_saver(database, redis_url):
        pass  # the tables
    pool = make_pool(database, size=size)
    pool.kwargs = {**pool.kwargs, "autocommit": autocommit}  # type: ignore[dict-item]
    async with pool, Redis.from_url(redis_url) as redis:
        telemetry = create_telemetry(registry=CollectorRegistry())
        saver = CachedPostgresSaver(
            AsyncPostgresSaver(pool), redis, sweep_interval_seconds=0.05, audit_ratio=0.0, telemetry=telemetry
        )
        try:
            yield saver, pool
        finally:
            await saver.close()


def calls_of(saver: CachedPostgresSaver) -> list[asyncio.Task[Any]]:
    """Calls of every kind, alone and in a crowd."""
    threads = [Thread(f"{number}") for number in range(8)]
    return [
        asyncio.ensure_future(call)
        for thread in threads
        for call in (
            saver.aput(*thread.next_put(saver)),
            saver.aput_writes(config_of("written", checkpoint_id=numbered_id(1)), [("messages", 1)], "task"),
            saver.aget_tuple(config_of(f"another {thread.thread_id}")),
        )
    ]


async def are_cancelled(calls: list[asyncio.Task[Any]]) -> None:
    for call in calls:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}


def waiting(pool: Pool) -> int:
    return pool.get_stats().get("requests_waiting", 0)


async def is_whole(pool: Pool) -> bool:
    """Whether every connection of a pool is back, and none is in a transaction."""
    stats = pool.get_stats()
    async with pool.connection() as conn:
        row = await (await conn.execute(IN_TRANSACTION)).fetchone()
    assert row is not None
    return stats["pool_size"] == stats["pool_available"] > 0 and row["count"] == 0


IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
"""


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("outage", ["down", "frozen"])
async def test_close_waits_for_no_connection_that_postgres_does_not_give(
    outage: str, autocommit: bool, own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    database = with_tables(own_postgres)
    async with over_a_foreign_pool(database, redis_url, autocommit=autocommit) as (saver, pool):
        await Thread("thread").put(saver)
        with away(own_postgres, outage):
            await until(lambda: waiting(pool))  # what goes on in the background has asked for one
            async with asyncio.timeout(SOON_SECONDS):
                await saver.close()
        await until(lambda: is_whole(pool))


@pytest.mark.parametrize("kind", ["CachedPostgresSaver", "get_checkpointer"])
@pytest.mark.parametrize("outage", ["down", "frozen"])
async def test_so_does_one_that_has_its_own_pool(
    outage: str, kind: str, own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    database = with_tables(own_postgres)
    saver = await opened(kind, database, redis_url)
    await Thread("thread").put(saver)
    with away(own_postgres, outage):
        async with asyncio.timeout(SOON_SECONDS):
            await saver.close()


async def test_close_does_not_wait_for_calls_that_were_cancelled_in_an_outage(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    database = with_tables(own_postgres)
    async with over_a_foreign_pool(database, redis_url) as (saver, pool):
        with away(own_postgres, "down"):
            calls = calls_of(saver)
            await until(lambda: waiting(pool) >= 2)
            await are_cancelled(calls)
            async with asyncio.timeout(SOON_SECONDS):
                await saver.close()
        await until(lambda: is_whole(pool))


async def test_close_does_not_wait_for_connections_that_the_caller_has_in_use(
    database: str, redis_url: str
) -> None:
    async with over_a_foreign_pool(database, redis_url, size=2) as (saver, pool):
        await Thread("thread").put(saver)  # its fence is to be removed
        async with pool.connection(), pool.connection():
            calls = calls_of(saver)
            await until(lambda: waiting(pool) >= 2)
            await are_cancelled(calls)
            async with asyncio.timeout(SOON_SECONDS):
                await saver.close()
        await until(lambda: is_whole(pool))


# ------------------------------------------------------------------ calls that give up


@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_connection_that_comes_as_its_caller_gives_up_stays_in_the_pool(
    autocommit: bool, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_health, "_IDLE_SECONDS", 0.0)  # it is asked for a sign of life, too
    async with over_a_foreign_pool(database, redis_url, size=1, autocommit=autocommit) as (saver, pool):
        for turns in range(50):
            async with pool.connection():
                calls = calls_of(saver)
                await until(lambda: waiting(pool) >= 2)
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert not [call for call in calls if not call.cancelled() and call.exception()]
            await until(lambda: is_whole(pool))


async def test_calls_that_give_up_leave_the_way_free_for_those_that_come_later(
    database: str, redis_url: str
) -> None:
    """Whoever fetches a connection for callers that have all left ends, whenever they leave; and not with it
    who comes meanwhile."""
    async with open_saver(database, redis_url):
        pass  # the tables
    async with make_pool(database, size=1) as pool:
        store = Store(AsyncPostgresSaver(pool), Telemetry("default", ()))

        def selects(count: int) -> list[asyncio.Task[Any]]:
            return [
                asyncio.create_task(store.select(Scope(f"{number}", ""), None)) for number in range(count)
            ]

        for turns in range(20):
            async with pool.connection():
                leaving = selects(12)
                for _ in range(turns):
                    await asyncio.sleep(0)
                for each in leaving:
                    each.cancel()
                for _ in range(turns % 5):
                    await asyncio.sleep(0)
                staying = selects(6)
                await asyncio.wait(leaving)
            async with asyncio.timeout(SOON_SECONDS):
                assert await asyncio.gather(*staying) == [None] * 6
        async with pool.connection():
            leaving = selects(12)
            await until(lambda: waiting(pool))
            for each in leaving:
                each.cancel()
            async with asyncio.timeout(SOON_SECONDS):
                await store.connections.drain()
        await until(lambda: is_whole(pool))


async def test_a_connection_that_is_of_no_more_use_is_closed_also_where_closing_returns_it(
    database: str, redis_url: str
) -> None:
    """`close_returns=True`, an option of psycopg_pool."""
    async with over_a_foreign_pool(database, redis_url, size=2) as (saver, pool):
        pool.close_returns = True
        thread = Thread("thread")
        await thread.put(saver)
        await execute(database, "ALTER DATABASE test SET default_transaction_read_only = on", END_OTHERS)
        put = asyncio.create_task(thread.put(saver))  # is refused, and tried again on fresh connections
        await until(lambda: put.done() or saver._retries._last)
        await execute(
            database,
            "SET default_transaction_read_only = off",
            "ALTER DATABASE test RESET default_transaction_read_only",
        )
        await put
        assert await thread.turn(saver) == thread.number
        await until(lambda: is_whole(pool))


END_OTHERS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


# ------------------------------------------------------------------ the end of a process


@pytest.mark.parametrize("where", ["asyncio.run", "its own loop"])
def test_the_end_of_a_process_waits_for_no_close_that_does_not_end(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the documentation says; here it says less."""
    monkeypatch.setattr(home, "_END_SECONDS", 0.2)

    class Saver:
        def __init__(self) -> None:
            self.home = home.Home(self)

        async def close(self) -> None:
            await run_to_the_end(asyncio.Event().wait())

    async def opened() -> Saver:
        return Saver()

    async def not_closed() -> None:
        saver = await opened()
        home.EndOfLoop("Saver", saver)
        unclosed.append(saver)

    def end() -> None:
        if where == "asyncio.run":
            with pytest.warns(ResourceWarning, match="was not closed"):
                asyncio.run(not_closed())
        else:
            own = home.OwnLoop(opened, reopens=False)
            own.saver()
            with pytest.raises(TimeoutError):
                own.close(within_seconds=home._END_SECONDS)

    unclosed: list[Saver] = []
    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(SOON_SECONDS)
    assert not ending.is_alive()
