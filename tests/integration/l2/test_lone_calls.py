"""A call that is alone goes to PostgreSQL as it comes: no task, one statement, nothing left behind when it is
cancelled. The calls of one superstep's tasks go together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.rows import tuple_row
from redis.asyncio import Redis

from conversations import execute
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.errors import L2RefusedError, L2UnavailableError
from glasspoint.l2 import connection_health, eager
from glasspoint.l2.store import Store, WritesResult
from glasspoint.l2.writing import Announced
from glasspoint.model import codec
from glasspoint.model.scope import Scope
from glasspoint.telemetry.events import Event, Observer, PoolWaited, Telemetry
from states import exact, make_pool, numbered_id, open_saver, open_upstream
from steps import Thread, locked, until

SERDE = JsonPlusSerializer()


async def ready(_connection: object) -> Announced:
    return Announced()


def encoded_put(thread: Thread, **more_values: Any) -> codec.EncodedPut:
    config, checkpoint, metadata, versions = thread.next_put(None, **more_values)  # type: ignore[arg-type]
    return codec.encode_put(SERDE, config, None, checkpoint, metadata, versions)


def encoded_writes(count: int, task_id: str = "task") -> list[codec.EncodedWrite]:
    values = [("messages", [number]) for number in range(count)]
    return codec.encode_writes(SERDE, values, task_id, "path", last_wins=False)


async def agree(saver: CachedPostgresSaver, database: str, thread: Thread) -> None:
    async with open_upstream(database) as upstream:
        for _ in range(2):
            assert exact(await saver.aget_tuple(thread.config)) == exact(
                await upstream.aget_tuple(thread.config)
            )


async def statements_that_wrote(database: str, table: str) -> int:
    """How many transactions made the rows of a table."""
    async with await psycopg.AsyncConnection.connect(database, row_factory=tuple_row) as conn:
        query = sql.SQL("SELECT count(DISTINCT xmin::text) FROM {}").format(sql.Identifier(table))
        [count] = await (await conn.execute(query)).fetchone() or (0,)
    return int(count)


def is_whole(saver: CachedPostgresSaver) -> bool:
    """Whether every connection of the pool is back."""
    pool = saver._l2.connections.pool
    assert pool is not None
    stats = pool.get_stats()
    return stats["pool_size"] == stats["pool_available"] > 0 and not saver._l2.connections.in_use


# ------------------------------------------------------------------ no task


async def test_a_lone_call_makes_no_task(database: str, redis_url: str) -> None:
    made: list[str] = []

    def counting(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        made.append(getattr(work, "__qualname__", "?"))
        return asyncio.Task(work, loop=loop, **options)

    async with open_saver(database, redis_url):
        pass  # the tables
    async with make_pool(database, size=1) as pool:  # nobody else uses it
        store, thread = Store(AsyncPostgresSaver(pool), Telemetry("default", ())), Thread("thread")
        scope = Scope(thread.thread_id, "")
        await store.select(scope, None)  # a new connection is asked for a sign of life, in a task
        loop = asyncio.get_running_loop()
        before = asyncio.all_tasks()
        loop.set_task_factory(counting)  # type: ignore[arg-type]
        try:
            for values in ({}, {name: [1] for name in "abcde"}):
                await store.put(scope, encoded_put(thread, **values), ready)
            for count, upsert in ((1, False), (5, False), (1, True), (5, True)):
                newest = numbered_id(thread.number)
                await store.put_writes(scope, newest, encoded_writes(count), ready, upsert=upsert)
            assert await store.select(scope, None) is not None
            assert await store.select(scope, numbered_id(1)) is not None
        finally:
            loop.set_task_factory(None)
        assert made == []
        assert asyncio.all_tasks() == before
        assert pool.get_stats()["pool_available"] == 1


# ------------------------------------------------------------------ cancelled


async def test_a_lone_write_that_is_cancelled_in_its_statement_is_not_done(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        async with locked(database, "checkpoints") as waiter:
            put = asyncio.ensure_future(saver.aput(*thread.next_put(saver)))
            await waiter()
            put.cancel()
            async with asyncio.timeout(5):
                await asyncio.wait({put})
            assert put.cancelled()
        await until(lambda: is_whole(saver))
        thread.number -= 1
        assert await thread.turn(saver) == 1
        await thread.put(saver)
        await agree(saver, database, thread)


@pytest.mark.parametrize("is_heard", [True, False])
async def test_cancelled_again_it_does_not_wait_for_the_servers_word_and_is_in_doubt(
    is_heard: bool, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed, perhaps before the server hears that the statement is to end. Either way
    readers get what PostgreSQL has."""
    sending = asyncio.Event()

    async def send_for_ever(*args: Any, **options: Any) -> None:
        sending.set()
        await asyncio.Event().wait()

    async with open_saver(database, redis_url) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        monkeypatch.setattr(psycopg.AsyncConnection, "cancel_safe", send_for_ever)
        async with locked(database, "checkpoints") as waiter:
            put = asyncio.ensure_future(saver.aput(*thread.next_put(saver)))
            pid = await waiter()
            put.cancel()
            await sending.wait()
            put.cancel()
            async with asyncio.timeout(5):
                await asyncio.wait({put})
            assert put.cancelled()
            if is_heard:
                await execute(database, f"SELECT pg_cancel_backend({pid})")
                await until(lambda: has_ended(database, pid))
        await until(lambda: has_ended(database, pid))
        await until(lambda: is_whole(saver))
        thread.number -= 1
        # A closed connection may end the statement, too, on a busy machine.
        assert await thread.turn(saver) in ({1} if is_heard else {1, 2})
        await agree(saver, database, thread)
        await thread.put(saver)
        await agree(saver, database, thread)


