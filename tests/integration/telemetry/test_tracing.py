"""The spans of a call are a tree that says where time went, cost nothing unsampled, and hold no content."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import traceback
from datetime import timedelta
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from opentelemetry import trace
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    StaticSampler,
)
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

import preforked
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import L2DeadlineError, SerializationError
from glasspoint.savers import bursts
from recorder import CANARY, FIRST_PUT, PUT, PUT_WRITES, Recorder, Tree, attributes, id_of
from states import config_of, open_saver
from steps import Thread, locked, seeded_dice, settled, until


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


HIT: Tree = ("checkpoint.get_tuple", [("checkpoint.l1.read", [])])
MISS: Tree = (
    "checkpoint.get_tuple",
    [
        ("checkpoint.l1.read", []),
        ("checkpoint.l2.select", []),
        ("checkpoint.warm_up", [("checkpoint.l1.warm_up", [])]),
    ],
)
NOT_THERE: Tree = ("checkpoint.get_tuple", [("checkpoint.l1.read", []), ("checkpoint.l2.select", [])])
HIT_AFTER_A_BURST: Tree = ("checkpoint.get_tuple", [("checkpoint.l1.commit", [])])
DELETE: Tree = (
    "checkpoint.delete_thread",
    [("checkpoint.l2.delete_thread", [("checkpoint.l1.begin", [])]), ("checkpoint.l1.drop", [])],
)


@pytest.fixture
def no_burst_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is between two writes."""
    monkeypatch.setattr(bursts, "QUIET_SECONDS", 3600.0)


# ------------------------------------------------------------------ trees


async def test_every_call_is_a_tree_of_its_round_trips(
    database: str, redis_url: str, recorder: Recorder, no_burst_ends_by_itself: None
) -> None:
    thread = Thread("a")
    async with (
        open_saver(database, redis_url, telemetry=recorder.telemetry) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        assert recorder.forest() == [], "opening a saver and making tables is no call"
        for call, tree in (
            (lambda: thread.turn(saver), NOT_THERE),
            (lambda: thread.put(saver), FIRST_PUT),
            (lambda: thread.put_writes(saver, "x"), PUT_WRITES),
            (lambda: thread.put(saver), PUT),
            (lambda: thread.turn(saver), HIT_AFTER_A_BURST),
            (lambda: thread.turn(saver), HIT),
            (lambda: settled(saver), None),
            (redis.flushall, None),
            (lambda: thread.turn(saver), MISS),
            (lambda: thread.turn(saver), HIT),
            (lambda: saver.aget_tuple(thread.newest), HIT),
            (lambda: saver.adelete_thread("a"), DELETE),
            (
                lambda: anext(saver.alist(thread.config), None),
                ("checkpoint.list", [("checkpoint.l2.list", [])]),
            ),
            (
                lambda: saver.aget_delta_channel_history(config=thread.newest, channels=["messages"]),
                ("checkpoint.delta_history", [("checkpoint.l2.delta_history", [])]),
            ),
        ):
            recorder.clear()
            await call()
            assert recorder.forest() == ([tree] if tree else [])


async def test_a_hit_is_exactly_two_spans(database: str, redis_url: str, recorder: Recorder) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        await thread.put(saver)
        await settled(saver)
        recorder.clear()
        await thread.turn(saver)
    assert [span.name for span in recorder.spans] == ["checkpoint.l1.read", "checkpoint.get_tuple"]


async def test_the_turns_of_a_real_graph_are_trees(
    database: str, redis_url: str, recorder: Recorder, no_burst_ends_by_itself: None
) -> None:
    """A cold thread, then one that is remembered; what LangGraph does in tasks stands under the turn, too.

    LangGraph sends a checkpoint's writes while its put is under way: they may be confirmed like that one.
    """
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} so far")]})
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    tracer = recorder.provider.get_tracer("test")
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        graph = builder.compile(checkpointer=saver)
        for read in (NOT_THERE, HIT):
            recorder.clear()
            with tracer.start_as_current_span("turn"):
                await graph.ainvoke({"messages": [("user", "hello")]}, config_of("철수"))  # type: ignore[call-overload]
            [(name, calls)] = recorder.forest()
            assert name == "turn"
            assert calls[0] == read
            assert sorted(call for call, _ in calls[1:]) == (
                ["checkpoint.put"] * 3 + ["checkpoint.put_writes"] * 2
            )
            assert sum(("checkpoint.l1.begin", []) in steps for _, steps in calls) == 1
            for call, steps in calls[1:]:
                to_l2: Tree = (f"checkpoint.l2.{call.removeprefix('checkpoint.')}", [])
                begin: Tree = ("checkpoint.l1.begin", [])
                confirm: Tree = ("checkpoint.l1.confirm", [])
                assert steps in ([to_l2], [to_l2, confirm], [begin, to_l2, confirm])
            await settled(saver)
            assert len({span.context.trace_id for span in recorder.spans if span.context}) == 1
            for span in recorder.spans:
                if span.name != "turn":
                    assert attributes(span)["gen_ai.conversation.id"] == "철수"
            steps = [
                attributes(span)["langgraph.checkpoint.step"] for span in recorder.named("checkpoint.put")
            ]
            assert steps == ([-1, 0, 1] if read is NOT_THERE else [2, 3, 4])


