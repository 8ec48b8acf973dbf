"""The journal: a write that Redis was not told of is not hidden by an older image, for anybody, for long."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    L1Error,
    L1UnavailableError,
    L2DeadlineError,
    L2RefusedError,
    L2UnavailableError,
)
from glasspoint.l2.writing import storing
from glasspoint.model.scope import Scope
from states import counts, exact, open_saver, open_upstream, value_of
from steps import STORING, Proxy, Thread, keys_of, keys_with_intents, locked, nowhere, settled, tcp, until

NEVER = 3600.0
"""An interval: nobody sweeps by himself while a test runs."""


async def sql(database: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        cursor = await conn.execute(statement, params or None)
        return await cursor.fetchall() if cursor.description else []


async def journal(database: str) -> list[tuple[str, str]]:
    """The scopes that stand in the journal."""
    return [
        (thread_id, namespace)
        for thread_id, namespace in await sql(
            database, "SELECT thread_id, checkpoint_ns FROM glasspoint_l1_journal ORDER BY id"
        )
    ]


async def record(database: str, thread_id: str, *, cache: str = "glasspoint", times: int = 1) -> None:
    await sql(
        database,
        "INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns) "
        "SELECT %s, %s, '' FROM generate_series(1, %s)",
        cache,
        thread_id,
        times,
    )


async def put_behind_the_back_of_redis(database: str, thread: Thread) -> None:
    """PostgreSQL has one more checkpoint, and Redis the image before it."""
    async with open_upstream(database) as upstream:
        await thread.put(upstream)


async def unheard(*args: Any, **options: Any) -> None:
    """What CONFIRM answers when Redis did not: nothing."""


class Reader:
    """A process that reaches Redis all the time."""

    def __init__(self, saver: CachedPostgresSaver, registry: CollectorRegistry) -> None:
        self.saver = saver
        self.registry = registry

    def counted(self, name: str, label: str) -> dict[str, int]:
        return counts(self.registry, f"glasspoint_{name}_total", label)

    async def hit(self, thread: Thread) -> int | None:
        """Read, and make sure that Redis answered."""
        before = self.counted("l1_reads", "result")["hit"]
        number = await thread.turn(self.saver)
        assert self.counted("l1_reads", "result")["hit"] == before + 1
        return number


@asynccontextmanager
async def reader_of(database: str, redis_url: str, **options: Any) -> AsyncIterator[Reader]:
    registry = CollectorRegistry()
    async with open_saver(
        database, redis_url, telemetry=create_telemetry(registry=registry), **options
    ) as saver:
        yield Reader(saver, registry)


# ------------------------------------------------------------------ the promise


async def test_what_a_writer_cut_off_from_redis_has_written_is_read_by_all_soon(
    database: str, own_redis: EmbeddedRedis
) -> None:
    """The one window: a reader whose own way to Redis is fine may read the state before, until a sweep."""
    thread = Thread("a")
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        reader_of(database, own_redis.url) as reader,
        reader_of(database, proxy.url) as writer,
    ):
        await thread.put(writer.saver)
        await settled(writer.saver)
        assert await reader.hit(thread) == 1
        await proxy.switch(nowhere)
        await thread.put(writer.saver)
        assert await thread.turn(writer.saver) == 2, "the writer itself never reads the state before"
        await until(lambda: _reads(reader, thread, 2))
        await until(lambda: _is_empty(database))
        assert await thread.turn(reader.saver) == 2
        assert reader.counted("l1_invalidations", "source")["journal"] >= 1
        assert writer.counted("write_through", "l1") == {"announced": 1, "journalled": 1}


@pytest.mark.parametrize("write", ["put", "put_writes"])
async def test_a_write_that_could_not_be_announced_once_is_read_by_all_at_once(
    write: str, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BEGIN was lost, and Redis answers again: the entry is forgotten before the write is acknowledged."""
    thread = Thread("a")
    async with (
        reader_of(database, redis_url, sweep_interval_seconds=NEVER) as reader,
        reader_of(database, redis_url, sweep_interval_seconds=NEVER) as writer,
        open_upstream(database) as upstream,
    ):
        await prepare(write, thread, writer.saver)
        await reader.saver.aget_tuple(thread.config)
        assert await reader.hit(thread) == 2
        pipeline = writer.saver._l1._steps._pipeline
        evalsha = pipeline.evalsha

        async def loses_a_step(*args: Any) -> Any:
            monkeypatch.setattr(pipeline, "evalsha", evalsha)  # it loses one
            raise RedisConnectionError("made to fail")

        monkeypatch.setattr(pipeline, "evalsha", loses_a_step)
        await WRITES[write](thread, writer.saver)
        truth = await upstream.aget_tuple(thread.config)
        assert exact(await reader.saver.aget_tuple(thread.config)) == exact(truth)
        assert writer.counted("write_through", "l1")["discarded"] == 1
        assert await journal(database) == [("a", "")]


