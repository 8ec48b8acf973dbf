"""An idle process sends no traces, a round trip counts once, and what waits in vain says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode

from chains import chain, reached, settings_of
from databases import with_tables
from glasspoint import CachedPostgresSaver, RedisSaver, get_checkpointer
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError, SchemaError
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.quiet import quiet_context
from recorder import Recorder, attributes
from states import open_saver
from steps import Thread, settled, until


@contextmanager
def instrumented(recorder: Recorder) -> Iterator[None]:
    """As an application turns the instrumentations on: before it opens anything."""
    RedisInstrumentor().instrument(tracer_provider=recorder.provider)
    PsycopgInstrumentor().instrument(tracer_provider=recorder.provider)
    try:
        yield
    finally:
        PsycopgInstrumentor().uninstrument()
        RedisInstrumentor().uninstrument()


async def test_an_idle_process_sends_no_traces(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, idle for some rounds of the sweeper and a look at the sizes, asked for /readyz, closed."""
    recorder = Recorder()
    with instrumented(recorder):
        async with open_saver(
            database, redis_url, telemetry=recorder.telemetry, sweep_interval_seconds=0.01
        ) as saver:
            sweeper = saver._parts.sweeper
            rounds = Counter[str]()
            round_ = sweeper.round

            async def counted() -> float:
                rounds["sweeper"] += 1
                return await round_()

            monkeypatch.setattr(sweeper, "round", counted)
            await until(lambda: rounds["sweeper"] >= 5)
            saver._parts.sizes.look_soon()
            await until(lambda: saver._parts.sizes.known())
            assert saver.status.check is not None
            assert (await saver.status.check())["l2"] == "ok"
    assert [span.name for span in recorder.spans] == []


async def test_audits_and_the_end_of_bursts_begin_no_traces(database: str, redis_url: str) -> None:
    recorder = Recorder()
    thread, tracer = Thread("a"), recorder.provider.get_tracer("application")
    with instrumented(recorder):
        async with open_saver(database, redis_url, telemetry=recorder.telemetry, audit_ratio=1.0) as saver:
            with tracer.start_as_current_span("request"):
                await thread.put(saver)
                await settled(saver)
                await thread.turn(saver)
                await thread.turn(saver)
            await until(lambda: _audits(recorder) >= 1)
    roots = [span.name for span in recorder.spans if span.parent is None]
    assert roots == ["request"]