async def test_what_changes_whole_threads_is_a_tree_too(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    """One transaction each; readers are sent away inside it. Of `prune_older_than` each batch is a call."""

    def tree(operation: str, *, scopes: int = 1, step: str = "") -> tuple[str, Any]:
        begins: list[Tree] = [("checkpoint.l1.begin", [])] * scopes
        drops: list[Tree] = [("checkpoint.l1.drop", [])] * scopes
        return (f"checkpoint.{operation}", [(f"checkpoint.l2.{step or operation}", begins), *drops])

    one, other = Thread("a"), Thread("b")
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        for thread in (one, one, one, other, other):
            await thread.put(saver)
        await settled(saver)
        for call, expected in (
            (lambda: saver.acopy_thread("a", "c"), [tree("copy_thread")]),
            (lambda: saver.aprune(["a", "b"]), [tree("prune", scopes=2)]),
            (lambda: saver.aprune(["a"]), [tree("prune", scopes=0)]),
            (
                lambda: saver.aprune_older_than(timedelta(hours=1), batch_size=1, dry_run=True),
                [("checkpoint.prune_older_than", [("checkpoint.l2.prune_count", [])])],
            ),
            (
                lambda: saver.aprune_older_than(timedelta(hours=1), batch_size=1),
                [tree("prune_older_than")] * 2,
            ),
            (lambda: saver.adelete_for_runs(["r"]), [tree("delete_for_runs", scopes=0)]),
            (lambda: saver.aprune(["c"], strategy="delete"), [tree("prune")]),
        ):
            recorder.clear()
            await call()
            found = [each for each in recorder.forest() if each[0] != "checkpoint.l2.prune_find"]
            assert found == expected
            for span in recorder.spans:
                if span.name.startswith("checkpoint.l2.") and span.name != "checkpoint.l2.acquire":
                    operation = "INSERT" if span.name.endswith("copy_thread") else "DELETE"
                    if span.name.endswith(("_find", "_count")):
                        operation = "SELECT"
                    assert attributes(span)["db.operation.name"] == operation
                    assert attributes(span)["db.collection.name"] == "checkpoints"


# ------------------------------------------------------------------ attributes


async def test_what_stands_on_the_spans(
    database: str, redis_url: str, recorder: Recorder, no_burst_ends_by_itself: None
) -> None:
    thread = Thread("conversation", "child")
    async with (
        open_saver(database, redis_url, telemetry=recorder.telemetry) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await thread.turn(saver)
        await settled(saver)
        await redis.flushall()
        await thread.turn(saver)
        await saver.aget_tuple(thread.newest)
    gets = [attributes(span) for span in recorder.named("checkpoint.get_tuple")]
    [put], [writes] = recorder.named("checkpoint.put"), recorder.named("checkpoint.put_writes")
    base = {
        "gen_ai.conversation.id": "conversation",
        "langgraph.checkpoint.ns": "child",
        "langgraph.checkpoint.id": thread.newest["configurable"]["checkpoint_id"],
        "glasspoint.tier": "cached",
    }
    loop = {"langgraph.checkpoint.step": 1, "langgraph.checkpoint.source": "loop"}
    for found, expected in (
        (gets[0], base | loop | {"glasspoint.l1.result": "hit", "glasspoint.served_by": "l1"}),
        (gets[1], base | loop | {"glasspoint.l1.result": "miss", "glasspoint.served_by": "l2"}),
        (gets[2], base | loop | {"glasspoint.l1.result": "hit", "glasspoint.served_by": "l1"}),
        (attributes(put), base | loop | {"glasspoint.l1.result": "announced"}),
        (
            attributes(writes),
            base
            | {
                "glasspoint.l1.result": "covered",
                "langgraph.checkpoint.step": 1,
                "langgraph.task.id": "task",
            },
        ),
    ):
        assert found.pop("glasspoint.bytes") > 0
        assert found == expected
    [warm_up] = recorder.named("checkpoint.warm_up")
    assert attributes(warm_up)["glasspoint.result"] == "stored"


async def test_every_span_of_a_scope_names_its_conversation_and_every_round_trip_its_server(
    database: str, own_redis: EmbeddedRedis, recorder: Recorder
) -> None:
    thread = Thread("conversation")
    async with open_saver(database, own_redis.url, telemetry=recorder.telemetry) as saver:
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await thread.turn(saver)
        own_redis.flush()
        await thread.turn(saver)
        async for _ in saver.alist(thread.config):
            pass
        await saver.aget_delta_channel_history(config=thread.newest, channels=["messages"])
        await saver.adelete_thread("conversation")
    for span in recorder.spans:
        assert attributes(span).get("gen_ai.conversation.id") == "conversation", span.name
    statements = {
        "select": ("SELECT", "checkpoints"),
        "put": ("INSERT", "checkpoints"),
        "put_writes": ("INSERT", "checkpoint_writes"),
        "list": ("SELECT", "checkpoints"),
        "delta_history": ("SELECT", "checkpoint_writes"),
        "delete_thread": ("DELETE", "checkpoints"),
    }
    seen = set()
    for span in recorder.spans:
        _, tier, *what = span.name.split(".")
        found = attributes(span)
        if tier == "l1":
            assert span.kind is SpanKind.CLIENT
            assert found["db.system.name"] == "redis"
            assert (found["db.operation.name"], found["db.stored_procedure.name"]) == ("EVALSHA", what[0])
            assert (found["server.address"], found["server.port"]) == ("127.0.0.1", own_redis.port)
        elif tier == "l2" and what != ["acquire"]:
            seen.add(what[0])
            assert span.kind is SpanKind.CLIENT
            assert found["db.system.name"] == "postgresql"
            assert (found["db.operation.name"], found["db.collection.name"]) == statements[what[0]]
            assert found["server.address"] == conninfo_to_dict(database)["host"]
        else:
            assert span.kind is SpanKind.INTERNAL
            assert not {key for key in found if key.startswith(("db.", "server."))}
        assert span.status.status_code is not StatusCode.ERROR
        assert "error.type" not in found
    assert seen == set(statements)


async def test_a_failure_stands_on_the_round_trip_and_on_the_call_that_it_failed(
    database: str, own_redis: EmbeddedRedis, recorder: Recorder
) -> None:
    thread = Thread("a")
    options: dict[str, Any] = {"telemetry": recorder.telemetry, "write_deadline_seconds": 2.0}
    async with open_saver(database, own_redis.url, **options) as saver:
        await thread.put(saver)
        recorder.clear()
        async with locked(database, "checkpoints"):
            with pytest.raises(L2DeadlineError):
                await thread.put(saver)
        [put], [statement] = recorder.named("checkpoint.put"), recorder.named("checkpoint.l2.put")
        assert attributes(put)["error.type"] == "glasspoint.errors.L2DeadlineError"
        assert put.status.status_code is StatusCode.ERROR
        assert attributes(statement)["error.type"]
        assert statement.status.status_code is StatusCode.ERROR
        assert {put.status.description, statement.status.description} <= {"error", "cancelled"}, (
            "never a text"
        )

        own_redis.kill()
        recorder.clear()
        await thread.turn(saver)
        [get], [read] = recorder.named("checkpoint.get_tuple"), recorder.named("checkpoint.l1.read")
        assert (attributes(get)["glasspoint.l1.result"], attributes(get)["glasspoint.served_by"]) == (
            "unavailable",
            "l2",
        )
        assert get.status.status_code is not StatusCode.ERROR, "the call was answered"
        assert attributes(read)["error.type"].startswith("redis.")
        assert read.status.status_code is StatusCode.ERROR
        assert [event.name for span in recorder.spans for event in span.events] == [
            "glasspoint.l1.unavailable"
        ]

        own_redis.start()
        recorder.clear()
        await thread.turn(saver)
        events = [event.name for span in recorder.spans for event in span.events]
        # Either this call renews the identity for the new Redis, or the sweeper, which was faster.
        by_either = "glasspoint.l1.identity_changed"
        assert sorted({*events} - {by_either}) == ["glasspoint.l1.available", "glasspoint.l1.epoch_changed"]

        recorder.clear()
        blocked = asyncio.ensure_future(thread.turn(saver))
        await asyncio.sleep(0)
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        [get] = recorder.named("checkpoint.get_tuple")
        assert attributes(get)["error.type"].endswith("CancelledError")


async def test_a_write_that_redis_was_not_told_of_is_traced_to_the_journal(
    database: str, own_redis: EmbeddedRedis, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")

    async def unheard(*args: Any, **options: Any) -> None:
        """What CONFIRM answers when Redis did not."""

    async with open_saver(database, own_redis.url, telemetry=recorder.telemetry) as saver:
        monkeypatch.setattr(saver._l1, "confirm", unheard)
        recorder.clear()
        await thread.put(saver)
        [put] = recorder.named("checkpoint.put")
        [journal] = recorder.named("checkpoint.l2.journal")
    assert attributes(put)["glasspoint.l1.result"] == "journalled"
    assert journal.parent is not None
    assert journal.parent.span_id == id_of(put)
    assert attributes(journal)["db.collection.name"] == "glasspoint_l1_journal"


async def test_waiting_for_a_connection_is_a_span_only_when_there_was_a_wait(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    async with open_saver(database, redis_url):
        pass  # makes the tables
    kwargs = {"autocommit": True, "row_factory": dict_row}
    pool = AsyncConnectionPool(database, min_size=1, max_size=1, kwargs=kwargs, open=False)
    thread = Thread("a")
    async with Redis.from_url(redis_url) as redis, pool:
        await pool.wait()
        saver = CachedPostgresSaver(AsyncPostgresSaver(pool), redis, pool, telemetry=recorder.telemetry)  # type: ignore[arg-type]

        async def no_wait() -> bool:
            recorder.clear()
            await thread.put(saver)
            return not recorder.named("checkpoint.l2.acquire")

        await until(no_wait)  # at once, unless the machine is very busy
        recorder.clear()
        async with pool.connection():
            writing = asyncio.ensure_future(thread.put(saver))
            await until(lambda: pool.get_stats()["requests_waiting"])
            held = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() - held > 0.02)
        await writing
        [acquire], [put] = recorder.named("checkpoint.l2.acquire"), recorder.named("checkpoint.put")
        assert acquire.parent is not None
        assert acquire.parent.span_id == id_of(put)
        assert acquire.start_time is not None
        assert acquire.end_time is not None
        assert 0.02 < (acquire.end_time - acquire.start_time) / 1e9 < 5
        assert attributes(acquire)["gen_ai.conversation.id"] == "a"
        await saver.close()


# ------------------------------------------------------------------ unsampled, and without an SDK


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)], ids=["off", "parent"])
async def test_an_unsampled_trace_records_nothing_and_asks_for_no_children(
    sampler: Sampler, database: str, redis_url: str
) -> None:
    recorder, thread = Recorder(sampler), Thread("a")
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        recorder.clear()
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await thread.turn(saver)
    assert recorder.spans == ()
    assert recorder.sampler.asked == ["checkpoint.put", "checkpoint.put_writes", "checkpoint.get_tuple"]
    name = "glasspoint_l1_reads_total"
    assert recorder.registry.get_sample_value(name, {"saver": "default", "result": "hit"}) == 1
    assert b"trace_id" not in generate_latest(recorder.registry), (
        "no exemplar leads to a trace that is nowhere"
    )