async def _reads(reader: Reader, thread: Thread, number: int) -> bool:
    return await thread.turn(reader.saver) == number


async def _is_empty(database: str) -> bool:
    return not await journal(database)


Write = Callable[[Thread, BaseCheckpointSaver[str]], Awaitable[Any]]

WRITES: dict[str, Write] = {
    "put": lambda thread, saver: thread.put(saver),
    "put_writes": lambda thread, saver: thread.put_writes(saver, "x"),
    "delete_thread": lambda thread, saver: saver.adelete_thread(thread.thread_id),
    "delete_for_runs": lambda thread, saver: saver.adelete_for_runs(["run"]),
    "prune": lambda thread, saver: saver.aprune([thread.thread_id]),
    "prune, strategy delete": lambda thread, saver: saver.aprune([thread.thread_id], strategy="delete"),
    "copy_thread": lambda thread, saver: saver.acopy_thread("source", thread.thread_id),
}
NEEDS_NO_IMAGE = ("copy_thread",)


async def prepare(write: str, thread: Thread, saver: CachedPostgresSaver) -> None:
    """What each of the writes finds: two checkpoints of one run, or a thread to copy."""
    thread = Thread("source") if write in NEEDS_NO_IMAGE else thread
    for _ in range(2):
        config, checkpoint, metadata, versions = thread.next_put(saver)
        thread.newest = await saver.aput(config, checkpoint, {**metadata, "run_id": "run"}, versions)
    await settled(saver)


@pytest.mark.parametrize("write", WRITES)
async def test_every_kind_of_write_is_recorded_and_swept(
    write: str, database: str, own_redis: EmbeddedRedis
) -> None:
    thread = Thread("a")
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        reader_of(database, own_redis.url, sweep_interval_seconds=NEVER) as reader,
        open_saver(database, proxy.url, sweep_interval_seconds=NEVER) as writer,
        open_upstream(database) as upstream,
    ):
        await prepare(write, thread, writer)
        await thread.turn(reader.saver)  # trusts L1 from here on, and warms up
        await proxy.switch(nowhere)
        await WRITES[write](thread, writer)
        assert ("a", "") in await journal(database)
        # As if the interval had passed.
        await reader.saver._parts.sweeper.round()
        assert await _is_empty(database)
        truth = await upstream.aget_tuple(thread.config)
        assert exact(tuple(await reader.saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))
        assert exact(tuple(await writer.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))