async def test_of_a_chain_that_opens_and_moves_threads_up_only_the_drain_is_a_trace(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    own_postgres.stop()
    async with chain(own_postgres.url, redis_url, connect_timeout=1.0) as saver:
        assert saver.tier == "redis"
        await Thread("a").put(saver)
    own_postgres.start()
    recorder = Recorder()
    with instrumented(recorder):
        async with (
            chain(own_postgres.url, redis_url, telemetry=recorder.telemetry) as saver,
            RedisSaver.from_conn_string(redis_url, telemetry=recorder.telemetry),
        ):
            assert saver.tier == "cached"
        assert [span.name for span in recorder.spans] == ["checkpoint.drain"]
        async with chain(own_postgres.url, redis_url, telemetry=recorder.telemetry) as saver:
            assert await Thread("a").turn(saver) == 1, "the thread was moved up"
    begun = [span.name for span in recorder.spans if span.parent is None]
    assert begun == ["checkpoint.drain", "checkpoint.get_tuple"]


def _audits(recorder: Recorder) -> float:
    value = recorder.registry.get_sample_value(
        "glasspoint_l1_audits_total", {"saver": "default", "verdict": "consistent"}
    )
    return value or 0


async def test_a_round_trip_is_one_client_span_although_instrumentations_are_on(
    database: str, redis_url: str
) -> None:
    """Otherwise a service graph counts Redis twice, and shows two PostgreSQLs under two names."""
    recorder = Recorder()
    thread = Thread("a")
    with instrumented(recorder):
        async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
            await thread.put(saver)
            await thread.put_writes(saver, "x")
            await settled(saver, keeps_fences=True)
            await thread.turn(saver)
            await anext(saver.alist(thread.config), None)
            await saver.adelete_thread("a")
    clients = [span for span in recorder.spans if span.kind is SpanKind.CLIENT]
    assert {span.name for span in clients if not span.name.startswith("checkpoint.")} == set()
    peers = {
        (found["db.system.name"], found["db.namespace"], found["server.address"])
        for found in map(attributes, clients)
    }
    assert {system for system, *_ in peers} == {"redis", "postgresql"}
    assert len(peers) == 2
    ids = {span.context.span_id: span for span in clients if span.context is not None}
    for span in clients:
        assert span.name.startswith("checkpoint.")
        above = ids.get(span.parent.span_id) if span.parent is not None else None
        assert above is None or attributes(above)["db.system.name"] != attributes(span)["db.system.name"]


async def test_calls_that_the_application_suppresses_have_no_spans(database: str, redis_url: str) -> None:
    recorder = Recorder()
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        with suppress_instrumentation():
            await Thread("a").put(saver)
    assert not recorder.spans


async def test_background_work_that_fails_is_shown() -> None:
    recorder = Recorder()

    def fail(*, foreseen: bool) -> None:
        if not foreseen:
            BackgroundTask("sweeper", recorder.telemetry, means="").failed(LookupError("canary"))
            return
        with (
            pytest.raises(GlasspointError),
            recorder.telemetry.operation("prune_older_than", None),
        ):
            raise GlasspointError("canary")

    def succeed() -> None:
        with recorder.telemetry.operation("prune_older_than", None):
            pass

    def stop() -> None:
        with (
            pytest.raises(asyncio.CancelledError),
            recorder.telemetry.operation("prune_older_than", None),
        ):
            raise asyncio.CancelledError

    for each in (succeed, stop):
        quiet_context().run(each)
    assert not recorder.spans
    for foreseen in (True, False):
        quiet_context().run(fail, foreseen=foreseen)
    assert [(span.name, attributes(span)["error.type"]) for span in recorder.spans] == [
        ("checkpoint.prune_older_than", "glasspoint.errors.GlasspointError"),
        ("checkpoint.background", "builtins.LookupError"),
    ]
    assert attributes(recorder.spans[1])["glasspoint.task"] == "sweeper"
    assert "canary" not in "".join(span.to_json() for span in recorder.spans)


async def test_a_drain_that_moves_something_is_a_span_and_an_idle_look_is_none(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    recorder = Recorder()
    database = with_tables(own_postgres)
    own_postgres.stop()
    settings = settings_of(database, own_redis.url)
    async with get_checkpointer(settings, telemetry=recorder.telemetry) as saver:
        assert saver.tier == "redis"
        for name in ("a", "b"):
            thread = Thread(name)
            await thread.put(saver)
            await thread.put(saver)
        recorder.clear()
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        looks = [len(recorder.spans)]

        async def looked() -> None:
            looks.append(len(recorder.spans))

        saver._chain._look_below = looked  # type: ignore[method-assign]
        await until(lambda: len(looks) > 5)
    drains = recorder.named("checkpoint.drain")
    assert {span.name for span in recorder.spans if span.status.status_code is not StatusCode.ERROR} == {
        "checkpoint.drain"
    }
    assert all(span.parent is None and span.end_time > span.start_time for span in drains)  # type: ignore[operator]
    told = [attributes(span) for span in drains]
    assert sum(each["glasspoint.threads"] for each in told) == 2
    assert sum(each["glasspoint.checkpoints"] for each in told) == 4
    assert {(each["glasspoint.from_tier"], each["glasspoint.to_tier"]) for each in told} == {
        ("redis", "cached")
    }


async def test_a_call_that_waits_until_its_thread_is_up_has_the_drain_in_its_trace(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """Another process has written to the thread below, and has died."""
    recorder = Recorder()
    database = with_tables(own_postgres)
    settings = settings_of(database, own_redis.url, probe_interval=1000)
    async with get_checkpointer(settings, telemetry=recorder.telemetry) as above:
        own_postgres.stop()
        async with get_checkpointer(settings) as below:
            await Thread("a").put(below)
        own_postgres.start()
        await until(lambda: reached(above))
        recorder.clear()
        with recorder.provider.get_tracer("application").start_as_current_span("request"):
            assert await Thread("a").turn(above) == 1
            assert await Thread("b").turn(above) is None
    [(request, children)] = recorder.forest()
    assert request == "request"
    calls = [(name, inside) for name, inside in children if not name.startswith("checkpoint.redis.")]
    assert [name for name, _ in calls] == ["checkpoint.drain", "checkpoint.get_tuple", "checkpoint.get_tuple"]
    assert [name for name, _ in calls[0][1]][-1] == "checkpoint.retire_thread"
    [drain] = recorder.named("checkpoint.drain")
    told = attributes(drain)
    assert (told["glasspoint.threads"], told["glasspoint.checkpoints"]) == (1, 1)
    assert told["gen_ai.conversation.id"] == "a"


@pytest.mark.parametrize("calls", [1, 10], ids=["alone", "a crowd"])
async def test_a_call_that_waits_in_vain_for_a_connection_has_an_error_span_for_the_wait(
    calls: int, database: str, redis_url: str
) -> None:
    recorder = Recorder()
    threads = [Thread(str(each)) for each in range(calls)]
    async with (
        open_saver(
            database, redis_url, telemetry=recorder.telemetry, pool_max_size=1, write_deadline_seconds=1.0
        ) as saver,
        saver._l2.connections.checkout(),
    ):
        recorder.clear()
        done = await asyncio.gather(*(each.put(saver) for each in threads), return_exceptions=True)
        assert all(isinstance(each, GlasspointError) for each in done)
    puts = {
        span.context.span_id: attributes(span)
        for span in recorder.named("checkpoint.put")
        if span.context is not None
    }
    waits = recorder.named("checkpoint.l2.acquire")
    assert sorted(span.parent.span_id for span in waits if span.parent) == sorted(puts)
    for span in waits:
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"]
    assert not any("glasspoint.served_by" in each for each in puts.values())


async def test_a_read_that_nothing_has_served_names_no_server(database: str, redis_url: str) -> None:
    recorder = Recorder()
    async with (
        open_saver(
            database, redis_url, telemetry=recorder.telemetry, pool_max_size=1, pool_timeout_seconds=0.1
        ) as saver,
        saver._l2.connections.checkout(),
    ):
        with pytest.raises(GlasspointError):
            await Thread("a").turn(saver)
    [get] = recorder.named("checkpoint.get_tuple")
    assert attributes(get)["glasspoint.l1.result"] == "miss"
    assert "glasspoint.served_by" not in attributes(get)
    assert get.status.status_code is StatusCode.ERROR
    [wait] = recorder.named("checkpoint.l2.acquire")
    assert wait.status.status_code is StatusCode.ERROR


async def test_a_statement_that_fails_says_what_postgresql_said(database: str, redis_url: str) -> None:
    recorder = Recorder()
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        async with saver._l2.connections.checkout() as connection:
            await connection.execute("DROP TABLE checkpoints")
        with pytest.raises(SchemaError):
            await Thread("a").put(saver)
    [statement] = recorder.named("checkpoint.l2.put")
    assert attributes(statement)["db.response.status_code"] == "42P01", "undefined_table"


async def test_a_statement_for_several_calls_says_for_how_many(database: str, redis_url: str) -> None:
    recorder = Recorder()
    thread = Thread("a")
    async with open_saver(database, redis_url, CachedPostgresSaver, telemetry=recorder.telemetry) as saver:
        await thread.put(saver)
        await asyncio.gather(*(thread.put_writes(saver, "x", str(each)) for each in range(8)))
    sizes = [
        attributes(span).get("db.operation.batch.size") for span in recorder.named("checkpoint.l2.put_writes")
    ]
    assert len(sizes) == 8
    assert max(size for size in sizes if size) > 1
    assert 1 not in sizes, "the conventions leave it out where it is 1"