async def has_ended(database: str, pid: int) -> bool:
    """Whether a server process is gone."""
    return not await execute(database, f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}")


@pytest.mark.parametrize("pool_size", [1, 3])
async def test_a_call_that_is_cancelled_at_any_moment_leaves_every_connection_in_the_pool(
    pool_size: int, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url, pool_min_size=pool_size, pool_max_size=pool_size) as saver:
        thread, stored = Thread("thread"), 0
        await thread.put(saver)
        for rounds in range(60):
            calls = [
                asyncio.ensure_future(saver.aput(*thread.next_put(saver))),
                asyncio.create_task(saver.aput_writes(thread.newest, [("messages", rounds)], f"{rounds}")),
                asyncio.create_task(saver._l2.select(Scope(thread.thread_id, ""), None)),
            ]
            for _ in range(rounds):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            errors = [each for each in outcomes if isinstance(each, BaseException)]
            assert {type(each) for each in errors} <= {asyncio.CancelledError}
            stored += 3 - len(errors)
            await until(lambda: is_whole(saver))
        await thread.put(saver)
        await agree(saver, database, thread)


async def test_who_is_cancelled_while_the_pool_is_locked_does_not_take_its_connection_along(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        pool, scope = saver._l2.connections.pool, Scope("thread", "")
        assert pool is not None
        await saver._l2.select(scope, None)
        reached = asyncio.Event()

        async def use() -> None:
            async with saver._l2.connections.checked_out():
                await pool._lock.acquire()
                reached.set()

        using = asyncio.create_task(use())
        await reached.wait()
        await asyncio.sleep(0)
        using.cancel()
        await asyncio.wait({using})
        assert using.cancelled()
        assert not is_whole(saver)
        pool._lock.release()
        await until(lambda: is_whole(saver))


async def test_what_is_started_eagerly_goes_on_where_it_waits() -> None:
    gate, seen = asyncio.Event(), list[str]()

    async def work(*, waits: bool) -> None:
        seen.append("begun")
        if waits:
            await gate.wait()
        seen.append("done")

    assert eager.start(work(waits=False)) is None
    rest = eager.start(work(waits=True))
    assert seen == ["begun", "done", "begun"]
    assert rest is not None
    task = asyncio.create_task(rest)
    await asyncio.sleep(0)
    gate.set()
    await task
    assert seen == ["begun", "done", "begun", "done"]
    gate.clear()
    rest = eager.start(work(waits=True))
    assert rest is not None
    task = asyncio.create_task(rest)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_close_waits_for_a_lone_call(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        async with locked(database, "checkpoints") as waiter:
            put = asyncio.create_task(thread.put(saver))
            await waiter()
            closing = asyncio.ensure_future(saver.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
            assert not put.done()
        await put
        await closing


# ------------------------------------------------------------------ company


async def put_writes(saver: CachedPostgresSaver, thread: Thread, task_id: str) -> None:
    await saver.aput_writes(thread.newest, [("messages", task_id)], task_id, f"path of {task_id}")


TASKS = [f"task {number}" for number in range(8)]


async def test_the_writes_of_a_superstep_s_tasks_are_one_statement(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        await asyncio.gather(*(put_writes(saver, thread, task_id) for task_id in TASKS))
        assert await statements_that_wrote(database, "checkpoint_writes") == 1
        found = await saver.aget_tuple(thread.config)
        assert found is not None
        assert found.pending_writes == [(task_id, "messages", task_id) for task_id in TASKS]
        await agree(saver, database, thread)
    labels = {"saver": "default", "operation": "put_writes", "outcome": "ok"}
    assert registry.get_sample_value("glasspoint_operation_duration_seconds_count", labels) == len(TASKS)


async def test_the_writes_of_two_conversations_wait_for_nobody(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        threads = [Thread("one"), Thread("other")]
        for thread in threads:
            await thread.put(saver)
        await asyncio.gather(*(put_writes(saver, thread, "task") for thread in threads))
        assert await statements_that_wrote(database, "checkpoint_writes") == 2


@pytest.mark.parametrize("who", [0, 3], ids=["the first", "one who follows"])
async def test_who_of_them_is_cancelled_takes_nobody_along(who: int, database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        for rounds in range(25):
            thread = Thread(f"thread {rounds}")
            await thread.put(saver)
            writing = [asyncio.create_task(put_writes(saver, thread, task_id)) for task_id in TASKS]
            for _ in range(rounds):
                await asyncio.sleep(0)
            writing[who].cancel()
            outcomes = await asyncio.gather(*writing, return_exceptions=True)
            del outcomes[who]
            assert outcomes == [None] * (len(TASKS) - 1)
            found = await saver.aget_tuple(thread.config)
            assert found is not None
            stored = {task_id for task_id, *_ in found.pending_writes or ()}
            assert stored >= set(TASKS) - {TASKS[who]}
            await until(lambda: is_whole(saver))
            await agree(saver, database, thread)


async def test_what_postgres_refuses_of_one_task_is_refused_to_that_one(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            await conn.execute(
                "ALTER TABLE checkpoint_writes ADD CONSTRAINT refused CHECK (task_id <> 'task 3')"
            )
        writing = (put_writes(saver, thread, task_id) for task_id in TASKS)
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert isinstance(outcomes.pop(3), L2RefusedError)
        assert outcomes == [None] * (len(TASKS) - 1)
        await agree(saver, database, thread)


async def test_the_same_task_twice_is_stored_once(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        await asyncio.gather(*(put_writes(saver, thread, task_id) for task_id in [*TASKS, *TASKS]))
        found = await saver.aget_tuple(thread.config)
        assert found is not None
        assert found.pending_writes == [(task_id, "messages", task_id) for task_id in TASKS]
        await agree(saver, database, thread)


class Timeouts(Observer):
    """Counts the callers that got no connection in time."""

    def __init__(self) -> None:
        self.count = 0

    def emitted(self, event: Event) -> None:
        self.count += isinstance(event, PoolWaited) and event.is_timeout


@pytest.mark.parametrize("when", ["before the first is ready", "from the beginning"])
async def test_tasks_that_get_no_connection_together_are_told_so_together(
    when: str, database: str, redis_url: str
) -> None:
    """None of them waits for the pool's timeout once more by itself."""
    async with open_saver(database, redis_url):
        pass  # the tables
    pool, timeouts = make_pool(database, size=1), Timeouts()
    pool.timeout = 0.3
    async with pool:
        store = Store(AsyncPostgresSaver(pool), Telemetry("default", [timeouts]))
        scope = Scope("thread", "")
        await store.select(scope, None)
        begun, is_kept, is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def ready_later(_connection: object) -> Announced:
            begun.set()
            await is_kept.wait()
            return Announced()

        async def keep() -> None:
            async with store.connections.checked_out():
                begun.set()
                await is_over.wait()

        def write(task_id: str) -> asyncio.Task[WritesResult]:
            writes = encoded_writes(1, task_id)
            return asyncio.create_task(
                store.put_writes(scope, numbered_id(1), writes, ready_later, upsert=False)
            )

        keeping = [asyncio.create_task(keep())] if when == "from the beginning" else []
        writing = [write(task_id) for task_id in TASKS]
        await begun.wait()
        if not keeping:
            keeping = [asyncio.create_task(keep())]
            await until(lambda: pool.get_stats().get("requests_waiting") == 1)
        is_kept.set()
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {L2UnavailableError}
        assert timeouts.count == len(TASKS)
        assert pool.get_stats()["requests_errors"] == 1, "they have waited together"
        is_over.set()
        await asyncio.gather(*keeping)


async def test_tasks_go_together_also_when_their_connection_was_idle_for_long(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model thinks for a minute: then the connection is asked for a sign of life first."""
    async with open_saver(database, redis_url) as saver:
        thread = Thread("thread")
        await thread.put(saver)
        monkeypatch.setattr(connection_health, "_IDLE_SECONDS", 0.0)
        await asyncio.gather(*(put_writes(saver, thread, task_id) for task_id in TASKS))
        assert await statements_that_wrote(database, "checkpoint_writes") == 1
        await agree(saver, database, thread)


# ------------------------------------------------------------------ durable


@asynccontextmanager
async def slow_to_commit(database: str) -> AsyncIterator[None]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$"
        )
        await conn.execute(
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON checkpoints DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    yield


@pytest.mark.parametrize("callers", [1, 12])
async def test_a_write_returns_when_it_is_committed_also_where_statements_do_not_commit_by_themselves(
    callers: int, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url):
        pass  # the tables
    pool = make_pool(database, size=3)
    pool.kwargs["autocommit"] = False  # type: ignore[index]
    async with (
        pool,
        Redis.from_url(redis_url) as redis,
        slow_to_commit(database),
        await psycopg.AsyncConnection.connect(database, autocommit=True, row_factory=tuple_row) as conn,
    ):
        saver = CachedPostgresSaver(AsyncPostgresSaver(pool), redis, pool, audit_ratio=0.0)

        async def put_and_look(thread: Thread) -> bool:
            await thread.put(saver)
            query = "SELECT count(*) FROM checkpoints WHERE thread_id = %s"
            return await (await conn.execute(query, [thread.thread_id])).fetchone() == (1,)

        try:
            threads = [Thread(f"thread {number}") for number in range(callers)]
            assert await asyncio.gather(*map(put_and_look, threads)) == [True] * callers
        finally:
            await saver.close()


async def test_calls_one_after_the_other_stay_with_one_connection(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url, pool_min_size=4, pool_max_size=4) as saver:
        servers = set()
        for _ in range(8):
            async with saver._l2.connections.checkout() as connection:
                servers.add(connection.info.backend_pid)
        async with saver._l2.connections.checkout() as first, saver._l2.connections.checkout() as second:
            assert first.info.backend_pid != second.info.backend_pid
    assert len(servers) == 1