@pytest.mark.parametrize("write", ["put", "put_writes", "delete_thread", "prune, strategy delete"])
async def test_a_write_that_fails_leaves_no_row(write: str, database: str, own_redis: EmbeddedRedis) -> None:
    """Write and row are one transaction: there is never one without the other."""
    thread = Thread("a")
    async with open_saver(database, own_redis.url, sweep_interval_seconds=NEVER) as saver:
        await prepare(write, thread, saver)
        own_redis.kill()
        table = "checkpoint_writes" if write == "put_writes" else "checkpoints"
        await sql(
            database,
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql "
            "AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
        )
        await sql(
            database,
            f"CREATE CONSTRAINT TRIGGER fail AFTER INSERT OR DELETE ON {table} INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION fail()",
        )
        with pytest.raises(L2RefusedError, match="RaiseException"):
            await WRITES[write](thread, saver)
        assert await _is_empty(database)


@pytest.mark.parametrize("write", ["put", "put_writes", "delete_thread"])
async def test_a_commit_that_redis_does_not_hear_is_recorded_before_the_answer(
    write: str, database: str, own_redis: EmbeddedRedis
) -> None:
    """BEGIN was heard; but its intent may be evicted, and a reader warm up what PostgreSQL held then."""
    thread = Thread("a")
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        reader_of(database, own_redis.url, sweep_interval_seconds=NEVER) as reader,
        reader_of(database, proxy.url, sweep_interval_seconds=NEVER) as writer,
        open_upstream(database) as upstream,
        Redis.from_url(own_redis.url) as redis,
    ):
        await prepare(write, thread, writer.saver)
        await thread.turn(writer.saver)
        await thread.turn(reader.saver)
        table = "checkpoint_writes" if write == "put_writes" else "checkpoint_blobs"
        async with locked(database, table) as waiter:
            writing = asyncio.ensure_future(WRITES[write](thread, writer.saver))
            await waiter()
            if write == "delete_thread":  # its BEGIN comes after the rows: so hold its COMMIT back
                proceed = asyncio.Event()
                drop = writer.saver._l1.drop

                async def drop_later(*args: Any, **options: Any) -> bool:
                    await proceed.wait()
                    return await drop(*args, **options)

                writer.saver._l1.drop = drop_later  # type: ignore[method-assign]
            else:
                await redis.flushall()  # the intent is evicted
                assert await thread.turn(reader.saver) == 2
                await proxy.switch(nowhere)
        if write == "delete_thread":
            await until(lambda: _has_intent(own_redis.url))
            await redis.flushall()
            await proxy.switch(nowhere)
            proceed.set()
        await writing
        assert await journal(database) == [("a", "")]
        truth = await upstream.aget_tuple(thread.config)
        assert exact(tuple(await writer.saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))
        await reader.saver._parts.sweeper.round()
        assert exact(tuple(await reader.saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))
        if write != "delete_thread":
            assert writer.counted("write_through", "l1")["journalled"] == 1


async def _has_intent(redis_url: str) -> bool:
    return bool(await keys_with_intents(redis_url))