@pytest.mark.parametrize("is_remote", [False, True])
async def test_below_a_span_that_is_not_sampled_the_sdk_is_asked_only_if_another_process_decided(
    is_remote: bool, database: str, redis_url: str
) -> None:
    """Of a remote parent the sampler may think otherwise; of one in this process it has decided."""
    recorder, thread = Recorder(ALWAYS_ON), Thread("a")
    around = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote, trace.TraceFlags(0)))
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        await thread.put(saver)
        await settled(saver)
        recorder.clear()
        with trace.use_span(around):
            await thread.turn(saver)
    assert recorder.forest() == ([HIT] if is_remote else [])


async def test_what_is_recorded_but_not_sampled_is_no_exemplar(database: str, redis_url: str) -> None:
    recorder = Recorder(StaticSampler(Decision.RECORD_ONLY))
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        await Thread("a").put(saver)
    assert b"trace_id" not in generate_latest(recorder.registry)


async def test_an_exemplar_leads_to_the_trace(database: str, redis_url: str, recorder: Recorder) -> None:
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        await Thread("a").put(saver)
    [put] = recorder.named("checkpoint.put")
    assert put.context is not None
    found = {
        sample.exemplar.labels["trace_id"]
        for family in recorder.registry.collect()
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert found == {trace.format_trace_id(put.context.trace_id)}


async def test_without_an_sdk_no_children_are_made(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    plain = trace.NoOpTracer.start_span

    def start_span(self: trace.NoOpTracer, name: str, *args: Any, **kwargs: Any) -> trace.Span:
        started.append(name)
        return plain(self, name, *args, **kwargs)

    monkeypatch.setattr(trace.NoOpTracer, "start_span", start_span)
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=NoOpTracerProvider())
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        await thread.put(saver)
        await thread.turn(saver)
    assert started == ["checkpoint.put", "checkpoint.get_tuple"]


def test_an_sdk_that_is_set_up_after_the_saver_is_used_by_the_next_call() -> None:
    """Of the whole process, so in a process of its own. The second time, without the API's own variable."""
    code = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from glasspoint import create_telemetry
from glasspoint.telemetry import tracing

if sys.argv[1] == "without":
    known = tracing.trace
    class Api:
        def __getattr__(self, name):
            if name == "_TRACER_PROVIDER":
                raise AttributeError(name)
            return getattr(known, name)
    tracing.trace = Api()
telemetry = create_telemetry(registry=CollectorRegistry())
def call():
    with telemetry.operation("put", None):
        with telemetry.step("l2.put", None):
            pass
call()
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
call()
print(*sorted(span.name for span in exporter.get_finished_spans()))
"""
    for way in ("with", "without"):
        done = preforked.run(code, way, env=dict(os.environ), timeout=60)
        assert (done.stdout, done.stderr) == ("checkpoint.l2.put checkpoint.put\n", "")


async def test_the_current_span_is_the_callers_again_after_every_call(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    tracer = recorder.provider.get_tracer("test")
    thread = Thread("a")
    async with open_saver(
        database, redis_url, telemetry=recorder.telemetry, write_deadline_seconds=2.0
    ) as saver:
        with tracer.start_as_current_span("caller") as caller:
            await thread.put(saver)
            assert trace.get_current_span() is caller
            await thread.turn(saver)
            assert trace.get_current_span() is caller
            with pytest.raises(SerializationError):
                await thread.put(saver, broken=object())
            assert trace.get_current_span() is caller
            async with locked(database, "checkpoints"):
                with pytest.raises(L2DeadlineError):
                    await thread.put(saver)
            assert trace.get_current_span() is caller
            async for _ in saver.alist(thread.config):
                assert trace.get_current_span() is caller


@pytest.mark.dice
async def test_calls_that_run_at_once_keep_their_children_apart(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    dice = seeded_dice()
    threads = [Thread(f"thread {i}") for i in range(24)]
    async with open_saver(database, redis_url, telemetry=recorder.telemetry, pool_max_size=4) as saver:
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        await settled(saver)
        calls = [
            call
            for thread in threads
            for call in (thread.turn(saver), thread.put_writes(saver, "x"), saver.aget_tuple(thread.newest))
        ]
        dice.shuffle(calls)
        await asyncio.gather(*calls)
    by_id = {id_of(span): span for span in recorder.spans}
    roots = 0
    for span in recorder.spans:
        if span.parent is None:
            roots += 1
            continue
        parent = by_id[span.parent.span_id]
        assert attributes(parent)["gen_ai.conversation.id"] == attributes(span)["gen_ai.conversation.id"]
        assert parent.context is not None
        assert span.context is not None
        assert parent.context.trace_id == span.context.trace_id
        assert parent.start_time is not None
        assert span.start_time is not None
        assert parent.start_time <= span.start_time
    assert roots == 24 * 4
    for tree in recorder.forest():
        assert sorted(name for name, _ in tree[1] if name != "checkpoint.l1.commit") in (
            ["checkpoint.l1.begin", "checkpoint.l1.confirm", "checkpoint.l2.put"],
            ["checkpoint.l1.begin", "checkpoint.l1.confirm", "checkpoint.l2.put_writes"],
            ["checkpoint.l1.read"],
            [],  # a reader's, for whom a burst ended
            ["checkpoint.l1.read", "checkpoint.l2.select"],  # busy: the thread's put_writes was under way
            ["checkpoint.l1.read", "checkpoint.l2.select", "checkpoint.warm_up"],
        )


# ------------------------------------------------------------------ log lines


@pytest.mark.parametrize(("sampler", "names_it"), [(ALWAYS_ON, True), (ALWAYS_OFF, False)])
async def test_a_line_names_the_trace_that_it_belongs_to(
    database: str,
    own_redis: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
    sampler: Sampler,
    names_it: bool,
) -> None:
    recorder, thread = Recorder(sampler), Thread("a")
    async with open_saver(database, own_redis.url, telemetry=recorder.telemetry) as saver:
        await thread.put(saver)
        await settled(saver)
        own_redis.kill()
        recorder.clear()
        await thread.turn(saver)
    [line] = [r for r in caplog.records if r.name == "glasspoint.l1" and "does not answer" in r.getMessage()]
    initialized = [r for r in caplog.records if "initialized" in r.getMessage()]
    assert not any("trace_id" in each.getMessage() for each in initialized)
    if names_it:
        context = recorder.named("checkpoint.get_tuple")[0].context
        assert context is not None
        assert line.getMessage().endswith(f" trace_id={context.trace_id:032x}")
        assert vars(line)["trace_id"] == f"{context.trace_id:032x}"
    else:
        assert "trace_id" not in line.getMessage()


class _AllButOurs(Sampler):
    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, *args: Any, **kw: Any
    ) -> SamplingResult:
        return SamplingResult(Decision.DROP if name.startswith("checkpoint.") else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "all but ours"


async def test_below_a_call_that_is_not_sampled_an_instrumentation_begins_no_trace(
    database: str, redis_url: str
) -> None:
    recorder, thread = Recorder(ParentBased(_AllButOurs())), Thread("a")
    async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
        RedisInstrumentor.instrument_client(saver.status.redis, tracer_provider=recorder.provider)
        await thread.put(saver)
        await thread.turn(saver)
        assert recorder.spans == ()
        await saver.status.redis.ping()
        assert len(recorder.spans) == 1, "it is on"
        assert not trace.get_current_span().get_span_context().is_valid


# ------------------------------------------------------------------ nothing of a conversation, no password


async def test_no_content_and_no_password_in_any_telemetry_log_or_error(
    database: str, own_redis: EmbeddedRedis, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def failing(call: Any) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it must not tell
            await call
        said.extend([*traceback.format_exception(caught.value), repr(caught.value), str(caught.value)])

    password = CANARY.encode().hex()

    async def lock_redis() -> None:
        async with Redis.from_url(own_redis.url) as redis:
            await redis.config_set("requirepass", password)

    await lock_redis()
    redis_url = own_redis.url.replace("//", f"//:{password}@")
    options: dict[str, Any] = {
        "telemetry": recorder.telemetry,
        "write_deadline_seconds": 2.0,
        "l1_timeout_seconds": 0.1,
    }
    async with open_saver(f"{database}&password={password}", redis_url, **options) as saver:
        thread = Thread("a")
        state = {"secret": [CANARY], "inline": CANARY, "raw": CANARY.encode()}
        await thread.put(saver, **state)
        await thread.put_writes(saver, CANARY)
        assert await thread.turn(saver) == 1
        own_redis.freeze()
        try:
            await thread.put(saver, **state)
            await thread.put_writes(saver, CANARY)
            assert await thread.turn(saver) == 2
        finally:
            own_redis.thaw()
        await failing(thread.put(saver, **state, broken=_Broken()))
        # A value without a version cannot be kept apart from the checkpoint's JSON, which takes no NUL.
        config, checkpoint, metadata, versions = Thread("loose").next_put(saver)
        checkpoint["channel_values"]["loose"] = f"{CANARY}\0"
        await failing(saver.aput(config, checkpoint, metadata, versions))
        await failing(
            saver.aput_writes(thread.newest, [("messages", CANARY), ("messages", _Broken())], "task")
        )
        await failing(saver.aput_writes(thread.newest, [("messages", CANARY), ("a\0", CANARY)], "task"))
        async with locked(database, "checkpoints"):
            await failing(thread.put(saver, **state))
        async with locked(database, "checkpoint_writes"):
            await failing(thread.put_writes(saver, CANARY, "another"))
        own_redis.kill()
        await failing(CachedPostgresSaver.create(f"postgresql://u:{password}@127.0.0.1:1/db", redis_url))
        await thread.put_writes(saver, CANARY, "a third")
        own_redis.start()
        await lock_redis()
        await saver.aget_tuple(thread.config)  # so that Redis has it
        serde = _Talkative()
        async with open_saver(database, redis_url, telemetry=recorder.telemetry, serde=serde) as talkative:
            with pytest.raises(ValueError, match=CANARY):  # the serializer's own words, to the caller alone
                await talkative.aget_tuple(thread.config)
        await saver.adelete_thread("a")
        own_redis.kill()
        said += [repr(saver), str(saver), repr(saver.__dict__)]
    said += [span.to_json() for span in recorder.spans]
    said += [json.dumps(str(event.attributes)) for span in recorder.spans for event in span.events]
    said += [str(span.status.description) for span in recorder.spans]
    said.append(generate_latest(recorder.registry).decode())
    said += [f"{record.getMessage()} {record.exc_text} {record.args}" for record in caplog.records]
    assert len(recorder.spans) > 40
    assert recorder.named("checkpoint.put")
    for text in said:
        assert CANARY not in text
        assert password not in text


class _Talkative(JsonPlusSerializer):
    """Fails while it reads, and quotes what it read."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        raise ValueError(f"{super().loads_typed(data)} {CANARY}")


class _Broken:
    """What no serializer knows, and what tells everything about itself."""

    def __repr__(self) -> str:
        return CANARY

    def __reduce__(self) -> Any:
        raise TypeError("this cannot be taken apart")