async def test_a_write_of_which_neither_redis_nor_the_journal_can_be_told_is_not_acknowledged(
    database: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    async with open_saver(database, own_redis.url, sweep_interval_seconds=NEVER) as saver:
        await thread.put(saver)

        async def unavailable(scopes: Any) -> None:
            raise L2UnavailableError("gone")

        await settled(saver)
        monkeypatch.setattr(saver._l1, "confirm", unheard)
        monkeypatch.setattr(saver._l2.journal, "record_now", unavailable)
        with pytest.raises(L2UnavailableError, match="gone"):
            await thread.put(saver)


async def test_a_journal_that_does_not_answer_is_not_waited_for_without_end(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, write_deadline_seconds=1.5) as saver:
        await thread.put(saver)

        await settled(saver)
        monkeypatch.setattr(saver._l1, "confirm", unheard)
        async with locked(database, "glasspoint_l1_journal", mode="ACCESS EXCLUSIVE"):
            with pytest.raises(L2DeadlineError):
                await thread.put(saver)


# ------------------------------------------------------------------ before L1 is trusted


async def test_a_new_process_sweeps_before_it_believes_an_image(database: str, redis_url: str) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        await thread.put(saver)
        await put_behind_the_back_of_redis(database, thread)
        await record(database, "a")
        assert await thread.turn(saver) == 1, "or this test shows nothing"
        async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as late:
            assert await thread.turn(late) == 2
        assert await _is_empty(database)


async def test_a_saver_put_together_by_hand_sweeps_too(database: str, redis_url: str) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        await thread.put(saver)
    await put_behind_the_back_of_redis(database, thread)
    await record(database, "a")
    async with open_upstream(database) as upstream, Redis.from_url(redis_url) as redis:
        saver = CachedPostgresSaver(upstream, redis)
        assert await thread.turn(saver) == 2
        await saver.close()


@pytest.mark.parametrize("outage", ["one step fails", "the breaker opens", "another epoch"])
async def test_after_an_outage_the_journal_comes_first(
    outage: str, database: str, own_redis: EmbeddedRedis
) -> None:
    thread = Thread("a")
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        open_saver(database, proxy.url, sweep_interval_seconds=NEVER) as saver,
        open_saver(database, own_redis.url, sweep_interval_seconds=NEVER) as other,
    ):
        await thread.put(other)
        assert await thread.turn(saver) == 1
        if outage == "one step fails":
            await proxy.switch(nowhere)
            assert await thread.turn(saver) == 1
            assert saver._parts.breaker.is_closed
            await proxy.switch(tcp(own_redis))
        elif outage == "the breaker opens":
            await proxy.switch(nowhere)
            await until(lambda: _is_open(saver, thread))
            await proxy.switch(tcp(own_redis))
        else:
            own_redis.kill()
            own_redis.start()
            assert await thread.turn(other) == 1  # warms up in the new epoch
            assert await thread.turn(other) == 1
        await put_behind_the_back_of_redis(database, thread)
        await record(database, "a")
        assert await thread.turn(saver) == 2
        await until(lambda: _trusts(saver, thread))
        assert await thread.turn(saver) == 2


async def _is_open(saver: CachedPostgresSaver, thread: Thread) -> bool:
    await thread.turn(saver)
    return not saver._parts.breaker.is_closed


async def _trusts(saver: CachedPostgresSaver, thread: Thread) -> bool:
    assert await thread.turn(saver) == thread.number
    return saver._l1.trust.is_trusted


async def test_while_the_journal_cannot_be_read_nothing_in_redis_is_believed(
    database: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    async with reader_of(database, own_redis.url, sweep_interval_seconds=NEVER) as reader:
        await thread.put(reader.saver)
        assert await reader.hit(thread) == 1
        reader.saver._l1.trust.suspect()

        async def unavailable(*args: Any, **options: Any) -> Any:
            raise L2UnavailableError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(reader.saver._l2.identities, "look", unavailable)
            assert await thread.turn(reader.saver) == 1
            assert reader.counted("l1_reads", "result") == {"hit": 1, "unavailable": 1}
        await until(lambda: _trusts(reader.saver, thread))
        assert await reader.hit(thread) == 1


# ------------------------------------------------------------------ many sweepers


async def test_sweepers_do_not_queue_and_none_takes_what_another_has_in_hand_for_swept(
    database: str, redis_url: str
) -> None:
    """Another one has locked the row, and dies, or takes its time: this one drops the entry itself."""
    thread = Thread("a")
    async with (
        open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver,
        await psycopg.AsyncConnection.connect(database) as another,
    ):
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        await put_behind_the_back_of_redis(database, thread)
        await record(database, "a")
        await another.execute("SELECT * FROM glasspoint_l1_journal FOR UPDATE")
        saver._l1.trust.suspect()
        assert await thread.turn(saver) == 2
        assert {*await journal(database)} == {("a", "")}, "who has it in hand takes it away"
        await another.rollback()
        await saver._parts.sweeper.round()
        assert await _is_empty(database)


async def test_a_row_that_is_added_while_its_scope_is_swept_stays(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        await record(database, "a")
        forget = saver._l1.forget

        async def and_another(scopes: Any) -> Any:
            refused = await forget(scopes)
            await record(database, "a")
            return refused

        saver._l1.forget = and_another  # type: ignore[method-assign]
        await saver._parts.sweeper.round()
        assert await journal(database) == [("a", "")]


async def test_a_row_whose_entry_could_not_be_dropped_stays(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        await record(database, "a")

        async def fail(scopes: Any) -> None:
            raise L1UnavailableError("gone")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saver._l1, "forget", fail)
            saver._l1.trust.suspect()
            await saver._parts.sweeper.round()
            assert not saver._l1.trust.is_trusted
            assert await journal(database) == [("a", "")]
        await saver._parts.sweeper.round()
        assert saver._l1.trust.is_trusted
        assert await _is_empty(database)


async def test_what_went_wrong_during_a_sweep_makes_it_worth_nothing(database: str, redis_url: str) -> None:
    """The write whose step failed may have been recorded after this sweep had looked."""
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        look = saver._l2.identities.look

        async def and_a_failure(*args: Any, **options: Any) -> Any:
            found = await look(*args, **options)
            saver._l1.contact.failed(TimeoutError())
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saver._l2.identities, "look", and_a_failure)
            await saver._parts.sweeper.round()
            assert not saver._l1.trust.is_trusted
        await saver._parts.sweeper.round()
        assert saver._l1.trust.is_trusted


async def test_rows_of_another_cache_are_another_s(database: str, redis_url: str) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        await thread.put(saver)
        await record(database, "a", cache="another prefix")
        await saver._parts.sweeper.round()
        assert await journal(database) == [("a", "")]


async def test_thousands_of_rows_are_swept_by_the_batch_and_reads_do_not_wait_for_all(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with reader_of(database, redis_url, sweep_interval_seconds=NEVER) as reader:
        await thread.put(reader.saver)
        for number in range(10):
            await record(database, f"thread {number}", times=100)
        reader.saver._l1.trust.suspect()
        assert await thread.turn(reader.saver) == 1
        assert reader.counted("l1_reads", "result") == {"unavailable": 1}, "it went to PostgreSQL"
        await until(lambda: _is_empty(database))  # in the background, at once
        await until(lambda: _trusts(reader.saver, thread))


async def test_while_redis_stays_away_rows_do_not_pile_up(
    database: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasspoint.coherence.sweeper._COUNT_EVERY_SECONDS", 0.0)
    registry = CollectorRegistry()
    async with open_saver(
        database,
        own_redis.url,
        telemetry=create_telemetry(registry=registry),
        sweep_interval_seconds=NEVER,
    ) as saver:
        sweeper = saver._parts.sweeper
        sweeper._count_at = math.inf  # else a sweep may compact when not all rows are there
        own_redis.kill()
        await until(lambda: _is_open(saver, Thread("a")))
        for number in range(3):
            await record(database, f"thread {number}", times=1000)
        sweeper._count_at = 0.0
        compacted = [(f"thread {number}", "") for number in range(3)]

        async def are_compacted() -> bool:
            await sweeper._count()
            return sorted(await journal(database)) == compacted

        await until(are_compacted)
        await until(lambda: value_of(registry, "glasspoint_l1_journal_pending", {"saver": "default"}) == 3)


async def test_compacted_rows_are_new_ones(database: str, redis_url: str) -> None:
    """Whoever dropped an entry for the old ones must not take the new one away."""
    async with open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver:
        await record(database, "a", times=3)
        seen = await saver._l2.identities.look(limit=10)
        assert seen is not None
        await saver._l2.journal.compact()
        assert seen.attachment is not None
        await saver._l2.journal.delete(seen.rows, seen.attachment.generation)
        assert await journal(database) == [("a", "")]


# ------------------------------------------------------------------ no journal


async def test_without_its_tables_the_saver_works_and_uses_no_cache(
    empty_database: str, own_redis: EmbeddedRedis
) -> None:
    """Upstream's own `setup` was called, ours was not: no process has a cache, so none misses a write."""
    thread = Thread("a")
    async with open_upstream(empty_database):
        pass
    async with CachedPostgresSaver.from_conn_string(empty_database, redis_url=own_redis.url) as saver:
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        assert await thread.turn(saver) == 1
        assert await keys_of(own_redis.url) == {}
        own_redis.kill()
        await thread.put(saver)
        assert await thread.turn(saver) == 2
        own_redis.start()
        await saver.setup()
        assert await until(lambda: _trusts(saver, thread))
        await thread.put(saver)
        assert await thread.turn(saver) == 3
        assert len(await keys_of(own_redis.url)) == 1


async def test_a_role_that_may_not_use_the_table_is_told_so_and_reads_from_postgres(
    postgres: EmbeddedPostgres, database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url) as saver:
        await thread.put(saver)
    given: dict[str, Any] = conninfo_to_dict(database)
    for statement in (
        "DROP ROLE IF EXISTS without_journal",
        "CREATE ROLE without_journal LOGIN",
    ):
        await sql(postgres.url, statement)
    tables = "checkpoints, checkpoint_blobs, checkpoint_writes, checkpoint_migrations"
    await sql(database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO without_journal")
    registry = CollectorRegistry()
    as_role = make_conninfo(**{**given, "user": "without_journal"})
    async with CachedPostgresSaver.from_conn_string(
        as_role, redis_url=redis_url, telemetry=create_telemetry(registry=registry)
    ) as saver:
        assert await thread.turn(saver) == 1
        await until(lambda: "GRANT" in caplog.text)
        assert counts(registry, "glasspoint_l1_reads_total", "result") == {"unavailable": 1}
    assert len([r for r in caplog.records if "glasspoint_l1_journal" in r.getMessage()]) == 1
    await sql(database, "DROP OWNED BY without_journal")
    await sql(postgres.url, "DROP ROLE without_journal")


# ------------------------------------------------------------------ those who prefer an error


@pytest.mark.parametrize("write", WRITES)
async def test_told_to_raise_a_write_fails_before_postgres_is_touched(
    write: str, database: str, own_redis: EmbeddedRedis
) -> None:
    thread = Thread("a")
    async with (
        open_saver(database, own_redis.url, on_l1_outage="raise") as saver,
        open_upstream(database) as upstream,
    ):
        await prepare(write, thread, saver)
        before = [exact(tuple(each)) async for each in upstream.alist(None)]
        own_redis.kill()
        for _ in range(5):  # with the breaker closed, and with it open
            with pytest.raises(L1UnavailableError, match="Redis"):
                await WRITES[write](thread, saver)
        assert [exact(tuple(each)) async for each in upstream.alist(None)] == before
        assert await _is_empty(database)
        if write not in NEEDS_NO_IMAGE:
            found = await saver.aget_tuple(thread.config)
            assert found is not None, "reads lose no guarantee"


async def test_told_to_raise_a_write_within_a_burst_needs_no_redis(
    database: str, own_redis: EmbeddedRedis
) -> None:
    """Readers were sent to PostgreSQL, and are still; the burst after it is refused."""
    thread = Thread("a")
    async with (
        open_saver(database, own_redis.url, on_l1_outage="raise") as saver,
        open_upstream(database) as upstream,
    ):
        await thread.put(saver)
        own_redis.freeze()
        await thread.put(saver)
        assert await thread.turn(upstream) == 2
        own_redis.thaw()
        await settled(saver)
        assert await thread.turn(saver) == 2


async def test_told_to_raise_a_write_whose_confirmation_was_not_heard_is_not_acknowledged(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, on_l1_outage="raise", sweep_interval_seconds=NEVER) as saver:
        await thread.put(saver)

        with monkeypatch.context() as patch:
            await settled(saver)
            patch.setattr(saver._l1, "confirm", unheard)
            with pytest.raises(L1UnavailableError, match="PostgreSQL has the write"):
                await thread.put(saver)
        assert await thread.turn(saver) == 2
        thread.number = 1
        await thread.put(saver)  # repeated
        assert await thread.turn(saver) == 2


async def test_what_else_to_do_in_an_outage_is_a_mistake(database: str, redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="on_l1_outage"):
        await CachedPostgresSaver.create(database, redis_url, on_l1_outage="wait")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="sweep_interval_seconds"):
        await CachedPostgresSaver.create(database, redis_url, sweep_interval_seconds=0)


# ------------------------------------------------------------------ in the background


async def test_the_sweeper_ends_with_its_saver(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        task = saver._parts.sweeper._task
        assert task is not None
        assert not task.done()
    assert task.done()


async def test_the_sweeper_ends_with_a_saver_that_nobody_holds_any_more(
    database: str, redis_url: str
) -> None:
    async with open_upstream(database) as upstream, Redis.from_url(redis_url) as redis:
        saver = CachedPostgresSaver(upstream, redis, sweep_interval_seconds=0.01)
        await saver.setup()
        task, gone = saver._parts.sweeper._task, weakref.ref(saver)
        assert task is not None
        del saver

        async def collected() -> bool:
            gc.collect()
            return gone() is None

        await until(collected)
        await until(task.done)


async def test_the_sweeper_stands_in_nobody_s_trace(database: str, redis_url: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("start-up"):
        saver = await CachedPostgresSaver.create(
            database, redis_url, telemetry=telemetry, sweep_interval_seconds=NEVER
        )
        await until(lambda: saver._l1.trust.is_trusted)
        exporter.clear()
        await record(database, "a")
        saver._parts.sweeper.look_soon()
        await until(lambda: _is_empty(database))
        await saver.close()
    spans = [span.name for span in exporter.get_finished_spans()]
    assert spans == ["start-up"], "nor does it make traces of its own"


async def test_a_sweep_that_fails_is_tried_again(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "glasspoint")
    async with open_saver(database, redis_url, sweep_interval_seconds=0.01) as saver:
        await until(lambda: saver._l1.trust.is_trusted)
        look = saver._l2.identities.look
        failures = iter([L1Error("x"), L2UnavailableError("x"), OSError("x"), ValueError("x")])

        async def fail_first(*args: Any, **options: Any) -> Any:
            for error in failures:
                raise error
            return await look(*args, **options)

        saver._l2.identities.look = fail_first  # type: ignore[method-assign]
        await record(database, "a")
        await until(lambda: _is_empty(database))


async def test_a_batch_of_a_prune_is_swept_too(database: str, own_redis: EmbeddedRedis) -> None:
    """Its rows are removed only if Redis was told; what Redis does not hear afterwards is recorded."""
    thread = Thread("a")
    async with open_saver(database, own_redis.url, sweep_interval_seconds=NEVER) as saver:
        await thread.put(saver)
        await thread.put(saver)

        async def unheard(*args: Any, **options: Any) -> bool:
            return False

        saver._l1.drop = unheard  # type: ignore[method-assign]
        await saver.aprune_older_than(timedelta(seconds=1))
        assert await journal(database) == [("a", "")]


def test_a_statement_that_also_records_scopes_is_the_same_otherwise() -> None:
    for plain, journalled in ((storing(name), storing(name, is_journalled=True)) for name in STORING):
        rest = plain.removeprefix("/* glasspoint */\n").removeprefix("WITH\n")
        assert journalled.startswith(
            "/* glasspoint */\nWITH journalled AS (\n    INSERT INTO glasspoint_l1_journal"
        )
        assert journalled.endswith(f"\n{rest}")
    assert Scope("a", "")._asdict() == {"thread_id": "a", "checkpoint_ns": ""}, "the names of its parameters"
